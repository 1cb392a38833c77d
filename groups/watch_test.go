package groups

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// The clock of these tests is that of synctest: it moves when all wait.

// denies reports whether the Service denies, by each way of reading.
func (h *house) denies() bool {
	h.t.Helper()
	_, of := h.Of("corp.alice", nil, time.Now())
	_, why := h.Why(h.t.Context(), "corp.alice", nil)
	_, _, list := h.List(h.t.Context(), admin, Filter{}, Page{})
	_, get := h.Get(h.t.Context(), admin, "team")
	stale := errors.Is(of, ErrStale)
	for _, err := range []error{why, list, get} {
		if errors.Is(err, ErrStale) != stale {
			h.t.Errorf("Of %v, another %v", of, err)
		}
	}
	if h.RightsOn(admin, "team").See == stale {
		h.t.Errorf("rights, with Of %v", of)
	}
	return stale
}

// in reports whether the person is in a group, as Of has it.
func (h *house) in(id string) bool {
	all, err := h.Of("corp."+id, nil, time.Now())
	return err == nil && len(all) > 0
}

// TestDead: the store is gone for a while, in each way that a store can be.
func TestDead(t *testing.T) {
	for what, kill := range map[string]func(*house) (revive func()){
		"broken": func(h *house) func() {
			h.faults.Read(func([]string) error { return errDisk })
			h.tap.cut()
			return func() { h.faults.Read(nil) }
		},
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
				time.Sleep(store.StaleAfter / 2)
				if !h.in("alice") {
					t.Error("stale already")
				}
				_, err := other.Remove(t.Context(), admin, "team", 0, KindPerson, "corp.alice")
				must(t, err)
				_, err = other.Add(t.Context(), admin, "team", 0, person("bob"))
				must(t, err)
				time.Sleep(store.StaleAfter)
				for range 60 {
					if _, of := h.Of("corp.alice", nil, time.Now()); !errors.Is(of, ErrStale) || h.in("alice") {
						t.Fatal("decides though the store is gone")
					}
					time.Sleep(time.Second)
				}
				revive()
				eventually(t, "current again", func() bool { return h.in("bob") })
				if h.denies() || h.in("alice") {
					t.Error("alice was removed")
				}
				h.group("next", person("carol")) // heard by the watch
				h.sound()
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
		_, err := h.Remove(t.Context(), admin, "team", 0, KindPerson, "corp.alice")
		if !errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it was written") {
			t.Errorf("remove: %v", err)
		}
		events := h.records()
		if e := events[len(events)-1]; e.Outcome != "done" {
			t.Errorf("in the trail: %v", e)
		}
	})
}

// TestDamaged: one record that nobody can read is not there; all others are, and what
// is beneath administrators stays theirs.
func TestDamaged(t *testing.T) {
	owners := []Ref{{Kind: KindPerson, ID: "corp.owner"}}
	owner := Actor{Sub: "corp.owner"}
	for _, what := range []string{"membership", "nested membership", "record", "name", "administrators' record", "nothing"} {
		h := newHouse(t, bolt.Config{})
		team := h.make(Settings{Name: "team", Owners: owners}, person("alice"), person("bob"))
		middle := h.group("middle", local("team"))
		top := h.group("operators", local("middle"))
		h.group("other", person("alice"))
		key := map[string]string{
			"membership":             memberKey(team.ID, KindPerson, "corp.alice"),
			"nested membership":      memberKey(middle.ID, KindGroup, team.ID),
			"record":                 recordKey(middle.ID),
			"name":                   nameKey("middle"),
			"administrators' record": recordKey(top.ID),
			"nothing":                "groups/none",
		}[what]
		revision, err := h.bolt.Txn(t.Context(), nil, []store.Op{{Key: key, Value: []byte("{")}})
		must(t, err)
		must(t, h.heard(t.Context(), revision))
		again := &house{Service: h.open(h.bolt), t: t}
		want := map[string]string{
			"membership":             "[other] [middle operators team]",
			"nested membership":      "[other team] [team]",
			"record":                 "[other team] [team]",
			"name":                   "[other team] [team]",
			"administrators' record": "[middle other team] [middle team]",
			"nothing":                "[middle operators other team] [middle operators team]",
		}[what]
		for _, s := range []*Service{h.Service, again.Service} {
			got := ""
			for _, id := range []string{"corp.alice", "corp.bob"} {
				in, err := s.Of(id, nil, time.Now())
				must(t, err)
				names := []string{}
				for _, e := range in {
					names = append(names, e.Group)
				}
				got += fmt.Sprint(names) + " "
			}
			if strings.TrimSpace(got) != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
			if r := s.RightsOn(owner, "team"); r.Members {
				t.Errorf("%s: its owner may change what was beneath administrators: %+v", what, r)
			}
		}
		if what == "record" {
			if _, err := h.Create(t.Context(), admin, Settings{Name: "middle"}); !errors.Is(err, ErrExists) {
				t.Errorf("the name of a damaged group: %v", err)
			}
			must(t, h.Delete(t.Context(), admin, "middle", 0, true))
			h.sound()
		}
		if what == "membership" {
			m, err := h.Member(t.Context(), admin, "team", KindPerson, "corp.alice")
			if err != nil || m.CountsAt(time.Now()) || !strings.Contains(m.Reason, "damaged") {
				t.Errorf("%+v, %v", m, err)
			}
			h.add("team", person("alice"))
			if !h.in("alice") {
				t.Error("adding anew mends it")
			}
		}
	}
}

// TestLoadPages: an index pieced together from different moments denies until the
// watch has made it one.
func TestLoadPages(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	g := h.group("team")
	h.large(g.ID, store.MaxList+500)
	pages := 0
	h.faults.Read(func(keys []string) error {
		if pages++; pages == 2 { // one member behind the first page goes, one before comes
			value, err := encodeMember(person("a"))
			must(t, err)
			_, err = h.bolt.Txn(t.Context(), nil, []store.Op{
				{Key: memberKey(g.ID, KindPerson, "corp.00000"), Delete: true},
				{Key: memberKey(g.ID, KindPerson, "corp.zzz"), Value: value},
				{Key: memberKey(g.ID, KindPerson, "corp."), Value: value},
			})
			return err
		}
		return nil
	})
	tap := newTap(h.faults)
	release := tap.hold()
	opened := make(chan *Service)
	go func() { opened <- h.open(tap) }()
	select {
	case <-opened:
		t.Error("opened before it was of one moment")
	case <-time.After(50 * time.Millisecond): // it would be at once
	}
	release()
	other := &house{Service: <-opened, t: t}
	h.faults.Read(nil)
	got, err := other.Get(t.Context(), admin, "team")
	if err != nil || got.Members != store.MaxList+501 || other.in("00000") || !other.in("zzz") || !other.in("") {
		t.Errorf("%d members, %v; in: %t %t %t", got.Members, err, other.in("00000"), other.in("zzz"), other.in(""))
	}
}
