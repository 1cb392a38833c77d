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

// TestIntentFirst: when the intent is in the trail nothing is written yet, and when
// the outcome comes it is.
func TestIntentFirst(t *testing.T) {
	for _, c := range acts {
		h := actsHouse(t)
		before := h.inStore()
		var seen []string
		h.trail.setFail(func(e audit.Event) error {
			seen = append(seen, e.Act+" "+e.Outcome)
			if same := maps.Equal(before, h.inStore()); same != (e.Outcome == audit.Intended) {
				t.Errorf("%s: store unchanged: %t", e.Outcome, same)
			}
			return nil
		})
		must(t, c.do(h, admin))
		if got := strings.Join(seen, ", "); got != c.act+" intended, "+c.act+" done" {
			t.Errorf("the trail: %s", got)
		}
	}
}

// TestTrailFull: what cannot be put on record does not happen.
func TestTrailFull(t *testing.T) {
	h := actsHouse(t)
	before := h.inStore()
	must(t, h.trail.log.Close())
	for _, c := range acts {
		for _, a := range []Actor{admin, stranger} {
			if err := c.do(h, a); !errors.Is(err, audit.ErrClosed) || errors.Is(err, ErrUnknown) {
				t.Errorf("%s as %s: %v, want the trail's error", c.act, a.Name, err)
			}
		}
	}
	if _, err := h.Apply(t.Context(), admin, []File{{Settings: Settings{Name: "new"}}}, ApplyOptions{}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("apply: %v", err)
	}
	if _, err := h.Get(t.Context(), stranger, "team"); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("get as stranger: %v, want the trail's error", err)
	}
	if !maps.Equal(before, h.inStore()) {
		t.Error("the store changed")
	}
}

// TestOutcomeLost: it is done, but the trail can no longer say so. The answer is
// neither yes nor no.
func TestOutcomeLost(t *testing.T) {
	for _, c := range acts {
		h := actsHouse(t)
		before := h.inStore()
		h.trail.setFail(func(e audit.Event) error {
			if e.Outcome != audit.Intended {
				return errDisk
			}
			return nil
		})
		if err := c.do(h, admin); !errors.Is(err, ErrUnknown) || !errors.Is(err, errDisk) {
			t.Errorf("%s: %v", c.act, err)
		}
		if maps.Equal(before, h.inStore()) {
			t.Errorf("%s: not in the store", c.act)
		}
	}
}

// TestWriteFails: nothing was written, and the answer does not say that it may be;
// or all was, and it says that.
func TestWriteFails(t *testing.T) {
	for _, c := range acts {
		h := actsHouse(t)
		before := h.inStore()
		h.faults.Before(storetest.Times(1, errDisk))
		if err := c.do(h, admin); !errors.Is(err, errDisk) || errors.Is(err, ErrUnknown) || !maps.Equal(before, h.inStore()) {
			t.Errorf("%s: %v", c.act, err)
		}
		h.faults.After(storetest.Times(1, errDisk))
		if err := c.do(h, admin); !errors.Is(err, ErrUnknown) || !errors.Is(err, errDisk) || maps.Equal(before, h.inStore()) {
			t.Errorf("%s: %v", c.act, err)
		}
		h.sound()
		for _, e := range h.records() {
			if e.Outcome == audit.Failed && !strings.Contains(e.Reason, errDisk.Error()) {
				t.Errorf("in the trail: %+v", e)
			}
		}
	}
}

// TestReadFails: what cannot be read is not taken for absent.
func TestReadFails(t *testing.T) {
	for _, c := range acts[1:] { // create reads nothing
		h := actsHouse(t)
		h.faults.Read(func([]string) error { return errDisk })
		if err := c.do(h, admin); !errors.Is(err, errDisk) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnknown) != (c.act == "group.delete" && len(h.inStore()) == 0) {
			t.Errorf("%s: %v", c.act, err)
		}
	}
	h := newHouse(t, bolt.Config{})
	h.faults.Read(func([]string) error { return errDisk })
	if _, err := Open(t.Context(), h.faults, h.trail, Config{}, nil); !errors.Is(err, errDisk) {
		t.Errorf("opened on a store that cannot be read: %v", err)
	}
}

// TestHungUp: who hangs up cannot keep a refusal, nor what came of it, out of the trail.
func TestHungUp(t *testing.T) {
	h := actsHouse(t)
	gone, cancel := context.WithCancel(t.Context())
	h.faults.After(func([]string) error { cancel(); return nil })
	if _, err := h.Add(gone, admin, "team", 0, person("bob")); err != nil && !errors.Is(err, ErrUnknown) {
		t.Error(err) // the index may or may not have heard by now
	}
	if _, err := h.Add(gone, stranger, "team", 0, person("eve")); !errors.Is(err, ErrNotFound) {
		t.Errorf("add as stranger: %v", err)
	}
	if _, err := h.Add(gone, admin, "team", 0, person("dave")); !errors.Is(err, context.Canceled) {
		t.Errorf("add after hanging up: %v", err)
	}
	var seen []string
	for _, e := range h.records()[7:] {
		seen = append(seen, e.Detail["member"]+" "+e.Outcome)
	}
	if got := strings.Join(seen, ", "); !strings.HasPrefix(got, "corp.bob done, corp.eve denied") {
		t.Errorf("the trail ends with %s", got)
	}
}

// TestBehind: a change that hangs keeps others of its group waiting no longer than
// they have time, and others of other groups not at all.
func TestBehind(t *testing.T) {
	h := actsHouse(t)
	hung, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.faults.Before(func(keys []string) error {
		if strings.HasSuffix(keys[0], "corp.slow") {
			once.Do(func() { close(hung) })
			<-release
		}
		return nil
	})
	var slow sync.WaitGroup
	slow.Go(func() {
		if _, err := h.Add(t.Context(), admin, "team", 0, person("slow")); err != nil {
			t.Error(err)
		}
	})
	<-hung
	h.add("other", person("bob"))
	before := h.inStore()
	ctx, cancel := context.WithCancel(t.Context())
	behind := make(chan error, 1)
	go func() { _, err := h.Add(ctx, admin, "team", 0, person("bob")); behind <- err }()
	eventually(t, "it to wait", func() bool {
		h.lanes.mu.Lock()
		defer h.lanes.mu.Unlock()
		for _, l := range h.lanes.open {
			if len(l.waiting) == 1 {
				return true
			}
		}
		return false
	})
	cancel()
	if err := <-behind; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("add behind one that hangs: %v", err)
	}
	if !maps.Equal(before, h.inStore()) {
		t.Error("the store changed")
	}
	close(release)
	slow.Wait()
	h.sound()
}

// large writes n members to a group by the store's own means.
func (h *house) large(id string, n int) {
	h.t.Helper()
	for done := 0; done < n; {
		var ops []store.Op
		for ; len(ops) < store.MaxOps && done < n; done++ {
			m := person(fmt.Sprintf("%05d", done))
			value, err := encodeMember(m)
			must(h.t, err)
			ops = append(ops, store.Op{Key: memberKey(id, m.Kind, m.ID), Value: value})
		}
		revision, err := h.bolt.Txn(h.t.Context(), nil, ops)
		must(h.t, err)
		must(h.t, h.heard(h.t.Context(), revision))
	}
}

// TestDeleteCutOff cuts a delete off at each write, before or after it. From the
// first on the group counts no more, its name stays taken until it is all gone, and
// deleting it again does that.
func TestDeleteCutOff(t *testing.T) {
	for at := range 14 {
		h := newHouse(t, bolt.Config{})
		g := h.group("team")
		h.large(g.ID, 250)
		h.group("in", local("team"))
		h.group("in too", local("team"))
		left := len(h.inStore()) - 250 - 2 - 2
		n, failed := 0, false
		hook := func([]string) error {
			n++
			failed = failed || n == at/2+1
			if n == at/2+1 {
				return errDisk
			}
			return nil
		}
		if at%2 == 0 {
			h.faults.Before(hook)
		} else {
			h.faults.After(hook)
		}
		err := h.Delete(t.Context(), admin, "team", 0, true)
		if failed != (err != nil) || failed && errors.Is(err, ErrUnknown) != (at > 0) {
			t.Errorf("write %d: %v", at/2, err)
		}
		h.sound()
		if _, err := h.Get(t.Context(), admin, "team"); errors.Is(err, ErrNotFound) != (at > 0) {
			t.Errorf("after write %d: %v", at/2, err)
		}
		err = h.Delete(t.Context(), admin, "team", 0, true)
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("again: %v", err)
		}
		h.sound()
		if got := len(h.inStore()); got != left {
			t.Errorf("%d records left, want %d", got, left)
		}
		h.group("team")
	}
}

func TestContained(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team", person("alice"))
	h.group("b", local("team"))
	h.group("a", local("team"))
	before := h.inStore()
	var contained *ContainedError
	if err := h.Delete(t.Context(), admin, "team", 0, false); !errors.As(err, &contained) || fmt.Sprint(contained.In) != "[a b]" || contained.Group != "team" {
		t.Errorf("%v", err)
	}
	if !maps.Equal(before, h.inStore()) {
		t.Error("the store changed")
	}
	must(t, h.Delete(t.Context(), admin, "team", 0, true))
	h.sound()
	if g, err := h.Get(t.Context(), admin, "a"); err != nil || g.Members != 0 {
		t.Errorf("%+v, %v", g, err)
	}
}
