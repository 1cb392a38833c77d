package groups

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// Keys in the store: "group/<name>" and "group/<name>/<kind>/<id>". A group's name
// holds no slash, so that "group/<name>/" begins the keys of its memberships alone.
const keyPrefix = "group/"

func groupKey(name string) string { return keyPrefix + name }

func memberKey(group string, kind Kind, id string) string {
	return keyPrefix + group + "/" + string(kind) + "/" + id
}

const (
	staleAfter = 5 * time.Second  // how long the index may go without word from the store
	loadIn     = 30 * time.Second // how long loading it may take
)

// record is a group as it is stored.
type record struct {
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	CreatedBy   string    `json:"createdBy"`
}

// memberRef names a membership within its group.
type memberRef struct {
	kind Kind
	id   string
}

type indexed struct {
	record
	exists   bool // its own record was seen; memberships alone make no group
	revision int64
	members  map[memberRef]*Member
}

// index holds every group in memory, kept current by a watch, so that a token
// needs no read of the store.
type index struct {
	mu     sync.RWMutex
	groups map[string]*indexed
	in     map[memberRef]map[string]*Member // who is in which groups

	revision int64     // everything up to here is in the index
	heard    time.Time // when the store last gave a sign of life
	moved    chan struct{}
}

func newIndex() *index { return &index{moved: make(chan struct{})} }

// load fills the index from the store. Its pages may be of different revisions, of
// which the first counts: a watch from there on makes up for the rest. Where load
// fails the index stays as it was.
func (x *index) load(ctx context.Context, st store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, loadIn)
	defer cancel()
	fresh := index{groups: map[string]*indexed{}, in: map[memberRef]map[string]*Member{}}
	began := time.Now()
	var first int64
	for from := ""; ; {
		entries, revision, err := st.List(ctx, keyPrefix, from, store.MaxList)
		if err != nil {
			return fmt.Errorf("list groups: %w", err)
		}
		if from == "" {
			first = revision
		}
		for _, e := range entries {
			if err := fresh.apply(store.Event{Entry: e}); err != nil {
				return err
			}
		}
		if len(entries) < store.MaxList {
			break
		}
		from = entries[len(entries)-1].Key + "\x00"
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if first < x.revision { // it would bring back what has been removed
		return fmt.Errorf("the store lists groups as of revision %d, but was at %d before: restart tabard if it was restored", first, x.revision)
	}
	x.groups, x.in = fresh.groups, fresh.in
	x.advance(first, began)
	return nil
}

// apply puts one change into the index. The caller holds the lock.
func (x *index) apply(e store.Event) error {
	name, rest, isMember := strings.Cut(strings.TrimPrefix(e.Key, keyPrefix), "/")
	g := x.groups[name]
	if g == nil {
		g = &indexed{members: map[memberRef]*Member{}}
		x.groups[name] = g
	}
	if isMember {
		kind, id, _ := strings.Cut(rest, "/")
		if err := x.applyMember(name, g, memberRef{Kind(kind), id}, e); err != nil {
			return err
		}
	} else if g.exists, g.revision = !e.Delete, e.Revision; !e.Delete {
		if err := json.Unmarshal(e.Value, &g.record); err != nil {
			return fmt.Errorf("record %s is damaged: %w", e.Key, err)
		}
	}
	if !g.exists && len(g.members) == 0 {
		delete(x.groups, name)
	}
	return nil
}

func (x *index) applyMember(group string, g *indexed, ref memberRef, e store.Event) error {
	if e.Delete {
		delete(g.members, ref)
		delete(x.in[ref], group)
		if len(x.in[ref]) == 0 {
			delete(x.in, ref)
		}
		return nil
	}
	m := new(Member)
	if err := json.Unmarshal(e.Value, m); err != nil {
		return fmt.Errorf("record %s is damaged: %w", e.Key, err)
	}
	m.Kind, m.ID = ref.kind, ref.id
	g.members[ref] = m
	if x.in[ref] == nil {
		x.in[ref] = map[string]*Member{}
	}
	x.in[ref][group] = m
	return nil
}

// take puts a batch into the index. Where a record is damaged the rest is left out,
// and the index stays at its revision until it is loaded anew.
func (x *index) take(b store.Batch) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range b.Events {
		if err := x.apply(e); err != nil {
			return err
		}
	}
	x.advance(b.Revision, time.Now())
	return nil
}

// advance notes that everything up to revision was in at a time. The caller holds
// the lock.
func (x *index) advance(revision int64, at time.Time) {
	x.heard = at
	if revision > x.revision {
		x.revision = revision
		close(x.moved)
		x.moved = make(chan struct{})
	}
}

// follow keeps the index current, from the revision that it is at, until ctx ends or
// the watch breaks or falls silent.
func (x *index) follow(ctx context.Context, st store.Store) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.mu.RLock()
	after := x.revision
	x.mu.RUnlock()
	batches, err := st.Watch(ctx, keyPrefix, after)
	if err != nil {
		return fmt.Errorf("watch groups: %w", err)
	}
	for {
		select {
		case b, open := <-batches:
			if !open {
				return errors.New("the watch on groups ended")
			}
			if err := x.take(b); err != nil {
				return err
			}
		case <-time.After(staleAfter):
			return fmt.Errorf("the watch on groups was silent for %v", staleAfter)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reached waits until everything up to revision is in the index.
func (x *index) reached(ctx context.Context, revision int64) error {
	for {
		x.mu.RLock()
		done, moved := x.revision >= revision, x.moved
		x.mu.RUnlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for the group index: %w", ctx.Err())
		}
	}
}

// stale reports whether the index may be behind. The caller holds the lock.
func (x *index) stale() bool { return time.Since(x.heard) > staleAfter }
