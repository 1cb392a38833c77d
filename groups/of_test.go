package groups

import (
	"reflect"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store/bolt"
)

// until is a membership that ends.
func until(m Member, end time.Time) Member {
	m.End = end
	return m
}

func from(m Member, begin time.Time) Member {
	m.Begin = begin
	return m
}

func TestOf(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	later, last := soon.Add(time.Hour), soon.Add(2*time.Hour)
	no := time.Time{}
	h.make(Settings{Name: "direct", Clusters: []string{"prod"}}, person("alice"), person("bob"))
	h.group("ending", until(person("alice"), soon))
	h.group("both", until(person("alice"), soon), until(directoryGroup("corp:devs"), later), directoryGroup("lab-ops"))
	h.group("through", directoryGroup("corp:devs"))
	h.group("others", person("bob"), directoryGroup("corp:ops"))
	h.group("empty")
	h.group("begins", until(from(person("dave"), soon), later))
	// zoe is in low, which is in wide until last and in narrow until soon, both in top.
	h.group("low", until(person("zoe"), later))
	h.group("wide", until(local("low"), last))
	h.group("narrow", until(local("low"), soon))
	h.group("top", local("wide"), local("narrow"))
	h.group("above-begins", local("begins"), from(local("low"), soon))
	type m struct {
		group string
		end   time.Time
	}
	for _, tt := range []struct {
		what   string
		sub    string
		groups []string
		now    time.Time
		want   []m
	}{
		{"direct", "corp.alice", nil, soon.Add(-1), []m{{"both", soon}, {"direct", no}, {"ending", soon}}},
		{"ended", "corp.alice", nil, soon, []m{{"direct", no}}},
		{"through directory groups", "corp.x", []string{"corp:devs", "corp:devs2"}, soon, []m{{"both", later}, {"through", no}}},
		{"through directory groups, ended", "corp.x", []string{"corp:devs"}, later, []m{{"through", no}}},
		{"several ways, the last to end counts", "corp.alice", []string{"lab-ops", "corp:devs"}, soon.Add(-1), []m{{"both", no}, {"direct", no}, {"ending", soon}, {"through", no}}},
		{"not begun", "corp.dave", nil, soon.Add(-1), nil},
		{"begun", "corp.dave", nil, soon, []m{{"above-begins", later}, {"begins", later}}},
		{"ended after it had begun", "corp.dave", nil, later, nil},
		{"nested, the earliest on the widest path", "corp.zoe", nil, soon.Add(-1), []m{{"low", later}, {"narrow", soon}, {"top", later}, {"wide", later}}},
		{"nested, one way has ended and one begun", "corp.zoe", nil, soon, []m{{"above-begins", later}, {"low", later}, {"top", later}, {"wide", later}}},
		{"a sub is no group", "corp:devs", []string{"corp.alice"}, soon.Add(-1), nil},
		{"in none", "corp.nobody", []string{"corp:none"}, soon, nil},
		{"nobody", "", nil, soon, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			all, err := h.Of(tt.sub, tt.groups, tt.now)
			must(t, err)
			var got []m
			for _, o := range all {
				if want := o.Group == "direct"; (len(o.Clusters) == 1) != want || o.ID == "" {
					t.Errorf("%+v", o)
				}
				got = append(got, m{o.Group, o.End})
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v\nwant %v", got, tt.want)
			}
		})
	}
}
