package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/tabard-id/tabard/internal/testenv"
)

// tabard and plugin are the built binaries, with the race detector.
var tabard, plugin string

// atOnce is how many tests run at once: they wait most of the time, for tokens to end
// and for API servers to notice.
const atOnce = "4"

func TestMain(m *testing.M) {
	if serveRival() {
		return
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(atOnce)
	}
	dir, err := os.MkdirTemp("", "tabard-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	tabard = filepath.Join(dir, "tabard")
	plugin = filepath.Join(dir, "kubectl-tabard")
	os.Setenv("TABARD_KEYRING", "off") // the developer's own
	build := exec.Command("go", "build", "-race", "-o", dir+"/", "github.com/tabard-id/tabard/cmd/tabard", "github.com/tabard-id/tabard/cmd/kubectl-tabard")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tabard and its plugin: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// server is a running Tabard over one directory.
type server struct {
	*testenv.Process
	t      testing.TB
	binary string
	dir    string // of its files
	config string
	issuer string
	at     string // host:port that its clients dial; the issuer's when empty
	caFile string
	ca     *testenv.CA
	slapd  *testenv.Slapd

	kubelogin string // host:port where kubelogin listens for the browser
}

// options are what the tests change in the configuration.
type options struct {
	extra  string // YAML put at the end
	tokens string // the value of tokens:
	ldap   string // more keys of the directory, indented by two
}

// configFor is the configuration that the tests run with: one OpenLDAP, two
// clusters, a confidential client.
func configFor(s *server, port int, certFile, keyFile string, o options) string {
	if o.tokens == "" {
		o.tokens = "{}"
	}
	return fmt.Sprintf(`issuer: %s
listen: 127.0.0.1:%d
tls: {certFile: %s, keyFile: %s}
store: {bolt: {path: tabard.db}}
audit: {dir: audit}
admins: ["corp:cluster-operators"]
directories:
- name: corp
  type: ldap
  urls: [%s]
  caFile: %s
  bindDN: %s
  bindPasswordFile: bind-password
  users: {baseDN: "ou=people,dc=example,dc=org"}
  groups: {baseDN: "ou=groups,dc=example,dc=org"}
%s
clusters:
- name: prod
  clientID: kubernetes
  redirectURIs: [http://localhost:8000, http://localhost:18000, "http://%s"]
  webhook: {callers: [{tokenFile: tabard-webhook-token}]}
- name: staging
  clientID: staging
  groups: {include: ["corp:devs", "platform"]}
- name: closed
  clientID: closed
  requireGroups: ["corp:ops"]
clients:
- {id: headlamp, cluster: prod, secretFile: headlamp-secret, redirectURIs: [https://headlamp.example/oidc-callback], postLogoutRedirectURIs: [https://headlamp.example/]}
tokens: %s
%s
`, s.issuer, port, certFile, keyFile, s.slapd.TLSURL, s.slapd.CAFile, s.slapd.BindDN, o.ldap, s.kubelogin, o.tokens, o.extra)
}

// startTabard starts a directory with the sample people and Tabard over it.
func startTabard(t testing.TB, o options) *server {
	t.Helper()
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	s := newServer(t, slapd, o)
	s.start()
	return s
}

// newServer writes the files of a server that does not run yet.
func newServer(t testing.TB, slapd *testenv.Slapd, o options) *server {
	t.Helper()
	s := &server{t: t, binary: tabard, dir: t.TempDir(), slapd: slapd}
	s.ca = testenv.NewCA(t, s.dir)
	s.caFile = s.ca.File
	certFile, keyFile := s.ca.Issue(t, "localhost")
	port := testenv.FreePort(t)
	s.issuer = fmt.Sprintf("https://localhost:%d", port)
	s.kubelogin = fmt.Sprintf("localhost:%d", testenv.FreePort(t))
	s.config = filepath.Join(s.dir, "tabard.yaml")
	t.Cleanup(s.checkTrail)
	s.write("bind-password", slapd.BindPassword+"\n")
	s.write("headlamp-secret", "headlamp-secret-for-tests\n")
	s.write("tabard-webhook-token", "webhook-token-for-tests\n")
	ca, err := os.ReadFile(s.caFile)
	if err != nil {
		t.Fatal(err)
	}
	s.write("tabard-ca.pem", string(ca))
	s.write("tabard.yaml", configFor(s, port, certFile, keyFile, o))
	return s
}

func (s *server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) start() {
	s.t.Helper()
	s.Process = testenv.Start(s.t, testenv.Command{
		Name: "tabard", Path: s.binary, Args: []string{"serve", "--config", s.config},
		Env: []string{"GORACE=halt_on_error=1 exitcode=66"}, ReadyURL: s.issuer + "/readyz", Client: s.client(),
	})
}

func (s *server) tls() *tls.Config {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(s.caFile)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		s.t.Fatalf("read %s: %v", s.caFile, err)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// client is an HTTP client without cookies that follows no redirect.
func (s *server) client() *http.Client {
	transport := &http.Transport{TLSClientConfig: s.tls(), MaxIdleConnsPerHost: 64}
	if s.at != "" {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.at)
		}
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// browser is a client with cookies, as a person's browser keeps them.
func (s *server) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	c := s.client()
	c.Jar = jar
	return c
}

// answer is an HTTP answer that was read.
type answer struct {
	status int
	header http.Header
	body   string
}

func do(t testing.TB, c *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL.Redacted(), err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL.Redacted(), err)
	}
	return answer{resp.StatusCode, resp.Header, b.String()}
}

func get(t testing.TB, c *http.Client, target string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, req)
}

func post(t testing.TB, c *http.Client, target string, form url.Values) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(t, c, req)
}

// verifier and challenge are one PKCE pair (RFC 7636 appendix B).
const (
	verifier  = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
)

const callback = "http://localhost:8000"

// authRequest are the parameters of a good authorization request.
func authRequest(clientID string) url.Values {
	return url.Values{
		"client_id": {clientID}, "redirect_uri": {redirectOf(clientID)}, "response_type": {"code"},
		"scope": {"openid offline_access"}, "state": {"state-1"}, "nonce": {"nonce-1"},
		"code_challenge": {challenge}, "code_challenge_method": {"S256"},
	}
}

// redirectOf is a redirect URI that the client may use.
func redirectOf(clientID string) string {
	switch clientID {
	case "kubernetes":
		return callback
	case "headlamp":
		return "https://headlamp.example/oidc-callback"
	}
	return "http://127.0.0.1:8123/callback"
}

// form is the sign-in page as a program reads it.
type form struct {
	action string
	fields url.Values
}

func parseForm(t testing.TB, page string) form {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	f := form{fields: url.Values{}}
	for n := range doc.Descendants() {
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
		}
		switch {
		case n.Data == "form" && strings.EqualFold(attr["method"], "post") && f.action == "":
			f.action = attr["action"]
		case n.Data == "input" && attr["name"] != "":
			f.fields.Set(attr["name"], attr["value"])
		case n.Data == "select":
			f.fields.Set(attr["name"], "")
		}
	}
	return f
}

// openSignIn goes from an authorization request to the sign-in page.
func (s *server) openSignIn(c *http.Client, params url.Values) (form, string) {
	s.t.Helper()
	a := get(s.t, c, s.issuer+"/authorize?"+params.Encode())
	if a.status != http.StatusFound || !strings.HasPrefix(a.header.Get("Location"), s.issuer+"/sign-in?") {
		s.t.Fatalf("authorize: %d %s %s", a.status, a.header.Get("Location"), a.body)
	}
	at := a.header.Get("Location")
	page := get(s.t, c, at)
	if page.status != http.StatusOK {
		s.t.Fatalf("sign-in page: %d %s", page.status, page.body)
	}
	f := parseForm(s.t, page.body)
	action, err := url.Parse(at)
	if err == nil {
		action, err = action.Parse(f.action)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	f.action = action.String()
	return f, page.body
}

// submit posts the sign-in page.
func (s *server) submit(c *http.Client, f form, user, password string) answer {
	s.t.Helper()
	fields := url.Values{}
	for k, v := range f.fields {
		fields[k] = v
	}
	fields.Set("username", user)
	fields.Set("password", password)
	return post(s.t, c, f.action, fields)
}

// code signs in and returns the code that the client gets.
func (s *server) code(c *http.Client, params url.Values, user, password string) string {
	s.t.Helper()
	f, _ := s.openSignIn(c, params)
	a := s.submit(c, f, user, password)
	if a.status != http.StatusSeeOther {
		s.t.Fatalf("sign-in of %s: %d %s", user, a.status, a.body)
	}
	return s.codeFrom(a, params)
}

func (s *server) codeFrom(a answer, params url.Values) string {
	s.t.Helper()
	to, err := url.Parse(a.header.Get("Location"))
	if err != nil || !strings.HasPrefix(to.String(), params.Get("redirect_uri")) {
		s.t.Fatalf("redirect to %q (%v)", a.header.Get("Location"), err)
	}
	q := to.Query()
	if q.Get("state") != params.Get("state") || q.Get("iss") != s.issuer || q.Get("code") == "" {
		s.t.Fatalf("redirect to the client: %s", to)
	}
	return q.Get("code")
}

// tokens is an answer of the token endpoint.
type tokens struct {
	status       int
	IDToken      string `json:"id_token"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresIn    int    `json:"expires_in"`
	Issued       string `json:"issued_token_type"`
	Error        string `json:"error"`
	Description  string `json:"error_description"`
}

func (s *server) token(form url.Values) tokens {
	s.t.Helper()
	a := post(s.t, s.client(), s.issuer+"/token", form)
	tk := tokens{status: a.status}
	if err := json.Unmarshal([]byte(a.body), &tk); err != nil {
		s.t.Fatalf("token endpoint: %d %s", a.status, a.body)
	}
	return tk
}

func redemption(clientID, code string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "client_id": {clientID}, "code": {code},
		"redirect_uri": {redirectOf(clientID)}, "code_verifier": {verifier}}
}

func refresh(clientID, token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "client_id": {clientID}, "refresh_token": {token}}
}

// login signs in with a new browser and redeems the code.
func (s *server) login(clientID, user, password string) tokens {
	s.t.Helper()
	tk := s.token(redemption(clientID, s.code(s.browser(), authRequest(clientID), user, password)))
	if tk.status != http.StatusOK || tk.IDToken == "" || tk.RefreshToken == "" {
		s.t.Fatalf("tokens of %s for %s: %+v", user, clientID, tk)
	}
	return tk
}

// mustRefresh refreshes and fails the test if that does not work.
func (s *server) mustRefresh(clientID, token string) tokens {
	s.t.Helper()
	tk := s.token(refresh(clientID, token))
	if tk.status != http.StatusOK {
		s.t.Fatalf("refresh for %s: %+v", clientID, tk)
	}
	return tk
}

// claims are the claims of an id_token, whose signature is not looked at.
func claims(t *testing.T, idToken string) map[string]any {
	t.Helper()
	parts := strings.Split(idToken, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %q", idToken)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// groupsOf are the groups in an id_token.
func groupsOf(t *testing.T, idToken string) []string {
	t.Helper()
	list, ok := claims(t, idToken)["groups"].([]any)
	if !ok {
		t.Fatalf("groups is not an array: %v", claims(t, idToken)["groups"])
	}
	out := make([]string, len(list))
	for i, g := range list {
		out[i] = g.(string)
	}
	return out
}

// run runs the tabard command as an admin at a terminal would, with its own home.
func (s *server) run(home, stdin string, args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tabard, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home, "TABARD_SERVER="+s.issuer)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("tabard %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

// admin is the command line of somebody who has signed in.
type admin struct {
	*server
	home string
}

// signIn signs in with tabard login, as a script does it.
func (s *server) signIn(user, password string) admin {
	s.t.Helper()
	a := admin{s, s.t.TempDir()}
	if out, err := s.run(a.home, password+"\n", "login", "--server", s.issuer, "--ca-file", s.caFile, "--username", user, "--password-stdin"); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return a
}

func (a admin) must(args ...string) string {
	a.t.Helper()
	out, err := a.run(a.home, "", args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// eventually tries until ok returns nil; API servers cache what they decided.
func eventually(t testing.TB, within time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	err := errors.New("not tried")
	for time.Now().Before(deadline) {
		if err = ok(); err == nil {
			return
		}
		time.Sleep(250 * time.Millisecond)
	}
	t.Fatalf("%s: not within %s: %v", what, within, err)
}

// apiGet reads from the JSON API as carol, with a token of her own.
func (w *killWorld) apiGet(path string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.issuer+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.api)
	return do(w.t, w.client(), req)
}

// createGroup makes a group by the JSON API, where the server may die meanwhile.
func (w *killWorld) createGroup(c *http.Client, name string) (int, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.issuer+"/api/v1/groups", strings.NewReader(`{"name":"`+name+`"}`))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+w.api)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// tryRefresh refreshes where the server may die meanwhile.
func (w *killWorld) tryRefresh(c *http.Client, token string) (string, error) {
	resp, err := c.PostForm(w.issuer+"/token", refresh("kubernetes", token))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var tk tokens
	if err := json.NewDecoder(resp.Body).Decode(&tk); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("refresh: %d %s", resp.StatusCode, tk.Error)
	}
	return tk.RefreshToken, nil
}
