package idp

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// calls counts the reads and the writes of the store from now on.
func (h *house) calls() (reads, writes *atomic.Int32) {
	reads, writes = &atomic.Int32{}, &atomic.Int32{}
	h.store.Read(func([]string) error { reads.Add(1); return nil })
	h.store.Before(func([]string) error { writes.Add(1); return nil })
	return reads, writes
}

// Where nodes share a store every call is a round trip: a login is three writes (the
// try, the session with its code, the tokens), a refresh is one; another node than the
// one that wrote last reads once.
func TestRoundTripsOfALogin(t *testing.T) {
	h, _, nodes := guarded(t, threshold5, 2)
	reads, writes := h.calls()
	expect := func(what string, wantReads, wantWrites int32) {
		t.Helper()
		if r, w := reads.Swap(0), writes.Swap(0); r != wantReads || w != wantWrites {
			t.Errorf("%s: %d reads and %d writes", what, r, w)
		}
	}
	code, _ := h.code("alice", "kubernetes")
	expect("sign-in", 0, 2)
	tokens, err := nodes[0].Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
	h.must(err)
	expect("code", 0, 1)
	tokens, err = nodes[0].Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	h.must(err)
	expect("refresh", 0, 1)
	tokens, err = nodes[1].Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	h.must(err)
	expect("refresh at another node", 1, 1)
	_, err = nodes[0].Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	h.must(err)
	expect("refresh at the first, which knows an older record", 1, 1)
	code, _ = h.code("alice", "kubernetes")
	expect("second sign-in", 0, 2)
	_, err = nodes[1].Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier)
	h.must(err)
	expect("code at another node", 1, 1)
}

// What a node knows of a session is never enough to give something, nor to refuse it.
func TestAnotherNodeWasFaster(t *testing.T) {
	h, _, nodes := guarded(t, threshold5, 2)
	k := h.client("kubernetes")
	login := func() (string, *Session) {
		code, _ := h.code("alice", "kubernetes")
		sess, err := nodes[1].session(h.ctx, sidOf(code))
		h.must(err)
		return code, sess
	}
	t.Run("it redeemed the code", func(t *testing.T) {
		code, _ := login()
		_, err := nodes[1].Redeem(h.ctx, k, code, redirect, verifier)
		h.must(err)
		_, err = nodes[0].Redeem(h.ctx, k, code, redirect, verifier)
		wantErr(t, err, ErrInvalidGrant)
		if h.alive(code) {
			t.Error("a replay left the session alive")
		}
	})
	t.Run("it ended the session", func(t *testing.T) {
		code, sess := login()
		h.must(nodes[1].endSession(h.ctx, sess, "test"))
		ends := len(h.trail.said("session.end"))
		_, err := nodes[0].Redeem(h.ctx, k, code, redirect, verifier)
		wantErr(t, err, ErrInvalidGrant)
		if n := len(h.trail.said("session.end")); n != ends {
			t.Errorf("%d more ends in the trail", n-ends)
		}
	})
	t.Run("it ended the session before a refresh", func(t *testing.T) {
		code, _ := login()
		tokens, err := nodes[0].Redeem(h.ctx, k, code, redirect, verifier)
		h.must(err)
		sess, err := nodes[1].session(h.ctx, sidOf(code))
		h.must(err)
		h.must(nodes[1].endSession(h.ctx, sess, "test"))
		_, err = nodes[0].Refresh(h.ctx, k, tokens.RefreshToken)
		wantErr(t, err, ErrInvalidGrant)
		if got := len(h.trail.said("token.issue")); got == 0 {
			t.Error("no token was ever issued")
		}
	})
	t.Run("it rotated", func(t *testing.T) {
		code, _ := login()
		tokens, err := nodes[0].Redeem(h.ctx, k, code, redirect, verifier)
		h.must(err)
		theirs, err := nodes[1].Refresh(h.ctx, k, tokens.RefreshToken)
		h.must(err)
		ours, err := nodes[0].Refresh(h.ctx, k, tokens.RefreshToken)
		h.must(err)
		if ours.RefreshToken != theirs.RefreshToken {
			t.Error("two successors of one token")
		}
		newest, err := nodes[1].Refresh(h.ctx, k, theirs.RefreshToken)
		h.must(err)
		_, err = nodes[0].Refresh(h.ctx, k, newest.RefreshToken) // forged, by what node 0 knows
		h.must(err)
	})
}

// A disabled person's session that another node has ended is not ended again.
func TestEndedOnceInTheTrail(t *testing.T) {
	h, _, nodes := guarded(t, threshold5, 2)
	tokens, cookie := h.login("alice", "kubernetes")
	sess, err := nodes[1].session(h.ctx, sidOf(cookie))
	h.must(err)
	h.must(nodes[1].endSession(h.ctx, sess, "test"))
	h.corp.change("alice", func(e *entry) { e.State = "disabled" })
	_, err = nodes[0].Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, ErrInvalidGrant)
	if got := h.trail.said("session.end"); len(got) != 1 {
		t.Errorf("the trail says %q", got)
	}
}

func TestCodesAreBounded(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	var last string
	for range maxCodes + 5 {
		a, err := h.Authorize(h.ctx, h.request("kubernetes"), cookie, "")
		h.must(err)
		last = codeIn(t, a.Redirect)
		h.clock.pass(time.Second)
	}
	sess, err := h.session(h.ctx, sidOf(cookie))
	h.must(err)
	if len(sess.Codes) != maxCodes {
		t.Errorf("%d codes", len(sess.Codes))
	}
	_, err = h.Redeem(h.ctx, h.client("kubernetes"), last, redirect, verifier)
	wantErr(t, err, nil)
	h.clock.pass(codeMemory + time.Minute)
	_, err = h.Authorize(h.ctx, h.request("kubernetes"), cookie, "")
	h.must(err)
	if sess, err = h.session(h.ctx, sidOf(cookie)); err != nil || len(sess.Codes) != 1 {
		t.Errorf("%d codes after they were due to be forgotten, %v", len(sess.Codes), err)
	}
}

func TestRecentsAreBounded(t *testing.T) {
	var r recents
	key := func(i int) string { return fmt.Sprint("kind/", i) }
	for i := range 5 * maxRecents {
		r.put(store.Entry{Key: key(i), Revision: int64(i + 1)})
	}
	if n := len(r.young) + len(r.old); n > 2*maxRecents {
		t.Errorf("%d entries", n)
	}
	newest := 5*maxRecents - 1
	r.put(store.Entry{Key: key(newest), Revision: 1})
	if e, ok := r.get(key(newest)); !ok || e.Revision == 1 {
		t.Errorf("%v %v: an older record took a newer one's place", e, ok)
	}
	r.forget(key(newest))
	if _, ok := r.get(key(newest)); ok {
		t.Error("not forgotten")
	}
}

// Alone there is nothing to remember: reading costs nothing.
func TestNothingIsRememberedAlone(t *testing.T) {
	h := newHouse(t)
	parts := h.Parts
	parts.Alone = true
	s, err := New(h.ctx, h.cfg, parts)
	h.must(err)
	h.Service = s
	h.login("alice", "kubernetes")
	if err := h.guess("alice", "wrong"); !errors.Is(err, ErrCredentials) {
		t.Fatal(err)
	}
	if n := len(s.recents.young); n != 0 {
		t.Errorf("%d records", n)
	}
}
