package groups

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// TestMismatch: of two who edit what they saw, on two nodes, one is told what the
// other made of it.
func TestMismatch(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	g := h.group("team", person("alice"))
	other := h.open(h.bolt)
	texts := []string{"one's", "other's"}
	var both sync.WaitGroup
	errs := make([]error, 2)
	for i, s := range []*Service{h.Service, other} {
		both.Go(func() { _, errs[i] = s.Edit(t.Context(), admin, "team", g.Revision, Change{Description: &texts[i]}) })
	}
	both.Wait()
	won := 0
	if errs[0] != nil {
		won = 1
	}
	var mismatch *MismatchError
	if errs[won] != nil || !errors.As(errs[1-won], &mismatch) || mismatch.Current.Description != texts[won] || mismatch.Current.Revision <= g.Revision || mismatch.Current.Members != 1 {
		t.Fatalf("%v, %v", errs[0], errs[1])
	}
	now := mismatch.Current.Revision
	for what, act := range map[string]func(int64) error{
		"add": func(r int64) error { _, err := h.Add(t.Context(), admin, "team", r, person("bob")); return err },
		"remove": func(r int64) error {
			_, err := h.Remove(t.Context(), admin, "team", r, KindPerson, "corp.alice")
			return err
		},
		"delete": func(r int64) error { return h.Delete(t.Context(), admin, "team", r, false) },
	} {
		if err := act(g.Revision); !errors.As(err, &mismatch) || mismatch.Current.Revision != now {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Of many with the same revision on one node, one gets it.
	var all sync.WaitGroup
	got := make([]error, 16)
	for i := range got {
		all.Go(func() { _, got[i] = h.Add(t.Context(), admin, "team", now, person(fmt.Sprint(i))) })
	}
	all.Wait()
	fine := 0
	for _, err := range got {
		if err == nil {
			fine++
		} else if !errors.As(err, &mismatch) {
			t.Error(err)
		}
	}
	if fine != 1 {
		t.Errorf("%d of 16 changed the same revision", fine)
	}
}

// TestCrossed: two nodes put X into Y and Y into X at once. One of them is refused.
func TestCrossed(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	other := h.open(h.bolt)
	for range 20 {
		h.group("x")
		y := h.group("y")
		eventually(t, "y at the other node, not the one before it", func() bool {
			g, err := other.Get(t.Context(), admin, "y")
			return err == nil && g.ID == y.ID
		})
		var both sync.WaitGroup
		var one, two error
		both.Go(func() { _, one = h.Add(t.Context(), admin, "x", 0, local("y")) })
		both.Go(func() { _, two = other.Add(t.Context(), admin, "y", 0, local("x")) })
		both.Wait()
		if (one == nil) == (two == nil) || !errors.Is(errors.Join(one, two), ErrInvalid) {
			t.Fatalf("%v, %v", one, two)
		}
		h.sound()
		must(t, h.Delete(t.Context(), admin, "x", 0, true))
		must(t, h.Delete(t.Context(), admin, "y", 0, true))
	}
}

// TestNodes: two nodes do everything to a few groups at once. Nothing contains
// itself, no membership is left of a group that is gone, and both end the same.
func TestNodes(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	nodes := []*Service{h.Service, h.open(h.bolt)}
	fine := []error{nil, ErrNotFound, ErrExists, ErrInvalid, ErrConflict}
	var all sync.WaitGroup
	for i, s := range nodes {
		for w := range 4 {
			r := rand.New(rand.NewPCG(uint64(i), uint64(w)))
			name := func() string { return fmt.Sprint("g", r.IntN(5)) }
			all.Go(func() {
				for range 60 {
					var err error
					switch r.IntN(8) {
					case 0:
						err = s.Delete(t.Context(), admin, name(), 0, true)
					case 1, 2:
						_, err = s.Create(t.Context(), admin, Settings{Name: name()})
					case 3, 4:
						_, err = s.Add(t.Context(), admin, name(), 0, local(name()))
					case 5:
						_, err = s.Add(t.Context(), admin, name(), 0, person(fmt.Sprint(r.IntN(5))))
					case 6:
						to := name()
						_, err = s.Edit(t.Context(), admin, name(), 0, Change{Name: &to})
					case 7:
						_, err = s.Remove(t.Context(), admin, name(), 0, KindPerson, fmt.Sprint("corp.", r.IntN(5)))
					}
					var ok bool
					for _, e := range fine {
						ok = ok || errors.Is(err, e)
					}
					if !ok {
						t.Errorf("%v", err)
					}
				}
			})
		}
	}
	all.Wait()
	h.sound()
	(&house{Service: nodes[1], t: t, bolt: h.bolt}).sound()
	for n := range 5 { // also what was left half deleted
		if err := h.Delete(t.Context(), admin, fmt.Sprint("g", n), 0, true); err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
	for key := range h.inStore() {
		if key != nestingKey {
			t.Errorf("%s is left", key)
		}
	}
}

// TestConflict: another node changes the group between each read and write.
func TestConflict(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	g := h.group("team", person("alice"))
	rivals := 0
	h.faults.Before(func([]string) error {
		if rivals == 0 {
			return nil
		}
		rivals--
		e, err := h.bolt.Get(t.Context(), recordKey(g.ID))
		if err == nil {
			_, err = h.bolt.Txn(t.Context(), nil, []store.Op{{Key: e.Key, Value: e.Value}})
		}
		return err
	})
	add := func() error { _, err := h.Add(t.Context(), admin, "team", 0, person("bob")); return err }
	rivals = 1000
	if err := add(); !errors.Is(err, ErrConflict) || errors.Is(err, ErrUnknown) {
		t.Errorf("with a rival each time: %v", err)
	}
	rivals = 3
	must(t, add())
	h.sound()
}

// TestManyWriters: sixteen at once on one node lose nothing and see no conflict, and
// the changes of one group share writes.
func TestManyWriters(t *testing.T) {
	const writers, each = 16, 10
	for _, groups := range []int{1, writers} {
		h := newHouse(t, bolt.Config{})
		for g := range groups {
			h.group(fmt.Sprint(g))
		}
		var mu sync.Mutex
		writes := 0
		h.faults.Before(func([]string) error { mu.Lock(); writes++; mu.Unlock(); time.Sleep(time.Millisecond); return nil })
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				group := fmt.Sprint(w % groups)
				for n := range each {
					id := fmt.Sprint(w, "-", n)
					if _, err := h.Add(t.Context(), admin, group, 0, person(id)); err != nil || !h.in(id) {
						t.Errorf("add %s: %v, in: %t", id, err, h.in(id))
					}
					if n%2 == 0 {
						continue
					}
					if _, err := h.Remove(t.Context(), admin, group, 0, KindPerson, "corp."+id); err != nil || h.in(id) {
						t.Errorf("remove %s: %v, in: %t", id, err, h.in(id))
					}
				}
			})
		}
		all.Wait()
		members := 0
		for _, f := range h.export() {
			members += len(f.Members)
		}
		if members != writers*each/2 {
			t.Errorf("%d members, want %d", members, writers*each/2)
		}
		if groups == 1 && writes >= writers*each*3/2 {
			t.Errorf("%d writes: none was shared", writes)
		}
		h.sound()
		if n := len(h.records()); n != 2*groups+2*writers*each*3/2 {
			t.Errorf("%d records in the trail", n)
		}
	}
}
