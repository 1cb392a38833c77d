package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/testenv"
	"github.com/tabard-id/tabard/proxy"
)

// instance is a server that was started by the real command.
type instance struct {
	issuer, dir, path string
	ca                *testenv.CA
	stop              context.CancelFunc
	code              chan int
	log               *logBuffer
}

// logBuffer keeps what a server logs.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

// Write implements io.Writer; logrus writes a line at a time.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, string(p))
	close(b.more)
	b.more = make(chan struct{})
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines, "")
}

// wait returns once n lines hold text, or ends the test.
func (b *logBuffer) wait(t testing.TB, text string, n int) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		b.mu.Lock()
		found, more := 0, b.more
		for _, l := range b.lines {
			if strings.Contains(l, text) {
				found++
			}
		}
		b.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("the log does not say %q %d times:\n%s", text, n, b)
		}
	}
}

// start runs a server for config, in which ISSUER, PORT and DIR are filled in.
func start(t *testing.T, config string) *instance {
	t.Helper()
	s := &instance{dir: t.TempDir(), code: make(chan int, 1), log: &logBuffer{more: make(chan struct{})}}
	port := testenv.FreePort(t)
	s.issuer = fmt.Sprintf("https://127.0.0.1:%d/id", port)
	s.ca = testenv.NewCA(t, s.dir)
	s.certificate(t, "127.0.0.1")
	s.path = filepath.Join(s.dir, "tabard.yaml")
	s.configure(t, config)
	s.run(t)
	return s
}

func (s *instance) configure(t testing.TB, config string) {
	port := s.issuer[strings.LastIndex(s.issuer, ":")+1 : strings.LastIndex(s.issuer, "/")]
	config = strings.NewReplacer("ISSUER", s.issuer, "PORT", port, "DIR", s.dir).Replace(config)
	writeFile(t, s.path, config, 0o600)
}

// certificate puts a new certificate where the configuration expects it.
func (s *instance) certificate(t testing.TB, names ...string) {
	cert, key := s.ca.Issue(t, names...)
	for from, to := range map[string]string{cert: "tls.crt", key: "tls.key"} {
		if err := os.Rename(from, filepath.Join(s.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *instance) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	before := strings.Count(s.log.String(), `"msg":"serving"`)
	go func() {
		s.code <- run(ctx, []string{"serve", "--config", s.path, "--log-level", "debug"}, nil, s.log, s.log)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-s.code:
		case <-time.After(time.Minute):
			t.Error("the server does not stop")
		}
	})
	s.log.wait(t, `"msg":"serving"`, before+1)
}

// end stops the server and returns its exit code.
func (s *instance) end(t *testing.T) int {
	t.Helper()
	s.stop()
	code := <-s.code
	s.code <- code // for the cleanup
	return code
}

func (s *instance) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool()}, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
}

func (s *instance) get(t testing.TB, path string) (int, string, *http.Response) {
	t.Helper()
	resp, err := s.client().Get(s.issuer + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp
}

const served = `issuer: ISSUER
listen: 127.0.0.1:PORT
tls: {certFile: tls.crt, keyFile: tls.key}
store: {bolt: {path: tabard.db}}
admins: ["corp:cluster-operators"]
clusters: [{name: prod, clientID: kubernetes}]
`

// deadDirectory is a directory at which nothing answers.
const deadDirectory = `directories:
- {name: corp, type: ldap, urls: ["ldaps://127.0.0.1:1"], bindDN: "cn=t,dc=example", bindPassword: p4ss-w0rd!x9}
`

func TestDirectoryDownAtStart(t *testing.T) {
	s := start(t, served+deadDirectory)
	s.log.wait(t, "directory does not work", 1)
	code, body, resp := s.get(t, "/readyz")
	want := `{"ready":true,"store":"ok","keys":"ok","directories":{"corp":"error"}}` + "\n"
	if code != 200 || body != want {
		t.Errorf("/readyz %d %s", code, body)
	}
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(resp.Header.Get("X-Request-Id")) || resp.ProtoMajor != 2 {
		t.Errorf("request id %q over HTTP/%d", resp.Header.Get("X-Request-Id"), resp.ProtoMajor)
	}
	if code, body, _ := s.get(t, "/readyz?include=directories"); code != 503 || !strings.Contains(body, `"ready":false`) {
		t.Errorf("/readyz?include=directories %d %s", code, body)
	}
	if code, body, _ := s.get(t, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz %d %s", code, body)
	}
	code1, stdout, _ := command(t, "doctor", "--config", s.path, "-o", "json")
	for _, want := range []string{`"directory corp",` + "\n" + `      "result": "fail"`, "is open in a running server", "the server cannot use directory corp"} {
		if code1 != exitFailed || !strings.Contains(stdout, want) {
			t.Errorf("doctor: exit %d without %q:\n%s", code1, want, stdout)
		}
	}
	if code := s.end(t); code != exitDone {
		t.Errorf("exit %d", code)
	}
	if log := s.log.String() + stdout; strings.Contains(log, secret) || strings.Contains(log, "goroutine ") {
		t.Errorf("a password or a stack in the log:\n%s", log)
	}
}

func TestStoreInUse(t *testing.T) {
	s := start(t, served+deadDirectory)
	code, _, stderr := command(t, "serve", "--config", s.path)
	want := fmt.Sprintf("tabard: store.bolt.path: open store %s/tabard.db: in use by another process: stop the other tabard first, or act through it\n", s.dir)
	if code != exitFailed || !strings.HasSuffix(stderr, want) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	code, _, stderr = command(t, "groups", "list", "--config", s.path)
	want = "tabard: the server has the store open: leave out --config and sign in with `tabard login --server " + s.issuer + "`, or stop the server\n"
	if code != exitFailed || stderr != want {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestStartFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tc := range []struct{ name, old, new, want string }{
		{"no folder for the store", "tabard.db", "nowhere/tabard.db", "store.bolt.path: open store DIR/nowhere/tabard.db: folder DIR/nowhere does not exist: create it with mode 0700 for the user that runs tabard"},
		{"no folder for the trail", "admins:", "audit: {dir: nowhere/audit}\nadmins:", "audit.dir: open audit log DIR/nowhere/audit: folder DIR/nowhere does not exist: create it for the user that runs tabard"},
		{"port taken", "127.0.0.1:0", taken.Addr().String(), "listen: " + taken.Addr().String() + " is taken by another process: stop it or choose another port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := writeConfig(t, strings.Replace(minimal, tc.old, tc.new, 1))
			code, _, stderr := command(t, "serve", "--config", path)
			if want := "tabard: " + strings.ReplaceAll(tc.want, "DIR", filepath.Dir(path)) + "\n"; code != exitFailed || !strings.HasSuffix(stderr, want) {
				t.Errorf("exit %d\ngot  %swant %s", code, stderr, want)
			}
			if strings.Contains(stderr, secret) || strings.Contains(stderr, "goroutine ") {
				t.Error(stderr)
			}
		})
	}
	t.Run("no database", func(t *testing.T) {
		path := writeConfig(t, minimal)
		writeFile(t, filepath.Join(filepath.Dir(path), "tabard.db"), strings.Repeat("not a database\n", 1000), 0o600)
		code, _, stderr := command(t, "serve", "--config", path)
		if code != exitFailed || !strings.Contains(stderr, "tabard: store.bolt.path: ") || strings.Contains(stderr, "goroutine ") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	})
}

func TestWrongUse(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("TABARD_SERVER", "")
	for _, args := range [][]string{
		{"nothing"}, {"serve"}, {"serve", "--bogus"}, {"config"}, {"config", "check"}, {"config", "what"}, {"groups"}, {"groups", "list", "-o", "xml"},
		{"doctor"}, {"serve", "--config", "x", "--log-level", "loud"}, {"login", "--password-stdin"}, {"login", "--browser", "--prompt"},
		{"whoami"}, {"groups", "add"},
	} {
		if code, _, stderr := command(t, args...); code != exitUsage || !strings.HasPrefix(stderr, "tabard: ") {
			t.Errorf("%q: exit %d: %s", args, code, stderr)
		}
	}
	for _, args := range [][]string{{}, {"--help"}, {"version"}, {"groups", "add", "--help"}} {
		if code, stdout, stderr := command(t, args...); code != exitDone || stdout == "" || stderr != "" {
			t.Errorf("%q: exit %d: %s%s", args, code, stdout, stderr)
		}
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"never signed in": {[]string{"whoami", "--server", "id.corp.example"}, "tabard: not signed in: sign in with `tabard login` or `kubectl tabard login`\n"},
		"no terminal":     {[]string{"login", "--server", "id.corp.example", "--prompt"}, "tabard: there is no terminal to ask in: use --browser, --device, or --username with --password-stdin\n"},
		"no CA":           {[]string{"login", "--server", "id.corp.example", "--browser", "--ca-file", "nowhere"}, "tabard: --ca-file nowhere does not exist: create it or correct the path\n"},
	} {
		if code, _, stderr := command(t, tc.args...); code != exitFailed || stderr != tc.want {
			t.Errorf("%s: exit %d: %s", name, code, stderr)
		}
	}
}

func (s *instance) serial(t testing.TB) string {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(s.issuer, "https://"), "/id"), &tls.Config{RootCAs: s.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func TestReload(t *testing.T) {
	s := start(t, served+deadDirectory)
	first := s.serial(t)
	s.certificate(t, "127.0.0.1")
	s.log.wait(t, "configuration reloaded", 1)
	if second := s.serial(t); second == first {
		t.Error("the old certificate is still shown")
	}
	s.configure(t, served+"brand: Corporation\n"+deadDirectory)
	s.log.wait(t, "configuration reloaded", 2)
	if _, body, _ := s.get(t, "/sign-in"); !strings.Contains(body, "Corporation") {
		t.Errorf("the page does not know the new brand: %s", body)
	}
	s.configure(t, served+"brad: typo\n"+deadDirectory)
	s.log.wait(t, ":7:1: brad: is not a key", 1)
	if _, body, _ := s.get(t, "/sign-in"); !strings.Contains(body, "Corporation") {
		t.Error("a bad configuration was put to use")
	}
	s.configure(t, strings.Replace(served, "tabard.db", "other.db", 1)+deadDirectory)
	s.log.wait(t, "store.bolt.path has changed: restart the server to use it", 1)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.log.wait(t, "configuration reloaded", 4)
}

// TestWebhookCallers replaces the secret of an API server while the server runs.
func TestWebhookCallers(t *testing.T) {
	port := testenv.FreePort(t)
	metrics := fmt.Sprintf("metrics: {listen: \"127.0.0.1:%d\"}\n", port)
	s := start(t, served+metrics+deadDirectory)
	const one, two, three = "caller-one-0123456789", "caller-two-0123456789", "caller-three-0123456789"
	hc := s.client()
	ask := func(caller string) string {
		if err := askWebhook(t.Context(), hc, s.issuer+"/k8s/tokenreview/prod", caller); err != nil {
			return regexp.MustCompile(`answers (\d+)`).FindStringSubmatch(err.Error())[1]
		}
		return "200"
	}
	if got := ask(one); got != "404" {
		t.Errorf("without a webhook: %s", got)
	}
	writeFile(t, filepath.Join(s.dir, "one"), one+"\n", 0o600)
	writeFile(t, filepath.Join(s.dir, "two"), two, 0o600)
	s.configure(t, strings.Replace(served, "kubernetes}", "kubernetes, webhook: {callers: [{tokenFile: one}, {tokenFile: two}]}}", 1)+metrics+deadDirectory)
	s.log.wait(t, "configuration reloaded", 1)
	if got := ask(one) + ask(two) + ask(three); got != "200200401" {
		t.Errorf("callers one, two, three: %s", got)
	}
	writeFile(t, filepath.Join(s.dir, "one"), three+"\n", 0o600)
	s.log.wait(t, "configuration reloaded", 2)
	if got := ask(one) + ask(two) + ask(three); got != "401200200" {
		t.Errorf("callers one, two, three: %s", got)
	}
	writeFile(t, filepath.Join(s.dir, "one"), "short\n", 0o600)
	s.log.wait(t, "the token has fewer than 16 bytes", 1)
	if got := ask(three); got != "200" {
		t.Errorf("a bad secret was put to use: %s", got)
	}
	writeFile(t, filepath.Join(s.dir, "one"), three, 0o600)
	_, stdout, _ := command(t, "doctor", "--config", s.path, "-o", "json")
	if !strings.Contains(stdout, "API servers can ask about each token") || !strings.Contains(stdout, "do not also trust "+s.issuer) || strings.Contains(stdout, "webhook.callers[") {
		t.Errorf("the doctor says %s", stdout)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`tabard_http_requests_total{code="401",route="tokenreview"} 2`, `tabard_token_reviews_total{cluster="prod",result="refused"} 7`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("metrics without %s", want)
		}
	}
	if log := s.log.String() + stdout; strings.Contains(log, one) || strings.Contains(log, two) || strings.Contains(log, three) {
		t.Error("a caller's secret shows")
	}
}

// TestGracefulStop holds a sign-in under way, at a directory that does not
// answer, and stops the server: the person gets their answer.
func TestGracefulStop(t *testing.T) {
	silent, directories := silentDirectory(t)
	s := start(t, served+directories)
	arrived := make(chan *http.Response, 1)
	go func() {
		resp, err := s.client().PostForm(s.issuer+"/sign-in", url.Values{"username": {"alice"}, "password": {"x"}})
		if err != nil {
			t.Error(err)
		}
		arrived <- resp
	}()
	for range 2 { // the probe and the sign-in
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	resp := <-arrived
	if resp != nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("the sign-in got %d", resp.StatusCode)
		}
	}
	if code := <-s.code; code != exitDone {
		t.Errorf("exit %d", code)
	}
	s.code <- exitDone // for the cleanup
}

// silentDirectory accepts connections and says nothing.
func silentDirectory(t *testing.T) (net.Listener, string) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	return silent, fmt.Sprintf("directories:\n- {name: corp, type: ldap, urls: [\"ldap://%s\"], insecurePlaintext: true, bindDN: \"cn=t\", bindPassword: p}\n", silent.Addr())
}

// TestSecondSignal: whoever does not want to wait for requests under way ends the
// process with another signal.
func TestSecondSignal(t *testing.T) {
	silent, directories := silentDirectory(t)
	s := &instance{dir: t.TempDir(), issuer: fmt.Sprintf("https://127.0.0.1:%d/id", testenv.FreePort(t)), log: &logBuffer{more: make(chan struct{})}}
	s.ca, s.path = testenv.NewCA(t, s.dir), filepath.Join(s.dir, "tabard.yaml")
	s.certificate(t, "127.0.0.1")
	s.configure(t, served+directories)
	cmd := exec.Command(os.Args[0], "serve", "--config", s.path)
	cmd.Env, cmd.Stderr = append(os.Environ(), "TEST_COMMAND=1"), s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	s.log.wait(t, `"msg":"serving"`, 1)
	hung := make(chan error, 1)
	go func() {
		resp, err := s.client().PostForm(s.issuer+"/sign-in", url.Values{"username": {"alice"}, "password": {"x"}})
		if err == nil {
			resp.Body.Close()
		}
		hung <- err
	}()
	for range 2 { // the probe and the sign-in
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for n, said := range []string{"stopping: ", ""} {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatalf("signal %d: %v", n, err)
		}
		if said != "" {
			s.log.wait(t, said, 1)
		}
	}
	_ = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGTERM {
		t.Errorf("the process ended with %s:\n%s", cmd.ProcessState, s.log)
	}
	if err := <-hung; err == nil {
		t.Error("the request under way was answered, so nothing was cut short")
	}
}

// TestReloadUnderLoad: no request fails while configurations change.
func TestReloadUnderLoad(t *testing.T) {
	s := start(t, served+deadDirectory)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			client := s.client()
			for ctx.Err() == nil {
				resp, err := client.Get(s.issuer + "/keys")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	}
	for n := range 4 {
		s.configure(t, served+fmt.Sprintf("brand: B%d\n", n)+deadDirectory)
		s.log.wait(t, "configuration reloaded", n+1)
	}
	stop()
	wg.Wait()
}

func TestMetricsListener(t *testing.T) {
	port := testenv.FreePort(t)
	s := start(t, served+fmt.Sprintf("metrics: {listen: \"127.0.0.1:%d\"}\n", port)+deadDirectory)
	s.get(t, "/nothing-here")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`tabard_http_requests_total{code="404",route="pages"} 1`, "tabard_build_info{", "go_goroutines", "process_cpu_seconds_total"} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("metrics without %s", want)
		}
	}
	if code, _, _ := s.get(t, "/metrics"); code != 404 {
		t.Errorf("/metrics on the public listener: %d", code)
	}
}

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		peer string
		xff  []string
		want string
	}{
		{"192.0.2.1:5", nil, "192.0.2.1"},
		{"192.0.2.1:5", []string{"198.51.100.9"}, "192.0.2.1"},                            // a peer we do not trust
		{"10.0.0.1:5", []string{"198.51.100.9"}, "198.51.100.9"},                          //
		{"10.0.0.1:5", []string{"203.0.113.7, 198.51.100.9"}, "198.51.100.9"},             // the left one is made up
		{"10.0.0.1:5", []string{"203.0.113.7", "198.51.100.9, 10.2.3.4"}, "198.51.100.9"}, // several headers, a chain
		{"10.0.0.1:5", []string{"10.9.9.9, 10.2.3.4"}, "10.9.9.9"},                        // all trusted
		{"10.0.0.1:5", nil, "10.0.0.1"},
		{"10.0.0.1:5", []string{"198.51.100.9, junk"}, "10.0.0.1"},
		{"10.0.0.1:5", []string{""}, "10.0.0.1"},
		{"10.0.0.1:5", []string{"198.51.100.9, unknown, 10.2.3.4"}, "10.2.3.4"},
		{"[fd00::1]:5", []string{"2001:db8::7"}, "2001:db8::7"},
		{"[::ffff:10.0.0.1]:5", []string{"198.51.100.9"}, "198.51.100.9"},
		{"10.0.0.1:5", []string{"::ffff:198.51.100.9"}, "198.51.100.9"},
		{"[fe80::1%eth0]:5", nil, "fe80::1"},
		{"@", []string{"198.51.100.9"}, "@"},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Header: http.Header{"X-Forwarded-For": tc.xff}}
		if got := clientAddress(r, trusted); got != tc.want {
			t.Errorf("%s %q: got %s, want %s", tc.peer, tc.xff, got, tc.want)
		}
	}
}

func TestMiddleware(t *testing.T) {
	log, buf := logrus.New(), &bytes.Buffer{}
	log.SetOutput(buf)
	log.SetFormatter(&logrus.JSONFormatter{})
	var origin audit.Origin
	var deadline time.Time
	s := &server{log: log, metrics: newMetrics(), current: &assembly{users: 1, base: "/id", cfg: &Config{}}}
	s.proxy = proxy.New(proxy.Deps{Authority: authority{s}, Log: log, Observe: s.metrics.proxied, Now: time.Now})
	defer s.proxy.Close()
	s.current.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin = audit.OriginOf(r.Context())
		deadline, _ = r.Context().Deadline()
		switch r.URL.Path {
		case "/id/panic":
			panic("of a handler")
		case "/id/abort":
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusTeapot)
	})
	r := httptest.NewRequest("GET", "/id/token?code=do-not-log", nil)
	r.Header.Set("User-Agent", strings.Repeat("ä", 200))
	r.Header.Set("X-Request-Id", "from outside")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if id := w.Header().Get("X-Request-Id"); id != origin.RequestID || len(id) != 16 || origin.Address != "192.0.2.1" || len(origin.UserAgent) != 256 {
		t.Errorf("id %q, origin %+v", id, origin)
	}
	if left := time.Until(deadline); left <= 0 || left > requestDeadline {
		t.Errorf("deadline in %s", left)
	}
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil || line["status"] != 418.0 || line["path"] != "/id/token" || strings.Contains(buf.String(), "do-not-log") {
		t.Errorf("log %s", buf)
	}
	w = httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", "/id/panic", nil))
	if w.Code != 500 || strings.Contains(w.Body.String(), "of a handler") || !strings.Contains(buf.String(), "panic: of a handler") {
		t.Errorf("after a panic: %d %s", w.Code, w.Body)
	}
	func() {
		defer func() {
			if p := recover(); p != http.ErrAbortHandler {
				t.Errorf("recovered %v", p)
			}
		}()
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/id/abort", nil))
	}()
	if s.current.users != 1 {
		t.Errorf("%d users left", s.current.users)
	}
}

// TestSwap: an assembly is closed when it is replaced and its last request is done.
func TestSwap(t *testing.T) {
	closed := 0
	first := &assembly{users: 1, closers: []func(){func() { closed++ }}}
	s := &server{current: first}
	a := s.acquire()
	s.swap(&assembly{})
	if closed != 0 {
		t.Fatal("closed under a request")
	}
	if b := s.acquire(); b == first {
		t.Fatal("the old one is handed out")
	}
	s.release(a)
	if closed != 1 {
		t.Fatalf("closed %d times", closed)
	}
}

// TestManyDirectoriesAtStart probes directories that answer while others are still added.
func TestManyDirectoriesAtStart(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	h := &health{log: log}
	for i := range 500 { // so many that the first are known before the last
		d, err := directory.New(directory.Config{Name: fmt.Sprint("d", i), Type: directory.TypeLDAP, URLs: []string{"ldaps://127.0.0.1:1"}, BindDN: "cn=t", BindPassword: "p"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		h.directories = append(h.directories, d)
	}
	for range 5 {
		h.start()
		h.close()
	}
}

func TestReloadKeepsWhatIsKnown(t *testing.T) {
	old := &health{state: map[string]string{"corp": stateOK, "lab": stateOK, "gone": stateOK}}
	next := &health{state: map[string]string{"corp": stateUnknown, "lab": stateError, "new": stateUnknown}}
	next.inherit(old)
	if got := fmt.Sprint(next.state); got != "map[corp:ok lab:error new:not checked yet]" {
		t.Error(got)
	}
}

func TestSlogHandler(t *testing.T) {
	log, buf := logrus.New(), &bytes.Buffer{}
	log.SetOutput(buf)
	log.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	l := slog.New(slogHandler{log: log, level: logrus.InfoLevel}).With("a", 1).WithGroup("g")
	l.Info("quiet")
	l.Warn("loud", "b", "x", slog.Any("err", io.EOF))
	if got, want := buf.String(), `{"a":1,"g.b":"x","g.err":"EOF","level":"warning","msg":"loud"}`+"\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

// TestCompany walks once through the commands, against a real OpenLDAP.
func TestCompany(t *testing.T) {
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	s := start(t, served+fmt.Sprintf("directories:\n- {name: corp, type: ldap, urls: [%q], caFile: %q, bindDN: %q, bindPassword: %q}\n",
		ldap.TLSURL, ldap.CAFile, ldap.BindDN, ldap.BindPassword))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("TABARD_SERVER", "")
	s.log.wait(t, "directory works", 1)
	do := func(stdin string, want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(stdin), &out, &errs); code != want {
			t.Fatalf("%q: exit %d, want %d: %s%s", args, code, want, &out, &errs)
		}
		return out.String() + errs.String()
	}
	caFile := filepath.Join(s.dir, "ca.pem")
	if got := do("wrong\n", exitFailed, "login", "--server", s.issuer, "--ca-file", caFile, "--username", "carol", "--password-stdin"); !strings.Contains(got, "password is wrong") {
		t.Errorf("wrong password: %s", got)
	}
	if got := do("pw-carol\n", exitDone, "login", "--server", s.issuer, "--ca-file", caFile, "--username", "carol", "--password-stdin"); !strings.Contains(got, "corp:cluster-operators") {
		t.Errorf("login: %s", got)
	}
	do("", exitDone, "groups", "create", "platform", "--description", "the team")
	do("", exitDone, "groups", "add", "platform", "bob", "--group", "corp:devs", "--until", "8h", "--reason", "on call")
	if got := do("", exitDone, "groups", "show", "platform"); !strings.Contains(got, "bob") || !strings.Contains(got, "corp:devs") || !strings.Contains(got, "on call") {
		t.Errorf("show: %s", got)
	}
	if got := do("", exitDone, "groups", "list", "-o", "json"); !strings.Contains(got, `"memberCount": 2`) {
		t.Errorf("list: %s", got)
	}
	if got := do("", exitDone, "groups", "show", "platform", "-o", "yaml"); !strings.Contains(got, "grantedByName: carol") {
		t.Errorf("show as yaml: %s", got)
	}
	const file = "name: leads\nlabels: {from: git}\nmembers: [{person: bob}, {group: platform}]\n"
	if got := do(file, exitDiffer, "groups", "apply", "-", "--dry-run"); !strings.Contains(got, "+ group leads: person bob") {
		t.Errorf("dry run: %s", got)
	}
	do(file, exitDone, "groups", "apply", "-")
	if got := do(file, exitDone, "groups", "apply", "-"); !strings.Contains(got, "nothing to change") {
		t.Errorf("apply again: %s", got)
	}
	if got := do("", exitDone, "groups", "export", "-l", "from=git"); !strings.Contains(got, "name: leads") || strings.Contains(got, "name: platform") {
		t.Errorf("export: %s", got)
	}
	do("", exitDone, "groups", "delete", "leads", "--yes")
	do("", exitDone, "groups", "remove", "platform", "bob")
	if got := do("", exitDone, "audit", "search", "--group", "platform", "--outcome", "done", "--limit", "2"); !strings.Contains(got, "group.member.remove") || strings.Count(got, "\n") != 3 {
		t.Errorf("audit search: %s", got)
	}
	if got := do("", exitDone, "audit", "verify", "--config", s.path); !strings.Contains(got, "ok ") {
		t.Errorf("audit verify while the server runs: %s", got)
	}
	if got := do("", exitFailed, "groups", "remove", "platform", "bob"); !strings.Contains(got, "bob is not in platform") {
		t.Errorf("remove again: %s", got)
	}
	if got := do("", exitFailed, "groups", "delete", "platform"); !strings.Contains(got, "say --yes") {
		t.Errorf("delete: %s", got)
	}
	if got := do("", exitDone, "doctor", "--config", s.path); !strings.Contains(got, "API servers need --oidc-ca-file") || strings.Contains(got, resultFail) {
		t.Errorf("doctor: %s", got)
	}
	if got := do("pw-bob\n", exitDone, "login", "--username", "bob", "--password-stdin"); strings.Contains(got, "yes") {
		t.Errorf("bob administers: %s", got)
	}
	if got := do("", exitFailed, "audit", "search"); !strings.Contains(got, "administrators may") {
		t.Errorf("bob searches: %s", got)
	}
	if got := do("", exitFailed, "groups", "delete", "platform", "--yes"); !strings.Contains(got, "you may not see it") {
		t.Errorf("bob deletes: %s", got)
	}
	do("", exitDone, "logout")
	if got := do("", exitFailed, "whoami"); !strings.Contains(got, "sign in with `tabard login`") {
		t.Errorf("after logout: %s", got)
	}
	s.end(t)
	do("", exitDone, "groups", "add", "platform", "alice", "--config", s.path)
	if got := do("", exitDone, "groups", "show", "platform", "--config", s.path); !strings.Contains(got, "alice") || !strings.Contains(got, "operator") {
		t.Errorf("offline: %s", got)
	}
	do("", exitDone, "groups", "delete", "platform", "--yes", "--config", s.path)
	for _, password := range []string{"pw-alice", "pw-bob", "pw-carol"} { // pw- alone is in an id at times
		if log := s.log.String(); strings.Contains(log, password) {
			t.Errorf("a password in the log:\n%s", log)
		}
	}
	trail(t, s.dir)
}

// trail checks that the audit trail tells where requests came from.
func trail(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(dir, "audit", "*"))
	}
	logins := 0
	for _, f := range files {
		file, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if strings.Contains(lines.Text(), `"act":"login"`) && strings.Contains(lines.Text(), `"address":"127.0.0.1"`) {
				logins++
			}
		}
		file.Close()
	}
	if logins != 3 {
		t.Errorf("%d logins with their address in the trail, want 3", logins)
	}
}
