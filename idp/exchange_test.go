package idp

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
)

func TestExchangeTable(t *testing.T) {
	h := newHouse(t)
	tabard, _ := h.login("alice", BuiltinClient)
	kube, _ := h.login("alice", "kubernetes")
	bobs, _ := h.login("bob", BuiltinClient)
	head, _ := h.login("alice", "headlamp")
	for _, c := range []struct {
		name, client, subject, audience string
		want                            error
		aud                             []any
	}{
		{"the plugin for a cluster", BuiltinClient, tabard.IDToken, "kubernetes", nil, []any{"kubernetes"}},
		{"the plugin for another", BuiltinClient, tabard.IDToken, "dev", nil, []any{"dev"}},
		{"the plugin for a client of a cluster", BuiltinClient, tabard.IDToken, "headlamp", nil, []any{"headlamp", "kubernetes"}},
		{"within a cluster", "headlamp", head.IDToken, "kubernetes", nil, []any{"kubernetes"}},
		{"to another cluster", "headlamp", head.IDToken, "dev", ErrInvalidTarget, nil},
		{"a cluster's client to another cluster", "kubernetes", kube.IDToken, "dev", ErrInvalidTarget, nil},
		{"a cluster's client to Tabard", "kubernetes", kube.IDToken, BuiltinClient, ErrInvalidTarget, nil},
		{"no such audience", BuiltinClient, tabard.IDToken, "nowhere", ErrInvalidTarget, nil},
		{"a token of another client", BuiltinClient, kube.IDToken, "dev", ErrInvalidGrant, nil},
		{"a token that names us as audience alone", "kubernetes", head.IDToken, "kubernetes", ErrInvalidGrant, nil},
		{"an access token", BuiltinClient, tabard.AccessToken, "kubernetes", ErrInvalidGrant, nil},
		{"a refresh token", BuiltinClient, tabard.RefreshToken, "kubernetes", ErrInvalidGrant, nil},
		{"nothing", BuiltinClient, "", "kubernetes", ErrInvalidGrant, nil},
		{"a rule says no", BuiltinClient, bobs.IDToken, "vault", ErrNoAccess, nil},
	} {
		got, err := h.Exchange(h.ctx, h.client(c.client), c.subject, c.audience)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
			continue
		}
		if err != nil {
			continue
		}
		claims := h.claims(got.IDToken)
		if aud, _ := claims["aud"].([]any); !slices.Equal(aud, c.aud) || claims["azp"] != c.client || got.AccessToken != "" || got.RefreshToken != "" {
			t.Errorf("%s: claims %v", c.name, claims)
		}
	}
}

// A token made by exchange is no way back to where it came from.
func TestExchangeDoesNotGoBack(t *testing.T) {
	h := newHouse(t)
	tabard, _ := h.login("alice", BuiltinClient)
	forCluster, err := h.Exchange(h.ctx, h.client(BuiltinClient), tabard.IDToken, "kubernetes")
	h.must(err)
	for _, client := range []string{BuiltinClient, "kubernetes"} {
		_, err = h.Exchange(h.ctx, h.client(client), forCluster.IDToken, "dev")
		wantErr(t, err, ErrInvalidGrant)
	}
	_, err = h.Authenticate(h.ctx, forCluster.IDToken)
	wantErr(t, err, ErrNoSession)
}

// Whoever has seen an id_token of a few minutes must not make it last as long as the
// session by exchanging it for itself.
func TestExchangeProlongsNothing(t *testing.T) {
	h := newHouse(t)
	for client, audiences := range map[string][]string{BuiltinClient: {BuiltinClient}, "kubernetes": {"kubernetes", "headlamp"}} {
		for _, audience := range audiences {
			tokens, _ := h.login("alice", client)
			h.clock.pass(4 * time.Minute)
			got, err := h.Exchange(h.ctx, h.client(client), tokens.IDToken, audience)
			h.must(err)
			if !got.Expires.Equal(tokens.Expires.Truncate(time.Second)) || h.claims(got.IDToken)["exp"] != h.claims(tokens.IDToken)["exp"] {
				t.Errorf("%s to %s: ends %s, the subject token %s", client, audience, got.Expires, tokens.Expires)
			}
			h.clock.pass(time.Minute)
			_, err = h.Exchange(h.ctx, h.client(client), got.IDToken, audience)
			wantErr(t, err, ErrInvalidGrant)
		}
	}
}

func TestExchangeFollowsTheSession(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Tokens.IDTokenLifetime = 4 * time.Hour })
	tabard, cookie := h.login("alice", BuiltinClient)
	exchange := func(audience string) error {
		_, err := h.Exchange(h.ctx, h.client(BuiltinClient), tabard.IDToken, audience)
		return err
	}
	h.corp.fail(errUnreachable)
	wantErr(t, exchange("kubernetes"), ErrUnavailable)
	h.corp.fail(nil)
	h.clock.pass(time.Hour)
	wantErr(t, exchange("dev"), ErrInvalidGrant) // an hour idle is that cluster's limit
	wantErr(t, exchange("kubernetes"), nil)
	h.must(h.EndBrowser(h.ctx, cookie))
	wantErr(t, exchange("kubernetes"), ErrInvalidGrant)
	tabard, _ = h.login("alice", BuiltinClient)
	h.corp.change("alice", func(e *entry) { e.State = directory.Disabled })
	wantErr(t, exchange("kubernetes"), ErrInvalidGrant)
}

func TestRevoke(t *testing.T) {
	h := newHouse(t)
	kube := h.client("kubernetes")
	for _, c := range []struct {
		name          string
		token         func(Tokens) string
		by            string
		family, whole bool // what is gone afterwards
	}{
		{"refresh token", func(t Tokens) string { return t.RefreshToken }, "kubernetes", true, false},
		{"access token", func(t Tokens) string { return t.AccessToken }, "kubernetes", true, false},
		{"by another client", func(t Tokens) string { return t.RefreshToken }, "dev", false, false},
		{"access token, by another client", func(t Tokens) string { return t.AccessToken }, "dev", false, false},
		{"unknown", func(Tokens) string { return "what" }, "kubernetes", false, false},
		{"empty", func(Tokens) string { return "" }, "kubernetes", false, false},
		{"id_token", func(t Tokens) string { return t.IDToken }, "kubernetes", false, false},
		{"forged", func(t Tokens) string { return t.RefreshToken + "x" }, "kubernetes", false, false},
	} {
		tokens, cookie := h.login("alice", "kubernetes")
		h.must(h.Revoke(h.ctx, h.client(c.by), c.token(tokens)))
		h.must(h.Revoke(h.ctx, h.client(c.by), c.token(tokens)))
		if _, err := h.Refresh(h.ctx, kube, tokens.RefreshToken); (err != nil) != c.family {
			t.Errorf("%s: refresh afterwards: %v", c.name, err)
		}
		if _, err := h.UserInfo(h.ctx, tokens.AccessToken); (err != nil) != c.family {
			t.Errorf("%s: userinfo afterwards: %v", c.name, err)
		}
		if h.alive(cookie) == c.whole {
			t.Errorf("%s: the browser's session is alive: %v", c.name, !c.whole)
		}
	}
	tokens, cookie := h.login("alice", BuiltinClient)
	h.must(h.Revoke(h.ctx, h.client(BuiltinClient), tokens.RefreshToken))
	if h.alive(cookie) {
		t.Error("signing the built-in client out left the session")
	}
	d := h.startDevice("kubernetes")
	h.must(h.DecideDevice(h.ctx, h.browserOf("bob"), d.UserCode, true))
	tokens, err := h.PollDevice(h.ctx, kube, d.DeviceCode)
	h.must(err)
	h.must(h.Revoke(h.ctx, kube, tokens.RefreshToken))
	if h.alive(tokens.RefreshToken) {
		t.Error("a session that nothing holds any more goes on")
	}
}

func TestIntrospect(t *testing.T) {
	h := newHouse(t)
	head := h.client("headlamp")
	mine, _ := h.login("alice", "headlamp")
	for range 2 { // so that the first refresh token is two generations old
		got, err := h.Refresh(h.ctx, head, mine.RefreshToken)
		h.must(err)
		mine.RefreshToken = got.RefreshToken
	}
	old, _ := h.login("alice", "headlamp")
	stale := old.RefreshToken
	for range 2 {
		got, err := h.Refresh(h.ctx, head, old.RefreshToken)
		h.must(err)
		old.RefreshToken = got.RefreshToken
	}
	theirs, _ := h.login("alice", "kubernetes")
	h.clock.pass(time.Minute)
	for _, c := range []struct{ name, token, kind string }{
		{"id_token", mine.IDToken, "id_token"},
		{"access token", mine.AccessToken, "access_token"},
		{"refresh token", mine.RefreshToken, "refresh_token"},
		{"id_token of another client", theirs.IDToken, ""},
		{"access token of another client", theirs.AccessToken, ""},
		{"refresh token of another client", theirs.RefreshToken, ""},
		{"reused refresh token", stale, ""},
		{"nonsense", "a.b.c", ""},
		{"empty", "", ""},
	} {
		in, err := h.Introspect(h.ctx, head, c.token)
		if err != nil || in.Active != (c.kind != "") || in.Type != c.kind {
			t.Errorf("%s: %+v, %v", c.name, in, err)
		}
		if in.Active && (in.Username != "alice" || in.Subject != "corp."+aliceID || !in.Expires.After(h.Now())) {
			t.Errorf("%s: %+v", c.name, in)
		}
	}
	if !h.alive(stale) {
		t.Error("asking about a token ended its session")
	}
	h.must(h.Revoke(h.ctx, head, mine.RefreshToken))
	for _, token := range []string{mine.AccessToken, mine.RefreshToken} {
		if in, err := h.Introspect(h.ctx, head, token); err != nil || in.Active {
			t.Errorf("revoked: %+v, %v", in, err)
		}
	}
	h.store.Read(func([]string) error { return errBroken })
	_, err := h.Introspect(h.ctx, head, theirs.RefreshToken)
	wantErr(t, err, errBroken) // not known is not inactive
}

func TestAccessTokens(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", BuiltinClient)
	info, err := h.UserInfo(h.ctx, tokens.AccessToken)
	h.must(err)
	if info["sub"] != "corp."+aliceID || info["email"] != "alice@corp.test" || info["email_verified"] != true || fmt.Sprint(info["groups"]) == "<nil>" {
		t.Errorf("userinfo says %v", info)
	}
	var content accessToken
	h.must(h.seals.open("access", tokens.AccessToken, &content))
	otherPurpose, err := h.seals.seal("logout", content)
	h.must(err)
	noFamily, err := h.seals.seal("access", accessToken{content.Session, "gone", content.Client, content.Expires})
	h.must(err)
	for name, raw := range map[string]string{"tampered": tamper(tokens.AccessToken), "other purpose": otherPurpose, "family gone": noFamily, "empty": "", "id_token": tokens.IDToken} {
		if _, err := h.UserInfo(h.ctx, raw); !errors.Is(err, ErrNoSession) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bearer := range []string{tokens.AccessToken, tokens.IDToken} {
		sess, err := h.Authenticate(h.ctx, bearer)
		if err != nil || sess.Username != "alice" {
			t.Errorf("%v, %v", sess, err)
		}
	}
	kube, _ := h.login("alice", "kubernetes")
	for _, bearer := range []string{kube.AccessToken, kube.IDToken, tokens.RefreshToken, "", "a.b.c"} {
		_, err := h.Authenticate(h.ctx, bearer)
		wantErr(t, err, ErrNoSession)
	}
	h.clock.pass(5 * time.Minute)
	for _, bearer := range []string{tokens.AccessToken, tokens.IDToken} {
		_, err := h.Authenticate(h.ctx, bearer)
		wantErr(t, err, ErrNoSession)
	}
}

func TestLogout(t *testing.T) {
	h := newHouse(t)
	tokens, cookie := h.login("alice", "headlamp")
	_, others := h.login("alice", "headlamp")
	logout := func(cookie, hint, client, to, state string) (LogoutRequest, string, bool, error) {
		return h.Logout(h.ctx, cookie, hint, client, to, state)
	}
	for name, c := range map[string]struct{ hint, client, to, state string }{
		"hint is no token":           {"a.b.c", "", "", ""},
		"hint of another client":     {tokens.IDToken, "kubernetes", "", ""},
		"unregistered URI":           {tokens.IDToken, "", "https://evil.test/", ""},
		"URI of nobody":              {"", "", headlampBye, ""},
		"unknown client":             {"", "nobody", "", ""},
		"redirect URI, not for this": {tokens.IDToken, "", headlampURI, ""},
		"long state":                 {tokens.IDToken, "", headlampBye, string(make([]byte, MaxState+1))},
	} {
		if _, _, done, err := logout(cookie, c.hint, c.client, c.to, c.state); !errors.Is(err, ErrInvalidClient) || done {
			t.Errorf("%s: %v, done %v", name, err, done)
		}
	}
	for name, c := range map[string]struct{ cookie, hint string }{"a hint alone": {"", tokens.IDToken}, "another session": {others, tokens.IDToken}, "no hint": {cookie, ""}} {
		r, sealed, done, err := logout(c.cookie, c.hint, "headlamp", headlampBye, "st")
		if err != nil || done || sealed == "" || r.RedirectURI != headlampBye+"?state=st" {
			t.Errorf("%s: %+v, done %v, %v", name, r, done, err)
		}
		opened, err := h.OpenLogout(sealed)
		if err != nil || opened.RedirectURI != r.RedirectURI || opened.ClientName != "headlamp" {
			t.Errorf("%s: opened as %+v, %v", name, opened, err)
		}
		if _, err := h.OpenLogout(tamper(sealed)); !errors.Is(err, ErrExpired) {
			t.Errorf("%s: tampered: %v", name, err)
		}
	}
	h.clock.pass(time.Hour) // the hint may have expired
	r, _, done, err := logout(cookie, tokens.IDToken, "", headlampBye, "")
	if err != nil || !done || r.RedirectURI != headlampBye || h.alive(cookie) {
		t.Errorf("the session's own hint: %+v, done %v, %v", r, done, err)
	}
	if !h.alive(others) {
		t.Error("it ended another session too")
	}
	_, sealed, _, err := logout("", "", "", "", "")
	h.must(err)
	h.clock.pass(requestLife + time.Second)
	_, err = h.OpenLogout(sealed)
	wantErr(t, err, ErrExpired)
}
