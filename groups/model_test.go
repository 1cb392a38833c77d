package groups

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/internal/store/bolt"
)

// model is what the groups should be, the plain way: groups by an id of the model's
// own, members by kind and id, those that are groups by the model's id.
type model struct {
	groups map[int]*modelGroup
	last   int
}

type modelGroup struct {
	name    string
	owners  []string // subs
	members map[Ref]Member
}

func (m *model) named(name string) (int, *modelGroup) {
	for id, g := range m.groups {
		if g.name == name {
			return id, g
		}
	}
	return 0, nil
}

func groupRef(id int) Ref { return Ref{Kind: KindGroup, ID: fmt.Sprint(id)} }

// below reports whether a group is another, or beneath it.
func (m *model) below(low, high int) bool {
	if low == high {
		return true
	}
	for id, g := range m.groups {
		if _, in := g.members[groupRef(low)]; in && m.below(id, high) {
			return true
		}
	}
	return false
}

// may is whether an actor may do what needs a right: "see", "members" or "admin".
func (m *model) may(a Actor, id int, right string) bool {
	if a.Operator {
		return true
	}
	g := m.groups[id]
	owns := slices.Contains(g.owners, a.Sub)
	if top, _ := m.named("operators"); top != 0 && right == "members" && m.below(id, top) {
		return false
	}
	return right != "admin" && owns
}

// end is when the last path from a person into a group ends; ok where none counts.
func (m *model) end(who Ref, in int, now time.Time, passed []int) (end time.Time, ok bool) {
	if slices.Contains(passed, in) {
		return end, false
	}
	for ref, member := range m.groups[in].members {
		if !member.CountsAt(now) {
			continue
		}
		e := member.End
		if ref.Kind == KindGroup {
			var id int
			fmt.Sscan(ref.ID, &id)
			below, counts := m.end(who, id, now, append(passed, in))
			if !counts {
				continue
			}
			if e.IsZero() || !below.IsZero() && below.Before(e) {
				e = below
			}
		} else if ref != who {
			continue
		}
		if !ok || e.IsZero() || !end.IsZero() && e.After(end) {
			end = e
		}
		ok = true
	}
	return end, ok
}

// rig is a Service and the model of it.
type rig struct {
	h *house
	m *model
}

var (
	modelNames  = rapid.SampledFrom([]string{"a", "a b", "ab", "operators", "zoë"})
	modelActors = rapid.SampledFrom([]Actor{{Operator: true}, {Operator: true}, {Sub: "corp.1"}, {Sub: "corp.2"}})
	modelPeople = rapid.SampledFrom([]Ref{{Kind: KindPerson, ID: "corp.1"}, {Kind: KindPerson, ID: "corp.2/3"}, {Kind: KindDirectoryGroup, ID: "corp:a/b"}})
	modelNow    = time.Now()
	modelTimes  = rapid.SampledFrom([]time.Time{{}, {}, modelNow.AddDate(1, 0, 0).UTC().Truncate(time.Second), modelNow.AddDate(2, 0, 0).UTC().Truncate(time.Second), modelNow.AddDate(3, 0, 0).UTC().Truncate(time.Second)})
)

// fault makes the next write fail before or after it, or not at all, and reports
// whether what comes is to be in the model in spite of the error.
func (r *rig) fault(rt *rapid.T) string {
	kind := rapid.SampledFrom([]string{"", "", "", "before", "after"}).Draw(rt, "fault")
	r.h.faults.Before(nil)
	r.h.faults.After(nil)
	done := false
	hook := func([]string) error {
		if done {
			return nil
		}
		done = true
		return errDisk
	}
	switch kind {
	case "before":
		r.h.faults.Before(hook)
	case "after":
		r.h.faults.After(hook)
	}
	return kind
}

// judge checks an answer against what was to come, and returns whether the model is to change.
func (r *rig) judge(rt *rapid.T, fault string, err, want error) bool {
	switch {
	case want != nil:
		if !errors.Is(err, want) {
			rt.Fatalf("%v, want %v", err, want)
		}
		return false
	case fault == "" && err != nil, fault == "before" && (!errors.Is(err, errDisk) || errors.Is(err, ErrUnknown)), fault == "after" && !errors.Is(err, ErrUnknown):
		rt.Fatalf("with fault %q: %v", fault, err)
	}
	r.settle(rt)
	return fault != "before"
}

// settle waits until the index has all that is written, also where the answer was
// that it may have been.
func (r *rig) settle(rt *rapid.T) {
	_, revision, err := r.h.bolt.List(r.h.t.Context(), keyPrefix, "", 1)
	if err == nil {
		err = r.h.heard(r.h.t.Context(), revision)
	}
	if err != nil {
		rt.Fatal(err)
	}
}

// wanted is the error for a group that an actor wants to change, by the model.
func (r *rig) wanted(a Actor, id int, right string) error {
	switch {
	case id == 0 || !r.m.may(a, id, "see"):
		return ErrNotFound
	case !r.m.may(a, id, right):
		return ErrForbidden
	}
	return nil
}

func (r *rig) create(rt *rapid.T) {
	a, name := modelActors.Draw(rt, "actor"), modelNames.Draw(rt, "name")
	set := Settings{Name: name}
	var owners []string
	if rapid.Bool().Draw(rt, "owned") {
		set.Owners, owners = []Ref{{Kind: KindPerson, ID: "corp.1"}}, []string{"corp.1"}
	}
	var want error
	id, _ := r.m.named(name)
	if !a.Operator {
		want = ErrForbidden
	} else if id != 0 {
		want = ErrExists
	}
	fault := ""
	if want == nil {
		fault = r.fault(rt)
	}
	_, err := r.h.Create(r.h.t.Context(), a, set)
	if r.judge(rt, fault, err, want) {
		r.m.last++
		r.m.groups[r.m.last] = &modelGroup{name, owners, map[Ref]Member{}}
	}
}

func (r *rig) rename(rt *rapid.T) {
	a, name, to := modelActors.Draw(rt, "actor"), modelNames.Draw(rt, "name"), modelNames.Draw(rt, "to")
	id, g := r.m.named(name)
	right := "admin"
	if name == to {
		right = "members"
	}
	want := r.wanted(a, id, right)
	if other, _ := r.m.named(to); want == nil && other != 0 && other != id {
		want = ErrExists
	}
	fault := ""
	if want == nil && name != to {
		fault = r.fault(rt)
	}
	_, err := r.h.Edit(r.h.t.Context(), a, name, 0, Change{Name: &to})
	if r.judge(rt, fault, err, want) {
		g.name = to
	}
}

func (r *rig) delete(rt *rapid.T) {
	a, name := modelActors.Draw(rt, "actor"), modelNames.Draw(rt, "name")
	id, _ := r.m.named(name)
	want := r.wanted(a, id, "admin")
	fault := ""
	if want == nil {
		fault = r.fault(rt)
	}
	err := r.h.Delete(r.h.t.Context(), a, name, 0, true)
	if fault == "after" && errors.Is(err, ErrUnknown) { // half of it: again
		err = errors.Join(err, r.h.Delete(r.h.t.Context(), a, name, 0, true))
	}
	if !r.judge(rt, fault, err, want) {
		return
	}
	delete(r.m.groups, id)
	for _, g := range r.m.groups {
		delete(g.members, groupRef(id))
	}
}

func (r *rig) add(rt *rapid.T) {
	a, name := modelActors.Draw(rt, "actor"), modelNames.Draw(rt, "name")
	id, g := r.m.named(name)
	want := r.wanted(a, id, "members")
	var m Member
	key := Ref{}
	if rapid.Bool().Draw(rt, "nest") {
		inner := modelNames.Draw(rt, "inner")
		m = local(inner)
		low, _ := r.m.named(inner)
		key = groupRef(low)
		if want == nil {
			_, in := g.members[key]
			if low == 0 || !r.m.may(a, low, "see") || !in && !r.m.may(a, low, "members") || r.m.below(id, low) {
				want = ErrInvalid
			}
		}
	} else {
		key = modelPeople.Draw(rt, "member")
		m = Member{Ref: key}
	}
	m.Begin, m.End = modelTimes.Draw(rt, "begin"), modelTimes.Draw(rt, "end")
	if want == nil && !m.End.IsZero() && !m.End.After(m.Begin) {
		want = ErrInvalid
	}
	fault := ""
	if want == nil {
		fault = r.fault(rt)
	}
	_, err := r.h.Add(r.h.t.Context(), a, name, 0, m)
	if r.judge(rt, fault, err, want) {
		g.members[key] = m
	}
}

func (r *rig) remove(rt *rapid.T) {
	a, name, who := modelActors.Draw(rt, "actor"), modelNames.Draw(rt, "name"), modelPeople.Draw(rt, "member")
	id, g := r.m.named(name)
	want := r.wanted(a, id, "members")
	if want == nil {
		if _, in := g.members[who]; !in {
			want = ErrNotFound
		}
	}
	fault := ""
	if want == nil {
		fault = r.fault(rt)
	}
	_, err := r.h.Remove(r.h.t.Context(), a, name, 0, who.Kind, who.ID)
	if r.judge(rt, fault, err, want) {
		delete(g.members, who)
	}
}

// compare asks for everybody's groups at several times, and for the counts.
func (r *rig) compare(rt *rapid.T) {
	list, _, err := r.h.List(r.h.t.Context(), admin, Filter{}, Page{})
	if err != nil || len(list) != len(r.m.groups) {
		rt.Fatalf("%v, %v, want %v", list, err, r.m.groups)
	}
	for _, g := range list {
		if _, want := r.m.named(g.Name); want == nil || len(want.members) != g.Members {
			rt.Fatalf("%+v, want %+v", g, want)
		}
	}
	for _, who := range []Ref{{Kind: KindPerson, ID: "corp.1"}, {Kind: KindPerson, ID: "corp.2/3"}, {Kind: KindDirectoryGroup, ID: "corp:a/b"}} {
		for years := range 4 {
			now := modelNow.AddDate(years, 0, 1)
			var want []string
			for id, g := range r.m.groups {
				if end, ok := r.m.end(who, id, now, nil); ok {
					want = append(want, fmt.Sprint(g.name, " ", end.UTC()))
				}
			}
			sort.Strings(want)
			sub, groups := who.ID, []string(nil)
			if who.Kind == KindDirectoryGroup {
				sub, groups = "", []string{who.ID}
			}
			all, err := r.h.Of(sub, groups, now)
			var got []string
			for _, e := range all {
				got = append(got, fmt.Sprint(e.Group, " ", e.End.UTC()))
			}
			sort.Strings(got)
			if err != nil || !slices.Equal(got, want) {
				rt.Fatalf("%v at %v: %q, %v, want %q", who, now, got, err, want)
			}
		}
	}
}

// TestModel does random things to a Service and to a model of it, with writes that
// fail, opening the store anew at times, and compares.
func TestModel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tabard.db")
	h := newHouse(t, bolt.Config{Path: path})
	t.Cleanup(func() { h.Service.Close(); _ = h.bolt.Close() })
	rapid.Check(t, func(rt *rapid.T) {
		h.faults.Before(nil)
		h.faults.After(nil)
		for _, g := range h.export() {
			must(t, h.Delete(t.Context(), admin, g.Name, 0, true))
		}
		r := &rig{h, &model{groups: map[int]*modelGroup{}}}
		rt.Repeat(map[string]func(*rapid.T){
			"create": r.create, "rename": r.rename, "delete": r.delete, "add": r.add, "add more": r.add, "remove": r.remove,
			"reopen": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "now") == 0 {
					h.Service.Close()
					h.Service = h.open(h.tap)
				}
			},
			"": r.compare,
		})
		h.sound()
	})
}
