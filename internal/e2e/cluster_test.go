package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

const rbac = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pod-reader, namespace: default}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pod-readers, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pod-reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "corp:devs"}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: platform}
`

// clusterPrints is what `tabard cluster` prints for a cluster.
func (s *server) clusterPrints(what, name string, args ...string) string {
	s.t.Helper()
	out, err := s.run(s.t.TempDir(), "", append([]string{"cluster", what, name, "--config", s.config}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// startCluster starts a real API server that trusts s natively, with roles for the
// groups corp:devs and platform.
func startCluster(t *testing.T, s *server, clientID string) *testenv.KubeAPIServer {
	t.Helper()
	name := clientID
	if clientID == "kubernetes" {
		name = "prod"
	}
	return startClusterWith(t, strings.Fields(s.clusterPrints("flags", name, "--dir", s.dir))...)
}

// startClusterWith is startCluster with other flags.
func startClusterWith(t *testing.T, flags ...string) *testenv.KubeAPIServer {
	t.Helper()
	k := testenv.StartKubeAPIServer(t, testenv.KubeAPIServerOptions{ExtraArgs: flags})
	file := filepath.Join(t.TempDir(), "rbac.yaml")
	if err := os.WriteFile(file, []byte(rbac), 0o600); err != nil {
		t.Fatal(err)
	}
	k.Kubectl(t, "apply", "-f", file)
	knowsRight(t, k, "list", "pods", "-n", "default", "--as=somebody", "--as-group=corp:devs")
	return k
}

// knowsRight waits until the API server goes by a right, of which it hears a moment after
// it was made.
func knowsRight(t testing.TB, k *testenv.KubeAPIServer, right ...string) {
	t.Helper()
	eventually(t, 2*time.Minute, "the right to "+strings.Join(right, " "), func() error {
		_, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: k.AdminKubeconfig}, append([]string{"auth", "can-i"}, right...)...)
		return err
	})
}

// pods lists pods with a token, as a person would.
func pods(t *testing.T, k *testenv.KubeAPIServer, token string) error {
	t.Helper()
	_, err := k.KubectlWith(t, testenv.KubectlOptions{Token: token}, "get", "pods", "-n", "default")
	return err
}

// refreshed refreshes and has do try the new token. Where the machine took longer for that
// than the token lives, it does so again.
func (s *server) refreshed(t *testing.T, held *tokens, do func(token string) error) error {
	t.Helper()
	for {
		*held = s.mustRefresh("kubernetes", held.RefreshToken)
		end, err := expiry(held.IDToken)
		if err != nil {
			t.Fatal(err)
		}
		if err = do(held.IDToken); err == nil || time.Now().Before(end) {
			return err
		}
	}
}

// podsOf lists pods with a new token of a session.
func (s *server) podsOf(t *testing.T, k *testenv.KubeAPIServer, held *tokens) error {
	t.Helper()
	return s.refreshed(t, held, func(token string) error { return pods(t, k, token) })
}

func wantForbidden(who string, err error) error {
	want := fmt.Sprintf(`User "%s" cannot list resource "pods" in API group "" in the namespace "default"`, who)
	if err == nil || !strings.Contains(err.Error(), want) {
		return fmt.Errorf("want RBAC's own refusal of %s, got %v", who, err)
	}
	return nil
}

// TestMainJob is what Tabard is for: RBAC of a real API server follows the groups
// of the directory and the local ones, within a token's life.
func TestMainJob(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 15s, minLifetime: 2s}"})
	k := startCluster(t, s, "kubernetes")

	alice := s.login("kubernetes", "alice", "pw-alice")
	eventually(t, 2*time.Minute, "the API server knows the issuer", func() error { return pods(t, k, s.login("kubernetes", "alice", "pw-alice").IDToken) })
	var who string
	err := s.refreshed(t, &alice, func(token string) (err error) {
		who, err = whoami(t, k, token)
		return err
	})
	if err != nil || !strings.Contains(who, `"alice"`) || !strings.Contains(who, `"corp:all-devs"`) {
		t.Errorf("whoami: %v\n%s", err, who)
	}

	bob := s.login("kubernetes", "bob", "pw-bob")
	if err := wantForbidden("bob", s.podsOf(t, k, &bob)); err != nil {
		t.Fatal(err)
	}
	carol := s.signIn("carol", "pw-carol")
	carol.must("groups", "create", "platform")
	carol.must("groups", "add", "platform", "bob", "--reason", "joins the team")
	if err := s.podsOf(t, k, &bob); err != nil {
		t.Fatalf("bob is in platform now: %v", err)
	}
	carol.must("groups", "remove", "platform", "bob")
	last := bob.IDToken
	eventually(t, 3*time.Minute, "bob's last token with the group dies", func() error {
		if err := pods(t, k, last); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
			return fmt.Errorf("old token: %v", err)
		}
		return nil
	})
	if err := wantForbidden("bob", s.podsOf(t, k, &bob)); err != nil {
		t.Fatal(err)
	}

	testEndingMembership(t, s, k, carol, bob)
	testOtherAudience(t, s, k)
}

// testEndingMembership gives bob the group for a while: no token outlives it, and
// the next one does not have it.
func testEndingMembership(t *testing.T, s *server, k *testenv.KubeAPIServer, carol admin, bob tokens) {
	end := time.Now().Add(time.Minute).Truncate(time.Second)
	carol.must("groups", "add", "platform", "bob", "--until", end.Format(time.RFC3339))
	bob = s.mustRefresh("kubernetes", bob.RefreshToken)
	if exp := int64(claims(t, bob.IDToken)["exp"].(float64)); exp > end.Unix() {
		t.Errorf("token lives until %d, the membership until %d", exp, end.Unix())
	}
	if err := s.podsOf(t, k, &bob); err != nil {
		t.Fatalf("bob is in platform for a while: %v", err)
	}
	eventually(t, 3*time.Minute, "bob's membership ends", func() error { return wantForbidden("bob", s.podsOf(t, k, &bob)) })
}

// testOtherAudience shows that a token for one cluster is worth nothing at another.
func testOtherAudience(t *testing.T, s *server, k *testenv.KubeAPIServer) {
	for _, client := range []string{"staging", "tabard"} {
		if err := pods(t, k, s.login(client, "alice", "pw-alice").IDToken); err == nil || !strings.Contains(err.Error(), "Unauthorized") {
			t.Errorf("token for %s at the cluster prod: %v", client, err)
		}
	}
	alice := s.login("kubernetes", "alice", "pw-alice")
	if err := s.refreshed(t, &alice, func(string) error {
		one := s.login("tabard", "alice", "pw-alice")
		got := s.token(exchange("tabard", one.IDToken, "kubernetes"))
		if got.status != http.StatusOK || got.Issued != "urn:ietf:params:oauth:token-type:id_token" {
			t.Fatalf("exchange: %+v", got)
		}
		return pods(t, k, got.AccessToken)
	}); err != nil {
		t.Errorf("exchanged token: %v", err)
	}
}

func exchange(clientID, subject, audience string) url.Values {
	return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {clientID},
		"subject_token": {subject}, "subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "audience": {audience}}
}

// TestES256 shows that an API server that was told so accepts ES256.
func TestES256(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{signingAlgorithm: ES256}"})
	k := startCluster(t, s, "kubernetes")
	tk := s.login("kubernetes", "alice", "pw-alice")
	eventually(t, 2*time.Minute, "alice is allowed by an ES256 token", func() error { return pods(t, k, tk.IDToken) })
}

// TestAuthProvider lets client-go's oidc auth-provider, inside kubectl, refresh an
// id_token that has expired, twice, with what it keeps in its kubeconfig.
func TestAuthProvider(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 10s, minLifetime: 2s}"})
	k := startCluster(t, s, "kubernetes")
	tk := s.login("kubernetes", "alice", "pw-alice")
	file := k.Kubeconfig(t, map[string]any{"auth-provider": map[string]any{"name": "oidc", "config": map[string]any{
		"idp-issuer-url": s.issuer, "client-id": "kubernetes", "idp-certificate-authority": s.caFile,
		"id-token": tk.IDToken, "refresh-token": tk.RefreshToken,
	}}})
	for round := range 2 {
		time.Sleep(11 * time.Second) // the id_token is dead now
		eventually(t, 2*time.Minute, "kubectl by auth-provider", func() error {
			_, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: file}, "get", "pods", "-n", "default")
			return err
		})
		kept, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 && strings.Contains(string(kept), tk.RefreshToken) {
			t.Error("the auth-provider did not keep the successor of its refresh token")
		}
	}
}

// kubeloginUser is the exec stanza that the README gives for kubelogin.
func kubeloginUser(t *testing.T, s *server, cache string) map[string]any {
	return map[string]any{"exec": map[string]any{
		"apiVersion": "client.authentication.k8s.io/v1", "command": testenv.Binary(t, "kubelogin"), "interactiveMode": "Never",
		"args": kubeloginArgs(s, cache),
	}}
}

func kubeloginArgs(s *server, cache string) []string {
	return []string{"get-token", "--oidc-issuer-url=" + s.issuer, "--oidc-client-id=kubernetes",
		"--oidc-extra-scope=offline_access", "--certificate-authority=" + s.caFile, "--skip-open-browser",
		"--listen-address=" + strings.Replace(s.kubelogin, "localhost", "127.0.0.1", 1), "--token-cache-dir=" + cache, "--authentication-timeout-sec=300"}
}

// TestKubelogin signs in with the real kubelogin and a real browser, then lets
// kubectl run it: first with a live token, then through its refresh. Chromium must
// follow the redirect from our form to kubelogin's listener, which a wrong
// form-action in the Content-Security-Policy stops.
func TestKubelogin(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 45s, minLifetime: 2s}"})
	k := startCluster(t, s, "kubernetes")
	eventually(t, 2*time.Minute, "the API server knows the issuer", func() error { return pods(t, k, s.login("kubernetes", "alice", "pw-alice").IDToken) })
	cache := t.TempDir()

	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Binary(t, "kubelogin"), kubeloginArgs(s, cache)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := testenv.Chromium(t)
	b.Navigate(waitForURL(t, s, stderr))
	b.WaitFor(`document.querySelector('input[name=password]')`)
	if text := b.Text("main"); !strings.Contains(text, "prod") || !strings.Contains(text, s.kubelogin) {
		t.Errorf("the page does not say what one signs in to and where one goes then: %q", text)
	}
	b.Type("input[name=username]", "alice")
	b.Type("input[name=password]", "pw-alice")
	b.Press("Enter")
	b.WaitFor(`location.host == '` + s.kubelogin + `'`)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("kubelogin: %v, browser at %s: %v", err, b.URL(), b.ConsoleErrors())
	}
	var credential struct{ Status struct{ Token string } }
	if err := json.Unmarshal([]byte(stdout.String()), &credential); err != nil {
		t.Fatalf("kubelogin printed %q: %v", stdout.String(), err)
	}
	if err := pods(t, k, credential.Status.Token); err != nil {
		t.Error(err)
	}
	file := k.Kubeconfig(t, kubeloginUser(t, s, cache))
	for round := range 2 {
		time.Sleep(time.Duration(round) * 46 * time.Second) // the second round has to refresh
		if _, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: file}, "get", "pods", "-n", "default"); err != nil {
			t.Fatalf("kubectl with kubelogin: %v", err)
		}
	}
}

// waitForURL reads kubelogin's words until it names the page to open.
func waitForURL(t *testing.T, s *server, r io.Reader) string {
	t.Helper()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if u := regexp.MustCompile(`http://` + s.kubelogin + `\S*`).FindString(lines.Text()); u != "" {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return u
		}
	}
	t.Fatal("kubelogin named no page to open")
	return ""
}
