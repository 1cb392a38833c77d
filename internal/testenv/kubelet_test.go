package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestStubKubelet drives it by kubectl through a real API server, in both protocols.
func TestStubKubelet(t *testing.T) {
	k := StartKubeAPIServer(t, KubeAPIServerOptions{Audit: true})
	s := StartStubKubelet(t, k)
	s.AddPod(t, "default", "web")
	if out := k.Kubectl(t, "get", "pod", "web", "-o", "wide"); !strings.Contains(out, "1/1") || !strings.Contains(out, "Running") || !strings.Contains(out, "stub") {
		t.Errorf("the pod does not run:\n%s", out)
	}
	if out := k.Kubectl(t, "logs", "web", "--tail=1"); out != "web line 9\n" {
		t.Errorf("logs: %q", out)
	}
	local := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(local, []byte("from here"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, env := range [][]string{nil, {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"}} {
		exec := func(stdin string, args ...string) (string, error) {
			return k.KubectlWith(t, KubectlOptions{Kubeconfig: k.AdminKubeconfig, Env: env, Stdin: stdin}, args...)
		}
		if out, err := exec("hello", "exec", "-i", "web", "--", "cat"); err != nil || out != "hello" {
			t.Errorf("%v cat: %q, %v", env, out, err)
		}
		if _, err := exec("", "exec", "web", "--", "exit", "7"); err == nil || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("%v exit 7: %v", env, err)
		}
		if _, err := exec("", "cp", local, "web:/data/copied"); err != nil || string(s.File("/data/copied")) != "from here" {
			t.Errorf("%v cp there: %v, %q", env, err, s.File("/data/copied"))
		}
		if _, err := exec("", "cp", "web:/data/copied", local+"-back"); err != nil {
			t.Errorf("%v cp back: %v", env, err)
		}
	}
	if b, err := os.ReadFile(local + "-back"); err != nil || string(b) != "from here" {
		t.Errorf("what came back: %q, %v", b, err)
	}
	k.Kubectl(t, "delete", "pod", "web")
	if log := k.AuditLog(t); len(log) != 0 {
		t.Errorf("the administrator's own requests are in the audit log: %+v", log[0])
	}
	k.Stop()
	k.Start(t)
	if out := k.Kubectl(t, "get", "nodes", "-o", "name"); out != "node/stub\n" {
		t.Errorf("after another start: %q", out)
	}
}
