package groups

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// The clock of these tests is that of synctest: it moves when all wait.

// stale reports whether the Service denies, by each way of reading.
func (h *house) stale() bool {
	h.t.Helper()
	_, of := h.Of("corp.alice", nil, time.Now())
	_, list := h.List(h.t.Context(), admin)
	_, get := h.Get(h.t.Context(), admin, "team")
	stale := errors.Is(of, ErrStale)
	if errors.Is(list, ErrStale) != stale || errors.Is(get, ErrStale) != stale {
		h.t.Errorf("Of %v, List %v, Get %v", of, list, get)
	}
	return stale
}

// in reports whether the person is in a group, as Of has it.
func (h *house) in(id string) bool {
	all, err := h.Of("corp."+id, nil, time.Now())
	return err == nil && len(all) > 0
}

func TestFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		for range 60 {
			time.Sleep(time.Second)
			if h.stale() {
				t.Fatal("stale, though the store lives")
			}
		}
	})
}

// TestDead: the store is gone for a while, in each way that a store can be.
func TestDead(t *testing.T) {
	for what, kill := range map[string]func(*house) (revive func()){
		"broken": func(h *house) func() {
			h.faults.Read(func([]string) error { return errDisk })
			h.tap.cut()
			return func() { h.faults.Read(nil) }
		},
		"silent": func(h *house) func() { return h.tap.hold() },
		"silent, then nothing to load": func(h *house) func() {
			release := h.tap.hold()
			h.tap.failList(errDisk)
			return func() { h.tap.failList(nil); release() }
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, bolt.Config{})
				h.group("team", person("alice"))
				other := h.open(h.bolt)
				revive := kill(h)
				time.Sleep(staleAfter / 2)
				if what != "silent" && (h.stale() || !h.in("alice")) {
					t.Error("stale already")
				}
				must(t, other.Remove(t.Context(), admin, "team", KindPerson, "corp.alice"))
				must(t, other.Add(t.Context(), admin, "team", person("bob")))
				if what == "silent" { // it is given up, and loading helps from time to time
					eventually(t, "loaded anew", func() bool { return h.in("bob") })
				} else {
					time.Sleep(staleAfter)
					for range 60 {
						if !h.stale() || h.in("alice") {
							t.Fatal("decides though the store is gone")
						}
						time.Sleep(time.Second)
					}
				}
				revive()
				eventually(t, "current again", func() bool { return !h.stale() && h.in("bob") })
				if h.in("alice") {
					t.Error("alice was removed")
				}
				h.group("next", person("carol")) // heard by the watch
				h.converged()
			})
		})
	}
}

// TestNotHeard: it was written, but the index does not hear of it. The answer says so.
func TestNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		synctest.Wait()
		h.tap.failList(errDisk)
		defer h.tap.hold()()
		err := h.Remove(t.Context(), admin, "team", KindPerson, "corp.alice")
		if !errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it was written") {
			t.Errorf("remove: %v", err)
		}
		if _, there := h.inStore()[memberKey("team", KindPerson, "corp.alice")]; there {
			t.Error("it was not written")
		}
		events := h.records()
		if e := events[len(events)-1]; e.Outcome != "done" {
			t.Errorf("in the trail: %v", e)
		}
	})
}

// TestResume: a watch that breaks goes on where the index is, even when loading
// fails: from further back it would bring alice back.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		must(t, h.Remove(t.Context(), admin, "team", KindPerson, "corp.alice"))
		_, revision, err := h.bolt.List(t.Context(), keyPrefix, "", 1)
		must(t, err)
		h.tap.failList(errDisk)
		for n := range 5 {
			h.tap.cut()
			id := fmt.Sprint(n)
			must(t, h.Add(t.Context(), admin, "team", person(id)))
			if !h.in(id) || h.in("alice") || h.stale() {
				t.Errorf("after the watch broke: %s in %t, alice in %t", id, h.in(id), h.in("alice"))
			}
		}
		afters, errs := h.tap.asked()
		if len(afters) != 6 {
			t.Fatalf("watched %d times, want 6", len(afters))
		}
		for i, after := range afters[1:] {
			if errs[i+1] != nil || after < revision {
				t.Errorf("watch %d began after %d (%v), the index was at %d", i+1, after, errs[i+1], revision)
			}
		}
		h.converged()
	})
}

// TestCompacted: while the watch is broken more happens than the store retains.
func TestCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, bolt.Config{RetainEvents: 4})
		h.group("team", person("alice"), person("bob"))
		h.tap.failList(errDisk)
		h.tap.cut()
		for n := range 20 {
			ops := []store.Op{{Key: memberKey("team", KindPerson, "corp.alice"), Delete: true}}
			op, err := put(memberKey("team", KindPerson, fmt.Sprint("corp.", n)), Member{})
			must(t, err)
			_, err = h.bolt.Txn(t.Context(), nil, append(ops, op))
			must(t, err)
		}
		compacted := func() bool {
			_, errs := h.tap.asked()
			return errors.Is(errs[len(errs)-1], store.ErrCompacted)
		}
		eventually(t, "told that it is compacted", compacted)
		time.Sleep(staleAfter)
		if !h.stale() {
			t.Error("decides on what is long gone")
		}
		h.tap.failList(nil)
		eventually(t, "loaded anew", func() bool { return !h.stale() })
		if h.in("alice") || !h.in("bob") || !h.in("19") {
			t.Errorf("alice in %t, bob in %t, 19 in %t", h.in("alice"), h.in("bob"), h.in("19"))
		}
		h.group("next")
		h.converged()
	})
}

// TestDamaged: a record that nobody can read stops the index, and it goes on when
// that is gone.
func TestDamaged(t *testing.T) {
	for _, key := range []string{groupKey("team"), memberKey("team", KindPerson, "corp.bob")} {
		synctest.Test(t, func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			h.group("team", person("alice"))
			old, err := h.bolt.Get(t.Context(), groupKey("team"))
			must(t, err)
			_, err = h.bolt.Txn(t.Context(), nil, []store.Op{{Key: key, Value: []byte("{")}})
			must(t, err)
			time.Sleep(2 * staleAfter)
			if !h.stale() {
				t.Error("decides on what it cannot read")
			}
			if s, err := Open(t.Context(), h.bolt, h.trail, Config{}, nil); err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("opened on a damaged record: %v, %v", s, err)
			}
			mended := []store.Op{{Key: key, Value: old.Value}}
			_, err = h.bolt.Txn(t.Context(), nil, mended)
			must(t, err)
			eventually(t, "current again", func() bool { return !h.stale() && h.in("alice") })
			h.converged()
		})
	}
}

// TestOlder: a store that lists what is older than the index knows is not believed.
func TestOlder(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team", person("alice"))
	older := newHouse(t, bolt.Config{})
	if err := h.index.load(t.Context(), older.bolt); err == nil || !strings.Contains(err.Error(), "restart tabard") {
		t.Errorf("loaded: %v", err)
	}
	if !h.in("alice") {
		t.Error("the index lost alice")
	}
}

// TestLoadPages: a load of several pages misses nothing that changes between them.
func TestLoadPages(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.large("team", store.MaxList+500)
	var pages atomic.Int32
	h.faults.Read(func(keys []string) error {
		if pages.Add(1) == 2 { // one member behind the first page goes, one before comes
			_, err := h.bolt.Txn(t.Context(), nil, []store.Op{
				{Key: memberKey("team", KindPerson, "corp.00000"), Delete: true},
				{Key: memberKey("team", KindPerson, "corp.zzz"), Delete: true},
				{Key: memberKey("a", KindPerson, "corp.a"), Value: []byte("{}")},
				{Key: groupKey("a"), Value: []byte("{}")},
			})
			return err
		}
		return nil
	})
	other := h.open(h.faults)
	if pages.Load() < 2 {
		t.Fatalf("loaded in %d pages", pages.Load())
	}
	_, revision, err := h.bolt.List(t.Context(), keyPrefix, "", 1)
	must(t, err)
	must(t, other.index.reached(t.Context(), revision))
	both := &house{Service: other, t: t, bolt: h.bolt}
	g, err := other.get("team")
	if err != nil || len(g.Members) != store.MaxList+499 || !both.in("a") {
		t.Errorf("%d members, %v; a in %t", len(g.Members), err, both.in("a"))
	}
}
