package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	sweepLease = "lease/sweep"
	sweepShare = 100 // a sweep takes at most one part in so many of the time
)

// sweepLoop deletes expired entries from time to time, on one node at a time.
func (s *Store) sweepLoop() {
	holder := rand.Text()
	for wait := s.cfg.SweepInterval; pause(s.ctx, wait); {
		began := time.Now()
		if err := s.sweep(s.ctx, holder); err != nil && s.ctx.Err() == nil {
			logrus.WithError(err).Warn("could not delete expired entries from etcd; trying again later")
		}
		wait = max(s.cfg.SweepInterval, sweepShare*time.Since(began))
	}
}

// sweep deletes all expired entries, unless another node does. Two that do it at once
// do no harm: it is for the work alone that there is a lease.
func (s *Store) sweep(ctx context.Context, holder string) error {
	switch e, err := s.own.Get(ctx, sweepLease); {
	case err == nil && string(e.Value) != holder:
		return nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	now := s.cfg.Now()
	var expired []store.Entry
	_, err := s.scan(ctx, "", "", pageSize, func(e store.Entry) error {
		if live(e, now) {
			return nil
		}
		if expired = append(expired, store.Entry{Key: e.Key, Revision: e.Revision}); len(expired) < store.MaxOps {
			return nil
		}
		err := s.remove(ctx, holder, expired)
		expired = expired[:0]
		return err
	})
	if err == nil && len(expired) > 0 {
		err = s.remove(ctx, holder, expired)
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// remove deletes expired entries that are as they were read: one may have been renewed
// since. It is errEnough when another node has come first.
func (s *Store) remove(ctx context.Context, holder string, expired []store.Entry) error {
	held, err := store.Lease(ctx, s.own, sweepLease, holder, 3*s.cfg.SweepInterval)
	if err != nil {
		return err
	}
	if !held {
		return errEnough
	}
	ops := make([]*pb.RequestOp, len(expired))
	for i, e := range expired {
		key := []byte(s.base + e.Key)
		ops[i] = txnOp(&pb.TxnRequest{Compare: []*pb.Compare{at(key, e.Revision)}, Success: []*pb.RequestOp{deleteOp(key)}})
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if _, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops}, callOptions()...); err != nil {
		return fmt.Errorf("delete expired entries: %w", s.explain(ctx, err))
	}
	return nil
}
