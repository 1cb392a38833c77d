package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// cached is how long an API server may go by what it knows: the webhook's cache of two
// seconds here, ten over all tokens, and time to spare.
const cached = 3 * time.Minute

// webhookCluster starts an API server that asks s about every token.
func webhookCluster(t *testing.T, s *server, extra ...string) *testenv.KubeAPIServer {
	t.Helper()
	s.write("tabard-webhook.yaml", s.clusterPrints("webhook-config", "prod", "--dir", s.dir, "--issuer-ca", s.caFile))
	flags := strings.Fields(s.clusterPrints("flags", "prod", "--for", "webhook", "--dir", s.dir))
	return startClusterWith(t, append(append(flags, "--authentication-token-webhook-cache-ttl=2s"), extra...)...)
}

// session is one sign-in of a person, ended by endSession, and a token of it for prod.
func (s *server) session(user string) (refresh, token string) {
	s.t.Helper()
	one := s.login("tabard", user, "pw-"+user)
	got := s.token(exchange("tabard", one.IDToken, "kubernetes"))
	if got.status != http.StatusOK {
		s.t.Fatalf("exchange: %+v", got)
	}
	return one.RefreshToken, got.AccessToken
}

func (s *server) endSession(refresh string) {
	s.t.Helper()
	if a := post(s.t, s.client(), s.issuer+"/revoke", url.Values{"token": {refresh}, "client_id": {"tabard"}}); a.status != http.StatusOK {
		s.t.Fatalf("revoke: %d %s", a.status, a.body)
	}
}

func wantUnauthorized(err error) error {
	if err == nil || !strings.Contains(err.Error(), "Unauthorized") {
		return fmt.Errorf("want Unauthorized, got %v", err)
	}
	return nil
}

func whoami(t *testing.T, k *testenv.KubeAPIServer, token string) (string, error) {
	t.Helper()
	return k.KubectlWith(t, testenv.KubectlOptions{Token: token}, "auth", "whoami", "-o", "json")
}

// wantSeen checks what the API server makes of alice's token.
func wantSeen(t *testing.T, k *testenv.KubeAPIServer, token string) {
	t.Helper()
	who, err := whoami(t, k, token)
	c := claims(t, token)
	for _, want := range []string{`"username": "alice"`, `"uid": "` + c["sub"].(string) + `"`, `"corp:all-devs"`, `"system:authenticated"`,
		`"JTI=` + c["jti"].(string) + `"`, `"authentication.kubernetes.io/credential-id"`, `"tabard.dev/sid"`, `"` + c["sid"].(string) + `"`} {
		if err != nil || !strings.Contains(who, want) {
			t.Errorf("the API server does not see %s: %v\n%s", want, err, who)
		}
	}
}

// TestWebhook gives an API server nothing but the webhook. What ends then ends for
// tokens that are good by their signature.
func TestWebhook(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 1h}"})
	k := webhookCluster(t, s)
	refresh, alice := s.session("alice")
	if err := pods(t, k, alice); err != nil {
		t.Fatal(err)
	}
	wantSeen(t, k, alice)
	for _, client := range []string{"staging", "tabard"} {
		if err := wantUnauthorized(pods(t, k, s.login(client, "alice", "pw-alice").IDToken)); err != nil {
			t.Errorf("token for %s at prod: %v", client, err)
		}
	}
	testReviewForAService(t, k, alice)

	carol := s.signIn("carol", "pw-carol")
	carol.must("groups", "create", "platform")
	bob := s.login("kubernetes", "bob", "pw-bob").IDToken
	if err := wantForbidden("bob", pods(t, k, bob)); err != nil {
		t.Error(err)
	}
	carol.must("groups", "add", "platform", "bob")
	eventually(t, cached, "bob's token from before counts for platform", func() error { return pods(t, k, bob) })
	carol.must("groups", "remove", "platform", "bob")
	eventually(t, cached, "bob is out of platform, and signed in", func() error { return wantForbidden("bob", pods(t, k, bob)) })

	_, other := s.session("alice")
	if err := pods(t, k, alice); err != nil { // what the API server keeps is new
		t.Error(err)
	}
	s.endSession(refresh)
	ended := time.Now()
	eventually(t, cached, "alice's ended session is refused", func() error { return wantUnauthorized(pods(t, k, alice)) })
	t.Logf("refused %s after its end", time.Since(ended).Round(100*time.Millisecond))
	if err := pods(t, k, other); err != nil {
		t.Errorf("alice's other session: %v", err)
	}
	if !strings.Contains(s.trail(), `"act":"token.review"`) {
		t.Error("the refusal is not in the trail")
	}
	s.Stop()
	eventually(t, cached, "nobody gets in while Tabard is away", func() error { return wantUnauthorized(pods(t, k, other)) })
	s.start()
	if err := pods(t, k, other); err != nil {
		t.Errorf("the API server kept a no that was none: %v", err)
	}
}

// testReviewForAService: a service in the cluster that asks the API server about a token
// for itself must hear that it is not for it.
func testReviewForAService(t *testing.T, k *testenv.KubeAPIServer, token string) {
	t.Helper()
	for audience, want := range map[string]string{"": "true", "https://kubernetes.default.svc": "true", "vault": ""} {
		list := "[]"
		if audience != "" {
			list = `["` + audience + `"]`
		}
		out, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: k.AdminKubeconfig,
			Stdin: `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"` + token + `","audiences":` + list + `}}`},
			"create", "-f", "-", "-o", "jsonpath={.status.authenticated}")
		if err != nil || out != want {
			t.Errorf("token for %q: %q, %v", audience, out, err)
		}
	}
}

// TestWebhookV1beta1 is the old version of the same question.
func TestWebhookV1beta1(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	k := webhookCluster(t, s, "--authentication-token-webhook-version=v1beta1")
	refresh, alice := s.session("alice")
	if err := pods(t, k, alice); err != nil {
		t.Fatal(err)
	}
	wantSeen(t, k, alice)
	s.endSession(refresh)
	eventually(t, cached, "alice's ended session is refused", func() error { return wantUnauthorized(pods(t, k, alice)) })
}

// TestAuthenticationConfig starts an API server with the generated file, changes the
// file under it, and reaches it by the generated kubeconfigs.
func TestAuthenticationConfig(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 1h}"})
	write := func(change func(string) string, args ...string) {
		t.Helper()
		s.write("new.yaml", change(s.clusterPrints("authn-config", "prod", append([]string{"--issuer-ca", s.caFile}, args...)...)))
		if err := os.Rename(filepath.Join(s.dir, "new.yaml"), filepath.Join(s.dir, "tabard-authn.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	same := func(text string) string { return text }
	write(same)
	k := startClusterWith(t, strings.Fields(s.clusterPrints("flags", "prod", "--for", "authn-config", "--dir", s.dir))...)
	_, alice := s.session("alice")
	eventually(t, 2*time.Minute, "the API server knows the issuer", func() error { return pods(t, k, alice) })
	wantSeen(t, k, alice)
	if err := wantUnauthorized(pods(t, k, s.login("staging", "alice", "pw-alice").IDToken)); err != nil {
		t.Errorf("token for staging at prod: %v", err)
	}
	testGeneratedKubeconfigs(t, s, k)

	_, other := s.session("alice")
	_, third := s.session("alice")
	write(same, "--deny-sid", claims(t, alice)["sid"].(string), "--deny-jti", claims(t, other)["jti"].(string))
	eventually(t, 2*time.Minute, "the session is denied", func() error { return wantUnauthorized(pods(t, k, alice)) })
	eventually(t, cached, "the token is denied", func() error { return wantUnauthorized(pods(t, k, other)) })
	if err := pods(t, k, third); err != nil {
		t.Errorf("another session: %v", err)
	}
	for what, swap := range map[string][2]string{
		"a username of Kubernetes' own": {"expression: claims.preferred_username", "expression: \"'system:' + claims.preferred_username\""},
		"a group of Kubernetes' own":    {"expression: claims.groups", "expression: \"claims.groups + ['system:masters']\""},
	} {
		write(same)
		eventually(t, 2*time.Minute, "alice is let in again", func() error { return pods(t, k, alice) })
		write(func(text string) string {
			if !strings.Contains(text, swap[0]) {
				t.Fatalf("there is no %q", swap[0])
			}
			return strings.Replace(text, swap[0], swap[1], 1)
		})
		eventually(t, 2*time.Minute, what+" is refused", func() error { return wantUnauthorized(pods(t, k, alice)) })
	}
}

// testGeneratedKubeconfigs uses them as people do, with our plugin and with kubelogin.
func testGeneratedKubeconfigs(t *testing.T, s *server, k *testenv.KubeAPIServer) {
	t.Helper()
	s.tellAPIServers(map[string]*testenv.KubeAPIServer{"kubernetes": k})
	p := s.person()
	p.login("alice")
	list := []string{"kubectl", "get", "pods", "-n", "default"}
	if err := os.WriteFile(p.kubeconfig, []byte(s.clusterPrints("kubeconfig", "prod", "--issuer-ca", s.caFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.mustDo("", list...)

	if err := errors.Join(
		os.Symlink(testenv.Binary(t, "kubelogin"), filepath.Join(p.home, "bin", "kubectl-oidc_login")),
		os.WriteFile(p.kubeconfig, []byte(s.clusterPrints("kubeconfig", "prod", "--for", "kubelogin", "--issuer-ca", s.caFile)), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	opened := filepath.Join(p.home, "opened") // by what stands in for a desktop
	if err := os.WriteFile(filepath.Join(p.home, "bin", "xdg-open"), []byte("#!/bin/sh\necho \"$1\" > "+opened+".new\nmv "+opened+".new "+opened+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := p.command(ctx, list...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var page []byte
	eventually(t, 2*time.Minute, "kubelogin opens a browser", func() (err error) {
		page, err = os.ReadFile(opened)
		return err
	})
	c := p.browser()
	at, err := url.Parse(get(t, c, strings.TrimSpace(string(page))).header.Get("Location"))
	if err != nil || at.Path != "/authorize" {
		t.Fatalf("kubelogin leads to %q: %v", at, err)
	}
	f, _ := p.openSignIn(c, at.Query())
	a := p.submit(c, f, "alice", "pw-alice")
	if a.status != http.StatusSeeOther {
		t.Fatalf("sign-in: %d %s", a.status, a.body)
	}
	get(t, c, a.header.Get("Location"))
	if err := cmd.Wait(); err != nil {
		t.Errorf("kubectl with kubelogin: %v: %s", err, stderr.String())
	}
	p.mustDo("", list...) // without a sign-in
}
