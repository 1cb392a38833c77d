package parts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFreePortIsNeverGivenTwice(t *testing.T) {
	seen := map[int]bool{}
	for range 300 {
		port, err := FreePort()
		if err != nil || seen[port] {
			t.Fatalf("port %d: %v, given twice: %v", port, err, seen[port])
		}
		if first := firstOwnPort(); first > 2*firstPort && (port >= first || port%blockSize != firstPort%blockSize) {
			t.Fatalf("port %d can be a connection's, or one after another's; connections have those from %d on", port, first)
		}
		if _, err := reserve(port); err == nil {
			t.Fatalf("port %d is given twice when it is asked for", port)
		}
		seen[port] = true
	}
	for port := range seen {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("a reserved port cannot be listened on: %v", err)
		}
		l.Close()
	}
}

func shell(t *testing.T, script string, ready error) Command {
	return Command{
		Path: "/bin/sh", Args: []string{"-c", script}, LogFile: filepath.Join(t.TempDir(), "log"),
		Ready: func(context.Context) error { return ready },
	}
}

func TestProcessThatEndsEarlyIsReported(t *testing.T) {
	_, err := Start(t.Context(), shell(t, "echo why; exit 3", errors.New("not yet")))
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.HasSuffix(err.Error(), "ends with: why") {
		t.Fatalf("got %v", err)
	}
}

// TestProcessThatIsNeverReady leaves nothing behind, whatever ended the wait.
func TestProcessThatIsNeverReady(t *testing.T) {
	c := shell(t, `echo $$; sleep 300 & wait`, nil)
	for _, want := range []error{nil, errors.New("the person gave up")} {
		if c.ReadyTimeout = 3 * time.Second; want != nil {
			c.ReadyTimeout = time.Minute // for it to write its log
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		c.Ready = func(context.Context) error {
			if log, err := os.ReadFile(c.LogFile); err == nil && len(log) > 0 && want != nil {
				cancel(want)
			}
			return errors.New("not yet")
		}
		_, err := Start(ctx, c)
		cancel(nil)
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && !strings.Contains(err.Error(), "not ready after 3s") {
			t.Fatalf("got %v", err)
		}
		log, err := os.ReadFile(c.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		pid := strings.TrimSpace(string(log))
		if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("process %s is still there", pid)
		}
	}
}

func TestLoopbackCA(t *testing.T) {
	ca, err := NewCA(t.TempDir(), CAOptions{Name: "test", Lifetime: time.Hour, Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{"127.0.0.1": true, "localhost": true, "::1": true, "bank.example": false, "10.0.0.1": false} {
		certFile, keyFile, err := ca.Issue("server", name)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(http.NotFoundHandler())
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		srv.Config.ErrorLog = nil
		srv.StartTLS()
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{RootCAs: ca.Pool(), ServerName: name})
		if err == nil {
			conn.Close()
		}
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		srv.Close()
	}
}

// fakeGo puts a go command in front that does what script says.
func fakeGo(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	t.Setenv("TABARD_CACHE", filepath.Join(dir, "cache"))
}

func TestBuildSaysWhatToDo(t *testing.T) {
	for want, words := range map[string]string{
		"the disk is full":     "compile: writing output: write $WORK/b001/_pkg_.a: no space left on device",
		"this Go is too old":   "go: go.mod requires go >= 1.26.0 (running go 1.24.1; GOTOOLCHAIN=local)",
		"cannot be downloaded": `go: k8s.io/kubernetes@v1.36.3: Get "https://x/": proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused`,
		"GOTOOLCHAIN=auto":     "go: errors parsing go.mod: go.mod:3: invalid go version '1.26.0': must match format 1.23",
		"undefined: nothing":   "# example.org/x\nx.go:1: undefined: nothing",
	} {
		fakeGo(t, "cat >&2 <<'EOF'\n"+words+"\nEOF\nexit 1\n")
		_, err := Build(t.Context(), "etcd", nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("%s: got %v", words, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Build(t.Context(), "etcd", nil); err == nil || !strings.Contains(err.Error(), "install Go 1.26") {
		t.Errorf("without go: %v", err)
	}
	if _, err := Build(t.Context(), "bash", nil); err == nil || !strings.Contains(err.Error(), "kube-apiserver") {
		t.Errorf("an unknown part: %v", err)
	}
	t.Chdir(t.TempDir())
	if _, err := Build(t.Context(), "etcd", nil); !errors.Is(err, ErrNoCheckout) {
		t.Errorf("outside of a checkout: %v", err)
	}
}

func TestBuildAppearsWhole(t *testing.T) {
	const parse = `while [ "$1" != -o ]; do shift; done; `
	fakeGo(t, parse+`printf half >"$2"; sleep 300`)
	ctx, cancel := context.WithCancel(t.Context())
	began := false
	_, err := Build(ctx, "etcd", func(doing string) {
		if strings.HasPrefix(doing, "looking") {
			began = true
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	})
	if !errors.Is(err, context.Canceled) || !began {
		t.Fatalf("given up: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TABARD_CACHE"), "etcd-*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("given up, it leaves %v (%v)", left, err)
	}

	fakeGo(t, parse+`echo 'go: downloading example.org/x v1.0.0' >&2; printf 'example.org/x\nexample.org/y\n' >&2; printf whole >"$2"`)
	var said []string
	path, err := Build(t.Context(), "etcd", func(doing string) { said = append(said, doing) })
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "whole" {
		t.Errorf("built %q, %v", b, err)
	}
	if got := strings.Join(said, "; "); !strings.HasSuffix(got, "downloading example.org/x v1.0.0; compiling package 1; compiling package 2") {
		t.Errorf("it said %q", got)
	}
	fake := filepath.Dir(filepath.Dir(filepath.Dir(path)))
	if err := os.Remove(filepath.Join(fake, "go")); err != nil {
		t.Fatal(err)
	}
	if again, err := Build(t.Context(), "etcd", nil); err != nil || again != path {
		t.Errorf("from the cache: %q, %v", again, err)
	}
}
