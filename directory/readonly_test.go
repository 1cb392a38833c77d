package directory

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// mayBeSent are the requests that change nothing. The extended ones are StartTLS
// (RFC 4511) and "Who am I?" (RFC 4532).
var mayBeSent = []string{
	"bindRequest", "unbindRequest", "searchRequest", "abandonRequest",
	"extendedReq 1.3.6.1.4.1.1466.20037", "extendedReq 1.3.6.1.4.1.4203.1.11.3",
}

// TestNeverWrites: see neverWrites; Active Directory's turn is in TestActiveDirectory.
func TestNeverWrites(t *testing.T) {
	slapd := groupTree(t)
	neverWrites(t, slapdConfig(slapd), slapd.URL, "", "alice", "pw-alice", NestedWalk, NestedNone)
}

// neverWrites records what is sent to the server at url, whose certificate the CA in
// caFile signed, while all that a Directory can do is done.
func neverWrites(t *testing.T, cfg Config, url, caFile, login, password string, nested ...Nested) {
	ca := testenv.NewCA(t, t.TempDir())
	proxy := testenv.StartLDAPProxy(t, url, caFile, ca.ServerTLS(t))
	for _, how := range nested {
		d := open(t, with(cfg, func(c *Config) {
			c.URLs, c.CAFile, c.Groups.Nested = []string{"ldaps://" + proxy.Address}, ca.File, how
		}))
		doEverything(t, d, login, password)
	}
	sent := proxy.Requests()
	for request := range maps.Keys(sent) {
		if !slices.Contains(mayBeSent, request) {
			t.Errorf("%d × %s was sent", sent[request], request)
		}
	}
	if sent["searchRequest"] == 0 || sent["bindRequest"] == 0 || sent["extendedReq 1.3.6.1.4.1.4203.1.11.3"] == 0 {
		t.Errorf("the proxy saw only %v", sent)
	}
}

// doEverything calls every method that talks to the server.
func doEverything(t *testing.T, d *Directory, login, password string) {
	t.Helper()
	p := mustFind(t, d, login)
	_, unknown := d.Find(t.Context(), "nobody-of-that-name")
	wantErr(t, "an unknown login", unknown, ErrNotFound)
	_, err := d.Lookup(t.Context(), p.ID)
	errs := []error{err, d.Ping(t.Context()), d.Bind(t.Context(), p.DN, password)}
	wantErr(t, "wrong password", d.Bind(t.Context(), p.DN, "wrong"), ErrInvalidCredentials)
	wantErr(t, "dummy", d.Bind(t.Context(), d.DummyDN(), "wrong"), ErrInvalidCredentials)
	for _, c := range d.binds.free {
		c.used = time.Time{}
	}
	errs = append(errs, d.Bind(t.Context(), p.DN, password))
	_, err = d.Groups(t.Context(), p)
	errs = append(errs, err)
	_, err = d.Explain(t.Context(), login)
	errs = append(errs, err)
	_, err = d.Search(t.Context(), login, 0)
	errs = append(errs, err)
	for _, g := range explained(t, d, login).Groups {
		_, err = d.Members(t.Context(), g.Name, 0)
		errs = append(errs, err)
	}
	d.Lockout(t.Context()) // an error where the server has no policy
	d.check(t.Context(), d.known[0])
	for i, err := range errs {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

// failedBindInAD: Samba keeps the old identity after a failed
// bind. The next login on that connection is judged by its own password.
func failedBindInAD(t *testing.T, s *testenv.Samba) {
	ca := testenv.NewCA(t, t.TempDir())
	proxy := testenv.StartLDAPProxy(t, s.TLSURL, s.CAFile, ca.ServerTLS(t))
	d := open(t, with(sambaConfig(s), func(c *Config) { c.URLs, c.CAFile = []string{"ldaps://" + proxy.Address}, ca.File }))
	jane, bob, away := mustFind(t, d, "jane"), mustFind(t, d, "bob"), mustFind(t, d, "away")
	before := proxy.Accepted()
	for range 3 {
		if err := d.Bind(t.Context(), jane.DN, pw); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "bob after jane", d.Bind(t.Context(), bob.DN, "wrong"), ErrInvalidCredentials)
		wantErr(t, "dummy after jane", d.Bind(t.Context(), d.DummyDN(), pw), ErrInvalidCredentials)
		wantAccount(t, d, "away", pw, Disabled)
		wantErr(t, "away", d.Bind(t.Context(), away.DN, "wrong"), ErrInvalidCredentials)
		if err := d.Bind(t.Context(), bob.DN, pw); err != nil {
			t.Fatal(err)
		}
	}
	if n := proxy.Accepted() - before; n != 1 {
		t.Errorf("%d connections for the binds, want one", n)
	}
	mustFind(t, d, "jane") // the searches are still the service account's
	if len(d.searches.free) != 1 || len(d.binds.free) != 1 || d.searches.free[0] == d.binds.free[0] {
		t.Errorf("pools of %d and %d", len(d.searches.free), len(d.binds.free))
	}
}
