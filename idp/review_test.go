package idp

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tabard-id/tabard/groups"
)

const (
	callerOne = "caller-one-0123456789"
	callerTwo = "caller-two-0123456789"
	devCaller = "caller-dev-0123456789"
	apiserver = "https://kubernetes.default.svc.cluster.local"
)

// withWebhooks lets the clusters prod, dev and vault ask.
func withWebhooks(c *Config) {
	c.Clusters[0].Webhook = &WebhookConfig{Callers: []CallerConfig{{Token: callerOne}, {Token: callerTwo}}}
	c.Clusters[1].Webhook = &WebhookConfig{Callers: []CallerConfig{{Token: devCaller}}, Audiences: []string{"dev.test"}}
	c.Clusters[2].Webhook = &WebhookConfig{Callers: []CallerConfig{{Token: "caller-vault-0123456789"}}}
}

func (h *house) reviewer(cluster, caller string) *Reviewer {
	h.t.Helper()
	r, err := h.Reviewer(cluster, caller)
	h.must(err)
	return r
}

// review reviews a token once memory knows what the store does.
func (h *house) review(r *Reviewer, token string, asked []string) (Identity, []string, error) {
	h.t.Helper()
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	return r.Review(h.ctx, token, asked)
}

func TestReviewerTable(t *testing.T) {
	h := newHouse(t, withWebhooks, func(c *Config) { c.Clusters[2].Webhook = nil })
	for _, c := range []struct {
		cluster, caller string
		want            error
	}{
		{"prod", callerOne, nil},
		{"prod", callerTwo, nil},
		{"dev", devCaller, nil},
		{"dev", callerOne, ErrInvalidClient},
		{"prod", devCaller, ErrInvalidClient},
		{"prod", "", ErrInvalidClient},
		{"prod", callerOne[:len(callerOne)-1], ErrInvalidClient},
		{"prod", callerOne + " ", ErrInvalidClient},
		{"vault", callerOne, ErrNoCluster},
		{"", callerOne, ErrNoCluster},
		{"prod/", callerOne, ErrNoCluster},
	} {
		if _, err := h.Reviewer(c.cluster, c.caller); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%q at %q: %v, want %v", c.caller, c.cluster, err, c.want)
		}
	}
}

func TestReview(t *testing.T) {
	h := newHouse(t, withWebhooks)
	h.member("oncall", groups.KindPerson, "corp."+aliceID, time.Time{})
	tokens, _ := h.login("alice", "kubernetes")
	claims := h.claims(tokens.IDToken)
	for range 2 { // the second time from memory
		who, auds, err := h.review(h.reviewer("prod", callerOne), tokens.IDToken, nil)
		h.must(err)
		if who.Username != "alice" || who.Sub != "corp."+aliceID || !slices.Equal(who.Groups, []string{boss, "oncall"}) || auds != nil {
			t.Errorf("%+v, %q", who, auds)
		}
		want := fmt.Sprint(map[string][]string{ExtraCredentialID: {"JTI=" + claims["jti"].(string)}, ExtraSession: {claims["sid"].(string)}})
		if got := fmt.Sprint(who.Extra()); got != want {
			t.Errorf("extra %s, want %s", got, want)
		}
	}
	if n := h.trail.said("token.review"); len(n) != 0 {
		t.Errorf("good reviews are in the trail: %q", n)
	}
}

// TestReviewIsLive changes what the token says nothing of.
func TestReviewIsLive(t *testing.T) {
	h := newHouse(t, withWebhooks)
	root := groups.Actor{Operator: true}
	h.member("early", groups.KindPerson, "corp."+aliceID, time.Time{})
	tokens, _ := h.login("alice", "kubernetes")
	in := func() []string {
		who, _, err := h.review(h.reviewer("prod", callerOne), tokens.IDToken, nil)
		h.must(err)
		return who.Groups
	}
	h.member("late", groups.KindDirectoryGroup, boss, time.Time{})
	h.member("ends", groups.KindPerson, "corp."+aliceID, h.clock.Now().Add(3*time.Minute))
	_, err := h.local.Remove(h.ctx, root, "early", 0, groups.KindPerson, "corp."+aliceID)
	h.must(err)
	if got := in(); !slices.Equal(got, []string{boss, "ends", "late"}) {
		t.Errorf("groups %q", got)
	}
	h.clock.pass(3 * time.Minute)
	if got := in(); !slices.Equal(got, []string{boss, "late"}) {
		t.Errorf("groups %q after one has ended", got)
	}
	elsewhere := []string{"dev"}
	_, err = h.local.Edit(h.ctx, root, "late", 0, groups.Change{Clusters: &elsewhere})
	h.must(err)
	if got := in(); !slices.Equal(got, []string{boss}) {
		t.Errorf("groups %q after one was scoped to another cluster", got)
	}
	h.corp.change("alice", func(e *entry) { e.groups = []string{"corp:k8s-new"} })
	if got := in(); !slices.Contains(got, boss) {
		t.Errorf("groups %q: the directory's change before a refresh", got)
	}
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	h.must(err)
	if got := in(); !slices.Equal(got, []string{"corp:k8s-new"}) {
		t.Errorf("groups %q after a refresh", got)
	}
}

func TestReviewRefuses(t *testing.T) {
	h := newHouse(t, withWebhooks)
	prod := h.reviewer("prod", callerOne)
	good, _ := h.login("alice", "kubernetes")
	dev, _ := h.login("alice", "dev")
	vault, _ := h.login("alice", "vault")
	api, _ := h.login("alice", BuiltinClient)
	parts := strings.Split(good.IDToken, ".")
	for name, token := range map[string]string{
		"another cluster's":        dev.IDToken,
		"the built-in client's":    api.IDToken,
		"an access token":          good.AccessToken,
		"a refresh token":          good.RefreshToken,
		"nothing":                  "",
		"dots":                     "..",
		"a service account's":      foreignToken(t, h.cfg.Issuer, parts[1]),
		"none":                     unsigned(parts[1]),
		"other claims":             parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://id.test"}`)) + "." + parts[2],
		"no signature":             parts[0] + "." + parts[1] + ".",
		"whitespace at its end":    good.IDToken + " ",
		"one that is far too long": strings.Repeat("a", maxToken+1),
	} {
		if _, _, err := h.review(prod, token, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.trail.said("token.review"); len(n) != 0 {
		t.Errorf("what is no token of ours fills the trail: %q", n)
	}
	v := h.reviewer("vault", "caller-vault-0123456789")
	_, _, err := h.review(v, vault.IDToken, nil)
	h.must(err)
	h.corp.change("alice", func(e *entry) { e.groups = nil })
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), good.RefreshToken)
	h.must(err)
	for range 3 {
		_, _, err = h.review(v, vault.IDToken, nil)
		wantErr(t, err, nil) // each session has the groups of its own last refresh
	}
	_, err = h.Refresh(h.ctx, h.client("vault"), vault.RefreshToken)
	wantErr(t, err, ErrNoAccess)
	h.clock.pass(h.cfg.Tokens.IDTokenLifetime)
	if _, _, err := h.review(prod, good.IDToken, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	h.clock.pass(-h.cfg.Tokens.IDTokenLifetime - 2*nbfAllowance)
	if _, _, err := h.review(prod, good.IDToken, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not good yet") {
		t.Errorf("before nbf: %v", err)
	}
}

// TestReviewAfterTheRequiredGroupEnded is about a cluster that requires a local group.
func TestReviewAfterTheRequiredGroupEnded(t *testing.T) {
	h := newHouse(t, withWebhooks)
	root := groups.Actor{Operator: true}
	h.member("vault-users", groups.KindPerson, "corp."+bobID, time.Time{})
	tokens, _ := h.login("bob", "vault")
	v := h.reviewer("vault", "caller-vault-0123456789")
	_, _, err := h.review(v, tokens.IDToken, nil)
	h.must(err)
	_, err = h.local.Remove(h.ctx, root, "vault-users", 0, groups.KindPerson, "corp."+bobID)
	h.must(err)
	for range 3 {
		_, _, err = h.review(v, tokens.IDToken, nil)
		wantErr(t, err, ErrRefused)
	}
	if said := h.trail.said("token.review"); len(said) != 1 || !strings.HasPrefix(said[0], "denied token refused: no access") {
		t.Errorf("the trail says %q, want it once", said)
	}
}

func TestReviewAfterTheSessionEnded(t *testing.T) {
	for name, end := range map[string]func(h *house, tokens Tokens){
		"revoked": func(h *house, tokens Tokens) {
			sess, err := h.session(h.ctx, sidOf(tokens.RefreshToken))
			h.must(err)
			h.must(h.endSession(h.ctx, sess, "test"))
		},
		"account disabled": func(h *house, tokens Tokens) {
			h.corp.change("alice", func(e *entry) { e.State = "disabled" })
			_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
			wantErr(h.t, err, ErrInvalidGrant)
		},
		"reuse": func(h *house, tokens Tokens) {
			next := tokens
			for range 3 {
				var err error
				next, err = h.Refresh(h.ctx, h.client("kubernetes"), next.RefreshToken)
				h.must(err)
				h.clock.pass(h.cfg.Sessions.RefreshGrace + time.Second)
			}
			_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
			wantErr(h.t, err, ErrInvalidGrant)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, withWebhooks)
			prod := h.reviewer("prod", callerTwo)
			tokens, _ := h.login("alice", "kubernetes")
			_, _, err := h.review(prod, tokens.IDToken, nil)
			h.must(err)
			end(h, tokens)
			for range 3 {
				_, _, err = h.review(prod, tokens.IDToken, nil)
				wantErr(t, err, ErrRefused)
			}
			if said := h.trail.said("token.review"); !slices.Equal(said, []string{"denied token refused: no session"}) {
				t.Errorf("the trail says %q, want it once", said)
			}
		})
	}
}

// TestReviewOfAnOldSignIn: the built-in client's session lives longer than dev allows.
func TestReviewOfAnOldSignIn(t *testing.T) {
	h := newHouse(t, withWebhooks, func(c *Config) {
		c.Clusters[1].Tokens.IDTokenLifetime = 4 * time.Hour
		c.Sessions.MaxLifetime = 24 * time.Hour
	})
	tokens, _ := h.login("alice", "dev")
	dev := h.reviewer("dev", devCaller)
	h.clock.pass(3*time.Hour - time.Second)
	_, _, err := h.review(dev, tokens.IDToken, nil)
	h.must(err)
	h.clock.pass(time.Second)
	_, _, err = h.review(dev, tokens.IDToken, nil)
	wantErr(t, err, ErrRefused)
}

func TestReviewAudiences(t *testing.T) {
	h := newHouse(t, withWebhooks)
	prod, dev := h.reviewer("prod", callerOne), h.reviewer("dev", devCaller)
	forProd, _ := h.login("alice", "kubernetes")
	forDev, _ := h.login("alice", "dev")
	for _, c := range []struct {
		name    string
		r       *Reviewer
		token   string
		ask     []string
		want    []string
		refused bool
	}{
		{"none asked for", prod, forProd.IDToken, nil, nil, false},
		{"the usual one", prod, forProd.IDToken, []string{apiserver}, []string{apiserver}, false},
		{"usual and more", prod, forProd.IDToken, []string{"k3s", apiserver, apiserver}, []string{apiserver}, false},
		{"the client's id", prod, forProd.IDToken, []string{"kubernetes"}, []string{"kubernetes"}, false},
		{"another service's", prod, forProd.IDToken, []string{"vault"}, nil, true},
		{"an empty one", prod, forProd.IDToken, []string{""}, nil, true},
		{"the configured one", dev, forDev.IDToken, []string{"dev.test", "x"}, []string{"dev.test"}, false},
		{"the usual one where another is configured", dev, forDev.IDToken, []string{apiserver}, nil, true},
		{"another cluster's id", dev, forDev.IDToken, []string{"kubernetes"}, nil, true},
	} {
		_, auds, err := h.review(c.r, c.token, c.ask)
		if c.refused != errors.Is(err, ErrRefused) || !c.refused && err != nil || !slices.Equal(auds, c.want) {
			t.Errorf("%s: %q, %v", c.name, auds, err)
		}
	}
}

// TestReviewKnowsNothing: trouble must not look like a no.
func TestReviewKnowsNothing(t *testing.T) {
	h := newHouse(t, withWebhooks)
	prod := h.reviewer("prod", callerOne)
	tokens, _ := h.login("alice", "kubernetes")
	real := h.Groups
	h.Groups = behind{}
	if _, _, err := h.review(prod, tokens.IDToken, nil); !errors.Is(err, groups.ErrStale) || errors.Is(err, ErrRefused) {
		t.Errorf("stale groups: %v", err)
	}
	h.Groups = real
	h.must(h.endSession(h.ctx, &Session{ID: sidOf(tokens.RefreshToken)}, "test"))
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	h.store.Read(func([]string) error { return errBroken })
	if _, _, err := prod.Review(h.ctx, tokens.IDToken, nil); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("store trouble: %v", err)
	}
	h.store.Read(nil)
	h.trail.down = errBroken
	if _, _, err := h.review(prod, tokens.IDToken, nil); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("trail trouble: %v", err)
	}
	h.trail.down = nil
	_, _, err := h.review(prod, tokens.IDToken, nil)
	wantErr(t, err, ErrRefused)
	if said := h.trail.said("token.review"); len(said) != 1 { // not lost for the trouble before
		t.Errorf("the trail says %q", said)
	}
}

func TestOnceSet(t *testing.T) {
	o := &onceSet{}
	for i := range 3 * maxOnce {
		if o.first("often") != (i == 0) {
			t.Fatalf("what comes often is new after %d others", i)
		}
		if !o.first(fmt.Sprint(i)) {
			t.Fatalf("%d is not new", i)
		}
		if n := len(o.now) + len(o.old); n > 2*maxOnce {
			t.Fatalf("holds %d", n)
		}
	}
	if !o.first("0") || o.first("0") {
		t.Error("nothing is forgotten, or all is")
	}
}

// foreignToken is a token with the claims in payload by a key that is not ours.
func foreignToken(t *testing.T, issuer, payload string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: issuer}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func unsigned(payload string) string {
	header, _ := json.Marshal(map[string]string{"alg": "none"})
	return base64.RawURLEncoding.EncodeToString(header) + "." + payload + "."
}

// BenchmarkReview is one review, by one API server with many people's tokens.
func BenchmarkReview(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256"} {
		for _, n := range []int{1, 100} {
			b.Run(fmt.Sprintf("%s/%d people, 20 groups", alg, n), func(b *testing.B) {
				h := newHouse(b, withWebhooks, func(c *Config) { c.Tokens.SigningAlgorithm = alg })
				h.corp.change("alice", func(e *entry) {
					e.groups = nil
					for i := range 20 {
						e.groups = append(e.groups, fmt.Sprintf("corp:k8s-team-%02d", i))
					}
				})
				var tokens []string
				for range n {
					t, _ := h.login("alice", "kubernetes")
					tokens = append(tokens, t.IDToken)
				}
				prod := h.reviewer("prod", callerOne)
				h.must(h.Sessions.catchUp(h.ctx, h.disk))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, _, err := prod.Review(h.ctx, tokens[i%n], []string{apiserver}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
