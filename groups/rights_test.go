package groups

import (
	"errors"
	"maps"
	"testing"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// TestRights is the table of who may do what. The house: "team" is owned by a person,
// a directory group and the local group "leads"; "plain" has no owner; "inner" is in
// "operators", which administers, and has an owner of its own.
func TestRights(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("leads", person("lead"))
	h.group("heads")
	h.add("leads", local("heads"))
	owners := []Ref{{Kind: KindPerson, ID: "corp.owner"}, {Kind: KindDirectoryGroup, ID: "corp:owners"}, {Kind: KindGroup, Name: "leads"}}
	h.make(Settings{Name: "team", Owners: owners})
	h.group("plain")
	h.make(Settings{Name: "inner", Owners: owners})
	h.group("middle", local("inner"))
	h.group("operators", local("middle"))
	nothing, see, members, all := Rights{}, Rights{See: true}, Rights{See: true, Members: true}, Rights{true, true, true}
	as := func(sub string, groups ...string) Actor { return Actor{Sub: "corp." + sub, Groups: groups} }
	for _, tt := range []struct {
		what  string
		who   Actor
		group string
		want  Rights
	}{
		{"administrator", admin, "team", all},
		{"administrator by a local group", as("x", "operators"), "inner", all},
		{"the operator", Actor{Operator: true}, "inner", all},
		{"owner in person", as("owner"), "team", members},
		{"owner by a directory group", as("x", "corp:owners"), "team", members},
		{"owner by a local group", as("x", "leads"), "team", members},
		{"a name alike is no owner", as("x", "corp:leads", "Leads", "lead"), "team", nothing},
		{"a person named as the group", Actor{Sub: "corp:owners"}, "team", nothing},
		{"member", as("x", "team"), "team", see},
		{"member of another", as("x", "plain"), "team", nothing},
		{"nobody", Actor{}, "team", nothing},
		{"a group without owners", as("owner"), "plain", nothing},
		{"owner of what is beneath administrators", as("owner"), "inner", see},
		{"member of what is beneath administrators", as("x", "inner"), "inner", see},
		{"a group of administrators", as("owner"), "operators", nothing},
		{"what is not there", admin, "none", nothing},
	} {
		if got := h.RightsOn(tt.who, tt.group); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.what, got, tt.want)
		}
	}
	// It goes by the group, not by the name that it had.
	name := "chiefs"
	_, err := h.Edit(t.Context(), admin, "leads", 0, Change{Name: &name})
	must(t, err)
	if h.RightsOn(as("x", "leads"), "team") != nothing || h.RightsOn(as("x", "chiefs"), "team") != members {
		t.Error("an owner that was renamed")
	}
	must(t, h.Delete(t.Context(), admin, "chiefs", 0, false))
	h.group("chiefs")
	if h.RightsOn(as("x", "chiefs"), "team") != nothing {
		t.Error("a new group of the same name owns")
	}
}

// acts are one of each, on a house with "team" and "other", owned by corp.owner.
var acts = []struct {
	act  string
	need string
	do   func(*house, Actor) error
}{
	{"group.create", "admin", func(h *house, a Actor) error {
		_, err := h.Create(h.t.Context(), a, Settings{Name: "new"})
		return err
	}},
	{"group.edit", "owner", func(h *house, a Actor) error {
		text := "what it is for"
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Description: &text})
		return err
	}},
	{"group.edit", "admin", func(h *house, a Actor) error {
		name := "renamed"
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Name: &name})
		return err
	}},
	{"group.edit", "admin", func(h *house, a Actor) error {
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Owners: &[]Ref{{Kind: KindPerson, ID: "corp.2"}}})
		return err
	}},
	{"group.edit", "admin", func(h *house, a Actor) error {
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Clusters: &[]string{"prod"}})
		return err
	}},
	{"group.edit", "admin", func(h *house, a Actor) error {
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Labels: &map[string]string{"a": "b"}})
		return err
	}},
	{"group.edit", "admin", func(h *house, a Actor) error {
		yes := true
		_, err := h.Edit(h.t.Context(), a, "team", 0, Change{Requestable: &yes})
		return err
	}},
	{"group.member.add", "owner", func(h *house, a Actor) error {
		_, err := h.Add(h.t.Context(), a, "team", 0, person("bob"))
		return err
	}},
	{"group.member.add", "owner", func(h *house, a Actor) error {
		_, err := h.Add(h.t.Context(), a, "team", 0, local("other"))
		return err
	}},
	{"group.member.remove", "owner", func(h *house, a Actor) error {
		_, err := h.Remove(h.t.Context(), a, "team", 0, KindPerson, "corp.alice")
		return err
	}},
	{"group.delete", "admin", func(h *house, a Actor) error { return h.Delete(h.t.Context(), a, "team", 0, false) }},
}

func actsHouse(t *testing.T) *house {
	h := newHouse(t, bolt.Config{})
	owners := []Ref{{Kind: KindPerson, ID: "corp.owner"}}
	h.make(Settings{Name: "team", Owners: owners}, person("alice"))
	h.make(Settings{Name: "other", Owners: owners})
	return h
}

// TestActs: each act by each kind of actor: what is answered, written and on record.
func TestActs(t *testing.T) {
	for _, act := range acts {
		for _, who := range []struct {
			kind  string
			actor Actor
			sees  bool
		}{
			{"admin", admin, true},
			{"owner", Actor{Sub: "corp.owner", Name: "olga"}, true},
			{"member", Actor{Sub: "corp.alice", Name: "alice", Groups: []string{"team"}}, true},
			{"other", stranger, false},
		} {
			h := actsHouse(t)
			before := h.inStore()
			err := act.do(h, who.actor)
			ok := who.kind == "admin" || who.kind == "owner" && act.need == "owner"
			want, outcome := ErrForbidden, audit.Denied
			if ok {
				want, outcome = nil, audit.Done
			} else if !who.sees && act.act != "group.create" {
				want = ErrNotFound
			}
			if !errors.Is(err, want) || ok != (err == nil) {
				t.Errorf("%s as %s: %v, want %v", act.act, who.kind, err, want)
			}
			if maps.Equal(before, h.inStore()) == ok {
				t.Errorf("%s as %s: written: %t", act.act, who.kind, !ok)
			}
			h.sound()
			events := h.records()
			e := events[len(events)-1]
			if e.Act != act.act || e.Outcome != outcome || e.Who != who.actor.by() || e.Name != who.actor.Name || !ok && e.Reason == "" {
				t.Errorf("%s as %s: in the trail: %+v", act.act, who.kind, e)
			}
		}
	}
}

// TestHidden: who may not see a group is told what they are told of one that is not.
func TestHidden(t *testing.T) {
	h := actsHouse(t)
	_, there := h.Get(t.Context(), stranger, "team")
	_, not := h.Get(t.Context(), stranger, "none")
	if !errors.Is(there, ErrNotFound) || !errors.Is(not, ErrNotFound) {
		t.Errorf("%v, %v", there, not)
	}
	if list, _, err := h.List(t.Context(), stranger, Filter{}, Page{}); err != nil || len(list) != 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
	owner := Actor{Sub: "corp.owner"}
	h.group("secret")
	if _, err := h.Add(t.Context(), owner, "team", 0, local("secret")); !errors.Is(err, ErrInvalid) {
		t.Errorf("a group that they do not see, as owner: %v", err)
	}
	alice := Actor{Sub: "corp.alice", Groups: []string{"team"}}
	if _, _, err := h.Members(t.Context(), alice, "team", MemberFilter{}, Page{}); !errors.Is(err, ErrForbidden) {
		t.Errorf("members as member: %v", err)
	}
	if m, err := h.Member(t.Context(), alice, "team", KindPerson, "corp.alice"); err != nil || m.Name == "" {
		t.Errorf("their own: %+v, %v", m, err)
	}
	if _, err := h.Member(t.Context(), alice, "team", KindPerson, "corp.bob"); !errors.Is(err, ErrForbidden) {
		t.Errorf("another's: %v", err)
	}
	if _, _, err := h.Everyone(t.Context(), alice, "team", 0); !errors.Is(err, ErrForbidden) {
		t.Errorf("everyone: %v", err)
	}
	h.group("above", local("team"))
	if got := h.Containing(owner, "team"); len(got) != 0 {
		t.Errorf("containing, as owner: %v", got)
	}
	if got := h.Containing(admin, "team"); len(got) != 1 || got[0] != "above" {
		t.Errorf("containing: %v", got)
	}
	bob := Ref{Kind: KindPerson, ID: "corp.alice"}
	if list, _, err := h.List(t.Context(), Actor{Sub: "corp.x", Groups: []string{"team"}}, Filter{Member: &bob}, Page{}); err != nil || len(list) != 0 {
		t.Errorf("asking who is in, as member: %v, %v", list, err)
	}
}
