package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TestWorkload runs a job's sign-in against the server, and again after its key was
// replaced in the file.
func TestWorkload(t *testing.T) {
	keys := map[string]*ecdsa.PrivateKey{}
	for _, kid := range []string{"old", "new"} {
		var err error
		if keys[kid], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	jwks := func(kid string) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: keys[kid].Public(), KeyID: kid}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	file := filepath.Join(t.TempDir(), "ci.jwks")
	writeFile(t, file, jwks("old"), 0o644)
	s := start(t, served+"clients: [{id: ci, cluster: prod, jwksFile: "+file+", groups: [ci-deployers]}]\n"+deadDirectory)
	ask := func(kid string) int {
		sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: keys[kid], KeyID: kid}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := jwt.Signed(sig).Claims(map[string]any{"iss": "ci", "sub": "ci", "aud": s.issuer, "exp": time.Now().Unix() + 60, "jti": rand.Text()}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client().PostForm(s.issuer+"/token", url.Values{
			"grant_type": {"client_credentials"}, "client_assertion": {raw},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if was, is := ask("old"), ask("new"); was != 200 || is != 401 {
		t.Errorf("the key of the file: %d, another: %d", was, is)
	}
	writeFile(t, file, jwks("new"), 0o644)
	s.log.wait(t, `"msg":"configuration reloaded"`, 1)
	if was, is := ask("old"), ask("new"); was != 401 || is != 200 {
		t.Errorf("the key that was: %d, the one that is: %d", was, is)
	}

	resp, err := s.client().Get(strings.TrimSuffix(s.issuer, "/id") + "/.well-known/oauth-authorization-server/id") // RFC 8414 section 3.1
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var metadata struct{ Issuer string }
	if err := json.NewDecoder(resp.Body).Decode(&metadata); err != nil || metadata.Issuer != s.issuer {
		t.Errorf("metadata: %d %+v %v", resp.StatusCode, metadata, err)
	}
}
