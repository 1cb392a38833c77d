package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	// maxCompares is how many comparisons one request of ours holds: etcd takes 128
	// by default, and one less where what follows compares as well.
	maxCompares = 120
	// txnTries bounds how often a Txn is tried whose conditions hold, but on an entry
	// that has expired, or that changed while it was looked at.
	txnTries = 8
)

// Txn implements store.Store. When ctx ends before the Txn has been sent, its error is
// returned and nothing was written; later it is store.ErrUnknown.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	err := store.CheckTxn(conds, ops)
	revision := int64(0)
	if err == nil {
		revision, err = s.txn(ctx, conds, ops)
	}
	if err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	return revision, nil
}

func (s *Store) txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	ctx, cancel := bounded(ctx)
	defer cancel()
	t := &txn{base: s.base, conds: conds, expected: make([]int64, len(conds)), changes: s.changes(ops)}
	compares := len(conds)
	for i, c := range conds {
		t.expected[i] = c.Revision
		if c.Revision != 0 {
			compares++
		}
	}
	if compares > maxCompares {
		if err := s.lookFirst(ctx, t); err != nil {
			return 0, err
		}
	}
	for range txnTries {
		resp, err := s.commit(ctx, t.request(s.cfg.Now()), ops)
		if err != nil {
			return 0, err
		}
		if resp.Succeeded {
			return resp.Header.Revision, nil
		}
		if err := t.learn(resp.Responses); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%.80q and others change all the time: %w", conds[0].Key, store.ErrConflict)
}

// changes are ops as etcd takes them. Without any, something is read: an empty request
// is answered by a member that may be behind.
func (s *Store) changes(ops []store.Op) []*pb.RequestOp {
	if len(ops) == 0 {
		return []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: []byte(s.base), CountOnly: true})}
	}
	changes := make([]*pb.RequestOp, len(ops))
	for i, op := range ops {
		key := []byte(s.base + op.Key)
		if op.Delete {
			changes[i] = deleteOp(key)
		} else {
			changes[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: encode(op.Value, op.Expires)}}}
		}
	}
	return changes
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func deleteOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}

func txnOp(t *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}
}

// at compares the revision of key, where 0 is that of an absent one.
func at(key []byte, revision int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}
}

// liveAt compares the time that key expires at.
func liveAt(key []byte, now time.Time) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_VALUE, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Value{Value: bound(now)}}
}

// txn is a Txn as etcd is asked for it: conditions on revisions and on the time that
// entries expire at. When they do not hold, the answer tells of each key how it is, so
// that a condition "absent" on an entry that has expired can be asked for anew, as one
// on the revision of that entry.
type txn struct {
	base     string
	conds    []store.Cond
	expected []int64 // revisions in etcd for the conditions to hold
	looked   bool    // entries that conds expect were looked at: they are there and live
	changes  []*pb.RequestOp
}

func (t *txn) request(now time.Time) *pb.TxnRequest {
	r := &pb.TxnRequest{Success: t.changes}
	for i, c := range t.conds {
		key := []byte(t.base + c.Key)
		r.Compare = append(r.Compare, at(key, t.expected[i]))
		if c.Revision != 0 && !t.looked {
			r.Compare = append(r.Compare, liveAt(key, now))
		}
	}
	r.Failure = t.looks(now)
	return r
}

// looks ask of each key whether its entry is live, and for its revision.
func (t *txn) looks(now time.Time) []*pb.RequestOp {
	looks := make([]*pb.RequestOp, len(t.conds))
	for i, c := range t.conds {
		key := []byte(t.base + c.Key)
		revision := []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: key, KeysOnly: true})}
		looks[i] = txnOp(&pb.TxnRequest{Compare: []*pb.Compare{liveAt(key, now)}, Success: revision, Failure: revision})
	}
	return looks
}

// learn takes the answers to looks: ErrConflict where a condition does not hold.
func (t *txn) learn(answers []*pb.ResponseOp) error {
	for i, c := range t.conds {
		look := answers[i].GetResponseTxn()
		found, actual := int64(0), int64(0)
		if kvs := look.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			found = kvs[0].ModRevision
		}
		if look.Succeeded {
			actual = found
		}
		if actual != c.Revision {
			return fmt.Errorf("%.80q is at revision %d, not %d: %w", c.Key, actual, c.Revision, store.ErrConflict)
		}
		t.expected[i] = found
	}
	return nil
}

// lookFirst checks conditions too many for one request before it: what it finds of an
// entry stays true of that revision, but for entries that expire at that very moment.
func (s *Store) lookFirst(ctx context.Context, t *txn) error {
	resp, err := s.commit(ctx, &pb.TxnRequest{Success: t.looks(s.cfg.Now())}, nil)
	if err != nil {
		return err
	}
	t.looked = true
	return t.learn(resp.Responses)
}

// commit sends a request that changes ops. It is sent again only where it has surely
// not been done.
func (s *Store) commit(ctx context.Context, req *pb.TxnRequest, ops []store.Op) (*pb.TxnResponse, error) {
	for {
		before := s.seen.Load()
		sending := &sending{}
		resp, err := s.kv.Txn(context.WithValue(ctx, sendingKey{}, sending), req, callOptions()...)
		if err == nil {
			s.saw(resp.Header.Revision)
			return resp, nil
		}
		known := rpctypes.Error(err)
		switch {
		case errors.Is(known, rpctypes.ErrNoLeader) && pause(ctx, retryPause):
			continue // refused by a member that has no leader; another one may
		case len(ops) == 0 || !sending.sent.Load() || refused(err):
			return nil, s.explain(ctx, err)
		case errors.Is(known, rpctypes.ErrNoSpace) && s.untouched(ctx, ops, before):
			return nil, fmt.Errorf("nothing was written: %w", s.explain(ctx, err))
		}
		return nil, fmt.Errorf("%w: %w", store.ErrUnknown, s.explain(ctx, err))
	}
}

// refused says whether err means that etcd did not even try.
func refused(err error) bool {
	known := rpctypes.Error(err)
	if errors.Is(known, rpctypes.ErrNoLeader) || errors.Is(known, rpctypes.ErrTooManyRequests) || tooLarge(err) {
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.Unimplemented:
		return true
	}
	return false
}

// untouched says whether surely nobody has put any of ops after revision. Etcd says
// that its space is used up before it tries, and also after it has done the Txn that
// used it up.
func (s *Store) untouched(ctx context.Context, ops []store.Op, revision int64) bool {
	for _, op := range ops {
		if op.Delete {
			continue
		}
		resp, err := s.read(ctx, &pb.RangeRequest{Key: []byte(s.base + op.Key), KeysOnly: true})
		if err != nil || len(resp.Kvs) == 0 { // absent: never put, or put and deleted since
			return err == nil && resp.Header.Revision <= revision
		}
		return resp.Kvs[0].ModRevision <= revision
	}
	return false
}
