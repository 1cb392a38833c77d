package directory

import (
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/tabard-id/tabard/internal/testenv"
)

const pw = "Passw0rd-Person1"

// adGroup is a global security group, or of another groupType.
func adGroup(cn, groupType string, members ...string) string {
	ldif := "dn: CN=" + cn + ",OU=Groups,DC=corp,DC=example\nobjectClass: group\nsAMAccountName: " + cn + "\ngroupType: " + groupType + "\n"
	for _, m := range members {
		ldif += "member: CN=" + m + ",DC=corp,DC=example\n"
	}
	return ldif + "\n"
}

// sambaConfig has no key but those that no default can know.
func sambaConfig(s *testenv.Samba) Config {
	return Config{Name: "corp", Type: TypeActiveDirectory, URLs: []string{s.TLSURL}, CAFile: s.CAFile, BindDN: s.BindDN, BindPassword: s.BindPassword}
}

// sambaTree starts a domain with people in every state and nested groups.
func sambaTree(t *testing.T) *testenv.Samba {
	t.Helper()
	s := testenv.StartSamba(t)
	user := func(cn, name string, extra ...string) string {
		return testenv.UserLDIF("CN="+cn+",OU=People,"+s.BaseDN, name, pw, extra...)
	}
	disable := func(cn string) string {
		return "dn: CN=" + cn + ",OU=People,DC=corp,DC=example\nchangetype: modify\nreplace: userAccountControl\nuserAccountControl: 514\n\n"
	}
	const security, distribution, universal = "-2147483646", "2", "-2147483640"
	s.AddLDIF(t, "dn: OU=People,DC=corp,DC=example\nobjectClass: organizationalUnit\n\ndn: OU=Groups,DC=corp,DC=example\nobjectClass: organizationalUnit\n\n"+
		user("Jane (Admin)", "jane", "mail: jane.d@corp.example", "userPrincipalName: jane.doe@corp.example", "displayName: Jane D")+
		user("Jörg", "jörg")+user("Bob", "bob")+
		user("off", "off")+user("away", "away")+user("expired", "expired", "accountExpires: 131000000000000000")+user("must", "must", "pwdLastSet: 0")+
		user("never", "never", "accountExpires: 9223372036854775807")+user("locked", "locked")+
		adGroup("team", security, "Jane (Admin),OU=People")+adGroup("dept", universal, "team,OU=Groups")+adGroup("company", universal, "dept,OU=Groups")+
		adGroup("circle", universal, "company,OU=Groups")+adGroup("bobs", security, "Bob,OU=People")+adGroup("list", distribution, "Jane (Admin),OU=People")+
		adGroup("primary", security, "Bob,OU=People")+adGroup("above-primary", universal, "primary,OU=Groups")+
		"dn: CN=company,OU=Groups,DC=corp,DC=example\nchangetype: modify\nadd: member\nmember: CN=circle,OU=Groups,DC=corp,DC=example\n\n"+
		"dn: DC=corp,DC=example\nchangetype: modify\nreplace: lockoutThreshold\nlockoutThreshold: 3\n\n"+
		disable("off")+disable("away"))
	return s
}

func TestActiveDirectory(t *testing.T) {
	t.Parallel()
	s := sambaTree(t)
	d := open(t, sambaConfig(s))
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("find", func(t *testing.T) { findInAD(t, s, d) })
	t.Run("id is what the server's own tools show", func(t *testing.T) { idInAD(t, s, d) })
	t.Run("bind and state", func(t *testing.T) { bindInAD(t, d) })
	t.Run("failed bind", func(t *testing.T) { failedBindInAD(t, s) })
	t.Run("never writes", func(t *testing.T) {
		neverWrites(t, sambaConfig(s), s.TLSURL, s.CAFile, "jane", pw, NestedInChain, NestedTokenGroups, NestedWalk, NestedNone)
	})
	t.Run("check", func(t *testing.T) { checkOfAD(t, s) })
	t.Run("groups", func(t *testing.T) { groupsInAD(t, s) })
	t.Run("odd names", func(t *testing.T) { oddNamesInAD(t, s) })
	t.Run("members", func(t *testing.T) { membersInAD(t, s) })
	t.Run("search", func(t *testing.T) { searchInAD(t, s, d) })
	t.Run("accounts change", func(t *testing.T) { changesInAD(t, s, d) })
}

// oddNamesInAD has people and groups whose DNs need every escape.
func oddNamesInAD(t *testing.T, s *testenv.Samba) {
	for i, name := range []string{"plain", `back\slash`, "com,ma", "pl+us", `"quoted"`, "<angle>", "semi;colon", "a=b", "#hash", "(paren)", "st*r", "zo\u00eb", "日本"} {
		sam := fmt.Sprintf("odd%d", i)
		escaped := strings.ReplaceAll(ldap.EscapeDN(name), "=", `\=`) // Samba wants it so
		person, group := "CN="+escaped+",OU=People,"+s.BaseDN, "CN=g-"+escaped+",OU=Groups,"+s.BaseDN
		s.AddLDIF(t, strings.Replace(testenv.UserLDIF("X", sam, pw, "mail: "+sam+"@corp.example"), "dn: X\n", b64("dn", person), 1)+
			b64("dn", group)+"objectClass: group\nsAMAccountName: g-"+sam+"\n"+b64("member", person)+"\n"+
			"dn: CN=above-"+sam+",OU=Groups,"+s.BaseDN+"\nobjectClass: group\nsAMAccountName: above-"+sam+"\n"+b64("member", group)+"\n")
		for _, nested := range []Nested{NestedInChain, NestedTokenGroups, NestedWalk} {
			d := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested, c.Groups.BaseDN = nested, "OU=Groups,"+s.BaseDN }))
			if p := mustFind(t, d, sam); p.Name != name {
				t.Errorf("%q is %+v", name, p)
			} else if err := d.Bind(t.Context(), p.DN, pw); err != nil {
				t.Errorf("bind of %q: %v", name, err)
			}
			wantGroups(t, d, sam, "corp:above-"+sam, "corp:g-"+sam)
			if m, err := d.Members(t.Context(), "corp:above-"+sam, 0); err != nil || len(m.People) != 1 || m.People[0].Person.Username != sam || len(m.People[0].Path) != 2 {
				t.Errorf("members above %q: %+v, %v", name, m, err)
			}
		}
	}
}

// changesInAD follows one person, as refreshes do, through all that can happen
// to an account.
func changesInAD(t *testing.T, s *testenv.Samba, d *Directory) {
	dn := "CN=Change,OU=People," + s.BaseDN
	s.AddLDIF(t, testenv.UserLDIF(dn, "change", pw))
	was := mustFind(t, d, "change")
	modify := func(lines ...string) {
		s.AddLDIF(t, "dn: "+dn+"\nchangetype: modify\n"+strings.Join(lines, "\n")+"\n\n")
	}
	is := func(what string, want State) Person {
		t.Helper()
		p, err := d.Lookup(t.Context(), was.ID)
		if err != nil || p.State != want || p.Sub() != was.Sub() {
			t.Errorf("%s: %+v, %v, want %s", what, p, err, want)
		}
		return p
	}
	is("new", Active)
	for _, c := range []struct {
		what, attribute, value, after string
		want                          State
	}{
		{"disabled", "userAccountControl", "514", "512", Disabled},
		{"account expired", "accountExpires", "131000000000000000", "0", Expired},
		{"must change", "pwdLastSet", "0", "-1", MustChange},
	} {
		modify("replace: "+c.attribute, c.attribute+": "+c.value)
		is(c.what, c.want)
		modify("replace: "+c.attribute, c.attribute+": "+c.after)
		is("no longer "+c.what, Active)
	}
	time.Sleep(time.Until(was.PasswordChanged.Add(10 * time.Millisecond)))
	_, password, _ := strings.Cut(testenv.UserLDIF("X", "x", pw+"-new"), "unicodePwd:: ")
	modify("replace: unicodePwd", "unicodePwd:: "+strings.TrimSpace(password))
	changed := is("password changed", Active).PasswordChanged
	if !changed.After(was.PasswordChanged) {
		t.Errorf("the password was changed at %s, then at %s", was.PasswordChanged, changed)
	}
	s.AddLDIF(t, "dn: "+dn+"\nchangetype: moddn\nnewrdn: CN=Moved\ndeleteoldrdn: 1\nnewsuperior: CN=Users,"+s.BaseDN+"\n\n")
	dn = "CN=Moved,CN=Users," + s.BaseDN
	modify("replace: sAMAccountName", "sAMAccountName: renamed")
	if p := is("moved", Active); p.DN != dn || p.Username != "renamed" {
		t.Errorf("moved to %+v", p)
	}
	s.AddLDIF(t, "dn: "+dn+"\nchangetype: delete\n\n")
	_, err := d.Lookup(t.Context(), was.ID)
	wantErr(t, "deleted", err, ErrNotFound)
}

func findInAD(t *testing.T, s *testenv.Samba, d *Directory) {
	jane := mustFind(t, d, "jane")
	if jane.Username != "jane" || jane.Name != "Jane D" || jane.Email != "jane.d@corp.example" || jane.State != Active || time.Since(jane.PasswordChanged) > time.Hour {
		t.Errorf("jane is %+v", jane)
	}
	for _, login := range []string{"JANE", "jane.d@corp.example", "jane.doe@corp.example", `CORP\jane`, `corp\jane`} {
		if p := mustFind(t, d, login); !reflect.DeepEqual(p, jane) {
			t.Errorf("Find(%q) is %+v", login, p)
		}
	}
	if p, err := d.Lookup(t.Context(), jane.ID); err != nil || !reflect.DeepEqual(p, jane) {
		t.Errorf("Lookup: %+v, %v", p, err)
	}
	if p := mustFind(t, d, "jörg"); p.Username != "jörg" || p.Name != "Jörg" {
		t.Errorf("jörg is %+v", p)
	}
	for _, login := range []string{`OTHER\jane`, "Jane D", "team", "*", "jan*", "DC1$"} {
		_, err := d.Find(t.Context(), login)
		wantErr(t, fmt.Sprintf("Find(%q)", login), err, ErrNotFound)
	}
	other := open(t, with(sambaConfig(s), func(c *Config) { c.Name = "forest" }))
	if p := mustFind(t, other, `corp\jane`); p.Username != "jane" {
		t.Errorf("by NetBIOS name: %+v", p)
	}
}

// membersInAD follows groupsInAD, which made a way through a list, and bob's primary
// group one that is in another.
func membersInAD(t *testing.T, s *testenv.Samba) {
	s.AddLDIF(t, "dn: OU=Sub,OU=Groups,"+s.BaseDN+"\nobjectClass: organizationalUnit\n\n"+strings.ReplaceAll(
		adGroup("far", "-2147483640", "Jörg,OU=People")+adGroup("list2", "2", "far,OU=Groups", "Bob,OU=People")+adGroup("near", "-2147483640"), ",OU=Groups,DC", ",OU=Sub,OU=Groups,DC")+
		"dn: CN=far,OU=Sub,OU=Groups,"+s.BaseDN+"\nchangetype: modify\nadd: member\nmember: CN=team,OU=Groups,"+s.BaseDN+"\n\n"+
		adGroup("top", "-2147483640", "far,OU=Sub,OU=Groups", "list2,OU=Sub,OU=Groups", "Domain Users,CN=Users"))
	for _, cn := range []string{"top", "circle", "above-primary"} {
		s.AddLDIF(t, "dn: CN="+cn+",OU=Groups,"+s.BaseDN+"\nchangetype: modify\nadd: description\ndescription: The "+cn+"\n\n")
	}
	for _, nested := range []Nested{NestedInChain, NestedTokenGroups, NestedWalk, NestedNone} {
		for name, change := range map[string]func(*Config){
			"all": func(*Config) {}, "exclude": func(c *Config) { c.Groups.Exclude = []string{"dept", "primary", "far"} },
			"one OU":           func(c *Config) { c.Groups.BaseDN = "OU=Groups," + s.BaseDN },
			"one OU, excluded": func(c *Config) { c.Groups.BaseDN, c.Groups.Exclude = "OU=Groups,"+s.BaseDN, []string{"team"} },
			"OU below":         func(c *Config) { c.Groups.BaseDN = "OU=Sub,OU=Groups," + s.BaseDN },
			"lists too":        func(c *Config) { c.Groups.Filter = "(objectCategory=group)" },
			"some":             func(c *Config) { c.Groups.Filter = "(|(cn=top)(cn=circle)(cn=above-primary)(cn=list*))" },
			"few have a name":  func(c *Config) { c.Groups.Name, c.Groups.BaseDN = "description", "OU=Groups,"+s.BaseDN },
			"another member":   func(c *Config) { c.Groups.Member = "managedBy" },
		} {
			if name == "another member" && nested != NestedWalk && nested != NestedNone {
				continue // their rules know no other
			}
			t.Run(string(nested)+" "+name, func(t *testing.T) {
				all, deep := wantAgreement(t, open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested = nested; change(c) })))
				unreachable := name == "few have a name" && (nested == NestedWalk || nested == NestedNone)
				if t.Logf("%d memberships, %d nested", all, deep); (all == 0) != unreachable {
					t.Errorf("%d memberships prove little", all)
				}
			})
		}
	}
	d := open(t, sambaConfig(s))
	m, err := d.Members(t.Context(), "corp:circle", 0)
	in := func(cn string) string { return "CN=" + cn + ",OU=Groups," + s.BaseDN }
	if want := []Member{{mustFind(t, d, "jane"), []string{in("circle"), in("company"), in("dept"), in("team")}}}; err != nil || !reflect.DeepEqual(m.People, want) {
		t.Errorf("%+v, %v, want %+v", m, err, want)
	}
	t.Run("many", func(t *testing.T) {
		var people strings.Builder
		var members []string
		for i := range 1600 {
			fmt.Fprintf(&people, "dn: CN=m%04[1]d,OU=People,%[2]s\nobjectClass: user\nsAMAccountName: m%04[1]d\n\n", i, s.BaseDN)
			members = append(members, fmt.Sprintf("m%04d,OU=People", i))
		}
		s.AddLDIF(t, people.String()+adGroup("many", "-2147483646", members...)+adGroup("above-many", "-2147483640", "many,OU=Groups"))
		wantMany(t, d, "corp:above-many", 1600)
		wantMany(t, open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested, c.Groups.Exclude = NestedWalk, []string{"x"} })), "corp:many", 1600)
		if found, err := d.Search(t.Context(), "m0", 0); err != nil || len(found) != 20 || found[0].State != Disabled {
			t.Errorf("%+v, %v", found, err)
		}
	})
}

func searchInAD(t *testing.T, s *testenv.Samba, d *Directory) {
	jane := mustFind(t, d, "jane")
	for _, typed := range []string{"ja", "JAN", " jane ", "Jane D", "Jane (", "jane.d@", "jane.doe@corp", `corp\ja`, `CORP\ja`} {
		if got, err := d.Search(t.Context(), typed, 0); err != nil || !reflect.DeepEqual(got, []Person{jane}) {
			t.Errorf("%q finds %+v, %v", typed, got, err)
		}
	}
	for typed, want := range map[string]string{"jö": "jörg", "jör": "jörg", "of": "off", "expi": "expired", "mus": "must"} {
		if got, err := d.Search(t.Context(), typed, 0); err != nil || len(got) != 1 || got[0].Username != want || got[0].State != mustFind(t, d, want).State {
			t.Errorf("%q finds %+v, %v", typed, got, err)
		}
	}
	for _, typed := range []string{"", "j", `corp\j`, `other\jane`, `corp\`, "*a", "ja*", "=jane", "=ja", "team", "ane", "DC1", "Doe)(x=*", "ja\x00"} {
		if got, err := d.Search(t.Context(), typed, 0); err != nil || len(got) != 0 {
			t.Errorf("%q finds %+v, %v", typed, got, err)
		}
	}
}

func idInAD(t *testing.T, s *testenv.Samba, d *Directory) {
	cmd := exec.Command("ldapsearch", "-LLL", "-x", "-H", s.TLSURL, "-D", s.BindDN, "-w", s.BindPassword, "-b", "<GUID="+mustFind(t, d, "jane").ID+">", "-s", "base", "cn")
	cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "cn: Jane (Admin)") {
		t.Errorf("%v\n%s", err, out)
	}
}

func bindInAD(t *testing.T, d *Directory) {
	for login, want := range map[string]State{"jane": Active, "never": Active, "off": Disabled, "expired": Expired, "must": MustChange} {
		p := mustFind(t, d, login)
		if p.State != want {
			t.Errorf("%s is %s, want %s", login, p.State, want)
		}
		wantErr(t, "wrong password of "+login, d.Bind(t.Context(), p.DN, "wrong"), ErrInvalidCredentials)
		if want != Active {
			wantAccount(t, d, login, pw, want)
		} else if err := d.Bind(t.Context(), p.DN, pw); err != nil {
			t.Errorf("%s: %v", login, err)
		}
	}
	locked := mustFind(t, d, "locked")
	for range 4 {
		wantErr(t, "wrong password", d.Bind(t.Context(), locked.DN, "wrong"), ErrInvalidCredentials)
	}
	wantErr(t, "right password of a locked account", d.Bind(t.Context(), locked.DN, pw), ErrInvalidCredentials)
	if p := mustFind(t, d, "locked"); p.State != Locked {
		t.Errorf("locked is %s", p.State)
	}
	wantErr(t, "dummy", d.Bind(t.Context(), d.DummyDN(), pw), ErrInvalidCredentials)
	mustFind(t, d, "jane") // the pool is still the service account's
}

func groupsInAD(t *testing.T, s *testenv.Samba) {
	// Bob's primary group becomes one that is in another.
	s.AddLDIF(t, "dn: CN=Bob,OU=People,DC=corp,DC=example\nchangetype: modify\nreplace: primaryGroupID\nprimaryGroupID: "+rid(t, s, "primary")+"\n\n")
	for _, nested := range []Nested{"", NestedInChain, NestedTokenGroups, NestedWalk} {
		t.Run("groups by "+string(nested), func(t *testing.T) {
			all := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested = nested }))
			wantGroups(t, all, "jane", "corp:Domain Users", "corp:Users", "corp:circle", "corp:company", "corp:dept", "corp:team")
			wantGroups(t, all, "bob", "corp:Domain Users", "corp:Users", "corp:above-primary", "corp:bobs", "corp:primary")
			e, err := all.Explain(t.Context(), "jane")
			if err != nil {
				t.Fatal(err)
			}
			groups := e.Groups
			in := func(cn string) string { return "CN=" + cn + ",OU=Groups,DC=corp,DC=example" }
			if want := []string{in("team"), in("dept"), in("company"), in("circle")}; !reflect.DeepEqual(groups[2].Path, want) {
				t.Errorf("path %q, want %q", groups[2].Path, want)
			}
			hidden := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested, c.Groups.Exclude = nested, []string{"dept", "primary"} }))
			wantGroups(t, hidden, "jane", "corp:Domain Users", "corp:Users", "corp:team")
			wantGroups(t, hidden, "bob", "corp:Domain Users", "corp:Users", "corp:bobs")
			below := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested, c.Groups.BaseDN = nested, "OU=Groups,"+s.BaseDN }))
			wantGroups(t, below, "bob", "corp:above-primary", "corp:bobs", "corp:primary")
		})
	}
	t.Run("measured", func(t *testing.T) {
		measured, err := open(t, sambaConfig(s)).Measure(t.Context(), "jane")
		if err != nil || len(measured) != 3 {
			t.Fatalf("%+v, %v", measured, err)
		}
		best := 0
		for i, m := range measured {
			if m.Groups != 6 || m.Error != "" || m.Took <= 0 || m.Strategy == NestedInChain && m.Queries != 1 || m.Strategy == NestedTokenGroups && m.Queries != 1 {
				t.Errorf("%+v", m)
			}
			if m.Took < measured[best].Took {
				best = i
			}
		}
		for i, m := range measured {
			if m.Recommended != (i == best) {
				t.Errorf("%+v", measured)
			}
		}
	})
	t.Run("no tokenGroups are no answer", func(t *testing.T) {
		d := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested = NestedTokenGroups }))
		p := mustFind(t, d, "jane")
		p.DN = "OU=People," + s.BaseDN // has none, as a person has for an account that may not read them
		if groups, err := d.Groups(t.Context(), p); err == nil || groups != nil || !strings.Contains(err.Error(), "tokenGroups is empty") {
			t.Errorf("%v, %v", groups, err)
		}
	})
	t.Run("an ended membership counts at once", func(t *testing.T) {
		s.AddLDIF(t, adGroup("brief", "-2147483646", "Jane (Admin),OU=People"))
		for _, nested := range []Nested{NestedInChain, NestedTokenGroups, NestedWalk} {
			d := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested, c.Groups.Include = nested, []string{"brief"} }))
			wantGroups(t, d, "jane", "corp:brief")
			member := func(change string) {
				s.AddLDIF(t, "dn: CN=brief,OU=Groups,"+s.BaseDN+"\nchangetype: modify\n"+change+": member\nmember: CN=Jane (Admin),OU=People,"+s.BaseDN+"\n\n")
			}
			member("delete")
			wantGroups(t, d, "jane")
			member("add")
			wantGroups(t, d, "jane", "corp:brief")
		}
		s.AddLDIF(t, "dn: CN=brief,OU=Groups,"+s.BaseDN+"\nchangetype: delete\n\n")
	})
	t.Run("a way through a distribution list is none", func(t *testing.T) {
		s.AddLDIF(t, adGroup("behind-list", "-2147483640", "list,OU=Groups"))
		for _, nested := range []Nested{NestedInChain, NestedTokenGroups, NestedWalk} {
			d := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested = nested }))
			wantGroups(t, d, "jane", "corp:Domain Users", "corp:Users", "corp:circle", "corp:company", "corp:dept", "corp:team")
		}
	})
	t.Run("a primary group that moves", func(t *testing.T) {
		d := open(t, sambaConfig(s))
		wantGroups(t, d, "bob", "corp:Domain Users", "corp:Users", "corp:above-primary", "corp:bobs", "corp:primary")
		s.AddLDIF(t, "dn: CN=primary,OU=Groups,DC=corp,DC=example\nchangetype: moddn\nnewrdn: CN=moved\ndeleteoldrdn: 1\n\n")
		wantGroups(t, d, "bob", "corp:Domain Users", "corp:Users", "corp:above-primary", "corp:bobs", "corp:primary")
	})
	t.Run("names that occur twice", func(t *testing.T) {
		s.AddLDIF(t, strings.NewReplacer("CN=dept,OU=Groups", "CN=dept,OU=People", "sAMAccountName: dept", "sAMAccountName: dept2").Replace(adGroup("dept", "-2147483646"))+"\n")
		d := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Name = "cn" }))
		if got, err := d.DuplicateNames(t.Context()); err != nil || !reflect.DeepEqual(got, []string{"corp:dept"}) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("direct groups alone", func(t *testing.T) {
		direct := open(t, with(sambaConfig(s), func(c *Config) { c.Groups.Nested = NestedNone }))
		wantGroups(t, direct, "jane", "corp:Domain Users", "corp:team")
	})
}

// rid is the last part of a group's security identifier.
func rid(t *testing.T, s *testenv.Samba, sAMAccountName string) string {
	t.Helper()
	cmd := exec.Command("ldapsearch", "-LLL", "-x", "-H", s.TLSURL, "-D", s.BindDN, "-w", s.BindPassword, "-b", s.BaseDN, "(sAMAccountName="+sAMAccountName+")", "primaryGroupToken")
	cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, token, found := strings.Cut(string(out), "primaryGroupToken: ")
	if !found {
		t.Fatalf("no primaryGroupToken:\n%s", out)
	}
	return strings.Fields(token)[0]
}
