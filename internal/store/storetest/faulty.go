package storetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/tabard-id/tabard/internal/store"
)

// Faulty is a store whose calls fail when a hook says so. The zero hooks let all
// through; they may be set at any time.
type Faulty struct {
	store.Store

	mu                  sync.Mutex
	before, after, read Hook
}

// Hook is asked about each call with the keys it is about: those of the changes of
// a Txn, the key of a Get, the prefix of a List or Watch; of a Dump "" and then, one
// by one, the key of each entry. Its error, if any, is what the call fails with. It
// may be called by many goroutines at once.
type Hook func(keys []string) error

// NewFaulty wraps s.
func NewFaulty(s store.Store) *Faulty { return &Faulty{Store: s} }

// Before sets what fails Txns before the write: nothing is written, and the answer
// is the hook's error.
func (f *Faulty) Before(h Hook) { f.set(&f.before, h) }

// After sets what fails Txns after the write: it has happened, and the answer is
// store.ErrUnknown with the hook's error.
func (f *Faulty) After(h Hook) { f.set(&f.after, h) }

// Read sets what fails Get, List, Watch and Dump.
func (f *Faulty) Read(h Hook) { f.set(&f.read, h) }

// Times is a Hook that fails the next n calls with err, and none after.
func Times(n int, err error) Hook {
	var mu sync.Mutex
	return func([]string) error {
		mu.Lock()
		defer mu.Unlock()
		if n == 0 {
			return nil
		}
		n--
		return err
	}
}

func (f *Faulty) set(at *Hook, h Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*at = h
}

func (f *Faulty) ask(at *Hook, keys ...string) error {
	f.mu.Lock()
	h := *at
	f.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(keys)
}

// Txn implements store.Store.
func (f *Faulty) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	keys := make([]string, len(ops))
	for i, op := range ops {
		keys[i] = op.Key
	}
	if err := f.ask(&f.before, keys...); err != nil {
		return 0, err
	}
	rev, err := f.Store.Txn(ctx, conds, ops)
	if err != nil {
		return rev, err
	}
	if err := f.ask(&f.after, keys...); err != nil {
		return 0, fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
	return rev, nil
}

// Get implements store.Store.
func (f *Faulty) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := f.ask(&f.read, key); err != nil {
		return store.Entry{}, err
	}
	return f.Store.Get(ctx, key)
}

// List implements store.Store.
func (f *Faulty) List(ctx context.Context, prefix, from string, limit int) ([]store.Entry, int64, error) {
	if err := f.ask(&f.read, prefix); err != nil {
		return nil, 0, err
	}
	return f.Store.List(ctx, prefix, from, limit)
}

// Watch implements store.Store.
func (f *Faulty) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := f.ask(&f.read, prefix); err != nil {
		return nil, err
	}
	return f.Store.Watch(ctx, prefix, after)
}

// Dump implements store.Store. It fails before the first entry or before any other.
func (f *Faulty) Dump(ctx context.Context, fn func(store.Entry) error) (int64, error) {
	if err := f.ask(&f.read, ""); err != nil {
		return 0, err
	}
	return f.Store.Dump(ctx, func(e store.Entry) error {
		if err := f.ask(&f.read, e.Key); err != nil {
			return err
		}
		return fn(e)
	})
}
