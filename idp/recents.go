package idp

import (
	"context"
	"errors"
	"sync"

	"github.com/tabard-id/tabard/internal/store"
)

// recents are records as this node last wrote or read them, so that what follows need
// not read them again: the code after the sign-in, the next refresh, the end of a try.
// Another node may have changed one since. So they are good for writes that are
// conditional on their revision, and for nothing else.
type recents struct {
	mu         sync.Mutex
	young, old map[string]store.Entry // by key; the old go when the young are many
}

// maxRecents is how many records each half holds, of a kilobyte or two at most.
const maxRecents = 4096

// put remembers e, unless something newer is known.
func (r *recents) put(e store.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if max(r.young[e.Key].Revision, r.old[e.Key].Revision) > e.Revision {
		return
	}
	if r.young == nil || len(r.young) >= maxRecents {
		r.old, r.young = r.young, map[string]store.Entry{}
	}
	r.young[e.Key] = e
}

func (r *recents) get(key string) (e store.Entry, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok = r.young[key]; !ok {
		e, ok = r.old[key]
	}
	return e, ok
}

func (r *recents) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.young, key)
	delete(r.old, key)
}

// txn writes, and remembers what it wrote.
func (s *Service) txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	revision, err := s.Store.Txn(ctx, conds, ops)
	if s.Alone { // and reading costs nothing
		return revision, err
	}
	for _, op := range ops {
		switch {
		case err != nil: // it will show
		case op.Delete:
			s.recents.forget(op.Key)
		default:
			s.recents.put(store.Entry{Key: op.Key, Value: op.Value, Revision: revision, Expires: op.Expires})
		}
	}
	return revision, err
}

// entry is the one at key: as this node knows it where recall says so, and then
// store.ErrNotFound where it knows of none; else as it is in the store.
func (s *Service) entry(ctx context.Context, key string, recall bool) (store.Entry, error) {
	if recall && !s.Alone {
		e, ok := s.recents.get(key)
		if !ok {
			return e, store.ErrNotFound
		}
		return e, nil
	}
	e, err := s.Store.Get(ctx, key)
	switch {
	case s.Alone:
	case err == nil:
		s.recents.put(e)
	case errors.Is(err, store.ErrNotFound):
		s.recents.forget(key)
	}
	return e, err
}
