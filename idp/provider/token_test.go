package provider

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestTokenEndpointTable(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code()
	right := []string{"grant_type", "authorization_code", "client_id", "kubernetes", "code", code, "redirect_uri", localhost, "code_verifier", verifier}
	body := form(right...).Encode()
	for _, c := range []struct {
		name         string
		method, path string
		body         string
		header       http.Header
		status       int
		code         string
	}{
		{"GET", "GET", "/token?" + body, "", nil, 405, "invalid_request"},
		{"parameters in the query", "POST", "/token?" + body, "", formType, 400, "invalid_request"},
		{"a parameter twice", "POST", "/token", body + "&code=x", formType, 400, "invalid_request"},
		{"JSON", "POST", "/token", `{"grant_type":"authorization_code"}`, http.Header{"Content-Type": {"application/json"}}, 400, "invalid_request"},
		{"no content type", "POST", "/token", body, nil, 400, "invalid_request"},
		{"multipart", "POST", "/token", body, http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}, 400, "invalid_request"},
		{"broken escape", "POST", "/token", "code=%zz", formType, 400, "invalid_request"},
		{"over a megabyte", "POST", "/token", body + "&x=" + strings.Repeat("a", maxBody), formType, 400, "invalid_request"},
		{"no grant type", "POST", "/token", "client_id=kubernetes", formType, 400, "invalid_request"},
		{"password grant", "POST", "/token", "grant_type=password&client_id=kubernetes", formType, 400, "unsupported_grant_type"},
		{"client credentials", "POST", "/token", "grant_type=client_credentials", with(formType, "Authorization", basic("headlamp", headSecret)), 400, "unauthorized_client"},
		{"JWT bearer", "POST", "/token", "grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion=a.b.c", formType, 400, "unsupported_grant_type"},
		{"no client", "POST", "/token", form(append(right, "client_id", "")[4:]...).Encode() + "&grant_type=authorization_code", formType, 400, "invalid_request"},
		{"unknown client", "POST", "/token", "grant_type=authorization_code&client_id=nobody&code=x&redirect_uri=x", formType, 401, "invalid_client"},
		{"public client with a secret", "POST", "/token", body + "&client_secret=x", formType, 401, "invalid_client"},
		{"public client with a secret by Basic", "POST", "/token", body, with(formType, "Authorization", basic("kubernetes", "x")), 401, "invalid_client"},
		{"Basic names another client", "POST", "/token", body, with(formType, "Authorization", basic("headlamp", headSecret)), 400, "invalid_request"},
		{"Basic that is none", "POST", "/token", body, with(formType, "Authorization", "Basic "+"JXp6Og=="), 401, "invalid_client"},
		{"assertion", "POST", "/token", body + "&client_assertion=a.b.c&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer", formType, 401, "invalid_client"},
		{"confidential client without secret", "POST", "/token", strings.Replace(body, "kubernetes", "headlamp", 1), formType, 401, "invalid_client"},
		{"wrong verifier", "POST", "/token", body + "x", formType, 400, "invalid_grant"},
		{"wrong code", "POST", "/token", strings.Replace(body, "code=", "code=x", 1), formType, 400, "invalid_grant"},
		{"wrong redirect URI", "POST", "/token", strings.Replace(body, "8000", "8001", 1), formType, 400, "invalid_grant"},
		{"no redirect URI", "POST", "/token", strings.Replace(body, "redirect_uri=", "other=", 1), formType, 400, "invalid_request"},
		{"device code of nobody", "POST", "/token", "grant_type=urn:ietf:params:oauth:grant-type:device_code&client_id=kubernetes&device_code=x", formType, 400, "invalid_grant"},
		{"NUL", "POST", "/token", "grant_type=refresh_token&client_id=kubernetes&refresh_token=%00", formType, 400, "invalid_grant"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, h.do(c.method, c.path, c.body, c.header), c.status, c.code)
		})
	}
	a := h.post("/token", nil, right...) // nothing of all that used the code up
	if a.status != 200 || a.json["token_type"] != "Bearer" || a.json["expires_in"] != 300.0 ||
		a.json["id_token"] == nil || a.json["refresh_token"] == nil || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" {
		t.Errorf("%d %v", a.status, a.header)
	}
	refused(t, h.post("/token", nil, right...), 400, "invalid_grant")
}

func TestConfidentialClients(t *testing.T) {
	h := newHouse(t)
	redeem := func(header http.Header, more ...string) answer {
		code, _ := h.code("client_id", "headlamp", "redirect_uri", headlamp, "code_challenge", "-", "code_challenge_method", "-")
		return h.post("/token", header, append([]string{"grant_type", "authorization_code", "code", code, "redirect_uri", headlamp}, more...)...)
	}
	byHeader := http.Header{"Authorization": {basic("headlamp", headSecret)}}
	for name, a := range map[string]answer{
		"basic":               redeem(byHeader),
		"basic and client_id": redeem(byHeader, "client_id", "headlamp"),
		"post":                redeem(nil, "client_id", "headlamp", "client_secret", headSecret),
	} {
		if a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	refused(t, redeem(byHeader, "client_id", "headlamp", "client_secret", headSecret), 400, "invalid_request")
	refused(t, redeem(byHeader, "client_secret", headSecret), 400, "invalid_request")
	refused(t, redeem(nil, "client_id", "headlamp", "client_secret", "wrong"), 401, "invalid_client")
	refused(t, redeem(http.Header{"Authorization": {basic("headlamp", "wrong")}}), 401, "invalid_client")
	refused(t, redeem(http.Header{"Authorization": {basic("headlamp", "")}}), 401, "invalid_client")
}

func TestRefreshAnswers(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.tokens()
	refresh := func() answer {
		return h.post("/token", nil, "grant_type", "refresh_token", "client_id", "kubernetes", "refresh_token", tokens["refresh_token"].(string), "scope", "openid whatever")
	}
	h.corp.fail(errUnreachable)
	a := refresh()
	refused(t, a, 503, "temporarily_unavailable")
	if a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if !strings.Contains(h.log.text(), "10.1.2.3") || !strings.Contains(h.log.text(), requestID) {
		t.Error("the log does not tell the cause and the request's id")
	}
	h.corp.fail(nil)
	h.store.Before(func([]string) error { return errors.New("disk on fire") })
	refused(t, refresh(), 500, "server_error")
	h.store.Before(nil)
	if a := refresh(); a.status != 200 || a.json["refresh_token"] == tokens["refresh_token"] {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestTokenExchangeRules(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code("client_id", "tabard", "redirect_uri", "http://127.0.0.1:1/callback")
	a := h.post("/token", nil, "grant_type", "authorization_code", "client_id", "tabard", "code", code, "redirect_uri", "http://127.0.0.1:1/callback", "code_verifier", verifier)
	idToken, accessToken := a.json["id_token"].(string), a.json["access_token"].(string)
	const idType = "urn:ietf:params:oauth:token-type:id_token"
	exchange := func(pairs ...string) answer {
		return h.post("/token", nil, append([]string{"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "client_id", "tabard"}, pairs...)...)
	}
	right := []string{"subject_token", idToken, "subject_token_type", idType, "audience", "kubernetes"}
	a = exchange(right...)
	if a.status != 200 || a.json["issued_token_type"] != idType || a.json["token_type"] != "N_A" || strings.Count(a.json["access_token"].(string), ".") != 2 || a.json["refresh_token"] != nil {
		t.Errorf("%d %s", a.status, a.body)
	}
	for name, c := range map[string]struct {
		pairs []string
		code  string
	}{
		"access token as subject": {[]string{"subject_token", accessToken, "subject_token_type", "urn:ietf:params:oauth:token-type:access_token", "audience", "kubernetes"}, "invalid_request"},
		"access token called one": {[]string{"subject_token", accessToken, "subject_token_type", idType, "audience", "kubernetes"}, "invalid_grant"},
		"no audience":             {[]string{"subject_token", idToken, "subject_token_type", idType}, "invalid_request"},
		"two audiences":           {append(right, "audience", "vault"), "invalid_request"},
		"a resource":              {append(right, "resource", "https://a.test"), "invalid_request"},
		"an actor":                {append(right, "actor_token", idToken, "actor_token_type", idType), "invalid_request"},
		"another type":            {append(right, "requested_token_type", "urn:ietf:params:oauth:token-type:access_token"), "invalid_request"},
		"another audience":        {[]string{"subject_token", idToken, "subject_token_type", idType, "audience", "nobody"}, "invalid_target"},
		"no access":               {[]string{"subject_token", idToken, "subject_token_type", idType, "audience", "vault"}, "access_denied"},
		"no subject":              {[]string{"subject_token_type", idType, "audience", "kubernetes"}, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, exchange(c.pairs...), 400, c.code) })
	}
}

func TestDeviceEndpoints(t *testing.T) {
	h := newHouse(t)
	a := h.post("/device_authorization", nil, "client_id", "kubernetes", "scope", "openid offline_access")
	if a.status != 200 || a.json["verification_uri"] != h.srv.URL+"/device" || a.json["interval"] != 5.0 || a.json["expires_in"] != 600.0 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	poll := func() answer {
		return h.post("/token", nil, "grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "kubernetes", "device_code", a.json["device_code"].(string))
	}
	refused(t, poll(), 400, "authorization_pending")
	refused(t, poll(), 400, "slow_down")
	in, err := h.svc.SignIn(t.Context(), idpCredentials, nil)
	h.must(err)
	sess, err := h.svc.Browser(t.Context(), in.Cookie)
	h.must(err)
	h.must(h.svc.DecideDevice(t.Context(), sess, a.json["user_code"].(string), true))
	if got := poll(); got.status != 200 || got.json["refresh_token"] == nil {
		t.Errorf("%d %s", got.status, got.body)
	}
	refused(t, poll(), 400, "invalid_grant")
	refused(t, h.post("/device_authorization", nil, "client_id", "nobody"), 401, "invalid_client")
	refused(t, h.do("GET", "/device_authorization?client_id=kubernetes", "", nil), 405, "invalid_request")
}

func TestUserInfoEndpoint(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.tokens()
	at := tokens["access_token"].(string)
	bearer := http.Header{"Authorization": {"Bearer " + at}}
	for name, a := range map[string]answer{
		"GET":       h.do("GET", "/userinfo", "", bearer),
		"POST":      h.do("POST", "/userinfo", "", bearer),
		"POST body": h.post("/userinfo", nil, "access_token", at),
	} {
		if a.status != 200 || a.json["sub"] != alice.Sub() || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	for name, a := range map[string]answer{
		"bad":      h.do("GET", "/userinfo", "", http.Header{"Authorization": {"Bearer x"}}),
		"id_token": h.do("GET", "/userinfo", "", http.Header{"Authorization": {"Bearer " + tokens["id_token"].(string)}}),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, a, 401, "invalid_token")
			if got := a.header.Get("WWW-Authenticate"); got != `Bearer realm="tabard", error="invalid_token"` {
				t.Error(got)
			}
		})
	}
	for name, a := range map[string]answer{ // a token in a URL ends up in logs (RFC 6750 section 2.3)
		"query": h.do("GET", "/userinfo?access_token="+at, "", nil), "none": h.do("GET", "/userinfo", "", nil),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, a, 401, "invalid_request")
			if got := a.header.Get("WWW-Authenticate"); got != `Bearer realm="tabard"` {
				t.Error(got)
			}
		})
	}
}

func TestRevocationAndIntrospection(t *testing.T) {
	h := newHouse(t)
	code, _ := h.code("client_id", "headlamp", "redirect_uri", headlamp)
	byHeader := http.Header{"Authorization": {basic("headlamp", headSecret)}}
	tokens := h.post("/token", byHeader, "grant_type", "authorization_code", "code", code, "redirect_uri", headlamp, "code_verifier", verifier)
	at := tokens.json["access_token"].(string)
	ask := func(token string) answer { return h.post("/introspect", byHeader, "token", token) }
	if a := ask(at); a.status != 200 || a.json["active"] != true || a.json["username"] != "alice" || a.json["client_id"] != "headlamp" || a.json["iss"] != h.srv.URL {
		t.Errorf("%d %s", a.status, a.body)
	}
	public, _ := h.tokens()
	for _, token := range []string{"what", public["access_token"].(string)} {
		if a := ask(token); a.status != 200 || a.json["active"] != false || len(a.json) != 1 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	refused(t, h.post("/introspect", nil, "client_id", "kubernetes", "token", at), 401, "invalid_client")
	refused(t, h.post("/introspect", nil, "token", at), 400, "invalid_request")
	refused(t, h.post("/introspect", http.Header{"Authorization": {"Bearer " + at}}, "token", at), 400, "invalid_request")
	refused(t, h.post("/introspect", byHeader, "token", at, "client_id", "headlamp", "client_secret", headSecret), 400, "invalid_request")
	refused(t, h.post("/introspect", http.Header{"Authorization": {basic("headlamp", "x")}}, "token", at), 401, "invalid_client")
	for _, token := range []string{"what", at, at} {
		if a := h.post("/revoke", byHeader, "token", token, "token_type_hint", "nonsense"); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := ask(at); a.json["active"] != false {
		t.Errorf("revoked, and still %s", a.body)
	}
	refused(t, h.post("/revoke", nil, "client_id", "headlamp", "token", at), 401, "invalid_client")
	refused(t, h.post("/revoke", byHeader), 400, "invalid_request")
}
