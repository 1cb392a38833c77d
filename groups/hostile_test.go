package groups

import (
	"errors"
	"testing"
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
