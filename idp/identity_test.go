package idp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/store"
)

// Identify says who the bearer of an id_token is at a cluster now, by the steps of a
// review without its audiences.
func (s *Service) Identify(ctx context.Context, cluster, token string) (Identity, error) {
	c := s.clientOf(cluster)
	if c == nil {
		return Identity{}, fmt.Errorf("%w: %q", ErrNoCluster, cluster)
	}
	claims, err := s.claimsFor(c, token)
	if err != nil {
		return Identity{}, err
	}
	return s.identify(ctx, c, claims)
}

func TestIdentify(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("bob", "kubernetes")
	token := tokens.IDToken
	sub := "corp." + bobID
	h.member("platform", groups.KindPerson, sub, h.Now().Add(time.Hour)) // after the token
	id, err := h.Identify(h.ctx, "prod", token)
	h.must(err)
	if id.Username != "bob" || id.Sub != sub || id.Session != sidOf(tokens.RefreshToken) || id.Cluster != "prod" ||
		!slices.Contains(id.Groups, "platform") || !id.Ends.Equal(h.Now().Add(time.Hour)) || id.JTI != h.claims(token)["jti"] {
		t.Errorf("identity %+v", id)
	}
	_, err = h.local.Remove(h.ctx, groups.Actor{Operator: true}, "platform", 0, groups.KindPerson, sub)
	h.must(err)
	if id, err = h.Identify(h.ctx, "prod", token); err != nil || slices.Contains(id.Groups, "platform") {
		t.Errorf("after the removal: %+v, %v", id, err)
	}
	for name, bad := range map[string]struct{ cluster, token string }{
		"another cluster's": {"dev", token}, "changed": {"prod", token[:len(token)-4] + "AAAA"}, "none": {"prod", ""},
		"an access token": {"prod", tokens.AccessToken}, "unsigned": {"prod", "eyJhbGciOiJub25lIn0." + strings.Split(token, ".")[1] + "."},
	} {
		if _, err := h.Identify(h.ctx, bad.cluster, bad.token); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = h.Identify(h.ctx, "none", token)
	wantErr(t, err, ErrNoCluster)
	h.clock.pass(5 * time.Minute)
	_, err = h.Identify(h.ctx, "prod", token)
	wantErr(t, err, ErrRefused) // it was remembered, and has expired
	again, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	h.must(err)
	_, err = h.Identify(h.ctx, "prod", again.IDToken)
	h.must(err)
	h.must(h.EndSession(h.ctx, groups.Actor{Sub: sub}, false, id.Session))
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	_, err = h.Identify(h.ctx, "prod", again.IDToken)
	wantErr(t, err, ErrRefused)
}

// TestIdentifyAfterRotation removes the key that the token was signed by.
func TestIdentifyAfterRotation(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("bob", "kubernetes")
	for range 2 {
		_, err := h.Identify(h.ctx, "prod", tokens.IDToken)
		h.must(err)
	}
	h.must(h.keys.Rotate(h.ctx, true))
	_, err := h.Identify(h.ctx, "prod", tokens.IDToken)
	wantErr(t, err, ErrRefused)
}

// TestIdentifyFresh uses a token that memory cannot know yet, and one whose groups
// nobody knows.
func TestIdentifyFresh(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("bob", "kubernetes")
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	h.Sessions.Apply([]store.Event{{Entry: store.Entry{Key: sessionKey(sidOf(tokens.RefreshToken))}, Delete: true}})
	id, err := h.Identify(h.ctx, "prod", tokens.IDToken)
	if h.must(err); id.Username != "bob" {
		t.Errorf("identity %+v", id)
	}
	h.Groups = behind{}
	if _, err := h.Identify(h.ctx, "prod", tokens.IDToken); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("without groups: %v, want neither yes nor no", err)
	}
}

func TestVerifiedTokensAreBounded(t *testing.T) {
	v := &verifiedTokens{by: map[[32]byte]idClaims{}}
	for i := range maxVerified {
		v.by[[32]byte{byte(i), byte(i >> 8)}] = idClaims{Expires: int64(100 + i%2)}
	}
	if v.forget(0, 100); len(v.by) != maxVerified/2 {
		t.Errorf("%d entries after half have expired", len(v.by))
	}
	for i := range maxVerified {
		v.by[[32]byte{byte(i), byte(i >> 8)}] = idClaims{Expires: 200}
	}
	if v.forget(0, 100); len(v.by) >= maxVerified {
		t.Errorf("%d entries", len(v.by))
	}
	if v.forget(1, 100); len(v.by) != 0 || v.keys != 1 {
		t.Errorf("%d entries of keys that are gone", len(v.by))
	}
}

func BenchmarkIdentify(b *testing.B) {
	h := newHouse(b)
	tokens, _ := h.login("bob", "kubernetes")
	h.member("platform", groups.KindPerson, "corp."+bobID, time.Time{})
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Identify(h.ctx, "prod", tokens.IDToken); err != nil {
			b.Fatal(err)
		}
	}
}

// TestIdentifyClient has a token without a session, which nothing ends but its time.
func TestIdentifyClient(t *testing.T) {
	w := newWorkshop(t)
	raw := w.own("ci")["raw"].(string)
	id, err := w.Identify(w.ctx, "prod", raw)
	if err != nil || id.Username != "client:ci" || len(id.Groups) != 2 || id.Session != "" || len(id.Extra()) != 1 {
		t.Fatal(id, err)
	}
	_, err = w.Identify(w.ctx, "dev", raw)
	wantErr(t, err, ErrRefused)
	w.clock.pass(5 * time.Minute)
	_, err = w.Identify(w.ctx, "prod", raw)
	wantErr(t, err, ErrRefused)
}
