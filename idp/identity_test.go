package idp

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/store"
)

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

// TestRecheck follows a stream that outlives its token, until each right ends in turn.
func TestRecheck(t *testing.T) {
	h := newHouse(t)
	sub := "corp." + bobID
	opened := func(client, cluster string) Identity {
		t.Helper()
		tokens, _ := h.login("bob", client)
		h.must(h.Sessions.catchUp(h.ctx, h.disk))
		id, err := h.Identify(h.ctx, cluster, tokens.IDToken)
		h.must(err)
		return id
	}
	id := opened("kubernetes", "prod")
	h.member("platform", groups.KindPerson, sub, h.Now().Add(time.Hour))
	h.clock.pass(30 * time.Minute) // the token has expired
	again, err := h.Recheck(h.ctx, id)
	h.must(err)
	want := id
	want.Groups, want.Ends = again.Groups, h.Now().Add(30*time.Minute)
	if !reflect.DeepEqual(again, want) || !slices.Contains(again.Groups, "platform") || slices.Contains(id.Groups, "platform") {
		t.Errorf("%+v, and then %+v", id, again)
	}
	h.clock.pass(31 * time.Minute)
	if again, err = h.Recheck(h.ctx, again); err != nil || slices.Contains(again.Groups, "platform") {
		t.Errorf("after the membership: %+v, %v", again, err)
	}
	elsewhere, moved := id, id
	elsewhere.Cluster = "none"
	_, err = h.Recheck(h.ctx, elsewhere)
	wantErr(t, err, ErrNoCluster)
	moved.Sub = "corp." + aliceID
	_, err = h.Recheck(h.ctx, moved)
	wantErr(t, err, ErrRefused)

	h.member("vault-users", groups.KindPerson, sub, time.Time{})
	vault := opened("vault", "vault")
	_, err = h.local.Remove(h.ctx, groups.Actor{Operator: true}, "vault-users", 0, groups.KindPerson, sub)
	h.must(err)
	_, err = h.Recheck(h.ctx, vault)
	wantErr(t, err, ErrRefused) // a required group is gone

	local := h.Groups
	h.Groups = behind{}
	if _, err := h.Recheck(h.ctx, id); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("without groups: %v, want neither yes nor no", err)
	}
	h.Groups = local
	h.must(h.EndSession(h.ctx, groups.Actor{Sub: sub}, false, id.Session))
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	_, err = h.Recheck(h.ctx, id)
	wantErr(t, err, ErrRefused)
	_, err = h.Recheck(h.ctx, opened("kubernetes", "prod"))
	h.must(err) // another session
}

// TestRecheckAfterRotation: a key that retires takes nothing with it, and an emergency
// takes all that its keys have signed.
func TestRecheckAfterRotation(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("bob", "kubernetes")
	id, err := h.Identify(h.ctx, "prod", tokens.IDToken)
	h.must(err)
	h.must(h.keys.Rotate(h.ctx, false))
	retired := h.clock.at
	h.clock.pass(24*time.Hour + h.cfg.LongestToken() + retireMargin + time.Minute)
	for _, alg := range h.cfg.KeyAlgorithms() {
		h.must(h.keys.refresh(h.ctx, alg))
	}
	h.clock.pass(retired.Sub(h.clock.at)) // back, or the session has ended
	if slices.Contains(published(h.keys), id.KeyID) {
		t.Fatal("the key has not retired")
	}
	_, err = h.Recheck(h.ctx, id)
	h.must(err)
	for range 2 {
		h.must(h.keys.Rotate(h.ctx, true))
		_, err = h.Recheck(h.ctx, id)
		wantErr(t, err, ErrRefused)
	}
	id.KeyID = ""
	_, err = h.Recheck(h.ctx, id)
	wantErr(t, err, ErrRefused)
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

func BenchmarkRecheck(b *testing.B) {
	h := newHouse(b)
	tokens, _ := h.login("bob", "kubernetes")
	h.member("platform", groups.KindPerson, "corp."+bobID, time.Time{})
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	id, err := h.Identify(h.ctx, "prod", tokens.IDToken)
	h.must(err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Recheck(h.ctx, id); err != nil {
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
	again, err := w.Recheck(w.ctx, id)
	if err != nil || again.Username != id.Username || len(again.Groups) != 2 || !again.Ends.After(w.Now()) {
		t.Errorf("its stream: %+v, %v", again, err)
	}
	w.clock.pass(again.Ends.Sub(w.Now()))
	_, err = w.Recheck(w.ctx, again)
	wantErr(t, err, ErrRefused) // it is as old as a person's session may get
	w.clock.pass(-time.Hour)
	_, err = w.Recheck(w.ctx, again)
	w.must(err)
	delete(w.clients, "ci")
	_, err = w.Recheck(w.ctx, again)
	wantErr(t, err, ErrRefused)
}
