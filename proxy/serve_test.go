package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tabard-id/tabard/idp"
)

// startAPI serves h as an API server would, over one protocol.
func startAPI(t testing.TB, protocol string, h http.Handler) (url, ca string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isProbe(r) {
			return
		}
		if r.Proto != protocol && r.Header.Get("Upgrade") == "" {
			t.Errorf("the API server was asked over %s, want %s", r.Proto, protocol)
		}
		h.ServeHTTP(w, r)
	}))
	s.EnableHTTP2 = protocol == "HTTP/2.0"
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// eachProtocol runs a test for every pair of protocols: the client's and the API
// server's.
func eachProtocol(t *testing.T, test func(t *testing.T, client, api string)) {
	for _, client := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, api := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(client+" to "+api, func(t *testing.T) { test(t, client, api) })
		}
	}
}

func read(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// status is the Status that an answer must be.
func status(t testing.TB, res *http.Response, code int) metav1.Status {
	t.Helper()
	var s metav1.Status
	b := read(t, res)
	if err := json.Unmarshal([]byte(b), &s); err != nil || s.Kind != "Status" || res.StatusCode != code || int(s.Code) != code {
		t.Fatalf("answer %d %s, want a Status of %d", res.StatusCode, b, code)
	}
	return s
}

func TestForwardsWhole(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		var zipped bytes.Buffer
		z := gzip.NewWriter(&zipped)
		_, _ = io.WriteString(z, strings.Repeat("pod ", 1000))
		_ = z.Close()
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("X-Saw", fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", r.Header.Get("Accept-Encoding"), " ", r.Header["User-Agent"], " ", string(body)))
			w.Header().Set("Trailer", "X-Announced")
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(zipped.Bytes())
			_ = http.NewResponseController(w).Flush() // or there is a length, and no trailer in HTTP/1.1
			w.Header().Set("X-Announced", "1")
			w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		}))
		w := newWorld(t, url, ca)
		r := w.request(t, "PATCH", "/api/v1/namespaces/a/pods/b?fieldManager=x%3By&force=true", strings.NewReader(`{"a":1}`))
		r.Header.Set("Accept-Encoding", "gzip")
		r.Header.Set("User-Agent", "")
		res := do(t, w.client(t, client), r)
		if got := read(t, res); got != zipped.String() || res.StatusCode != 201 || res.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("the answer %d of %d bytes is not what the API server sent", res.StatusCode, len(got))
		}
		if got, want := res.Header.Get("X-Saw"), `PATCH /api/v1/namespaces/a/pods/b?fieldManager=x%3By&force=true gzip [] {"a":1}`; got != want {
			t.Errorf("the API server saw %q, want %q", got, want)
		}
		if _, guessed := res.Header["Content-Type"]; guessed {
			t.Errorf("a content type was made up: %q", res.Header["Content-Type"])
		}
		if res.Trailer.Get("X-Announced") != "1" || res.Trailer.Get("X-Late") != "2" {
			t.Errorf("trailers: %v", res.Trailer)
		}
	})
}

func TestLargeBodiesBothWays(t *testing.T) {
	const size = 8 << 20
	whole := make([]byte, size)
	_, _ = mathrand.NewChaCha8([32]byte{1}).Read(whole)
	eachProtocol(t, func(t *testing.T, client, api string) {
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if b, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(b, whole) {
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(whole)
		}))
		w := newWorld(t, url, ca, func(c *ClusterConfig) { c.Proxy.Limits.MaxBody = size })
		c := w.client(t, client)
		res := do(t, c, w.request(t, "PUT", "/api/v1/namespaces/a/configmaps/b", bytes.NewReader(whole)))
		if got := read(t, res); res.StatusCode != 200 || got != string(whole) {
			t.Errorf("%d and %d bytes came back", res.StatusCode, len(got))
		}
		res, err := c.Do(w.request(t, "PUT", "/api/v1/namespaces/a/configmaps/b", io.LimitReader(zeros{}, size+1)))
		if err == nil { // the client may not read an answer while it still sends
			status(t, res, 413)
			_ = res.Body.Close()
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestInformationalAnswers(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	}))
	w := newWorld(t, url, ca)
	var hints http.Header
	r := w.request(t, "GET", "/api", nil)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
		hints = http.Header(h)
		return nil
	}}))
	if res := do(t, w.client(t, "HTTP/1.1"), r); res.StatusCode != 204 {
		t.Errorf("status %d", res.StatusCode)
	}
	if hints.Get("Link") != "</a>" || hints["Set-Cookie"] != nil {
		t.Errorf("103 came with %v", hints)
	}
}

// TestSwitchOverHTTP2: an API server that says 101 there, where it is no answer, does not
// make it one to a client that asked for nothing.
func TestSwitchOverHTTP2(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
		_, _ = io.WriteString(w, "{}")
	}))
	w := newWorld(t, url, ca)
	if res := do(t, w.client(t, "HTTP/1.1"), w.request(t, "GET", "/api", nil)); res.StatusCode != 200 || read(t, res) != "{}" {
		t.Errorf("status %d", res.StatusCode)
	}
}

// TestOneOrigin: what a pod serves below the issuer's own host cannot reach its cookies.
func TestOneOrigin(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, name := range []string{"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Alt-Svc", "Content-Security-Policy"} {
			h.Set(name, "theirs")
		}
		h.Set("Trailer", "Set-Cookie")
		h.Set("Location", "/api/v1/x/?a=b")
		h.Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, "<script>")
		h.Set("Set-Cookie", "late=1")
		h.Set(http.TrailerPrefix+"Set-Cookie", "later=1")
	}))
	w := newWorld(t, url, ca)
	c := w.client(t, "HTTP/1.1")
	res := do(t, c, w.request(t, "GET", "/api/v1/namespaces/a/services/b/proxy/", nil))
	read(t, res)
	for name, want := range map[string]string{
		"Set-Cookie": "", "Clear-Site-Data": "", "Strict-Transport-Security": "", "Service-Worker-Allowed": "", "Alt-Svc": "",
		"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff", "Location": "/k8s/clusters/prod/api/v1/x/?a=b",
	} {
		if got := strings.Join(res.Header[name], "; "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(res.Trailer["Set-Cookie"]) > 0 {
		t.Errorf("a cookie in the trailer: %v", res.Trailer)
	}
	r := w.request(t, "GET", "", nil)
	r.URL.Path, r.Host = "/api/v1/namespaces/a/services/b/proxy/", prodHost
	res = do(t, c, r)
	read(t, res)
	if res.Header.Get("Content-Security-Policy") != "theirs" || res.Header["Set-Cookie"] != nil || res.Header.Get("Location") != "/api/v1/x/?a=b" {
		t.Errorf("at the cluster's own host: %v", res.Header)
	}
}

// TestLateCookies: nor do cookies get through in trailers that nothing announced.
func TestLateCookies(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			w.Header().Set(http.TrailerPrefix+"Set-Cookie", "a=b")
			w.Header().Set(http.TrailerPrefix+"X-Late", "1")
		}))
		w := newWorld(t, url, ca)
		res := do(t, w.client(t, client), w.request(t, "GET", "/api/v1/namespaces/a/services/b/proxy/", nil))
		if read(t, res); res.Trailer.Get("X-Late") != "1" || res.Trailer["Set-Cookie"] != nil {
			t.Errorf("the trailer: %v", res.Trailer)
		}
	})
}

func TestRefusals(t *testing.T) {
	var asked atomic.Int32
	answer := func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/api/v1/unauthorized", "/api/v1/namespaces/a/pods/b/proxy/login":
			w.WriteHeader(http.StatusUnauthorized)
		case "/api/v1/slow":
			<-r.Context().Done()
		case "/api/v1/switch":
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n")
			_ = conn.Close()
		case "/api/v1/cut":
			panic(http.ErrAbortHandler)
		}
	}
	url, ca := startAPI(t, "HTTP/1.1", http.HandlerFunc(answer))
	w := newWorld(t, url, ca, func(c *ClusterConfig) {
		c.Proxy.Policy = []Rule{
			{Name: "no-secrets", Effect: "deny", When: "resource == 'secrets'", Reason: "they are secret", Hint: "ask for group vault"},
			{Name: "no-exec", Effect: "deny", When: "verb == 'create' && subresource == 'exec'", Reason: "no shells"},
		}
	})
	w.people.end("s2", errTest)
	c := w.client(t, "HTTP/1.1")
	for _, refused := range []struct {
		path, token string
		code        int
		says        string
		asked       int32
	}{
		{"/api/v1/nodes", "nobody", 401, "", 0},
		{"/api/v1/nodes", "bob-token", 503, "", 0},
		{"/api/v1/secrets", "alice-token", 403, "ask for group vault", 0},
		{"/api/v1/namespaces/a/pods/b/exec?command=sh", "alice-token", 403, "no-exec", 0}, // as WebSocket clients ask
		{"/api/v1/unauthorized", "alice-token", 502, "own account", 1},
		{"/api/v1/namespaces/a/pods/b/proxy/login", "alice-token", 0, "", 1},
		{"/api/v1/switch", "alice-token", 502, "", 1},
		{"/api/v1/cut", "alice-token", 502, "", 100}, // net/http tries a GET again
	} {
		asked.Store(0)
		r := w.request(t, "GET", refused.path, nil)
		r.Header.Set("Authorization", "Bearer "+refused.token)
		res := do(t, c, r)
		if n := asked.Load(); n > refused.asked || refused.asked > 0 && n == 0 {
			t.Errorf("%s: the API server was asked %d times", refused.path, n)
		}
		if refused.code == 0 {
			if res.StatusCode != 401 {
				t.Errorf("%s: %d, want the pod's own 401", refused.path, res.StatusCode)
			}
			continue
		}
		if s := status(t, res, refused.code); !strings.Contains(s.Message, refused.says) || !strings.Contains(s.Message, "req-1") {
			t.Errorf("%s: says %q, want %q and the request's id", refused.path, s.Message, refused.says)
		}
	}
}

func TestTimesOut(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		began, gone := make(chan struct{}, 100), make(chan struct{}, 100)
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			began <- struct{}{}
			<-r.Context().Done()
			gone <- struct{}{}
			panic(http.ErrAbortHandler) // or there is an answer, which may come before the connection is closed
		}))
		w := newWorld(t, url, ca, func(c *ClusterConfig) { c.Proxy.Limits.Timeout = time.Second })
		for c := w.client(t, client); ; { // until one has come to the API server in its second
			status(t, do(t, c, w.request(t, "GET", "/api/v1/nodes/a", nil)), 504)
			select {
			case <-began:
				<-gone
				return
			default:
			}
		}
	})
}

func TestNothingIsForwardedWithoutATrail(t *testing.T) {
	up := startRecording(t)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	w.trail.fail(errTest)
	defer w.trail.fail(nil) // or closing waits for it
	status(t, do(t, w.client(t, "HTTP/2.0"), w.request(t, "DELETE", "/api/v1/namespaces/a/pods/b", nil)), 503)
	status(t, do(t, w.client(t, "HTTP/2.0"), w.request(t, "GET", "/api/v1/namespaces/a/pods/b", nil)), 503)
	if got := up.take(); len(got) > 0 {
		t.Errorf("came to the API server:\n%s", got[0].raw)
	}
}

func TestWhoCannotBeSent(t *testing.T) {
	up := startRecording(t)
	w := newWorld(t, "https://"+up.Addr().String(), up.ca)
	for what, change := range map[string]func(*idp.Identity){
		"a group of the API server's own":    func(id *idp.Identity) { id.Groups = []string{"a", "system:masters"} },
		"a username of the API server's own": func(id *idp.Identity) { id.Username = "system:admin" },
		"a group with a leading space":       func(id *idp.Identity) { id.Groups = []string{" system:masters"} },
		"a group with a trailing space":      func(id *idp.Identity) { id.Groups = []string{"a "} },
		"a group with a line end":            func(id *idp.Identity) { id.Groups = []string{"a\r\nImpersonate-Group: system:masters"} },
		"an empty group":                     func(id *idp.Identity) { id.Groups = []string{"a", ""} },
		"a username with a tab":              func(id *idp.Identity) { id.Username = "\talice" },
		"no username":                        func(id *idp.Identity) { id.Username = "" },
		"no sub":                             func(id *idp.Identity) { id.Sub = "" },
	} {
		id := alice()
		change(&id)
		w.people.add("prod", "odd-token", id)
		r := w.request(t, "GET", "/api", nil)
		r.Header.Set("Authorization", "Bearer odd-token")
		if res := do(t, w.client(t, "HTTP/1.1"), r); res.StatusCode != 503 && res.StatusCode != 403 {
			t.Errorf("%s: %d", what, res.StatusCode)
		}
		if got := up.take(); len(got) > 0 {
			t.Errorf("%s: came to the API server:\n%s", what, got[0].raw)
		}
	}
}

func TestLimits(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
	}))
	for what, limit := range map[string]struct {
		path string
		set  func(*LimitsConfig)
	}{
		"in flight": {"/api", func(l *LimitsConfig) { l.InFlight = 1 }},
		"streams":   {"/api/v1/pods?watch=1", func(l *LimitsConfig) { l.Streams = 1 }},
		"rate":      {"/api", func(l *LimitsConfig) { l.Burst = 1 }},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, url, ca, func(c *ClusterConfig) { limit.set(&c.Proxy.Limits) })
			l := w.proxy.routes.Load().byName["prod"].limits
			if what == "rate" {
				cfg := l.cfg
				cfg.Rate = 1e-6 // a day is not enough for another
				l.configure(cfg)
			}
			c := w.client(t, "HTTP/2.0")
			first := make(chan *http.Response)
			r := w.request(t, "GET", limit.path, nil)
			go func() {
				res, err := c.Do(r)
				if err != nil {
					t.Error(err)
				}
				first <- res
			}()
			<-entered
			res := do(t, c, w.request(t, "GET", limit.path, nil))
			if status(t, res, 429); res.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			r2 := w.request(t, "GET", limit.path, nil)
			r2.Header.Set("Authorization", "Bearer bob-token")
			go func() { <-entered; leave <- struct{}{}; leave <- struct{}{} }()
			if res := do(t, c, r2); res.StatusCode != 200 {
				t.Errorf("another person: %d", res.StatusCode)
			}
			_ = (<-first).Body.Close()
			for end := time.Now().Add(time.Minute); what != "rate"; time.Sleep(10 * time.Millisecond) { // an answer ends before its handler
				l.forget(time.Now().Add(time.Minute))
				l.mu.Lock()
				n := len(l.persons)
				l.mu.Unlock()
				if n == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d persons are remembered, who have nothing under way", n)
				}
			}
		})
	}
}

// TestLimitsOfAll counts everybody's requests, and their streams apart.
func TestLimitsOfAll(t *testing.T) {
	l := newLimits(LimitsConfig{AllInFlight: 2, AllStreams: 1}.withDefaults())
	now := time.Now()
	enter := func(who string, stream bool, want int) (release func()) {
		t.Helper()
		release, err := l.enter(who, stream, now)
		if a := (*answer)(nil); want == 0 && err != nil || want != 0 && (!errors.As(err, &a) || a.code != want) {
			t.Fatalf("%s: %v, want %d", who, err, want)
		}
		return release
	}
	leave := enter("alice", false, 0)
	enter("bob", false, 0)
	enter("carol", false, http.StatusTooManyRequests)
	enter("carol", true, 0)
	enter("alice", true, http.StatusTooManyRequests)
	leave()
	enter("carol", false, 0)
	enter("alice", false, http.StatusTooManyRequests)
}

// TestClientAbort: who goes away takes the request to the API server along.
func TestClientAbort(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		began, gone := make(chan struct{}), make(chan struct{})
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(began)
			<-r.Context().Done()
			close(gone)
		}))
		w := newWorld(t, url, ca)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		res, err := w.client(t, client).Do(w.request(t, "GET", "/api/v1/nodes", nil).WithContext(ctx))
		if err == nil { // net/http takes one that comes while it closes the connection
			_ = res.Body.Close()
		}
		<-gone
	})
}

func TestObservations(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }))
	w := newWorld(t, url, ca)
	c := w.client(t, "HTTP/1.1")
	read(t, do(t, c, w.request(t, "GET", "/api/v1/pods", nil)))
	r := w.request(t, "GET", "", nil)
	r.URL.Path = "/k8s/clusters/made-up"
	read(t, do(t, c, r))
	w.quiet()
	w.mu.Lock()
	defer w.mu.Unlock()
	got := slices.Clone(w.seen)
	for i := range got {
		got[i].Duration = 0
	}
	if want := []Observation{{Cluster: "prod", Verb: "list", Status: 404}, {Status: 404}}; !slices.Equal(got, want) {
		t.Errorf("observed %v, want %v", got, want)
	}
}

func TestHealthOfClusters(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.NotFoundHandler())
	w := newWorld(t, url, ca)
	h := w.proxy.Health()
	if len(h) != 2 || h[0].Cluster != "prod" || h[1].Cluster != "test" || h[0].Streams != 0 {
		t.Errorf("health: %v", h)
	}
}

func TestBodyEndsEarly(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	w := newWorld(t, url, ca)
	conn := w.dial(t)
	_, _ = io.WriteString(conn, "POST /k8s/clusters/prod/api/v1/namespaces/a/pods HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer alice-token\r\nContent-Length: 10\r\n\r\nabc")
	_ = conn.CloseWrite()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return
	}
	// net/http may take it for a client that went away before it says that the body ended.
	if b := read(t, res); res.StatusCode != 400 && !strings.Contains(b, "the client went away") {
		t.Errorf("answer %d %s", res.StatusCode, b)
	}
}

// endingReader ends the request before its only Read returns.
type endingReader struct{ s *sent }

func (e *endingReader) Read([]byte) (int, error) { e.s.end(); return 0, io.EOF }
func (e *endingReader) Close() error             { return nil }

// TestNoDeadlineAfterTheEnd: on a stream of HTTP/2 that has ended it would be a panic in a
// goroutine of the transport's, and with it the end of the process.
func TestNoDeadlineAfterTheEnd(t *testing.T) {
	d, r := &deadlines{}, &endingReader{}
	r.s = &sent{ReadCloser: r, rc: http.NewResponseController(d), ctx: t.Context()}
	_, _ = r.s.Read(nil)
	if len(d.set) != 1 {
		t.Errorf("deadlines %v, want the one from before the end", d.set)
	}
	if _, _ = r.s.Read(nil); len(d.set) != 1 {
		t.Errorf("deadlines %v after the end", d.set)
	}
}

// TestBodyNobodyReads: whoever declares a body and sends none does not keep a connection
// for ever where the API server cannot be reached.
func TestBodyNobodyReads(t *testing.T) {
	w := newWorld(t, "https://127.0.0.1:1", "")
	d := &deadlines{ResponseWriter: httptest.NewRecorder()}
	r := httptest.NewRequest("POST", "/k8s/clusters/prod/api/v1/pods", strings.NewReader("{}"))
	r.Header.Set("Authorization", "Bearer alice-token")
	w.proxy.ServeHTTP(d, r)
	if len(d.set) == 0 || d.set[len(d.set)-1].IsZero() {
		t.Errorf("deadlines %v, want one", d.set)
	}
}

// deadlines is a connection that remembers the deadlines of its reads.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.set = append(d.set, t); return nil }

func TestBodyDeadlines(t *testing.T) {
	for _, c := range []struct {
		body   io.Reader
		code   int // of the refusal, 0 for none
		zeroed bool
	}{
		{strings.NewReader("{}"), 0, true},
		{iotest.ErrReader(os.ErrDeadlineExceeded), 408, false},
		{iotest.ErrReader(&http.MaxBytesError{Limit: 1}), 413, true},
		{iotest.ErrReader(io.ErrUnexpectedEOF), 400, true},
	} {
		d := &deadlines{}
		s := &sent{ReadCloser: io.NopCloser(iotest.OneByteReader(c.body)), rc: http.NewResponseController(d), ctx: t.Context()}
		_, _ = io.Copy(io.Discard, s)
		if len(d.set) == 0 || d.set[0].Before(time.Now()) || d.set[len(d.set)-1].IsZero() != c.zeroed {
			t.Errorf("%d: deadlines %v", c.code, d.set)
		}
		var a *answer
		if err := s.explain(); errors.As(err, &a) != (c.code > 0) || a != nil && a.code != c.code {
			t.Errorf("refused with %v, want %d", err, c.code)
		}
	}
}
