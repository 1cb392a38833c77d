package directory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"go.uber.org/goleak"
	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

// slapdConfig is the shortest configuration that reads a Slapd.
func slapdConfig(s *testenv.Slapd) Config {
	return Config{Name: "corp", Type: TypeLDAP, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.BindDN, BindPassword: s.BindPassword}
}

// open has more time than people do: a machine may be slow.
func open(t *testing.T, cfg Config, all ...Config) *Directory {
	t.Helper()
	d, err := New(cfg, all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return patient(d)
}

// with returns cfg after change.
func with(cfg Config, change func(*Config)) Config {
	change(&cfg)
	return cfg
}

// unhurried is for what takes a slow machine longer than a sign-in may.
func unhurried(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// patient gives d's calls more time than people have, before it is used, and returns it.
func patient(d *Directory) *Directory {
	const long = 2 * time.Minute
	d.callTime, d.searchTime, d.membersTime, d.hostTime, d.slowSearch = long, long, long, long, long
	return d
}

func mustFind(t *testing.T, d *Directory, login string) Person {
	t.Helper()
	p, err := d.Find(unhurried(t), login)
	if err != nil {
		t.Fatalf("Find(%q): %v", login, err)
	}
	return p
}

func groupNames(t *testing.T, d *Directory, login string) []string {
	t.Helper()
	groups, err := d.Groups(unhurried(t), mustFind(t, d, login))
	if err != nil {
		t.Fatalf("groups of %s: %v", login, err)
	}
	names := []string{}
	for _, g := range groups {
		names = append(names, g.Name)
	}
	return names
}

func wantGroups(t *testing.T, d *Directory, login string, want ...string) {
	t.Helper()
	if got := groupNames(t, d, login); !reflect.DeepEqual(got, append([]string{}, want...)) {
		t.Errorf("groups of %s: %q, want %q", login, got, want)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// person is an inetOrgPerson of ou=people. Its RDN is cn, so that uid may be
// anything.
func person(cn, uid string, extra ...string) string {
	lines := append([]string{"dn: cn=" + ldap.EscapeDN(cn) + ",ou=people,dc=example,dc=org", "objectClass: inetOrgPerson", "cn: " + cn, "sn: x", "uid: " + uid, "userPassword: pw"}, extra...)
	return strings.Join(lines, "\n") + "\n\n"
}

func groupOfNames(cn string, members ...string) string {
	ldif := "dn: cn=" + ldap.EscapeDN(cn) + ",ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\n"
	for _, m := range members {
		ldif += "member: " + m + ",dc=example,dc=org\n"
	}
	return ldif + "\n"
}

func TestConnections(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	otherCA := testenv.NewCA(t, t.TempDir()).File
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(s.BindPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		fails  string // in the error; works when empty
	}{
		"LDAPS":         {change: func(*Config) {}},
		"password file": {change: func(c *Config) { c.BindPassword, c.BindPasswordFile = "", password }},
		"StartTLS":      {change: func(c *Config) { c.URLs, c.StartTLS = []string{s.URL}, true }},
		"plaintext":     {change: func(c *Config) { c.URLs, c.InsecurePlaintext = []string{s.URL}, true }},
		"LDAPS, system CAs": {
			change: func(c *Config) { c.CAFile = "" }, fails: "certificate signed by unknown authority",
		},
		"LDAPS, another CA": {
			change: func(c *Config) { c.CAFile = otherCA }, fails: "certificate signed by unknown authority",
		},
		"StartTLS, another CA": {
			change: func(c *Config) { c.URLs, c.StartTLS, c.CAFile = []string{s.URL}, true, otherCA }, fails: "certificate signed by unknown authority",
		},
		"LDAPS, another name": {
			change: func(c *Config) { c.URLs = []string{strings.Replace(s.TLSURL, "127.0.0.1", "127.0.0.2", 1)} }, fails: "127.0.0.2",
		},
		"TLS against the plain port": {
			change: func(c *Config) { c.URLs = []string{strings.Replace(s.URL, "ldap:", "ldaps:", 1)} }, fails: "TLS",
		},
		"wrong bind password": {
			change: func(c *Config) { c.BindPassword = "secret-wrong" }, fails: "bindDN",
		},
		"unknown bindDN": {
			change: func(c *Config) { c.BindDN = "cn=nobody,dc=example,dc=org" }, fails: "bindDN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, with(slapdConfig(s), tc.change))
			pinged := d.Ping(t.Context())
			_, err := d.Find(t.Context(), "alice")
			if tc.fails == "" && (pinged != nil || err != nil) {
				t.Fatalf("Ping: %v, Find: %v", pinged, err)
			}
			if tc.fails == "" {
				return
			}
			for _, err := range []error{pinged, err} {
				wantErr(t, "call", err, ErrUnavailable)
				if !strings.Contains(fmt.Sprint(err), tc.fails) || strings.Contains(fmt.Sprint(err), "secret") {
					t.Errorf("%v, want %q in it and no secret", err, tc.fails)
				}
			}
		})
	}
}

func TestBasesThatAreNotThere(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	t.Run("groups", func(t *testing.T) {
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.BaseDN = "ou=nowhere,dc=example,dc=org" }))
		if err := d.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "directories[corp].groups.baseDN") {
			t.Errorf("Ping: %v", err)
		}
		_, err := d.Groups(t.Context(), mustFind(t, d, "alice"))
		if err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("Groups: %v", err)
		}
	})
	t.Run("users, which ends no session", func(t *testing.T) {
		p := mustFind(t, open(t, slapdConfig(s)), "alice")
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Users.BaseDN = "ou=nowhere,dc=example,dc=org" }))
		_, err := d.Lookup(t.Context(), p.ID)
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) {
			t.Errorf("Lookup: %v", err)
		}
	})
}

func TestFindOnSlapd(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	nfd := norm.NFD.String("zoë")
	s.AddLDIF(t, person("backslash", `a\b`)+person("x,y+z", "x,y+z")+person("star", "*")+person("nfd", nfd)+
		person("two", "two", "uid: deux")+person("rooted", "system:admin")+person("bidi", "a\u202eb")+
		person("twin 1", "twin")+person("twin 2", "other", "mail: twin")+
		person("thief", "Bob", "mail: thief@example.org")+"dn: uid=named,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\ncn: n\nsn: n\nuid: named\nuid: alias\n\n")
	d := open(t, slapdConfig(s))

	for login, want := range map[string]string{
		"alice": "alice", " alice\t": "alice", "ALICE": "alice", "alice@example.org": "alice", `corp\alice`: "alice", `CORP\alice`: "alice",
		"jörg (admin)": "jörg (admin)", norm.NFD.String("jörg (admin)"): "jörg (admin)", "joerg@example.org": "jörg (admin)",
		`corp\a\b`: `a\b`, "x,y+z": "x,y+z", "*": "*", "zoë": "zoë", nfd: "zoë", "alias": "named",
	} {
		if p := mustFind(t, d, login); p.Username != want {
			t.Errorf("Find(%q) is %q, want %q", login, p.Username, want)
		} else if again, err := d.Lookup(t.Context(), p.ID); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("Lookup(%s): %+v, %v, want %+v", p.ID, again, err, p)
		}
	}
	for login, want := range map[string]error{
		"": ErrNotFound, " \t": ErrNotFound, "nobody": ErrNotFound, strings.Repeat("a", 257): ErrNotFound, "alice\x00": ErrNotFound, "\xff": ErrNotFound,
		"*)(uid=*": ErrNotFound, "al*": ErrNotFound, `\2a`: ErrNotFound, "alice)(uid=*": ErrNotFound, `other\alice`: ErrNotFound, `a\b`: ErrNotFound, `\alice`: ErrNotFound,
		"tabard": ErrNotFound, // is in the directory, but no person
		"twin":   ErrAmbiguous, "bob": ErrAmbiguous, "thief@example.org": ErrAmbiguous, "bob@example.org": ErrAmbiguous,
		"two": ErrUnusable, "system:admin": ErrUnusable, "a\u202eb": ErrUnusable,
	} {
		_, err := d.Find(t.Context(), login)
		wantErr(t, fmt.Sprintf("Find(%q)", login), err, want)
	}
	for _, id := range []string{"", "alice", "00000000-0000-0000-0000-000000000000", strings.ToUpper(mustFind(t, d, "alice").ID), "*"} {
		_, err := d.Lookup(t.Context(), id)
		wantErr(t, fmt.Sprintf("Lookup(%q)", id), err, ErrNotFound)
	}
	p := mustFind(t, d, "alice")
	if p.Sub() != "corp."+p.ID || p.Name != "Alice Adams" || p.Email != "alice@example.org" || p.State != Active || p.DN != "uid=alice,ou=people,dc=example,dc=org" {
		t.Errorf("alice is %+v", p)
	}
}

func TestUsernames(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF()+person("lab", "lab-eve"))
	mail := with(slapdConfig(s), func(c *Config) { c.Users.Username, c.Users.UsernameSuffix = "mail", "@Example.org" })
	if p := mustFind(t, open(t, mail), "alice"); p.Username != "alice@example.org" {
		t.Errorf("username %q", p.Username)
	}
	_, err := open(t, with(mail, func(c *Config) { c.Users.UsernameSuffix = "@example.com" })).Find(t.Context(), "alice")
	wantErr(t, "another suffix", err, ErrUnusable)

	lab := with(slapdConfig(s), func(c *Config) { c.Name, c.Users.UsernamePrefix = "lab", "Lab-" })
	if p := mustFind(t, open(t, lab), "alice"); p.Username != "Lab-alice" {
		t.Errorf("username %q", p.Username)
	}
	_, err = open(t, slapdConfig(s), slapdConfig(s), lab).Find(t.Context(), "lab-eve")
	wantErr(t, "username with another directory's prefix", err, ErrUnusable)

	filtered := open(t, with(slapdConfig(s), func(c *Config) { c.Users.Filter = "(mail=alice@*)" }))
	mustFind(t, filtered, "alice")
	_, err = filtered.Find(t.Context(), "bob")
	wantErr(t, "someone outside of users.filter", err, ErrNotFound)
}

func TestBindOnSlapd(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF()+`dn: cn=policy,dc=example,dc=org
objectClass: organizationalRole
objectClass: pwdPolicy
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 2
pwdMustChange: TRUE
pwdMaxAge: 1

`+person("reset", "reset", "pwdPolicySubentry: cn=policy,dc=example,dc=org", "pwdReset: TRUE")+
		person("aged", "aged", "pwdPolicySubentry: cn=policy,dc=example,dc=org")+
		person("victim", "victim", "pwdPolicySubentry: cn=policy,dc=example,dc=org"))
	d := open(t, slapdConfig(s))
	if err := d.Bind(t.Context(), d.DummyDN(), "secret"); !errors.Is(err, ErrInvalidCredentials) {
		t.Errorf("dummy DN before anything is known: %v", err)
	}
	alice, joerg := mustFind(t, d, "alice"), mustFind(t, d, "jörg (admin)")
	for _, tc := range []struct {
		what, dn, password string
		want               error
	}{
		{"alice", alice.DN, "pw-alice", nil},
		{"jörg", joerg.DN, "pw-jörg (admin)", nil},
		{"wrong password", alice.DN, "pw-bob", ErrInvalidCredentials},
		{"empty password", alice.DN, "", ErrInvalidCredentials},
		{"empty DN", "", "pw-alice", ErrInvalidCredentials},
		{"no DN at all", "alice", "pw-alice", ErrInvalidCredentials},
		{"dummy", d.DummyDN(), "pw-alice", ErrInvalidCredentials},
	} {
		if err := d.Bind(t.Context(), tc.dn, tc.password); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, err, tc.want)
		}
	}
	if !strings.HasSuffix(d.DummyDN(), ",dc=example,dc=org") {
		t.Errorf("dummy DN %s", d.DummyDN())
	}
	wantAccount(t, d, "reset", "pw", MustChange)
	if p := mustFind(t, d, "reset"); p.State != MustChange || time.Since(p.PasswordChanged) > time.Hour {
		t.Errorf("reset is %+v", p)
	}
	for range 3 {
		wantErr(t, "wrong password", d.Bind(t.Context(), mustFind(t, d, "victim").DN, "no"), ErrInvalidCredentials)
	}
	wantErr(t, "right password, locked", d.Bind(t.Context(), mustFind(t, d, "victim").DN, "pw"), ErrInvalidCredentials)
	if p := mustFind(t, d, "victim"); p.State != Locked {
		t.Errorf("victim is %s", p.State)
	}
	aged := mustFind(t, d, "aged")
	time.Sleep(time.Until(aged.PasswordChanged.Add(3 * time.Second)))
	wantErr(t, "wrong old password", d.Bind(t.Context(), aged.DN, "no"), ErrInvalidCredentials)
	wantAccount(t, d, "aged", "pw", PasswordExpired)
}

// wantAccount binds login and wants to hear of the account's state.
func wantAccount(t *testing.T, d *Directory, login, password string, want State) {
	t.Helper()
	err := d.Bind(t.Context(), mustFind(t, d, login).DN, password)
	var account *AccountError
	if !errors.As(err, &account) || account.State != want {
		t.Errorf("bind of %s: %v, want state %s", login, err, want)
	}
}

// groupTree starts a slapd with groups that are nested, circular, many and
// oddly named.
func groupTree(t *testing.T) *testenv.Slapd {
	t.Helper()
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	const bob, joerg = "uid=bob,ou=people", "uid=jörg (admin),ou=people"
	odd := person("x,y+z", "odd", "mail: odd@example.org") + person(`back\slash "q" #`, "odder")
	for i := range 120 {
		odd += groupOfNames(fmt.Sprintf("many-%03d", i), "uid=dave,ou=people")
	}
	s.AddLDIF(t, odd+
		groupOfNames("circle-1", "cn=circle-2,ou=groups", bob)+groupOfNames("circle-2", "CN=Circle-1, OU=groups")+groupOfNames("self", "cn=self,ou=groups", bob)+
		groupOfNames("jörg's (own)*", joerg)+groupOfNames("above jörg", "cn=jörg's (own)*,ou=groups")+
		groupOfNames("odd, + group", `cn=x\,y\+z,ou=people`)+groupOfNames("above odd", `cn=odd\, \+ group,ou=groups`)+
		groupOfNames("odder", `cn=back\\slash \"q\" #,ou=people`)+
		groupOfNames("above many", "cn=many-000,ou=groups")+groupOfNames("above above many", "cn=above many,ou=groups", "cn=many-119,ou=groups")+
		"dn: cn=unique,ou=groups,dc=example,dc=org\nobjectClass: groupOfUniqueNames\nuniqueMember: "+joerg+",dc=example,dc=org\n\n"+
		"dn: cn=posix,ou=groups,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: 1\nmemberUid: odder\n\n"+
		groupOfNames("above posix", "cn=posix,ou=groups")+
		groupOfNames(norm.NFD.String("é"), "uid=carol,ou=people")+groupOfNames("bad\u202ename", "uid=carol,ou=people")+groupOfNames("above bad", "cn=bad\u202ename,ou=groups"))
	return s
}

func TestGroupsOnSlapd(t *testing.T) {
	s := groupTree(t)
	d := open(t, slapdConfig(s))
	wantGroups(t, d, "alice", "corp:all-devs", "corp:devs")
	wantGroups(t, d, "carol", "corp:cluster-operators", "corp:ops", "corp:é")
	wantGroups(t, d, "bob", "corp:circle-1", "corp:circle-2", "corp:self")
	wantGroups(t, d, "jörg (admin)", "corp:above jörg", "corp:jörg's (own)*", "corp:unique")
	wantGroups(t, d, "odd", "corp:above odd", "corp:odd, + group")
	wantGroups(t, d, "odder", "corp:above posix", "corp:odder", "corp:posix")
	if got := groupNames(t, d, "dave"); len(got) != 122 || got[0] != "corp:above above many" {
		t.Errorf("dave's groups: %q", got)
	}

	e, err := d.Explain(t.Context(), "dave")
	if err != nil {
		t.Fatal(err)
	}
	groups := e.Groups
	below := func(cns ...string) (path []string) {
		for _, cn := range cns {
			path = append(path, "cn="+cn+",ou=groups,dc=example,dc=org")
		}
		return path
	}
	if want := below("many-119", "above above many"); !reflect.DeepEqual(groups[0].Path, want) {
		t.Errorf("path %q, want %q", groups[0].Path, want)
	}
	if want := below("many-000", "above many"); !reflect.DeepEqual(groups[1].Path, want) || groups[1].DN != want[1] {
		t.Errorf("path %q, want %q", groups[1].Path, want)
	}

	t.Run("a list that the server cuts off is an error", func(t *testing.T) {
		more := ""
		for i := range 400 {
			more += groupOfNames(fmt.Sprintf("more-%03d", i), "uid=dave,ou=people")
		}
		s.AddLDIF(t, more) // the server's size limit is 500 in all
		groups, err := d.Groups(t.Context(), mustFind(t, d, "dave"))
		if err == nil || groups != nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%d groups, %v", len(groups), err)
		}
	})
}

func TestGroupKeysOnSlapd(t *testing.T) {
	s := groupTree(t)
	t.Run("configured", func(t *testing.T) {
		for name, tc := range map[string]struct {
			groups Groups
			login  string
			want   []string
		}{
			"none":                  {Groups{Nested: NestedNone}, "alice", []string{"corp:devs"}},
			"depth 1":               {Groups{MaxDepth: 1}, "carol", []string{"corp:cluster-operators", "corp:ops", "corp:é"}},
			"depth 2":               {Groups{MaxDepth: 2}, "alice", []string{"corp:all-devs", "corp:devs"}},
			"include":               {Groups{Include: []string{"*devs"}}, "alice", []string{"corp:all-devs", "corp:devs"}},
			"hidden, not through":   {Groups{Include: []string{"all-*"}}, "alice", []string{}},
			"excluded, not through": {Groups{Exclude: []string{"dev?"}}, "alice", []string{}},
			"exclude above":         {Groups{Exclude: []string{"all*"}}, "alice", []string{"corp:devs"}},
			"exclude wins":          {Groups{Include: []string{"*"}, Exclude: []string{"*"}}, "alice", []string{}},
			"filter":                {Groups{Filter: "(objectClass=posixGroup)"}, "odder", []string{"corp:posix"}},
			"prefix":                {Groups{Prefix: "ldap/"}, "alice", []string{"ldap/all-devs", "ldap/devs"}},
			"name":                  {Groups{Name: "description"}, "alice", []string{}},
			"member":                {Groups{Member: "uniqueMember"}, "jörg (admin)", []string{"corp:unique"}},
			"memberUid":             {Groups{Member: "memberUid"}, "odder", []string{"corp:posix"}},
			"joined to a reserved":  {Groups{Prefix: "syst", Name: "cn"}, "alice", []string{"systall-devs", "systdevs"}},
			"base":                  {Groups{BaseDN: "ou=people,dc=example,dc=org"}, "alice", []string{}},
		} {
			t.Run(name, func(t *testing.T) {
				wantGroups(t, open(t, with(slapdConfig(s), func(c *Config) { c.Groups = tc.groups })), tc.login, tc.want...)
			})
		}
	})
	t.Run("deeper than maxDepth is an error", func(t *testing.T) {
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.MaxDepth = 1 }))
		groups, err := d.Groups(t.Context(), mustFind(t, d, "alice"))
		if err == nil || groups != nil || !strings.Contains(err.Error(), "maxDepth") {
			t.Errorf("%v, %v", groups, err)
		}
	})
	t.Run("no name may become reserved", func(t *testing.T) {
		s.AddLDIF(t, groupOfNames("em:masters", "uid=alice,ou=people"))
		d := open(t, with(slapdConfig(s), func(c *Config) { c.Groups.Prefix, c.Groups.Include = "Syst", []string{"em:*"} }))
		wantGroups(t, d, "alice")
	})
}
