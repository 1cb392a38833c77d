package groups

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

func TestOf(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	ending := person("alice")
	ending.End = soon
	endingGroup := directoryGroup("corp:devs")
	endingGroup.End = soon.Add(time.Hour)
	h.group("direct", person("alice"), person("bob"))
	h.group("ending", ending)
	h.group("both", ending, endingGroup, directoryGroup("lab-ops"))
	h.group("through", directoryGroup("corp:devs"))
	h.group("others", person("bob"), directoryGroup("corp:ops"))
	h.group("empty")
	type m struct {
		group, via string
		end        time.Time
	}
	no := time.Time{}
	for _, tt := range []struct {
		what   string
		sub    string
		groups []string
		now    time.Time
		want   []m
	}{
		{"direct", "corp.alice", nil, soon.Add(-1), []m{{"both", "corp.alice", soon}, {"direct", "corp.alice", no}, {"ending", "corp.alice", soon}}},
		{"ended", "corp.alice", nil, soon, []m{{"direct", "corp.alice", no}}},
		{"through groups", "corp.zoe", []string{"corp:devs", "corp:devs2"}, soon, []m{{"both", "corp:devs", soon.Add(time.Hour)}, {"through", "corp:devs", no}}},
		{"through groups, ended", "corp.zoe", []string{"corp:devs"}, soon.Add(time.Hour), []m{{"through", "corp:devs", no}}},
		{"both", "corp.alice", []string{"lab-ops", "corp:devs"}, soon.Add(-1), []m{
			{"both", "corp:devs", soon.Add(time.Hour)}, {"both", "lab-ops", no}, {"both", "corp.alice", soon},
			{"direct", "corp.alice", no}, {"ending", "corp.alice", soon}, {"through", "corp:devs", no},
		}},
		{"a sub is no group", "corp:devs", []string{"corp.alice"}, soon.Add(-1), nil},
		{"in none", "corp.nobody", []string{"corp:none"}, soon, nil},
		{"nobody", "", nil, soon, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			all, err := h.Of(tt.sub, tt.groups, tt.now)
			must(t, err)
			var got []m
			for _, o := range all {
				if !o.End.Equal(o.Via.End) {
					t.Errorf("%v ends otherwise than what it is through", o)
				}
				got = append(got, m{o.Group, o.Via.ID, o.End})
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v\nwant %v", got, tt.want)
			}
		})
	}
}

// TestNoGroup: a membership whose group is not there puts nobody anywhere.
func TestNoGroup(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	revision, err := h.bolt.Txn(t.Context(), nil, []store.Op{{Key: memberKey("team", KindPerson, "corp.alice"), Value: []byte("{}")}})
	must(t, err)
	must(t, h.index.reached(t.Context(), revision))
	if got, err := h.Of("corp.alice", nil, time.Now()); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if all, err := h.List(t.Context(), admin); err != nil || len(all) != 0 {
		t.Errorf("listed: %v, %v", all, err)
	}
}

// BenchmarkOf: one person with 20 groups among 10,000 memberships.
func BenchmarkOf(b *testing.B) {
	h := newHouse(b, bolt.Config{})
	var ops []store.Op
	write := func(key string, v any) {
		value, err := json.Marshal(v)
		must(b, err)
		ops = append(ops, store.Op{Key: key, Value: value})
		if len(ops) == store.MaxOps {
			_, err := h.bolt.Txn(b.Context(), nil, ops)
			must(b, err)
			ops = nil
		}
	}
	const groups, people = 200, 1000 // each person in 10 groups
	for g := range groups {
		write(groupKey(fmt.Sprint("group", g)), record{})
	}
	for p := range people - 1 {
		for g := range 10 {
			m := person(fmt.Sprint(p))
			write(memberKey(fmt.Sprint("group", (p*7+g*20)%groups), m.Kind, m.ID), m)
		}
	}
	for g := range 20 {
		m := person("alice")
		if g%2 == 0 {
			m = directoryGroup("corp:devs")
		}
		write(memberKey(fmt.Sprint("group", g*10), m.Kind, m.ID), m)
	}
	_, err := h.bolt.Txn(b.Context(), nil, append(ops, store.Op{Key: groupKey("last"), Value: []byte("{}")}))
	must(b, err)
	eventually(b, "the last group", func() bool { _, err := h.get("last"); return err == nil })
	now := time.Now()
	dirGroups := []string{"corp:devs", "corp:staff", "corp:a", "corp:b"}
	b.ReportAllocs()
	for b.Loop() {
		if got, err := h.Of("corp.alice", dirGroups, now); err != nil || len(got) != 20 {
			b.Fatal(len(got), err)
		}
	}
}
