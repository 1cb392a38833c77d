package idp

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// ServiceAccountConfig is a Kubernetes service account whose projected tokens are a
// client's assertions. The zero one is none.
type ServiceAccountConfig struct {
	Issuer   string `yaml:"issuer"`             // of the cluster's service-account tokens: their iss
	JWKSFile string `yaml:"jwksFile"`           // what `kubectl get --raw /openid/v1/jwks` says
	JWKS     string `yaml:"-"`                  // what JWKSFile holds
	Audience string `yaml:"audience,omitempty"` // of the tokens; Tabard's issuer when empty
	Subject  string `yaml:"subject"`            // system:serviceaccount:NAMESPACE:NAME
}

const (
	// assertionLife is how far ahead exp of a client's own assertion may lie. What was
	// used is remembered as long.
	assertionLife = 5 * time.Minute
	// accountTokenLife is the same of a service-account token, which a pod uses many
	// times; the kubelet asks for one hour unless told otherwise.
	accountTokenLife = 24 * time.Hour
	// assertionSkew is how wrong the clock of who signs may be.
	assertionSkew = time.Minute
	maxAssertion  = 16 << 10 // bytes
	maxAsserters  = 32       // keys in one JWKS
	minRSA        = 2048     // bits
)

// assertionAlgorithms are all that a client may sign with: no none, and nothing for
// which a public key could be taken for a secret.
var assertionAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA}

// AssertionAlgorithms returns the algorithms that client assertions may be signed with.
func AssertionAlgorithms() []string {
	out := make([]string, len(assertionAlgorithms))
	for i, a := range assertionAlgorithms {
		out[i] = string(a)
	}
	return out
}

// asserter is what a client's assertions have to be (RFC 7523 section 3).
type asserter struct {
	keys            []jose.JSONWebKey
	issuer, subject string
	audiences       []string
	life            time.Duration
	once            bool // jti is required and good for one use
}

// asserter returns what proves the client, nil for none. The configuration is valid.
func (cc *ClientConfig) asserter(issuer string) *asserter {
	switch a := cc.ServiceAccount; {
	case cc.JWKS != "":
		keys, _ := parseJWKS(cc.JWKS)
		return &asserter{keys: keys, issuer: cc.ID, subject: cc.ID, audiences: []string{issuer, issuer + "/token"}, life: assertionLife, once: true}
	case a != ServiceAccountConfig{}:
		keys, _ := parseJWKS(a.JWKS)
		audience := a.Audience
		if audience == "" {
			audience = issuer
		}
		return &asserter{keys: keys, issuer: a.Issuer, subject: a.Subject, audiences: []string{audience}, life: accountTokenLife}
	}
	return nil
}

// parseJWKS reads a set of public keys (RFC 7517) that each fit an algorithm.
func parseJWKS(text string) ([]jose.JSONWebKey, error) {
	var set jose.JSONWebKeySet
	if json.Unmarshal([]byte(text), &set) != nil {
		return nil, errors.New(`is not a JWKS: write {"keys": [...]}`)
	}
	if n := len(set.Keys); n == 0 || n > maxAsserters {
		return nil, fmt.Errorf("holds %d keys, not between 1 and %d", n, maxAsserters)
	}
	seen := map[string]bool{}
	for i := range set.Keys {
		k := &set.Keys[i]
		if trouble := keyTrouble(k); trouble != "" {
			return nil, fmt.Errorf("key %d %s", i+1, trouble)
		}
		if len(set.Keys) > 1 && (k.KeyID == "" || seen[k.KeyID]) {
			return nil, fmt.Errorf("key %d needs a kid of its own", i+1)
		}
		seen[k.KeyID] = true
	}
	return set.Keys, nil
}

// keyTrouble says why a key cannot be one of a client.
func keyTrouble(k *jose.JSONWebKey) string {
	fits := ""
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		if fits = string(jose.RS256); key.N.BitLen() < minRSA {
			return fmt.Sprintf("is RSA of %d bits: use %d or more", key.N.BitLen(), minRSA)
		}
	case *ecdsa.PublicKey:
		if fits = string(jose.ES256); key.Curve != elliptic.P256() {
			return "is not on the curve P-256"
		}
	case ed25519.PublicKey:
		fits = string(jose.EdDSA)
	case []byte:
		return "is a shared secret: use an RSA, P-256 or Ed25519 key"
	default:
		return "is a private key: keep it where it is, and give Tabard the public half"
	}
	switch {
	case k.Algorithm != "" && k.Algorithm != fits:
		return "is for another algorithm than " + fits
	case k.Use != "" && k.Use != "sig":
		return "is not for signatures (use)"
	}
	return ""
}

var accountSubject = regexp.MustCompile(`^system:serviceaccount:[a-z0-9-]{1,63}:[a-z0-9.-]{1,253}$`)

func (a ServiceAccountConfig) validate(path string) error {
	var f Faults
	f.When(a.Issuer == "", path+".issuer", "is missing: it is iss of the cluster's service-account tokens, as `kubectl get --raw /.well-known/openid-configuration` says")
	f.When(!accountSubject.MatchString(a.Subject), path+".subject", "must be system:serviceaccount:NAMESPACE:NAME")
	f.When(a.Audience != "" && a.Audience == a.Issuer, path+".audience", "is what API servers take by default: use another, so that a token for one is worth nothing at the other")
	if _, err := parseJWKS(a.JWKS); a.JWKS == "" && a.JWKSFile == "" {
		f.Wrong(path+".jwksFile", "is missing: keep in it what `kubectl get --raw /openid/v1/jwks` says")
	} else if err != nil {
		f.Wrong(path+".jwksFile", "%s", err)
	}
	return f.Err()
}

// AuthenticateAssertion returns the client that an assertion proves (RFC 7523 section
// 2.2, OpenID Connect Core section 9). clientID may be "": then it is the assertion's
// sub. ErrInvalidClient, whatever is wrong; ErrTooMany after many such.
func (s *Service) AuthenticateAssertion(ctx context.Context, clientID, raw string) (*Client, error) {
	if clientID == "" {
		clientID = claimedSubject(raw)
	}
	c := s.clients[clientID]
	key := assertionKey(ctx, c)
	if p, _, err := s.spell(ctx, key, false); err != nil {
		return nil, err
	} else if wait := p.wait(s.Now(), s.cfg.Throttle); wait > 0 {
		return nil, &TooManyError{wait}
	}
	err := s.checkAssertion(ctx, c, raw)
	if errors.Is(err, ErrInvalidClient) {
		return nil, errors.Join(err, s.countAssertion(ctx, key))
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// claimedSubject is what an assertion says of itself, "" for what is none.
func claimedSubject(raw string) string {
	var c jwt.Claims
	if len(raw) > maxAssertion {
		return ""
	}
	token, err := jwt.ParseSigned(raw, assertionAlgorithms)
	if err != nil || token.UnsafeClaimsWithoutVerification(&c) != nil {
		return ""
	}
	return c.Subject
}

func (s *Service) checkAssertion(ctx context.Context, c *Client, raw string) error {
	if c == nil || c.asserter == nil {
		return fmt.Errorf("%w: assertion for no client that uses them", ErrInvalidClient)
	}
	claims, err := c.asserter.verify(raw, s.Now())
	if err != nil {
		return fmt.Errorf("%w: %s: assertion: %w", ErrInvalidClient, c.ID, err)
	}
	if !c.asserter.once {
		return nil
	}
	// A client id holds no space, so no two pairs are alike.
	key := "assertion/" + encode(hashSecret(c.ID+" "+claims.ID))
	_, err = s.Store.Txn(ctx, []store.Cond{{Key: key}}, []store.Op{{Key: key, Value: []byte("{}"), Expires: claims.Expiry.Time().Add(2 * assertionSkew)}})
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%w: %s: assertion was used before", ErrInvalidClient, c.ID)
	}
	if err != nil {
		return fmt.Errorf("remember an assertion: %w", err)
	}
	return nil
}

// verify checks the signature and every claim.
func (a *asserter) verify(raw string, now time.Time) (jwt.Claims, error) {
	var c jwt.Claims
	if len(raw) > maxAssertion {
		return c, errors.New("is too long")
	}
	token, err := jwt.ParseSigned(raw, assertionAlgorithms)
	if err != nil {
		return c, errors.New("is no JWT with an algorithm of " + strings.Join(AssertionAlgorithms(), ", "))
	}
	key, err := a.key(token.Headers[0])
	if err != nil {
		return c, err
	}
	if err := token.Claims(key, &c); err != nil {
		return c, fmt.Errorf("signature or claims: %w", err)
	}
	return c, a.check(c, now)
}

// key chooses by kid among the configured keys alone: jku, x5u and jwk of the header
// count for nothing. Without a kid there has to be just one key.
func (a *asserter) key(h jose.Header) (any, error) {
	for i := range a.keys {
		k := &a.keys[i]
		if k.KeyID != h.KeyID && (h.KeyID != "" || len(a.keys) > 1) {
			continue
		}
		if k.Algorithm != "" && k.Algorithm != h.Algorithm {
			return nil, errors.New("algorithm is not the key's")
		}
		return k.Key, nil
	}
	return nil, errors.New("kid is not in jwksFile")
}

func (a *asserter) check(c jwt.Claims, now time.Time) error {
	earliest, latest := now.Add(-assertionSkew), now.Add(assertionSkew)
	switch {
	case c.Issuer != a.issuer || c.Subject != a.subject:
		return errors.New("iss or sub is another's")
	case len(c.Audience) != 1 || !slices.Contains(a.audiences, c.Audience[0]):
		return fmt.Errorf("aud is not one of %s alone", strings.Join(a.audiences, ", "))
	case c.Expiry == nil || !c.Expiry.Time().After(earliest):
		return errors.New("has expired, or has no exp")
	case c.Expiry.Time().After(latest.Add(a.life)):
		return fmt.Errorf("exp is more than %s ahead", a.life)
	case c.NotBefore != nil && c.NotBefore.Time().After(latest), c.IssuedAt != nil && c.IssuedAt.Time().After(latest):
		return errors.New("nbf or iat is in the future")
	case a.once && (c.ID == "" || len(c.ID) > 256):
		return errors.New("jti is missing or too long")
	}
	return nil
}

// assertionKey is where wrong assertions are counted: by client and address, so that
// one job that has the wrong key does not stop the others behind the same address.
func assertionKey(ctx context.Context, c *Client) string {
	id := ""
	if c != nil {
		id = c.ID
	}
	return "throttle/client/" + network(audit.OriginOf(ctx).Address) + "/" + id
}

// countAssertion counts a wrong assertion. Signatures cannot be guessed, so a count
// that is lost to another one matters little.
func (s *Service) countAssertion(ctx context.Context, key string) error {
	p, cond, err := s.spell(ctx, key, false)
	if err != nil {
		return err
	}
	p.add(s.Now(), s.cfg.Throttle)
	value, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	_, err = s.Store.Txn(ctx, []store.Cond{cond}, []store.Op{{Key: key, Value: value, Expires: s.Now().Add(2 * s.cfg.Throttle.Window)}})
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown) {
		return nil
	}
	return err
}
