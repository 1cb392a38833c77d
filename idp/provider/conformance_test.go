package provider

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/tabard-id/tabard/idp"
)

// The OpenID Foundation's test plans for providers, module by module. Each function
// does what the module of that name does.

type module struct {
	name string
	run  func(t *testing.T, r *rp)
}

// basicOP is oidcc-basic-certification-test-plan.
var basicOP = []module{
	{"oidcc-server", conformServer},
	{"oidcc-response-type-missing", conformResponseTypeMissing},
	{"oidcc-userinfo-get", conformUserinfoGet},
	{"oidcc-userinfo-post-header", conformUserinfoPostHeader},
	{"oidcc-userinfo-post-body", conformUserinfoPostBody},
	{"oidcc-ensure-request-without-nonce-succeeds-for-code-flow", conformNoNonce},
	{"oidcc-scope-profile", scoped("openid profile", "name", "preferred_username")},
	{"oidcc-scope-email", scoped("openid email", "email", "email_verified")},
	{"oidcc-scope-address", scoped("openid address", "sub")}, // not in scopes_supported: ignored
	{"oidcc-scope-phone", scoped("openid phone", "sub")},
	{"oidcc-scope-all", scoped("openid profile email address phone", "name", "email")},
	{"oidcc-ensure-other-scope-order-succeeds", scoped("email openid", "email")},
	{"oidcc-display-page", ignored("display", "page")},
	{"oidcc-display-popup", ignored("display", "popup")},
	{"oidcc-prompt-login", conformPromptLogin},
	{"oidcc-prompt-none-not-logged-in", conformPromptNoneLoggedOut},
	{"oidcc-prompt-none-logged-in", conformPromptNoneLoggedIn},
	{"oidcc-max-age-1", conformMaxAge1},
	{"oidcc-max-age-10000", conformMaxAge10000},
	{"oidcc-ensure-request-with-unknown-parameter-succeeds", ignored("extra", "foobar")},
	{"oidcc-id-token-hint", conformIDTokenHint},
	{"oidcc-login-hint", conformLoginHint},
	{"oidcc-ui-locales", ignored("ui_locales", "se fr")},
	{"oidcc-claims-locales", ignored("claims_locales", "se")},
	{"oidcc-ensure-request-with-acr-values-succeeds", conformACRValues},
	{"oidcc-codereuse", func(t *testing.T, r *rp) { conformCodeReuse(t, r, 0) }},
	{"oidcc-codereuse-30seconds", func(t *testing.T, r *rp) { conformCodeReuse(t, r, 30*time.Second) }},
	{"oidcc-ensure-registered-redirect-uri", conformRegisteredRedirect},
	{"oidcc-ensure-post-request-succeeds", conformPostRequest},
	{"oidcc-server-client-secret-post", conformSecretPost},
	{"oidcc-unsigned-request-object-supported-correctly-or-rejected-as-unsupported", conformRequestObject},
	{"oidcc-claims-essential", conformClaimsEssential},
	{"oidcc-ensure-request-object-with-redirect-uri", conformRequestObject},
	{"oidcc-refresh-token", conformRefreshToken},
	{"oidcc-ensure-request-with-valid-pkce-succeeds", conformPKCE},
}

// configOP is oidcc-config-certification-test-plan.
var configOP = []module{
	{"oidcc-discovery-endpoint-verification", conformDiscovery},
}

// logoutOP is oidcc-rp-initiated-logout-certification-test-plan.
var logoutOP = []module{
	{"oidcc-rp-initiated-logout-discovery-endpoint-verification", conformDiscovery},
	{"oidcc-rp-initiated-logout", conformLogout},
	{"oidcc-rp-initiated-logout-bad-id-token-hint", conformLogoutForeignHint},
	{"oidcc-rp-initiated-logout-bad-post-logout-redirect-uri", logoutStays("", "post_logout_redirect_uri", "https://headlamp.test/other")},
	{"oidcc-rp-initiated-logout-modified-id-token-hint", conformLogoutModifiedHint},
	{"oidcc-rp-initiated-logout-no-id-token-hint", logoutStays("", "id_token_hint", "-")},
	{"oidcc-rp-initiated-logout-no-params", logoutStays("/sign-out?", "id_token_hint", "-", "post_logout_redirect_uri", "-", "state", "-")},
	{"oidcc-rp-initiated-logout-no-post-logout-redirect-uri", conformLogoutNoURI},
	{"oidcc-rp-initiated-logout-no-state", conformLogoutNoState},
	{"oidcc-rp-initiated-logout-only-state", logoutStays("/sign-out?", "id_token_hint", "-", "post_logout_redirect_uri", "-")},
	{"oidcc-rp-initiated-logout-query-added-to-post-logout-redirect-uri", logoutStays("", "post_logout_redirect_uri", headlamp+"?foo=bar")},
}

func TestConformance(t *testing.T) {
	for plan, modules := range map[string][]module{"basic": basicOP, "config": configOP, "rp-initiated-logout": logoutOP} {
		for _, m := range modules {
			t.Run(plan+"/"+m.name, func(t *testing.T) { m.run(t, &rp{house: newHouse(t)}) })
		}
	}
	if len(basicOP) != 35 || len(configOP) != 1 || len(logoutOP) != 11 {
		t.Errorf("%d, %d and %d modules: the plans have 35, 1 and 11", len(basicOP), len(configOP), len(logoutOP))
	}
}

// rp is a relying party, the confidential client headlamp, and its person's browser.
type rp struct {
	*house
	cookie string
	asked  int // how often the password was asked for
}

func (r *rp) request(pairs ...string) url.Values {
	return asking(append([]string{"client_id", "headlamp", "redirect_uri", headlamp, "scope", "openid", "code_challenge", "-", "code_challenge_method", "-"}, pairs...)...)
}

// ask sends an authorization request and returns what comes back to the redirect URI.
func (r *rp) ask(pairs ...string) url.Values {
	r.t.Helper()
	return r.callback(r.do("GET", "/authorize?"+r.request(pairs...).Encode(), "", with(nil, "Cookie", r.cookie)))
}

func (r *rp) callback(a answer) url.Values {
	r.t.Helper()
	to := a.header.Get("Location")
	if strings.HasPrefix(to, r.srv.URL+"/sign-in?") {
		in := r.signIn(a)
		to, r.cookie = in.Redirect, idp.SessionCookie+"="+in.Cookie
		r.asked++
	}
	rest, ok := strings.CutPrefix(to, headlamp+"?")
	if !ok {
		r.t.Fatalf("no callback: %d %q %s", a.status, to, a.body)
	}
	q, err := url.ParseQuery(rest)
	r.must(err)
	if q.Get("state") != "st" || q.Get("iss") != r.srv.URL {
		r.t.Errorf("state or iss is wrong: %s", to)
	}
	return q
}

func (r *rp) redeem(code string, more ...string) answer {
	r.t.Helper()
	return r.post("/token", with(nil, "Authorization", basic("headlamp", headSecret)),
		append([]string{"grant_type", "authorization_code", "code", code, "redirect_uri", headlamp}, more...)...)
}

// flow is a whole sign-in with its tokens and the verified claims of the id_token.
func (r *rp) flow(pairs ...string) (answer, map[string]any) {
	r.t.Helper()
	q := r.ask(pairs...)
	if q.Get("code") == "" {
		r.t.Fatalf("no code: %v", q)
	}
	a := r.redeem(q.Get("code"))
	if a.status != 200 || a.json["token_type"] != "Bearer" || a.json["access_token"] == nil {
		r.t.Fatalf("%d %s", a.status, a.body)
	}
	return a, r.idToken(a)
}

// idToken verifies an id_token as OpenID Connect Core section 3.1.3.7 says.
func (r *rp) idToken(a answer) map[string]any {
	r.t.Helper()
	raw, _ := a.json["id_token"].(string)
	var set jose.JSONWebKeySet
	r.must(json.Unmarshal([]byte(r.do("GET", "/keys", "", nil).body), &set))
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	r.must(err)
	out, c := map[string]any{}, jwt.Claims{}
	if err := token.Claims(set, &c, &out); err != nil {
		r.t.Fatalf("signature: %v", err)
	}
	if err := c.ValidateWithLeeway(jwt.Expected{Issuer: r.srv.URL, AnyAudience: jwt.Audience{"headlamp"}, Time: r.now()}, time.Second); err != nil {
		r.t.Error(err)
	}
	if c.Subject != alice.Sub() || out["azp"] != "headlamp" || c.Expiry == nil || c.IssuedAt == nil || out["auth_time"] == nil {
		r.t.Errorf("claims %v", out)
	}
	return out
}

func (r *rp) userinfo(method, body string, header http.Header) map[string]any {
	r.t.Helper()
	a := r.do(method, "/userinfo", body, header)
	if a.status != 200 || a.json["sub"] != alice.Sub() {
		r.t.Fatalf("userinfo: %d %s", a.status, a.body)
	}
	return a.json
}

func conformServer(t *testing.T, r *rp) {
	if _, c := r.flow(); c["nonce"] != "n" || r.asked != 1 {
		t.Errorf("nonce %v, asked %d times", c["nonce"], r.asked)
	}
}

func conformResponseTypeMissing(t *testing.T, r *rp) {
	if q := r.ask("response_type", "-"); q.Get("error") != "invalid_request" || q.Has("code") {
		t.Error(q)
	}
}

func conformUserinfoGet(_ *testing.T, r *rp) {
	a, _ := r.flow()
	at := a.json["access_token"].(string)
	r.userinfo("GET", "", with(nil, "Authorization", "Bearer "+at))
	r.userinfo("GET", "", with(nil, "Authorization", "bearer "+at)) // a scheme has no case
}

func conformUserinfoPostHeader(_ *testing.T, r *rp) {
	a, _ := r.flow()
	r.userinfo("POST", "", with(nil, "Authorization", "Bearer "+a.json["access_token"].(string)))
}

func conformUserinfoPostBody(_ *testing.T, r *rp) {
	a, _ := r.flow()
	r.userinfo("POST", form("access_token", a.json["access_token"].(string)).Encode(), formType)
}

func conformNoNonce(t *testing.T, r *rp) {
	if _, c := r.flow("nonce", "-"); c["nonce"] != nil {
		t.Errorf("nonce %v from nowhere", c["nonce"])
	}
}

// scoped asks for scopes and wants claims in the userinfo.
func scoped(scope string, want ...string) func(*testing.T, *rp) {
	return func(t *testing.T, r *rp) {
		a, _ := r.flow("scope", scope)
		got := r.userinfo("GET", "", with(nil, "Authorization", "Bearer "+a.json["access_token"].(string)))
		for _, claim := range want {
			if got[claim] == nil {
				t.Errorf("no %s in %v", claim, got)
			}
		}
	}
}

// ignored sends a parameter that changes nothing.
func ignored(name, value string) func(*testing.T, *rp) {
	return func(_ *testing.T, r *rp) { r.flow(name, value) }
}

func conformPromptLogin(t *testing.T, r *rp) {
	_, first := r.flow()
	r.pass(2 * time.Second)
	_, second := r.flow("prompt", "login")
	if r.asked != 2 || second["auth_time"].(float64) <= first["auth_time"].(float64) {
		t.Errorf("asked %d times, auth_time %v then %v", r.asked, first["auth_time"], second["auth_time"])
	}
}

func conformPromptNoneLoggedOut(t *testing.T, r *rp) {
	if q := r.ask("prompt", "none"); q.Get("error") != "login_required" || q.Has("code") || r.asked != 0 {
		t.Error(q)
	}
}

func conformPromptNoneLoggedIn(t *testing.T, r *rp) { sameSignIn(t, r, "prompt", "none") }

// sameSignIn signs in and asks again, which must not ask for the password.
func sameSignIn(t *testing.T, r *rp, pairs ...string) {
	_, first := r.flow()
	r.pass(2 * time.Second)
	_, second := r.flow(pairs...)
	if r.asked != 1 || second["sub"] != first["sub"] || second["auth_time"] != first["auth_time"] || second["sid"] != first["sid"] {
		t.Errorf("asked %d times, %v then %v", r.asked, first, second)
	}
}

func conformMaxAge1(t *testing.T, r *rp) {
	_, first := r.flow()
	r.pass(2 * time.Second)
	_, second := r.flow("max_age", "1")
	if r.asked != 2 || second["auth_time"].(float64) < first["auth_time"].(float64)+1 {
		t.Errorf("asked %d times, auth_time %v then %v", r.asked, first["auth_time"], second["auth_time"])
	}
}

func conformMaxAge10000(t *testing.T, r *rp) { sameSignIn(t, r, "max_age", "10000") }

func conformIDTokenHint(t *testing.T, r *rp) {
	a, first := r.flow()
	_, second := r.flow("prompt", "none", "id_token_hint", a.json["id_token"].(string))
	if r.asked != 1 || second["sub"] != first["sub"] {
		t.Errorf("asked %d times, %v", r.asked, second)
	}
	r.pass(time.Hour) // an old id_token is as good a hint
	if q := r.ask("prompt", "none", "id_token_hint", a.json["id_token"].(string)); q.Get("code") == "" {
		t.Error(q)
	}
	other, err := r.keys.Sign("ES256", fmt.Appendf(nil, `{"iss":%q,"sub":"corp.00000000-0000-4000-8000-000000000002","aud":["headlamp"],"azp":"headlamp"}`, r.srv.URL))
	r.must(err)
	if q := r.ask("prompt", "none", "id_token_hint", other); q.Get("error") != "login_required" || q.Has("code") {
		t.Errorf("another person's: %v", q)
	}
}

func conformLoginHint(t *testing.T, r *rp) {
	a := r.do("GET", "/authorize?"+r.request("login_hint", "bob@corp.test").Encode(), "", nil)
	cookie, err := http.ParseSetCookie(a.header.Get("Set-Cookie"))
	r.must(err)
	req, err := r.svc.OpenRequest(param(t, a.header.Get("Location"), "request"), cookie.Value)
	r.must(err)
	if req.LoginHint != "bob@corp.test" {
		t.Errorf("the page gets %q", req.LoginHint)
	}
	if q := r.callback(a); q.Get("code") == "" {
		t.Error(q)
	}
}

// There is one acr, and the token says what was done.
func conformACRValues(t *testing.T, r *rp) {
	for _, values := range []string{"1 2", "urn:tabard:acr:password", "phr phrh", ""} {
		if _, c := r.flow("acr_values", values); c["acr"] != "urn:tabard:acr:password" {
			t.Errorf("acr %v", c["acr"])
		}
	}
}

func conformCodeReuse(t *testing.T, r *rp, later time.Duration) {
	code := r.ask("scope", "openid offline_access").Get("code")
	a := r.redeem(code)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	r.pass(later)
	refused(t, r.redeem(code), 400, "invalid_grant")
	refused(t, r.do("GET", "/userinfo", "", with(nil, "Authorization", "Bearer "+a.json["access_token"].(string))), 401, "invalid_token")
	refused(t, r.post("/token", with(nil, "Authorization", basic("headlamp", headSecret)), "grant_type", "refresh_token", "refresh_token", a.json["refresh_token"].(string)), 400, "invalid_grant")
}

func conformRegisteredRedirect(t *testing.T, r *rp) {
	for _, uri := range []string{headlamp + "/x", headlamp + "?x=1", "https://evil.test/", headlamp + "#x", strings.ToUpper(headlamp)} {
		a := r.do("GET", "/authorize?"+r.request("redirect_uri", uri).Encode(), "", nil)
		if a.status != 400 || a.header.Get("Location") != "" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d %v", uri, a.status, a.header)
		}
	}
}

func conformPostRequest(t *testing.T, r *rp) {
	q := r.callback(r.do("POST", "/authorize", r.request().Encode(), formType))
	if a := r.redeem(q.Get("code")); a.status != 200 || r.idToken(a)["nonce"] != "n" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func conformSecretPost(t *testing.T, r *rp) {
	a := r.post("/token", nil, "grant_type", "authorization_code", "code", r.ask().Get("code"), "redirect_uri", headlamp, "client_id", "headlamp", "client_secret", headSecret)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	r.idToken(a)
}

// A request object is refused, and nothing in it counts.
func conformRequestObject(t *testing.T, r *rp) {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	unsigned := part(`{"alg":"none"}`) + "." + part(`{"redirect_uri":"https://evil.test/","state":"evil","client_id":"headlamp"}`) + "."
	if q := r.ask("request", unsigned); q.Get("error") != "request_not_supported" {
		t.Error(q)
	}
	if q := r.ask("request_uri", "https://evil.test/object"); q.Get("error") != "request_uri_not_supported" {
		t.Error(q)
	}
	if r.asked != 0 {
		t.Error("the person was asked")
	}
}

func conformClaimsEssential(t *testing.T, r *rp) {
	a, _ := r.flow("claims", `{"userinfo":{"name":{"essential":true}}}`)
	if got := r.userinfo("GET", "", with(nil, "Authorization", "Bearer "+a.json["access_token"].(string))); got["name"] != alice.Name {
		t.Errorf("userinfo %v", got)
	}
}

func conformRefreshToken(t *testing.T, r *rp) {
	a, first := r.flow("scope", "openid offline_access", "prompt", "consent")
	byHeader := with(nil, "Authorization", basic("headlamp", headSecret))
	rt := a.json["refresh_token"].(string)
	refused(t, r.asCI("/token", r.assertion(), "grant_type", "refresh_token", "refresh_token", rt), 400, "invalid_grant")
	r.pass(2 * time.Second)
	b := r.post("/token", byHeader, "grant_type", "refresh_token", "refresh_token", rt)
	if b.status != 200 || b.json["access_token"] == a.json["access_token"] {
		t.Fatalf("%d %s", b.status, b.body)
	}
	second := r.idToken(b)
	for _, claim := range []string{"iss", "sub", "azp", "auth_time", "acr"} { // Core section 12.2
		if second[claim] != first[claim] {
			t.Errorf("%s was %v, is %v", claim, first[claim], second[claim])
		}
	}
	if second["iat"].(float64) <= first["iat"].(float64) || second["nonce"] != nil {
		t.Errorf("%v then %v", first, second)
	}
	r.userinfo("GET", "", with(nil, "Authorization", "Bearer "+b.json["access_token"].(string)))
}

func conformPKCE(t *testing.T, r *rp) {
	pkce := []string{"code_challenge", challenge, "code_challenge_method", "S256"}
	code := r.ask(pkce...).Get("code")
	refused(t, r.redeem(code), 400, "invalid_grant")
	if a := r.redeem(code, "code_verifier", verifier); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	refused(t, r.redeem(r.ask().Get("code"), "code_verifier", verifier), 400, "invalid_grant") // a verifier without a challenge
}

func conformDiscovery(t *testing.T, r *rp) {
	a := r.do("GET", "/.well-known/openid-configuration", "", nil)
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" || a.json["issuer"] != r.srv.URL {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	for name, v := range a.json {
		if s, _ := v.(string); (strings.HasSuffix(name, "_endpoint") || name == "jwks_uri") && !strings.HasPrefix(s, r.srv.URL+"/") {
			t.Errorf("%s is %v", name, v)
		}
	}
	for name, must := range map[string]string{
		"response_types_supported": "code", "subject_types_supported": "public", "scopes_supported": "openid", "grant_types_supported": "authorization_code",
		"token_endpoint_auth_methods_supported": "client_secret_basic", "claims_supported": "sub", "id_token_signing_alg_values_supported": "ES256",
		"end_session_endpoint": "/logout", "authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys", "userinfo_endpoint": "/userinfo",
	} {
		if !strings.Contains(fmt.Sprint(a.json[name]), must) {
			t.Errorf("%s is %v, without %s", name, a.json[name], must)
		}
	}
	for _, name := range []string{"claims_parameter_supported", "request_parameter_supported", "request_uri_parameter_supported"} {
		if a.json[name] != false {
			t.Errorf("%s is %v", name, a.json[name])
		}
	}
	var set jose.JSONWebKeySet
	r.must(json.Unmarshal([]byte(r.do("GET", "/keys", "", nil).body), &set))
	seen := map[string]bool{}
	for _, k := range set.Keys {
		if !k.IsPublic() || !k.Valid() || k.Use != "sig" || k.KeyID == "" || seen[k.KeyID] {
			t.Errorf("key %+v", k)
		}
		seen[k.KeyID] = true
	}
	if len(seen) == 0 {
		t.Error("no keys")
	}
}

// logout signs in and asks for a logout that is right but for the pairs.
func (r *rp) logout(pairs ...string) (a answer, hint string) {
	r.t.Helper()
	tokens, _ := r.flow()
	return r.logoutWith(tokens.json["id_token"].(string), pairs...), tokens.json["id_token"].(string)
}

func (r *rp) logoutWith(hint string, pairs ...string) answer {
	r.t.Helper()
	q := form("id_token_hint", hint, "post_logout_redirect_uri", headlamp, "state", "bye")
	for i := 0; i+1 < len(pairs); i += 2 {
		if q.Set(pairs[i], pairs[i+1]); pairs[i+1] == "-" {
			q.Del(pairs[i])
		}
	}
	return r.do("GET", "/logout?"+q.Encode(), "", with(nil, "Cookie", r.cookie))
}

// ended checks whether the browser's session has.
func (r *rp) ended(want bool) {
	r.t.Helper()
	if q := r.ask("prompt", "none"); (q.Get("error") == "login_required") != want {
		r.t.Errorf("session ended is not %v: %v", want, q)
	}
}

func conformLogout(t *testing.T, r *rp) {
	if a, _ := r.logout(); a.status != 302 || a.header.Get("Location") != headlamp+"?state=bye" {
		t.Errorf("%d %v", a.status, a.header)
	}
	r.ended(true)
}

// logoutStays is a logout that must neither happen by itself nor leave for the
// client: an error page, or a page of ours that asks.
func logoutStays(page string, pairs ...string) func(*testing.T, *rp) {
	return func(t *testing.T, r *rp) {
		a, _ := r.logout(pairs...)
		stays(t, r, a, page)
	}
}

func stays(t *testing.T, r *rp, a answer, page string) {
	t.Helper()
	to := a.header.Get("Location")
	if page == "" && (a.status != 400 || to != "") || page != "" && (a.status != 302 || !strings.HasPrefix(to, r.srv.URL+page)) {
		t.Errorf("%d to %q", a.status, to)
	}
	r.ended(false)
}

func conformLogoutForeignHint(t *testing.T, r *rp) {
	_, c := r.flow()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r.must(err)
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: r.keys.Public().Keys[0].KeyID}}, nil)
	r.must(err)
	hint, err := jwt.Signed(sig).Claims(c).Serialize()
	r.must(err)
	stays(t, r, r.logoutWith(hint), "")
}

func conformLogoutModifiedHint(t *testing.T, r *rp) {
	a, _ := r.flow()
	parts := strings.Split(a.json["id_token"].(string), ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	r.must(err)
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(body), `"sub":"corp.0`, `"sub":"corp.1`, 1)))
	stays(t, r, r.logoutWith(strings.Join(parts, ".")), "")
}

func conformLogoutNoURI(t *testing.T, r *rp) {
	if a, _ := r.logout("post_logout_redirect_uri", "-"); a.status != 302 || a.header.Get("Location") != r.srv.URL+"/signed-out" {
		t.Errorf("%d %v", a.status, a.header)
	}
	r.ended(true)
}

func conformLogoutNoState(t *testing.T, r *rp) {
	if a, _ := r.logout("state", "-"); a.status != 302 || a.header.Get("Location") != headlamp {
		t.Errorf("%d %v", a.status, a.header)
	}
	r.ended(true)
}

// Every prompt and max_age, with a session that is there.
func TestPromptTable(t *testing.T) {
	r := &rp{house: newHouse(t)}
	for _, c := range []struct {
		name  string
		pairs []string
		want  string // "code", "sign-in" or an error
	}{
		{"consent", []string{"prompt", "consent"}, "code"}, // there is none to give: a client is its cluster's
		{"login consent", []string{"prompt", "login consent"}, "sign-in"},
		{"select_account", []string{"prompt", "select_account"}, "sign-in"},
		{"select_account login", []string{"prompt", "select_account login"}, "sign-in"},
		{"create", []string{"prompt", "create"}, "code"},
		{"none", []string{"prompt", "none"}, "code"},
		{"none none", []string{"prompt", "none none"}, "invalid_request"},
		{"none login", []string{"prompt", "none login"}, "invalid_request"},
		{"consent none", []string{"prompt", "consent none"}, "invalid_request"},
		{"none select_account", []string{"prompt", "none select_account"}, "invalid_request"},
		{"none and max_age=0", []string{"prompt", "none", "max_age", "0"}, "login_required"},
		{"none and max_age=1", []string{"prompt", "none", "max_age", "1"}, "login_required"},
		{"none and max_age=10000", []string{"prompt", "none", "max_age", "10000"}, "code"},
		{"max_age=0", []string{"max_age", "0"}, "sign-in"},
		{"largest max_age", []string{"max_age", "2147483647"}, "code"},
		{"long login_hint", []string{"login_hint", strings.Repeat("a", 257)}, "invalid_request"},
		{"long hint", []string{"id_token_hint", strings.Repeat("a", 8000)}, "invalid_request"},
		{"huge unknown", []string{"whatever", strings.Repeat("a", 8000)}, "code"},
		{"huge scope", []string{"scope", strings.Repeat("a ", 4000)}, "code"},
		{"no state", []string{"state", "-"}, "code"},
		{"no state and an error", []string{"state", "-", "prompt", "none login"}, "invalid_request"},
		{"form_post", []string{"response_mode", "form_post"}, "invalid_request"},
		{"registration", []string{"registration", "{}"}, "registration_not_supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rp{house: r.house}
			r.flow()
			r.pass(2 * time.Second)
			a := r.do("GET", "/authorize?"+r.request(c.pairs...).Encode(), "", with(nil, "Cookie", r.cookie))
			to := a.header.Get("Location")
			got := param(t, to, "error")
			switch {
			case strings.HasPrefix(to, r.srv.URL+"/sign-in?"):
				got = "sign-in"
			case param(t, to, "code") != "":
				got = "code"
			}
			if got != c.want || got != "sign-in" && (param(t, to, "iss") != r.srv.URL || param(t, to, "state") != r.request(c.pairs...).Get("state")) {
				t.Errorf("%d to %s, want %s", a.status, to, c.want)
			}
		})
	}
}

// An API server whose clock is a minute off accepts a token that was just made.
func TestClockSkew(t *testing.T) {
	r := &rp{house: newHouse(t)}
	a, _ := r.flow()
	token, err := jwt.ParseSigned(a.json["id_token"].(string), []jose.SignatureAlgorithm{jose.ES256})
	r.must(err)
	var c jwt.Claims
	r.must(token.Claims(r.keys.Public(), &c))
	for _, off := range []time.Duration{-time.Minute, 0, time.Minute} {
		at := c.IssuedAt.Time().Add(off)
		if at.Before(c.NotBefore.Time()) || !at.Before(c.Expiry.Time()) {
			t.Errorf("%s off: nbf %s, exp %s", off, c.NotBefore.Time(), c.Expiry.Time())
		}
	}
}
