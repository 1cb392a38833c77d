package groups

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	laneChanges = 40 // changes of one group that share a write: fewer than store.MaxBytes allows
	tries       = 20 // to write against other nodes
)

// errClosed: the Service was closed; nothing was done.
var errClosed = errors.New("the groups were closed")

// lanes hold, for each group that is being changed, the changes that wait. Changes of
// one group follow each other on this node, those that wait go in one write, and
// different groups do not wait for each other. A lane's goroutine lives as long as
// anything waits in it.
type lanes struct {
	mu     sync.Mutex
	open   map[string]*lane // by id of the group
	closed bool
	work   sync.WaitGroup
}

type lane struct{ waiting []*change }

func (l *lanes) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.work.Wait()
}

// change is one change to a group on its way through the group's lane.
type change struct {
	// key is the membership that it is about; "" for what goes alone.
	key string
	// plan decides on what the store holds now, and may be asked several times. It
	// returns what to write besides the group's record.
	plan func(ctx context.Context, now *current) (write, error)

	taken    atomic.Bool // by the lane, or withdrawn by who waits: whoever is first
	revision int64
	err      error
	done     chan struct{}
}

// write is what a change writes, if conds hold and the group is still as it was
// when the change was planned.
type write struct {
	conds  []store.Cond
	ops    []store.Op
	record *record // nil: as it was, but for its revision
}

// current is a group as the store holds it.
type current struct {
	s       *Service
	entry   store.Entry
	record  record
	nesting *int64
}

// read reads a group. ErrNotFound also for one whose record is damaged.
func (s *Service) read(ctx context.Context, id string) (*current, error) {
	e, err := s.store.Get(ctx, recordKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("the group was deleted: %w", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read group: %w", err)
	}
	r, err := decodeRecord(e.Value)
	if err != nil {
		return nil, fmt.Errorf("record %s is damaged (%w): %w", e.Key, err, ErrNotFound)
	}
	return &current{s: s, entry: e, record: r}, nil
}

// nestedAt returns the condition that nobody nests groups meanwhile, once the index
// has all nesting up to it.
func (c *current) nestedAt(ctx context.Context) (store.Cond, error) {
	if c.nesting == nil {
		revision, err := c.s.nestedAt(ctx)
		if err != nil {
			return store.Cond{}, err
		}
		c.nesting = &revision
	}
	return store.Cond{Key: nestingKey, Revision: *c.nesting}, nil
}

// nestedAt is the revision of the nesting, once the index has it.
func (s *Service) nestedAt(ctx context.Context) (int64, error) {
	e, err := s.store.Get(ctx, nestingKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("read nesting: %w", err)
	}
	if err := s.heard(ctx, e.Revision); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrStale, err)
	}
	return e.Revision, nil
}

// change sends c through the lane of a group and waits. When ctx ends before it is
// being written nothing is done; else its outcome is waited for, which takes writeIn
// at most.
func (s *Service) change(ctx context.Context, group string, c *change) (int64, error) {
	c.done = make(chan struct{})
	if err := s.enqueue(group, c); err != nil {
		return 0, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.taken.CompareAndSwap(false, true) {
			return 0, fmt.Errorf("wait for other changes: %w", ctx.Err())
		}
		<-c.done
	}
	return c.revision, c.err
}

func (s *Service) enqueue(group string, c *change) error {
	s.lanes.mu.Lock()
	defer s.lanes.mu.Unlock()
	if s.lanes.closed {
		return errClosed
	}
	l := s.lanes.open[group]
	if l == nil {
		l = &lane{}
		s.lanes.open[group] = l
		s.lanes.work.Go(func() { s.drive(group, l) })
	}
	l.waiting = append(l.waiting, c)
	return nil
}

// drive writes what waits in a lane until nothing does.
func (s *Service) drive(group string, l *lane) {
	for {
		s.lanes.mu.Lock()
		if len(l.waiting) == 0 {
			delete(s.lanes.open, group)
			s.lanes.mu.Unlock()
			return
		}
		batch := l.take()
		s.lanes.mu.Unlock()
		s.write(group, batch)
	}
}

// take returns the changes that go next in one write: one alone, or several of
// different memberships.
func (l *lane) take() []*change {
	var batch []*change
	seen := map[string]bool{}
	n := 0
	for _, c := range l.waiting {
		if len(batch) > 0 && (c.key == "" || seen[c.key] || len(batch) == laneChanges) {
			break
		}
		n++
		if !c.taken.CompareAndSwap(false, true) {
			continue // withdrawn
		}
		seen[c.key] = true
		if batch = append(batch, c); c.key == "" {
			break
		}
	}
	l.waiting = l.waiting[n:]
	return batch
}

// write writes a batch and tells each change what came of it. It is tried again
// while another node is faster; each try decides anew.
func (s *Service) write(group string, batch []*change) {
	ctx, cancel := context.WithTimeout(context.Background(), writeIn) // whoever hangs up: others wait for it too
	defer cancel()
	for range tries {
		var err error
		batch, err = s.try(ctx, group, batch)
		if !errors.Is(err, store.ErrConflict) {
			finish(batch, 0, err)
			return
		}
		time.Sleep(rand.N(5 * time.Millisecond))
	}
	finish(batch, 0, fmt.Errorf("%d times: %w", tries, ErrConflict))
}

func finish(batch []*change, revision int64, err error) {
	for _, c := range batch {
		c.revision, c.err = revision, err
		close(c.done)
	}
}

// try plans and writes a batch. It returns those whose outcome is the error.
func (s *Service) try(ctx context.Context, group string, batch []*change) ([]*change, error) {
	now, err := s.read(ctx, group)
	if err != nil {
		return batch, err
	}
	var conds []store.Cond
	var ops []store.Op
	var left []*change
	rec := store.Op{Key: now.entry.Key, Value: now.entry.Value}
	for _, c := range batch {
		w, err := c.plan(ctx, now)
		if err == nil && w.record != nil {
			rec, err = putRecord(group, *w.record)
		}
		if err != nil {
			finish([]*change{c}, 0, err)
			continue
		}
		left, conds, ops = append(left, c), append(conds, w.conds...), append(ops, w.ops...)
	}
	if len(left) == 0 {
		return nil, nil
	}
	conds = append(conds, store.Cond{Key: now.entry.Key, Revision: now.entry.Revision})
	revision, err := s.store.Txn(ctx, once(conds), append(ops, rec))
	if err != nil {
		return left, err
	}
	finish(left, revision, nil)
	return nil, nil
}

// once leaves out conditions that occur again.
func once(conds []store.Cond) []store.Cond {
	var out []store.Cond
	seen := map[store.Cond]bool{}
	for _, c := range conds {
		if !seen[c] {
			out = append(out, c)
		}
		seen[c] = true
	}
	return out
}

func (c *current) id() string { return strings.TrimPrefix(c.entry.Key, recordKeys) }
