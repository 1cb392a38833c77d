package groups

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// TestWriteFails: nothing was written, and the answer does not say that it may be.
func TestWriteFails(t *testing.T) {
	for _, c := range changes {
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		before := h.inStore()
		h.faults.Before(storetest.Times(1, errDisk))
		if err := c.do(t.Context(), h, admin); !errors.Is(err, errDisk) || errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", c.act, err)
		}
		if !maps.Equal(before, h.inStore()) {
			t.Errorf("%s: the store changed", c.act)
		}
		must(t, c.do(t.Context(), h, admin))
		h.converged()
		events := h.records()
		if e := events[len(events)-3]; e.Outcome != audit.Failed || !strings.Contains(e.Reason, errDisk.Error()) || strings.Contains(e.Reason, ErrUnknown.Error()) {
			t.Errorf("%s: in the trail: %v", c.act, e)
		}
	}
}

// TestReadFails: what cannot be read is not taken for absent.
func TestReadFails(t *testing.T) {
	for _, c := range changes[1:] { // create reads nothing
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		h.faults.Read(func([]string) error { return errDisk })
		if err := c.do(t.Context(), h, admin); !errors.Is(err, errDisk) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", c.act, err)
		}
	}
	h := newHouse(t, bolt.Config{})
	h.faults.Read(func([]string) error { return errDisk })
	if _, err := Open(t.Context(), h.faults, h.trail, Config{}, nil); !errors.Is(err, errDisk) {
		t.Errorf("opened on a store that cannot be read: %v", err)
	}
}

// TestUnknown: it was written, but the store did not say so. The answer says to look
// again, and so does the trail; the index gets there.
func TestUnknown(t *testing.T) {
	for _, c := range changes {
		t.Run(c.act, func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			h.group("team", person("alice"))
			before := h.inStore()
			h.faults.After(storetest.Times(1, errDisk))
			err := c.do(t.Context(), h, admin)
			if !errors.Is(err, ErrUnknown) || !errors.Is(err, errDisk) || strings.Count(err.Error(), "look again") != 1 {
				t.Errorf("%v", err)
			}
			if maps.Equal(before, h.inStore()) {
				t.Error("nothing was written")
			}
			_, revision, err := h.bolt.List(t.Context(), keyPrefix, "", 1)
			must(t, err)
			must(t, h.index.reached(t.Context(), revision))
			h.converged()
			events := h.records()
			if e := events[len(events)-1]; e.Outcome != audit.Failed || !strings.Contains(e.Reason, ErrUnknown.Error()) {
				t.Errorf("in the trail: %v", e)
			}
		})
	}
}

// large makes a group with n members by the store's own means.
func (h *house) large(name string, n int) {
	h.t.Helper()
	h.group(name)
	g, err := h.bolt.Get(h.t.Context(), groupKey(name))
	must(h.t, err)
	for done := 0; done < n; {
		ops := []store.Op{{Key: g.Key, Value: g.Value}}
		for ; len(ops) < store.MaxOps && done < n; done++ {
			op, err := put(memberKey(name, KindPerson, fmt.Sprintf("corp.%05d", done)), Member{})
			must(h.t, err)
			ops = append(ops, op)
		}
		revision, err := h.bolt.Txn(h.t.Context(), nil, ops)
		must(h.t, err)
		must(h.t, h.index.reached(h.t.Context(), revision))
	}
}

func TestDeleteLarge(t *testing.T) {
	for _, n := range []int{0, 1, 98, 99, 100, 101, 197, 198, 199, 1000} {
		h := newHouse(t, bolt.Config{})
		h.group("tea", person("alice"))
		h.group("team 2", person("alice")) // sorts between the group and its members
		neighbours := h.inStore()
		h.large("team", n)
		writes := 0
		h.faults.Before(func([]string) error { writes++; return nil })
		must(t, h.Delete(t.Context(), admin, "team"))
		if want := n/(store.MaxOps-1) + 1; n%(store.MaxOps-1) != 0 && writes != want {
			t.Errorf("%d members went in %d writes, want %d", n, writes, want)
		}
		if !maps.Equal(neighbours, h.inStore()) {
			t.Errorf("%d members: left in the store: %d records", n, len(h.inStore())-len(neighbours))
		}
		h.converged()
		must(t, h.Service.act(t.Context(), admin, audit.Event{Act: "group.create"}, nil, func() (int64, error) { return 0, nil })) // the lock is free
	}
}

// TestDeleteCutOff breaks a delete off at each write, before or after it, and does
// it again.
func TestDeleteCutOff(t *testing.T) {
	for _, at := range []int{1, 5, 11} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, after %t", at, after), func(t *testing.T) {
				h := newHouse(t, bolt.Config{})
				h.large("team", 1000)
				writes := 0
				hook := func([]string) error {
					if writes++; writes == at {
						return errDisk
					}
					return nil
				}
				if after {
					h.faults.After(hook)
				} else {
					h.faults.Before(hook)
				}
				err := h.Delete(t.Context(), admin, "team")
				if !errors.Is(err, errDisk) || errors.Is(err, ErrUnknown) != (after || at > 1) {
					t.Errorf("%v", err)
				}
				if gone := fmt.Sprintf("%d memberships of group", (at-1)*(store.MaxOps-1)); at > 1 && !strings.Contains(err.Error(), gone) {
					t.Errorf("%v, want it to say %s", err, gone)
				}
				written := at - 1
				if after {
					written = at
				}
				if left, want := len(h.inStore()), 1+1000-written*(store.MaxOps-1); left != max(want, 0) {
					t.Errorf("%d records left, want %d", left, want)
				}
				if err := h.Delete(t.Context(), admin, "team"); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("again: %v", err)
				}
				if left := h.inStore(); len(left) != 0 {
					t.Errorf("%d records left", len(left))
				}
				_, revision, err := h.bolt.List(t.Context(), keyPrefix, "", 1)
				must(t, err)
				must(t, h.index.reached(t.Context(), revision))
				h.converged()
			})
		}
	}
}

// TestWaitsForOthers: a write that hangs keeps others waiting no longer than they
// have time, and they have written nothing then.
func TestWaitsForOthers(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	hung, release := make(chan struct{}), make(chan struct{})
	h.faults.Before(func(keys []string) error {
		if keys[0] == groupKey("slow") {
			close(hung)
			<-release
		}
		return nil
	})
	var slow sync.WaitGroup
	slow.Go(func() {
		if _, err := h.Create(t.Context(), admin, "slow", ""); err != nil {
			t.Error(err)
		}
	})
	<-hung
	before := h.inStore()
	ctx, cancel := context.WithCancel(t.Context())
	h.trail.setFail(func(e audit.Event) error {
		if e.Outcome == audit.Intended {
			cancel()
		}
		return nil
	})
	if err := h.Add(ctx, admin, "team", person("alice")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("add behind one that hangs: %v", err)
	}
	if !maps.Equal(before, h.inStore()) {
		t.Error("the store changed")
	}
	close(release)
	slow.Wait()
}

// TestPanicLetsGo: what panics in one change does not stop the next.
func TestPanicLetsGo(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.faults.Before(func([]string) error { panic("bug") })
	func() {
		defer func() { _ = recover() }()
		_, _ = h.Create(t.Context(), admin, "a", "")
	}()
	h.faults.Before(nil)
	h.group("a")
}
