package provider

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

// corp is a directory with one person.
type corp struct {
	mu   sync.Mutex
	down error
}

var alice = directory.Person{
	Directory: "corp", ID: "00000000-0000-4000-8000-000000000001", DN: "cn=alice", Username: "alice", Name: "Alice", Email: "alice@corp.test", State: directory.Active,
}

func (d *corp) fail(err error) { d.mu.Lock(); defer d.mu.Unlock(); d.down = err }

func (d *corp) fault() error { d.mu.Lock(); defer d.mu.Unlock(); return d.down }

func (d *corp) Name() string    { return "corp" }
func (d *corp) Prefix() string  { return "corp:" }
func (d *corp) DummyDN() string { return "cn=nobody" }
func (d *corp) Lockout(context.Context) (directory.Lockout, error) {
	return directory.Lockout{}, nil
}

func (d *corp) Explain(context.Context, string) (directory.Explanation, error) {
	return directory.Explanation{}, directory.ErrNotFound
}

func (d *corp) Search(context.Context, string, int) ([]directory.Person, error) {
	return nil, d.fault()
}

func (d *corp) Members(context.Context, string, int) (directory.Members, error) {
	return directory.Members{}, firstOf(d.fault(), directory.ErrNotFound)
}

func (d *corp) Find(_ context.Context, login string) (directory.Person, error) {
	if err := d.fault(); err != nil || login != alice.Username {
		return directory.Person{}, firstOf(err, directory.ErrNotFound)
	}
	return alice, nil
}

func (d *corp) Bind(_ context.Context, dn, password string) error {
	if err := d.fault(); err != nil || dn != alice.DN || password != aliceSecret {
		return firstOf(err, directory.ErrInvalidCredentials)
	}
	return nil
}

func (d *corp) Lookup(_ context.Context, id string) (directory.Person, error) {
	if err := d.fault(); err != nil || id != alice.ID {
		return directory.Person{}, firstOf(err, directory.ErrNotFound)
	}
	return alice, nil
}

func (d *corp) Groups(context.Context, directory.Person) ([]directory.Group, error) {
	return []directory.Group{{Name: "corp:devs"}}, d.fault()
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	aliceSecret = "correct horse"
	headlamp    = "https://headlamp.test/cb"
	headSecret  = "headlamp-secret+0123/456789"
	caller      = "caller-of-prod-0123456789"
	localhost   = "http://localhost:8000"
	verifier    = "a-verifier-that-is-long-enough-for-rfc-7636"
	requestID   = "req-42"
)

var challenge = func() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}()

// house serves the endpoints over TLS, with a real Service behind them.
type house struct {
	t     testing.TB
	srv   *httptest.Server
	http  *http.Client // follows no redirect
	svc   *idp.Service
	keys  *idp.Keys
	corp  *corp
	store *storetest.Faulty
	log   *logLines

	counts counts
	ci     *ecdsa.PrivateKey // of the client ci
	trail  string            // its folder
	began  time.Time         // what the service's clock showed at first
	ahead  atomic.Int64      // how far it has been moved, in nanoseconds; it stands still else
}

// pass moves the service's clock on.
func (h *house) pass(d time.Duration) { h.ahead.Add(int64(d)) }

func (h *house) now() time.Time { return h.began.Add(time.Duration(h.ahead.Load())) }

// jwksOf is the public half of key as a JWKS.
func jwksOf(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// assertion is one of the client ci, with the pairs put over its claims.
func (h *house) assertion(pairs ...any) string {
	h.t.Helper()
	now := h.now().Unix()
	claims := map[string]any{"iss": "ci", "sub": "ci", "aud": h.srv.URL, "exp": now + 60, "iat": now, "jti": rand.Text()}
	for i := 0; i+1 < len(pairs); i += 2 {
		claims[pairs[i].(string)] = pairs[i+1]
	}
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: h.ci, KeyID: "1"}}, nil)
	h.must(err)
	raw, err := jwt.Signed(sig).Claims(claims).Serialize()
	h.must(err)
	return raw
}

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// asCI sends a form that the client ci has signed.
func (h *house) asCI(path, assertion string, pairs ...string) answer {
	h.t.Helper()
	return h.post(path, nil, append([]string{"client_assertion_type", assertionType, "client_assertion", assertion}, pairs...)...)
}

// logLines keeps what is logged.
type logLines struct {
	mu sync.Mutex
	strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.Write(b)
}

func (l *logLines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.String()
}

func newHouse(t testing.TB) *house {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, corp: &corp{}, log: &logLines{}, ci: key, began: time.Now()}
	handler := http.Handler(http.NotFoundHandler())
	h.srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := audit.WithOrigin(r.Context(), audit.Origin{Address: "192.0.2.7", RequestID: requestID})
		handler.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(h.srv.Close)
	h.http = h.srv.Client()
	h.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	handler = h.handler(t.TempDir())
	return h
}

// handler builds the service and the endpoints over it.
func (h *house) handler(dir string) http.Handler {
	cfg := idp.Config{
		Issuer: h.srv.URL, DirectoryPrefixes: []string{"corp:"}, Tokens: idp.TokenConfig{SigningAlgorithm: "ES256"},
		Clusters: []idp.ClusterConfig{
			{Name: "prod", ClientID: "kubernetes", RedirectURIs: []string{localhost}, Groups: idp.GroupFilter{Include: []string{"corp:*", "ci-*"}},
				Webhook: &idp.WebhookConfig{Callers: []idp.CallerConfig{{Token: caller}}}},
			{Name: "vault", ClientID: "vault", RedirectURIs: []string{localhost}, RequireGroups: []string{"corp:vault"}},
		},
		Clients: []idp.ClientConfig{
			{ID: "headlamp", Cluster: "prod", Secret: headSecret, RedirectURIs: []string{headlamp + "?own=1", headlamp}, PostLogoutRedirectURIs: []string{headlamp}},
			{ID: "ci", Cluster: "prod", JWKS: jwksOf(h.t, h.ci), Groups: []string{"ci-deployers"}, RedirectURIs: []string{headlamp}},
		},
	}
	cfg.SetDefaults()
	h.must(cfg.Validate())
	disk, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db")})
	h.must(err)
	h.t.Cleanup(func() { disk.Close() })
	h.store = storetest.NewFaulty(disk)
	h.trail = filepath.Join(dir, "audit")
	trail, err := audit.Open(audit.Config{Dir: h.trail})
	h.must(err)
	h.t.Cleanup(func() { trail.Close() })
	log := logrus.New()
	log.SetOutput(h.log)
	local, err := groups.Open(h.t.Context(), disk, trail, groups.Config{Reserved: cfg.DirectoryPrefixes}, log)
	h.must(err)
	h.t.Cleanup(local.Close)
	h.keys, err = idp.OpenKeys(h.t.Context(), disk, idp.KeyConfig{Algorithms: cfg.KeyAlgorithms(), Retain: cfg.LongestToken()}, log, nil)
	h.must(err)
	h.t.Cleanup(h.keys.Close)
	sessions, err := idp.OpenSessions(h.t.Context(), disk, log)
	h.must(err)
	h.t.Cleanup(sessions.Close)
	h.svc, err = idp.New(h.t.Context(), cfg, idp.Parts{Store: h.store, Trail: trail, Groups: local, Directories: []idp.Directory{h.corp}, Keys: h.keys, Sessions: sessions, Log: log, Now: h.now})
	h.must(err)
	mux := http.NewServeMux()
	mux.Handle("/", New(h.svc, h.keys, Config{ErrorPage: errorPage, Log: log}))
	mux.Handle(ReviewPath, Reviews(h.svc, ReviewConfig{Log: log, Count: h.counts.add}))
	return mux
}

// counts is what the metrics are told.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(cluster, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[cluster+" "+result]++
}

func (c *counts) of(cluster, result string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[cluster+" "+result]
}

// errorPage stands in for the pages of web.
func errorPage(w http.ResponseWriter, _ *http.Request, status int, title, detail string) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<h1>%s</h1><p>%s</p>", html.EscapeString(title), html.EscapeString(detail))
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   string
	json   map[string]any
}

func (h *house) do(method, path string, body string, header http.Header) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.srv.URL+path, strings.NewReader(body))
	h.must(err)
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := h.http.Do(req)
	h.must(err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	h.must(err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		h.must(json.Unmarshal(b, &a.json))
	}
	return a
}

var formType = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}

func with(header http.Header, name, value string) http.Header {
	out := header.Clone()
	if out == nil {
		out = http.Header{}
	}
	out.Set(name, value)
	return out
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
}

// post sends pairs of names and values as a form.
func (h *house) post(path string, header http.Header, pairs ...string) answer {
	h.t.Helper()
	if header == nil {
		header = formType
	} else {
		header = with(header, "Content-Type", formType.Get("Content-Type"))
	}
	return h.do(http.MethodPost, path, form(pairs...).Encode(), header)
}

func form(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return v
}

// asking is an authorization request that is right, with the pairs put over it; a
// value of "-" takes a parameter away.
func asking(pairs ...string) url.Values {
	v := form("client_id", "kubernetes", "redirect_uri", localhost, "response_type", "code", "scope", "openid offline_access",
		"state", "st", "nonce", "n", "code_challenge", challenge, "code_challenge_method", "S256")
	for i := 0; i+1 < len(pairs); i += 2 {
		if v.Set(pairs[i], pairs[i+1]); pairs[i+1] == "-" {
			v.Del(pairs[i])
		}
	}
	return v
}

func (h *house) authorize(cookies string, pairs ...string) answer {
	h.t.Helper()
	return h.do(http.MethodGet, "/authorize?"+asking(pairs...).Encode(), "", with(nil, "Cookie", cookies))
}

// signIn does what the sign-in page does with the redirect that /authorize gave.
func (h *house) signIn(a answer) idp.SignedIn {
	h.t.Helper()
	u, err := url.Parse(a.header.Get("Location"))
	h.must(err)
	if a.status != http.StatusFound || u.Path != "/sign-in" {
		h.t.Fatalf("not sent to sign in: %d, %s", a.status, u)
	}
	cookie, err := http.ParseSetCookie(a.header.Get("Set-Cookie"))
	h.must(err)
	req, err := h.svc.OpenRequest(u.Query().Get("request"), cookie.Value)
	h.must(err)
	in, err := h.svc.SignIn(h.t.Context(), idpCredentials, req)
	h.must(err)
	return in
}

func param(t testing.TB, location, name string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get(name)
}

// code signs alice in at a client, and returns the code and her session cookie.
func (h *house) code(pairs ...string) (code, cookie string) {
	h.t.Helper()
	in := h.signIn(h.authorize("", pairs...))
	code = param(h.t, in.Redirect, "code")
	if code == "" {
		h.t.Fatalf("no code in %s", in.Redirect)
	}
	return code, idp.SessionCookie + "=" + in.Cookie
}

// tokens is a whole sign-in at the public client.
func (h *house) tokens() (map[string]any, string) {
	h.t.Helper()
	code, cookie := h.code()
	a := h.post("/token", nil, "grant_type", "authorization_code", "client_id", "kubernetes", "code", code, "redirect_uri", localhost, "code_verifier", verifier)
	if a.status != http.StatusOK {
		h.t.Fatalf("%d %s", a.status, a.body)
	}
	return a.json, cookie
}

var errUnreachable = fmt.Errorf("dial ldaps://10.1.2.3:636: connection refused: %w", directory.ErrUnavailable)

// refused checks an OAuth 2.0 error: status, code, the request's id, and no cause.
func refused(t testing.TB, a answer, status int, code string) {
	t.Helper()
	words, _ := a.json["error_description"].(string)
	if a.status != status || a.json["error"] != code || !strings.HasSuffix(words, "(request "+requestID+")") {
		t.Errorf("%d %s, want %d %s with the request's id", a.status, a.body, status, code)
	}
	for _, cause := range []string{"10.1.2.3", "ldap", "disk on fire", "cn=", "goroutine", ".go:"} {
		if strings.Contains(a.body, cause) {
			t.Errorf("the cause shows: %s", a.body)
		}
	}
	if a.status == http.StatusUnauthorized && a.header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("headers %v", a.header)
	}
}

var idpCredentials = idp.Credentials{Login: "alice", Password: aliceSecret}
