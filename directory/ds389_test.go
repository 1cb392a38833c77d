package directory

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestDS389(t *testing.T) {
	t.Parallel()
	s := testenv.StartDS389(t)
	s.AddLDIF(t, "dn: ou=people,dc=example,dc=org\nobjectClass: organizationalUnit\n\ndn: ou=groups,dc=example,dc=org\nobjectClass: organizationalUnit\n\n"+
		person("Alice", "alice", "mail: alice@example.org")+person("Off", "off", "nsAccountLock: true")+person("x, y+z (*)", "odd")+
		groupOfNames("team", "cn=Alice,ou=people")+groupOfNames("dept", "cn=team,ou=groups")+groupOfNames("company", "cn=dept,ou=groups", "cn=company,ou=groups")+
		groupOfNames("odd", `cn=x\, y\+z (*),ou=people`)+
		"dn: cn=unique,ou=groups,dc=example,dc=org\nobjectClass: groupOfUniqueNames\nuniqueMember: cn=Alice,ou=people,dc=example,dc=org\n\n"+
		"dn: cn=posix,ou=groups,dc=example,dc=org\nobjectClass: posixGroup\ngidNumber: 1\nmemberUid: alice\n\n")
	d := open(t, Config{Name: "corp", Type: TypeLDAP, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.BindDN, BindPassword: s.BindPassword})
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	alice := mustFind(t, d, "alice@example.org")
	if alice.Username != "alice" || alice.State != Active || alice.Name != "Alice" {
		t.Errorf("alice is %+v", alice)
	}
	if p, err := d.Lookup(t.Context(), alice.ID); err != nil || !reflect.DeepEqual(p, alice) {
		t.Errorf("by nsUniqueId: %+v, %v", p, err)
	}
	if err := d.Bind(t.Context(), alice.DN, "pw"); err != nil {
		t.Error(err)
	}
	wantErr(t, "wrong password", d.Bind(t.Context(), alice.DN, "no"), ErrInvalidCredentials)
	wantErr(t, "nobody", d.Bind(t.Context(), d.DummyDN(), "pw"), ErrInvalidCredentials)
	off := mustFind(t, d, "off")
	if off.State != Disabled {
		t.Errorf("off is %s", off.State)
	}
	for _, password := range []string{"pw", "no"} { // 389 says no to both alike
		wantErr(t, "locked account", d.Bind(t.Context(), off.DN, password), ErrInvalidCredentials)
	}
	wantGroups(t, d, "alice", "corp:company", "corp:dept", "corp:posix", "corp:team", "corp:unique")
	wantGroups(t, d, "odd", "corp:odd")
	wantGroups(t, d, "off")
	agreementOn389(t, s, d)

	s.AddLDIF(t, "dn: cn=MemberOf Plugin,cn=plugins,cn=config\nchangetype: modify\nreplace: nsslapd-pluginEnabled\nnsslapd-pluginEnabled: on\n-\nreplace: memberofgroupattr\nmemberofgroupattr: member\n-\nreplace: memberofattr\nmemberofattr: memberOf\n\n")
	s.Stop()
	s.Start(t)
	s.AddLDIF(t, person("Bob", "bob", "objectClass: nsMemberOf")+groupOfNames("sub", "cn=Bob,ou=people")+
		"dn: cn=team,ou=groups,dc=example,dc=org\nchangetype: modify\nadd: member\nmember: cn=sub,ou=groups,dc=example,dc=org\n\n")
	if p := mustFind(t, d, "bob"); len(p.memberOf) == 0 {
		t.Error("the plug-in MemberOf does nothing")
	}
	wantGroups(t, d, "bob", "corp:company", "corp:dept", "corp:sub", "corp:team")
	wantGroups(t, d, "alice", "corp:company", "corp:dept", "corp:posix", "corp:team", "corp:unique")
	few := open(t, with(d.cfg, func(c *Config) { c.Users.Filter = "(&(objectClass=person)(!(uid=m*)))" }))
	if all, nested := wantAgreement(t, few); all != 10 || nested != 5 {
		t.Errorf("%d memberships, %d nested", all, nested)
	}
	lockoutOf389(t, s)
}

// agreementOn389 compares Groups and Members, and searches.
func agreementOn389(t *testing.T, s *testenv.DS389, d *Directory) {
	var people strings.Builder
	var members []string
	for i := range 1600 {
		people.WriteString(person(fmt.Sprintf("m%04d", i), fmt.Sprintf("m%04d", i)))
		members = append(members, fmt.Sprintf("cn=m%04d,ou=people", i))
	}
	s.AddLDIF(t, people.String()+groupOfNames("many", members...)+groupOfNames("above many", "cn=many,ou=groups"))
	wantMany(t, d, "corp:above many", 1600)
	s.AddLDIF(t, "dn: cn=many,ou=groups,dc=example,dc=org\nchangetype: delete\n\n")
	few := open(t, with(d.cfg, func(c *Config) { c.Users.Filter = "(&(objectClass=person)(!(uid=m*)))" }))
	if all, nested := wantAgreement(t, few); all != 6 || nested != 2 {
		t.Errorf("%d memberships, %d nested", all, nested)
	}
	for typed, want := range map[string]string{"AL": "alice", "alice@e": "alice", "x, y+z (": "odd", "of": "off"} {
		if got, err := d.Search(t.Context(), typed, 0); err != nil || !reflect.DeepEqual(got, []Person{mustFind(t, d, want)}) {
			t.Errorf("%q finds %+v, %v", typed, got, err)
		}
	}
	if got, err := d.Search(t.Context(), "m0", 0); err != nil || len(got) != maxShown {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := d.Search(t.Context(), "*l", 0); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
