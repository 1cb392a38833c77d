package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/internal/testenv"
)

// found is the usernames that Search finds.
func found(t *testing.T, d *Directory, typed string, limit int) []string {
	t.Helper()
	people, err := d.Search(t.Context(), typed, limit)
	if err != nil {
		t.Fatalf("search for %q: %v", typed, err)
	}
	names := []string{}
	for _, p := range people {
		names = append(names, p.Username)
	}
	return names
}

func TestSearch(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF()+
		"dn: cn=lock,dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\npwdAttribute: userPassword\npwdLockoutDuration: 60\n\n"+
		person("locked", "alocked", "pwdAccountLockedTime: 000001010000Z")+person("was locked", "waslocked", "pwdPolicySubentry: cn=lock,dc=example,dc=org", "pwdAccountLockedTime: 20200101000000Z")+
		person("x", "system:alice")+person("Alice Two", "several", "uid: names")+person("two", "aleph", "mail: zz@example.org")+
		person("st*r", "st*r")+person("star", "star")+person("par(en", "par(en")+person(`sl\ash`, "sl"))
	d := open(t, slapdConfig(s))
	for typed, want := range map[string][]string{
		"ali": {"alice"}, " ALI\t": {"alice"}, "Alice A": {"alice"}, "alice@": {"alice"}, "al": {"alice", "alocked", "aleph"}, "zz": {"aleph"}, `corp\ali`: {"alice"}, "two": {"aleph"},
		"jör": {"jörg (admin)"}, norm.NFD.String("jör"): {"jörg (admin)"}, "jörg (": {"jörg (admin)"}, "Jörg J": {"jörg (admin)"}, "joerg@": {"jörg (admin)"},
		"st": {"st*r", "star"}, "st*": {"st*r"}, "par(": {"par(en"}, `corp\sl\a`: {"sl"}, "was": {"waslocked"},
		"": {}, "a": {}, " a ": {}, `corp\a`: {}, `corp\`: {}, `lab\alice`: {}, "**": {}, "*a": {}, "a*": {}, "lice": {}, "tabard": {}, "devs": {}, "system:": {}, "several": {},
		"al)(uid=*": {}, "al\x00": {}, "\xff\xff": {}, `\2a`: {}, strings.Repeat("a", 1<<20): {},
	} {
		if got := found(t, d, typed, 0); !slices.Equal(got, want) {
			t.Errorf("%q finds %q, want %q", typed[:min(len(typed), 50)], got, want)
		}
	}
	for typed, want := range map[string]State{"alocked": Locked, "waslocked": Active, "alice": Active} {
		people, err := d.Search(t.Context(), typed, 0)
		if p := mustFind(t, d, typed); err != nil || len(people) != 1 || people[0].State != want || people[0].State != p.State || people[0].Sub() != p.Sub() || people[0].Name != p.Name || people[0].DN != p.DN {
			t.Errorf("%s is %+v, %v, but to Find %+v", typed, people, err, p)
		}
	}
	other := open(t, with(slapdConfig(s), func(c *Config) {
		c.Users = Users{Login: []string{"cn"}, Filter: "(!(uid=bob))", UsernamePrefix: "lab-", Username: "mail", UsernameSuffix: "@example.org"}
	}))
	for typed, want := range map[string][]string{"alice": {"lab-alice@example.org"}, "bob": {}, "star": {}, "lab-alice": {}} {
		if got := found(t, other, typed, 0); !slices.Equal(got, want) {
			t.Errorf("%q finds %q, want %q", typed, got, want)
		}
	}
}

// TestSearchAmongMany: what the server cuts off is an answer, and who is called just
// what was typed is in it.
func TestSearchAmongMany(t *testing.T) {
	for _, config := range []string{"", "sizelimit 10"} {
		s := testenv.StartSlapd(t, config)
		var b strings.Builder
		b.WriteString(testenv.SampleLDIF())
		for i := range 600 {
			b.WriteString(person(fmt.Sprintf("Name %03d", i), fmt.Sprintf("aa%03d", i)))
		}
		s.AddLDIF(t, b.String()+person("Zoe", "aa")+person("Nam", "zz"))
		d := open(t, slapdConfig(s))
		for limit, want := range map[int]int{0: 20, -1: 20, 1: 1, 5: 5, 20: 20, 1000: 20} {
			got := found(t, d, "aa", limit)
			if most := min(want, 11); len(got) < most || len(got) > want || got[len(got)-1] != "aa" {
				t.Errorf("limit %d: %q", limit, got)
			}
		}
		if got := found(t, d, "nam", 5); len(got) != 5 {
			t.Errorf("%q", got)
		}
		if got := found(t, d, "aa12", 3); !slices.Equal(got, []string{"aa120", "aa121", "aa122"}) {
			t.Errorf("%q", got)
		}
	}
}

// TestBrowsingLeavesSignIns: whoever looks around waits for others who do, and when
// that goes wrong sign-ins keep their connections and the host its good name.
func TestBrowsingLeavesSignIns(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	proxy := testenv.StartLDAPProxy(t, s.URL, "", nil)
	d := open(t, with(slapdConfig(s), func(c *Config) {
		c.URLs, c.CAFile, c.InsecurePlaintext = []string{"ldap://" + proxy.Address}, "", true
	}))
	search := func() error { _, err := d.Search(t.Context(), "ali", 0); return err }
	members := func() error { _, err := d.Members(t.Context(), "corp:devs", 0); return err }
	for what, c := range map[string]struct {
		pool *pool
		call func() error
	}{"search": {d.finds, search}, "members": {d.lists, members}} {
		if err := c.call(); err != nil || len(c.pool.free) != 1 {
			t.Fatalf("%s: %v, %d connections", what, err, len(c.pool.free))
		}
		for range maxBrowsers {
			if err := c.pool.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		err := c.call()
		wantErr(t, what+" while others do", err, ErrBusy)
		wantErr(t, what+" while others do", err, ErrUnavailable)
		mustFind(t, d, "alice")
		for range maxBrowsers {
			c.pool.release()
		}
	}
	signIns := d.searches.free[0]
	d.searchTime = searchTime
	proxy.Fail(testenv.LDAPFault{Kind: testenv.BlackHole})
	err := search()
	wantErr(t, "a slow search", err, ErrUnavailable)
	wantErr(t, "a slow search", err, errSlow)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = d.Members(ctx, "corp:devs", 0)
	wantErr(t, "a slow list", err, ErrUnavailable)
	typedOn, stop := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, stop)
	if people, err := d.Search(typedOn, "ali", 0); err == nil {
		t.Errorf("somebody who typed on got %+v", people)
	}
	if !d.known[0].healthy() || len(d.searches.free) != 1 || d.searches.free[0] != signIns || signIns.IsClosing() {
		t.Error("sign-ins lost their connection, or the host its good name")
	}
	proxy.Fail(testenv.LDAPFault{})
	patient(d)
	if err := errors.Join(search(), members()); err != nil {
		t.Error(err)
	}
	s.Stop()
	for what, err := range map[string]error{"search": search(), "members": members()} {
		if wantErr(t, what, err, ErrUnavailable); errors.Is(err, ErrBusy) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzTypedFilter: whatever is typed, the filter compiles to the same structure and
// asks for values that begin with exactly that; an asterisk stands for itself.
func FuzzTypedFilter(f *testing.F) {
	for _, seed := range []string{"jörg", "jörg (admin)", "*", "**", "a*b", "*)(uid=*", `a\b`, `\2a`, `\`, "\x00", "a\x00b", "\xff", "=x", "a=b:=c", "ü)(|(x=*", "()"} {
		f.Add(seed)
	}
	s := &schema{users: Users{Login: []string{"uid", "mail"}, Email: "Mail"}, names: []string{"displayName", "cn"}}
	attributes := []string{"uid", "mail", "displayName", "cn"}
	f.Fuzz(func(t *testing.T, typed string) {
		if typed == "" {
			return // nothing is searched for
		}
		packet, err := ldap.CompileFilter("(&(objectClass=person)" + typedFilter(s, typed) + ")")
		if err != nil {
			t.Fatal(err)
		}
		if len(packet.Children) != 2 || packet.Tag != ldap.FilterAnd || packet.Children[1].Tag != ldap.FilterOr || len(packet.Children[1].Children) != len(attributes) {
			t.Fatalf("%q changes the structure", typed)
		}
		for i, attribute := range attributes {
			term := packet.Children[1].Children[i]
			if term.Tag != ldap.FilterSubstrings || term.Children[0].Data.String() != attribute || len(term.Children[1].Children) != 1 {
				t.Fatalf("%q becomes another filter", typed)
			}
			if part := term.Children[1].Children[0]; part.Tag != ldap.FilterSubstringsInitial || part.Data.String() != typed {
				t.Fatalf("%q becomes %q", typed, part.Data.String())
			}
		}
	})
}
