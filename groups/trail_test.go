package groups

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// changes are one of each, on a house with group "team" and member corp.alice, in
// an order in which each can be done.
var changes = []struct {
	act string
	do  func(context.Context, *house, Actor) error
}{
	{"group.create", func(ctx context.Context, h *house, a Actor) error { _, err := h.Create(ctx, a, "new", ""); return err }},
	{"group.member.add", func(ctx context.Context, h *house, a Actor) error { return h.Add(ctx, a, "team", person("bob")) }},
	{"group.member.remove", func(ctx context.Context, h *house, a Actor) error {
		return h.Remove(ctx, a, "team", KindPerson, "corp.alice")
	}},
	{"group.delete", func(ctx context.Context, h *house, a Actor) error { return h.Delete(ctx, a, "team") }},
}

// TestIntentFirst: when the intent is in the trail nothing is written yet, and when
// the outcome comes it is.
func TestIntentFirst(t *testing.T) {
	for _, c := range changes {
		t.Run(c.act, func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			h.group("team", person("alice"))
			before := h.inStore()
			var seen []string
			h.trail.setFail(func(e audit.Event) error {
				seen = append(seen, e.Act+" "+e.Outcome)
				if same := maps.Equal(before, h.inStore()); same != (e.Outcome == audit.Intended) {
					t.Errorf("%s: store unchanged: %t", e.Outcome, same)
				}
				return nil
			})
			must(t, c.do(t.Context(), h, admin))
			if got := strings.Join(seen, ", "); got != c.act+" intended, "+c.act+" done" {
				t.Errorf("the trail: %s", got)
			}
		})
	}
}

// TestTrailFull: what cannot be put on record does not happen.
func TestTrailFull(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team", person("alice"))
	before := h.inStore()
	must(t, h.trail.log.Close())
	for _, c := range changes {
		for _, a := range []Actor{admin, stranger} {
			if err := c.do(t.Context(), h, a); !errors.Is(err, audit.ErrClosed) || errors.Is(err, ErrUnknown) {
				t.Errorf("%s as %s: %v, want the trail's error", c.act, a.Name, err)
			}
		}
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
	for _, c := range changes {
		h := newHouse(t, bolt.Config{})
		h.group("team", person("alice"))
		before := h.inStore()
		h.trail.setFail(func(e audit.Event) error {
			if e.Outcome != audit.Intended {
				return errDisk
			}
			return nil
		})
		if err := c.do(t.Context(), h, admin); !errors.Is(err, ErrUnknown) || !errors.Is(err, errDisk) || !strings.Contains(err.Error(), "it was written") {
			t.Errorf("%s: %v", c.act, err)
		}
		if maps.Equal(before, h.inStore()) {
			t.Errorf("%s: not in the store", c.act)
		}
	}
}

// TestBothLost: neither the write nor the record of its failure.
func TestBothLost(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.faults.Before(func([]string) error { return errDisk })
	lost := errors.New("trail on fire")
	h.trail.setFail(func(e audit.Event) error {
		if e.Outcome == audit.Failed {
			return lost
		}
		return nil
	})
	if _, err := h.Create(t.Context(), admin, "a", ""); !errors.Is(err, errDisk) || !errors.Is(err, lost) || errors.Is(err, ErrUnknown) {
		t.Errorf("create: %v", err)
	}
}

// TestHungUp: who hangs up cannot keep a refusal, nor what came of it, out of the trail.
func TestHungUp(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team", person("alice"))
	gone, cancel := context.WithCancel(t.Context())
	h.faults.After(func([]string) error { cancel(); return nil })
	must(t, ignore(h.Add(gone, admin, "team", person("bob")), ErrUnknown)) // the index may or may not have heard by now
	if gone.Err() == nil {
		t.Fatal("nothing was written")
	}
	if err := h.Add(gone, stranger, "team", person("eve")); !errors.Is(err, ErrForbidden) {
		t.Errorf("add as stranger: %v", err)
	}
	if err := h.Add(gone, admin, "team", person("dave")); !errors.Is(err, context.Canceled) {
		t.Errorf("add after hanging up: %v", err)
	}
	events := h.records()
	if n := len(events); events[n-2].Outcome != audit.Done || events[n-2].Detail["member"] != "corp.bob" || events[n-1].Outcome != audit.Denied || events[n-1].Detail["member"] != "corp.eve" {
		t.Errorf("the trail ends with %v", events[n-2:])
	}
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

func TestWhatTheTrailSays(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	m := directoryGroup("corp:devs")
	m.End, m.Reason = time.Date(2999, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)), "on call"
	ctx := audit.WithOrigin(t.Context(), audit.Origin{Address: "192.0.2.1", RequestID: "r1"})
	must(t, h.Add(ctx, admin, "team", m))
	for i, e := range h.records()[2:] {
		want := []string{audit.Intended, audit.Done}[i]
		d := map[string]string{"kind": "directoryGroup", "member": "corp:devs", "name": "corp:devs", "end": "2999-01-02T02:04:05Z"}
		if e.Act != "group.member.add" || e.Outcome != want || e.Who != "corp.1" || e.Name != "carol" || e.On != "team" || e.Reason != "on call" || e.Address != "192.0.2.1" || e.RequestID != "r1" || !maps.Equal(e.Detail, d) {
			t.Errorf("record %d: %+v", i, e)
		}
	}
}
