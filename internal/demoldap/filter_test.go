package demoldap

import (
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
)

func TestFilter(t *testing.T) {
	e := newEntry("uid=a(b)*,dc=x", "", "objectClass", "person", "objectClass", "top", "uid", `a(b)*\`, "cn", "Älice Adams", "member", "uid=x,dc=y")
	for _, tc := range []struct {
		filter string
		want   bool
	}{
		{"(objectClass=*)", true}, {"(mail=*)", false}, {"(OBJECTCLASS=TOP)", true}, {"(!(objectClass=top))", false},
		{"(&)", true}, {"(|)", false}, {"(&(uid=*)(cn=*))", true}, {"(&(uid=*)(mail=*))", false}, {"(|(uid=*)(mail=*))", true}, {"(|(sn=*)(mail=*))", false},
		{`(uid=a\28b\29\2a\5c)`, true}, {`(uid=a*)`, true}, {"(uid=*b*)", true}, {"(uid=b*)", false}, {`(uid=*\5C)`, true},
		{"(cn=älice adams)", true}, {`(cn=\c3\a4lice*)`, true}, {"(cn=*l*e*a*)", true}, {"(cn=*m*e*)", false}, {"(cn=Älice Adams*Adams)", false},
		{"(member=UID=x, DC=y)", true}, {"(cn=)", false},
	} {
		f, err := parseFilter(tc.filter)
		if err != nil {
			t.Errorf("%s: %v", tc.filter, err)
		} else if f(e) != tc.want {
			t.Errorf("%s: %v", tc.filter, !tc.want)
		}
	}
	for _, bad := range []string{"", "uid=a", "(uid=a", "(uid=a))", "((uid=a))", "(&(uid=a)", "(!)", "(=a)", "(uid>=a)", "(uid~=a)", "(a:1.2:=b)", `(uid=\2)`, `(uid=\zz)`,
		"(uid)", "(uid=a**)", "()", strings.Repeat("(!", 40) + "(uid=a)" + strings.Repeat(")", 40), "(uid=" + strings.Repeat("a", maxFilter) + ")"} {
		if _, err := parseFilter(bad); err == nil {
			t.Errorf("%.60s: no error", bad)
		}
	}
}

// FuzzParseFilter holds the parser against the library that our directory room
// makes its filters with: what both read means the same spelled either way.
func FuzzParseFilter(f *testing.F) {
	for _, seed := range []string{"(&(|(objectClass=person)(objectClass=posixAccount))(|(uid=alice)(mail=alice)))", `(cn=J\c3\b6rg*)`, "(!(a=*b*c))", "(&)", `(uid=\28\29)`, "(uid=ä*)"} {
		f.Add(seed)
	}
	e := newEntry("uid=alice,dc=x", "", "objectClass", "person", "uid", "alice", "cn", "Jörg", "a", "bc")
	f.Fuzz(func(t *testing.T, s string) {
		ours, err := parseFilter(s)
		if err != nil {
			return
		}
		matched := ours(e)
		packet, err := ldap.CompileFilter(s)
		if err != nil {
			return // we let more characters stand unescaped
		}
		other, err := ldap.DecompileFilter(packet)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		again, err := parseFilter(other)
		if err != nil {
			return // longer by its escapes, or an escape that the library reads otherwise
		}
		if again(e) != matched {
			t.Errorf("%q matches %v, and as %q %v", s, matched, other, !matched)
		}
	})
}
