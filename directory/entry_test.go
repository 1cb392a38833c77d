package directory

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/uuid"
)

func entry(attributes map[string][]string) *ldap.Entry { return ldap.NewEntry("cn=x", attributes) }

func TestKindsOfServer(t *testing.T) {
	ad := entry(map[string][]string{"defaultNamingContext": {"DC=corp,DC=example"}, "namingContexts": {"DC=corp,DC=example", "CN=Configuration"}, "configurationNamingContext": {"CN=Configuration"}})
	openLDAP := entry(map[string][]string{"objectClass": {"top", "OpenLDAProotDSE"}, "namingContexts": {"dc=example,dc=org"}})
	ds389 := entry(map[string][]string{"vendorName": {"389 Project"}, "defaultnamingcontext": {"dc=example,dc=org"}, "namingContexts": {"dc=example,dc=org", "o=ipaca"}})
	ipa := entry(map[string][]string{"vendorName": {"389 Project"}, "defaultnamingcontext": {"dc=example,dc=org"}, "ipaDomainLevel": {"1"}})
	for name, tc := range map[string]struct {
		kind             Type
		root             *ldap.Entry
		id, base, nested string
		login            []string
	}{
		"Active Directory": {TypeActiveDirectory, ad, "objectGUID", "DC=corp,DC=example", "inChain", []string{"sAMAccountName", "mail", "userPrincipalName"}},
		"OpenLDAP":         {TypeLDAP, openLDAP, "entryUUID", "dc=example,dc=org", "walk", []string{"uid", "mail"}},
		"389":              {TypeLDAP, ds389, "nsUniqueId", "dc=example,dc=org", "walk", []string{"uid", "mail"}},
		"FreeIPA":          {TypeLDAP, ipa, "ipaUniqueID", "cn=accounts,dc=example,dc=org", "walk", []string{"uid", "mail"}},
	} {
		s, err := newSchema(&Config{Name: "corp", Type: tc.kind}, tc.root)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.users.ID != tc.id || s.users.BaseDN != tc.base || s.groups.BaseDN != tc.base || string(s.groups.Nested) != tc.nested || !reflect.DeepEqual(s.users.Login, tc.login) {
			t.Errorf("%s: %+v", name, s)
		}
		for _, filter := range []string{s.users.Filter, s.groups.Filter} {
			if _, err := ldap.CompileFilter(filter); err != nil {
				t.Errorf("%s: %s: %v", name, filter, err)
			}
		}
	}
	_, err := newSchema(&Config{Name: "corp", Type: TypeLDAP}, entry(map[string][]string{"namingContexts": {"o=a", "o=b"}}))
	if err == nil || !strings.Contains(err.Error(), "directories[corp].users.baseDN") {
		t.Errorf("two naming contexts: %v", err)
	}
	set := Config{Name: "corp", Type: TypeLDAP, Users: Users{BaseDN: "o=u", Login: []string{"cn"}, ID: "x", Username: "y", Filter: "(z=*)"}, Groups: Groups{BaseDN: "o=g", Nested: NestedNone, Name: "n", MaxDepth: 7}}
	s, err := newSchema(&set, openLDAP)
	if err != nil || s.users.BaseDN != "o=u" || s.users.Login[0] != "cn" || s.users.ID != "x" || s.users.Username != "y" || s.users.Filter != "(z=*)" || s.groups.BaseDN != "o=g" || s.groups.MaxDepth != 7 {
		t.Errorf("set keys: %+v, %v", s, err)
	}
}

func TestActiveDirectoryState(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const past, future, never = "130000000000000000", "140000000000000000", "9223372036854775807"
	for name, tc := range map[string]struct {
		uac, computed, expires, changed string
		want                            State
	}{
		"active":                             {"512", "0", "0", past, Active},
		"never expires":                      {"512", "0", never, past, Active},
		"expires later":                      {"512", "0", future, past, Active},
		"disabled before all":                {"514", "8388624", past, "0", Disabled},
		"expired":                            {"512", "16", past, past, Expired},
		"locked":                             {"512", "16", "0", past, Locked},
		"must change, also shown as expired": {"512", "8388608", "0", "0", MustChange},
		"never expires, so need not change":  {"66048", "0", "0", "0", Active},
		"password expired":                   {"512", "8388608", "0", past, PasswordExpired},
		"nothing but userAccountControl readable": {"512", "", "", "", Active},
	} {
		p := Person{}
		err := p.readActiveDirectory(entry(map[string][]string{
			"userAccountControl": {tc.uac}, "msDS-User-Account-Control-Computed": {tc.computed}, "accountExpires": {tc.expires}, "pwdLastSet": {tc.changed},
		}), now)
		if err != nil || p.State != tc.want {
			t.Errorf("%s: %s, %v, want %s", name, p.State, err, tc.want)
		}
	}
	err := (&Person{}).readActiveDirectory(entry(nil), now)
	wantErr(t, "userAccountControl not readable", err, ErrUnusable)
	if got := filetime(133801632000000000); !got.Equal(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("filetime: %s", got)
	}
}

func TestLDAPState(t *testing.T) {
	for want, attributes := range map[State]map[string][]string{
		Active:     {"nsAccountLock": {"false"}, "pwdReset": {"FALSE"}},
		Disabled:   {"nsaccountlock": {"TRUE"}},
		Locked:     {"pwdAccountLockedTime": {"000001010000Z"}},
		MustChange: {"pwdReset": {"TRUE"}},
	} {
		attributes["pwdChangedTime"] = []string{"20260102030405.123456Z"}
		p := Person{}
		p.readLDAP(entry(attributes), time.Now())
		if p.State != want || p.PasswordChanged.Truncate(time.Second) != time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) {
			t.Errorf("%s: %+v", want, p)
		}
	}
}

func TestBindOutcome(t *testing.T) {
	ad := func(code string) error {
		return ldap.NewError(ldap.LDAPResultInvalidCredentials, errors.New("80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data "+code+", v1db1"))
	}
	policy := func(code int8) *ldap.SimpleBindResult {
		return &ldap.SimpleBindResult{Controls: []ldap.Control{&ldap.ControlBeheraPasswordPolicy{Error: code}}}
	}
	const locked = 1
	for name, tc := range map[string]struct {
		res  *ldap.SimpleBindResult
		err  error
		want error
	}{
		"right":                     {&ldap.SimpleBindResult{}, nil, nil},
		"right, policy silent":      {policy(-1), nil, nil},
		"wrong password":            {nil, ad("52e"), ErrInvalidCredentials},
		"no such user":              {nil, ad("525"), ErrInvalidCredentials},
		"not at this hour":          {nil, ad("530"), &AccountError{Disabled}},
		"not from here":             {nil, ad("531"), &AccountError{Disabled}},
		"password expired":          {nil, ad("532"), &AccountError{PasswordExpired}},
		"disabled":                  {nil, ad("533"), &AccountError{Disabled}},
		"account expired":           {nil, ad("701"), &AccountError{Expired}},
		"must change":               {nil, ad("773"), &AccountError{MustChange}},
		"locked":                    {nil, ad("775"), ErrInvalidCredentials},
		"unknown code":              {nil, ad("999"), ErrInvalidCredentials},
		"policy: expired":           {policy(ldap.BeheraPasswordExpired), ad("52e"), &AccountError{PasswordExpired}},
		"policy: reset":             {policy(ldap.BeheraChangeAfterReset), nil, &AccountError{MustChange}},
		"policy: locked":            {policy(locked), ldap.NewError(ldap.LDAPResultInvalidCredentials, errors.New("")), ErrInvalidCredentials},
		"389 inactivated":           {nil, ldap.NewError(ldap.LDAPResultUnwillingToPerform, errors.New("Account inactivated")), ErrInvalidCredentials},
		"389 too many attempts":     {nil, ldap.NewError(ldap.LDAPResultConstraintViolation, errors.New("Exceed password retry limit")), ErrInvalidCredentials},
		"busy":                      {nil, ldap.NewError(ldap.LDAPResultBusy, errors.New("")), ErrUnavailable},
		"stronger TLS wanted":       {nil, ldap.NewError(ldap.LDAPResultConfidentialityRequired, errors.New("")), ErrUnavailable},
		"referral, never followed":  {nil, ldap.NewError(ldap.LDAPResultReferral, errors.New("")), ErrUnavailable},
		"connection broken":         {nil, ldap.NewError(ldap.ErrorNetwork, errors.New("EOF")), ErrUnavailable},
		"code of another operation": {nil, ldap.NewError(ldap.LDAPResultOther, errors.New("x, data 533")), ErrUnavailable},
	} {
		got := bindOutcome(tc.res, tc.err)
		var account *AccountError
		if errors.As(tc.want, &account) {
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%s: %v, want %v", name, got, tc.want)
			}
		} else if !errors.Is(got, tc.want) || (tc.want == nil) != (got == nil) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestIDs(t *testing.T) {
	const want = "00112233-4455-6677-8899-aabbccddeeff"
	guid := string([]byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}) // [MS-DTYP] 2.3.4.2
	for attribute, value := range map[string]string{
		"objectGUID": guid, "nsUniqueId": "00112233-44556677-8899AABB-CCDDEEFF", "entryUUID": want, "ipaUniqueID": strings.ToUpper(want),
	} {
		if got, err := idFromEntry(entry(map[string][]string{attribute: {value}}), attribute); err != nil || got != want {
			t.Errorf("%s: %s, %v", attribute, got, err)
		}
	}
	if got, wantFilter := idFilter("objectGUID", uuid.MustParse(want)), `(objectGUID=\33\22\11\00\55\44\77\66\88\99\aa\bb\cc\dd\ee\ff)`; got != wantFilter {
		t.Errorf("filter %s", got)
	}
	if got := idFilter("nsUniqueId", uuid.MustParse(want)); got != "(nsUniqueId=00112233-44556677-8899aabb-ccddeeff)" {
		t.Errorf("filter %s", got)
	}
	for attribute, values := range map[string][]string{
		"objectGUID": {"short"}, "nsUniqueId": {"00112233-4455-6677-8899-aabbccddeeff"}, "entryUUID": {"{" + want + "}"}, "ipaUniqueID": {"autogenerate"}, "none": nil, "two": {want, want},
	} {
		_, err := idFromEntry(entry(map[string][]string{attribute: values}), attribute)
		wantErr(t, attribute, err, ErrUnusable)
	}
}

func TestSIDs(t *testing.T) {
	raw := []byte{1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x21, 2, 0, 0}
	if sid, err := decodeSID(raw); err != nil || sid != "S-1-5-32-545" {
		t.Errorf("%s, %v", sid, err)
	}
	for _, bad := range [][]byte{nil, raw[:7], raw[:15], append(raw[:16:16], 0), {2, 0, 0, 0, 0, 0, 0, 5}} {
		if sid, err := decodeSID(bad); err == nil {
			t.Errorf("%x is %s", bad, sid)
		}
	}
}

// FuzzFilterEscape: whatever is typed, the filter compiles to the same
// structure and its assertion values are exactly what was typed.
func FuzzFilterEscape(f *testing.F) {
	for _, seed := range []string{"", "alice", "jörg (admin)", "*)(uid=*", `a\b`, `\2a`, "*", "\x00", "\xff", "\ufffd", "a=b:=c", "ü)(|(x=*"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		packet, err := ldap.CompileFilter("(&(objectClass=person)" + loginFilter([]string{"uid", "mail"}, typed) + ")")
		if err != nil {
			t.Fatal(err)
		}
		if len(packet.Children) != 2 || packet.Tag != ldap.FilterAnd || packet.Children[1].Tag != ldap.FilterOr || len(packet.Children[1].Children) != 2 {
			t.Fatalf("%q changes the structure", typed)
		}
		for i, attribute := range []string{"uid", "mail"} {
			term := packet.Children[1].Children[i]
			if term.Tag != ldap.FilterEqualityMatch || term.Children[0].Data.String() != attribute || term.Children[1].Data.String() != typed {
				t.Fatalf("%q becomes %q=%q", typed, term.Children[0].Data.String(), term.Children[1].Data.String())
			}
		}
	})
}

// FuzzDNEscape: a DN of any value goes into a group filter and back unchanged,
// and foldDN keeps different values apart.
func FuzzDNEscape(f *testing.F) {
	for _, seed := range []string{"alice", "x,y+z", `a\b`, "*", "jörg (admin)", " a ", "#1", `"q"`, "a=b;c<d>", "A"} {
		f.Add(seed, "other")
	}
	f.Fuzz(func(t *testing.T, value, other string) {
		if !utf8.ValidString(value) || !utf8.ValidString(other) || value == "" || other == "" {
			return // no attribute value of a name
		}
		dn := "cn=" + ldap.EscapeDN(value) + ",ou=people,dc=example,dc=org"
		packet, err := ldap.CompileFilter("(&(a=b)(|" + equals("member", dn) + "))")
		if err != nil {
			t.Fatal(err)
		}
		if term := packet.Children[1].Children[0]; len(packet.Children[1].Children) != 1 || term.Children[1].Data.String() != dn {
			t.Fatalf("%q becomes %q", dn, term.Children[1].Data.String())
		}
		parsed, err := ldap.ParseDN(dn)
		if err != nil {
			t.Fatalf("%q: %v", dn, err)
		}
		if len(parsed.RDNs) != 4 || parsed.RDNs[0].Attributes[0].Value != value {
			t.Fatalf("%q becomes %q", value, parsed)
		}
		fold := func(s string) string { return strings.ToLower(clean(s)) }
		same := foldDN(dn) == foldDN("CN="+ldap.EscapeDN(other)+", OU=People,DC=example,DC=org")
		if same != (fold(value) == fold(other)) {
			t.Fatalf("%q and %q: same %v", value, other, same)
		}
	})
}

// FuzzFoldDN: the short way gives what the long one does.
func FuzzFoldDN(f *testing.F) {
	for _, seed := range []string{"CN=A b,OU=x,DC=corp", "cn=a, ou=b", "cn = a,ou=b", "cn=a=b,o=c", "cn=,o=c", "=a", "cn=a,", ",cn=a", "cn", "", "cn=#ab", "cn=a+sn=b", `cn=a\,b`, "cn=a ", "cn=\u212a", "cn=a,,o=b", "o=a=", "2.5.4.3=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, dn string) {
		if got, want := foldDN(dn), foldAnyDN(dn); got != want {
			t.Errorf("%q becomes %q, want %q", dn, got, want)
		}
	})
}

// FuzzGUID: what decodeID reads, idFilter asks for, and no other bytes give the
// same id.
func FuzzGUID(f *testing.F) {
	f.Add([]byte("0123456789abcdef"))
	f.Add([]byte(`()*\0123456789ab`))
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, raw []byte) {
		id, err := decodeID("objectGUID", raw)
		if err != nil {
			if len(raw) == 16 {
				t.Fatal(err)
			}
			return
		}
		packet, err := ldap.CompileFilter(idFilter("objectGUID", id))
		if err != nil || packet.Children[1].Data.String() != string(raw) {
			t.Fatalf("%x becomes %s, %v", raw, idFilter("objectGUID", id), err)
		}
		for _, attribute := range []string{"nsUniqueId", "entryUUID"} {
			packet, err := ldap.CompileFilter(idFilter(attribute, id))
			if err != nil {
				t.Fatal(err)
			}
			if back, err := decodeID(attribute, packet.Children[1].Data.Bytes()); err != nil || back != id {
				t.Fatalf("%s: %s becomes %s, %v", attribute, id, back, err)
			}
		}
	})
}
