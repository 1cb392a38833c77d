package web

import (
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/net/html"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

const (
	password  = "corréct horse & <battery>"
	requestID = "req-4711"
)

// people is a directory in memory. It stands in for LDAP alone: everything behind
// it is real.
type people struct {
	name string
	down atomic.Bool
	all  map[string]directory.Person // by login

	lockout directory.Lockout
}

func directoryOf(name string, all ...directory.Person) *people {
	d := &people{name: name, all: map[string]directory.Person{}}
	for _, p := range all {
		p.Directory, p.ID, p.DN = name, "id-"+p.Username, "uid="+p.Username
		if p.State == "" {
			p.State = directory.Active
		}
		d.all[p.Username] = p
	}
	return d
}

func (d *people) Name() string    { return d.name }
func (d *people) Prefix() string  { return d.name + ":" }
func (d *people) DummyDN() string { return "uid=nobody" }
func (d *people) Lockout(context.Context) (directory.Lockout, error) {
	return d.lockout, nil
}

func (d *people) Find(_ context.Context, login string) (directory.Person, error) {
	if d.down.Load() {
		return directory.Person{}, directory.ErrUnavailable
	}
	if p, ok := d.all[login]; ok {
		return p, nil
	}
	return directory.Person{}, directory.ErrNotFound
}

func (d *people) Lookup(_ context.Context, id string) (directory.Person, error) {
	return d.Find(context.Background(), strings.TrimPrefix(id, "id-"))
}

func (d *people) Bind(_ context.Context, dn, pw string) error {
	if dn == d.DummyDN() || pw != password {
		return directory.ErrInvalidCredentials
	}
	return nil
}

func (d *people) Groups(_ context.Context, p directory.Person) ([]directory.Group, error) {
	if p.Username == "carol" {
		return []directory.Group{{Name: "corp:admins"}, {Name: "corp:devs"}}, nil
	}
	return []directory.Group{{Name: "corp:devs"}}, nil
}

func (d *people) Search(_ context.Context, typed string, limit int) ([]directory.Person, error) {
	if d.down.Load() {
		return nil, directory.ErrUnavailable
	}
	var found []directory.Person
	for _, login := range slices.Sorted(maps.Keys(d.all)) {
		p := d.all[login]
		begins := strings.HasPrefix(login, typed) || strings.HasPrefix(strings.ToLower(p.Name), strings.ToLower(typed))
		if begins && len(typed) >= 2 && len(found) < limit {
			found = append(found, p)
		}
	}
	return found, nil
}

func (d *people) Members(ctx context.Context, group string, limit int) (directory.Members, error) {
	if d.down.Load() {
		return directory.Members{}, directory.ErrUnavailable
	}
	var m directory.Members
	for _, login := range slices.Sorted(maps.Keys(d.all)) {
		groups, _ := d.Groups(ctx, d.all[login])
		if !slices.ContainsFunc(groups, func(g directory.Group) bool { return g.Name == group }) {
			continue
		}
		if m.More = len(m.People) == limit; m.More {
			return m, nil
		}
		m.People = append(m.People, directory.Member{Person: d.all[login], Path: []string{"cn=" + group}})
	}
	if m.People == nil {
		return m, directory.ErrNotFound
	}
	return m, nil
}

func (d *people) Explain(ctx context.Context, loginOrID string) (directory.Explanation, error) {
	p, err := d.Lookup(ctx, loginOrID)
	if err != nil {
		return directory.Explanation{}, err
	}
	x := directory.Explanation{
		Person: p, Strategy: "walk",
		Queries: []directory.Query{{Doing: "find the person", Base: "dc=corp", Filter: "(uid=" + p.Username + ")", Entries: 1, Took: 1500 * time.Microsecond}},
		Hidden:  []directory.Hidden{{Name: "corp:old", DN: "cn=old", Rule: "groups.exclude[0] old"}},
	}
	x.Groups, err = d.Groups(ctx, p)
	for i := range x.Groups {
		x.Groups[i].Path = []string{"cn=" + x.Groups[i].Name}
	}
	return x, err
}

// memory is a trail that only remembers.
type memory struct {
	mu     sync.Mutex
	events []audit.Event
}

func (m *memory) Append(_ context.Context, e audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, e)
	return nil
}

func (m *memory) AppendAll(_ context.Context, events []audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, events...)
	return nil
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events)
}

// house is a Tabard without its provider: real store, idp and groups.
type house struct {
	*httptest.Server
	t      *testing.T
	site   *Site
	idp    *idp.Service
	groups *groups.Service
	corp   *people
	lab    *people
	trail  *memory
}

const redirectURI = "http://localhost:8000"

// newHouse starts one. Cluster prod takes redirectURIs besides its own.
func newHouse(t *testing.T, redirectURIs ...string) *house {
	t.Helper()
	log := logrus.New()
	log.SetOutput(t.Output())
	st, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "tabard.db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	cfg := idp.Config{
		Issuer: "https://id.corp.example", DirectoryPrefixes: []string{"corp:", "lab:"},
		Clusters: []idp.ClusterConfig{
			{Name: "prod", ClientID: "kubernetes", APIServer: idp.APIServerConfig{URL: "https://prod.example:6443"}, RedirectURIs: append(redirectURIs, redirectURI)},
			{Name: "vault", ClientID: "vault", RedirectURIs: []string{redirectURI}, RequireGroups: []string{"nobody-is-in-this"}},
		},
		Clients: []idp.ClientConfig{{ID: "headlamp", Cluster: "prod", Secret: "s3cret", RedirectURIs: []string{"https://headlamp.corp.example/cb"}, PostLogoutRedirectURIs: []string{"https://headlamp.corp.example/bye"}}},
	}
	cfg.Tokens.SigningAlgorithm, cfg.Tokens.MinLifetime = "ES256", 5*time.Minute
	cfg.SetDefaults()
	must(t, cfg.Validate())
	h := &house{t: t, trail: &memory{}}
	keys, err := idp.OpenKeys(t.Context(), st, idp.KeyConfig{Algorithms: cfg.KeyAlgorithms(), Retain: cfg.LongestToken()}, log, nil)
	must(t, err)
	t.Cleanup(keys.Close)
	h.groups, err = groups.Open(t.Context(), st, h.trail, groups.Config{Admins: []string{"corp:admins", "admins"}, Reserved: cfg.DirectoryPrefixes, Clusters: []string{"prod", "vault"}}, log)
	must(t, err)
	t.Cleanup(h.groups.Close)
	h.corp = directoryOf("corp",
		directory.Person{Username: "alice", Name: "Alice Ångström", Email: "alice@corp.example"},
		directory.Person{Username: "bob", Name: "Bob"}, directory.Person{Username: "dora", Name: "Dora"}, directory.Person{Username: "carol", Name: "Carol"},
		directory.Person{Username: "twin", Name: "Twin"},
		directory.Person{Username: "disabled", State: directory.Disabled}, directory.Person{Username: "locked", State: directory.Locked},
		directory.Person{Username: "expired", State: directory.Expired}, directory.Person{Username: "stale", State: directory.PasswordExpired},
		directory.Person{Username: "fresh", State: directory.MustChange})
	h.lab = directoryOf("lab", directory.Person{Username: "twin", Name: "Twin"})
	sessions, err := idp.OpenSessions(t.Context(), st, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sessions.Close)
	h.idp, err = idp.New(t.Context(), cfg, idp.Parts{Store: st, Trail: h.trail, Groups: h.groups, Directories: []idp.Directory{h.corp, h.lab}, Keys: keys, Sessions: sessions, Log: log})
	must(t, err)
	h.site, err = New(Config{Brand: "Corp & Co"}, h.idp, h.groups, log)
	must(t, err)
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.site.ServeHTTP(w, r.WithContext(audit.WithOrigin(r.Context(), audit.Origin{Address: "192.0.2.1", RequestID: requestID})))
	}))
	t.Cleanup(h.Close)
	return h
}

// authorize is what the provider does at /authorize: the sealed request and the
// cookie that binds it.
func (h *house) authorize(client, redirect string) (sealed, binding string) {
	h.t.Helper()
	a, err := h.idp.Authorize(h.t.Context(), idp.AuthRequest{
		ClientID: client, RedirectURI: redirect, State: "st", ResponseType: "code",
		CodeChallenge: strings.Repeat("a", 43), ChallengeBy: "S256",
	}, "", "")
	must(h.t, err)
	return a.Sealed, a.Binding
}

// browser follows no redirects, keeps cookies, and holds the API to its document.
type browser struct {
	*http.Client
	h *house
}

func (h *house) browser() *browser {
	jar, err := cookiejar.New(nil)
	must(h.t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	h.t.Cleanup(transport.CloseIdleConnections)
	return newContract(h.t).check(&browser{&http.Client{Jar: jar, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, h})
}

// as is a browser that login is signed in with.
func (h *house) as(login string) *browser {
	h.t.Helper()
	b := h.browser()
	if got := b.post("/sign-in", url.Values{"username": {login}, "password": {password}}); got.status != http.StatusSeeOther {
		h.t.Fatalf("sign in as %s: %d %s", login, got.status, got.body)
	}
	return b
}

func (b *browser) setCookie(name, value string) {
	u, err := url.Parse(b.h.URL)
	must(b.h.t, err)
	b.Jar.SetCookies(u, []*http.Cookie{{Name: name, Value: value, Path: "/", Secure: true}})
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (b *browser) do(method, path, contentType, body string, header ...string) answer {
	b.h.t.Helper()
	req, err := http.NewRequestWithContext(b.h.t.Context(), method, b.h.URL+path, strings.NewReader(body))
	must(b.h.t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.Do(req)
	must(b.h.t, err)
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	must(b.h.t, err)
	return answer{resp.StatusCode, resp.Header, string(read)}
}

func (b *browser) get(path string) answer { b.h.t.Helper(); return b.do("GET", path, "", "") }

func (b *browser) post(path string, form url.Values, header ...string) answer {
	b.h.t.Helper()
	return b.do("POST", path, "application/x-www-form-urlencoded", form.Encode(), header...)
}

// field is one input, select or button of a page.
type field map[string]string

// fields returns the controls of a page by name, in order.
func fields(t *testing.T, body string) map[string][]field {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body))
	must(t, err)
	found := map[string][]field{}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode || n.Data != "input" && n.Data != "select" && n.Data != "button" && n.Data != "form" {
			continue
		}
		f := field{"tag": n.Data}
		for _, a := range n.Attr {
			f[a.Key] = a.Val
		}
		found[f["name"]] = append(found[f["name"]], f)
	}
	return found
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, got answer, status int, words ...string) {
	t.Helper()
	if got.status != status {
		t.Errorf("status %d, want %d: %s", got.status, status, got.body)
	}
	for _, w := range words {
		if !strings.Contains(got.body, w) {
			t.Errorf("no %q in: %s", w, got.body)
		}
	}
}

// operator acts on the groups as the command does that opens the store itself.
func operator() groups.Actor { return groups.Actor{Operator: true, Name: "operator"} }

// create makes a group with members, as the operator does.
func (h *house) create(name string, members ...groups.Member) {
	h.t.Helper()
	h.make(groups.Settings{Name: name}, members...)
}

func (h *house) make(set groups.Settings, members ...groups.Member) {
	h.t.Helper()
	_, err := h.groups.Create(h.t.Context(), operator(), set)
	must(h.t, err)
	for _, m := range members {
		_, err := h.groups.Add(h.t.Context(), operator(), set.Name, 0, m)
		must(h.t, err)
	}
}

// person is a membership of somebody of corp.
func person(name string, left time.Duration) groups.Member {
	m := groups.Member{Ref: personRef(name)}
	if left > 0 {
		m.End = time.Now().Add(left)
	}
	return m
}

func personRef(name string) groups.Ref {
	return groups.Ref{Kind: groups.KindPerson, ID: "corp.id-" + name, Name: name}
}

func directoryGroup(name string) groups.Member {
	return groups.Member{Ref: groups.Ref{Kind: groups.KindDirectoryGroup, ID: name, Name: name}}
}

func localGroup(name string) groups.Member {
	return groups.Member{Ref: groups.Ref{Kind: groups.KindGroup, Name: name}}
}
