package provider

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// A job gets a token for its cluster without a person.
func TestClientCredentials(t *testing.T) {
	h := newHouse(t)
	a := h.asCI("/token", h.assertion(), "grant_type", "client_credentials", "scope", "openid offline_access")
	if a.status != 200 || a.json["token_type"] != "Bearer" || a.json["access_token"] != a.json["id_token"] || a.json["refresh_token"] != nil ||
		a.json["expires_in"].(float64) > 300 || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	token, err := jwt.ParseSigned(a.json["id_token"].(string), []jose.SignatureAlgorithm{jose.ES256})
	h.must(err)
	var c struct {
		jwt.Claims
		Username string   `json:"preferred_username"`
		Groups   []string `json:"groups"`
		Session  string   `json:"sid"`
	}
	h.must(token.Claims(h.keys.Public(), &c))
	if c.Issuer != h.srv.URL || c.Subject != "client:ci" || c.Username != "client:ci" || !slices.Equal(c.Groups, []string{"ci-deployers"}) || !c.Audience.Contains("kubernetes") || c.Session != "" {
		t.Errorf("%+v", c)
	}
	trail := ""
	files, err := filepath.Glob(filepath.Join(h.trail, "*"))
	h.must(err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		h.must(err)
		trail += string(b)
	}
	if !strings.Contains(trail, `"token.issue"`) || !strings.Contains(trail, c.ID) {
		t.Errorf("not in the trail: %s", trail)
	}
	bearer := with(nil, "Authorization", "Bearer "+a.json["access_token"].(string))
	refused(t, h.do("GET", "/userinfo", "", bearer), 401, "invalid_token")
}

// A client that may not have the grant hears so, proven or not.
func TestClientCredentialsRefused(t *testing.T) {
	h := newHouse(t)
	byHeader := with(nil, "Authorization", basic("headlamp", headSecret))
	refused(t, h.post("/token", byHeader, "grant_type", "client_credentials"), 400, "unauthorized_client")
	refused(t, h.post("/token", nil, "grant_type", "client_credentials", "client_id", "kubernetes"), 400, "unauthorized_client")
	refused(t, h.post("/token", nil, "grant_type", "client_credentials", "client_id", "ci"), 401, "invalid_client")
	refused(t, h.post("/token", nil, "grant_type", "client_credentials", "client_id", "ci", "client_secret", "x"), 401, "invalid_client")
}

// private_key_jwt proves a client wherever a secret would.
func TestPrivateKeyJWT(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code("client_id", "ci", "redirect_uri", headlamp)
	redeem := []string{"grant_type", "authorization_code", "code", code, "redirect_uri", headlamp, "code_verifier", verifier}
	refused(t, h.post("/token", nil, append(redeem, "client_id", "ci")...), 401, "invalid_client")
	refused(t, h.post("/token", nil, append(redeem, "client_id", "kubernetes")...), 400, "invalid_grant")
	a := h.asCI("/token", h.assertion(), redeem...)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	at, rt := a.json["access_token"].(string), a.json["refresh_token"].(string)
	if got := h.asCI("/introspect", h.assertion(), "token", at); got.json["active"] != true || got.json["username"] != "alice" {
		t.Errorf("introspection: %d %s", got.status, got.body)
	}
	refused(t, h.post("/token", nil, "grant_type", "refresh_token", "client_id", "ci", "refresh_token", rt), 401, "invalid_client")
	a = h.asCI("/token", h.assertion("aud", h.srv.URL+"/token"), "grant_type", "refresh_token", "refresh_token", rt, "client_id", "ci")
	if a.status != 200 {
		t.Fatalf("refresh: %d %s", a.status, a.body)
	}
	if got := h.asCI("/revoke", h.assertion(), "token", a.json["refresh_token"].(string)); got.status != 200 {
		t.Errorf("revocation: %d %s", got.status, got.body)
	}
	if got := h.asCI("/introspect", h.assertion(), "token", at); got.json["active"] != false {
		t.Errorf("revoked, and still %s", got.body)
	}
	if got := h.asCI("/device_authorization", h.assertion()); got.status != 200 {
		t.Errorf("device: %d %s", got.status, got.body)
	}
}

// One request proves the client one way (RFC 6749 section 2.3).
func TestOneProofARequest(t *testing.T) {
	h := newHouse(t)
	grant := []string{"grant_type", "client_credentials"}
	byHeader := with(nil, "Authorization", basic("ci", "x"))
	both := []string{"grant_type", "client_credentials", "client_assertion_type", assertionType, "client_assertion", h.assertion()}
	refused(t, h.post("/token", byHeader, both...), 400, "invalid_request")
	refused(t, h.post("/token", nil, append(both, "client_secret", "x")...), 400, "invalid_request")
	refused(t, h.post("/token", nil, append(both, "client_secret", "x", "client_id", "ci")...), 400, "invalid_request")
	refused(t, h.post("/token", nil, append(grant, "client_assertion", h.assertion())...), 400, "invalid_request")
	refused(t, h.post("/token", nil, append(grant, "client_assertion", h.assertion(), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")...), 400, "invalid_request")
	if a := h.post("/token", nil, both...); a.status != 200 { // nothing of all that used the assertion up
		t.Errorf("%d %s", a.status, a.body)
	}
}

// alike is a group of rejections that must not be told apart.
type alike struct {
	name    string
	answers []answer
}

// What must not be told apart is not: status, headers and body are equal.
func TestRejectionsAreAlike(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code()
	groups := append([]alike{h.wrongCodes(code), h.wrongDeviceCodes(), h.wrongClients()}, h.wrongTokens()...)
	for _, g := range groups {
		first := g.answers[0]
		first.header.Del("Date")
		for i, a := range g.answers {
			a.header.Del("Date")
			if a.status != first.status || a.body != first.body || !maps.EqualFunc(a.header, first.header, slices.Equal) {
				t.Errorf("%s %d can be told from the first: %d %s %v\n%d %s %v", g.name, i, a.status, a.body, a.header, first.status, first.body, first.header)
			}
		}
	}
	for _, cause := range []string{"assertion was used before", "aud is not one of", "has expired", "code is not for this client", "no such refresh token"} {
		if !strings.Contains(h.log.text(), cause) {
			t.Errorf("the log does not tell that %s", cause)
		}
	}
	if a := h.redeem(code, "kubernetes", "code_verifier", verifier); a.status != 200 {
		t.Errorf("the right code after all that: %d %s", a.status, a.body)
	}
}

func (h *house) redeem(code, client string, pairs ...string) answer {
	h.t.Helper()
	return h.post("/token", nil, append([]string{"grant_type", "authorization_code", "client_id", client, "redirect_uri", localhost, "code", code}, pairs...)...)
}

func (h *house) wrongCodes(code string) alike {
	used, _ := h.code()
	right := []string{"code_verifier", verifier}
	h.redeem(used, "kubernetes", right...)
	return alike{"codes", []answer{
		h.redeem("what", "kubernetes", right...),
		h.redeem(strings.Repeat("A", 22)+"."+strings.Repeat("A", 43), "kubernetes", right...),
		h.redeem(code[:len(code)-4]+"AAAA", "kubernetes", right...),
		h.redeem(code, "kubernetes"),
		h.redeem(code, "kubernetes", "code_verifier", verifier+"x"),
		h.redeem(code, "vault", right...),
		h.redeem(used, "kubernetes", right...),
	}}
}

func (h *house) wrongDeviceCodes() alike {
	device := h.post("/device_authorization", nil, "client_id", "kubernetes").json["device_code"].(string)
	poll := func(client, code string) answer {
		return h.post("/token", nil, "grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", client, "device_code", code)
	}
	return alike{"device codes", []answer{
		poll("kubernetes", "what"), poll("vault", device), poll("kubernetes", device[:len(device)-4]+"AAAA"), poll("kubernetes", strings.Repeat("A", 22)+".x"),
	}}
}

func (h *house) wrongClients() alike {
	secret := func(client string, more ...string) answer {
		return h.post("/token", nil, append([]string{"grant_type", "refresh_token", "refresh_token", "x", "client_id", client}, more...)...)
	}
	proof := func(assertion, client string) answer {
		return h.asCI("/token", assertion, "grant_type", "client_credentials", "client_id", client)
	}
	twice := h.assertion()
	proof(twice, "ci")
	return alike{"client authentication", []answer{
		secret("headlamp", "client_secret", "wrong"), secret("headlamp"), secret("nobody", "client_secret", "x"), secret("nobody"),
		secret("kubernetes", "client_secret", "x"), secret("ci", "client_secret", "x"), secret("ci"),
		h.post("/token", with(nil, "Authorization", basic("headlamp", "wrong")), "grant_type", "refresh_token", "refresh_token", "x"),
		proof("a.b.c", "ci"), proof(h.assertion("aud", "https://evil.test"), "ci"), proof(h.assertion("exp", h.now().Unix()-61), "ci"),
		proof(twice, "ci"), proof(h.assertion(), "headlamp"), proof(h.assertion(), "nobody"), proof(h.assertion("sub", "nobody"), "ci"),
	}}
}

// wrongTokens are refresh, bearer and introspected tokens.
func (h *house) wrongTokens() []alike {
	tokens, _ := h.tokens()
	ended, _ := h.tokens()
	rt, gone := tokens["refresh_token"].(string), ended["refresh_token"].(string)
	h.post("/revoke", nil, "client_id", "kubernetes", "token", gone)
	refresh := func(client, token string) answer {
		return h.post("/token", nil, "grant_type", "refresh_token", "client_id", client, "refresh_token", token)
	}
	bearer := func(token string) answer {
		return h.do("GET", "/userinfo", "", with(nil, "Authorization", "Bearer "+token))
	}
	ask := func(token string) answer {
		return h.post("/introspect", with(nil, "Authorization", basic("headlamp", headSecret)), "token", token)
	}
	return []alike{
		{"refresh tokens", []answer{
			refresh("kubernetes", "what"), refresh("kubernetes", "a.b.0.c"), refresh("kubernetes", rt[:len(rt)-4]+"AAAA"),
			refresh("vault", rt), refresh("kubernetes", gone), refresh("kubernetes", tokens["access_token"].(string)),
		}},
		{"bearer tokens", []answer{bearer("what"), bearer(ended["access_token"].(string)), bearer(tokens["id_token"].(string))}},
		{"introspection", []answer{ask("what"), ask(rt), ask(gone), ask(tokens["access_token"].(string))}},
	}
}
