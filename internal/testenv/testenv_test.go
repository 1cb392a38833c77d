package testenv

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(Main{M: m}) }

func TestCertificatesAreTrustedByTheirCAAlone(t *testing.T) {
	ca, other := NewCA(t, t.TempDir()), NewCA(t, t.TempDir())
	certFile, keyFile := ca.Issue(t, "id.corp.example", "127.0.0.7")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	srv.StartTLS()
	defer srv.Close()
	for _, name := range []string{"id.corp.example", "127.0.0.7", "localhost", "127.0.0.1", "::1"} {
		dial := func(ca *CA) error {
			conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{RootCAs: ca.Pool(), ServerName: name})
			if err == nil {
				conn.Close()
			}
			return err
		}
		if err := dial(ca); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if dial(other) == nil {
			t.Errorf("%s: another CA trusts it", name)
		}
	}
}

func TestProcessIsReadyAndStops(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "ready")
	p := Start(t, Command{
		Path: "/bin/sh", Args: []string{"-c", `echo up; sleep 300 & echo $!; : >"$FLAG"; wait`}, Env: []string{"FLAG=" + flag},
		Ready: func(context.Context) error { _, err := os.Stat(flag); return err },
	})
	var child int
	if _, err := fmt.Sscanf(p.Log(), "up\n%d\n", &child); err != nil {
		t.Fatalf("log %q: %v", p.Log(), err)
	}
	p.Stop()
	p.Stop()
	waitGone(t, p.Pid())
	waitGone(t, child)
}

// TestProcessDiesWithTheTestBinary kills a test binary that has a process
// running, as a time-out or an impatient person does.
func TestProcessDiesWithTheTestBinary(t *testing.T) {
	pidFile := os.Getenv("TABARD_TEST_PID_FILE")
	if pidFile != "" {
		p := Start(t, Command{Path: "/bin/sleep", Args: []string{"300"}})
		writeFile(t, pidFile+".new", strconv.Itoa(p.Pid()))
		if err := os.Rename(pidFile+".new", pidFile); err != nil {
			t.Fatal(err)
		}
		<-p.Exited()
		return
	}
	pidFile = filepath.Join(t.TempDir(), "pid")
	self := Start(t, Command{
		Path: os.Args[0], Args: []string{"-test.run=^" + t.Name() + "$"}, Env: []string{"TABARD_TEST_PID_FILE=" + pidFile},
		Ready: func(context.Context) error { _, err := os.Stat(pidFile); return err },
	})
	content, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitGone(t, pid)
}

// waitGone returns when no process has pid, or only an unreaped one.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("process %d is still there", pid)
}

// recorder is a testing.TB that notes how it was ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Skip(args ...any)          { r.skipped = fmt.Sprint(args...) }
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...) }

func TestMissingBinary(t *testing.T) {
	t.Setenv("CI", "")
	r := &recorder{TB: t}
	Need(r, "sh")
	if r.skipped+r.failed != "" {
		t.Errorf("sh is missed: %s%s", r.skipped, r.failed)
	}
	Need(r, "no-such-program")
	if !strings.Contains(r.skipped, "no-such-program") || r.failed != "" {
		t.Errorf("without CI: skipped %q, failed %q", r.skipped, r.failed)
	}
	t.Setenv("CI", "true")
	r = &recorder{TB: t}
	Need(r, "no-such-program")
	if !strings.Contains(r.failed, "no-such-program") {
		t.Errorf("with CI=true: skipped %q, failed %q", r.skipped, r.failed)
	}
}

func TestHowToGet(t *testing.T) {
	for binary, want := range map[string]string{"slapd": "Debian package slapd", "ldbadd": "ldb-tools", "kubectl": "make tools", "other": "PATH"} {
		if got := howToGet(binary); !strings.Contains(got, want) {
			t.Errorf("%s: %q lacks %q", binary, got, want)
		}
	}
}
