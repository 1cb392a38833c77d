package directory

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/tabard-id/tabard/internal/testenv"
)

// explained is Explain's answer, which must not fail.
func explained(t *testing.T, d *Directory, login string) Explanation {
	t.Helper()
	e, err := d.Explain(unhurried(t), login)
	if err != nil {
		t.Fatalf("explain %s: %v", login, err)
	}
	return e
}

// queriesFor is how many searches a login sends, other than those that learn
// what the directory holds.
func queriesFor(t *testing.T, d *Directory, login string) int {
	t.Helper()
	wantQueries(t, d, login) // learns
	m, err := d.Measure(t.Context(), login)
	if err != nil || len(m) != 1 || m[0].Error != "" {
		t.Fatalf("%+v, %v", m, err)
	}
	return m[0].Queries
}

func wantQueries(t *testing.T, d *Directory, login string) {
	t.Helper()
	for _, q := range explained(t, d, login).Queries {
		if q.Doing == "" || q.Filter == "" || q.Took <= 0 || q.Error != "" {
			t.Errorf("query %+v", q)
		}
	}
}

func TestMemberOf(t *testing.T) {
	s := testenv.StartSlapd(t, "overlay memberof")
	s.AddLDIF(t, testenv.SampleLDIF())
	flat := ""
	for i := range 20 {
		flat += groupOfNames(fmt.Sprintf("flat-%02d", i), "uid=dave,ou=people")
	}
	s.AddLDIF(t, flat)
	d := open(t, slapdConfig(s))
	if p := mustFind(t, d, "dave"); len(p.memberOf) != 20 {
		t.Fatalf("memberOf %q", p.memberOf)
	}
	if got := groupNames(t, d, "dave"); len(got) != 20 || got[19] != "corp:flat-19" {
		t.Errorf("dave is in %q", got)
	}
	// One to find dave and one to bind him make three round trips.
	if n := queriesFor(t, d, "dave"); n != 1 {
		t.Errorf("%d searches for 20 flat groups", n)
	}
	wantGroups(t, d, "alice", "corp:all-devs", "corp:devs") // nested: memberOf does not hold all-devs
	s.AddLDIF(t, "dn: cn=posix,ou=groups,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: 1\nmemberUid: dave\n\n")
	d = open(t, slapdConfig(s)) // knows of memberUid
	if got := groupNames(t, d, "dave"); len(got) != 21 || got[20] != "corp:posix" {
		t.Errorf("a group that memberOf does not hold: %q", got)
	}
	hidden := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Exclude = []string{"devs"} }))
	wantGroups(t, hidden, "alice")
	// A wrong memberOf gives nothing.
	bob := mustFind(t, d, "bob")
	bob.memberOf = []string{"cn=ops,ou=groups,dc=example,dc=org"}
	if got, err := d.Groups(t.Context(), bob); err != nil || len(got) != 0 {
		t.Errorf("groups %+v, %v", got, err)
	}
}

func TestPosixGroups(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	s.AddLDIF(t, "dn: ou=posix,dc=example,dc=org\nobjectClass: organizationalUnit\n\n")
	for i := range 20 {
		s.AddLDIF(t, fmt.Sprintf("dn: cn=posix-%02d,ou=posix,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: %d\nmemberUid: bob\nmemberUid: *\n\n", i, i))
	}
	d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.BaseDN = "ou=posix,dc=example,dc=org" }))
	if got := groupNames(t, d, "bob"); len(got) != 20 {
		t.Errorf("%q", got)
	}
	if n := queriesFor(t, d, "bob"); n != 1 {
		t.Errorf("%d searches for groups that cannot be nested", n)
	}
	wantGroups(t, d, "alice")
}

func TestExplain(t *testing.T) {
	s := groupTree(t)
	d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Exclude = []string{"x-*", "dev*"} }))
	e := explained(t, d, "carol")
	if e.Strategy != "walk" || e.Person.Username != "carol" || len(e.Groups) != 3 {
		t.Errorf("%+v", e)
	}
	if want := []Hidden{{"corp:bad\u202ename", "cn=bad\u202ename,ou=groups,dc=example,dc=org", "its name holds control characters"}}; !reflect.DeepEqual(e.Hidden, want) {
		t.Errorf("hidden %+v, want %+v", e.Hidden, want)
	}
	e = explained(t, d, "alice")
	if want := []Hidden{{"corp:devs", "cn=devs,ou=groups,dc=example,dc=org", "groups.exclude[1] dev*"}}; len(e.Groups) != 0 || !reflect.DeepEqual(e.Hidden, want) {
		t.Errorf("hidden %+v, want %+v", e.Hidden, want)
	}
	included := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Include = []string{"o*"} }))
	e = explained(t, included, "alice")
	if len(e.Hidden) != 1 || e.Hidden[0].Rule != "not in groups.include" {
		t.Errorf("hidden %+v", e.Hidden)
	}
	e, err := d.Explain(t.Context(), "nobody")
	if !errors.Is(err, ErrNotFound) || len(e.Queries) != 1 || !strings.Contains(e.Queries[0].Filter, "(uid=nobody)") || e.Queries[0].Entries != 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestRename(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF()+groupOfNames("k8s-ops", "uid=bob,ou=people")+groupOfNames("k8s-dev", "uid=bob,ou=people", "uid=alice,ou=people")+
		groupOfNames("K8S-DEV-2", "uid=dave,ou=people")+groupOfNames("k9s-dev", "uid=dave,ou=people"))
	renames := func(rules ...Rename) *Directory {
		return open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Rename, c.Groups.Exclude = rules, []string{"K8S*"} }))
	}
	d := renames(Rename{"k[89]s-(.*)", "$1"}, Rename{"dev(s)", "no-$1"})
	wantGroups(t, d, "alice", "corp:all-devs", "corp:dev", "corp:no-s")
	wantGroups(t, renames(Rename{"(?i)DEVS", "x"}, Rename{"x", "y"}, Rename{"k8s.*", "em:masters "}, Rename{"all", "none"}), "alice", "corp:all-devs", "corp:em:masters", "corp:x")
	wantGroups(t, renames(Rename{"k8s-dev()", "$1"}), "alice", "corp:all-devs", "corp:devs")
	for what, groups := range map[string]func() ([]Group, error){
		"the name of a group that the person is not in": func() ([]Group, error) { return d.Groups(t.Context(), mustFind(t, d, "bob")) },
		"two groups of the person": func() ([]Group, error) {
			d := renames(Rename{"k8s-.*", "one"})
			return d.Groups(t.Context(), mustFind(t, d, "bob"))
		},
	} {
		if got, err := groups(); err == nil || got != nil || !strings.Contains(err.Error(), "groups.rename") {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	if got, err := d.DuplicateNames(t.Context()); err != nil || !reflect.DeepEqual(got, []string{"corp:dev", "corp:ops"}) {
		t.Errorf("names used twice: %q, %v", got, err)
	}
	for _, bad := range []Rename{{"(", "x"}, {"", "x"}, {"x", " "}} {
		cfg := with(slapdConfig(s), func(c *Config) { c.Groups.Rename = []Rename{bad} })
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "directories[corp].groups.rename[0]") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestNewKindOfGroup: the first group with another attribute for its members is
// seen when the time to look again has come.
func TestNewKindOfGroup(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	d := open(t, slapdConfig(s))
	wantGroups(t, d, "alice", "corp:all-devs", "corp:devs")
	if d.members.until.IsZero() || !reflect.DeepEqual(d.members.known, []string{"member"}) {
		t.Errorf("in use: %q", d.members.known)
	}
	s.AddLDIF(t, "dn: cn=unique,ou=groups,dc=example,dc=org\nobjectClass: groupOfUniqueNames\nuniqueMember: cn=all-devs,ou=groups,dc=example,dc=org\n\n"+
		"dn: cn=posix,ou=groups,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: 1\nmemberUid: alice\n\n")
	if left := time.Until(d.members.until); left > time.Minute {
		t.Errorf("a new kind is seen in %s", left)
	}
	d.members.until = time.Time{}
	wantGroups(t, d, "alice", "corp:all-devs", "corp:devs", "corp:posix", "corp:unique")
}

func TestSIDCache(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	users := ldap.NewEntry("CN=Users", map[string][]string{"objectSid": {string([]byte{1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x21, 2, 0, 0})}})
	sids := []string{"S-1-5-32-545", "S-1-5-32-1"}
	c := &sidCache{}
	want := func(what string, at time.Time, found, missing int) {
		t.Helper()
		f, m := c.get(sids, at)
		if len(f) != found || len(m) != missing {
			t.Errorf("%s: found %v, missing %q", what, f, m)
		}
	}
	want("empty", now, 0, 2)
	c.put(sids, []*ldap.Entry{users}, now)
	want("one is a group", now.Add(sidsKept-1), 1, 0)
	want("old", now.Add(sidsKept), 0, 2)
	for i := range maxSIDs / 1000 {
		var many []string
		for j := range 1000 {
			many = append(many, fmt.Sprintf("S-1-%d-%d", i, j))
		}
		c.put(many, nil, now)
	}
	if len(c.entries) > maxSIDs {
		t.Errorf("holds %d", len(c.entries))
	}
}
