package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// hurry makes sinks quick for tests.
func hurry() pauses {
	return pauses{first: time.Millisecond, longest: 20 * time.Millisecond, save: time.Hour, settle: 20 * time.Millisecond, closing: time.Minute}
}

func sinkConfig(t testing.TB, sinks ...SinkConfig) Config {
	t.Helper()
	return Config{Dir: filepath.Join(t.TempDir(), "audit"), FileSize: 3_000, Serve: true, Sinks: sinks, pauses: hurry()}
}

// received collects what a sink was sent.
type received struct {
	mu    sync.Mutex
	lines [][]byte
}

func (r *received) add(lines ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range lines {
		r.lines = append(r.lines, bytes.Clone(l))
	}
}

// check says that every record of the trail was received, in order but for repeats
// of what came before, and no other.
func (r *received) check(t *testing.T, dir string) (repeats int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	all := recordsIn(t, dir)
	next := 0
	for _, line := range r.lines {
		seq, ok := seqOf(line)
		if !ok || int(seq) > next+1 || int(seq) > len(all) || !bytes.Equal(bytes.TrimSpace(line), bytes.TrimSpace(all[seq-1])) {
			t.Fatalf("received %.100q after record %d", line, next)
		}
		if int(seq) <= next {
			repeats++
		}
		next = max(next, int(seq))
	}
	if next != len(all) {
		t.Fatalf("received %d of %d records", next, len(all))
	}
	return repeats
}

// recordsIn are all lines of a trail.
func recordsIn(t *testing.T, dir string) (all [][]byte) {
	t.Helper()
	for _, p := range paths(t, dir) {
		l := linesOf(t, p)
		all = append(all, l[:len(l)-1]...)
	}
	return all
}

// arrived waits until the last record of a trail was received: what has been sent is
// under way for a while.
func (r *received) arrived(t *testing.T, dir string) {
	t.Helper()
	last := uint64(len(recordsIn(t, dir)))
	until(t, "the last record", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.lines) == 0 {
			return false
		}
		seq, _ := seqOf(r.lines[len(r.lines)-1])
		return seq == last
	})
}

// until waits for something that happens soon.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not seen: " + what)
		}
	}
}

func copyOf(t *testing.T, path string) *received {
	t.Helper()
	l := linesOf(t, path)
	return &received{lines: l[:len(l)-1]}
}

func TestFileSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "copy")
	cfg := sinkConfig(t, SinkConfig{Name: "copy", File: &FileConfig{path}})
	l := openSigned(t, Config{Dir: cfg.Dir, FileSize: cfg.FileSize})
	mustAppend(t, l, "before", "there was", "a sink")
	mustClose(t, l)
	for round := range 4 {
		if round == 2 { // commands beside the server leave the sinks to it
			cfg.Serve = false
		} else {
			cfg.Serve = true
		}
		l := openSigned(t, cfg)
		for range 30 {
			mustAppend(t, l, "x")
		}
		mustClose(t, l)
	}
	if n := copyOf(t, path).check(t, cfg.Dir); n > 0 {
		t.Errorf("%d records came twice though nothing failed", n)
	}
}

// TestSinkOutage has a sink that fails for a whole run, and comes back in the next.
func TestSinkOutage(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	dir := t.TempDir()
	path := filepath.Join(dir, "later", "copy")
	cfg := sinkConfig(t, SinkConfig{Name: "copy", File: &FileConfig{path}})
	cfg.Log = log
	l := openSigned(t, cfg)
	for range 50 {
		mustAppend(t, l, "x")
	}
	until(t, "several tries", func() bool { return len(hook.AllEntries()) > 0 })
	mustClose(t, l)
	if n := len(hook.AllEntries()); n != 1 || hook.LastEntry().Level != logrus.ErrorLevel {
		t.Errorf("%d complaints of one trouble", n)
	}
	l = openSigned(t, cfg)
	mustAppend(t, l, "y")
	until(t, "a second complaint", func() bool { return len(hook.AllEntries()) > 1 })
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	until(t, "it works", func() bool { return l.sinks[0].position.Load() == l.durable.Load() })
	mustClose(t, l)
	copyOf(t, path).check(t, cfg.Dir)
	if !strings.Contains(hook.LastEntry().Message, "again") {
		t.Error(hook.LastEntry().Message)
	}
}

// webhook is a server that answers with what answer says, 0 for a hang.
func webhook(t *testing.T, got *received, answer func(n int, lines int) (status int, header string)) *httptest.Server {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		lines := bytes.SplitAfter(body, []byte("\n"))
		lines = lines[:len(lines)-1]
		status, header := answer(int(n.Add(1)), len(lines))
		if r.Header.Get("X-Secret") != "s3cret" || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-ndjson" {
			status = http.StatusUnauthorized
		}
		if status == 0 {
			<-r.Context().Done()
			return
		}
		if status == http.StatusOK {
			got.add(lines...)
		}
		if header != "" {
			w.Header().Set("Retry-After", header)
			w.Header().Set("Location", "https://elsewhere.example")
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s
}

func hook(s *httptest.Server) SinkConfig {
	return SinkConfig{Name: "hook", Webhook: &WebhookConfig{URL: s.URL, Header: "X-Secret", Secret: "s3cret"}}
}

func TestWebhook(t *testing.T) {
	got := &received{}
	s := webhook(t, got, func(n, lines int) (int, string) {
		switch {
		case n%7 == 1:
			return http.StatusInternalServerError, ""
		case n%7 == 2:
			return http.StatusBadRequest, ""
		case n%7 == 3:
			return http.StatusTooManyRequests, "0"
		case n%7 == 4:
			return http.StatusTemporaryRedirect, "x"
		case lines > 10:
			return http.StatusRequestEntityTooLarge, ""
		}
		return http.StatusOK, ""
	})
	cfg := sinkConfig(t, hook(s))
	for range 3 {
		l := openSigned(t, cfg)
		for range 60 {
			mustAppend(t, l, "x")
		}
		until(t, "all delivered", func() bool { return l.sinks[0].position.Load() == l.durable.Load() })
		mustClose(t, l)
	}
	// What Close itself wrote last comes with the next run, if a refusal met it.
	l := openSigned(t, cfg)
	until(t, "all delivered", func() bool { return l.sinks[0].position.Load() == l.durable.Load() })
	mustClose(t, l)
	got.check(t, cfg.Dir)
}

// TestWebhookHangs: Close does not wait for a server that does not answer.
func TestWebhookHangs(t *testing.T) {
	got := &received{}
	var hang atomic.Bool
	hang.Store(true)
	asked := make(chan struct{}, 100)
	s := webhook(t, got, func(int, int) (int, string) {
		asked <- struct{}{}
		if hang.Load() {
			return 0, ""
		}
		return http.StatusOK, ""
	})
	cfg := sinkConfig(t, hook(s))
	cfg.pauses.closing = 10 * time.Millisecond
	l := openSigned(t, cfg)
	mustAppend(t, l, "x", "y")
	<-asked
	mustClose(t, l)
	hang.Store(false)
	cfg.pauses.closing = time.Minute
	mustClose(t, openSigned(t, cfg))
	got.check(t, cfg.Dir)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "x": 0, "-3": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "99999999999": maxRetryAfter, "86400": maxRetryAfter,
		"Sun, 22 Nov 2026 12:00:30 GMT": 30 * time.Second, "Sun, 22 Nov 2026 11:00:00 GMT": 0, "Sun, 29 Nov 2026 11:00:00 GMT": maxRetryAfter,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// TestPause: a sink waits as long as it is told, and never longer for its own sake than
// the longest pause.
func TestPause(t *testing.T) {
	s := &sink{pauses: pauses{first: time.Hour, longest: time.Hour}, limit: 8, log: logrus.New(), durable: &atomic.Uint64{}, closing: make(chan struct{})}
	s.log.(*logrus.Logger).SetOutput(io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	if !s.pause(ctx, &waitError{errors.New("x"), 0, true}) || s.limit != 4 {
		t.Fatalf("limit %d", s.limit)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if s.pause(ctx, errors.New("x")) {
		t.Fatal("it did not wait")
	}
}

func TestSinkPositions(t *testing.T) {
	cfg := sinkConfig(t, SinkConfig{Name: "copy", File: &FileConfig{filepath.Join(t.TempDir(), "copy")}})
	l := openSigned(t, cfg)
	mustAppend(t, l, "x")
	mustClose(t, l)
	at := l.sinks[0].file
	if n, err := readPosition(at); err != nil || n != l.tail.seq {
		t.Fatal(n, err)
	}
	if err := os.WriteFile(at, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Fatal(err)
	}
	// A position behind the end is of another trail: this one is sent whole.
	if err := os.WriteFile(at, []byte(`{"delivered":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	mustClose(t, openSigned(t, cfg))
	if copied := linesOf(t, cfg.Sinks[0].File.Path); len(copied) != 5 {
		t.Fatalf("%d lines", len(copied))
	}
}

// TestSinkKill kills a process that appends and delivers: the position that is left is
// never ahead of what was delivered, and in the end nothing is missing.
func TestSinkKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	cfg := childConfig(dir)
	for round := range 8 {
		killChild(t, dir, 20+61*round)
		at, err := readPosition(filepath.Join(dir, "sink-copy.json"))
		if err != nil {
			t.Fatal(err)
		}
		if at > 0 && at > lastCopied(t, cfg.Sinks[0].File.Path) {
			t.Fatalf("position %d, copied up to %d", at, lastCopied(t, cfg.Sinks[0].File.Path))
		}
	}
	cfg.pauses.closing = time.Minute
	mustClose(t, openSigned(t, cfg))
	if s := verifyOne(t, dir, publicKeys(t, cfg), ""); s.Err != nil {
		t.Fatal(s.Err)
	}
	// A kill can leave half a line in the copy: that record comes again.
	all := &received{}
	for _, line := range linesOf(t, cfg.Sinks[0].File.Path) {
		if _, why := parse(line); why == "" {
			all.add(line)
		}
	}
	all.check(t, dir)
}

func lastCopied(t *testing.T, path string) (last uint64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if r, why := parse(append(lines.Bytes(), '\n')); why == "" {
			last = max(last, r.seq)
		}
	}
	return last
}

func TestValidate(t *testing.T) {
	good := func() Config {
		return Config{Dir: "/var/lib/tabard/audit", Node: "node-1.example", FileSize: 1 << 20, Retain: RetainConfig{Age: time.Hour, Size: 2 << 20}, Sinks: []SinkConfig{
			{Name: "a", File: &FileConfig{"/x"}}, {Name: "b", Stdout: &StdoutConfig{}}, {Name: "c", Syslog: &SyslogConfig{Address: "tls://siem.example:6514", CAFile: "x"}},
			{Name: "d", Webhook: &WebhookConfig{URL: "https://siem.example/in?x=1", Header: "X-Key", Secret: "k"}}, {Name: "e", Webhook: &WebhookConfig{URL: "http://127.0.0.1:1"}},
		}}
	}
	c := good()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"audit.node: ":                     func(c *Config) { c.Node = "../x" },
		"audit.keyFile: ":                  func(c *Config) { c.KeyFile = "/var/lib/tabard/audit/key.pem" },
		"audit.fileSize: ":                 func(c *Config) { c.FileSize = 1000 },
		"audit.checkpointEvery: ":          func(c *Config) { c.CheckpointEvery = time.Millisecond },
		"audit.retain.age: ":               func(c *Config) { c.Retain.Age = time.Second },
		"audit.retain.size: ":              func(c *Config) { c.Retain.Size = 1 << 20 },
		"audit.retain.hardSize: ":          func(c *Config) { c.Retain.HardSize = 1 << 20 },
		"audit.sinks[0].name: ":            func(c *Config) { c.Sinks[0].Name = "A b" },
		"audit.sinks[1].name: ":            func(c *Config) { c.Sinks[1].Name = "a" },
		"audit.sinks[1]: ":                 func(c *Config) { c.Sinks[1].Stdout = nil },
		"audit.sinks[0]: ":                 func(c *Config) { c.Sinks[0].Stdout = &StdoutConfig{} },
		"audit.sinks[0].file.path: ":       func(c *Config) { c.Sinks[0].File.Path = "" },
		"audit.sinks[2].syslog.address: ":  func(c *Config) { c.Sinks[2].Syslog.Address = "tls://host" },
		"audit.sinks[2].syslog.caFile: ":   func(c *Config) { c.Sinks[2].Syslog.Address = "udp://host:514" },
		"audit.sinks[3].webhook.url: ":     func(c *Config) { c.Sinks[3].Webhook.URL = "http://siem.example" },
		"audit.sinks[4].webhook.url: ":     func(c *Config) { c.Sinks[4].Webhook.URL = "https://u:p@siem.example" },
		"audit.sinks[3].webhook.header: ":  func(c *Config) { c.Sinks[3].Webhook.Secret = "" },
		"audit.sinks[4].webhook.header: ":  func(c *Config) { c.Sinks[4].Webhook = &WebhookConfig{URL: "https://x", Header: "a b", Secret: "x"} },
		"audit.sinks[3].webhook.secret: m": func(c *Config) { c.Sinks[3].Webhook.Secret = "a\nb" },
	} {
		c := good()
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "7": 7, "2KiB": 2048, "16MiB": 16 << 20, "3 GiB": 3 << 30, "1TiB": 1 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s again: %v, %v", s, again, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5GiB", "1MB", "9999TiB", fmt.Sprint(uint64(1) << 63)} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a size", text)
		}
	}
}

// TestSinkDiskFull: a full disk elsewhere stops neither the trail nor the other sinks.
func TestSinkDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "copy")
	cfg := sinkConfig(t, SinkConfig{Name: "full", File: &FileConfig{"/dev/full"}}, SinkConfig{Name: "copy", File: &FileConfig{path}})
	l := openSigned(t, cfg)
	for range 30 {
		mustAppend(t, l, "x")
	}
	mustClose(t, l)
	copyOf(t, path).check(t, cfg.Dir)
	behind, err := Behind(cfg)
	if err != nil || len(behind) != 2 || behind[1].Records != 0 || behind[0].Records != l.tail.seq || time.Since(behind[0].Since) > time.Minute {
		t.Fatalf("%+v, %v", behind, err)
	}
	cfg.Dir += "/no"
	if _, err := Behind(cfg); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
