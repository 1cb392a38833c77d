package groups

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// former writes groups as record format 1 had them: "a b" sorts between "a" and its
// members; one record of each kind is damaged.
func (h *house) former() {
	h.t.Helper()
	ops := []store.Op{
		{Key: "group/a", Value: []byte(`{"description":"of a","created":"2026-01-02T03:04:05.000000006Z","createdBy":"corp.1"}`)},
		{Key: "group/a b", Value: []byte(`{"created":"2026-01-02T03:04:05Z","createdBy":"operator"}`)},
		{Key: "group/a b/directoryGroup/corp:x/y", Value: []byte(`{"kind":"directoryGroup","id":"corp:x/y","name":"corp:x/y","end":"2999-01-01T00:00:00.0000009Z","reason":"why","grantedBy":"corp.1","grantedByName":"carol","grantedAt":"2026-01-02T03:04:05Z"}`)},
		{Key: "group/a b/person/corp.damaged", Value: []byte(`{"kind":`)},
		{Key: "group/damaged", Value: []byte(`{`)},
		{Key: "group/damaged/person/corp.0", Value: []byte(`{"grantedBy":"corp.1"}`)},
	}
	_, err := h.bolt.Txn(h.t.Context(), nil, ops)
	must(h.t, err)
	for n := 0; n < 200; n += 50 {
		ops = nil
		for i := range 50 {
			ops = append(ops, store.Op{Key: fmt.Sprintf("group/a/person/corp.%d", n+i), Value: fmt.Appendf(nil, `{"kind":"person","id":"corp.%d","name":"n%d","grantedBy":"corp.1"}`, n+i, n+i)})
		}
		_, err := h.bolt.Txn(h.t.Context(), nil, ops)
		must(h.t, err)
	}
}

func TestMigrate(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.former()
	must(t, migrate(t.Context(), h.bolt))
	if left, _, err := h.bolt.List(t.Context(), formerPrefix, "", 10); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	h.sound()
	a, err := h.Get(t.Context(), admin, "a")
	if err != nil || a.Description != "of a" || a.CreatedBy != "corp.1" || a.Created.Nanosecond() != 6 || a.Members != 200 {
		t.Errorf("%+v, %v", a, err)
	}
	m, err := h.Member(t.Context(), admin, "a", KindPerson, "corp.7")
	if err != nil || m.Name != "n7" || m.GrantedBy != "corp.1" || !m.End.IsZero() {
		t.Errorf("%+v, %v", m, err)
	}
	m, err = h.Member(t.Context(), admin, "a b", KindDirectoryGroup, "corp:x/y")
	if err != nil || !m.End.Equal(time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC)) || m.Reason != "why" || m.GrantedByName != "carol" || m.GrantedAt.IsZero() {
		t.Errorf("%+v, %v", m, err)
	}
	for id, want := range map[string]int{"corp.damaged": 0, "corp.0": 1} { // the damaged group counts for nothing
		if got, err := h.Of(id, nil, time.Now()); err != nil || len(got) != want {
			t.Errorf("%s is in %v, %v", id, got, err)
		}
	}
	h.faults.Before(func([]string) error { t.Error("again: it wrote"); return nil })
	must(t, migrate(t.Context(), h.faults))
}

// TestMigrateCutOff: cut off before or after any write, it comes to the same in the
// end.
func TestMigrateCutOff(t *testing.T) {
	whole := newHouse(t, bolt.Config{})
	whole.former()
	must(t, migrate(t.Context(), whole.bolt))
	want := whole.inStore()
	for at := range 40 {
		h := newHouse(t, bolt.Config{})
		h.former()
		n := 0
		hook := func([]string) error {
			if n++; n == at/2+1 {
				return errDisk
			}
			return nil
		}
		if at%2 == 0 {
			h.faults.Before(hook)
		} else {
			h.faults.After(hook)
		}
		if err := migrate(t.Context(), h.faults); err == nil {
			if at < 10 {
				t.Errorf("%d writes in all", n)
			}
			break
		}
		must(t, migrate(t.Context(), h.faults))
		if !maps.Equal(h.inStore(), want) {
			t.Fatalf("cut off at write %d: %s", at/2, strings.Join(different(h.inStore(), want), "\n"))
		}
	}
}

func different(a, b map[string]string) []string {
	var out []string
	for k, v := range a {
		if b[k] != v {
			out = append(out, fmt.Sprintf("%s: %q, want %q", k, v, b[k]))
		}
	}
	return out
}

// TestMigrateTwice: two nodes at once.
func TestMigrateTwice(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.former()
	other := make(chan error, 1)
	racing := storetest.NewFaulty(h.bolt)
	go func() { other <- migrate(t.Context(), racing) }()
	must(t, migrate(t.Context(), h.bolt))
	must(t, <-other)
	h.sound()
	if g, err := h.Get(t.Context(), admin, "a"); err != nil || g.Members != 200 {
		t.Errorf("%+v, %v", g, err)
	}
}
