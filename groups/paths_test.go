package groups

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store/bolt"
)

// told is a path as one line.
func told(p Path) string {
	out := p.From().ID
	for _, s := range p.Steps {
		out += " > " + s.Group
	}
	if !p.End.IsZero() {
		out += " until " + p.End.Format(time.TimeOnly)
	}
	return out
}

func tolds(paths []Path) []string {
	out := []string{}
	for _, p := range paths {
		out = append(out, told(p))
	}
	return out
}

func TestWhy(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	soon := time.Date(2999, 1, 1, 1, 0, 0, 0, time.UTC)
	later := soon.Add(time.Hour)
	alice := until(person("alice"), later)
	alice.Reason = "on call"
	h.group("low", alice)
	h.group("narrow", until(local("low"), soon))
	h.make(Settings{Name: "top", Clusters: []string{"prod"}}, local("low"), local("narrow"), directoryGroup("corp:devs"), from(person("alice"), soon))
	h.group("other", person("bob"))
	got, err := h.Why(t.Context(), "corp.alice", []string{"corp:devs", "corp:x"})
	must(t, err)
	want := []string{
		"corp.alice > low until 02:00:00", "corp.alice > low > narrow until 01:00:00",
		"corp:devs > top", "corp.alice > low > top until 02:00:00", "corp.alice > low > narrow > top until 01:00:00", "corp.alice > top",
	}
	if !reflect.DeepEqual(tolds(got), want) {
		t.Fatalf("%q\nwant %q", tolds(got), want)
	}
	last := got[5]
	if !last.Begin.Equal(soon) || !last.End.IsZero() || len(last.Clusters) != 1 || last.Group() != "top" {
		t.Errorf("%+v", last)
	}
	m := got[4].Steps
	if m[0].Member.Reason != "on call" || m[0].Member.Name != "name of alice" || m[0].Member.GrantedByName != "carol" || m[1].Member.Name != "low" || m[1].Member.Kind != KindGroup {
		t.Errorf("%+v", m)
	}
}

// TestWhyMany: of very many paths the best few are found, in no time.
func TestWhyMany(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	end := func(n int) time.Time { return time.Date(2999, 1, 1, n, 0, 0, 0, time.UTC) }
	const layers, wide = 5, 4 // 4⁵ paths
	h.group("top")
	for l := range layers {
		for w := range wide {
			name := fmt.Sprint(l, w)
			h.group(name)
			if l == 0 {
				h.add(name, until(person("alice"), end(w+1)))
				continue
			}
			for v := range wide {
				h.add(name, local(fmt.Sprint(l-1, v)))
			}
		}
	}
	for w := range wide {
		h.add("top", local(fmt.Sprint(layers-1, w)))
	}
	got, err := h.Why(t.Context(), "corp.alice", nil)
	must(t, err)
	got = slices.DeleteFunc(got, func(p Path) bool { return p.Group() != "top" })
	if len(got) != maxPaths {
		t.Fatalf("%d paths", len(got))
	}
	for i, p := range got {
		if !p.End.Equal(end(wide)) || slices.Contains(tolds(got)[:i], told(p)) {
			t.Errorf("%s", told(p))
		}
	}
}

func TestEveryone(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("low", person("alice"), person("bob"))
	h.group("mid", local("low"), directoryGroup("corp:devs"))
	h.group("top", local("mid"), local("low"), person("alice"))
	h.group("above", local("top"), person("eve"))
	got, cut, err := h.Everyone(t.Context(), admin, "top", 0)
	must(t, err)
	var lines []string
	for _, r := range got {
		lines = append(lines, fmt.Sprintf("%s %s: %s", r.Kind, r.Name, strings.Join(tolds(r.Paths), "; ")))
	}
	want := []string{
		"directoryGroup corp:devs: corp:devs > mid > top",
		"person name of alice: corp.alice > top; corp.alice > low > top; corp.alice > low > mid > top",
		"person name of bob: corp.bob > low > top; corp.bob > low > mid > top",
	}
	if cut || !reflect.DeepEqual(lines, want) {
		t.Errorf("cut %t: %q\nwant %q", cut, lines, want)
	}
	for limit, wantCut := range map[int]bool{1: true, 2: true, 3: false} {
		got, cut, err := h.Everyone(t.Context(), admin, "top", limit)
		if err != nil || cut != wantCut || len(got) != limit {
			t.Errorf("at most %d: %v, cut %t, %v", limit, got, cut, err)
		}
	}
}
