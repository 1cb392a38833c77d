package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestServeOnEtcd has two servers share an etcd, which hangs for a while.
func TestServeOnEtcd(t *testing.T) {
	e := testenv.StartEtcd(t)
	text := strings.Replace(served, "store: {bolt: {path: tabard.db}}", "store: {etcd: {endpoints: ['"+e.Endpoint+"']}}\naudit: {dir: audit}", 1) + deadDirectory
	a, b := start(t, text), start(t, text)
	_, keysA, _ := a.get(t, "/keys")
	if code, keysB, _ := b.get(t, "/keys"); code != 200 || keysA != keysB || !strings.Contains(keysA, `"kid"`) {
		t.Errorf("servers of one store publish different keys:\n%s\n%s", keysA, keysB)
	}
	ready := func(want bool) {
		t.Helper()
		for range 1200 {
			if code, _, _ := a.get(t, "/readyz"); (code == 200) == want {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("never ready: %v", want)
	}
	ready(true)
	if err := e.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ready(false)
	if code, _, _ := a.get(t, "/healthz"); code != 200 {
		t.Errorf("/healthz %d", code)
	}
	if err := e.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	ready(true)

	_, stdout, _ := command(t, "doctor", "--config", a.path)
	for _, want := range []string{e.Endpoint + ", etcd 3.", " leads: ", "a write took "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("doctor without %q:\n%s", want, stdout)
		}
	}
	a.configure(t, strings.Replace(text, e.Endpoint, "http://127.0.0.1:1", 1))
	a.log.wait(t, "store.etcd has changed: restart the server to use it", 1)
	_, stdout, _ = command(t, "doctor", "--config", a.path)
	if !strings.Contains(stdout, "open etcd: no answer from etcd") {
		t.Errorf("doctor, with nobody at the endpoint:\n%s", stdout)
	}
}
