package groups

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

func TestChange(t *testing.T) {
	ctx := context.Background()
	create := func(name string) func(*house, Actor) error {
		return func(h *house, a Actor) error { _, err := h.Create(ctx, a, name, ""); return err }
	}
	del := func(name string) func(*house, Actor) error {
		return func(h *house, a Actor) error { return h.Delete(ctx, a, name) }
	}
	add := func(group string, m Member) func(*house, Actor) error {
		return func(h *house, a Actor) error { return h.Add(ctx, a, group, m) }
	}
	remove := func(group string, kind Kind, id string) func(*house, Actor) error {
		return func(h *house, a Actor) error { return h.Remove(ctx, a, group, kind, id) }
	}
	huge := strings.Repeat("x", 10<<10)
	operator := Actor{Operator: true, Name: "root"}
	local := Actor{Sub: "corp.3", Groups: []string{"operators"}}
	// The house holds group "team" with member corp.alice.
	for _, tt := range []struct {
		what    string
		who     Actor
		do      func(*house, Actor) error
		want    error
		outcome []string // in the trail
	}{
		{"create", admin, create("new"), nil, []string{audit.Intended, audit.Done}},
		{"create as operator", operator, create("new"), nil, []string{audit.Intended, audit.Done}},
		{"create as member of a local admin group", local, create("new"), nil, []string{audit.Intended, audit.Done}},
		{"create as stranger", stranger, create("new"), ErrForbidden, []string{audit.Denied}},
		{"create as nobody", Actor{}, create("new"), ErrForbidden, []string{audit.Denied}},
		{"create a bad name as stranger", stranger, create("system:masters"), ErrForbidden, []string{audit.Denied}},
		{"create a bad name", admin, create("system:masters"), ErrInvalid, []string{audit.Denied}},
		{"create what is there", admin, create("team"), ErrExists, []string{audit.Intended, audit.Failed}},
		{"delete", admin, del("team"), nil, []string{audit.Intended, audit.Done}},
		{"delete as stranger", stranger, del("team"), ErrForbidden, []string{audit.Denied}},
		{"delete what is not", admin, del("gone"), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"delete nothing", admin, del(""), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"delete a membership", admin, del("team/person/corp.alice"), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"delete what no key can name", admin, del(huge), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"add", admin, add("team", person("bob")), nil, []string{audit.Intended, audit.Done}},
		{"add again", admin, add("team", person("alice")), nil, []string{audit.Intended, audit.Done}},
		{"add as stranger", stranger, add("team", person("bob")), ErrForbidden, []string{audit.Denied}},
		{"add to what is not", admin, add("gone", person("bob")), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"add to what no key can name", admin, add(huge, person("bob")), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"add to a membership", admin, add("team/person", person("bob")), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"add nobody", admin, add("team", Member{Kind: KindPerson}), ErrInvalid, []string{audit.Denied}},
		{"remove", admin, remove("team", KindPerson, "corp.alice"), nil, []string{audit.Intended, audit.Done}},
		{"remove as stranger", stranger, remove("team", KindPerson, "corp.alice"), ErrForbidden, []string{audit.Denied}},
		{"remove who is not in", admin, remove("team", KindPerson, "corp.bob"), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"remove nobody", admin, remove("team", KindPerson, ""), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"remove whom no key can name", admin, remove("team", KindPerson, huge), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"remove another kind", admin, remove("team", KindDirectoryGroup, "corp.alice"), ErrNotFound, []string{audit.Intended, audit.Failed}},
		{"remove no kind", admin, remove("team", "", "corp.alice"), ErrInvalid, []string{audit.Denied}},
		{"remove from what is not", admin, remove("gone", KindPerson, "corp.alice"), ErrNotFound, []string{audit.Intended, audit.Failed}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			h.group("team", person("alice"))
			before := h.inStore()
			err := tt.do(h, tt.who)
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if changed := !maps.Equal(before, h.inStore()); changed != (tt.want == nil) {
				t.Errorf("store changed: %t, with %v", changed, err)
			}
			h.converged()
			events := h.records()[4:] // create team, add alice
			var outcomes []string
			for _, e := range events {
				outcomes = append(outcomes, e.Outcome)
				if e.Who != tt.who.by() || e.Name != tt.who.Name {
					t.Errorf("the trail blames %q (%s)", e.Who, e.Name)
				}
				if bad := e.Outcome == audit.Failed || e.Outcome == audit.Denied; bad && e.Reason == "" {
					t.Errorf("no reason: %v", e)
				}
			}
			if !reflect.DeepEqual(outcomes, tt.outcome) {
				t.Errorf("in the trail: %v, want %v", outcomes, tt.outcome)
			}
		})
	}
}

// converged checks that the index is what the store holds.
func (h *house) converged() {
	h.t.Helper()
	fresh := newIndex()
	must(h.t, fresh.load(context.Background(), h.bolt))
	h.index.mu.RLock()
	defer h.index.mu.RUnlock()
	if !reflect.DeepEqual(h.index.groups, fresh.groups) || !reflect.DeepEqual(h.index.in, fresh.in) {
		h.t.Errorf("the index holds %v and %v,\nthe store %v and %v", h.index.groups, h.index.in, fresh.groups, fresh.in)
	}
}

func TestRead(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	if all, err := h.List(t.Context(), admin); err != nil || all == nil || len(all) != 0 {
		t.Errorf("an empty house lists %v, %v", all, err)
	}
	h.group("b", person("zoe"), directoryGroup("corp:devs"), person("alice"))
	h.group("a")
	all, err := h.List(t.Context(), admin)
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[0].Members == nil || all[1].Name != "b" {
		t.Fatalf("list: %v, %v", all, err)
	}
	b, err := h.Get(t.Context(), admin, "b")
	if err != nil || !reflect.DeepEqual(b, all[1]) {
		t.Errorf("got %v, %v, listed %v", b, err, all[1])
	}
	if len(b.Members) != 3 || b.Members[0].ID != "corp:devs" || b.Members[1].ID != "corp.alice" || b.Members[2].ID != "corp.zoe" {
		t.Errorf("members are not by kind and name: %v", b.Members)
	}
	if _, err := h.Get(t.Context(), admin, "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("get what is not: %v", err)
	}
	if _, err := h.Get(t.Context(), stranger, "b"); !errors.Is(err, ErrForbidden) {
		t.Errorf("get as stranger: %v", err)
	}
	if _, err := h.List(t.Context(), stranger); !errors.Is(err, ErrForbidden) {
		t.Errorf("list as stranger: %v", err)
	}
	events := h.records()
	if n := len(events); events[n-2].Act != "group.get" || events[n-2].Outcome != audit.Denied || events[n-2].On != "b" || events[n-1].Act != "group.list" || events[n-1].Outcome != audit.Denied {
		t.Errorf("the trail ends with %v", events[n-2:])
	}
}

func TestAddAgainRemove(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	m := person("alice")
	m.End, m.Reason = time.Now().Add(time.Hour), "first"
	m.GrantedBy, m.GrantedByName = "forged", "forged"
	must(t, h.Add(t.Context(), admin, "team", m))
	first, err := h.Get(t.Context(), admin, "team")
	must(t, err)
	got := first.Members[0]
	if !got.End.Equal(m.End) || got.Reason != "first" || got.GrantedBy != admin.Sub || got.GrantedByName != admin.Name || got.GrantedAt.IsZero() {
		t.Errorf("added %+v", got)
	}
	m.End, m.Reason = time.Time{}, "second"
	must(t, h.Add(t.Context(), Actor{Operator: true, Name: "root"}, "team", m))
	second, err := h.Get(t.Context(), admin, "team")
	must(t, err)
	if len(second.Members) != 1 || second.Revision <= first.Revision {
		t.Fatalf("added again: %+v, before %+v", second, first)
	}
	got = second.Members[0]
	if !got.End.IsZero() || got.Reason != "second" || got.GrantedBy != "operator" || got.GrantedByName != "root" {
		t.Errorf("added again %+v", got)
	}
	must(t, h.Remove(t.Context(), admin, "team", m.Kind, m.ID))
	third, err := h.Get(t.Context(), admin, "team")
	if err != nil || len(third.Members) != 0 || third.Revision <= second.Revision {
		t.Errorf("removed: %+v, %v, before at revision %d", third, err, second.Revision)
	}
}

func TestTwoNodes(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	other := h.open(h.bolt)
	sees := func(s *Service, members int) func() bool {
		return func() bool {
			g, err := s.get("team")
			return err == nil && len(g.Members) == members
		}
	}
	h.group("team", person("alice"))
	eventually(t, "alice at the other node", sees(other, 1))
	must(t, other.Add(t.Context(), admin, "team", person("bob")))
	eventually(t, "bob at this node", sees(h.Service, 2))
	must(t, h.Remove(t.Context(), admin, "team", KindPerson, "corp.alice"))
	must(t, h.Remove(t.Context(), admin, "team", KindPerson, "corp.bob"))
	eventually(t, "nobody at the other node", sees(other, 0))
	must(t, other.Delete(t.Context(), admin, "team"))
	eventually(t, "no group at this node", func() bool { _, err := h.get("team"); return errors.Is(err, ErrNotFound) })
	h.converged()
}

// TestConflict: another node changes the group between each read and write.
func TestConflict(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team", person("alice"))
	rivals := 0
	h.faults.Before(func([]string) error {
		if rivals == 0 {
			return nil
		}
		rivals--
		e, err := h.bolt.Get(t.Context(), groupKey("team"))
		if err == nil {
			_, err = h.bolt.Txn(t.Context(), nil, []store.Op{{Key: e.Key, Value: e.Value}})
		}
		return err
	})
	acts := map[string]func() error{
		"add":    func() error { return h.Add(t.Context(), admin, "team", person("bob")) },
		"remove": func() error { return h.Remove(t.Context(), admin, "team", KindPerson, "corp.alice") },
		"delete": func() error { return h.Delete(t.Context(), admin, "team") },
	}
	for what, act := range acts {
		rivals = 1000
		if err := act(); !errors.Is(err, ErrConflict) || errors.Is(err, ErrUnknown) {
			t.Errorf("%s, with a rival each time: %v", what, err)
		}
	}
	for _, what := range []string{"add", "remove", "delete"} {
		rivals = 3
		if err := acts[what](); err != nil {
			t.Errorf("%s, with three rivals: %v", what, err)
		}
	}
	if left := h.inStore(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
