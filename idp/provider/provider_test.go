package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

func TestDiscoveryDocument(t *testing.T) {
	h := newHouse(t)
	a := h.do("GET", "/.well-known/openid-configuration", "", http.Header{"Origin": {"https://evil.test"}})
	if a.status != 200 || a.json["issuer"] != h.srv.URL || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	for field, path := range map[string]string{
		"authorization_endpoint": "/authorize", "token_endpoint": "/token", "userinfo_endpoint": "/userinfo", "jwks_uri": "/keys",
		"device_authorization_endpoint": "/device_authorization", "revocation_endpoint": "/revoke", "introspection_endpoint": "/introspect", "end_session_endpoint": "/logout",
	} {
		if a.json[field] != h.srv.URL+path || !slices.Contains(Paths(), path) {
			t.Errorf("%s is %v", field, a.json[field])
		}
	}
	for field, want := range map[string]string{
		"response_types_supported": "[code]", "code_challenge_methods_supported": "[S256]", "subject_types_supported": "[public]",
		"id_token_signing_alg_values_supported": "[ES256]", "authorization_response_iss_parameter_supported": "true",
		"token_endpoint_auth_methods_supported":            "[none client_secret_basic client_secret_post private_key_jwt]",
		"token_endpoint_auth_signing_alg_values_supported": "[RS256 ES256 EdDSA]",
		"request_parameter_supported":                      "false", "request_uri_parameter_supported": "false", "claims_parameter_supported": "false",
		"grant_types_supported": "[authorization_code refresh_token client_credentials urn:ietf:params:oauth:grant-type:device_code urn:ietf:params:oauth:grant-type:token-exchange]",
	} {
		if got := fmt.Sprint(a.json[field]); got != want {
			t.Errorf("%s is %s, want %s", field, got, want)
		}
	}
	if again := h.do("GET", MetadataPath, "", nil); again.status != 200 || again.body != a.body {
		t.Errorf("RFC 8414: %d %s", again.status, again.body)
	}
}

// An API server trusts a max-age over an unknown kid, so there must be none.
func TestKeysAreNotCached(t *testing.T) {
	h := newHouse(t)
	a := h.do("GET", "/keys", "", nil)
	if _, there := a.header["Cache-Control"]; there || a.status != 200 || a.header.Get("Expires") != "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if strings.Contains(a.body, `"d"`) {
		t.Fatal("a private key is published")
	}
	var set jose.JSONWebKeySet
	h.must(json.Unmarshal([]byte(a.body), &set))
	tokens, _ := h.tokens()
	jws, err := jose.ParseSignedCompact(tokens["id_token"].(string), []jose.SignatureAlgorithm{jose.ES256})
	h.must(err)
	keys := set.Key(jws.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		t.Fatalf("the token's key is published %d times", len(keys))
	}
	if _, err := jws.Verify(keys[0]); err != nil {
		t.Error(err)
	}
	if a := h.do("POST", "/keys", "", nil); a.status != 405 || a.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := h.do("GET", "/healthz", "", nil); a.status != 404 {
		t.Errorf("the library's own routes answer: %d", a.status)
	}
}

func TestNoCrossOriginAnswers(t *testing.T) {
	h := newHouse(t)
	for _, path := range Paths() {
		for _, method := range []string{"OPTIONS", "GET", "POST"} {
			a := h.do(method, path, "", http.Header{"Origin": {"https://evil.test"}, "Access-Control-Request-Method": {"POST"}})
			for name := range a.header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s %s: %s", method, path, name)
				}
			}
			if a.status >= 500 || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %d %v", method, path, a.status, a.header)
			}
		}
	}
}

// A panic answers like any other fault of ours, and the cause stays in the log.
func TestPanic(t *testing.T) {
	log := &logLines{}
	l := logrus.New()
	l.SetOutput(log)
	broken := guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret cause") }), Config{ErrorPage: errorPage, Log: l})
	for path, want := range map[string]string{"/token": "application/json", "/authorize": "text/html"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, path, nil)
		broken.ServeHTTP(w, r.WithContext(audit.WithOrigin(t.Context(), audit.Origin{RequestID: requestID})))
		if w.Code != 500 || !strings.HasPrefix(w.Header().Get("Content-Type"), want) || strings.Contains(w.Body.String(), "cause") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		if path == "/token" && !strings.Contains(w.Body.String(), requestID) {
			t.Errorf("%s: no id in %s", path, w.Body)
		}
	}
	if !strings.Contains(log.text(), "secret cause") || !strings.Contains(log.text(), requestID) {
		t.Errorf("the log says %s", log.text())
	}
}

func TestFaultsTable(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("ldap://10.1.2.3: %w", err) }
	for _, c := range []struct {
		err    error
		code   string
		status int
	}{
		{wrap(idp.ErrUnavailable), "temporarily_unavailable", 503},
		{fmt.Errorf("%w: %w", idp.ErrUnavailable, idp.ErrInvalidGrant), "temporarily_unavailable", 503},
		{wrap(groups.ErrStale), "temporarily_unavailable", 503},
		{wrap(store.ErrUnknown), "temporarily_unavailable", 503},
		{wrap(store.ErrConflict), "temporarily_unavailable", 503},
		{wrap(context.DeadlineExceeded), "temporarily_unavailable", 503},
		{wrap(idp.ErrInvalidGrant), "invalid_grant", 400},
		{fmt.Errorf("%w: %w", idp.ErrInvalidGrant, idp.ErrNoSession), "invalid_grant", 400},
		{wrap(idp.ErrNoAccess), "access_denied", 400},
		{wrap(idp.ErrTooMany), "slow_down", 429},
		{&directory.AccountError{State: directory.Disabled}, "access_denied", 400},
		{wrap(io.ErrUnexpectedEOF), "server_error", 500},
	} {
		k := kindOf(c.err)
		if k.code != c.code || k.status != c.status || strings.Contains(k.words, "10.1.2.3") || k.words == "" {
			t.Errorf("%v: %+v", c.err, k)
		}
	}
}

// away reports whether location leaves for somewhere that is not registered.
func away(location string) bool {
	u, err := url.Parse(location)
	if err != nil {
		return true
	}
	return !(location == "" || u.Host == "localhost:8000" || u.Host == "headlamp.test" && u.Scheme == "https" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
}

func FuzzAuthorize(f *testing.F) {
	h := newHouse(f)
	_, cookie := h.code()
	seeds := []url.Values{
		asking(), asking("prompt", "none"), asking("redirect_uri", "https://evil.test"), asking("redirect_uri", "http://127.0.0.1:1@evil.test/callback"),
		asking("max_age", "9223372036854775807"), asking("state", "\r\n"), asking("claims", "{"), asking("ui_locales", "\x00"), asking("request", ""),
		asking("client_id", "headlamp", "redirect_uri", headlamp), {},
	}
	for _, s := range seeds {
		f.Add(s.Encode(), "", true)
		f.Add("", s.Encode(), false)
	}
	f.Fuzz(func(t *testing.T, query, body string, signedIn bool) {
		r := httptest.NewRequest(http.MethodGet, "/authorize", nil)
		if body != "" {
			r = httptest.NewRequest(http.MethodPost, "/authorize", strings.NewReader(body))
			r.Header.Set("Content-Type", formType.Get("Content-Type"))
		}
		r.URL.RawQuery = query
		if signedIn {
			r.Header.Set("Cookie", cookie)
		}
		w := httptest.NewRecorder()
		h.srv.Config.Handler.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if to := w.Header().Get("Location"); away(to) {
			t.Errorf("redirected to %s", to)
		}
	})
}

func FuzzLogout(f *testing.F) {
	h := newHouse(f)
	tokens, cookie := h.tokens()
	f.Add(form("id_token_hint", tokens["id_token"].(string)+"x", "post_logout_redirect_uri", headlamp, "state", "\r\n").Encode(), "", true)
	f.Add(form("client_id", "headlamp", "post_logout_redirect_uri", headlamp+"?own=1").Encode(), "", false)
	f.Add(form("post_logout_redirect_uri", "https://evil.test").Encode(), form("state", "a").Encode(), true)
	f.Add("", form("id_token_hint", "a.b.c", "client_id", "kubernetes").Encode(), true)
	f.Fuzz(func(t *testing.T, query, body string, signedIn bool) {
		r := httptest.NewRequest(http.MethodGet, "/logout", nil)
		if body != "" {
			r = httptest.NewRequest(http.MethodPost, "/logout", strings.NewReader(body))
			r.Header.Set("Content-Type", formType.Get("Content-Type"))
		}
		r.URL.RawQuery = query
		if signedIn {
			r.Header.Set("Cookie", cookie)
		}
		w := httptest.NewRecorder()
		h.srv.Config.Handler.ServeHTTP(w, r)
		to := w.Header().Get("Location")
		if w.Code >= 500 || strings.ContainsAny(to, "\r\n") || !strings.HasPrefix(to, h.srv.URL+"/sign") && away(to) {
			t.Errorf("%d to %q: %s", w.Code, to, w.Body)
		}
	})
}

func FuzzToken(f *testing.F) {
	h := newHouse(f)
	tokens, _ := h.tokens()
	add := func(auth string, pairs ...string) {
		for _, path := range []string{"/token", "/revoke", "/introspect", "/userinfo", "/device_authorization"} {
			f.Add(path, form(pairs...).Encode(), auth)
		}
	}
	add("", "grant_type", "refresh_token", "client_id", "kubernetes", "refresh_token", "a.b.0.c", "token", tokens["access_token"].(string)+"x")
	add(basic("headlamp", headSecret), "grant_type", "authorization_code", "code", "a.b", "redirect_uri", "x", "code_verifier", "y", "token", "a.b.c")
	add("", "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "client_id", "tabard", "subject_token", tokens["id_token"].(string), "subject_token_type", "urn:ietf:params:oauth:token-type:id_token", "audience", "kubernetes")
	add("Bearer \x00", "access_token", "x", "audience", "a", "audience", "b")
	add("", "grant_type", "client_credentials", "client_assertion", h.assertion("exp", 1), "client_assertion_type", assertionType, "client_id", "ci", "token", "x")
	add("Basic ====", "client_assertion", "a.b.c", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	f.Fuzz(func(t *testing.T, path, body, auth string) {
		if rt, ok := routes[path]; !ok || rt.page {
			return
		}
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", formType.Get("Content-Type"))
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		h.srv.Config.Handler.ServeHTTP(w, r)
		if w.Code >= 500 || w.Header().Get("Location") != "" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		var v any
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			t.Errorf("%d answers with %q", w.Code, w.Body)
		}
	})
}
