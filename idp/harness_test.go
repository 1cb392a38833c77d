package idp

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

// clock is the one clock of a house; it stands still until it is moved.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// entry is one person of a directory in memory.
type entry struct {
	directory.Person
	password string
	groups   []string
	findErr  error // what looking the person up answers instead
	bindErr  error // what a bind with the right password answers
	unlocks  bool  // a right password ends its lock, as in OpenLDAP
}

// people is a directory in memory that can fail.
type people struct {
	name string

	mu      sync.Mutex
	entries map[string]*entry // by login
	down    error             // every call answers it
	noGroup error             // Groups alone answers it
	hang    bool              // every call waits for its deadline
	calls   []string

	queryErr string // of a query that Explain tells of
}

func (d *people) Name() string    { return d.name }
func (d *people) Prefix() string  { return d.name + ":" }
func (d *people) DummyDN() string { return "cn=nobody,dc=" + d.name }
func (d *people) Lockout(context.Context) (directory.Lockout, error) {
	return directory.Lockout{}, nil
}

// call notes one call and returns the directory's own fault.
func (d *people) call(ctx context.Context, what string) error {
	d.calls = append(d.calls, what)
	if d.hang {
		d.mu.Unlock()
		<-ctx.Done()
		d.mu.Lock()
		return fmt.Errorf("%w: %w", directory.ErrUnavailable, ctx.Err())
	}
	return d.down
}

func (d *people) Find(ctx context.Context, login string) (directory.Person, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(ctx, "find"); err != nil {
		return directory.Person{}, err
	}
	e := d.entries[strings.ToLower(strings.TrimSpace(login))]
	if e == nil {
		return directory.Person{}, directory.ErrNotFound
	}
	return e.Person, e.findErr
}

func (d *people) by(match func(*entry) bool) *entry {
	for _, e := range d.entries {
		if match(e) {
			return e
		}
	}
	return nil
}

func (d *people) Bind(ctx context.Context, dn, password string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(ctx, "bind"); err != nil {
		return err
	}
	e := d.by(func(e *entry) bool { return e.DN == dn })
	if e == nil || e.password != password {
		return fmt.Errorf("ldap://10.1.2.3: %w", directory.ErrInvalidCredentials)
	}
	if e.unlocks {
		e.State = directory.Active
	}
	return e.bindErr
}

func (d *people) Lookup(ctx context.Context, id string) (directory.Person, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(ctx, "lookup"); err != nil {
		return directory.Person{}, err
	}
	e := d.by(func(e *entry) bool { return e.ID == id })
	if e == nil {
		return directory.Person{}, directory.ErrNotFound
	}
	return e.Person, e.findErr
}

func (d *people) Groups(ctx context.Context, p directory.Person) ([]directory.Group, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.call(ctx, "groups"), d.noGroup); err != nil {
		return nil, err
	}
	var out []directory.Group
	if e := d.by(func(e *entry) bool { return e.ID == p.ID }); e != nil {
		for _, g := range e.groups {
			out = append(out, directory.Group{Name: g, DN: "cn=" + g, Path: []string{"cn=" + g}})
		}
	}
	return out, nil
}

func (d *people) Explain(ctx context.Context, loginOrID string) (directory.Explanation, error) {
	p, err := d.Lookup(ctx, loginOrID)
	if errors.Is(err, directory.ErrNotFound) {
		p, err = d.Find(ctx, loginOrID)
	}
	if err != nil {
		return directory.Explanation{}, err
	}
	x := directory.Explanation{Person: p, Strategy: "walk", Queries: []directory.Query{{Doing: "find the person", Base: "dc=" + d.name, Filter: "(uid=" + loginOrID + ")", Entries: 1, Error: d.queryErr}}}
	x.Groups, err = d.Groups(ctx, p)
	return x, err
}

func (d *people) Search(ctx context.Context, typed string, limit int) ([]directory.Person, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(ctx, "search"); err != nil {
		return nil, err
	}
	var out []directory.Person
	for _, login := range slices.Sorted(maps.Keys(d.entries)) {
		if strings.HasPrefix(login, typed) && len(out) < limit {
			out = append(out, d.entries[login].Person)
		}
	}
	return out, nil
}

func (d *people) Members(ctx context.Context, group string, limit int) (directory.Members, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(ctx, "members"); err != nil {
		return directory.Members{}, err
	}
	var out directory.Members
	for _, e := range d.entries {
		if slices.Contains(e.groups, group) {
			out.People = append(out.People, directory.Member{Person: e.Person, Path: []string{"cn=" + group}})
		}
	}
	if out.People == nil {
		return out, directory.ErrNotFound
	}
	out.More = len(out.People) > limit
	out.People = out.People[:min(limit, len(out.People))]
	return out, nil
}

// change does something to the directory or one of its people.
func (d *people) change(login string, do func(*entry)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do(d.entries[login])
}

func (d *people) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
}

// took returns the calls since it was asked last.
func (d *people) took() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

var errUnreachable = fmt.Errorf("dial ldaps://10.1.2.3:636: %w", directory.ErrUnavailable)

// trail is the real audit log that also shows what it was given, and can fail.
type trail struct {
	*audit.Log
	mu     sync.Mutex
	events []audit.Event
	down   error
}

func (l *trail) Append(ctx context.Context, e audit.Event) error {
	l.mu.Lock()
	down := l.down
	if down == nil {
		l.events = append(l.events, e)
	}
	l.mu.Unlock()
	if down != nil {
		return down
	}
	return l.Log.Append(ctx, e)
}

// said returns the events of one act, as "outcome reason".
func (l *trail) said(act string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []string{}
	for _, e := range l.events {
		if e.Act == act {
			out = append(out, strings.TrimSpace(e.Outcome+" "+e.Reason))
		}
	}
	return out
}

const (
	password     = "correct horse"
	secret       = "headlamp-secret-0123456789"
	redirect     = "http://localhost:8000"
	headlampURI  = "https://headlamp.test/cb"
	headlampBye  = "https://headlamp.test/bye"
	verifier     = "a-verifier-that-is-long-enough-for-rfc-7636"
	aliceID      = "00000000-0000-4000-8000-000000000001"
	bobID        = "00000000-0000-4000-8000-000000000002"
	boss         = "corp:k8s-admins"
	unusualLogin = "my-password-typed-as-login"
)

var challenge = func() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}()

// house is a Service with real parts around it and two directories in memory.
type house struct {
	t     testing.TB
	ctx   context.Context
	clock *clock
	disk  *bolt.Store
	store *storetest.Faulty
	trail *trail
	local *groups.Service
	keys  *Keys
	corp  *people
	lab   *people
	cfg   Config
	*Service
}

func testConfig() Config {
	c := Config{
		Issuer: "https://id.test", DirectoryPrefixes: []string{"corp:", "lab:"},
		Tokens: TokenConfig{SigningAlgorithm: "ES256"}, // RSA keys take long to make
		Clusters: []ClusterConfig{
			{Name: "prod", ClientID: "kubernetes", RedirectURIs: []string{redirect}, Groups: GroupFilter{Include: []string{"corp:k8s-*", "*"}}},
			{Name: "dev", ClientID: "dev", Sessions: SessionConfig{IdleTimeout: time.Hour, MaxLifetime: 3 * time.Hour}},
			{Name: "vault", ClientID: "vault", RedirectURIs: []string{redirect}, RequireGroups: []string{"vault-users", "corp:k8s-admins"}},
		},
		Clients: []ClientConfig{{ID: "headlamp", Cluster: "prod", Secret: secret, RedirectURIs: []string{headlampURI}, PostLogoutRedirectURIs: []string{headlampBye}}},
	}
	return c
}

func newHouse(t testing.TB, change ...func(*Config)) *house {
	t.Helper()
	h := &house{t: t, clock: &clock{at: time.Now().UTC().Truncate(time.Second)}, cfg: testConfig()}
	for _, f := range change {
		f(&h.cfg)
	}
	h.cfg.SetDefaults()
	h.must(h.cfg.Validate())
	h.ctx = audit.WithOrigin(t.Context(), audit.Origin{Address: "192.0.2.7", UserAgent: "test", RequestID: "req-1"})
	h.corp = &people{name: "corp", entries: map[string]*entry{}}
	h.lab = &people{name: "lab", entries: map[string]*entry{}}
	h.hire(h.corp, "alice", aliceID, boss, "corp:hidden")
	h.hire(h.corp, "bob", bobID)
	h.hire(h.lab, "lena", "00000000-0000-4000-8000-000000000003", "lab:k8s-lab")
	h.open(t.TempDir())
	return h
}

func (h *house) hire(d *people, login, id string, in ...string) {
	d.entries[login] = &entry{password: password, groups: in, Person: directory.Person{
		Directory: d.name, ID: id, DN: "cn=" + login + ",dc=" + d.name, Username: login, Name: "Name of " + login,
		Email: login + "@" + d.name + ".test", State: directory.Active, PasswordChanged: h.clock.Now().Add(-time.Hour),
	}}
}

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// open starts the parts on dir and stops them with the test.
func (h *house) open(dir string) {
	h.t.Helper()
	var err error
	h.disk, err = bolt.Open(bolt.Config{Path: filepath.Join(dir, "db"), Now: h.clock.Now, SweepInterval: time.Hour})
	h.must(err)
	h.t.Cleanup(func() { h.disk.Close() })
	h.store = storetest.NewFaulty(h.disk)
	log, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), Now: h.clock.Now})
	h.must(err)
	h.t.Cleanup(func() { log.Close() })
	h.trail = &trail{Log: log}
	h.local, err = groups.Open(h.ctx, h.disk, log, groups.Config{Admins: []string{boss}, Reserved: h.cfg.DirectoryPrefixes, Clusters: []string{"prod", "dev"}}, quiet())
	h.must(err)
	h.t.Cleanup(h.local.Close)
	h.keys, err = OpenKeys(h.ctx, h.disk, KeyConfig{Algorithms: h.cfg.KeyAlgorithms(), Retain: h.cfg.LongestToken()}, quiet(), h.clock.Now)
	h.must(err)
	h.t.Cleanup(h.keys.Close)
	sessions, err := OpenSessions(h.ctx, h.disk, quiet())
	h.must(err)
	h.t.Cleanup(sessions.Close)
	h.Service, err = New(h.ctx, h.cfg, Parts{
		Sessions: sessions,
		Store:    h.store, Trail: h.trail, Groups: h.local, Directories: []Directory{h.corp, h.lab}, Keys: h.keys, Log: quiet(), Now: h.clock.Now,
	})
	h.must(err)
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func (h *house) client(id string) *Client {
	h.t.Helper()
	c, err := h.Client(id)
	h.must(err)
	return c
}

// request is an authorization request as the client would send it.
func (h *house) request(id string) AuthRequest {
	r := AuthRequest{ClientID: id, RedirectURI: redirect, State: "st", ResponseType: "code", Offline: true, Nonce: "nonce-1"}
	switch id {
	case "headlamp":
		r.RedirectURI = headlampURI
	case BuiltinClient, "dev":
		r.RedirectURI = "http://127.0.0.1:4321/callback"
	}
	r.CodeChallenge, r.ChallengeBy = challenge, "S256"
	return r
}

// code signs a person in for a client and returns the code and the cookie.
func (h *house) code(login, id string) (code, cookie string) {
	h.t.Helper()
	return h.codeFor(login, h.request(id))
}

func (h *house) codeFor(login string, r AuthRequest) (code, cookie string) {
	h.t.Helper()
	a, err := h.Authorize(h.ctx, r, "", "")
	h.must(err)
	req, err := h.OpenRequest(a.Sealed, a.Binding)
	h.must(err)
	in, err := h.SignIn(h.ctx, Credentials{Login: login, Password: password}, req)
	h.must(err)
	return codeIn(h.t, in.Redirect), in.Cookie
}

func codeIn(t testing.TB, to string) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil || u.Query().Get("code") == "" || u.Query().Get("iss") != "https://id.test" {
		t.Fatalf("redirect %q has no code: %v", to, err)
	}
	return u.Query().Get("code")
}

// login is a whole sign-in, with the tokens for client id.
func (h *house) login(login, id string) (Tokens, string) {
	h.t.Helper()
	code, cookie := h.code(login, id)
	tokens, err := h.Redeem(h.ctx, h.client(id), code, h.request(id).RedirectURI, verifier)
	h.must(err)
	return tokens, cookie
}

// claims verifies an id_token by the published keys and returns what it says.
func (h *house) claims(raw string) map[string]any {
	h.t.Helper()
	payload, _, err := h.keys.Verify(raw)
	h.must(err)
	var c map[string]any
	h.must(json.Unmarshal(payload, &c))
	return c
}

func (h *house) groupsIn(raw string) []string {
	h.t.Helper()
	list, ok := h.claims(raw)["groups"].([]any)
	if !ok {
		h.t.Fatalf("groups is %v, not an array", h.claims(raw)["groups"])
	}
	out := []string{}
	for _, g := range list {
		out = append(out, g.(string))
	}
	return out
}

// member adds someone to a local group, which it makes where needed.
func (h *house) member(group string, kind groups.Kind, id string, end time.Time) {
	h.t.Helper()
	root := groups.Actor{Operator: true}
	if _, err := h.local.Create(h.ctx, root, groups.Settings{Name: group}); err != nil && !errors.Is(err, groups.ErrExists) {
		h.t.Fatal(err)
	}
	_, err := h.local.Add(h.ctx, root, group, 0, groups.Member{Ref: groups.Ref{Kind: kind, ID: id}, End: end, Reason: "test"})
	h.must(err)
}

// alive reports whether the session of a refresh token is still there.
func (h *house) alive(refresh string) bool {
	h.t.Helper()
	_, err := h.session(h.ctx, sidOf(refresh))
	if err != nil && !errors.Is(err, ErrNoSession) {
		h.t.Fatal(err)
	}
	return err == nil
}

func sidOf(token string) string { return token[:strings.IndexByte(token, '.')] }

// writes counts the Txns that touch keys of a kind.
func (h *house) writes(kind string) *int {
	n := new(int)
	var mu sync.Mutex
	h.store.After(func(keys []string) error {
		if slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, kind+"/") }) {
			mu.Lock()
			defer mu.Unlock()
			*n++
		}
		return nil
	})
	return n
}

// all runs f n times at once, from one start.
func all(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; f(i) })
	}
	close(start)
	wg.Wait()
}

var errBroken = errors.New("disk on fire")
