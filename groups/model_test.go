package groups

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/internal/store/bolt"
)

// model is what groups should be: for each the members, with their reasons.
type model map[string]map[memberRef]Member

// TestModel does random things to a Service and to a model of it, opening the store
// anew at times, and compares.
func TestModel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tabard.db")
	h := newHouse(t, bolt.Config{Path: path})
	st := h.bolt
	reopen := func() {
		h.Service.Close()
		must(t, st.Close())
		var err error
		st, err = bolt.Open(bolt.Config{Path: path})
		must(t, err)
		h.bolt = st
		h.Service = h.open(st)
	}
	t.Cleanup(func() { h.Service.Close(); _ = st.Close() })
	names := rapid.SampledFrom([]string{"a", "a b", "ab", "b", "zoë"})
	members := rapid.SampledFrom([]Member{person("1"), person("2"), person("2/3"), directoryGroup("corp:a"), directoryGroup("corp:a/b")})
	ends := rapid.SampledFrom([]time.Time{{}, time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC)})
	rapid.Check(t, func(rt *rapid.T) {
		m := model{}
		all, err := h.List(t.Context(), admin)
		must(t, err)
		for _, g := range all {
			must(t, h.Delete(t.Context(), admin, g.Name))
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				name := names.Draw(rt, "name")
				_, err := h.Create(t.Context(), admin, name, "")
				m.expect(rt, err, ErrExists, m[name] == nil)
				if m[name] == nil {
					m[name] = map[memberRef]Member{}
				}
			},
			"delete": func(rt *rapid.T) {
				name := names.Draw(rt, "name")
				m.expect(rt, h.Delete(t.Context(), admin, name), ErrNotFound, m[name] != nil)
				delete(m, name)
			},
			"add": func(rt *rapid.T) {
				name, who := names.Draw(rt, "name"), members.Draw(rt, "member")
				who.End, who.Reason = ends.Draw(rt, "end"), rapid.StringMatching("[a-z]{0,3}").Draw(rt, "reason")
				m.expect(rt, h.Add(t.Context(), admin, name, who), ErrNotFound, m[name] != nil)
				if m[name] != nil {
					m[name][memberRef{who.Kind, who.ID}] = who
				}
			},
			"remove": func(rt *rapid.T) {
				name, who := names.Draw(rt, "name"), members.Draw(rt, "member")
				ref := memberRef{who.Kind, who.ID}
				_, there := m[name][ref]
				m.expect(rt, h.Remove(t.Context(), admin, name, who.Kind, who.ID), ErrNotFound, there)
				delete(m[name], ref)
			},
			"reopen": func(rt *rapid.T) {
				if rapid.IntRange(0, 4).Draw(rt, "now") == 0 {
					reopen()
				}
			},
			"": func(rt *rapid.T) { m.compare(rt, h) },
		})
		h.converged()
	})
}

func (m model) expect(rt *rapid.T, err, otherwise error, ok bool) {
	if ok && err != nil || !ok && !errors.Is(err, otherwise) {
		rt.Fatalf("%v, in %v", err, m)
	}
}

func (m model) compare(rt *rapid.T, h *house) {
	all, err := h.List(h.t.Context(), admin)
	if err != nil || len(all) != len(m) {
		rt.Fatalf("%v, %v, want %v", all, err, m)
	}
	in := map[string]int{}
	for _, g := range all {
		if m[g.Name] == nil || len(m[g.Name]) != len(g.Members) {
			rt.Fatalf("%v, want %v", g, m[g.Name])
		}
		for _, got := range g.Members {
			want := m[g.Name][memberRef{got.Kind, got.ID}]
			if got.Reason != want.Reason || !got.End.Equal(want.End) || got.Name != want.Name {
				rt.Fatalf("%v, want %v", got, want)
			}
			in[got.ID]++
		}
	}
	for id, want := range in {
		got, err := h.Of(id, []string{id}, time.Now())
		if err != nil || len(got) != want {
			rt.Fatalf("%s: in %v, %v, want %d groups", id, got, err, want)
		}
	}
}

// TestManyWriters: sixteen at once on one node lose nothing and see no conflict.
func TestManyWriters(t *testing.T) {
	const writers, each = 16, 10
	for _, groups := range []int{1, writers} {
		t.Run(fmt.Sprintf("%d groups", groups), func(t *testing.T) {
			h := newHouse(t, bolt.Config{})
			for g := range groups {
				h.group(fmt.Sprint(g))
			}
			var all sync.WaitGroup
			for w := range writers {
				all.Go(func() {
					group := fmt.Sprint(w % groups)
					for n := range each {
						id := fmt.Sprint(w, "-", n)
						if err := h.Add(t.Context(), admin, group, person(id)); err != nil {
							t.Errorf("add %s: %v", id, err)
						} else if !h.in(id) {
							t.Errorf("%s was added, and is not in", id)
						}
						if n%2 == 0 {
							continue
						}
						if err := h.Remove(t.Context(), admin, group, KindPerson, "corp."+id); err != nil {
							t.Errorf("remove %s: %v", id, err)
						} else if h.in(id) {
							t.Errorf("%s was removed, and is in", id)
						}
					}
				})
			}
			all.Wait()
			list, err := h.List(t.Context(), admin)
			must(t, err)
			members := 0
			for _, g := range list {
				members += len(g.Members)
			}
			if members != writers*each/2 {
				t.Errorf("%d members, want %d", members, writers*each/2)
			}
			h.converged()
			if n := len(h.records()); n != 2*groups+2*writers*each*3/2 {
				t.Errorf("%d records in the trail", n)
			}
		})
	}
}

// TestManyNodes: writers of two nodes on one group. A conflict is an honest answer
// here, and means that nothing was done.
func TestManyNodes(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	nodes := []*Service{h.Service, h.open(h.bolt)}
	var all sync.WaitGroup
	for i, s := range nodes {
		for w := range 4 {
			all.Go(func() {
				for n := range 10 {
					m := person(fmt.Sprint(i, "-", w, "-", n))
					err := s.Add(t.Context(), admin, "team", m)
					for errors.Is(err, ErrConflict) {
						err = s.Add(t.Context(), admin, "team", m)
					}
					if err != nil {
						t.Errorf("add: %v", err)
					}
				}
			})
		}
	}
	all.Wait()
	for _, s := range nodes {
		eventually(t, "all at each node", func() bool { g, err := s.get("team"); return err == nil && len(g.Members) == 80 })
	}
	h.converged()
}
