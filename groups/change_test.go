package groups

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

func ptr[T any](v T) *T { return &v }

func TestEdit(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("leads")
	first := h.make(Settings{Name: "team", Description: "was", Clusters: []string{"test"}}, person("alice"))
	h.group("above", local("team"))
	got, err := h.Edit(t.Context(), admin, "team", first.Revision, Change{
		Name: ptr("crew"), Description: ptr("is"), Labels: ptr(map[string]string{"b": "2", "a": "1"}),
		Clusters: ptr([]string{"test", "prod", "test"}), Requestable: ptr(true),
		Owners: ptr([]Ref{{Kind: KindGroup, Name: "leads"}, {KindPerson, "corp.2", "mallory"}, {KindPerson, "corp.2", "mallory"}}),
	})
	must(t, err)
	want := Settings{Name: "crew", Description: "is", Clusters: []string{"prod", "test"}, Labels: map[string]string{"b": "2", "a": "1"}, Requestable: true}
	owners := got.Owners
	got.Owners = nil
	if !reflect.DeepEqual(got.Settings, want) || got.ID != first.ID || got.Revision <= first.Revision || got.Members != 1 {
		t.Errorf("%+v", got)
	}
	if len(owners) != 2 || owners[0].Name != "leads" || owners[0].ID == "" || owners[1].Name != "mallory" {
		t.Errorf("owners: %+v", owners)
	}
	if f := got.Formerly; len(f) != 1 || f[0].Name != "team" || f[0].By != admin.Sub || f[0].ByName != admin.Name || f[0].Until.IsZero() {
		t.Errorf("formerly: %+v", f)
	}
	if _, err := h.Get(t.Context(), admin, "team"); !errors.Is(err, ErrNotFound) {
		t.Errorf("by its former name: %v", err)
	}
	in, err := h.Of("corp.alice", nil, time.Now())
	if err != nil || len(in) != 2 || in[0].Group != "above" || in[1].Group != "crew" || len(in[1].Clusters) != 2 {
		t.Errorf("alice is in %v, %v", in, err)
	}
	h.group("team") // the name is free
	if _, err := h.Edit(t.Context(), admin, "crew", 0, Change{Name: ptr("team")}); !errors.Is(err, ErrExists) {
		t.Errorf("renamed to what is there: %v", err)
	}
	again, err := h.Edit(t.Context(), admin, "crew", 0, Change{Description: ptr("is"), Clusters: ptr([]string{"prod", "test"})})
	if err != nil || again.Revision != got.Revision {
		t.Errorf("nothing changed: %+v, %v", again, err)
	}
	for n := range 2 * maxFormer {
		if _, err := h.Edit(t.Context(), admin, []string{"crew", "gang"}[n%2], 0, Change{Name: ptr([]string{"gang", "crew"}[n%2])}); err != nil {
			t.Fatal(err)
		}
	}
	if g, err := h.Get(t.Context(), admin, "crew"); err != nil || len(g.Formerly) != maxFormer || g.Formerly[0].Name != "gang" {
		t.Errorf("%+v, %v", g.Formerly, err)
	}
	h.sound()
	for _, e := range h.records() {
		if e.Act == "group.edit" && e.On == "team" && e.Outcome == audit.Done {
			want := map[string]string{
				"id": first.ID, "name": "team → crew", "description": "was → is", "clusters": "test → prod, test", "labels": " → a=1, b=2", "requestable": "false → true",
				"owners": " → group " + owners[0].ID + ", person corp.2 (mallory)",
			}
			if !reflect.DeepEqual(e.Detail, want) {
				t.Errorf("in the trail: %q\nwant %q", e.Detail, want)
			}
		}
	}
}

func TestEditInvalid(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	many := map[string]string{}
	var owners []Ref
	for n := range maxOwners + 1 {
		many[fmt.Sprint("a", n)] = ""
		owners = append(owners, Ref{Kind: KindPerson, ID: fmt.Sprint("corp.", n)})
	}
	for what, c := range map[string]Change{
		"name":           {Name: ptr("system:masters")},
		"description":    {Description: ptr(strings.Repeat("x", maxText+1))},
		"cluster":        {Clusters: ptr([]string{"prod", "none"})},
		"label":          {Labels: ptr(map[string]string{"-a": ""})},
		"label's value":  {Labels: ptr(map[string]string{"a": "b c"})},
		"label's length": {Labels: ptr(map[string]string{"a": strings.Repeat("x", 64)})},
		"labels":         {Labels: &many},
		"owners":         {Owners: &owners},
		"owner's kind":   {Owners: ptr([]Ref{{Kind: "robot", ID: "x"}})},
		"owner's id":     {Owners: ptr([]Ref{{Kind: KindPerson}})},
		"owner's prefix": {Owners: ptr([]Ref{{Kind: KindDirectoryGroup, ID: "devs"}})},
		"owner's name":   {Owners: ptr([]Ref{{Kind: KindGroup, Name: "none"}})},
		"owner's escape": {Owners: ptr([]Ref{{KindPerson, "corp.1", "\x1b[2J"}})},
	} {
		if _, err := h.Edit(t.Context(), admin, "team", 0, c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		set := c.on(Settings{Name: "new"})
		if _, err := h.Create(t.Context(), admin, set); !errors.Is(err, ErrInvalid) {
			t.Errorf("create, %s: %v", what, err)
		}
	}
	// What was there when its cluster or owner went may stay.
	h.group("leads")
	_, err := h.Edit(t.Context(), admin, "team", 0, Change{Owners: ptr([]Ref{{Kind: KindGroup, Name: "leads"}}), Clusters: ptr([]string{"test"})})
	must(t, err)
	must(t, h.Delete(t.Context(), admin, "leads", 0, false))
	g, err := h.Get(t.Context(), admin, "team")
	must(t, err)
	h.cfg.Clusters = []string{"prod"}
	other := h.open(h.bolt)
	_, err = other.Edit(t.Context(), admin, "team", 0, Change{Owners: &g.Owners, Clusters: ptr([]string{"test", "prod"}), Description: ptr("new")})
	must(t, err)
}

func TestAddAgainRemove(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("team")
	m := until(person("alice"), time.Now().Add(time.Hour))
	m.Begin, m.Reason = time.Now().Add(-time.Hour), "first"
	m.GrantedBy, m.GrantedByName = "forged", "forged"
	first := h.add("team", m)
	got, err := h.Member(t.Context(), admin, "team", KindPerson, "corp.alice")
	if err != nil || !got.End.Equal(whole(m.End)) || !got.Begin.Equal(whole(m.Begin)) || got.Reason != "first" || got.Name != m.Name || got.GrantedBy != admin.Sub || got.GrantedByName != admin.Name || got.GrantedAt.IsZero() {
		t.Errorf("added %+v, %v", got, err)
	}
	m.Begin, m.End, m.Reason = time.Time{}, time.Time{}, "second"
	second, err := h.Add(t.Context(), Actor{Operator: true, Name: "root"}, "team", first.Revision, m)
	if err != nil || second.Revision <= first.Revision || second.Members != 1 {
		t.Fatalf("added again: %+v, %v", second, err)
	}
	got, err = h.Member(t.Context(), admin, "team", KindPerson, "corp.alice")
	if err != nil || !got.End.IsZero() || !got.Begin.IsZero() || got.Reason != "second" || got.GrantedBy != "operator" || got.GrantedByName != "root" {
		t.Errorf("added again %+v, %v", got, err)
	}
	third, err := h.Remove(t.Context(), admin, "team", second.Revision, m.Kind, m.ID)
	if err != nil || third.Members != 0 || third.Revision <= second.Revision {
		t.Errorf("removed: %+v, %v", third, err)
	}
	for _, id := range []string{"corp.alice", "", strings.Repeat("x", 10<<10)} {
		if _, err := h.Remove(t.Context(), admin, "team", 0, KindPerson, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("removed %.20q: %v", id, err)
		}
	}
	if _, err := h.Remove(t.Context(), admin, "team", 0, "", "corp.alice"); !errors.Is(err, ErrInvalid) {
		t.Errorf("removed no kind: %v", err)
	}
	var trail []string
	for _, e := range h.records() {
		if e.Act != "group.create" && e.Outcome == audit.Done {
			trail = append(trail, fmt.Sprintf("%s %s %s", e.Act, e.Reason, e.Detail["before"]))
		}
	}
	if len(trail) != 3 || trail[0] != "group.member.add first " || !strings.HasSuffix(trail[1], ": first") || trail[2] != "group.member.remove  at once: second" {
		t.Errorf("in the trail: %q", trail)
	}
}

// TestNesting: no group comes to contain itself, nor too many above each other.
func TestNesting(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("0")
	for n := range maxNesting {
		h.group(fmt.Sprint(n+1), local(fmt.Sprint(n)))
	}
	last := fmt.Sprint(maxNesting)
	h.group("side")
	h.group("leaf")
	for _, tt := range []struct {
		in, m string
		ok    bool
	}{
		{"0", "0", false}, {"0", "1", false}, {"0", last, false}, {"5", last, false},
		{"side", last, false}, {"0", "leaf", false}, {"10", "0", true}, {"1", "leaf", true}, {"side", "19", true}, {"5", "4", true}, {"0", "none", false}, {"0", "", false},
	} {
		_, err := h.Add(t.Context(), admin, tt.in, 0, local(tt.m))
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s in %s: %v", tt.m, tt.in, err)
		}
	}
	h.sound()
	// By its id, and under its name of now.
	g, err := h.Edit(t.Context(), admin, "leaf", 0, Change{Name: ptr("twig")})
	must(t, err)
	m, err := h.Member(t.Context(), admin, "1", KindGroup, g.ID)
	if err != nil || m.Name != "twig" {
		t.Errorf("%+v, %v", m, err)
	}
	_, err = h.Remove(t.Context(), admin, "1", 0, KindGroup, g.ID)
	must(t, err)
	h.add("2", Member{Ref: Ref{Kind: KindGroup, ID: g.ID}})
	h.sound()
}

func TestList(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	for n := range 25 {
		set := Settings{Name: fmt.Sprintf("g%02d", n), Description: fmt.Sprint("Number ", n), Labels: map[string]string{"mod": fmt.Sprint(n % 5)}}
		if n%2 == 0 {
			set.Clusters = []string{"prod"}
		}
		if n == 3 {
			set.Owners = []Ref{{Kind: KindPerson, ID: "corp.2"}}
		}
		h.make(set, person(fmt.Sprint(n%3)))
	}
	names := func(a Actor, f Filter) []string {
		var out []string
		for p := (Page{Limit: 4}); ; {
			list, next, err := h.List(t.Context(), a, f, p)
			must(t, err)
			for _, g := range list {
				out = append(out, g.Name)
			}
			if p.Cursor = next; next == "" {
				return out
			}
			if len(list) != p.Limit {
				t.Errorf("a page of %d", len(list))
			}
		}
	}
	if got := names(admin, Filter{}); len(got) != 25 || got[0] != "g00" || got[24] != "g24" {
		t.Errorf("all: %v", got)
	}
	one := person("1").Ref
	for what, tt := range map[string]struct {
		a    Actor
		f    Filter
		want int
	}{
		"query":          {admin, Filter{Query: "nUMBER 1"}, 11},
		"name":           {admin, Filter{Query: "G2"}, 5},
		"label":          {admin, Filter{Labels: map[string]string{"mod": "2"}}, 5},
		"any label":      {admin, Filter{Labels: map[string]string{"mod": ""}}, 25},
		"no such label":  {admin, Filter{Labels: map[string]string{"none": ""}}, 0},
		"cluster":        {admin, Filter{Cluster: "test"}, 12},
		"owner":          {admin, Filter{Owner: "corp.2"}, 1},
		"member":         {admin, Filter{Member: &one}, 8},
		"mine, as admin": {admin, Filter{Mine: true}, 0},
		"mine":           {stranger, Filter{Mine: true}, 1},
		"as owner":       {stranger, Filter{}, 1},
		"as member":      {Actor{Sub: "corp.1", Groups: []string{"g01", "g04"}}, Filter{Member: &one}, 2},
	} {
		if got := names(tt.a, tt.f); len(got) != tt.want {
			t.Errorf("%s: %v, want %d", what, got, tt.want)
		}
	}
	for _, p := range []Page{{Limit: -1}, {Limit: 1001}, {Cursor: "?"}} {
		if _, _, err := h.List(t.Context(), admin, Filter{}, p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", p, err)
		}
		if _, _, err := h.Members(t.Context(), admin, "g00", MemberFilter{}, p); !errors.Is(err, ErrInvalid) {
			t.Errorf("members, %+v: %v", p, err)
		}
	}
}

// TestMembers: pages stay good while members come and go.
func TestMembers(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	h.group("inner")
	h.group("team", local("inner"), directoryGroup("corp:devs"))
	for n := range 10 {
		h.add("team", person(fmt.Sprint(n)))
	}
	page := func(f MemberFilter, p Page) ([]string, string) {
		list, next, err := h.Members(t.Context(), admin, "team", f, p)
		must(t, err)
		var out []string
		for _, m := range list {
			out = append(out, m.Name)
		}
		return out, next
	}
	first, next := page(MemberFilter{}, Page{Limit: 4})
	if fmt.Sprint(first) != "[corp:devs inner name of 0 name of 1]" {
		t.Errorf("%q", first)
	}
	_, err := h.Remove(t.Context(), admin, "team", 0, KindPerson, "corp.1")
	must(t, err)
	second, next := page(MemberFilter{}, Page{Limit: 4, Cursor: next})
	if fmt.Sprint(second) != "[name of 2 name of 3 name of 4 name of 5]" {
		t.Errorf("%q", second)
	}
	third, next := page(MemberFilter{}, Page{Limit: 4, Cursor: next})
	if len(third) != 4 || next != "" {
		t.Errorf("%q, then %q", third, next)
	}
	if got, _ := page(MemberFilter{Kind: KindPerson}, Page{}); len(got) != 9 {
		t.Errorf("%q", got)
	}
	if got, next := page(MemberFilter{Query: "OF 9"}, Page{Limit: 1}); len(got) != 1 || next != "" {
		t.Errorf("%q, %q", got, next)
	}
}

func TestLookalikes(t *testing.T) {
	h := newHouse(t, bolt.Config{})
	for _, name := range []string{"platform", "admin-team", "команда", "web", "rooms", "node-1", "node-2", "zoë"} {
		h.group(name)
	}
	for name, want := range map[string]string{
		"Platform": "platform", "p1atform": "platform", "рlаtfоrm": "platform", "platforrn": "platform", "PLATF0RM": "platform", "ｐlatform": "platform", "𝐩latform": "platform", "pļatform": "platform",
		"admin_team": "admin-team", "admin team": "admin-team", "Admin.Team": "admin-team", "vveb": "web", "roorns": "rooms", "КОМАНДА": "команда", "node-l": "node-1", "zoe": "zoë",
		"platform": "", "platform2": "", "node-3": "", "other": "", "": "", strings.Repeat("x", 10<<10): "",
	} {
		if got := strings.Join(h.Lookalikes(name), ", "); got != want {
			t.Errorf("%.20q: %q, want %q", name, got, want)
		}
	}
}

func FuzzLookalikes(f *testing.F) {
	for _, tt := range names {
		f.Add(tt.name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		looks := skeleton(name)
		if again := skeleton(strings.ToUpper(strings.ToLower(name))); again != skeleton(strings.ToLower(name)) && isASCII(name) {
			t.Errorf("%q: %q in lower case, %q in upper", name, skeleton(strings.ToLower(name)), again)
		}
		if len(looks) > 20*len(name)+20 {
			t.Errorf("%q: %d bytes", name, len(looks))
		}
	})
}

func isASCII(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > 127 }) }
