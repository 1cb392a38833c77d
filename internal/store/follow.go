package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// StaleAfter is how long a Follower may go without word from the store before what it
// keeps is not to be relied on.
const StaleAfter = 5 * time.Second

// loadIn is how long reading all records anew may take.
const loadIn = 30 * time.Second

// errSetBack: the store is at an older revision than before.
var errSetBack = errors.New("the store was set back")

// Target is a copy in memory of the records under a prefix, in a form of its own. One
// goroutine at a time calls it.
type Target interface {
	// Replace makes the copy anew from records, which can be read once. After an error,
	// be it of records or its own, the copy is as it was before.
	Replace(records iter.Seq2[Entry, error]) error
	// Apply brings the copy on by the events of whole revisions, in their order.
	Apply(events []Event)
}

// Follower keeps a Target in step with the store until Close.
type Follower struct {
	store  Store
	prefix string
	target Target
	log    logrus.FieldLogger

	mu       sync.Mutex
	revision int64     // everything up to here is in the target
	heard    time.Time // when the store last gave a sign of life
	moved    chan struct{}

	stop context.CancelFunc
	done chan struct{}
}

// Follow loads the records under prefix into target, and follows the store from there.
func Follow(ctx context.Context, st Store, prefix string, target Target, log logrus.FieldLogger) (*Follower, error) {
	f := &Follower{store: st, prefix: prefix, target: target, log: log, moved: make(chan struct{}), done: make(chan struct{})}
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	f.stop = stop
	go f.run(run)
	return f, nil
}

// Close ends the watch and waits for it.
func (f *Follower) Close() {
	f.stop()
	<-f.done
}

// Stale reports whether the target may be behind by more than StaleAfter: deny then.
func (f *Follower) Stale() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.heard) > StaleAfter
}

// Revision is that up to which everything is in the target.
func (f *Follower) Revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision
}

// Reached waits until everything up to revision is in the target, or until ctx ends.
func (f *Follower) Reached(ctx context.Context, revision int64) error {
	for {
		f.mu.Lock()
		there, moved := f.revision >= revision, f.moved
		f.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be at revision %d: %w", f.prefix, revision, ctx.Err())
		}
	}
}

// run follows the store; where the watch breaks it loads anew, a little later each
// time. Where loading fails it follows from where it was, never from further back:
// that would bring back what has been removed. Of a store that was set back nothing is
// followed until it has been loaded: what was read is of another past.
func (f *Follower) run(ctx context.Context) {
	defer close(f.done)
	const shortest, longest = 50 * time.Millisecond, 2 * time.Second
	var err error
	lost := false // the store was set back, and not loaded since
	for pause := shortest; ; pause = min(2*pause, longest) {
		began := time.Now()
		if !lost {
			err = f.follow(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		f.log.WithError(err).Warnf("%s: loading anew", f.prefix)
		if time.Since(began) > time.Minute {
			pause = shortest
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if err = f.load(ctx); err != nil && ctx.Err() == nil {
			f.log.WithError(err).Errorf("%s: loading failed, trying again", f.prefix)
		}
		lost = err != nil && (lost || errors.Is(err, errSetBack))
	}
}

// load replaces the target. Its pages may be of different revisions, of which the
// first counts: a watch from there on makes up for the rest.
func (f *Follower) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadIn)
	defer cancel()
	began := time.Now()
	page, first, err := f.store.List(ctx, f.prefix, "", MaxList)
	if err != nil {
		return fmt.Errorf("list %s: %w", f.prefix, err)
	}
	f.mu.Lock()
	at := f.revision
	f.mu.Unlock()
	if first < at {
		return fmt.Errorf("%w: it is at revision %d, and was at %d before: restart tabard if it was restored", errSetBack, first, at)
	}
	if err := f.target.Replace(f.records(ctx, page)); err != nil {
		return fmt.Errorf("load %s: %w", f.prefix, err)
	}
	f.advance(first, began)
	return nil
}

// records yields page and those that follow it.
func (f *Follower) records(ctx context.Context, page []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range page {
			if !yield(e, nil) {
				return
			}
		}
		if len(page) == MaxList {
			All(ctx, f.store, f.prefix, page[len(page)-1].Key+"\x00", MaxList)(yield)
		}
	}
}

// follow brings the target on until ctx ends or the watch breaks or falls silent.
func (f *Follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	after := f.revision
	f.mu.Unlock()
	batches, err := f.store.Watch(ctx, f.prefix, after)
	if err != nil {
		return err
	}
	silence := time.NewTimer(StaleAfter)
	defer silence.Stop()
	for {
		select {
		case b, open := <-batches:
			if !open {
				return errors.New("the watch ended")
			}
			if len(b.Events) > 0 {
				f.target.Apply(b.Events)
			}
			f.advance(b.Revision, time.Now())
			silence.Reset(StaleAfter)
		case <-silence.C:
			return fmt.Errorf("the watch was silent for %v", StaleAfter)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// advance notes that everything up to revision was in the target at a time.
func (f *Follower) advance(revision int64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = at
	if revision > f.revision {
		f.revision = revision
		close(f.moved)
		f.moved = make(chan struct{})
	}
}
