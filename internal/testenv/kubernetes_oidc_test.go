package testenv

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TestKubeAPIServerTakesAnIssuer gives the apiserver a small issuer by
// ExtraArgs, as the whole-product tests give it Tabard.
func TestKubeAPIServerTakesAnIssuer(t *testing.T) {
	ca := NewCA(t, t.TempDir())
	addr := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	issuer := "https://" + addr
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	serveIssuer(t, ca, addr, jose.JSONWebKey{Key: key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"})
	k := StartKubeAPIServer(t, KubeAPIServerOptions{ExtraArgs: []string{
		"--oidc-issuer-url=" + issuer, "--oidc-client-id=kubernetes", "--oidc-ca-file=" + ca.File,
		"--oidc-username-claim=preferred_username", "--oidc-username-prefix=-", "--oidc-groups-claim=groups",
	}})
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": issuer, "aud": "kubernetes", "sub": "1", "exp": time.Now().Add(time.Hour).Unix(),
		"preferred_username": "alice", "groups": []string{"corp:k8s-dev"},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Minute)
	for {
		out, err := k.KubectlWith(t, KubectlOptions{Token: token}, "auth", "whoami", "-o", "json")
		if err == nil {
			if !strings.Contains(out, `"username": "alice"`) || !strings.Contains(out, `"corp:k8s-dev"`) {
				t.Errorf("the apiserver sees %s", out)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func serveIssuer(t *testing.T, ca *CA, addr string, key jose.JSONWebKey) {
	t.Helper()
	certFile, keyFile := ca.Issue(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]any{
		"/.well-known/openid-configuration": map[string]any{"issuer": "https://" + addr, "jwks_uri": "https://" + addr + "/keys"},
		"/keys":                             jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}},
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answers[r.URL.Path]); err != nil {
			t.Errorf("answer %s: %v", r.URL.Path, err)
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
}
