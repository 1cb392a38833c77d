package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/testenv"
	"github.com/tabard-id/tabard/proxy"
)

// apiServer is an API server as far as the proxy can tell. It notes what it is asked, and
// every watch gets the events that are sent.
type apiServer struct {
	*httptest.Server
	caFile, account string

	mu      sync.Mutex
	asked   []*http.Request // that were to act for somebody
	watches map[chan string]bool
	more    chan struct{} // closed at each change of watches
}

func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	ca := testenv.NewCA(t, t.TempDir())
	cert, key := ca.Issue(t, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &apiServer{caFile: ca.File, account: filepath.Join(t.TempDir(), "account"), watches: map[chan string]bool{}, more: make(chan struct{})}
	writeFile(t, a.account, accountToken+"\n", 0o600)
	a.Server = httptest.NewUnstartedServer(a)
	a.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	a.EnableHTTP2 = true
	a.StartTLS()
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

// ServeHTTP implements http.Handler.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Impersonate-User") != "" {
		a.mu.Lock()
		a.asked = append(a.asked, r)
		a.mu.Unlock()
	}
	if r.Header.Get("Upgrade") != "" {
		echo(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Set-Cookie", "pod=1")
	if r.URL.Query().Get("watch") == "" {
		fmt.Fprintf(w, `{"path":%q}`, r.URL.Path)
		return
	}
	events := make(chan string, 16)
	a.note(events, true)
	defer a.note(events, false)
	w.WriteHeader(http.StatusOK)
	for {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			fmt.Fprintln(w, e)
		}
	}
}

// echo switches protocols and sends back each line.
func echo(w http.ResponseWriter) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	for {
		line, err := buf.ReadString('\n')
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "echo "+line)
	}
}

func (a *apiServer) note(events chan string, open bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if open {
		a.watches[events] = true
	} else {
		delete(a.watches, events)
	}
	close(a.more)
	a.more = make(chan struct{})
}

// waitWatches returns once n watches are open.
func (a *apiServer) waitWatches(t testing.TB, n int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		a.mu.Lock()
		open, more := len(a.watches), a.more
		a.mu.Unlock()
		if open == n {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d watches are open, not %d", open, n)
		}
	}
}

func (a *apiServer) send(event string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for w := range a.watches {
		w <- event
	}
}

// last is the request that came last, nil when none did since it was asked.
func (a *apiServer) last() *http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.asked) == 0 {
		return nil
	}
	r := a.asked[len(a.asked)-1]
	a.asked = nil
	return r
}

const accountToken = "the-account-of-the-proxy-4711"

// proxied is a cluster's configuration.
func (a *apiServer) proxied(name, clientID, proxy string) string {
	return fmt.Sprintf("- {name: %s, clientID: %s, apiServer: {url: %q, caFile: %q, tokenFile: %q}, proxy: {%s}}\n", name, clientID, a.URL, a.caFile, a.account, proxy)
}

// job is a client with a key of its own, at one cluster.
type job struct {
	name, cluster string
	key           *ecdsa.PrivateKey
	file          string
}

func newJob(t testing.TB, name, cluster string) *job {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	j := &job{name, cluster, key, filepath.Join(t.TempDir(), "jwks")}
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: name}}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, j.file, string(b), 0o644)
	return j
}

func (j *job) config() string {
	return fmt.Sprintf("- {id: %s, cluster: %s, jwksFile: %q, groups: [ci-deployers, 'a,b']}\n", j.name, j.cluster, j.file)
}

// token signs in and returns the token for the cluster.
func (j *job) token(t testing.TB, s *instance) string {
	t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: j.key, KeyID: j.name}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jwt.Signed(sig).Claims(map[string]any{"iss": j.name, "sub": j.name, "aud": s.issuer, "exp": time.Now().Unix() + 60, "jti": rand.Text()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client().PostForm(s.issuer+"/token", url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {raw},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("no token: %d %v", resp.StatusCode, err)
	}
	return answer.AccessToken
}

// at asks the server by its address, as whoever bears token.
func (s *instance) at(t testing.TB, path, host, token string, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(s.issuer, "/id")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for _, c := range change {
		c(r)
	}
	resp, err := s.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// watch opens a watch that lives until close is called.
func (s *instance) watch(t testing.TB, cluster, token string, hc *http.Client) (*bufio.Reader, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.issuer+proxy.Path+cluster+"/api/v1/pods?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("a watch at %s: %d %s", cluster, resp.StatusCode, b)
	}
	return bufio.NewReader(resp.Body), func() {
		cancel()
		resp.Body.Close()
	}
}

// expect reads one event of a watch.
func expect(t testing.TB, events *bufio.Reader, want string) {
	t.Helper()
	if line, err := events.ReadString('\n'); err != nil || line != want+"\n" {
		t.Fatalf("the watch says %q, %v; want %q", line, err, want)
	}
}

// expectEnd wants a watch to have ended as an API server ends one.
func expectEnd(t testing.TB, events *bufio.Reader) {
	t.Helper()
	if b, err := io.ReadAll(events); err != nil || len(b) > 0 {
		t.Fatalf("the watch ends with %q, %v", b, err)
	}
}

// startProxied runs a server with clusters, and jobs to ask as.
func startProxied(t *testing.T, clusters string, jobs ...*job) *instance {
	t.Helper()
	return start(t, proxiedConfig(clusters, jobs...))
}

func proxiedConfig(clusters string, jobs ...*job) string {
	text := strings.Replace(served, "clusters: [{name: prod, clientID: kubernetes}]\n", "clusters:\n"+clusters+"clients:\n", 1)
	for _, j := range jobs {
		text += j.config()
	}
	return text + deadDirectory
}

// TestProxy asks a proxied cluster by both of its addresses.
func TestProxy(t *testing.T) {
	up, port, ci := startAPIServer(t), testenv.FreePort(t), newJob(t, "ci", "prod")
	s := startProxied(t, up.proxied("prod", "kubernetes", "hosts: [prod.k8s.example]")+
		fmt.Sprintf("metrics: {listen: \"127.0.0.1:%d\"}\n", port), ci)
	token := ci.token(t, s)
	for path, host := range map[string]string{"/id/k8s/clusters/prod/api/v1/pods": "", "/api/v1/pods": "prod.k8s.example", "/api/v1/pods?": "PROD.k8s.example:443"} {
		resp, body := s.at(t, path, host, token, func(r *http.Request) {
			r.Header.Set("Cookie", "__Host-tabard=1")
			r.Header.Set("X-Forwarded-For", "192.0.2.1")
		})
		r := up.last()
		if r == nil || resp.StatusCode != 200 || body != `{"path":"/api/v1/pods"}` {
			t.Fatalf("%s %s: %d %s", host, path, resp.StatusCode, body)
		}
		if got := fmt.Sprint(r.Header["Authorization"], r.Header["Impersonate-User"], r.Header["Impersonate-Group"], r.Header["Impersonate-Extra-Tabard.dev%2faddress"], r.Header["Cookie"], r.Header["X-Forwarded-For"]); got != "[Bearer "+accountToken+"] [client:ci] [a,b ci-deployers] [127.0.0.1] [] []" {
			t.Errorf("the API server sees %s", got)
		}
		if resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s %s: %v", host, path, resp.Header)
		}
		if under := host == ""; under != strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s %s: %v", host, path, resp.Header)
		}
	}
	if code, body, _ := s.get(t, "/readyz"); code != 200 || !strings.Contains(body, `"clusters":{"prod":`) {
		t.Errorf("/readyz %d %s", code, body)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`tabard_http_requests_total{code="200",route="proxy"} 3`, `tabard_proxy_requests_total{cluster="prod",code="200"} 3`, `tabard_proxy_open_streams{cluster="prod"} 0`, `tabard_proxy_upstream_up{cluster="prod"}`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("metrics without %s", want)
		}
	}
	if n := strings.Count(s.log.String(), `"level":"debug","method":"GET"`); n < 3 || !strings.Contains(s.log.String(), `"path":"/id/k8s/clusters/prod/api/v1/pods"`) {
		t.Errorf("%d requests in the log", n)
	}
	if log := s.log.String(); strings.Contains(log, accountToken) || strings.Contains(log, token) || strings.Contains(log, "__Host-") {
		t.Error("a token or a cookie is in the log")
	}
}

// TestProxyUpgrade talks through an upgraded connection, as exec does, to its end.
func TestProxyUpgrade(t *testing.T) {
	up, port, ci := startAPIServer(t), testenv.FreePort(t), newJob(t, "ci", "prod")
	s := startProxied(t, up.proxied("prod", "kubernetes", "")+fmt.Sprintf("metrics: {listen: \"127.0.0.1:%d\"}\n", port), ci)
	token := ci.token(t, s)
	conn, err := tls.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(s.issuer, "https://"), "/id"), &tls.Config{RootCAs: s.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /id/k8s/clusters/prod/api/v1/namespaces/x/pods/y/exec?command=sh HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nAuthorization: Bearer %s\r\n\r\nearly\n", token)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", resp, err)
	}
	expect(t, in, "echo early")
	fmt.Fprint(conn, "late\n")
	expect(t, in, "echo late")
	conn.Close()
	s.log.wait(t, `pods/y/exec","request"`, 1)
	mresp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer mresp.Body.Close()
	b, _ := io.ReadAll(mresp.Body)
	for _, want := range []string{`tabard_http_requests_total{code="101",route="proxy"} 1`, `tabard_proxy_requests_total{cluster="prod",code="101"} 1`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("metrics without %s", want)
		}
	}
	if s.end(t) != exitDone || strings.Count(s.trail(t), `"act":"k8s.request"`) != 2 {
		t.Errorf("the trail has not begin and end:\n%s", s.trail(t))
	}
}

// TestProxyIsNoPage: the provider's pages are not reached by the name of a cluster, nor by
// any spelling of a path below one; and the proxy takes a token from no other place.
func TestProxyIsNoPage(t *testing.T) {
	up, ci := startAPIServer(t), newJob(t, "ci", "prod")
	s := startProxied(t, up.proxied("prod", "kubernetes", "hosts: [prod.k8s.example]"), ci)
	token := ci.token(t, s)
	for _, c := range []struct {
		path, host string
		change     func(*http.Request)
		code       int
	}{
		{"/id/sign-in", "prod.k8s.example", nil, 401}, {"/id/token", "prod.k8s.example", nil, 401}, {"/id/keys", "prod.k8s.example", nil, 401},
		{"/healthz", "prod.k8s.example", nil, 401}, {"/readyz", "prod.k8s.example.:8443", nil, 401}, {"/id/readyz", "prod.k8s.example", nil, 401},
		{"/id/k8s/clusters/prod/api", "", nil, 401},
		{"/id/k8s/clusters/prod", "", nil, 401},
		{"/id/k8s/clusters/prod/api?access_token=" + token, "", nil, 401},
		{"/id/k8s/clusters/prod/api", "", func(r *http.Request) { r.SetBasicAuth("ci", token) }, 401},
		{"/id/k8s/clusters/prod/api", "", func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "__Host-tabard", Value: token}) }, 401},
		{"/id/k8s/clusters/prod/api", "", func(r *http.Request) {
			r.Header.Add("Authorization", "Bearer "+token)
			r.Header.Add("Authorization", "Bearer x")
		}, 401},
		{"/id/k8s/clusters", "", nil, 404}, {"/id/k8s/clusters/", "", nil, 404}, {"/id/k8s/clusters/other/api", "", nil, 404}, {"/id/k8s/clusters/PROD/api", "", nil, 404},
		{"/id/k8s/clusters/..%2f..%2fsign-in", "", nil, 404}, {"/id/k8s/clusters/%2e%2e/", "", nil, 404}, {"/id/k8s/clusters/prod%2f..%2fsign-in", "", nil, 404},
		{"/id/k8s/clusters/prod/..%2f..%2f..%2fsign-in", "", nil, 400}, {"/id/k8s/clusters/prod/%2e%2e/%2e%2e/sign-in", "", nil, 400},
		{"/id/k8s/clusters/prod//sign-in", "", nil, 400}, {"/id/k8s/clusters/prod/api/v1/..%5c..%5csign-in", "", nil, 400},
	} {
		resp, body := s.at(t, c.path, c.host, "", func(r *http.Request) {
			path, query, _ := strings.Cut(c.path, "?")
			r.URL = &url.URL{Scheme: "https", Host: r.URL.Host, Opaque: path, RawQuery: query} // sent as it is
			if c.change != nil {
				c.change(r)
			}
		})
		var status struct {
			Kind string
			Code int
		}
		if err := json.Unmarshal([]byte(body), &status); err != nil || status.Kind != "Status" || status.Code != resp.StatusCode || resp.StatusCode != c.code {
			t.Errorf("%s %s: %d %s", c.host, c.path, resp.StatusCode, body)
		}
		if r := up.last(); r != nil {
			t.Errorf("%s %s reached the API server", c.host, c.path)
		}
	}
	for _, path := range []string{"/sign-in", "/keys", "/healthz"} {
		if code, body, _ := s.get(t, path); code != 200 || strings.Contains(body, `"Status"`) {
			t.Errorf("%s by the issuer's name: %d %s", path, code, body)
		}
	}
}

// TestProxyReload adds a cluster and takes it away again, while a watch at another goes on.
func TestProxyReload(t *testing.T) {
	one, two := startAPIServer(t), startAPIServer(t)
	ci, lab := newJob(t, "ci", "prod"), newJob(t, "lab", "lab")
	first := one.proxied("prod", "kubernetes", "")
	s := startProxied(t, first, ci)
	token, hc := ci.token(t, s), s.client()
	stays, closeStays := s.watch(t, "prod", token, hc)
	defer closeStays()
	one.waitWatches(t, 1)
	one.send("at first")
	expect(t, stays, "at first")

	s.configure(t, proxiedConfig(first+two.proxied("lab", "lab-kubernetes", ""), ci, lab))
	s.log.wait(t, `"msg":"configuration reloaded"`, 1)
	goes, closeGoes := s.watch(t, "lab", lab.token(t, s), hc)
	defer closeGoes()
	two.waitWatches(t, 1)
	two.send("of the second")
	expect(t, goes, "of the second")
	if resp, body := s.at(t, "/id/k8s/clusters/lab/api", "", token); resp.StatusCode != 401 {
		t.Errorf("a token for prod at lab: %d %s", resp.StatusCode, body)
	}

	s.configure(t, proxiedConfig(first+two.proxied("lab", "lab-kubernetes", "policy: [{name: x, effect: deny, when: 'nobody'}]"), ci, lab))
	s.log.wait(t, "clusters[1].proxy.policy[0].when", 1)
	two.send("after a mistake")
	expect(t, goes, "after a mistake")

	s.configure(t, proxiedConfig(first, ci))
	s.log.wait(t, `"msg":"configuration reloaded"`, 2)
	expectEnd(t, goes)
	if resp, body := s.at(t, "/id/k8s/clusters/lab/api", "", token); resp.StatusCode != 404 {
		t.Errorf("a cluster that is gone: %d %s", resp.StatusCode, body)
	}
	one.send("at last")
	expect(t, stays, "at last")
}

// TestProxyStops: open watches end as an API server ends them, and the server with them.
func TestProxyStops(t *testing.T) {
	up, ci := startAPIServer(t), newJob(t, "ci", "prod")
	s := startProxied(t, up.proxied("prod", "kubernetes", ""), ci)
	token := ci.token(t, s)
	old := s.client()
	old.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool()}, DisableKeepAlives: true}
	var open []*bufio.Reader
	for _, hc := range []*http.Client{s.client(), old} {
		events, done := s.watch(t, "prod", token, hc)
		defer done()
		open = append(open, events)
	}
	up.waitWatches(t, 2)
	up.send("before the end")
	for _, events := range open {
		expect(t, events, "before the end")
	}
	if code := s.end(t); code != exitDone {
		t.Errorf("exit %d", code)
	}
	for _, events := range open {
		expectEnd(t, events)
	}
	if log := s.log.String(); strings.Contains(log, "were cut") {
		t.Errorf("the stop waited for watches:\n%s", log)
	}
	if n := strings.Count(s.trail(t), `"act":"k8s.request"`); n != 2 {
		t.Errorf("%d requests in the trail, want 2", n)
	}
}

// trail is what the audit trail holds.
func (s *instance) trail(t testing.TB) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "audit", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// anybody is an Authority and a Trail that know one person and write nothing.
type anybody struct{}

func (anybody) Identify(_ context.Context, cluster, _ string) (idp.Identity, error) {
	return idp.Identity{Cluster: cluster, Sub: "corp.1", Username: "alice", Session: "s", JTI: "j", Ends: time.Now().Add(time.Hour)}, nil
}

func (anybody) Recheck(_ context.Context, id idp.Identity) (idp.Identity, error) { return id, nil }

func (anybody) AppendAll(context.Context, []audit.Event) error { return nil }

// trapped is an Authority that panics.
type trapped struct{ anybody }

func (trapped) Identify(context.Context, string, string) (idp.Identity, error) {
	panic("of an authority")
}

// proxyServer is a server in front of one proxied cluster.
func proxyServer(t *testing.T, up *apiServer, a proxy.Authority) *server {
	t.Helper()
	ca, err := os.ReadFile(up.caFile)
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	s := &server{log: log, metrics: newMetrics(), current: &assembly{users: 1, cfg: &Config{}}}
	s.proxy = proxy.New(proxy.Deps{Authority: a, Trail: anybody{}, Log: log, Observe: s.metrics.proxied})
	t.Cleanup(s.proxy.Close)
	table, err := proxy.Prepare("https://127.0.0.1", []proxy.ClusterConfig{{
		Name: "prod", APIServer: proxy.APIServerConfig{URL: up.URL, CA: string(ca), TokenFile: up.account}, Proxy: &proxy.Config{},
	}})
	if err == nil {
		err = s.proxy.Use(table)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func proxyRequest(t *testing.T, target string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer x")
	return r
}

// TestProxyPanic: a panic in front of an API server is an answer, and the server goes on.
func TestProxyPanic(t *testing.T) {
	s := proxyServer(t, startAPIServer(t), trapped{})
	srv := httptest.NewTLSServer(s)
	defer srv.Close()
	for range 2 {
		resp, err := srv.Client().Do(proxyRequest(t, srv.URL+proxy.Path+"prod/api"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 500 || strings.Contains(string(b), "authority") {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	}
}

// TestMetricsLint holds the names and the help of all metrics to Prometheus' rules.
func TestMetricsLint(t *testing.T) {
	s := proxyServer(t, startAPIServer(t), anybody{})
	s.metrics.registry.MustRegister(newProxyCollector(s.proxy.Health))
	s.metrics.proxied(proxy.Observation{Cluster: "prod", Status: 200})
	s.metrics.reviewed("prod", "good")
	s.metrics.requests.WithLabelValues("proxy", "200").Inc()
	w, ours := httptest.NewRecorder(), ""
	s.metrics.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, "tabard_") {
			ours += line
		}
	}
	if n := strings.Count(ours, "# HELP"); n != 6 {
		t.Errorf("%d metrics of our own:\n%s", n, ours)
	}
	found, err := promlint.New(strings.NewReader(ours)).Lint()
	if err != nil || len(found) > 0 {
		t.Errorf("%v %v", found, err)
	}
}

// TestProxyHasNoDeadline: a watch outlives the deadlines of other requests, and holds no
// assembly, which would keep all that belongs to a configuration that was replaced.
func TestProxyHasNoDeadline(t *testing.T) {
	for name, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := startAPIServer(t)
			s := proxyServer(t, up, anybody{})
			srv := httptest.NewUnstartedServer(s)
			srv.Config.ReadTimeout, srv.Config.WriteTimeout, srv.EnableHTTP2 = 5*time.Second, 5*time.Second, h2 // a slow machine needs some of it to connect
			srv.StartTLS()
			defer srv.Close()
			defer srv.CloseClientConnections()
			resp, err := srv.Client().Do(proxyRequest(t, srv.URL+proxy.Path+"prod/api/v1/pods?watch=1"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			up.waitWatches(t, 1)
			if s.current.users != 1 {
				t.Errorf("an open watch holds the assembly: %d users", s.current.users)
			}
			time.AfterFunc(6*time.Second, func() { up.send("late") })
			expect(t, bufio.NewReader(resp.Body), "late")
		})
	}
}

// TestProxyDoctor: what the doctor finds at API servers is told of their clusters.
func TestProxyDoctor(t *testing.T) {
	up, gone := startAPIServer(t), startAPIServer(t)
	gone.Close()
	s := startProxied(t, up.proxied("prod", "kubernetes", "")+gone.proxied("lab", "lab", "")+"- {name: flags, clientID: flags, apiServer: {url: \"https://127.0.0.1:1\"}}\n", newJob(t, "ci", "prod"))
	s.log.wait(t, "the API server does not answer", 1)
	s.log.wait(t, "the API server answers", 1)
	code, stdout, stderr := command(t, "doctor", "--config", s.path, "-o", "json")
	var report struct{ Checks []finding }
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("%v: %s%s", err, stdout, stderr)
	}
	if got, want := check(report.Checks, "cluster prod"), up.URL+" answers"; !strings.Contains(got, want) {
		t.Errorf("no %q in\n%s", want, got)
	}
	if got := check(report.Checks, "cluster lab"); code != exitFailed || !strings.HasPrefix(got, "fail: "+gone.URL+" cannot be reached") {
		t.Errorf("exit %d, lab: %s", code, got)
	}
	if got := check(report.Checks, "server"); !strings.Contains(got, "fail: the server cannot use the API server of cluster lab") || strings.Contains(got, "prod") {
		t.Errorf("the running server: %s", got)
	}
	if got := check(report.Checks, "cluster flags"); got != "" {
		t.Errorf("a cluster without a proxy: %s", got)
	}
	if strings.Contains(stdout, accountToken) {
		t.Error("the doctor tells the account's token")
	}
}

// TestProxyMistakes: each mistake that the proxy finds in its part stands at its line.
func TestProxyMistakes(t *testing.T) {
	path := writeConfig(t, strings.Replace(minimal, "- {name: prod, clientID: kubernetes}\n", `- name: prod
  clientID: kubernetes
  apiServer: {url: https://10.0.0.1:6443, tokenFile: tabard.yaml}
  proxy:
    hosts: [id.corp.example, a.example, "b.example:1"]
    policy:
    - {name: x, effect: deny, when: "user == 1"}
    - {name: x, effect: block, when: "verb == 'get'"}
    - name: y
      effect: deny
      when: "verb == 'delete'"
      examples:
      - {verb: get, want: match}
    - {name: z, effect: allow}
    audit:
    - {when: "true", level: loud}
    limits: {rate: -1, inFlight: -2, timeout: 1ns}
    passthrough: {}
- {name: two, clientID: two, proxy: {hosts: [a.example]}}
- {name: three, clientID: three, apiServer: {url: "https://x", certFile: tabard.yaml, exec: {command: ""}}, proxy: {}}
- {name: four, clientID: four, apiServer: {url: "https://x"}, proxy: {}}
`, 1))
	code, _, stderr := command(t, "config", "check", path)
	var got []string
	for line := range strings.Lines(stderr) {
		at, _, _ := strings.Cut(strings.TrimPrefix(line, path), ": ")
		key, _, _ := strings.Cut(strings.TrimPrefix(line, path+at+": "), ": ")
		got = append(got, at+" "+key)
	}
	want := []string{
		":16:13 clusters[0].proxy.hosts[0]", ":16:41 clusters[0].proxy.hosts[2]", ":18:31 clusters[0].proxy.policy[0].when",
		":19:8 clusters[0].proxy.policy[1].name", ":19:17 clusters[0].proxy.policy[1].effect", ":24:9 clusters[0].proxy.policy[2].examples[0]",
		":25:7 clusters[0].proxy.policy[3].when", ":27:22 clusters[0].proxy.audit[0].level", ":28:14 clusters[0].proxy.limits.rate",
		":28:24 clusters[0].proxy.limits.inFlight", ":28:38 clusters[0].proxy.limits.timeout", ":29:5 clusters[0].proxy.passthrough.tokenFile",
		":30:3 clusters[1].apiServer.url", ":30:3 clusters[1].apiServer", ":30:46 clusters[1].proxy.hosts[0]", ":31:34 clusters[2].apiServer",
		":31:64 clusters[2].apiServer.certFile", ":31:94 clusters[2].apiServer.exec.command", ":32:32 clusters[3].apiServer",
	}
	if code != exitFailed || !slices.Equal(got, want) {
		t.Errorf("exit %d:\n%s\nwant\n%s", code, stderr, strings.Join(want, "\n"))
	}
	if strings.Contains(stderr, secret) {
		t.Error("the secret is in the error")
	}
}
