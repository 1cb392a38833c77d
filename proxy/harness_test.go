package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(otherSide) != "" {
		runOtherSide()
	}
	goleak.VerifyTestMain(testenv.Main{M: m})
}

const (
	issuer       = "https://id.example"
	accountToken = "the-account"
	prodHost     = "prod.k8s.example"
)

// people is an Authority that knows tokens by heart.
type people struct {
	mu      sync.Mutex
	tokens  map[string]idp.Identity // by cluster, a space and the token
	gone    map[string]error        // of Recheck and Identify, by session
	groups  map[string][]string     // of Recheck, by session
	renamed map[string]string
	checks  int // of Recheck
	stuck   int // how many Rechecks from now on get no answer in time
	stuckOn error
}

func newPeople() *people {
	p := &people{tokens: map[string]idp.Identity{}, gone: map[string]error{}, groups: map[string][]string{}, renamed: map[string]string{}}
	p.add("prod", "alice-token", alice())
	bob := alice()
	bob.Sub, bob.Username, bob.Session, bob.JTI = "corp.2", "bob", "s2", "j2"
	p.add("prod", "bob-token", bob)
	p.add("test", "alice-test-token", alice())
	return p
}

func alice() idp.Identity {
	return idp.Identity{
		Cluster: "prod", Sub: "corp.1", Username: "alice", Groups: []string{"corp:dev", "oncall, with comma", "team ü"}, Session: "s1", JTI: "j1",
		AuthTime: time.Now().Add(-time.Hour), Ends: time.Now().Add(time.Hour),
	}
}

func (p *people) add(cluster, token string, id idp.Identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens[cluster+" "+token] = id
}

// end makes Identify and Recheck of a session fail.
func (p *people) end(session string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone[session] = err
}

func (p *people) regroup(session string, groups ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups[session] = groups
}

func (p *people) rename(session, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.renamed[session] = name
}

func (p *people) checked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks
}

func (p *people) Identify(_ context.Context, cluster, token string) (idp.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cluster != "prod" && cluster != "test" {
		return idp.Identity{}, idp.ErrNoCluster
	}
	id, ok := p.tokens[cluster+" "+token]
	if !ok {
		return idp.Identity{}, fmt.Errorf("%w: not one of ours", idp.ErrRefused)
	}
	return id, p.gone[id.Session]
}

// stick lets the next n Rechecks wait until their time is over, and then say err, or nothing
// but that.
func (p *people) stick(n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck, p.stuckOn = n, err
}

func (p *people) Recheck(ctx context.Context, id idp.Identity) (idp.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks++
	if p.stuck > 0 {
		p.stuck--
		<-ctx.Done()
		return idp.Identity{}, cmp.Or(p.stuckOn, ctx.Err())
	}
	if err := p.gone[id.Session]; err != nil {
		return idp.Identity{}, err
	}
	if g, ok := p.groups[id.Session]; ok {
		id.Groups = g
	}
	if name, ok := p.renamed[id.Session]; ok {
		id.Username = name
	}
	return id, nil
}

// memoryTrail keeps events.
type memoryTrail struct {
	mu     sync.Mutex
	events []audit.Event
	err    error
}

func (m *memoryTrail) AppendAll(_ context.Context, events []audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.events = append(m.events, events...)
	return nil
}

func (m *memoryTrail) all() []audit.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

func (m *memoryTrail) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// received is one request as an API server got it.
type receivedRequest struct {
	raw  string // head and body as they were on the wire
	head []string
	req  *http.Request
	body string
}

// header returns the values of every header of that name in any case, as they came.
func (r receivedRequest) header(name string) []string {
	var values []string
	for _, line := range r.head[1:] {
		n, v, _ := strings.Cut(line, ":")
		if strings.EqualFold(n, name) {
			values = append(values, strings.TrimSpace(v))
		}
	}
	return values
}

// recordingServer speaks HTTP/1.1 over TLS, keeps the very bytes of each request, and
// answers with what answer writes.
type recordingServer struct {
	net.Listener
	ca     string
	answer func(net.Conn, receivedRequest)
	mu     sync.Mutex
	got    []receivedRequest
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

func okAnswer(conn net.Conn, r receivedRequest) {
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
}

func startRecording(t testing.TB) *recordingServer {
	t.Helper()
	s := &recordingServer{answer: okAnswer, conns: map[net.Conn]bool{}}
	helper := httptest.NewUnstartedServer(nil)
	helper.StartTLS() // for its certificate
	cert, ca := helper.TLS.Certificates[0], helper.Certificate()
	helper.Close()
	s.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.wg.Go(s.accept)
	t.Cleanup(s.stop)
	return s
}

func (s *recordingServer) stop() {
	_ = s.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *recordingServer) accept() {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		s.wg.Go(func() { s.serve(conn) })
	}
}

func (s *recordingServer) serve(conn net.Conn) {
	defer conn.Close()
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &raw))
	for {
		raw.Reset()
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		head, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		r := receivedRequest{raw: raw.String(), head: strings.Split(head, "\r\n"), req: req, body: string(body)}
		if !isProbe(req) {
			s.mu.Lock()
			s.got = append(s.got, r)
			s.mu.Unlock()
		}
		s.answer(conn, r)
	}
}

// isProbe says whether a request is the proxy's own look at the API server's health.
func isProbe(r *http.Request) bool {
	return slices.Contains([]string{"/readyz", "/livez", "/healthz", "/version"}, r.URL.Path)
}

// take returns what came since the last time.
func (s *recordingServer) take() []receivedRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got = nil
	return got
}

// world is a proxy with an API server behind it, and a server in front.
type world struct {
	proxy  *Proxy
	people *people
	trail  *memoryTrail
	front  *httptest.Server
	url    string // of the API server
	ca     string
	dir    string
	mu     sync.Mutex
	seen   []Observation
}

type worldOption func(*ClusterConfig)

// newWorld starts a proxy for clusters prod and test, both at url.
func newWorld(t testing.TB, url, ca string, options ...worldOption) *world {
	t.Helper()
	w := &world{people: newPeople(), trail: &memoryTrail{}, url: url, ca: ca, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(w.dir, "token"), []byte(accountToken), 0o600); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	w.proxy = New(Deps{Authority: w.people, Trail: w.trail, Log: log, Observe: func(o Observation) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, o)
	}})
	t.Cleanup(w.proxy.Close)
	w.use(t, w.clusters(options...)...)
	w.front = httptest.NewUnstartedServer(w)
	w.front.EnableHTTP2 = true
	w.front.Config.ReadTimeout, w.front.Config.WriteTimeout = 30*time.Second, 60*time.Second
	w.front.StartTLS()
	t.Cleanup(w.front.Close)
	t.Cleanup(w.front.CloseClientConnections)
	return w
}

// ServeHTTP does what the server's own middleware does.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if !w.proxy.Handles(r) {
		http.Error(rw, "not the proxy's", http.StatusTeapot)
		return
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	w.proxy.ServeHTTP(rw, r.WithContext(audit.WithOrigin(r.Context(), audit.Origin{Address: host, RequestID: "req-1"})))
}

func (w *world) clusters(options ...worldOption) []ClusterConfig {
	api := APIServerConfig{URL: w.url, CA: w.ca, TokenFile: filepath.Join(w.dir, "token")}
	limits := LimitsConfig{InFlight: 1000, Streams: 10_000, Rate: 1e5, Burst: 1e5, MaxBody: 1 << 20, Timeout: 30 * time.Second}
	prod := ClusterConfig{Name: "prod", APIServer: api, Proxy: &Config{Hosts: []string{prodHost}, Limits: limits}}
	for _, o := range options {
		o(&prod)
	}
	return []ClusterConfig{prod, {Name: "test", APIServer: api, Proxy: &Config{Limits: limits}}}
}

func (w *world) use(t testing.TB, clusters ...ClusterConfig) {
	t.Helper()
	table, err := Prepare(issuer, clusters)
	if err == nil {
		err = w.proxy.Use(table)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// client speaks HTTP/1.1 or HTTP/2 to the proxy.
func (w *world) client(t testing.TB, protocol string) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(w.front.Certificate())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	tr.Protocols.SetHTTP2(protocol == "HTTP/2.0")
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request is one of alice's.
func (w *world) request(t testing.TB, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.front.URL+"/k8s/clusters/prod"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer alice-token")
	return r
}

// quiet waits until the proxy has done with every request, their ends told. An answer
// comes before that, and closing the server waits for no upgraded connection.
func (w *world) quiet() {
	for w.proxy.calls.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

func do(t testing.TB, c *http.Client, r *http.Request) *http.Response {
	t.Helper()
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// dial opens a raw HTTP/1.1 connection to the proxy.
func (w *world) dial(t testing.TB) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", w.front.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // so that a test that fails ends
	return conn
}

// exchange sends bytes and returns every answer until the proxy closes the connection or
// n have come.
func (w *world) exchange(t testing.TB, raw string, n int) []*http.Response {
	t.Helper()
	conn := w.dial(t)
	go func() { _, _ = io.WriteString(conn, raw) }()
	in := bufio.NewReader(conn)
	var all []*http.Response
	for len(all) < n {
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			break
		}
		b, err := io.ReadAll(res.Body)
		res.Body = io.NopCloser(bytes.NewReader(b))
		if all = append(all, res); err != nil {
			break
		}
	}
	return all
}

var errTest = errors.New("made to fail")
