package bolt

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	maxGroup      = 256     // Txns that share one fsync
	maxGroupBytes = 8 << 20 // and what they hold, but for the last
	sweepKeys     = 500     // deleted by one Txn of the sweep
	sweepScan     = 10_000  // records looked at in one read transaction
)

// request is one Txn on its way through the committer.
type request struct {
	conds   []store.Cond
	changes []change
	size    int
	sweep   bool // delete only what has expired

	taken  atomic.Bool // by the committer, or withdrawn by who waits: whoever is first
	answer chan answer // holds one
}

// change is a put of record, or a delete where record is nil.
type change struct {
	key    string
	record []byte
}

type answer struct {
	revision int64
	err      error
}

func newRequest(conds []store.Cond, changes int) *request {
	return &request{conds: conds, changes: make([]change, 0, changes), answer: make(chan answer, 1)}
}

func (r *request) add(c change) {
	r.changes = append(r.changes, c)
	r.size += len(c.key) + len(c.record)
}

// take is true for the first caller: the committer, or the waiter who gives up.
func (r *request) take() bool { return r.taken.CompareAndSwap(false, true) }

// submit hands r to the committer and waits for what came of it.
func (s *Store) submit(ctx context.Context, r *request) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	select {
	case s.queue <- r:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.ended:
		return 0, store.ErrClosed
	}
	select {
	case a := <-r.answer:
		return a.revision, a.err
	case <-ctx.Done():
		if r.take() {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	case <-s.ended:
		if r.take() {
			return 0, store.ErrClosed
		}
		a := <-r.answer
		return a.revision, a.err
	}
}

// commitLoop writes what is queued, all in one bbolt transaction, and again. It
// never waits for a group to fill: while one is written the next one queues.
func (s *Store) commitLoop(ctx context.Context, last digest) {
	defer close(s.ended)
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.queue:
			last = s.commitGroup(s.collect(r), last)
		}
	}
}

// collect takes first and what is queued behind it, up to the bounds of a group.
func (s *Store) collect(first *request) []*request {
	var reqs []*request
	size := 0
	for r := first; ; {
		if r.take() {
			reqs = append(reqs, r)
			size += r.size
		}
		if len(reqs) == maxGroup || size > maxGroupBytes {
			return reqs
		}
		select {
		case r = <-s.queue:
		default:
			return reqs
		}
	}
}

// commitGroup writes reqs and answers them, watchers first, and returns the
// store's digest.
func (s *Store) commitGroup(reqs []*request, last digest) digest {
	g := &group{now: s.cfg.Now(), digest: last, answers: make([]answer, len(reqs))}
	if err := s.write(g, reqs, last); err != nil {
		for _, r := range reqs {
			r.answer <- answer{err: err}
		}
		return last
	}
	s.hub.publish(g.changed)
	for i, r := range reqs {
		r.answer <- g.answers[i]
	}
	return g.digest
}

func (s *Store) write(g *group, reqs []*request, last digest) (err error) {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	defer func() {
		if p := recover(); p != nil {
			err = s.fail(fmt.Errorf("%w (%v)", errDamaged, p))
		}
	}()
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing after a commit
	g.records = tx.Bucket(recordsBucket)
	for i, r := range reqs {
		if g.answers[i], err = g.apply(r); err != nil {
			return err
		}
	}
	if g.revision == last.revision {
		return nil
	}
	meta := tx.Bucket(metaBucket)
	if err := cmp.Or(meta.Put(revisionKey, number(g.revision)), meta.Put(digestKey, g.encode())); err != nil {
		return err
	}
	if err := s.commit(tx); err != nil {
		return s.commitFailed(last.revision, err)
	}
	return nil
}

// commitFailed finds out how far a failed commit came. Before the new root was
// written nothing has happened, and the store goes on (a full disk). After it, a
// failed sync leaves what is visible but perhaps not on disk, and no later sync
// can be believed either: the store fails for good, until it is opened again.
func (s *Store) commitFailed(last int64, cause error) error {
	visible := int64(-1)
	err := s.db.View(func(tx *bbolt.Tx) error {
		visible = revisionOf(tx)
		return nil
	})
	if err == nil && visible == last {
		return fmt.Errorf("nothing was written, check the disk: %w", cause)
	}
	return s.fail(fmt.Errorf("%w: check the disk, then restart tabard: %w", store.ErrUnknown, cause))
}

// fail makes err the answer to everything from now on.
func (s *Store) fail(err error) error {
	s.failed.Store(&err)
	s.hub.close(err)
	return err
}

// group is one bbolt transaction under way.
type group struct {
	digest  // after the Txns so far
	records *bbolt.Bucket
	now     time.Time
	changed []revision // what they changed
	answers []answer
}

// apply does r on top of the Txns before it. The error is of the whole group;
// that of r alone is in the answer, and r has then changed nothing.
func (g *group) apply(r *request) (answer, error) {
	for _, c := range r.conds {
		e := decode(c.Key, g.records.Get([]byte(c.Key)))
		if !live(e, g.now) {
			e.Revision = 0
		}
		if e.Revision != c.Revision {
			return answer{err: fmt.Errorf("%.80q is at revision %d, not %d: %w", c.Key, e.Revision, c.Revision, store.ErrConflict)}, nil
		}
	}
	rev := revision{number: g.revision + 1, bytes: r.size}
	for _, c := range r.changes {
		event, changed, err := g.change(c, rev.number, r.sweep)
		if err != nil {
			return answer{}, err
		}
		if changed {
			rev.events = append(rev.events, event)
		}
	}
	if len(rev.events) > 0 {
		g.revision = rev.number
		g.changed = append(g.changed, rev)
	}
	return answer{revision: g.revision}, nil
}

// change makes one change; false if there was nothing to change.
func (g *group) change(c change, number int64, sweep bool) (store.Event, bool, error) {
	key := []byte(c.key)
	was := g.records.Get(key)
	if c.record != nil {
		binary.BigEndian.PutUint64(c.record, uint64(number))
		g.replace(key, was, c.record)
		return store.Event{Entry: decode(c.key, c.record)}, true, g.records.Put(key, c.record)
	}
	old := decode(c.key, was)
	if old.Revision == 0 || sweep && live(old, g.now) {
		return store.Event{}, false, nil
	}
	g.replace(key, was, nil)
	event := store.Event{Entry: store.Entry{Key: c.key, Revision: number}, Delete: true}
	return event, true, g.records.Delete(key)
}

// sweepLoop deletes expired entries from time to time.
func (s *Store) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(s.cfg.SweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			logrus.WithError(err).WithField("path", s.cfg.Path).Warn("could not delete expired entries; trying again later")
		}
	}
}

// sweep deletes all expired entries, some at a time. Each may have been renewed
// since it was read, so the committer looks again.
func (s *Store) sweep(ctx context.Context) error {
	for from := ""; ; {
		keys, next, err := s.expired(ctx, from)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			r := newRequest(nil, len(keys))
			r.sweep = true
			for _, k := range keys {
				r.add(change{key: k})
			}
			if _, err := s.submit(ctx, r); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		from = next
	}
}

// expired returns some expired keys not below from, and where to go on; "" at the end.
func (s *Store) expired(ctx context.Context, from string) (keys []string, next string, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		now := s.cfg.Now()
		c := tx.Bucket(recordsBucket).Cursor()
		k, v := c.Seek([]byte(from))
		for n := 0; k != nil && n < sweepScan && len(keys) < sweepKeys; n++ {
			if !live(decode("", v), now) {
				keys = append(keys, string(k))
			}
			k, v = c.Next()
		}
		next = string(k)
		return nil
	})
	return keys, next, err
}
