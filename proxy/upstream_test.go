package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// fakeAPI is an API server as far as TLS and credentials go.
type fakeAPI struct {
	*httptest.Server
	ca *testenv.CA

	mu    sync.Mutex
	seen  []string // protocol, path, Authorization, name in the client certificate
	codes map[string]int
	hang  chan struct{} // requests for /hang wait for it
}

func startFakeAPI(t testing.TB) *fakeAPI {
	t.Helper()
	f := &fakeAPI{ca: testenv.NewCA(t, t.TempDir()), codes: map[string]int{}, hang: make(chan struct{})}
	cert, key := f.ca.Issue(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(f.pem(t)))
	f.Server = httptest.NewUnstartedServer(f)
	f.EnableHTTP2 = true
	f.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	f.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	f.StartTLS()
	t.Cleanup(f.Close)
	t.Cleanup(f.CloseClientConnections)
	return f
}

func (f *fakeAPI) pem(t testing.TB) string { return fileText(t, f.ca.File) }

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cn := "-"
	if len(r.TLS.PeerCertificates) > 0 {
		cn = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	f.mu.Lock()
	code := f.codes[r.URL.Path]
	if refused := f.codes[r.Header.Get("Authorization")]; refused != 0 {
		code = refused
	}
	f.seen = append(f.seen, fmt.Sprintf("%s %s %q %s", r.Proto, r.URL.Path, r.Header["Authorization"], cn))
	f.mu.Unlock()
	switch {
	case r.URL.Path == "/hang":
		w.(http.Flusher).Flush()
		select {
		case <-f.hang:
		case <-r.Context().Done():
		}
		io.WriteString(w, "at last")
	case code == http.StatusFound:
		http.Redirect(w, r, "/elsewhere", code)
	case code != 0:
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","message":"because %d"}`, code)
	}
}

func (f *fakeAPI) answer(what string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.codes[what] = code
}

// take returns what was seen, probes of our own left out, and forgets it.
func (f *fakeAPI) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, line := range f.seen {
		if !strings.Contains(line, " /readyz ") {
			lines = append(lines, line)
		}
	}
	f.seen = nil
	return strings.Join(lines, "\n")
}

func fileText(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fileWith(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	replaceFile(t, path, text)
	return path
}

func replaceFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

// upstreamOf runs until the test ends.
func upstreamOf(t testing.TB, cfg APIServerConfig) *upstream {
	t.Helper()
	u, err := newUpstream("prod", cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	return u
}

// idleUpstream looks for its credential when the test says so.
func idleUpstream(t testing.TB, cfg APIServerConfig) *upstream {
	t.Helper()
	u, err := prepareUpstream("prod", cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	u.refresh(t.Context(), false)
	close(u.tried)
	t.Cleanup(func() {
		if l := u.link.Load(); l != nil {
			l.closeIdle()
		}
	})
	return u
}

// send makes a GET as somebody, or as nobody.
func send(t testing.TB, rt http.RoundTripper, u *upstream, path, who string, authorization ...string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.url().JoinPath(path).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(authorization) > 0 {
		r.Header["Authorization"] = authorization
	}
	if who != "" {
		r.Header.Set("Impersonate-User", who)
	}
	res, err := rt.RoundTrip(r)
	if err == nil {
		t.Cleanup(func() { res.Body.Close() })
	}
	return res, err
}

// drop reads a whole answer, so that its connection can be used again.
func drop(t testing.TB, res *http.Response, err error) int {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

func TestWireCredentials(t *testing.T) {
	f := startFakeAPI(t)
	u := upstreamOf(t, APIServerConfig{URL: f.URL, CA: f.pem(t), TokenFile: fileWith(t, " own-token\n")})
	for _, c := range []struct {
		name          string
		rt            http.RoundTripper
		who           string
		authorization []string
		want          string // seen; or
		err           error
	}{
		{"a person", u.transport(), "alice", nil, `HTTP/2.0 /x ["Bearer own-token"] -`, nil},
		{"a person's own token is dropped", u.transport(), "alice", []string{"Bearer hers"}, `HTTP/2.0 /x ["Bearer own-token"] -`, nil},
		{"upgrades", u.upgrades(), "alice", nil, `HTTP/1.1 /x ["Bearer own-token"] -`, nil},
		{"the headers were lost", u.transport(), "", nil, "", errNotImpersonating},
		{"the headers of an upgrade were lost", u.upgrades(), "", []string{"Bearer hers"}, "", errNotImpersonating},
		{"a foreign token", u.foreign(), "", []string{"Bearer robot"}, `HTTP/2.0 /x ["Bearer robot"] -`, nil},
		{"a foreign upgrade", u.foreignUpgrades(), "", []string{"Bearer robot"}, `HTTP/1.1 /x ["Bearer robot"] -`, nil},
		{"no foreign token", u.foreign(), "alice", nil, "", errNoToken},
		{"two foreign tokens", u.foreign(), "", []string{"Bearer a", "Bearer b"}, "", errNoToken},
	} {
		res, err := send(t, c.rt, u, "/x", c.who, c.authorization...)
		if c.err == nil {
			drop(t, res, err)
		} else if !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := f.take(); got != c.want {
			t.Errorf("%s: the API server saw %q, want %q", c.name, got, c.want)
		}
	}
}

// TestWireChangesNothing: an answer comes as it is, redirects and encodings too.
func TestWireChangesNothing(t *testing.T) {
	f := startFakeAPI(t)
	u := upstreamOf(t, APIServerConfig{URL: f.URL, CA: f.pem(t), TokenFile: fileWith(t, "t")})
	f.answer("/moved", http.StatusFound)
	res, err := send(t, u.transport(), u, "/moved", "alice")
	if code := drop(t, res, err); code != http.StatusFound || res.Header.Get("Location") != "/elsewhere" || strings.Contains(f.take(), "elsewhere") {
		t.Errorf("a redirect: %d, %v", code, res.Header)
	}
	for _, rt := range []*http.Transport{u.link.Load().own.both, u.link.Load().own.http1, u.link.Load().plain.both, u.link.Load().plain.http1} {
		if !rt.DisableCompression || rt.TLSClientConfig.InsecureSkipVerify || rt.TLSClientConfig.MinVersion < tls.VersionTLS12 {
			t.Errorf("transport %+v", rt)
		}
	}
}

// TestTokenFileChanges: the API server refuses the old token, by which the new one is
// found at once.
func TestTokenFileChanges(t *testing.T) {
	f := startFakeAPI(t)
	token := fileWith(t, "first")
	u := upstreamOf(t, APIServerConfig{URL: f.URL, CA: f.pem(t), TokenFile: token})
	if code := drop(t, mustSend(t, u, "/x"), nil); code != http.StatusOK {
		t.Fatal(code)
	}
	f.answer("Bearer first", http.StatusUnauthorized)
	if code := drop(t, mustSend(t, u, "/x"), nil); code != http.StatusUnauthorized {
		t.Fatal(code) // which the caller turns into words of its own
	}
	replaceFile(t, token, "second")
	for drop(t, mustSend(t, u, "/x"), nil) != http.StatusOK { // until the test's deadline
		time.Sleep(10 * time.Millisecond)
	}
	// A file that is empty for a moment takes nothing away.
	replaceFile(t, token, "")
	u.refresh(t.Context(), false)
	if code := drop(t, mustSend(t, u, "/x"), nil); code != http.StatusOK {
		t.Error(code)
	}
}

func mustSend(t testing.TB, u *upstream, path string) *http.Response {
	t.Helper()
	res, err := send(t, u.transport(), u, path, "alice")
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestUnauthorizedBehindAProxySubresource is a pod's, and no reason to run a plugin.
func TestUnauthorizedBehindAProxySubresource(t *testing.T) {
	f := startFakeAPI(t)
	for path, want := range map[string]int{"/api/v1/namespaces/a/pods/b/proxy/c": 0, "/api/v1/pods": 1} {
		u := idleUpstream(t, APIServerConfig{URL: f.URL, CA: f.pem(t), TokenFile: fileWith(t, "t")})
		f.answer(path, http.StatusUnauthorized)
		for range 3 {
			drop(t, mustSend(t, u, path), nil)
		}
		if len(u.refused) != want {
			t.Errorf("%s: %d looks for a new credential", path, len(u.refused))
		}
	}
}

// TestClientCertificate: it is for the account's requests alone, and a new one is used
// by new requests while an open answer goes on.
func TestClientCertificate(t *testing.T) {
	f := startFakeAPI(t)
	cert, key := f.ca.IssueClient(t, "tabard-1")
	certFile, keyFile := fileWith(t, fileText(t, cert)), fileWith(t, fileText(t, key))
	u := idleUpstream(t, APIServerConfig{URL: f.URL, CAFile: f.ca.File, CertFile: certFile, KeyFile: keyFile})
	res, err := send(t, u.foreign(), u, "/x", "", "Bearer robot")
	drop(t, res, err)
	open := mustSend(t, u, "/hang")
	res, err = send(t, u.upgrades(), u, "/x", "alice", "Bearer hers")
	drop(t, res, err)
	if got, want := f.take(), "HTTP/2.0 /x [\"Bearer robot\"] -\nHTTP/2.0 /hang [] tabard-1\nHTTP/1.1 /x [] tabard-1"; got != want {
		t.Errorf("the API server saw\n%s, want\n%s", got, want)
	}
	cert, key = f.ca.IssueClient(t, "tabard-2")
	replaceFile(t, certFile, fileText(t, cert))
	u.refresh(t.Context(), false) // they do not fit together: half of a renewal
	drop(t, mustSend(t, u, "/x"), nil)
	replaceFile(t, keyFile, fileText(t, key))
	u.refresh(t.Context(), false)
	drop(t, mustSend(t, u, "/x"), nil)
	if got, want := f.take(), "HTTP/2.0 /x [] tabard-1\nHTTP/2.0 /x [] tabard-2"; got != want {
		t.Errorf("the API server saw\n%s, want\n%s", got, want)
	}
	close(f.hang)
	if b, err := io.ReadAll(open.Body); string(b) != "at last" || err != nil {
		t.Errorf("what was open ended with %q, %v", b, err)
	}
}

// TestNoCredential: nothing is sent without one, and it is told why.
func TestNoCredential(t *testing.T) {
	f := startFakeAPI(t)
	for name, c := range map[string]struct {
		cfg  APIServerConfig
		want string
	}{
		"no file":        {APIServerConfig{TokenFile: "/nowhere/token"}, "/nowhere/token"},
		"empty file":     {APIServerConfig{TokenFile: fileWith(t, "\n")}, "is empty"},
		"two lines":      {APIServerConfig{TokenFile: fileWith(t, "top-secret\nInjected: header")}, "no header may hold"},
		"huge":           {APIServerConfig{TokenFile: fileWith(t, strings.Repeat("a", maxCredential+1))}, "too large"},
		"CA is none":     {APIServerConfig{CA: "x", TokenFile: fileWith(t, "t")}, "no certificate"},
		"no certificate": {APIServerConfig{CertFile: "/nowhere/cert", KeyFile: "/nowhere/key"}, "/nowhere/cert"},
		"nothing":        {APIServerConfig{}, "tokenFile, certFile, exec or inCluster"},
	} {
		c.cfg.URL = f.URL
		u := idleUpstream(t, c.cfg)
		_, err := send(t, u.transport(), u, "/x", "alice")
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "Injected") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err := u.probe(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: health says %v", name, err)
		}
	}
	if got := f.take(); got != "" {
		t.Errorf("the API server saw %s", got)
	}
	u, err := prepareUpstream("prod", APIServerConfig{URL: f.URL, TokenFile: "t"}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.current(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("before the first look: %v", err)
	}
}

func TestUpstreamURLs(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://10.0.0.1:6443": true, "https://rancher.example/k8s/clusters/c-1": true, "http://10.0.0.1": false, "10.0.0.1:6443": false,
		"https://": false, "https://u:secret@a": false, "https://a?b": false, "https://a#b": false, "": false, "https://%": false,
	} {
		_, err := prepareUpstream("prod", APIServerConfig{URL: url}, quiet())
		if (err == nil) != ok || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	got, err := APIServerConfig{InCluster: true}.inCluster("/dir")
	if err != nil || got.URL != "https://[fd00::1]:443" || got.TokenFile != "/dir/token" || got.CAFile != "/dir/ca.crt" {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = APIServerConfig{InCluster: true, URL: "https://a", CA: "x"}.inCluster("/dir")
	if err != nil || got.URL != "https://a" || got.TokenFile != "/dir/token" || got.CAFile != "" || got.CA != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err = (APIServerConfig{InCluster: true}).inCluster("/dir"); err == nil {
		t.Error("in no cluster")
	}
}

// TestVerifiesTheAPIServer: a credential goes to nobody but who holds the right
// certificate.
func TestVerifiesTheAPIServer(t *testing.T) {
	f, other := startFakeAPI(t), testenv.NewCA(t, t.TempDir())
	l, err := tls.Listen("tcp", "127.0.0.2:0", f.TLS) // which the certificate does not name
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := &http.Server{Handler: f, ErrorLog: f.Config.ErrorLog}
	go elsewhere.Serve(l)
	t.Cleanup(func() { elsewhere.Close() })
	for name, c := range map[string]struct{ url, ca, want string }{
		"another CA":     {f.URL, fileText(t, other.File), "not in apiServer.caFile"},
		"the system's":   {f.URL, "", "not in apiServer.caFile"},
		"another's name": {"https://" + l.Addr().String(), f.pem(t), "certificate is not good"},
	} {
		u := idleUpstream(t, APIServerConfig{URL: c.url, CA: c.ca, TokenFile: fileWith(t, "t")})
		for _, rt := range []http.RoundTripper{u.transport(), u.upgrades()} {
			_, err := send(t, rt, u, "/x", "alice")
			if err = explain(err); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := f.take(); got != "" {
			t.Errorf("%s: the server saw %s", name, got)
		}
	}
}

// TestHealth goes through every state and back.
func TestHealth(t *testing.T) {
	f := startFakeAPI(t)
	u := idleUpstream(t, APIServerConfig{URL: f.URL, CA: f.pem(t), TokenFile: fileWith(t, "t")})
	if _, err := u.health(); err == nil {
		t.Error("good before it was tried")
	}
	var since time.Time
	for _, c := range []struct {
		code int
		want string
		same bool // as before, so that since stays
	}{
		{0, "", false}, {403, "", true}, {500, "because 500", false}, {401, "refuses the proxy's account", true}, {0, "", false},
	} {
		f.answer("/readyz", c.code)
		u.note(u.probe(t.Context()))
		at, err := u.health()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("at %d: %v", c.code, err)
		}
		if c.same != at.Equal(since) {
			t.Errorf("at %d: since %s, before %s", c.code, at, since)
		}
		since = at
	}
	f.CloseClientConnections()
	f.Listener.Close()
	if err := u.probe(t.Context()); err == nil {
		t.Error("it is gone, and answers")
	}
}

// oneConn is a listener with one connection, which says nothing any more once it is mute.
type oneConn struct {
	net.Conn
	accepted, mute atomic.Bool
	closed         chan struct{}
	close          sync.Once
}

func (c *oneConn) Accept() (net.Conn, error) {
	if c.accepted.Swap(true) {
		<-c.closed
		return nil, net.ErrClosed
	}
	return c, nil
}

func (c *oneConn) Write(b []byte) (int, error) {
	if c.mute.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *oneConn) Close() error {
	c.close.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *oneConn) Addr() net.Addr { return c.LocalAddr() }

// TestDeadConnection: an API server that is gone without a word is noticed by pings, on
// HTTP/2 connections with answers that are open.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testenv.NewCA(t, t.TempDir())
		cert, key := ca.Issue(t)
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		u := idleUpstream(t, APIServerConfig{URL: "https://127.0.0.1", CAFile: ca.File, TokenFile: fileWith(t, "t")})
		ours, theirs := net.Pipe()
		u.link.Load().own.both.DialContext = func(context.Context, string, string) (net.Conn, error) { return ours, nil }
		l := &oneConn{Conn: theirs, closed: make(chan struct{})}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), ErrorLog: stdlog.New(io.Discard, "", 0)}
		defer server.Close()
		go server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}))
		open := mustSend(t, u, "/hang")
		l.mute.Store(true)
		begun := time.Now()
		if b, err := io.ReadAll(open.Body); err == nil || open.ProtoMajor != 2 || time.Since(begun) > pingAfter+pingTimeout {
			t.Errorf("after %s it ended with %q, %v", time.Since(begun), b, err)
		}
	})
}

func TestExecPlugin(t *testing.T) {
	f := startFakeAPI(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	print := func(status string) {
		t.Helper()
		replaceFile(t, out, `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":`+status+`}`)
	}
	script := filepath.Join(dir, "plugin")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$1 $REGION $KUBERNETES_EXEC_INFO\" >>"+dir+"/runs\ncat "+out+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	runs := func() int { return strings.Count(fileText(t, filepath.Join(dir, "runs")), "\n") }
	print(`{"token":"one"}`)
	u := idleUpstream(t, APIServerConfig{URL: f.URL, CA: f.pem(t), Exec: &ExecConfig{Command: script, Args: []string{"get"}, Env: map[string]string{"REGION": "north"}}})
	drop(t, mustSend(t, u, "/x"), nil)
	told := fileText(t, filepath.Join(dir, "runs"))
	for _, want := range []string{"get north {", `"apiVersion":"client.authentication.k8s.io/v1"`, `"server":"` + f.URL + `"`, `"interactive":false`, `"certificate-authority-data":"`} {
		if !strings.Contains(told, want) {
			t.Errorf("the plugin was told %s, without %s", told, want)
		}
	}
	u.refresh(t.Context(), false)
	if runs() != 1 {
		t.Errorf("%d runs with a credential that does not end", runs())
	}
	print(fmt.Sprintf(`{"token":"two","expirationTimestamp":%q}`, time.Now().Add(time.Second).Format(time.RFC3339)))
	u.refresh(t.Context(), true) // it was refused
	drop(t, mustSend(t, u, "/x"), nil)
	cert, key := f.ca.IssueClient(t, "by-plugin")
	print(fmt.Sprintf(`{"clientCertificateData":%q,"clientKeyData":%q,"expirationTimestamp":"2999-01-01T00:00:00Z"}`, fileText(t, cert), fileText(t, key)))
	u.refresh(t.Context(), false) // it ends soon
	u.refresh(t.Context(), false)
	drop(t, mustSend(t, u, "/x"), nil)
	if got, want := f.take(), "HTTP/2.0 /x [\"Bearer one\"] -\nHTTP/2.0 /x [\"Bearer two\"] -\nHTTP/2.0 /x [] by-plugin"; got != want || runs() != 3 {
		t.Errorf("after %d runs the API server saw\n%s, want\n%s", runs(), got, want)
	}
}

func TestExecPluginFails(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"exit":          {"echo secret; exit 3", "exit status 3"},
		"no JSON":       {"echo secret", "no ExecCredential"},
		"other version": {`echo '{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"token":"secret"}}'`, "no ExecCredential"},
		"no status":     {`echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential"}'`, "no ExecCredential"},
		"nothing in it": {`echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{}}'`, "no credential"},
		"half":          {`echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"clientKeyData":"secret"}}'`, "client certificate"},
		"bad token":     {`echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"secret x"}}'`, "no header may hold"},
		"endless":       {"yes secret", "exit status"},
	} {
		script := fileWith(t, "#!/bin/sh\n"+c.script+"\n")
		cfg := APIServerConfig{URL: "https://a", Exec: &ExecConfig{Command: "/bin/sh", Args: []string{script}}}
		_, err := cfg.credential(t.Context(), nil, false)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if n, err := io.Copy(&capped{}, zeros{}); err == nil || n > maxCredential {
		t.Errorf("%d bytes of output, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		defer cancel()
		for {
			if _, err := os.Stat(started); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	cfg := APIServerConfig{URL: "https://a", Exec: &ExecConfig{Command: "/bin/sh", Args: []string{fileWith(t, "touch "+started+"\nexec sleep 600\n")}}}
	if _, err := cfg.credential(ctx, nil, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a plugin that hangs: %v", err)
	}
}

func BenchmarkWire(b *testing.B) {
	u := &upstream{}
	u.link.Store(&link{authorization: []string{"Bearer t"}})
	w, h := u.transport().(*wire), http.Header{"Impersonate-User": {"alice"}, "Authorization": {"Bearer hers"}}
	b.ReportAllocs()
	for b.Loop() {
		l, err := w.u.current(b.Context())
		if err != nil || w.check(h) != nil {
			b.Fatal(err)
		}
		h["Authorization"] = l.authorization
	}
}
