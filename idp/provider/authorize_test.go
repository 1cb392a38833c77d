package provider

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/idp"
)

// Without a client and a redirect URI that belong together nothing is redirected.
func TestAuthorizeThatMayNotRedirect(t *testing.T) {
	h := newHouse(t)
	for name, a := range map[string]answer{
		"unknown client":       h.authorize("", "client_id", "<script>nobody"),
		"no client":            h.authorize("", "client_id", "-"),
		"no redirect URI":      h.authorize("", "redirect_uri", "-"),
		"another port":         h.authorize("", "redirect_uri", "http://localhost:8001"),
		"another host":         h.authorize("", "redirect_uri", "https://evil.test/"),
		"of another client":    h.authorize("", "redirect_uri", headlamp),
		"user in loopback":     h.authorize("", "redirect_uri", "http://127.0.0.1:1@evil.test/callback"),
		"line break":           h.authorize("", "redirect_uri", localhost+"\r\nSet-Cookie: a=b"),
		"escaped once more":    h.authorize("", "redirect_uri", url.QueryEscape(localhost)),
		"redirect URI twice":   h.do("GET", "/authorize?"+asking().Encode()+"&redirect_uri=https://evil.test", "", nil),
		"state twice":          h.do("GET", "/authorize?"+asking().Encode()+"&state=x", "", nil),
		"in query and in body": h.do("POST", "/authorize?client_id=kubernetes", asking().Encode(), formType),
		"broken escape":        h.do("GET", "/authorize?state=%zz", "", nil),
		"nothing":              h.do("GET", "/authorize", "", nil),
		"JSON":                 h.do("POST", "/authorize", "{}", http.Header{"Content-Type": {"application/json"}}),
		"with an encoded path": h.do("GET", "/%61uthorize?"+asking().Encode(), "", nil),
		"PUT":                  h.do("PUT", "/authorize?"+asking().Encode(), "", nil),
	} {
		if a.status < 400 || a.status >= 500 || a.header.Get("Location") != "" || a.header.Get("Set-Cookie") != "" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d %v", name, a.status, a.header)
		}
		if strings.Contains(a.body, "<script>") {
			t.Errorf("%s: %s", name, a.body)
		}
	}
}

// Every other fault goes back to the client, with its state and who says so.
func TestAuthorizeFaultsGoToTheClient(t *testing.T) {
	h := newHouse(t)
	long := strings.Repeat("a", 3000)
	for _, c := range []struct {
		name  string
		pairs []string
		code  string
		state string
	}{
		{"request", []string{"request", "a.b.c"}, "request_not_supported", "st"},
		{"request_uri", []string{"request_uri", "https://a.test"}, "request_uri_not_supported", "st"},
		{"registration", []string{"registration", "{}"}, "registration_not_supported", "st"},
		{"response_mode", []string{"response_mode", "form_post"}, "invalid_request", "st"},
		{"fragment", []string{"response_mode", "fragment"}, "invalid_request", "st"},
		{"plain", []string{"code_challenge_method", "plain"}, "invalid_request", "st"},
		{"no method", []string{"code_challenge_method", "-"}, "invalid_request", "st"},
		{"no PKCE", []string{"code_challenge_method", "-", "code_challenge", "-"}, "invalid_request", "st"},
		{"token", []string{"response_type", "token"}, "unsupported_response_type", "st"},
		{"id_token", []string{"response_type", "id_token"}, "unsupported_response_type", "st"},
		{"no response_type", []string{"response_type", "-"}, "invalid_request", "st"},
		{"prompt=none", []string{"prompt", "none"}, "login_required", "st"},
		{"prompt=none login", []string{"prompt", "none login"}, "invalid_request", "st"},
		{"max_age is no number", []string{"max_age", "soon"}, "invalid_request", "st"},
		{"max_age is negative", []string{"max_age", "-1"}, "invalid_request", "st"},
		{"max_age is huge", []string{"max_age", "99999999999999999999"}, "invalid_request", "st"},
		{"max_age is empty", []string{"max_age", ""}, "invalid_request", "st"},
		{"hint of nobody", []string{"id_token_hint", "a.b.c"}, "invalid_request", "st"},
		{"NUL in state", []string{"state", "a\x00b"}, "invalid_request", "a\x00b"},
		{"line break in state", []string{"state", "a\r\nSet-Cookie: a=b"}, "invalid_request", "a\r\nSet-Cookie: a=b"},
		{"long state", []string{"state", long}, "invalid_request", ""},
		{"long nonce", []string{"nonce", long}, "invalid_request", "st"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := h.authorize("", c.pairs...)
			to := a.header.Get("Location")
			if a.status != http.StatusFound || !strings.HasPrefix(to, localhost+"?") || param(t, to, "error") != c.code ||
				param(t, to, "state") != c.state || param(t, to, "iss") != h.srv.URL || param(t, to, "error_description") == "" {
				t.Errorf("%d to %s, want %s", a.status, to, c.code)
			}
			if strings.ContainsAny(to, "\r\n") || a.header.Get("Set-Cookie") != "" {
				t.Errorf("headers %v", a.header)
			}
		})
	}
	to := h.authorize("", "client_id", "headlamp", "redirect_uri", headlamp+"?own=1", "response_type", "token").header.Get("Location")
	if param(t, to, "own") != "1" || param(t, to, "error") == "" {
		t.Errorf("the URI's own parameter is lost: %s", to)
	}
}

func TestAuthorizeLeadsToSignIn(t *testing.T) {
	h := newHouse(t)
	for name, a := range map[string]answer{
		"GET":                h.authorize(""),
		"POST":               h.do("POST", "/authorize", asking().Encode(), formType),
		"unknown parameters": h.authorize("", "foo", "bar", "claims", "{", "display", "what"),
		"malformed locales":  h.authorize("", "ui_locales", "!!! \x00 de", "acr_values", "\xff"),
		"malformed prompt":   h.authorize("", "prompt", "what \x00 ever"),
		"prompt=login":       h.authorize("", "prompt", "login"),
		"unknown scopes":     h.authorize("", "scope", "a b\x00c"),
		"no scope":           h.authorize("", "scope", "-"),
		"response_mode":      h.authorize("", "response_mode", "query"),
		"loopback port":      h.authorize("", "redirect_uri", "http://127.0.0.1:54321/callback"),
		"someone's cookies":  h.authorize(idp.SessionCookie + "=x; " + idp.SignInCookie + "=y"),
	} {
		if a.status != http.StatusFound || !strings.HasPrefix(a.header.Get("Location"), h.srv.URL+"/sign-in?request=") || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v", name, a.status, a.header)
		}
		if c := a.header.Get("Set-Cookie"); !strings.HasPrefix(c, idp.SignInCookie+"=") || !strings.HasSuffix(c, "; Path=/; HttpOnly; Secure; SameSite=Lax") {
			t.Errorf("%s: cookie %q", name, c)
		}
		in := h.signIn(a)
		if code := param(t, in.Redirect, "code"); code == "" || param(t, in.Redirect, "state") != "st" || param(t, in.Redirect, "iss") != h.srv.URL {
			t.Errorf("%s: on to %s", name, in.Redirect)
		}
	}
}

func TestAuthorizeWithASession(t *testing.T) {
	h := newHouse(t)
	tokens, cookie := h.tokens()
	hint := tokens["id_token"].(string)
	for name, c := range map[string]struct {
		pairs []string
		sso   bool
	}{
		"plain":          {nil, true},
		"prompt=none":    {[]string{"prompt", "none"}, true},
		"young enough":   {[]string{"max_age", "3600"}, true},
		"hint":           {[]string{"id_token_hint", hint}, true},
		"another client": {[]string{"client_id", "headlamp", "redirect_uri", headlamp}, true},
		"prompt=login":   {[]string{"prompt", "login"}, false},
		"prompt=select":  {[]string{"prompt", "select_account"}, false},
		"max_age=0":      {[]string{"max_age", "0"}, false},
	} {
		to := h.authorize(cookie, c.pairs...).header.Get("Location")
		if (param(t, to, "code") != "") != c.sso || strings.HasPrefix(to, h.srv.URL+"/sign-in") == c.sso {
			t.Errorf("%s: to %s", name, to)
		}
	}
	to := h.authorize(cookie, "client_id", "vault").header.Get("Location")
	if param(t, to, "error") != "access_denied" || !strings.HasPrefix(to, localhost) {
		t.Errorf("without access: to %s", to)
	}
	h.corp.fail(errUnreachable)
	to = h.authorize(cookie, "prompt", "none").header.Get("Location")
	if param(t, to, "error") != "temporarily_unavailable" || strings.Contains(to, "10.1.2.3") || !strings.Contains(param(t, to, "error_description"), requestID) {
		t.Errorf("in an outage: to %s", to)
	}
}

func TestLogoutEndpoint(t *testing.T) {
	h := newHouse(t)
	tokens, cookie := h.tokens()
	hint := tokens["id_token"].(string)
	ask := func(cookie string, pairs ...string) answer {
		return h.do("GET", "/logout?"+form(pairs...).Encode(), "", with(nil, "Cookie", cookie))
	}
	for name, a := range map[string]answer{
		"unregistered URI": ask(cookie, "id_token_hint", hint, "post_logout_redirect_uri", "https://evil.test"),
		"URI of nobody":    ask(cookie, "post_logout_redirect_uri", headlamp),
		"no such client":   ask(cookie, "client_id", "nobody"),
		"hint of nobody":   ask(cookie, "id_token_hint", "x"),
	} {
		if a.status != 400 || a.header.Get("Location") != "" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") || strings.Contains(a.body, "evil") {
			t.Errorf("%s: %d %v %s", name, a.status, a.header, a.body)
		}
	}
	for name, a := range map[string]answer{"nothing": ask(cookie), "a hint without the session": ask("", "id_token_hint", hint), "a client": ask(cookie, "client_id", "headlamp", "post_logout_redirect_uri", headlamp)} {
		if a.status != 302 || !strings.HasPrefix(a.header.Get("Location"), h.srv.URL+"/sign-out?request=") || a.header.Get("Set-Cookie") != "" {
			t.Errorf("%s: %d %v", name, a.status, a.header)
		}
	}
	a := h.do("POST", "/logout", form("id_token_hint", hint).Encode(), with(formType, "Cookie", cookie))
	if a.status != 302 || a.header.Get("Location") != h.srv.URL+"/signed-out" || !strings.Contains(a.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("%d %v", a.status, a.header)
	}
	if to := h.authorize(cookie, "prompt", "none").header.Get("Location"); param(t, to, "error") != "login_required" {
		t.Errorf("the session goes on: %s", to)
	}
}
