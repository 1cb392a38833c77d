package directory

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/tabard-id/tabard/internal/testenv"
)

// tree is all that a directory shows, read without Groups and Members.
type tree struct {
	people  []Person
	visible map[string]bool            // names in tokens
	hidden  map[string]bool            // that no visible group has
	members map[string]map[string]bool // folded DNs, and "uid:…", by folded DN of the group
	sids    map[string]string          // of groups, by folded DN
	names   map[string]string          // in tokens, by folded DN
}

func readTree(t *testing.T, d *Directory) tree {
	t.Helper()
	ctx, cancel := d.budget(t.Context())
	defer cancel()
	s, err := d.schema(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := func(base, filter string, attributes ...string) []*ldap.Entry {
		found, err := d.search(ctx, query{base: base, scope: ldap.ScopeWholeSubtree, filter: filter, attributes: attributes, limit: 20_000})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	tr := tree{visible: map[string]bool{}, hidden: map[string]bool{}, members: map[string]map[string]bool{}, sids: map[string]string{}, names: map[string]string{}}
	r := d.newReader(s)
	for _, e := range all(s.users.BaseDN, s.users.Filter, s.attributes...) {
		if p, err := r.person(ctx, e); err == nil {
			tr.people = append(tr.people, p)
		}
	}
	for _, e := range all(s.groups.BaseDN, s.groups.Filter, s.groups.Name) {
		g, rule := d.group(s, e)
		if tr.names[foldDN(e.DN)] = g.Name; rule == "" {
			tr.visible[g.Name] = true
		} else {
			tr.hidden[g.Name] = true
		}
	}
	for name := range tr.visible {
		delete(tr.hidden, name)
	}
	for _, e := range all(namingContextOf(s), "(|(objectClass=group)(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))", append(s.members, "objectSid")...) {
		key := foldDN(e.DN)
		tr.members[key] = map[string]bool{}
		tr.sids[key], _ = decodeSID(e.GetEqualFoldRawAttributeValue("objectSid"))
		for _, a := range s.members {
			for _, v := range e.GetEqualFoldAttributeValues(a) {
				if tr.members[key][foldDN(v)] = true; strings.EqualFold(a, "memberUid") {
					tr.members[key]["uid:"+v] = true
				}
			}
		}
	}
	return tr
}

func namingContextOf(s *schema) string {
	dn := foldDN(s.groups.BaseDN)
	return dn[strings.Index(dn, "dc="):]
}

// leads says whether path is a way from a group of this name down to p.
func (tr tree) leads(path []string, name string, p Person) bool {
	if len(path) == 0 || tr.names[foldDN(path[0])] != name {
		return false
	}
	for i, dn := range path[1:] {
		if !tr.members[foldDN(path[i])][foldDN(dn)] {
			return false
		}
	}
	last := foldDN(path[len(path)-1])
	in := tr.members[last]
	return in[foldDN(p.DN)] || p.primaryGroup != "" && tr.sids[last] == p.primaryGroup || slices.ContainsFunc(p.uids, func(uid string) bool { return in["uid:"+uid] })
}

// wantAgreement proves that Members and Groups say the same of everybody and every
// group, and returns how many memberships there are, and how many of those nested.
func wantAgreement(t *testing.T, d *Directory) (all, nested int) {
	t.Helper()
	tr := readTree(t, d)
	in := map[string]map[string]bool{}
	for _, p := range tr.people {
		groups, err := d.Groups(unhurried(t), p)
		if err != nil {
			t.Fatalf("groups of %s: %v", p.DN, err)
		}
		in[p.ID] = map[string]bool{}
		for _, g := range groups {
			in[p.ID][g.Name] = true
		}
	}
	for name := range tr.visible {
		m, err := d.Members(unhurried(t), name, 0)
		if err != nil || m.More {
			t.Errorf("members of %q: %v, more %v", name, err, m.More)
			continue
		}
		listed := map[string]bool{}
		for _, member := range m.People {
			p := member.Person
			if !in[p.ID][name] || listed[p.ID] {
				t.Errorf("%s is listed in %q by %q, but Groups has %q", p.DN, name, member.Path, slices.Sorted(maps.Keys(in[p.ID])))
			}
			if !tr.leads(member.Path, name, p) {
				t.Errorf("%q does not lead from %q to %s", member.Path, name, p.DN)
			}
			if len(member.Path) > 1 {
				nested++
			}
			listed[p.ID] = true
		}
		for _, p := range tr.people {
			if in[p.ID][name] && !listed[p.ID] {
				t.Errorf("%s is in %q, but not listed", p.DN, name)
			}
		}
		all += len(m.People)
	}
	for name := range tr.hidden {
		_, err := d.Members(t.Context(), name, 0)
		wantErr(t, "members of the hidden "+name, err, ErrNotFound)
	}
	return all, nested
}

// randomGroups is LDIF of people and groups of every kind with any members: nested,
// circular, named twice, dangling, oddly named.
func randomGroups(r *rand.Rand) string {
	people := []string{"anna", "Berta", "carl (x)", "d*", `e\f`, "g,h", "i+j", "zo\u00eb", "two", "none"}
	ldif, dns := "dn: ou=more,ou=groups,dc=example,dc=org\nobjectClass: organizationalUnit\n\n", []string{}
	for _, name := range people {
		dn := map[bool]string{true: "uid=", false: "cn="}[name == "two"] + ldap.EscapeDN(name) + ",ou=people,dc=example,dc=org"
		dns = append(dns, dn)
		ldif += b64("dn", dn) + "objectClass: inetOrgPerson\nsn: x\n" + b64("cn", name) + b64("uid", name) + map[bool]string{true: "uid: zwei\n"}[name == "two"] + "\n"
	}
	names := []string{"g0", "g1", "g2", "g3", "g4", "g5", "(g6)*", `g7\+,`, "g8", "g9"}
	var groups []string
	for i, name := range append(names, "g0", "g1", "g2") {
		groups = append(groups, "cn="+ldap.EscapeDN(name)+","+map[bool]string{true: "ou=more,"}[i >= len(names)]+"ou=groups,dc=example,dc=org")
	}
	any := append(slices.Clone(dns), groups...)
	for i, dn := range groups {
		name := append(names, names...)[i]
		kind, attribute := "groupOfNames", "member"
		switch i % 5 {
		case 3:
			kind, attribute = "groupOfUniqueNames", "uniqueMember"
		case 4:
			kind = "posixGroup"
		}
		ldif += b64("dn", dn) + "objectClass: " + kind + "\n" + b64("cn", name)
		if kind == "posixGroup" {
			ldif += "gidNumber: 1\nmemberUid: ghost\n"
			for _, j := range r.Perm(4)[:1+r.IntN(3)] {
				ldif += b64("memberUid", []string{"anna", "berta", "d*", "zwei"}[j])
			}
		} else {
			ldif += b64(attribute, "cn=ghost,dc=example,dc=org")
			for _, j := range r.Perm(len(any))[:1+r.IntN(4)] {
				ldif += b64(attribute, strings.Replace(any[j], "ou=groups,dc", "OU=Groups, DC", r.IntN(2)))
			}
		}
		ldif += "\n"
	}
	return ldif
}

func TestMembersAgreeWithGroups(t *testing.T) {
	t.Parallel()
	ways := map[string]func(*Config){
		"all": func(*Config) {}, "direct alone": func(c *Config) { c.Groups.Nested = NestedNone },
		"exclude": func(c *Config) { c.Groups.Exclude = []string{"g1", "*6*"} }, "include": func(c *Config) { c.Groups.Include = []string{"g0", "g2", "g3", "g4", "g5"} },
		"one OU": func(c *Config) { c.Groups.BaseDN = "ou=more,ou=groups,dc=example,dc=org" }, "no people": func(c *Config) { c.Users.BaseDN = "ou=groups,dc=example,dc=org" },
		"filter": func(c *Config) {
			c.Groups.Filter, c.Users.Filter = "(objectClass=groupOfNames)", "(&(objectClass=person)(!(uid=anna)))"
		},
		"unique": func(c *Config) { c.Groups.Member = "uniqueMember" }, "memberUid": func(c *Config) { c.Groups.Member = "memberUid" },
		"rename": func(c *Config) { c.Groups.Rename = []Rename{{"g([3-5])", "new-$1"}} },
	}
	for i, overlay := range []string{"", "overlay memberof", "", "overlay memberof"} {
		s := testenv.StartSlapd(t, overlay)
		ldif := testenv.SampleLDIF() + randomGroups(rand.New(rand.NewPCG(5, uint64(i))))
		s.AddLDIF(t, ldif)
		for name, change := range ways {
			t.Run(fmt.Sprint(i, name), func(t *testing.T) {
				all, nested := wantAgreement(t, open(t, with(slapdConfig(s), func(c *Config) { c.Groups.MaxDepth = 100; change(c) })))
				if t.Logf("%d memberships, %d nested", all, nested); all == 0 && name != "no people" && name != "one OU" || name == "all" && nested < 15 {
					t.Errorf("%d memberships, %d of them nested, prove little:\n%s", all, nested, ldif)
				}
			})
		}
	}
}

func TestMembers(t *testing.T) {
	s := groupTree(t)
	s.AddLDIF(t, person("unusable", "u1", "uid: u2")+groupOfNames("mixed", "uid=alice,ou=people", "cn=unusable,ou=people", "cn=gone,ou=people", "cn=devs,ou=groups", "cn=bad\u202ename,ou=groups", "uid=carol,ou=people"))
	d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Exclude = []string{"circle-1"} }))
	m, err := d.Members(t.Context(), "corp:mixed", 0)
	if err != nil || len(m.People) != 2 || m.More || m.Unreadable != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	in := func(cn string) string { return "cn=" + cn + ",ou=groups,dc=example,dc=org" }
	if want := (Member{mustFind(t, d, "alice"), []string{in("mixed")}}); !reflect.DeepEqual(m.People[0], want) {
		t.Errorf("%+v, want %+v", m.People[0], want)
	}
	m, err = d.Members(t.Context(), "corp:above above many", 0)
	if want := []Member{{mustFind(t, d, "dave"), []string{in("above above many"), in("many-119")}}}; err != nil || !reflect.DeepEqual(m.People, want) {
		t.Errorf("%+v, %v, want %+v", m.People, err, want)
	}
	for limit, more := range map[int]bool{1: true, 2: false, 3: false} {
		if m, err := d.Members(t.Context(), "corp:mixed", limit); err != nil || m.More != more || len(m.People) != min(limit, 2) {
			t.Errorf("limit %d: %+v, %v", limit, m, err)
		}
	}
	for _, name := range []string{"", "corp:", "devs", "lab:devs", "corp:DEVS", "corp:dev*", "corp:nobody", "corp:circle-1", "corp:bad\u202ename", "corp:\xff", "corp:de\x00vs", "corp:" + strings.Repeat("a", 1<<20), "corp:*)(cn=*"} {
		m, err := d.Members(t.Context(), name, 0)
		if wantErr(t, "members of "+name[:min(len(name), 50)], err, ErrNotFound); m.People != nil {
			t.Errorf("%q has %d people", name, len(m.People))
		}
	}
	for depth, fails := range map[int]bool{1: true, 2: false} {
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.MaxDepth = depth }))
		m, err := d.Members(t.Context(), "corp:all-devs", 0)
		if (err != nil) != fails || fails && (errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "groups.maxDepth")) || !fails && len(m.People) != 1 {
			t.Errorf("maxDepth %d: %+v, %v", depth, m, err)
		}
	}
	t.Run("two names made one", func(t *testing.T) {
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Rename = []Rename{{"o(ps)", "devs"}} }))
		if m, err := d.Members(t.Context(), "corp:devs", 0); err == nil || m.People != nil || !strings.Contains(err.Error(), "groups.rename") {
			t.Errorf("%+v, %v", m, err)
		}
		_, err := d.Members(t.Context(), "corp:ops", 0)
		wantErr(t, "a name that was renamed away", err, ErrNotFound)
	})
}

// TestManyMembers has over 1,500 in one group, for whom Active Directory sends ranges
// and every server pages.
func TestManyMembers(t *testing.T) {
	t.Parallel()
	const many = 1700
	s := testenv.StartSlapd(t, `limits dn.exact="cn=tabard,dc=example,dc=org" size=unlimited`)
	var b strings.Builder
	b.WriteString(testenv.SampleLDIF())
	members := []string{"cn=devs,ou=groups"}
	uids := ""
	for i := range many {
		b.WriteString(person(fmt.Sprintf("m%04d", i), fmt.Sprintf("m%04d", i)))
		members = append(members, fmt.Sprintf("cn=m%04d,ou=people", i))
		uids += fmt.Sprintf("memberUid: m%04d\n", i)
	}
	s.AddLDIF(t, b.String()+groupOfNames("everybody", members...)+"dn: cn=posix,ou=groups,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: 1\n"+uids+"\n")
	wantMany(t, open(t, slapdConfig(s)), "corp:everybody", many+1)
	wantMany(t, open(t, slapdConfig(s)), "corp:posix", many)
}

func wantMany(t *testing.T, d *Directory, group string, want int) {
	t.Helper()
	m, err := d.Members(unhurried(t), group, 0)
	if err != nil || len(m.People) != want || m.More || m.Unreadable != 0 {
		t.Fatalf("%d of %d people, more %v, %d unreadable, %v", len(m.People), want, m.More, m.Unreadable, err)
	}
	if !slices.IsSortedFunc(m.People, func(a, b Member) int { return byName(a.Person, b.Person) }) {
		t.Error("not sorted")
	}
	for _, limit := range []int{1, 499, 500, 501, want - 1} {
		if m, err := d.Members(unhurried(t), group, limit); err != nil || len(m.People) != limit || !m.More {
			t.Errorf("limit %d: %d people, more %v, %v", limit, len(m.People), m.More, err)
		}
	}
}
