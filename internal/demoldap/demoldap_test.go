package demoldap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

// demo is a running server with what is needed to talk to it.
type demo struct {
	*Server
	caFile string
	config Config
}

func start(t *testing.T) demo {
	t.Helper()
	ca := testenv.NewCA(t, t.TempDir())
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "localhost"))
	if err != nil {
		t.Fatal(err)
	}
	d := demo{caFile: ca.File, config: Config{Port: testenv.FreePort(t), Certificate: pair, BindPassword: "pw-tabard"}}
	if d.Server, err = Start(d.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// directory reads d with the defaults of an LDAP directory, but for what change sets.
func (d demo) directory(t *testing.T, change func(*directory.Config)) *directory.Directory {
	t.Helper()
	c := directory.Config{Name: "corp", Type: directory.TypeLDAP, URLs: []string{d.URL}, CAFile: d.caFile, BindDN: BindDN, BindPassword: "pw-tabard"}
	change(&c)
	dir, err := directory.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	return dir
}

// TestDirectoryReadsIt does with Tabard's own room what a sign-in and a refresh do.
func TestDirectoryReadsIt(t *testing.T) {
	s := start(t)
	dir := s.directory(t, func(*directory.Config) {})
	if err := dir.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range People() {
		byMail, err := dir.Find(t.Context(), p.UID+"@corp.example")
		if err != nil {
			t.Fatal(err)
		}
		found, err := dir.Find(t.Context(), strings.ToUpper(p.UID))
		if err != nil || found.Username != p.UID || found.Name != p.Name || found.State != directory.Active || found.ID != byMail.ID {
			t.Errorf("%s: %+v, %v", p.UID, found, err)
		}
		if err := dir.Bind(t.Context(), found.DN, p.Password); err != nil {
			t.Error(err)
		}
		if err := dir.Bind(t.Context(), found.DN, p.Password+"x"); !errors.Is(err, directory.ErrInvalidCredentials) {
			t.Errorf("a wrong password of %s: %v", p.UID, err)
		}
		again, err := dir.Lookup(t.Context(), found.ID)
		if err != nil || again.DN != found.DN {
			t.Errorf("%s by id: %+v, %v", p.UID, again, err)
		}
		groups, err := dir.Groups(t.Context(), found)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range groups {
			names = append(names, strings.TrimPrefix(g.Name, "corp:"))
			in, err := dir.Members(t.Context(), g.Name, 0)
			if err != nil || in.Unreadable > 0 || !slices.ContainsFunc(in.People, func(m directory.Member) bool { return m.Person.ID == found.ID }) {
				t.Errorf("members of %s without %s: %+v, %v", g.Name, p.UID, in, err)
			}
		}
		typed, err := dir.Search(t.Context(), p.UID, 0)
		if err != nil || !slices.ContainsFunc(typed, func(q directory.Person) bool { return q.ID == found.ID }) {
			t.Errorf("typed %s: %+v, %v", p.UID, typed, err)
		}
		if !slices.Equal(names, p.Groups) {
			t.Errorf("groups of %s are %q, want %q", p.UID, names, p.Groups)
		}
	}
	if err := dir.Bind(t.Context(), dir.DummyDN(), "x"); !errors.Is(err, directory.ErrInvalidCredentials) {
		t.Errorf("the dummy DN: %v", err)
	}
	if _, err := dir.Find(t.Context(), "mallory"); !errors.Is(err, directory.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := dir.Find(t.Context(), "a*"); !errors.Is(err, directory.ErrNotFound) {
		t.Errorf("an asterisk is a pattern: %v", err)
	}
	wrong := s.directory(t, func(c *directory.Config) { c.BindPassword = "wrong" })
	if err := wrong.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "bindDN") {
		t.Errorf("a wrong bind password: %v", err)
	}
}

// TestSampleTellsTheStory: the demo says that alice is in devs, and so in all-devs,
// that carol runs the clusters, and that bob has no rights.
func TestSampleTellsTheStory(t *testing.T) {
	want := map[string]string{"alice": "all-devs devs", "bob": "support", "carol": "cluster-operators", "dave": "all-devs"}
	for _, p := range People() {
		if w, ok := want[p.UID]; ok && strings.Join(p.Groups, " ") != w {
			t.Errorf("%s is in %q, want %q", p.UID, p.Groups, w)
		}
	}
}

func (d demo) dial(t *testing.T) *ldap.Conn {
	t.Helper()
	pem, err := os.ReadFile(d.caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c, err := ldap.DialURL(d.URL, ldap.DialWithTLSConfig(&tls.Config{RootCAs: pool}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func count(c *ldap.Conn, base string, scope, limit int, filter string, attributes ...string) (int, error) {
	res, err := c.Search(ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, limit, 0, false, filter, attributes, nil))
	if res == nil {
		return 0, err
	}
	return len(res.Entries), err
}

// TestServerLikeAnyOther tries what our own room does not.
func TestServerLikeAnyOther(t *testing.T) {
	c := start(t).dial(t)
	if n, err := count(c, "", ldap.ScopeBaseObject, 0, "(objectClass=*)"); n != 1 || err != nil {
		t.Errorf("the root DSE: %d, %v", n, err)
	}
	if n, err := count(c, BaseDN, ldap.ScopeWholeSubtree, 0, "(objectClass=*)"); n != 0 || !ldap.IsErrorWithCode(err, ldap.LDAPResultInsufficientAccessRights) {
		t.Errorf("who is not bound finds %d, %v", n, err)
	}
	if err := c.UnauthenticatedBind(BindDN); !ldap.IsErrorWithCode(err, ldap.LDAPResultUnwillingToPerform) {
		t.Errorf("a name without a password: %v", err)
	}
	if err := c.Bind(BindDN, "pw-tabard"); err != nil {
		t.Fatal(err)
	}
	people := len(samplePeople())
	for _, tc := range []struct {
		base         string
		scope, limit int
		filter       string
		want         int
		code         uint16
	}{
		{PeopleDN, ldap.ScopeSingleLevel, 0, "(objectClass=*)", people, 0},
		{PeopleDN, ldap.ScopeWholeSubtree, 0, "(objectClass=*)", people + 1, 0},
		{PeopleDN, ldap.ScopeBaseObject, 0, "(objectClass=*)", 1, 0},
		{BaseDN, ldap.ScopeWholeSubtree, 3, "(objectClass=person)", 3, ldap.LDAPResultSizeLimitExceeded},
		{"UID=Alice, OU=people,dc=corp,dc=example", ldap.ScopeBaseObject, 0, "(cn=alice adams)", 1, 0},
		{"ou=nowhere," + BaseDN, ldap.ScopeWholeSubtree, 0, "(objectClass=*)", 0, ldap.LDAPResultNoSuchObject},
		{BaseDN, ldap.ScopeWholeSubtree, 0, "(uidNumber>=5)", 0, ldap.LDAPResultInappropriateMatching},
		{BaseDN, ldap.ScopeWholeSubtree, 0, "(userPassword=*)", 0, 0},
		{BaseDN, ldap.ScopeWholeSubtree, 0, "(sn=jung)", 1, 0},
		{BaseDN, ldap.ScopeWholeSubtree, 0, "(displayName=Jörg*)", 1, 0},
	} {
		n, err := count(c, tc.base, tc.scope, tc.limit, tc.filter)
		if n != tc.want || (err != nil) != (tc.code != 0) || err != nil && !ldap.IsErrorWithCode(err, tc.code) {
			t.Errorf("%s %d %s: %d, %v", tc.base, tc.scope, tc.filter, n, err)
		}
	}
	res, err := c.SearchWithPaging(ldap.NewSearchRequest(BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(uid=alice)", []string{"MAIL", "entryUUID"}, nil), 2)
	if err != nil || len(res.Entries) != 1 || len(res.Entries[0].Attributes) != 2 {
		t.Errorf("by pages: %+v, %v", res, err)
	}
	err = c.Modify(&ldap.ModifyRequest{DN: "uid=alice," + PeopleDN, Changes: []ldap.Change{{Operation: ldap.DeleteAttribute, Modification: ldap.PartialAttribute{Type: "mail"}}}})
	if !ldap.IsErrorWithCode(err, ldap.LDAPResultUnwillingToPerform) {
		t.Errorf("a change: %v", err)
	}
	if err := c.Bind("uid=alice,"+PeopleDN, "wrong"); err == nil {
		t.Error("a wrong password is taken")
	}
	if n, err := count(c, BaseDN, ldap.ScopeWholeSubtree, 0, "(objectClass=*)"); err == nil {
		t.Errorf("after a failed bind the connection still reads %d entries", n)
	}
}

// TestStopHangsUp: idle clients, and one that never says anything, hold nothing up
// for ever, and the port is free again.
func TestStopHangsUp(t *testing.T) {
	s := start(t)
	dir := s.directory(t, func(*directory.Config) {})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := dir.Find(t.Context(), "alice"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	silent, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "ldaps://"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	// The library counts connections as it takes them, one after another, and may
	// not count one more while Stop waits: one that is served was taken after silent.
	if _, err := s.directory(t, func(*directory.Config) {}).Find(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(s.config); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second one on the port: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := dir.Find(ctx, "alice"); !errors.Is(err, directory.ErrUnavailable) {
		t.Errorf("after Stop: %v", err)
	}
	again, err := Start(s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	if _, err := dir.Find(t.Context(), "alice"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}
