package groups

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// lines are changes for people, one a line.
func lines(all []Applied) []string {
	out := []string{}
	for _, a := range all {
		line := a.Act + " " + a.Group
		if a.Member != nil {
			line += " " + a.Member.Name
		}
		for _, field := range slices.Sorted(maps.Keys(a.Diff)) {
			line += " " + field + ": " + a.Diff[field]
		}
		out = append(out, line)
	}
	return out
}

func (h *house) apply(files []File, o ApplyOptions) []string {
	h.t.Helper()
	got, err := h.Apply(h.t.Context(), admin, files, o)
	must(h.t, err)
	return lines(got)
}

func (h *house) export() []File {
	h.t.Helper()
	var out []File
	must(h.t, h.Export(h.t.Context(), admin, Filter{}, func(f File) error { out = append(out, f); return nil }))
	return out
}

func TestApply(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	end := time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC)
	h.make(Settings{Name: "old", Labels: map[string]string{"from": "git"}}, person("alice"))
	h.make(Settings{Name: "kept", Description: "was"}, person("alice"), person("bob"), local("old"))
	h.make(Settings{Name: "alone"}, person("alice"))
	reason := person("bob")
	reason.Reason, reason.End = "on call", end
	files := []File{
		{Settings{Name: "new", Owners: []Ref{{Kind: KindGroup, Name: "newer"}}, Clusters: []string{"prod"}}, []Member{local("newer"), person("zoe")}},
		{Settings{Name: "newer", Labels: map[string]string{"from": "git"}}, []Member{directoryGroup("corp:devs")}},
		{Settings{Name: "kept", Description: "is"}, []Member{reason, local("new")}},
		{Settings{Name: "alone"}, nil},
	}
	want := []string{
		"create new", "create newer", "edit kept description: was → is",
		"remove kept old", "remove kept name of alice",
		"add new name of zoe", "add newer corp:devs", "change kept name of bob end: – → 2999-01-01T00:00:00Z reason:  → on call",
		"add new newer", "add kept new", "delete old",
	}
	o := ApplyOptions{Prune: map[string]string{"from": "git"}, DryRun: true}
	before := h.inStore()
	if got := h.apply(files, o); !reflect.DeepEqual(got, want) {
		t.Fatalf("dry run:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !maps.Equal(before, h.inStore()) {
		t.Error("the dry run changed the store")
	}
	o.DryRun = false
	if got := h.apply(files, o); !reflect.DeepEqual(got, want) {
		t.Fatalf("%q\nwant %q", got, want)
	}
	if again := h.apply(files, o); len(again) != 0 {
		t.Errorf("again: %q", again)
	}
	exported := h.export()
	if again := h.apply(exported, o); len(again) != 0 || len(exported) != 4 {
		t.Errorf("what was exported changes: %q", again)
	}
	in, err := h.Of("corp.x", []string{"corp:devs"}, time.Now())
	if err != nil || len(in) != 3 {
		t.Errorf("corp:devs: %v, %v", in, err)
	}
	acts := map[string]int{}
	for _, e := range h.records() {
		acts[e.Act+" "+e.Outcome]++
	}
	for act, n := range map[string]int{"group.create": 3 + 2, "group.edit": 1, "group.member.remove": 2, "group.member.add": 5 + 5, "group.delete": 1} {
		if acts[act+" intended"] != n || acts[act+" done"] != n {
			t.Errorf("%s: %v in the trail, want %d", act, acts, n)
		}
	}
	h.sound()
}

// TestApplyRefused: whatever is wrong anywhere, nothing is written.
func TestApplyRefused(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.make(Settings{Name: "team", Owners: []Ref{{Kind: KindPerson, ID: "corp.2"}}}, person("alice"))
	h.make(Settings{Name: "inner", Labels: map[string]string{"x": "y"}})
	h.group("outer", local("inner"))
	file := func(name string, members ...Member) File {
		return File{Settings{Name: name}, append([]Member{}, members...)}
	}
	owned := Settings{Name: "team", Owners: []Ref{{Kind: KindPerson, ID: "corp.2"}}}
	deep := []File{file("0", person("a"))}
	for n := range maxNesting + 1 {
		deep = append(deep, file(fmt.Sprint(n+1), local(fmt.Sprint(n))))
	}
	for _, tt := range []struct {
		what  string
		who   Actor
		files []File
		o     ApplyOptions
		want  error
	}{
		{"twice", admin, []File{file("a"), file("a")}, ApplyOptions{}, ErrInvalid},
		{"a bad name", admin, []File{file("a"), file("system:masters")}, ApplyOptions{}, ErrInvalid},
		{"a bad cluster", admin, []File{{Settings{Name: "a", Clusters: []string{"none"}}, nil}}, ApplyOptions{}, ErrInvalid},
		{"an unknown owner", admin, []File{{Settings{Name: "a", Owners: []Ref{{Kind: KindGroup, Name: "none"}}}, nil}}, ApplyOptions{}, ErrInvalid},
		{"an unknown member", admin, []File{file("a", local("none"))}, ApplyOptions{}, ErrInvalid},
		{"a member twice", admin, []File{file("a", person("b"), person("b"))}, ApplyOptions{}, ErrInvalid},
		{"a bad member", admin, []File{file("a", directoryGroup("none:b"))}, ApplyOptions{}, ErrInvalid},
		{"an end that is past", admin, []File{file("a", until(person("b"), time.Unix(1, 0)))}, ApplyOptions{}, ErrInvalid},
		{"a cycle", admin, []File{file("a", local("b")), file("b", local("c")), file("c", local("a"))}, ApplyOptions{}, ErrInvalid},
		{"itself", admin, []File{file("a", local("a"))}, ApplyOptions{}, ErrInvalid},
		{"a cycle with what is there", admin, []File{file("inner", local("outer"))}, ApplyOptions{}, ErrInvalid},
		{"too deep", admin, deep, ApplyOptions{}, ErrInvalid},
		{"pruning what another keeps", admin, nil, ApplyOptions{Prune: map[string]string{"x": ""}}, nil},
		{"pruning as owner", stranger, nil, ApplyOptions{Prune: map[string]string{"x": ""}}, ErrForbidden},
		{"creating as owner", stranger, []File{file("new")}, ApplyOptions{}, ErrForbidden},
		{"what they do not see, as owner", stranger, []File{file("outer")}, ApplyOptions{}, ErrForbidden},
		{"a label as owner", stranger, []File{{Settings{Name: "team", Owners: owned.Owners, Labels: map[string]string{"a": "b"}}, nil}}, ApplyOptions{}, ErrForbidden},
		{"a group that they do not see, as owner", stranger, []File{{owned, []Member{local("inner")}}}, ApplyOptions{}, ErrInvalid},
	} {
		before := h.inStore()
		_, err := h.Apply(t.Context(), tt.who, tt.files, tt.o)
		var contained *ContainedError
		if tt.want == nil && !errors.As(err, &contained) || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.want)
		}
		if !maps.Equal(before, h.inStore()) {
			t.Errorf("%s: the store changed", tt.what)
		}
	}
	if got, err := h.Apply(t.Context(), stranger, []File{{owned, []Member{person("bob")}}}, ApplyOptions{}); err != nil || len(got) != 2 {
		t.Errorf("members as owner: %v, %v", got, err)
	}
	// What an owner exports can be applied, also where they do not see all in it.
	h.group("hidden")
	_, err := h.Edit(t.Context(), admin, "team", 0, Change{Owners: &[]Ref{{Kind: KindPerson, ID: "corp.2"}, {Kind: KindGroup, Name: "hidden"}}})
	must(t, err)
	h.add("team", local("inner"))
	var exported []File
	must(t, h.Export(t.Context(), stranger, Filter{}, func(f File) error { exported = append(exported, f); return nil }))
	if got, err := h.Apply(t.Context(), stranger, exported, ApplyOptions{}); err != nil || len(got) != 0 || len(exported) != 1 || len(exported[0].Members) != 2 {
		t.Errorf("what an owner exported: %v, %v, %v", exported, got, err)
	}
	exported[0].Members[0].Reason = "other"
	if _, err := h.Apply(t.Context(), stranger, exported, ApplyOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a change of what they do not see: %v", err)
	}
	for _, e := range h.records() {
		if e.Act == "group.apply" && (e.Outcome != audit.Denied || e.Reason == "") {
			t.Errorf("in the trail: %+v", e)
		}
	}
}

func sized(env string, n int) int {
	if m, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return m
	}
	return n
}

// manyFiles are n groups with ten persons each, each but the first in another.
func manyFiles(n int) []File {
	files := make([]File, n)
	for g := range files {
		files[g] = File{Settings{Name: fmt.Sprintf("team-%05d", g), Labels: map[string]string{"from": "git"}}, []Member{}}
		for m := range 10 {
			files[g].Members = append(files[g].Members, person(fmt.Sprint(g*7+m)))
		}
		if in := g/10 - 1; in >= 0 {
			files[in].Members[g%10] = local(files[g].Name)
		}
	}
	return files
}

// TestApplyCutOff: whichever write or record fails, applying again ends with what the
// files say, and nothing is ever half there.
func TestApplyCutOff(t *testing.T) {
	files := manyFiles(60)
	for at := 1; at < 100; at += 3 {
		h := newHouse(t, bolt.Config{})
		h.group("team-00000", person("old"))
		var n atomic.Int64
		hook := func([]string) error {
			if n.Add(1) == int64(at) {
				return errDisk
			}
			return nil
		}
		switch at % 2 {
		case 0:
			h.faults.Before(hook)
		case 1:
			h.faults.After(hook)
		}
		done, err := h.Apply(t.Context(), admin, files, ApplyOptions{})
		failed := n.Load() >= int64(at)
		if (err != nil) != failed || failed && errors.Is(err, ErrUnknown) != (at%2 == 1 || len(done) > 0) {
			t.Fatalf("write %d: %v", at, err)
		}
		h.sound()
		_, err = h.Apply(t.Context(), admin, files, ApplyOptions{})
		must(t, err)
		if again := h.apply(files, ApplyOptions{DryRun: true}); len(again) > 0 {
			t.Fatalf("write %d: left to do: %q", at, again)
		}
		h.sound()
		if !failed {
			return
		}
	}
	t.Error("it never got through without the fault")
}

// BenchmarkApply applies files, and the same again.
func BenchmarkApply(b *testing.B) {
	files := manyFiles(sized("TABARD_BENCH_MEMBERSHIPS", 10_000) / 10)
	for b.Loop() {
		h := newHouse(b, bolt.Config{})
		began := time.Now()
		if _, err := h.Apply(b.Context(), admin, files, ApplyOptions{}); err != nil {
			b.Fatal(err)
		}
		first := time.Since(began)
		again, err := h.Apply(b.Context(), admin, files, ApplyOptions{})
		if err != nil || len(again) > 0 {
			b.Fatal(again, err)
		}
		b.ReportMetric(first.Seconds(), "first-s")
		b.ReportMetric((time.Since(began) - first).Seconds(), "again-s")
	}
}
