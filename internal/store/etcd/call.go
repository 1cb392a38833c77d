package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	callTimeout    = 5 * time.Second        // of a call whose context has no deadline
	attemptTimeout = 2 * time.Second        // of asking one member, or half of what is left; then another one is asked
	retryPause     = 50 * time.Millisecond  // before asking again
	maxAnswer      = 64 << 20               // bytes of one answer; larger pages are asked for in halves
	txnMethod      = "/etcdserverpb.KV/Txn" // gRPC's name of a write
)

func callOptions() []grpc.CallOption {
	return []grpc.CallOption{grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(math.MaxInt32)}
}

// begin lets a call in, unless ctx has ended or the store is closed. The context it
// returns ends after callTimeout where ctx has no deadline, and makes members without
// a leader refuse at once rather than wait for one. Who calls it calls end.
func (s *Store) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, nil, store.ErrClosed
	}
	s.calls.Add(1)
	return clientv3.WithRequireLeader(ctx), s.calls.Done, nil
}

// beginRead is begin for what need not be waited for when the store is closed.
func (s *Store) beginRead(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, done, err := s.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(store.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); done() }, nil
}

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// read asks until a member answers or ctx ends: reading twice does no harm. A member
// that is silent is left after attemptTimeout.
func (s *Store) read(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for told := error(nil); ; {
		deadline, _ := ctx.Deadline()
		attempt, end := context.WithTimeout(ctx, max(min(attemptTimeout, time.Until(deadline)/2), 2*retryPause))
		resp, err := s.kv.Range(attempt, req, callOptions()...)
		end()
		if err == nil {
			s.saw(resp.Header.Revision)
			return resp, nil
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
			return nil, s.explain(ctx, err)
		}
		if told == nil || rpctypes.ErrorDesc(err) != context.DeadlineExceeded.Error() {
			told = err // why nobody answers, which not every try tells
		}
		if !pause(ctx, retryPause) {
			return nil, s.explain(ctx, told)
		}
	}
}

// pause is false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// saw notes a revision of the store; seen is the highest so far.
func (s *Store) saw(revision int64) {
	for old := s.seen.Load(); revision > old && !s.seen.CompareAndSwap(old, revision); {
		old = s.seen.Load()
	}
}

// explain says what a person can do about err. Once ctx has ended the error wraps why.
func (s *Store) explain(ctx context.Context, err error) error {
	known := rpctypes.Error(err)
	switch {
	case errors.Is(known, rpctypes.ErrNoSpace):
		return fmt.Errorf("etcd's space is used up: compact and defragment it (etcdctl compact, defrag, then alarm disarm) or raise its --quota-backend-bytes: %w", known)
	case errors.Is(known, rpctypes.ErrAuthFailed):
		return fmt.Errorf("etcd refuses the user: correct store.etcd.username and passwordFile: %w", known)
	case errors.Is(known, rpctypes.ErrUserEmpty), errors.Is(known, rpctypes.ErrInvalidAuthToken):
		return fmt.Errorf("etcd wants a user: set store.etcd.username and passwordFile, or a certificate with the user's name: %w", known)
	case errors.Is(known, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("etcd's user (store.etcd.username, or the name in the certificate) may not do this: grant it readwrite on the prefix %s (etcdctl role grant-permission --prefix=true ROLE readwrite %s): %w", s.cfg.Prefix, s.cfg.Prefix, known)
	case errors.Is(known, rpctypes.ErrRequestTooLarge), errors.Is(known, rpctypes.ErrTooManyOps), tooLarge(err):
		return fmt.Errorf("etcd takes less than its defaults: set its --max-request-bytes to 1572864 and --max-txn-ops to 128 or more: %w: %w", store.ErrTooLarge, known)
	}
	if ended := context.Cause(ctx); ended != nil && status.Code(err) != codes.OutOfRange {
		return fmt.Errorf("no answer from etcd: %w: %s", ended, rpctypes.ErrorDesc(err))
	}
	return known
}

// tooLarge says whether a message was over gRPC's own limit, here or at the member.
func tooLarge(err error) bool {
	return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max")
}

// sending notes whether a Txn has gone out to a member.
type sending struct{ sent atomic.Bool }

type sendingKey struct{}

// watchSending is told by gRPC when a request goes out: before that, a Txn that fails
// has surely not happened.
type watchSending struct{}

// TagRPC implements stats.Handler.
func (watchSending) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if info.FullMethodName == txnMethod {
		return ctx
	}
	return context.WithValue(ctx, sendingKey{}, nil) // signing in for a Txn is not the Txn
}

// HandleRPC implements stats.Handler.
func (watchSending) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, out := s.(*stats.OutHeader); !out {
		return
	}
	if t, ok := ctx.Value(sendingKey{}).(*sending); ok {
		t.sent.Store(true)
	}
}

// TagConn implements stats.Handler.
func (watchSending) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (watchSending) HandleConn(context.Context, stats.ConnStats) {}
