package directory

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/internal/testenv"
)

// b64 is an LDIF line for a value that may hold anything.
func b64(attribute, value string) string {
	return attribute + ":: " + base64.StdEncoding.EncodeToString([]byte(value)) + "\n"
}

// oddNames are values that have a meaning in a filter, a DN or LDIF.
var oddNames = []string{
	`back\slash`, "com,ma", "pl+us", `"quoted"`, "<angle>", "semi;colon", "a=b", "#hash", "(paren)", "st*r", "*", `\2a`, `\`, `a\00b`, "%00",
	"inner  spaces", "zo\u00eb", "日本", "a" + strings.Repeat("b", 150), "uid=admin,dc=x", "x)(uid=*", "&|!",
}

func TestOddNames(t *testing.T) {
	s := testenv.StartSlapd(t)
	ldif := testenv.SampleLDIF()
	for i, name := range oddNames {
		dn := "cn=" + ldap.EscapeDN(name) + ",ou=people,dc=example,dc=org"
		ldif += b64("dn", dn) + "objectClass: inetOrgPerson\nsn: x\nuserPassword: pw\n" + b64("cn", name) + b64("uid", name) + "\n" +
			b64("dn", "cn="+ldap.EscapeDN("g-"+name)+",ou=groups,dc=example,dc=org") + "objectClass: groupOfNames\n" + b64("cn", "g-"+name) + b64("member", dn) + "\n" +
			fmt.Sprintf("dn: cn=above %d,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\n", i) + b64("member", "cn="+ldap.EscapeDN("g-"+name)+",ou=groups,dc=example,dc=org") + "\n"
	}
	s.AddLDIF(t, ldif)
	d := open(t, slapdConfig(s))
	for i, name := range oddNames {
		login := name
		if strings.Contains(name, `\`) {
			login = `corp\` + name
		}
		for _, typed := range []string{login, " " + login + "\t", norm.NFD.String(login), strings.ToUpper(login)} {
			p, err := d.Find(t.Context(), typed)
			if err != nil || p.Username != name || p.Name != name {
				t.Errorf("Find(%q): %+v, %v", typed, p, err)
				continue
			}
			if again, err := d.Lookup(t.Context(), p.ID); err != nil || !reflect.DeepEqual(again, p) {
				t.Errorf("Lookup of %q: %+v, %v", name, again, err)
			}
			if err := d.Bind(t.Context(), p.DN, "pw"); err != nil {
				t.Errorf("bind of %q: %v", name, err)
			}
		}
		wantGroups(t, d, login, fmt.Sprintf("corp:above %d", i), "corp:g-"+name)
	}
}

func TestLoginsThatFindNobody(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	d := open(t, slapdConfig(s))
	for what, login := range map[string]string{
		"1 MiB": strings.Repeat("a", 1<<20), "1 MiB of stars": strings.Repeat("*", 1<<20), "1 MiB of combining marks": "a" + strings.Repeat("\u0301", 1<<19),
		"NUL": "ali\x00ce", "NUL at the end": "alice\x00", "not UTF-8": "alice\xff", "right to left": "alice\u202e", "mark": "\u200falice",
		"zero width": "al\u200bice", "lines": "alice\nuid: bob", "empty filter": "()", "all": "*", "half a filter": "alice)(|(uid=*",
	} {
		e, err := d.Explain(t.Context(), login)
		wantErr(t, what, err, ErrNotFound)
		if len(login) > maxLogin && len(e.Queries) != 0 {
			t.Errorf("%s: sent to the server", what)
		}
	}
}

func TestOddEntries(t *testing.T) {
	s := testenv.StartSlapd(t)
	binary := string([]byte{0xff, 0xd8, 0, 1, 2, 0xff})
	s.AddLDIF(t, testenv.SampleLDIF()+
		person("plain", "plain")+
		person("first", "several", "cn: second", "cn: third", "mail: b@example.org", "mail: a@example.org")+
		strings.TrimSuffix(person("photo", "photo"), "\n")+b64("jpegPhoto", binary)+b64("audio", binary)+"\n"+
		strings.TrimSuffix(person("marks", "marks"), "\n")+b64("displayName", "a\u202eb")+b64("description", binary[3:5])+"\n")
	d := open(t, slapdConfig(s))
	for login, want := range map[string][2]string{"plain": {"plain", ""}, "several": {"first", "b@example.org"}, "photo": {"photo", ""}, "marks": {"marks", ""}} {
		if p := mustFind(t, d, login); p.Name != want[0] || p.Email != want[1] || p.Username != login {
			t.Errorf("%s is %+v", login, p)
		}
	}
	photo := open(t, with(slapdConfig(s), func(c *Config) { c.Users.Name, c.Users.Email = "jpegPhoto", "jpegPhoto" }))
	if p := mustFind(t, photo, "photo"); p.Name != "photo" || p.Email != "" {
		t.Errorf("binary for a name: %+v", p)
	}
}

func TestManyGroups(t *testing.T) {
	t.Parallel()
	s := testenv.StartSlapd(t, `limits dn.exact="cn=tabard,dc=example,dc=org" size=unlimited`)
	var b strings.Builder
	b.WriteString(testenv.SampleLDIF())
	for i := range 2000 {
		b.WriteString(groupOfNames(fmt.Sprintf("many-%04d", i), "uid=bob,ou=people"))
	}
	b.WriteString(groupOfNames("deep-01", "uid=dave,ou=people"))
	for i := 2; i <= 50; i++ {
		b.WriteString(groupOfNames(fmt.Sprintf("deep-%02d", i), fmt.Sprintf("cn=deep-%02d,ou=groups", i-1)))
	}
	members := []string{"cn=devs,ou=groups", "cn=many-1999,ou=groups"}
	for i := range 20_000 {
		members = append(members, fmt.Sprintf("uid=m%d,ou=people", i))
	}
	b.WriteString(groupOfNames("everybody", members...))
	s.AddLDIF(t, b.String())
	d := open(t, slapdConfig(s))
	wantGroups(t, d, "alice", "corp:all-devs", "corp:devs", "corp:everybody")
	if got := groupNames(t, d, "bob"); len(got) != 2001 || got[0] != "corp:everybody" || got[2000] != "corp:many-1999" {
		t.Errorf("bob is in %d groups", len(got))
	}
	e := explained(t, d, "bob")
	if g := e.Groups[0]; !reflect.DeepEqual(g.Path, []string{"cn=many-1999,ou=groups,dc=example,dc=org", g.DN}) {
		t.Errorf("path %q", g.Path)
	}
	_, err := d.Groups(unhurried(t), mustFind(t, d, "dave"))
	if err == nil || !strings.Contains(err.Error(), "groups.maxDepth") {
		t.Errorf("50 deep with maxDepth 10: %v", err)
	}
	for depth, fails := range map[int]bool{49: true, 50: false, 100: false} {
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.MaxDepth = depth }))
		groups, err := d.Groups(unhurried(t), mustFind(t, d, "dave"))
		if (err != nil) != fails || !fails && len(groups) != 50 {
			t.Errorf("maxDepth %d: %d groups, %v", depth, len(groups), err)
		}
	}
	if names, err := d.DuplicateNames(unhurried(t)); err != nil || len(names) != 0 {
		t.Errorf("names used twice: %q, %v", names, err)
	}
}

// TestSameLoginInTwoDirectories: two people of one login stay two.
func TestSameLoginInTwoDirectories(t *testing.T) {
	s, other := testenv.StartSlapd(t), testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	other.AddLDIF(t, strings.ReplaceAll(testenv.SampleLDIF(), "userPassword: pw-", "userPassword: other-"))
	corp, lab := slapdConfig(s), with(slapdConfig(other), func(c *Config) { c.Name, c.Users.UsernamePrefix = "lab", "lab-" })
	if err := ValidateAll([]Config{corp, lab}); err != nil {
		t.Fatal(err)
	}
	a, b := open(t, corp, corp, lab), open(t, lab, corp, lab)
	x, y := mustFind(t, a, "alice"), mustFind(t, b, "alice")
	if x.Sub() == y.Sub() || x.Username != "alice" || y.Username != "lab-alice" || x.DN != y.DN {
		t.Errorf("%+v and %+v", x, y)
	}
	for d, passwords := range map[*Directory][2]string{a: {"pw-alice", "other-alice"}, b: {"other-alice", "pw-alice"}} {
		if err := d.Bind(t.Context(), x.DN, passwords[0]); err != nil {
			t.Error(err)
		}
		wantErr(t, "the other's password", d.Bind(t.Context(), x.DN, passwords[1]), ErrInvalidCredentials)
	}
	_, err := a.Lookup(t.Context(), y.ID)
	wantErr(t, "the other's id", err, ErrNotFound)
	_, err = a.Find(t.Context(), `lab\alice`)
	wantErr(t, "the other's login", err, ErrNotFound)
	mustFind(t, b, `lab\alice`)
	wantGroups(t, a, "alice", "corp:all-devs", "corp:devs")
	wantGroups(t, b, "alice", "lab:all-devs", "lab:devs")
}
