package groups

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/store/bolt"
)

// TestNestToLookInside: a plain member of a group, who may not list it, nests it in a
// group of their own, whose members they see at any depth.
func TestNestToLookInside(t *testing.T) {
	h := actsHouse(t)
	h.add("team", person("bob"))
	h.make(Settings{Name: "mine", Owners: []Ref{{Kind: KindPerson, ID: "corp.alice"}}})
	alice := Actor{Sub: "corp.alice", Name: "alice", Groups: []string{"team"}}
	file := []File{{Settings: Settings{Name: "mine", Owners: []Ref{{Kind: KindPerson, ID: "corp.alice"}}}, Members: []Member{local("team")}}}
	if _, err := h.Add(t.Context(), alice, "mine", 0, local("team")); !errors.Is(err, ErrInvalid) {
		t.Errorf("add: %v", err)
	}
	if _, err := h.Apply(t.Context(), alice, file, ApplyOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("apply: %v", err)
	}
	if reach, _, err := h.Everyone(t.Context(), alice, "mine", 0); err != nil || len(reach) != 0 {
		t.Errorf("they learned of %v, %v", reach, err)
	}
	// What an administrator has put there they may keep, and give another end.
	h.add("mine", local("team"))
	if changes, err := h.Apply(t.Context(), alice, file, ApplyOptions{}); err != nil || len(changes) != 0 {
		t.Errorf("apply what is so already: %v, %v", changes, err)
	}
	m := local("team")
	m.Reason = "still"
	if _, err := h.Add(t.Context(), alice, "mine", 0, m); err != nil {
		t.Errorf("change it: %v", err)
	}
	file[0].Members[0].Reason = "again"
	if changes, err := h.Apply(t.Context(), alice, file, ApplyOptions{}); err != nil || len(changes) != 1 {
		t.Errorf("change it by a file: %v, %v", changes, err)
	}
}

// TestPruneWhatChanged: a group that lost its label, or that another took in, after the
// plan was made is not deleted for what it was.
func TestPruneWhatChanged(t *testing.T) {
	labels := map[string]string{"from": "git"}
	for name, change := range map[string]func(*house){
		"label": func(h *house) {
			none := map[string]string{}
			_, err := h.Edit(h.t.Context(), admin, "old", 0, Change{Labels: &none})
			must(h.t, err)
		},
		"contained": func(h *house) { h.add("above", local("old")) },
		"another of that name": func(h *house) {
			must(h.t, h.Delete(h.t.Context(), admin, "old", 0, true))
			h.group("old")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			h.make(Settings{Name: "old", Labels: labels})
			h.make(Settings{Name: "within", Labels: labels}, local("old"))
			h.group("above")
			p, err := h.plan(t.Context(), admin, nil, ApplyOptions{Prune: labels})
			must(t, err)
			change(h)
			if _, err := p.run(t.Context()); err == nil {
				t.Error("no error")
			}
			if _, err := h.Get(t.Context(), admin, "old"); err != nil {
				t.Errorf("it was deleted: %v", err)
			}
			h.sound()
		})
	}
}

// TestTrailNamesEveryOwner has more owners than one detail of the trail holds.
func TestTrailNamesEveryOwner(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("platform")
	var owners []Ref
	for i := range maxOwners {
		owners = append(owners, Ref{Kind: KindPerson, ID: fmt.Sprintf("corp.%036d", i), Name: fmt.Sprintf("person-%02d-ä", i)})
	}
	_, err := h.Edit(t.Context(), admin, "platform", 0, Change{Owners: &owners})
	must(t, err)
	for _, e := range h.records() {
		if e.Act != "group.edit" {
			continue
		}
		all := e.Detail["owners"]
		for n := 2; e.Detail[fmt.Sprintf("owners.%d", n)] != ""; n++ {
			all += e.Detail[fmt.Sprintf("owners.%d", n)]
		}
		for _, o := range owners {
			if !strings.Contains(all, o.ID+" ("+o.Name+")") {
				t.Fatalf("%s does not name %s: %s", e.Outcome, o.Name, all)
			}
		}
	}
}
