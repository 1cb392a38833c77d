package idp

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/tabard-id/tabard/directory"
)

func TestSearchPeople(t *testing.T) {
	h := newHouse(t)
	for i := range 20 {
		h.hire(h.corp, fmt.Sprintf("le%02d", i), fmt.Sprintf("00000000-0000-4000-8000-0000000001%02d", i))
	}
	search := func(typed string, limit int) (names []string) {
		t.Helper()
		people, err := h.SearchPeople(h.ctx, typed, limit)
		wantErr(t, err, nil)
		for _, p := range people {
			names = append(names, p.Username)
		}
		return names
	}
	for _, c := range []struct {
		typed string
		limit int
		want  []string
	}{
		{"al", 10, []string{"alice"}}, {"nobody", 10, nil}, {"le", 2, []string{"le00", "le01"}}, {"le1", 1, []string{"le10"}}, {"lena", 1, []string{"lena"}},
	} {
		if got := search(c.typed, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%q, %d: %q, want %q", c.typed, c.limit, got, c.want)
		}
	}
	h.hire(h.lab, "le", "00000000-0000-4000-8000-000000000200")
	for _, limit := range []int{0, 20, 21, 1000} {
		if got := search("le", limit); len(got) != 20 || got[0] != "le" {
			t.Errorf("limit %d: %q, want 20 and le among them", limit, got)
		}
	}
	h.corp.fail(errUnreachable)
	if got := search("le", 10); !slices.Equal(got, []string{"le", "lena"}) {
		t.Errorf("with one directory down: %q", got)
	}
	h.lab.fail(fmt.Errorf("%w: %w", directory.ErrUnavailable, directory.ErrBusy))
	_, err := h.SearchPeople(h.ctx, "le", 10)
	if wantErr(t, err, ErrUnavailable); !errors.Is(err, directory.ErrBusy) {
		t.Errorf("%v does not tell that one is busy", err)
	}
}

func TestDirectoryMembers(t *testing.T) {
	h := newHouse(t)
	m, err := h.DirectoryMembers(h.ctx, boss, 10)
	if wantErr(t, err, nil); len(m.People) != 1 || m.People[0].Person.Username != "alice" {
		t.Errorf("%+v", m)
	}
	m, err = h.DirectoryMembers(h.ctx, "lab:k8s-lab", 10)
	if wantErr(t, err, nil); len(m.People) != 1 || m.People[0].Person.Sub() != "lab.00000000-0000-4000-8000-000000000003" {
		t.Errorf("%+v", m)
	}
	h.corp.took()
	for _, group := range []string{"", "k8s-admins", "other:devs", "corp", "lab:nothing"} {
		_, err := h.DirectoryMembers(h.ctx, group, 10)
		wantErr(t, err, directory.ErrNotFound)
	}
	if calls := h.corp.took(); len(calls) != 0 {
		t.Errorf("corp was asked for what is not its own: %q", calls)
	}
	for _, fault := range []error{errUnreachable, errBroken} {
		h.corp.fail(fault)
		_, err = h.DirectoryMembers(h.ctx, boss, 10)
		wantErr(t, err, ErrUnavailable)
	}
}
