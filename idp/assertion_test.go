package idp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// signer is a private key with its kid and algorithm.
type signer struct {
	key crypto.Signer
	kid string
	alg jose.SignatureAlgorithm
}

func newSigner(t testing.TB, kid string, alg jose.SignatureAlgorithm) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case jose.RS256, jose.PS256:
		key, err = rsa.GenerateKey(rand.Reader, minRSA)
	case jose.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case jose.ES384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, kid, alg}
}

// jwks is the public set of the signers.
func jwks(t testing.TB, of ...signer) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range of {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.kid, Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sign signs payload with the key, whatever is in the header.
func (s signer) sign(t testing.TB, payload []byte, header map[jose.HeaderKey]any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if s.kid != "" {
		opts = opts.WithHeader("kid", s.kid)
	}
	for k, v := range header {
		opts = opts.WithHeader(k, v)
	}
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := js.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type claims map[string]any

// with returns a copy with the pairs put over it; a value of nil takes a claim away.
func (c claims) with(pairs ...any) claims {
	out := maps.Clone(c)
	for i := 0; i+1 < len(pairs); i += 2 {
		name := pairs[i].(string)
		if out[name] = pairs[i+1]; pairs[i+1] == nil {
			delete(out, name)
		}
	}
	return out
}

func (c claims) by(t testing.TB, s signer) string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return s.sign(t, b, nil)
}

const podSubject = "system:serviceaccount:argocd:argocd-server"

// workshop is a house with clients that prove themselves by keys.
type workshop struct {
	*house
	ec, rsa, ed, pods, other signer
	n                        atomic.Int64
}

func newWorkshop(t testing.TB) *workshop {
	t.Helper()
	w := &workshop{
		ec: newSigner(t, "ec", jose.ES256), rsa: newSigner(t, "rsa", jose.RS256), ed: newSigner(t, "ed", jose.EdDSA),
		pods: newSigner(t, "pods", jose.RS256), other: newSigner(t, "ec", jose.ES256),
	}
	w.house = newHouse(t, func(c *Config) {
		c.Clients = append(c.Clients,
			ClientConfig{ID: "ci", Cluster: "prod", JWKS: jwks(t, w.ec, w.rsa, w.ed), Groups: []string{"ci-deployers", "a"}},
			ClientConfig{ID: "other", Cluster: "prod", JWKS: jwks(t, w.other), Groups: []string{"others"}},
			ClientConfig{ID: "web", Cluster: "prod", JWKS: jwks(t, signer{key: w.other.key}), RedirectURIs: []string{headlampURI}},
			ClientConfig{ID: "argocd", Cluster: "prod", Groups: []string{"gitops"}, ServiceAccount: ServiceAccountConfig{
				Issuer: "https://kubernetes.default.svc", JWKS: jwks(t, w.pods), Audience: "https://id.test/pods", Subject: podSubject,
			}},
		)
	})
	return w
}

// mine is a right assertion of ci, each time with another jti.
func (w *workshop) mine() claims {
	now := w.Now().Unix()
	return claims{"iss": "ci", "sub": "ci", "aud": "https://id.test/token", "exp": now + 60, "iat": now, "jti": encode([]byte{byte(w.n.Add(1))}) + randomID()}
}

// pod is a right service-account token.
func (w *workshop) pod() claims {
	now := w.Now().Unix()
	return claims{
		"iss": "https://kubernetes.default.svc", "sub": podSubject, "aud": []string{"https://id.test/pods"}, "exp": now + 3600, "iat": now, "nbf": now,
		"kubernetes.io": map[string]any{"namespace": "argocd"},
	}
}

func TestAssertionsThatAreRight(t *testing.T) {
	w := newWorkshop(t)
	now := w.Now().Unix()
	for name, c := range map[string]struct {
		id, raw, want string
	}{
		"ES256":              {"ci", w.mine().by(t, w.ec), "ci"},
		"RS256":              {"ci", w.mine().by(t, w.rsa), "ci"},
		"EdDSA":              {"ci", w.mine().by(t, w.ed), "ci"},
		"no client_id":       {"", w.mine().by(t, w.ec), "ci"},
		"aud is the issuer":  {"ci", w.mine().with("aud", []string{"https://id.test"}).by(t, w.ec), "ci"},
		"no iat":             {"ci", w.mine().with("iat", nil).by(t, w.ec), "ci"},
		"our clock is ahead": {"ci", w.mine().with("exp", now-59, "iat", now-120).by(t, w.ec), "ci"},
		"our clock is late":  {"ci", w.mine().with("exp", now+360, "iat", now+60, "nbf", now+60).by(t, w.ec), "ci"},
		"only key, no kid":   {"web", w.mine().with("iss", "web", "sub", "web").by(t, signer{key: w.other.key, alg: jose.ES256}), "web"},
		"a pod":              {"argocd", w.pod().by(t, w.pods), "argocd"},
		"a pod's clock late": {"argocd", w.pod().with("nbf", now+60).by(t, w.pods), "argocd"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.AuthenticateAssertion(w.ctx, c.id, c.raw)
			if err != nil || got.ID != c.want || got.Public {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// hostile are assertions that prove nothing, and whom they claim to prove.
func (w *workshop) hostile(t testing.TB) map[string][2]string {
	all := w.forged(t)
	maps.Copy(all, w.misplaced(t))
	return all
}

// forged have something wrong with their header, signature or form.
func (w *workshop) forged(t testing.TB) map[string][2]string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		w.must(err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	body := w.mine()
	none := part(map[string]string{"alg": "none", "typ": "JWT"}) + "." + part(body) + "."
	hs := part(map[string]string{"alg": "HS256", "kid": "ec"}) + "." + part(body)
	mac := hmac.New(sha256.New, []byte(jwks(t, w.ec, w.rsa, w.ed)))
	mac.Write([]byte(hs))
	good := strings.Split(body.by(t, w.ec), ".")
	swapped := good[0] + "." + part(body.with("sub", "ci", "jti", "another")) + "." + good[2]
	raw, err := json.Marshal(body)
	w.must(err)
	embedded := signer{w.other.key, "", jose.ES256}.sign(t, raw, map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: w.other.key.Public(), KeyID: "ec"}})
	kid := func(kid string) string { return body.by(t, signer{w.ec.key, kid, jose.ES256}) }
	return map[string][2]string{
		"empty":                 {"ci", "."},
		"no JWT":                {"ci", "a.b.c"},
		"alg none":              {"ci", none},
		"alg NonE":              {"ci", strings.Replace(none, part(map[string]string{"alg": "none", "typ": "JWT"}), part(map[string]string{"alg": "NonE"}), 1)},
		"HS256 with the public": {"ci", hs + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))},
		"PS256":                 {"ci", body.by(t, signer{w.rsa.key, "rsa", jose.PS256})},
		"signature of another":  {"ci", swapped},
		"no signature":          {"ci", good[0] + "." + good[1] + "."},
		"another key, our kid":  {"ci", w.mine().by(t, w.other)},
		"key in the header":     {"ci", embedded},
		"no kid":                {"ci", kid("")},
		"unknown kid":           {"ci", kid("../../etc/passwd")},
		"kid of another key":    {"ci", kid("rsa")},
		"kid of another type":   {"ci", kid("ed")},
		"critical header":       {"ci", w.ec.sign(t, raw, map[jose.HeaderKey]any{"crit": []string{"exp"}, "exp": 1})},
		"JSON serialization":    {"ci", `{"payload":"` + good[1] + `","protected":"` + good[0] + `","signature":"` + good[2] + `"}`},
		"payload no object":     {"ci", w.ec.sign(t, []byte(`"ci"`), nil)},
		"payload no JSON":       {"ci", w.ec.sign(t, []byte{0xff, 0}, nil)},
		"claims in capitals":    {"ci", w.ec.sign(t, []byte(strings.ReplaceAll(string(raw), `"exp"`, `"EXP"`)), nil)},
		"huge and no JWT":       {"ci", strings.Repeat("a", 1<<20)},
	}
}

// misplaced are signed as they should be, with claims that are not good here.
func (w *workshop) misplaced(t testing.TB) map[string][2]string {
	now := w.Now().Unix()
	by := func(pairs ...any) [2]string { return [2]string{"ci", w.mine().with(pairs...).by(t, w.ec)} }
	pod := func(pairs ...any) [2]string { return [2]string{"argocd", w.pod().with(pairs...).by(t, w.pods)} }
	return map[string][2]string{
		"huge":                     by("jti", strings.Repeat("a", maxAssertion)),
		"other aud":                by("aud", "https://evil.test/token"),
		"aud of another endpoint":  by("aud", "https://id.test/authorize"),
		"aud is near":              by("aud", "https://id.test/token/"),
		"two audiences":            by("aud", []string{"https://id.test/token", "https://evil.test"}),
		"no aud":                   by("aud", nil),
		"aud is a number":          by("aud", 1),
		"expired":                  by("exp", now-60),
		"no exp":                   by("exp", nil),
		"exp is text":              by("exp", "never"),
		"exp far ahead":            by("exp", now+361),
		"exp at the end of time":   by("exp", 1e300),
		"exp negative":             by("exp", -1),
		"iat ahead":                by("iat", now+61),
		"nbf ahead":                by("nbf", now+61),
		"no jti":                   by("jti", nil),
		"long jti":                 by("jti", strings.Repeat("a", 257)),
		"iss of another":           by("iss", "other"),
		"sub of another":           by("sub", "other"),
		"no iss":                   by("iss", nil),
		"for another client":       {"other", w.mine().by(t, w.ec)},
		"another client's own":     {"ci", w.mine().with("iss", "other", "sub", "other").by(t, w.other)},
		"for a client by secret":   {"headlamp", w.mine().with("iss", "headlamp", "sub", "headlamp").by(t, w.ec)},
		"for a public client":      {"kubernetes", w.mine().with("iss", "kubernetes", "sub", "kubernetes").by(t, w.ec)},
		"for nobody":               {"nobody", w.mine().with("iss", "nobody", "sub", "nobody").by(t, w.ec)},
		"nobody, by sub":           {"", w.mine().with("iss", "nobody", "sub", "nobody").by(t, w.ec)},
		"pod of another account":   pod("sub", "system:serviceaccount:argocd:default"),
		"pod of another cluster":   pod("iss", "https://kubernetes.evil.test"),
		"pod for the API server":   pod("aud", []string{"https://kubernetes.default.svc"}),
		"pod for both":             pod("aud", []string{"https://id.test/pods", "https://kubernetes.default.svc"}),
		"pod without end":          pod("exp", nil),
		"pod that lives for years": pod("exp", now+365*86400),
		"pod as ci":                {"ci", w.pod().by(t, w.pods)},
		"ci as pod":                {"argocd", w.mine().by(t, w.ec)},
		"pod by the wrong key":     {"argocd", w.pod().by(t, signer{w.rsa.key, "pods", jose.RS256})},
	}
}

// Every wrong assertion is refused with one error, and leaves nothing behind.
func TestHostileAssertions(t *testing.T) {
	w := newWorkshop(t)
	for name, c := range w.hostile(t) {
		t.Run(name, func(t *testing.T) {
			if got, err := w.AuthenticateAssertion(audit.WithOrigin(w.ctx, audit.Origin{Address: name} /* each from elsewhere: no throttle */), c[0], c[1]); !errors.Is(err, ErrInvalidClient) || got != nil {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	if left, _, err := w.disk.List(w.ctx, "assertion/", "", 10); err != nil || len(left) != 0 {
		t.Errorf("%d assertions are remembered, %v", len(left), err)
	}
}

func TestAssertionWorksOnce(t *testing.T) {
	w := newWorkshop(t)
	raw := w.mine().by(t, w.ec)
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			ctx := audit.WithOrigin(w.ctx, audit.Origin{Address: string(rune('a' + i))})
			if _, err := w.AuthenticateAssertion(ctx, "ci", raw); err == nil {
				won.Add(1)
			} else if !errors.Is(err, ErrInvalidClient) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 16 got in with one assertion", won.Load())
	}
	other := w.mine().with("iss", "other", "sub", "other", "jti", "same")
	if _, err := w.AuthenticateAssertion(w.ctx, "ci", w.mine().with("jti", "same").by(t, w.ec)); err != nil {
		t.Error(err)
	}
	if _, err := w.AuthenticateAssertion(w.ctx, "other", other.by(t, w.other)); err != nil {
		t.Errorf("another client's jti stands in the way: %v", err)
	}
	pod := w.pod().by(t, w.pods)
	for range 2 { // the kubelet gives a pod the same token until it is old
		if _, err := w.AuthenticateAssertion(w.ctx, "argocd", pod); err != nil {
			t.Error(err)
		}
	}
	// As long as an assertion would be good it is remembered.
	last := w.mine().with("exp", w.Now().Unix()+360).by(t, w.ec)
	if _, err := w.AuthenticateAssertion(w.ctx, "ci", last); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		w.clock.pass(time.Minute)
		if _, err := w.AuthenticateAssertion(w.ctx, "ci", last); !errors.Is(err, ErrInvalidClient) {
			t.Errorf("used again: %v", err)
		}
	}
}

// A store that does not answer lets nobody in, and says so.
func TestAssertionNeedsTheStore(t *testing.T) {
	w := newWorkshop(t)
	raw := w.mine().by(t, w.ec)
	w.store.Before(func([]string) error { return store.ErrUnknown })
	if _, err := w.AuthenticateAssertion(w.ctx, "ci", raw); !errors.Is(err, store.ErrUnknown) || errors.Is(err, ErrInvalidClient) {
		t.Error(err)
	}
}

func TestAssertionThrottle(t *testing.T) {
	w := newWorkshop(t)
	bad := w.mine().by(t, w.other)
	for range w.cfg.Throttle.AddressTries {
		if _, err := w.AuthenticateAssertion(w.ctx, "ci", bad); !errors.Is(err, ErrInvalidClient) {
			t.Fatal(err)
		}
	}
	if _, err := w.AuthenticateAssertion(w.ctx, "ci", w.mine().by(t, w.ec)); !errors.Is(err, ErrTooMany) {
		t.Errorf("after many wrong ones: %v", err)
	}
	if _, err := w.AuthenticateAssertion(w.ctx, "argocd", w.pod().by(t, w.pods)); err != nil {
		t.Errorf("another client behind the same address: %v", err)
	}
	if _, err := w.AuthenticateAssertion(audit.WithOrigin(w.ctx, audit.Origin{Address: "192.0.2.8"}), "ci", w.mine().by(t, w.ec)); err != nil {
		t.Errorf("from another address: %v", err)
	}
	w.clock.pass(w.cfg.Throttle.Window)
	if _, err := w.AuthenticateAssertion(w.ctx, "ci", w.mine().by(t, w.ec)); err != nil {
		t.Errorf("a window later: %v", err)
	}
}

func FuzzAssertion(f *testing.F) {
	w := newWorkshop(f)
	signed := map[string]bool{} // header and payload of what was signed here
	add := func(raw string) {
		if len(raw) < 1<<14 {
			signed[raw[:strings.LastIndex(raw, ".")+1]] = true
			f.Add(raw)
		}
	}
	for _, c := range w.hostile(f) {
		add(c[1])
	}
	add(w.mine().by(f, w.ec))
	add("eyJhbGciOiJFUzI1NiJ9.e30.")
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := w.clients["ci"].asserter.verify(raw, w.Now())
		if err == nil && (c.Subject != "ci" || c.ID == "" || !signed[raw[:strings.LastIndex(raw, ".")+1]]) {
			t.Errorf("let in: %q", raw)
		}
		_ = claimedSubject(raw)
	})
}
