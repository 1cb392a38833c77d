package idp

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store/storetest"
)

func TestRedeemChecksBeforeItConsumes(t *testing.T) {
	h := newHouse(t)
	code, cookie := h.code("alice", "kubernetes")
	for name, c := range map[string]struct{ code, client, redirect, verifier string }{
		"other client":                {code, "dev", redirect, verifier},
		"confidential client":         {code, "headlamp", redirect, verifier},
		"other redirect URI":          {code, "kubernetes", redirect + "/", verifier},
		"other port":                  {code, "kubernetes", "http://localhost:8001", verifier},
		"wrong verifier":              {code, "kubernetes", redirect, verifier + "x"},
		"no verifier":                 {code, "kubernetes", redirect, ""},
		"challenge for verifier":      {code, "kubernetes", redirect, challenge},
		"wrong secret":                {sidOf(code) + ".AAAA", "kubernetes", redirect, verifier},
		"no secret":                   {sidOf(code), "kubernetes", redirect, verifier},
		"unknown code":                {randomID() + ".AAAA", "kubernetes", redirect, verifier},
		"key of another kind":         {"../session/x.AAAA", "kubernetes", redirect, verifier},
		"empty":                       {"", "kubernetes", redirect, verifier},
		"session cookie in its place": {cookie, "kubernetes", redirect, verifier},
		"very long":                   {code + strings.Repeat("A", 500), "kubernetes", redirect, verifier},
	} {
		if _, err := h.Redeem(h.ctx, h.client(c.client), c.code, c.redirect, c.verifier); !errors.Is(err, ErrInvalidGrant) {
			t.Errorf("%s: %v", name, err)
		}
	}
	tokens, err := h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
	wantErr(t, err, nil)
	if h.claims(tokens.IDToken)["nonce"] != "nonce-1" || !tokens.Expires.Equal(h.Now().Add(5*time.Minute)) {
		t.Errorf("claims %v, expires %v", h.claims(tokens.IDToken), tokens.Expires)
	}
}

func TestRedeemWithoutChallenge(t *testing.T) {
	h := newHouse(t)
	r := h.request("headlamp")
	r.CodeChallenge, r.ChallengeBy, r.Offline = "", "", false
	code, _ := h.codeFor("alice", r)
	_, err := h.Redeem(h.ctx, h.client("headlamp"), code, headlampURI, verifier)
	wantErr(t, err, ErrInvalidGrant) // a verifier nobody asked for (RFC 9700 section 2.1.1)
	tokens, err := h.Redeem(h.ctx, h.client("headlamp"), code, headlampURI, "")
	wantErr(t, err, nil)
	if tokens.RefreshToken != "" {
		t.Error("a refresh token without offline_access")
	}
}

func TestCodeExpires(t *testing.T) {
	h := newHouse(t)
	young, _ := h.code("alice", "kubernetes")
	h.clock.pass(codeLife - time.Second)
	_, err := h.Redeem(h.ctx, h.client("kubernetes"), young, redirect, verifier)
	wantErr(t, err, nil)
	old, cookie := h.code("alice", "kubernetes")
	h.clock.pass(codeLife)
	_, err = h.Redeem(h.ctx, h.client("kubernetes"), old, redirect, verifier)
	wantErr(t, err, ErrInvalidGrant)
	if !h.alive(cookie) {
		t.Error("an old code ended the session")
	}
}

func TestCodeUsedTwiceEndsTheSession(t *testing.T) {
	h := newHouse(t)
	code, cookie := h.code("alice", "kubernetes")
	redeem := func() error {
		_, err := h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
		return err
	}
	h.must(redeem())
	h.clock.pass(codeLife + time.Minute) // a replay is seen for longer than the code lives
	if _, err := h.Redeem(h.ctx, h.client("dev"), code, redirect, verifier); !errors.Is(err, ErrInvalidGrant) || !h.alive(cookie) {
		t.Fatalf("a replay by another client: %v, session alive: %v", err, h.alive(cookie))
	}
	wantErr(t, redeem(), ErrInvalidGrant)
	if h.alive(cookie) {
		t.Error("the session goes on")
	}
	if got := h.trail.said("token.reuse"); len(got) != 1 || got[0] != "denied code used twice" {
		t.Errorf("the trail says %q", got)
	}
}

func TestCodeFiftyAtOnce(t *testing.T) {
	h := newHouse(t)
	code, cookie := h.code("alice", "kubernetes")
	var won atomic.Int32
	all(50, func(int) {
		_, err := h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
		if err == nil {
			won.Add(1)
		} else if !errors.Is(err, ErrInvalidGrant) {
			t.Error(err)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d of fifty got tokens", won.Load())
	}
	if h.alive(cookie) {
		t.Error("forty-nine replays left the session alive")
	}
}

// A write that fails uses nothing up, and one whose outcome is unknown is no replay.
func TestRedeemThroughStoreFaults(t *testing.T) {
	h := newHouse(t)
	code, cookie := h.code("alice", "kubernetes")
	redeem := func() (Tokens, error) { return h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier) }
	h.store.Before(storetest.Times(1, errBroken))
	_, err := redeem()
	wantErr(t, err, errBroken)
	h.store.After(storetest.Times(1, errBroken))
	tokens, err := redeem()
	wantErr(t, err, nil)
	sess, err := h.session(h.ctx, sidOf(cookie))
	h.must(err)
	if len(sess.Families) != 1 {
		t.Errorf("%d families after one redemption", len(sess.Families))
	}
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
	if got := h.trail.said("token.reuse"); len(got) != 0 {
		t.Errorf("the trail says %q", got)
	}
}

// Before an outcome is known the write may land late, after the next try was made.
func TestRedeemWhoseFirstWriteLandsLate(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code("alice", "kubernetes")
	h.store.After(storetest.Times(3, errBroken))
	_, err := h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
	wantErr(t, err, nil)
}

func TestFamiliesAreBounded(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	var first Tokens
	for i := range maxFamilies + 5 {
		a, err := h.Authorize(h.ctx, h.request("kubernetes"), cookie, "")
		h.must(err)
		tokens, err := h.Redeem(h.ctx, h.client("kubernetes"), codeIn(t, a.Redirect), redirect, verifier)
		h.must(err)
		if i == 0 {
			first = tokens
		}
		h.clock.pass(time.Second)
	}
	sess, err := h.session(h.ctx, sidOf(cookie))
	h.must(err)
	if len(sess.Families) != maxFamilies {
		t.Errorf("%d families", len(sess.Families))
	}
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), first.RefreshToken)
	wantErr(t, err, ErrInvalidGrant)
	if !h.alive(cookie) {
		t.Error("a family that made room ended the session")
	}
}

// A client that signs in by the browser every few minutes, without offline_access,
// does not push a sleeping laptop's refresh token out.
func TestDeadFamiliesMakeRoomFirst(t *testing.T) {
	h := newHouse(t)
	tokens, cookie := h.login("alice", "kubernetes")
	for range maxFamilies + 5 {
		r := h.request("kubernetes")
		r.Offline = false
		a, err := h.Authorize(h.ctx, r, cookie, "")
		h.must(err)
		_, err = h.Redeem(h.ctx, h.client("kubernetes"), codeIn(t, a.Redirect), redirect, verifier)
		h.must(err)
		h.clock.pass(5 * time.Minute)
	}
	_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
}
