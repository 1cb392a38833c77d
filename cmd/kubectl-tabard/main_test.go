package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"go.uber.org/goleak"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tabard-id/tabard/internal/api"
)

// TestMain is the command itself in a process that a test starts with
// TEST_COMMAND set.
func TestMain(m *testing.M) {
	os.Setenv("TABARD_KEYRING", "off") // the developer's own
	if os.Getenv("TEST_COMMAND") != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// fake is a server whose faults a test chooses; the real one is in internal/e2e.
type fake struct {
	*httptest.Server
	t         *testing.T
	cache     string
	caFile    string
	refreshes atomic.Int64
	fault     atomic.Pointer[http.HandlerFunc] // what the token endpoint does instead
	clusters  []api.Cluster
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, cache: filepath.Join(t.TempDir(), "cache"), caFile: filepath.Join(t.TempDir(), "ca.pem")}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/clusters", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(api.ClusterList{Clusters: f.clusters})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // so that the server sees the client go
		if fault := f.fault.Load(); fault != nil {
			(*fault)(w, r)
			return
		}
		f.token(w, r)
	})
	f.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	f.clusters = []api.Cluster{{Name: "prod", ClientID: "kubernetes", APIServer: "https://prod.example:6443", CA: f.ca()}, {Name: "lab", ClientID: "lab"}, {Name: "dev", ClientID: "dev", APIServer: "https://dev.example"}}
	if err := os.WriteFile(f.caFile, []byte(f.ca()), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("TABARD_SERVER", "")
	t.Setenv("KUBERNETES_EXEC_INFO", "")
	return f
}

func (f *fake) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
}

func (f *fake) token(w http.ResponseWriter, r *http.Request) {
	audience := r.FormValue("audience")
	if audience == "" {
		audience = "tabard"
		f.refreshes.Add(1)
	}
	now := time.Now().Unix()
	b, _ := json.Marshal(map[string]any{"iss": f.URL, "aud": audience, "iat": now, "exp": now + 300})
	token := "e30." + base64.RawURLEncoding.EncodeToString(b) + ".c2ln"
	json.NewEncoder(w).Encode(map[string]string{"id_token": token, "access_token": token, "refresh_token": "refresh-1"})
}

// signedIn puts a login into the cache whose tokens have expired.
func (f *fake) signedIn() {
	f.t.Helper()
	c, err := api.OpenCache(f.cache, nil)
	if err == nil {
		err = c.Add(f.t.Context(), api.Login{Server: f.URL, CA: f.ca(), RefreshToken: "refresh-0"})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) run(args ...string) (code int, stdout, stderr string) {
	f.t.Helper()
	var out, errs bytes.Buffer
	code = run(f.t.Context(), append(args, "--server", f.URL, "--cache-dir", f.cache), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// credential is what kubectl reads.
type credential struct {
	APIVersion, Kind string
	Status           struct {
		Token               string
		ExpirationTimestamp time.Time
	}
}

func TestExecCredential(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	for _, tc := range []struct{ info, version string }{
		{"", "v1"},
		{`{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"interactive":false}}`, "v1"},
		{`{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","spec":{"interactive":true,"cluster":{"server":"https://x"}}}`, "v1beta1"},
		{`{"apiVersion":"client.authentication.k8s.io/v1alpha1","kind":"ExecCredential","spec":{}}`, ""},
		{`{"apiVersion":"client.authentication.k8s.io/v1","kind":"Other"}`, ""},
		{`{`, ""},
	} {
		t.Setenv("KUBERNETES_EXEC_INFO", tc.info)
		code, out, errs := f.run("get-token", "--cluster", "prod")
		if tc.version == "" {
			if code != exitFailed || out != "" || errs == "" {
				t.Errorf("%s: exit %d: %s%s", tc.info, code, out, errs)
			}
			continue
		}
		var c credential
		err := json.Unmarshal([]byte(out), &c)
		left := time.Until(c.Status.ExpirationTimestamp)
		if code != exitDone || err != nil || c.APIVersion != "client.authentication.k8s.io/"+tc.version || c.Kind != "ExecCredential" ||
			strings.Count(c.Status.Token, ".") != 2 || left < 4*time.Minute || left >= 5*time.Minute || errs != "" {
			t.Errorf("%s: exit %d, %v: %s%s", tc.info, code, err, out, errs)
		}
	}
}

func TestFaults(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	var tries atomic.Int64
	for name, tc := range map[string]struct {
		fault http.HandlerFunc
		code  int
		words string
		after int // exit code when the server is well again
	}{
		"503": {status(503, ""), exitFailed, "you are still signed in", exitDone},
		"hang": {func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, exitFailed, "you are still signed in", exitDone},
		"session over": {status(400, `{"error":"invalid_grant"}`), exitFailed, "the session is over: run kubectl tabard login --server https://", exitFailed},
		"no access":    {status(400, `{"error":"access_denied","error_description":"your groups give you no access"}`), exitFailed, "your groups give you no access", exitDone},
		"no JSON":      {status(200, `<html>`), exitFailed, "check that", exitDone},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.signedIn()
			fault := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tries.Add(1); name == "no access" && r.FormValue("audience") == "" {
					f.token(w, r)
					return
				}
				tc.fault(w, r)
			})
			f.fault.Store(&fault)
			timeout := "1m"
			if name == "hang" {
				timeout = "2s"
			}
			code, out, errs := f.run("get-token", "--cluster", "prod", "--timeout", timeout)
			if code != tc.code || out != "" || !strings.Contains(errs, tc.words) || strings.Contains(errs, "Password") {
				t.Errorf("exit %d: %s%s", code, out, errs)
			}
			f.fault.Store(nil)
			if code, _, errs := f.run("get-token", "--cluster", "prod"); code != tc.after {
				t.Errorf("later: exit %d: %s", code, errs)
			}
		})
	}
	if tries.Load() > 15 {
		t.Errorf("%d requests: attempts are not bounded", tries.Load())
	}
}

// TestTwentyAtOnce runs twenty processes with one expired token.
func TestTwentyAtOnce(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			cmd := f.process(t.Context(), "get-token", "--cluster", "prod")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			var c credential
			if err != nil || json.Unmarshal(out, &c) != nil || c.Status.Token == "" || errs.Len() > 0 {
				t.Errorf("%v: %s%s", err, out, &errs)
			}
		})
	}
	wg.Wait()
	if n := f.refreshes.Load(); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// process is the command in a process of its own.
func (f *fake) process(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], append(args, "--server", f.URL, "--cache-dir", f.cache)...)
	cmd.Env = append(os.Environ(), "TEST_COMMAND=1")
	return cmd
}

// TestInterrupt sends SIGINT while the server hangs: no half-written file is left,
// the login is kept, and the shell hears 130.
func TestInterrupt(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	arrived := make(chan struct{}, 8)
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	f.fault.Store(&hang)
	cmd := f.process(t.Context(), "get-token", "--cluster", "prod")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-arrived
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != exitInterrupted || out.Len() > 0 || errs.String() != "tabard: interrupted\n" {
		t.Errorf("exit %d: %s%s", cmd.ProcessState.ExitCode(), &out, &errs)
	}
	if left, _ := filepath.Glob(filepath.Join(f.cache, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	f.fault.Store(nil)
	if code, _, errs := f.run("get-token", "--cluster", "prod"); code != exitDone {
		t.Errorf("later: exit %d: %s", code, errs)
	}
}

// TestLocked holds the lock, as a command does that waits for somebody to sign in.
func TestLocked(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	locks, err := filepath.Glob(filepath.Join(f.cache, "*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("%v, %v", locks, err)
	}
	held := flock.New(locks[0])
	if err := held.Lock(); err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	code, out, errs := f.run("get-token", "--cluster", "prod", "--timeout", "100ms")
	if code != exitFailed || out != "" || !strings.Contains(errs, locks[0]) || f.refreshes.Load() != 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

// TestNewCA: the server has a certificate of another CA than at the sign-in.
func TestNewCA(t *testing.T) {
	f := newFake(t)
	c, err := api.OpenCache(f.cache, nil)
	if err == nil {
		err = c.Add(t.Context(), api.Login{Server: f.URL, RefreshToken: "refresh-0"})
	}
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := f.run("get-token", "--cluster", "prod", "--ca-file", "nowhere")
	if code != exitFailed || !strings.Contains(errs, "read --ca-file") || !strings.Contains(errs, "not trusted here") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if code, _, errs := f.run("get-token", "--cluster", "prod", "--ca-file", f.caFile); code != exitDone || errs != "" {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestNobodyIsAsked(t *testing.T) {
	f := newFake(t)
	for _, args := range [][]string{{"get-token", "--cluster", "prod"}, {"get-token", "--cluster", "prod", "--browser"}, {"get-token", "--cluster", "prod", "--prompt", "--username", "alice"}} {
		code, out, errs := f.run(args...)
		if code != exitFailed || out != "" || !strings.Contains(errs, "run kubectl tabard login --server "+f.URL) {
			t.Errorf("%q: exit %d: %s%s", args, code, out, errs)
		}
	}
	if f.refreshes.Load() != 0 {
		t.Error("the server was asked for a token")
	}
}

func TestWrongUse(t *testing.T) {
	f := newFake(t)
	for _, args := range [][]string{
		{"nothing"}, {"get-token"}, {"get-token", "--cluster", "prod", "--browser", "--device"}, {"login", "--password-stdin"},
		{"login", "alice"}, {"kubeconfig", "--merge", "-o", "x"}, {"whoami", "--bogus"},
	} {
		if code, out, errs := f.run(args...); code != exitUsage || out != "" || !strings.HasPrefix(errs, "tabard: ") {
			t.Errorf("%q: exit %d: %s%s", args, code, out, errs)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"whoami", "--cache-dir", t.TempDir()}, nil, &out, &out); code != exitUsage {
		t.Errorf("no server: exit %d: %s", code, &out)
	}
}

func TestKubeconfig(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	code, out, errs := f.run("kubeconfig")
	if code != exitDone || !strings.Contains(errs, "lab is left out") {
		t.Fatalf("exit %d: %s", code, errs)
	}
	k, err := clientcmd.Load([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if err := clientcmd.Validate(*k); err != nil || len(k.Contexts) != 2 || k.CurrentContext != "prod" {
		t.Fatalf("%v: %s", err, out)
	}
	exec := k.AuthInfos["prod"].Exec
	want := fmt.Sprintf("tabard get-token --server=%s --cache-dir=%s --ca-file=CA --cluster=prod", f.URL, f.cache)
	caFile := strings.TrimPrefix(exec.Args[4], "--ca-file=")
	if got := strings.ReplaceAll(strings.Join(exec.Args, " "), caFile, "CA"); got != want || exec.Command != "kubectl" || exec.InteractiveMode != "IfAvailable" || exec.ProvideClusterInfo || exec.InstallHint == "" {
		t.Errorf("exec %+v, want args %s", exec, want)
	}
	if b, err := os.ReadFile(caFile); err != nil || string(b) != f.ca() || string(k.Clusters["prod"].CertificateAuthorityData) != f.ca() {
		t.Errorf("CA: %s %v", b, err)
	}
	file := filepath.Join(t.TempDir(), "config")
	if code, out, errs := f.run("kubeconfig", "--cluster", "dev", "-o", file); code != exitDone || out != "" {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if k, err := clientcmd.LoadFromFile(file); err != nil || len(k.Contexts) != 1 || k.CurrentContext != "dev" {
		t.Errorf("%+v %v", k, err)
	}
	if code, _, errs := f.run("kubeconfig", "--cluster", "other"); code != exitFailed || !strings.Contains(errs, "other is not open to you") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

const mine = `apiVersion: v1
kind: Config
current-context: home
clusters: [{name: home, cluster: {server: https://home.example, certificate-authority: ca.pem}}]
users: [{name: home, user: {token: mine}}]
contexts: [{name: home, context: {cluster: home, user: home, namespace: mine}}]
`

func TestMerge(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real"), filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(mine), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", link)
	for range 2 { // again is no conflict with itself
		if code, out, errs := f.run("kubeconfig", "--merge"); code != exitDone || out != "" {
			t.Fatalf("exit %d: %s%s", code, out, errs)
		}
	}
	k, err := clientcmd.LoadFromFile(link)
	if err != nil {
		t.Fatal(err)
	}
	home := k.Contexts["home"]
	if len(k.Contexts) != 3 || k.CurrentContext != "home" || home.Namespace != "mine" || k.AuthInfos["home"].Token != "mine" || k.Clusters["home"].CertificateAuthority != "ca.pem" {
		t.Errorf("the person's own context: %+v", k)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link is gone")
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", fi.Mode())
	}
	f.clusters[0].Name = "home"
	before, _ := os.ReadFile(file)
	if code, _, errs := f.run("kubeconfig", "--merge"); code != exitFailed || !strings.Contains(errs, "has a home already that is not from Tabard") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
		t.Error("a refused merge changed the file")
	}
	if code, _, errs := f.run("kubeconfig", "--merge", "--prefix", "corp-"); code != exitDone {
		t.Errorf("exit %d: %s", code, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.lock")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.WriteFile(link+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := f.run("kubeconfig", "--merge"); code != exitFailed || !strings.Contains(errs, "lock the kubeconfig") {
		t.Errorf("locked: exit %d: %s", code, errs)
	}
}

// TestKubeconfigOfProxy: a proxied cluster shows the server's own certificate, so the CA of
// the sign-in is good for it.
func TestKubeconfigOfProxy(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	f.clusters = []api.Cluster{
		{Name: "eks", ClientID: "eks", APIServer: f.URL + "/k8s/clusters/eks", Proxied: true},
		{Name: "gke", ClientID: "gke", APIServer: "https://gke.example", Proxied: true, CA: "said"},
		{Name: "own", ClientID: "own", APIServer: "https://own.example"},
	}
	code, out, errs := f.run("kubeconfig")
	k, err := clientcmd.Load([]byte(out))
	if err != nil || code != exitDone {
		t.Fatalf("exit %d, %v: %s", code, err, errs)
	}
	for name, want := range map[string]string{"eks": f.ca(), "gke": "said", "own": ""} {
		if got := string(k.Clusters[name].CertificateAuthorityData); got != want {
			t.Errorf("%s has the CA %q, want %q", name, got, want)
		}
	}
	if got := k.Clusters["eks"].Server; got != f.URL+"/k8s/clusters/eks" {
		t.Errorf("eks is at %s", got)
	}
}

// TestMergeIntoNothing makes the kubeconfig of somebody who has none.
func TestMergeIntoNothing(t *testing.T) {
	f := newFake(t)
	f.signedIn()
	file := filepath.Join(t.TempDir(), "kube", "config")
	t.Setenv("KUBECONFIG", file)
	if code, _, errs := f.run("kubeconfig", "--merge"); code != exitDone {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if k, err := clientcmd.LoadFromFile(file); err != nil || k.CurrentContext != "prod" {
		t.Errorf("%+v %v", k, err)
	}
}
