package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// with returns a copy of params with one of them set, or removed where value is "-".
func with(params url.Values, name, value string) url.Values {
	out := url.Values{}
	for k, v := range params {
		out[k] = v
	}
	if out.Set(name, value); value == "-" {
		out.Del(name)
	}
	return out
}

// TestPeople signs in what a real directory holds, and what it does not.
func TestPeople(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	refused := map[string]answer{}
	for _, c := range []struct{ name, user, password, want string }{
		{"a person", "alice", "pw-alice", "alice"},
		{"by mail", "alice@example.org", "pw-alice", "alice"},
		{"in another spelling", " ALICE ", "pw-alice", "alice"},
		{"with characters that filters are made of", "jörg (admin)", "pw-jörg (admin)", "jörg (admin)"},
		{"wrong password", "alice", "pw-bob", ""},
		{"unknown", "nobody", "pw-alice", ""},
		{"empty password", "alice", "", ""},
		{"empty login", "", "pw-alice", ""},
		{"a filter", "*)(uid=*", "pw-alice", ""},
		{"a wildcard", "al*", "pw-alice", ""},
		{"a DN", "uid=alice,ou=people,dc=example,dc=org", "pw-alice", ""},
		{"NUL", "alice\x00", "pw-alice", ""},
		{"long", strings.Repeat("a", 1<<16), "pw-alice", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			browser := s.browser()
			f, _ := s.openSignIn(browser, authRequest("kubernetes"))
			a := s.submit(browser, f, c.user, c.password)
			if c.want == "" {
				if a.status == http.StatusSeeOther || a.header.Get("Location") != "" {
					t.Fatalf("let in: %d %s", a.status, a.header.Get("Location"))
				}
				refused[c.name] = a
				return
			}
			if a.status != http.StatusSeeOther {
				t.Fatalf("refused: %d %s", a.status, a.body)
			}
			tk := s.token(redemption("kubernetes", s.codeFrom(a, authRequest("kubernetes"))))
			if got := claims(t, tk.IDToken)["preferred_username"]; got != c.want {
				t.Errorf("signed in as %v, want %s", got, c.want)
			}
		})
	}
	strip := func(a answer, user string) string { // what differs by right: the login typed, the sealed request and the id
		out := strings.ReplaceAll(a.body, user, "LOGIN")
		f := parseForm(t, a.body)
		return strings.ReplaceAll(strings.ReplaceAll(out, f.fields.Get("request"), "SEALED"), a.header.Get("X-Request-Id"), "ID")
	}
	if wrong, unknown := refused["wrong password"], refused["unknown"]; wrong.status != unknown.status || strip(wrong, "alice") != strip(unknown, "nobody") {
		t.Errorf("an unknown login and a wrong password can be told apart:\n%d %s\n%d %s", wrong.status, strip(wrong, "alice"), unknown.status, strip(unknown, "nobody"))
	}
	if text := s.Log(); holdsPassword(text) {
		t.Error("a password is in the log")
	}
}

// TestAuthorizeRefusals: a wrong client or redirect URI is told to the person and
// goes nowhere; everything else goes back to the client with its state.
func TestAuthorizeRefusals(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	good := authRequest("kubernetes")
	for _, c := range []struct{ name, param, value, want string }{
		{"unknown client", "client_id", "nobody", "page"},
		{"no redirect URI", "redirect_uri", "-", "page"},
		{"another host", "redirect_uri", "https://evil.example/", "page"},
		{"another port of localhost", "redirect_uri", "http://localhost:9", "page"},
		{"another path", "redirect_uri", "http://localhost:8000/x", "page"},
		{"a user part", "redirect_uri", "http://localhost:8000@evil.example", "page"},
		{"no PKCE", "code_challenge", "-", "invalid_request"},
		{"PKCE without method, which means plain", "code_challenge_method", "-", "invalid_request"},
		{"plain", "code_challenge_method", "plain", "invalid_request"},
		{"implicit", "response_type", "id_token", "unsupported_response_type"},
		{"hybrid", "response_type", "code token", "unsupported_response_type"},
		{"request object", "request", "e30.e30.", "request_not_supported"},
		{"request by reference", "request_uri", "https://evil.example/", "request_uri_not_supported"},
		{"fragment", "response_mode", "fragment", "invalid_request"},
		{"silent without a session", "prompt", "none", "login_required"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := get(t, s.browser(), s.issuer+"/authorize?"+with(good, c.param, c.value).Encode())
			if c.want == "page" {
				if a.status != http.StatusBadRequest || a.header.Get("Location") != "" || !strings.Contains(a.header.Get("Content-Type"), "text/html") {
					t.Errorf("%d %s %s", a.status, a.header.Get("Location"), a.body)
				}
				return
			}
			to, err := url.Parse(a.header.Get("Location"))
			if err != nil || a.status != http.StatusFound || to.Host != "localhost:8000" {
				t.Fatalf("%d %s %v", a.status, a.header.Get("Location"), err)
			}
			if q := to.Query(); q.Get("error") != c.want || q.Get("state") != "state-1" || q.Get("iss") != s.issuer || q.Has("code") {
				t.Errorf("redirect %s", to)
			}
		})
	}
}

// TestCodes: only the right client, redirect URI and verifier use a code up, and
// only once.
func TestCodes(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	code := s.code(s.browser(), authRequest("kubernetes"), "alice", "pw-alice")
	for _, c := range []struct{ name, param, value string }{
		{"wrong verifier", "code_verifier", strings.Repeat("x", 43)},
		{"no verifier", "code_verifier", "-"},
		{"another redirect URI", "redirect_uri", "http://localhost:18000"},
		{"another client", "client_id", "staging"},
		{"another code", "code", code[:len(code)-4] + "AAAA"},
	} {
		if got := s.token(with(redemption("kubernetes", code), c.param, c.value)); got.status != http.StatusBadRequest || got.Error != "invalid_grant" || got.IDToken != "" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	tk := s.token(redemption("kubernetes", code))
	if tk.status != http.StatusOK {
		t.Fatalf("the right redemption after wrong ones: %+v", tk)
	}
	if got := s.token(redemption("kubernetes", code)); got.Error != "invalid_grant" {
		t.Errorf("a code used twice: %+v", got)
	}
	if got := s.token(refresh("kubernetes", tk.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("the session lives on after its code came twice: %+v", got)
	}
}

// race runs n requests to the token endpoint at once.
func (s *server) race(n int, form url.Values) []tokens {
	out := make([]tokens, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			out[i] = s.token(form)
		})
	}
	close(start)
	wg.Wait()
	return out
}

// TestFiftyAtOnce: of fifty redemptions of one code one wins; of fifty refreshes
// with one secret all win, and all get the same successor.
func TestFiftyAtOnce(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	won := 0
	for _, tk := range s.race(50, redemption("kubernetes", s.code(s.browser(), authRequest("kubernetes"), "alice", "pw-alice"))) {
		if tk.status == http.StatusOK {
			won++
		} else if tk.Error != "invalid_grant" {
			t.Errorf("a loser hears %+v", tk)
		}
	}
	if won != 1 {
		t.Errorf("%d of 50 got a token for one code", won)
	}

	first := s.login("kubernetes", "alice", "pw-alice")
	successors := map[string]int{}
	for _, tk := range s.race(50, refresh("kubernetes", first.RefreshToken)) {
		if tk.status != http.StatusOK {
			t.Errorf("refresh: %+v", tk)
		}
		successors[tk.RefreshToken]++
	}
	if len(successors) != 1 || successors[first.RefreshToken] > 0 {
		t.Errorf("successors: %v", successors)
	}
}

// TestGrace: a refresh secret stays good until its successor was used and the grace
// is over; then it ends the session.
func TestGrace(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{extra: "sessions: {refreshGrace: 30s}"})
	first := s.login("kubernetes", "alice", "pw-alice")
	second := s.mustRefresh("kubernetes", first.RefreshToken)
	time.Sleep(31 * time.Second) // the successor is not used yet: the old one stays good
	if again := s.mustRefresh("kubernetes", first.RefreshToken); again.RefreshToken != second.RefreshToken {
		t.Error("another successor")
	}
	third := s.mustRefresh("kubernetes", second.RefreshToken)
	s.mustRefresh("kubernetes", first.RefreshToken) // within the grace
	time.Sleep(31 * time.Second)
	forged := first.RefreshToken[:len(first.RefreshToken)-4] + "AAAA"
	if got := s.token(refresh("kubernetes", forged)); got.Error != "invalid_grant" {
		t.Errorf("forged: %+v", got)
	}
	third = s.mustRefresh("kubernetes", third.RefreshToken) // the forged one ended nothing
	if got := s.token(refresh("kubernetes", first.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("older than the grace: %+v", got)
	}
	if got := s.token(refresh("kubernetes", third.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("the session lives on after a replay: %+v", got)
	}
}

// TestDevice walks the device flow: code on the device, person in a browser.
func TestDevice(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	begin := func() (device, user string) {
		a := post(t, s.client(), s.issuer+"/device_authorization", url.Values{"client_id": {"kubernetes"}, "scope": {"openid offline_access"}})
		var d struct {
			DeviceCode string `json:"device_code"`
			UserCode   string `json:"user_code"`
		}
		if err := json.Unmarshal([]byte(a.body), &d); err != nil || d.DeviceCode == "" {
			t.Fatalf("%d %s %v", a.status, a.body, err)
		}
		return d.DeviceCode, d.UserCode
	}
	poll := func(client, device string) tokens {
		return s.token(url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {client}, "device_code": {device}})
	}
	device, user := begin()
	if got := poll("kubernetes", device); got.Error != "authorization_pending" {
		t.Errorf("first poll: %+v", got)
	}
	eventually(t, time.Minute, "polls come too soon", func() error { // the first of them on most machines
		if got := poll("kubernetes", device); got.Error != "slow_down" {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	if got := poll("staging", device); got.Error != "invalid_grant" {
		t.Errorf("another client: %+v", got)
	}
	alice := s.browser()
	s.decide(alice, user, "prod", "alice", "allow")
	var won []tokens
	for _, tk := range s.race(10, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {"kubernetes"}, "device_code": {device}}) {
		if tk.status == http.StatusOK {
			won = append(won, tk)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d of 10 got tokens for one device code", len(won))
	}
	if got := groupsOf(t, won[0].IDToken); !slices.Contains(got, "corp:devs") {
		t.Errorf("groups %v", got)
	}
	s.mustRefresh("kubernetes", won[0].RefreshToken)
	if got := poll("kubernetes", device); got.Error != "invalid_grant" {
		t.Errorf("used device code: %+v", got)
	}
	device, user = begin()
	s.decide(alice, user, "prod", "", "deny")
	if got := poll("kubernetes", device); got.Error != "access_denied" {
		t.Errorf("denied: %+v", got)
	}
}

// decide enters a user code and presses a button on the confirmation page, which has
// to name client, signing in first where user is given.
func (s *server) decide(c *http.Client, code, client, user, press string) {
	s.t.Helper()
	at := s.issuer + "/device"
	a := get(s.t, c, at)
	if user != "" {
		if a.status != http.StatusSeeOther && a.status != http.StatusFound {
			s.t.Fatalf("device page without a session: %d %s", a.status, a.body)
		}
		page := get(s.t, c, s.absolute(a.header.Get("Location")))
		f := parseForm(s.t, page.body)
		f.action = s.absolute(f.action)
		if a = s.submit(c, f, user, "pw-"+user); a.status != http.StatusSeeOther {
			s.t.Fatalf("sign-in: %d %s", a.status, a.body)
		}
		a = get(s.t, c, s.absolute(a.header.Get("Location")))
	}
	f := parseForm(s.t, a.body)
	f.fields.Set("user_code", strings.ToLower(strings.ReplaceAll(code, "-", " ")))
	a = post(s.t, c, s.absolute(f.action), f.fields)
	for a.status == http.StatusSeeOther {
		a = get(s.t, c, s.absolute(a.header.Get("Location")))
	}
	if !strings.Contains(a.body, code) || !strings.Contains(a.body, client) || !strings.Contains(a.body, "127.0.0.1") {
		s.t.Fatalf("the confirmation names no code, client and place: %d %s", a.status, a.body)
	}
	f = parseForm(s.t, a.body)
	f.fields.Set("decision", press)
	if a = post(s.t, c, s.absolute(f.action), f.fields); a.status >= 400 {
		s.t.Fatalf("decision: %d %s", a.status, a.body)
	}
}

func (s *server) absolute(ref string) string {
	base, err := url.Parse(s.issuer + "/")
	if err == nil {
		base, err = base.Parse(ref)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return base.String()
}

// TestConfidential: a client with a secret, userinfo, introspection, revocation and
// logout.
func TestConfidential(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	browser := s.browser()
	params := with(with(authRequest("headlamp"), "code_challenge", "-"), "code_challenge_method", "-") // PKCE is theirs to choose
	redeem := with(redemption("headlamp", s.code(browser, params, "carol", "pw-carol")), "code_verifier", "-")
	if got := s.token(redeem); got.Error != "invalid_client" {
		t.Errorf("without its secret: %+v", got)
	}
	tk := s.token(with(redeem, "client_secret", "headlamp-secret-for-tests"))
	if tk.status != http.StatusOK {
		t.Fatalf("%+v", tk)
	}
	if aud := claims(t, tk.IDToken)["aud"]; len(aud.([]any)) != 2 {
		t.Errorf("aud %v: want the client and its cluster", aud)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.issuer+"/userinfo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tk.AccessToken)
	if a := do(t, s.client(), req); a.status != http.StatusOK || !strings.Contains(a.body, `"corp:ops"`) {
		t.Errorf("userinfo: %d %s", a.status, a.body)
	}
	own := url.Values{"client_id": {"headlamp"}, "client_secret": {"headlamp-secret-for-tests"}}
	introspect := func(token string) string {
		return post(t, s.client(), s.issuer+"/introspect", with(own, "token", token)).body
	}
	for name, token := range map[string]string{"access": tk.AccessToken, "refresh": tk.RefreshToken, "id": tk.IDToken} {
		if got := introspect(token); !strings.Contains(got, `"active":true`) {
			t.Errorf("introspection of the %s token: %s", name, got)
		}
	}
	if a := post(t, s.client(), s.issuer+"/revoke", with(own, "token", tk.RefreshToken)); a.status != http.StatusOK {
		t.Errorf("revoke: %d %s", a.status, a.body)
	}
	if got := introspect(tk.AccessToken); !strings.Contains(got, `"active":false`) {
		t.Errorf("introspection after revocation: %s", got)
	}
	q := url.Values{"id_token_hint": {tk.IDToken}, "post_logout_redirect_uri": {"https://headlamp.example/"}, "state": {"bye"}}
	if a := get(t, browser, s.issuer+"/logout?"+q.Encode()); a.header.Get("Location") != "https://headlamp.example/?state=bye" {
		t.Errorf("logout: %d %s %s", a.status, a.header.Get("Location"), a.body)
	}
	if a := get(t, browser, s.issuer+"/authorize?"+with(params, "prompt", "none").Encode()); !strings.Contains(a.header.Get("Location"), "error=login_required") {
		t.Errorf("after logout: %s", a.header.Get("Location"))
	}
	if a := get(t, browser, s.issuer+"/logout?"+with(q, "post_logout_redirect_uri", "https://evil.example/").Encode()); a.status != http.StatusBadRequest || a.header.Get("Location") != "" {
		t.Errorf("logout to a foreign URI: %d %s", a.status, a.header.Get("Location"))
	}
}

// TestExchange: the built-in client may ask for every cluster whose rules let the
// person in; a cluster's own client reaches no other cluster.
func TestExchange(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	alice, carol := s.login("tabard", "alice", "pw-alice"), s.login("tabard", "carol", "pw-carol")
	prod := s.login("kubernetes", "alice", "pw-alice")
	for _, c := range []struct {
		name, client, subject, audience, want string
	}{
		{"a cluster", "tabard", alice.IDToken, "staging", ""},
		{"a cluster that requires a group she lacks", "tabard", alice.IDToken, "closed", "access_denied"},
		{"a cluster that requires a group she has", "tabard", carol.IDToken, "closed", ""},
		{"an unknown audience", "tabard", alice.IDToken, "nobody", "invalid_target"},
		{"with another client's token", "tabard", prod.IDToken, "staging", "invalid_grant"},
		{"from one cluster to another", "kubernetes", prod.IDToken, "staging", "invalid_target"},
		{"with an access token", "tabard", alice.AccessToken, "staging", "invalid_grant"},
		{"with a broken token", "tabard", alice.IDToken + "x", "staging", "invalid_grant"},
	} {
		got := s.token(exchange(c.client, c.subject, c.audience))
		if got.Error != c.want || (c.want == "") != (got.status == http.StatusOK) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if c.want == "" {
			if aud := claims(t, got.AccessToken)["aud"].([]any); len(aud) != 1 || aud[0] != c.audience {
				t.Errorf("%s: aud %v", c.name, aud)
			}
		}
	}
	if got := groupsOf(t, s.token(exchange("tabard", carol.IDToken, "staging")).AccessToken); len(got) != 0 {
		t.Errorf("groups %v: the filter of staging lets none of carol's through", got)
	}
}

// TestAdminsOnly: the JSON API and the commands obey the same rule.
func TestAdminsOnly(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	alice, carol := s.signIn("alice", "pw-alice"), s.signIn("carol", "pw-carol")
	if _, err := alice.run(alice.home, "", "groups", "create", "mine"); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("alice made a group: %v", err)
	}
	carol.must("groups", "create", "platform")
	for _, name := range []string{"system:masters", "System:x", "corp:devs", "CORP:x", "", "a/b", "platform"} {
		if _, err := carol.run(carol.home, "", "groups", "create", name); err == nil {
			t.Errorf("group %q was made", name)
		}
	}
	carol.must("groups", "add", "platform", "--group", "corp:devs")
	if got := groupsOf(t, s.login("kubernetes", "alice", "pw-alice").IDToken); !slices.Contains(got, "platform") {
		t.Errorf("groups %v: alice is in platform through corp:devs", got)
	}
	for name, header := range map[string]string{"no token": "", "a cluster's token": "Bearer " + s.login("kubernetes", "carol", "pw-carol").IDToken} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.issuer+"/api/v1/groups", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", header)
		if a := do(t, s.client(), req); a.status != http.StatusUnauthorized {
			t.Errorf("API with %s: %d %s", name, a.status, a.body)
		}
	}
	if err := s.grepTrail(); err != nil {
		t.Error(err)
	}
}

// grepTrail fails if a password stands in the audit trail.
func (s *server) grepTrail() error {
	files, err := filepath.Glob(filepath.Join(s.dir, "audit", "*"))
	if err != nil || len(files) == 0 {
		return os.ErrNotExist
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || holdsPassword(string(b)) {
			return os.ErrInvalid
		}
	}
	return nil
}
