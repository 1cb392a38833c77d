package idp

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
)

func TestAuthorizeRefuses(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		name   string
		client string
		change func(*AuthRequest)
		code   string // "" accepted
	}{
		{"as it should be", "kubernetes", func(*AuthRequest) {}, ""},
		{"confidential without PKCE", "headlamp", func(r *AuthRequest) { r.CodeChallenge, r.ChallengeBy = "", "" }, ""},
		{"public without PKCE", "kubernetes", func(r *AuthRequest) { r.CodeChallenge, r.ChallengeBy = "", "" }, "invalid_request"},
		{"method without challenge", "headlamp", func(r *AuthRequest) { r.CodeChallenge = "" }, "invalid_request"},
		{"plain", "kubernetes", func(r *AuthRequest) { r.ChallengeBy = "plain" }, "invalid_request"},
		{"no method, which means plain", "kubernetes", func(r *AuthRequest) { r.ChallengeBy = "" }, "invalid_request"},
		{"challenge of the wrong form", "kubernetes", func(r *AuthRequest) { r.CodeChallenge = "short" }, "invalid_request"},
		{"no response_type", "kubernetes", func(r *AuthRequest) { r.ResponseType = "" }, "invalid_request"},
		{"token", "kubernetes", func(r *AuthRequest) { r.ResponseType = "token" }, "unsupported_response_type"},
		{"hybrid", "kubernetes", func(r *AuthRequest) { r.ResponseType = "code id_token" }, "unsupported_response_type"},
		{"none and login", "kubernetes", func(r *AuthRequest) { r.Prompt = []string{"none", "login"} }, "invalid_request"},
		{"none without a session", "kubernetes", func(r *AuthRequest) { r.Prompt = []string{"none"} }, "login_required"},
		{"long state", "kubernetes", func(r *AuthRequest) { r.State = strings.Repeat("a", 2049) }, "invalid_request"},
		{"NUL in state", "kubernetes", func(r *AuthRequest) { r.State = "a\x00" }, "invalid_request"},
		{"line break in nonce", "kubernetes", func(r *AuthRequest) { r.Nonce = "a\r\nb" }, "invalid_request"},
		{"state is not UTF-8", "kubernetes", func(r *AuthRequest) { r.State = "\xff" }, "invalid_request"},
	} {
		r := h.request(c.client)
		c.change(&r)
		a, err := h.Authorize(h.ctx, r, "", "")
		var asked *RequestError
		errors.As(err, &asked)
		if c.code == "" && (err != nil || a.Sealed == "") || c.code != "" && (asked == nil || asked.Code != c.code) {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
}

// The longest request that is accepted still opens.
func TestSealedRequestKeepsEverything(t *testing.T) {
	h := newHouse(t)
	r := h.request("kubernetes")
	r.State, r.Nonce, r.LoginHint = strings.Repeat("<", MaxState), strings.Repeat("&", 1024), strings.Repeat("\x01", 256)
	a, err := h.Authorize(h.ctx, r, "", "")
	h.must(err)
	got, err := h.OpenRequest(a.Sealed, a.Binding)
	h.must(err)
	if got.State != r.State || got.Nonce != r.Nonce || got.CodeChallenge != challenge || got.ClientName != "prod" {
		t.Errorf("opened as %+v", got)
	}
}

func TestSealedRequestIsBound(t *testing.T) {
	h := newHouse(t)
	a, err := h.Authorize(h.ctx, h.request("kubernetes"), "", "")
	h.must(err)
	other, err := h.Authorize(h.ctx, h.request("kubernetes"), "", "")
	h.must(err)
	again, err := h.Authorize(h.ctx, h.request("kubernetes"), "", a.Binding)
	h.must(err)
	if again.Binding != a.Binding {
		t.Error("a second tab takes the first one's cookie away")
	}
	logout, err := h.seals.seal("logout", AuthRequest{ClientID: "kubernetes", Binding: hashSecret(a.Binding), Issued: h.Now()})
	h.must(err)
	for name, c := range map[string]struct{ sealed, binding string }{
		"another browser":  {a.Sealed, other.Binding},
		"no cookie":        {a.Sealed, ""},
		"another purpose":  {logout, a.Binding},
		"tampered":         {tamper(a.Sealed), a.Binding},
		"empty":            {"", a.Binding},
		"not base64":       {"!", a.Binding},
		"longer than ever": {strings.Repeat("A", maxSealed+1), a.Binding},
	} {
		if _, err := h.OpenRequest(c.sealed, c.binding); !errors.Is(err, ErrExpired) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.clock.pass(requestLife + time.Second)
	_, err = h.OpenRequest(a.Sealed, a.Binding)
	wantErr(t, err, ErrExpired)
}

// tamper changes one letter in the middle.
func tamper(s string) string {
	b := []byte(s)
	if b[len(b)/2]++; b[len(b)/2] > 'z' || b[len(b)/2] < 'A' {
		b[len(b)/2] = 'A'
	}
	return string(b)
}

func TestSingleSignOn(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	_, bobs := h.login("bob", "kubernetes")
	age := func(d time.Duration) *time.Duration { return &d }
	ask := func(client string, change func(*AuthRequest)) (Authorized, error) {
		r := h.request(client)
		if change != nil {
			change(&r)
		}
		return h.Authorize(h.ctx, r, cookie, "")
	}
	a, err := ask("headlamp", nil)
	h.must(err)
	code := codeIn(t, a.Redirect)
	_, err = h.Redeem(h.ctx, h.client("kubernetes"), code, headlampURI, verifier) // the code is bound to the other client
	wantErr(t, err, ErrInvalidGrant)
	tokens, err := h.Redeem(h.ctx, h.client("headlamp"), code, headlampURI, verifier)
	h.must(err)
	if sidOf(tokens.RefreshToken) != sidOf(cookie) {
		t.Error("not the browser's session")
	}
	for name, change := range map[string]func(*AuthRequest){
		"prompt=login":          func(r *AuthRequest) { r.Prompt = []string{"login"} },
		"prompt=select_account": func(r *AuthRequest) { r.Prompt = []string{"select_account"} },
		"max_age=0":             func(r *AuthRequest) { r.MaxAge = age(0) },
		"hint of another":       func(r *AuthRequest) { r.HintedSub = "corp." + bobID },
	} {
		if a, err := ask("kubernetes", change); err != nil || a.Redirect != "" || a.Sealed == "" {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if a, err := ask("kubernetes", func(r *AuthRequest) { r.MaxAge, r.HintedSub = age(time.Hour), "corp."+aliceID }); err != nil || a.Redirect == "" {
		t.Errorf("young enough and the same person: %+v, %v", a, err)
	}
	h.clock.pass(3 * time.Hour) // cluster dev takes no older sign-in, whatever the browser's session says
	if a, err := ask("dev", nil); err != nil || a.Redirect != "" {
		t.Errorf("past the cluster's maxLifetime: %+v, %v", a, err)
	}
	if a, err := ask("kubernetes", nil); err != nil || a.Redirect == "" {
		t.Errorf("another cluster: %+v, %v", a, err)
	}
	cookie = bobs
	_, err = ask("vault", nil)
	wantErr(t, err, ErrNoAccess)
	if got := h.trail.said("token.issue"); !strings.HasPrefix(got[len(got)-1], "denied") {
		t.Errorf("the trail says %q", got)
	}
}

func TestSingleSignOnAsksTheDirectory(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	sso := func(prompt ...string) (Authorized, error) {
		r := h.request("kubernetes")
		r.Prompt = prompt
		return h.Authorize(h.ctx, r, cookie, "")
	}
	h.corp.fail(errUnreachable)
	if a, err := sso(); err != nil || a.Sealed == "" {
		t.Errorf("in an outage: %+v, %v; want the sign-in page", a, err)
	}
	_, err := sso("none")
	wantErr(t, err, ErrUnavailable)
	h.corp.fail(nil)
	h.corp.change("alice", func(e *entry) { e.findErr = directory.ErrUnusable })
	_, err = sso()
	wantErr(t, err, ErrNoAccess)
	h.corp.change("alice", func(e *entry) { e.findErr, e.State = nil, directory.Locked })
	if a, err := sso(); err != nil || a.Sealed == "" {
		t.Errorf("of a locked account: %+v, %v; want the sign-in page", a, err)
	}
	if _, err := h.Browser(h.ctx, cookie); !errors.Is(err, ErrNoSession) {
		t.Errorf("the session of a locked account: %v", err)
	}
}

// A browser that restores fifty tabs gets fifty codes.
func TestSingleSignOnFiftyAtOnce(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	all(50, func(int) {
		if a, err := h.Authorize(h.ctx, h.request("kubernetes"), cookie, ""); err != nil || a.Redirect == "" {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

func TestRedirectWith(t *testing.T) {
	for _, c := range []struct{ uri, want string }{
		{"https://a.test/cb", "https://a.test/cb?code=x%26y"},
		{"https://a.test/cb?own=1", "https://a.test/cb?code=x%26y&own=1"},
		{"com.example.app:/cb", "com.example.app:/cb?code=x%26y"},
	} {
		if got := RedirectWith(c.uri, url.Values{"code": {"x&y"}, "state": {""}}); got != c.want {
			t.Errorf("%s became %s, want %s", c.uri, got, c.want)
		}
	}
}
