package web

import (
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/idp"
)

func TestSignInForm(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	sealed, binding := h.authorize("kubernetes", redirectURI)
	b.setCookie(idp.SignInCookie, binding)
	got := b.get("/sign-in?request=" + url.QueryEscape(sealed))
	want(t, got, 200, "Sign in to use <strong>prod</strong>", "Afterwards you return to <strong>localhost:8000</strong>", "Corp &amp; Co")
	f := fields(t, got.body)
	if form := f[""][1]; form["tag"] != "form" || form["method"] != "post" || form["action"] != "/sign-in" {
		t.Errorf("form is %v", form)
	}
	if u := f["username"]; len(u) != 1 || u[0]["autocomplete"] != "username" || u[0]["value"] != "" {
		t.Errorf("username is %v", u)
	}
	if p := f["password"]; len(p) != 1 || p[0]["type"] != "password" || p[0]["autocomplete"] != "current-password" {
		t.Errorf("password is %v", p)
	}
	if r := f["request"]; len(r) != 1 || r[0]["type"] != "hidden" || r[0]["value"] != sealed {
		t.Errorf("request is %v", r)
	}
	if len(f["directory"]) != 0 || len(f["next"]) != 0 {
		t.Errorf("controls that are not needed: %v", f)
	}
	const csp = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self' https: http://localhost:8000; frame-ancestors 'none'; base-uri 'none'"
	if c := got.header.Get("Content-Security-Policy"); c != csp {
		t.Errorf("policy is %q", c)
	}
	if regexp.MustCompile(`(?i)\s(style|on\w+)=|<style|<script>`).MatchString(got.body) {
		t.Error("inline style or script, which the policy forbids")
	}
}

// A login_hint fills the field in, whatever it holds.
func TestSignInLoginHint(t *testing.T) {
	h := newHouse(t)
	for _, hint := range []string{"alice@corp.example", `"><script>alert(1)</script>`} {
		a, err := h.idp.Authorize(t.Context(), idp.AuthRequest{
			ClientID: "kubernetes", RedirectURI: redirectURI, ResponseType: "code", LoginHint: hint,
			CodeChallenge: strings.Repeat("a", 43), ChallengeBy: "S256",
		}, "", "")
		must(t, err)
		b := h.browser()
		b.setCookie(idp.SignInCookie, a.Binding)
		got := b.get("/sign-in?request=" + url.QueryEscape(a.Sealed))
		if u := fields(t, got.body)["username"]; len(u) != 1 || u[0]["value"] != hint || strings.Contains(got.body, "<script>alert") {
			t.Errorf("%q: username is %v", hint, u)
		}
	}
}

func TestSignInGoesToTheClient(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	sealed, binding := h.authorize("kubernetes", redirectURI)
	b.setCookie(idp.SignInCookie, binding)
	got := b.post("/sign-in", url.Values{"request": {sealed}, "username": {"alice"}, "password": {password}})
	want(t, got, http.StatusSeeOther)
	u, err := url.Parse(got.header.Get("Location"))
	must(t, err)
	if u.Host != "localhost:8000" || u.Query().Get("code") == "" || u.Query().Get("state") != "st" {
		t.Errorf("goes to %s", u)
	}
	cookie := got.header.Get("Set-Cookie")
	if !regexp.MustCompile(`^__Host-tabard=[^;]+; Path=/; HttpOnly; Secure; SameSite=Lax$`).MatchString(cookie) {
		t.Errorf("cookie is %q", cookie)
	}
	want(t, b.get("/"), 200, "Alice Ångström", "corp:devs")
}

func TestSignInRefusals(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		login, password, client string
		status                  int
		words                   string
	}{
		{"alice", "wrong", "kubernetes", 422, "User name or password is wrong"},
		{"alice", "", "kubernetes", 422, "User name or password is wrong"},
		{"*)(uid=*", password, "kubernetes", 422, "User name or password is wrong"},
		{"disabled", password, "kubernetes", 403, "disabled in the directory"},
		{"locked", password, "kubernetes", 403, "locked in the directory"},
		{"expired", password, "kubernetes", 403, "passed its end date"},
		{"stale", password, "kubernetes", 403, "Your password has expired. Change it where you usually do"},
		{"fresh", password, "kubernetes", 403, "change your password before anything else"},
		{"alice", password, "vault", 403, "You have no access here"},
	} {
		t.Run(c.login+" to "+c.client, func(t *testing.T) {
			b := h.browser()
			sealed, binding := h.authorize(c.client, redirectURI)
			b.setCookie(idp.SignInCookie, binding)
			got := b.post("/sign-in", url.Values{"request": {sealed}, "username": {c.login}, "password": {c.password}})
			want(t, got, c.status, c.words, `role="alert" tabindex="-1" autofocus`)
			f := fields(t, got.body)
			if f["username"][0]["value"] != c.login || f["request"][0]["value"] != sealed {
				t.Errorf("the form forgot what it held: %v", f)
			}
			if f["password"][0]["value"] != "" || strings.Contains(got.body, "horse") {
				t.Error("the password came back")
			}
			if got.header.Get("Set-Cookie") != "" || got.header.Get("WWW-Authenticate") != "" {
				t.Errorf("headers %v", got.header)
			}
			if withID := strings.Contains(got.body, requestID); withID == (c.status == 422) {
				t.Errorf("request id shown: %v", withID)
			}
		})
	}
}

// Whoever does not know the password learns nothing of the account, also when they
// try until they have to wait.
func TestSignInTellsAccountsApartOnlyAfterThePassword(t *testing.T) {
	h := newHouse(t)
	h.corp.lockout = directory.Lockout{Threshold: 5, Window: 30 * time.Minute}
	b := h.browser()
	seen := map[string]string{}
	for _, login := range []string{"alice", "nobody", "disabled", "locked"} {
		var all strings.Builder
		for try := range 5 {
			got := b.post("/sign-in", url.Values{"username": {login}, "password": {"wrong"}})
			if try > 2 {
				want(t, got, 429, "Too many tries", "Try again in 34 minutes.")
				if wait, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || wait < 33*60-10 || wait > 34*60 {
					t.Errorf("Retry-After is %q", got.header.Get("Retry-After"))
				}
			}
			for _, name := range []string{"Date", "Content-Length", "Retry-After"} {
				got.header.Del(name) // the length follows the login's own, the wait the clock
			}
			must(t, got.header.Write(&all))
			all.WriteString(strings.ReplaceAll(got.body, `value="`+login+`"`, ""))
		}
		seen[all.String()] = login
	}
	if len(seen) != 1 {
		t.Errorf("%d different answers: %v", len(seen), seen)
	}
}

func TestSignInChoosesDirectory(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	form := url.Values{"username": {"twin"}, "password": {password}, "next": {"/device"}}
	got := b.post("/sign-in", form)
	want(t, got, 422, "Choose your directory", `<select id="directory" name="directory" required autofocus>`, "<option>corp</option>", "<option>lab</option>")
	f := fields(t, got.body)
	if f["username"][0]["value"] != "twin" || f["next"][0]["value"] != "/device" {
		t.Errorf("the form forgot what it held: %v", f)
	}
	form["directories"] = []string{f["directories"][0]["value"], f["directories"][1]["value"]}
	form.Set("directory", "lab")
	form.Set("password", "wrong")
	want(t, b.post("/sign-in", form), 422, "User name or password is wrong", "<option selected>lab</option>", "<option>corp</option>")
	form.Set("password", password)
	got = b.post("/sign-in", form)
	want(t, got, 303)
	if to := got.header.Get("Location"); to != "/device" {
		t.Errorf("goes to %s", to)
	}
}

func TestSignInInAnOutage(t *testing.T) {
	h := newHouse(t)
	h.corp.down.Store(true)
	got := h.browser().post("/sign-in", url.Values{"username": {"alice"}, "password": {password}})
	want(t, got, 503, "The directory does not answer just now", requestID, `value="alice"`)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestSignInWithABadRequest(t *testing.T) {
	h := newHouse(t)
	sealed, _ := h.authorize("kubernetes", redirectURI)
	_, other := h.authorize("kubernetes", redirectURI)
	for name, c := range map[string]struct{ request, binding string }{
		"garbage": {"x.y", other}, "another browser's": {sealed, other}, "without cookie": {sealed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := h.browser()
			if c.binding != "" {
				b.setCookie(idp.SignInCookie, c.binding)
			}
			want(t, b.get("/sign-in?request="+url.QueryEscape(c.request)), 400, "Start again from where you came", requestID)
			got := b.post("/sign-in", url.Values{"request": {c.request}, "username": {"alice"}, "password": {password}})
			want(t, got, 400)
			if got.header.Get("Set-Cookie") != "" {
				t.Error("a session was begun")
			}
		})
	}
}

func TestSignInSkippedWhenSignedIn(t *testing.T) {
	h := newHouse(t)
	b := h.as("alice")
	got := b.get("/sign-in?next=/device")
	want(t, got, 303)
	if got.header.Get("Location") != "/device" {
		t.Errorf("goes to %s", got.header.Get("Location"))
	}
}

func TestSafeNext(t *testing.T) {
	for in, out := range map[string]string{
		"/": "/", "/groups": "/groups", "/groups?q=a%26b": "/groups?q=a%26b", "/groups/a%20b": "/groups/a%20b",
		"/device?user_code=BCDF-GHJK": "/device?user_code=BCDF-GHJK", "/device/done": "/device/done",
		"": "", "groups": "", "//evil.example": "", "/\\evil.example": "", "/\t/evil.example": "", "https://evil.example/": "",
		"javascript:alert(1)": "", "/sign-out": "", "/groupsx": "", "/devices": "", "/authorize?x": "", "/api/v1/me": "",
		"/groups/..//evil.example": "", "/groups/../sign-out": "", "/groups/%2e%2e/sign-out": "", "/groups//x": "", "/groups/": "",
		"/groups#x": "", "/device\r\nSet-Cookie: a=b": "", "/%5cevil.example": "", `/groups?q=\`: "", "/groups?" + strings.Repeat("a", 600): "",
	} {
		if got := safeNext(in); got != out {
			t.Errorf("safeNext(%q) = %q, want %q", in, got, out)
		}
	}
}

func FuzzSafeNext(f *testing.F) {
	for _, s := range []string{"/", "/groups/x?y", "//evil", "/\\evil", "/device/%2f%2fevil", "/groups/@evil:80", "/groups;@evil"} {
		f.Add(s)
	}
	base, _ := url.Parse("https://id.corp.example/id/sign-in")
	f.Fuzz(func(t *testing.T, raw string) {
		next := safeNext(raw)
		if next == "" {
			return
		}
		if next[0] != '/' || strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") {
			t.Fatalf("%q became %q", raw, next)
		}
		u, err := base.Parse("/id" + next)
		if err != nil || u.Host != base.Host || u.Scheme != "https" || !strings.HasPrefix(u.Path, "/id/") {
			t.Fatalf("%q leads to %v, %v", raw, u, err)
		}
		if safeNext(next) != next {
			t.Fatalf("%q is not stable: %q", next, safeNext(next))
		}
	})
}

func TestFormSource(t *testing.T) {
	for uri, source := range map[string]string{
		"http://localhost:8000": "http://localhost:8000", "https://headlamp.corp.example/oidc?x=1": "https://headlamp.corp.example",
		"http://127.0.0.1:49152/callback": "http://127.0.0.1:49152", "http://[::1]:49152/callback": "http:",
		"com.example.app:/cb": "com.example.app:", "https://a;script-src/": "https:", "https://a b/": "", "": "", "/x": "",
	} {
		if got := formSource(uri); got != source {
			t.Errorf("formSource(%q) = %q, want %q", uri, got, source)
		}
	}
}

func TestSignOut(t *testing.T) {
	h := newHouse(t)
	b := h.as("alice")
	want(t, b.get("/sign-out"), 200, "Sign out?", "signed in as alice", `method="post"`)
	want(t, b.get("/"), 200) // asking is not doing
	u, err := url.Parse(h.URL)
	must(t, err)
	kept := b.Jar.Cookies(u)[0].Value
	got := b.post("/sign-out", nil)
	if _, err := h.idp.Browser(t.Context(), kept); !errors.Is(err, idp.ErrNoSession) {
		t.Errorf("a copy of the cookie still works: %v", err)
	}
	want(t, got, 303)
	if c := got.header.Get("Set-Cookie"); !strings.HasPrefix(c, "__Host-tabard=; Path=/; Max-Age=0; HttpOnly; Secure") || got.header.Get("Location") != "/signed-out" {
		t.Errorf("headers %v", got.header)
	}
	want(t, b.get("/"), 303)
	want(t, b.get("/signed-out"), 200, "You are signed out")
	want(t, b.get("/sign-out"), 303)
}

func TestSignOutForAClient(t *testing.T) {
	h := newHouse(t)
	b := h.as("alice")
	_, sealed, _, err := h.idp.Logout(t.Context(), "", "", "headlamp", "https://headlamp.corp.example/bye", "xyz")
	must(t, err)
	got := b.get("/sign-out?request=" + url.QueryEscape(sealed))
	want(t, got, 200, "asks to sign you out", sealed)
	if !strings.Contains(got.header.Get("Content-Security-Policy"), "form-action 'self' https: https://headlamp.corp.example;") {
		t.Error("the policy would stop the way back")
	}
	got = b.post("/sign-out", url.Values{"request": {sealed}})
	if got.status != 303 || got.header.Get("Location") != "https://headlamp.corp.example/bye?state=xyz" {
		t.Errorf("%d to %s", got.status, got.header.Get("Location"))
	}
	want(t, b.get("/"), 303)
	want(t, b.get("/sign-out?request=forged"), 400)
}

func TestDevice(t *testing.T) {
	h := newHouse(t)
	client, err := h.idp.Client("kubernetes")
	must(t, err)
	start := func() string {
		d, err := h.idp.StartDevice(t.Context(), client, true)
		must(t, err)
		return d.UserCode
	}
	code := start()
	got := h.browser().get("/device?user_code=" + code)
	if to := got.header.Get("Location"); got.status != 303 || to != "/sign-in?next="+url.QueryEscape("/device?user_code="+code) {
		t.Fatalf("%d to %s", got.status, to)
	}
	b := h.as("alice")
	got = b.get("/device?user_code=" + code)
	want(t, got, 200, `value="`+code+`"`)
	if f := fields(t, got.body); len(f["decision"]) != 0 {
		t.Error("a link leads straight to the approval")
	}
	want(t, b.get("/device/confirm?user_code="+code), 303)

	want(t, b.post("/device", url.Values{"user_code": {"ZZZZ-ZZZZ"}}), 422, "No device waits with this code", `value="ZZZZ-ZZZZ"`)
	got = b.post("/device", url.Values{"user_code": {strings.ToLower(code)}})
	want(t, got, 200, "prod", "alice", code, "Asked from", `value="allow"`, `value="deny"`)
	want(t, b.post("/device/confirm", url.Values{"user_code": {code}}), 400)
	h.corp.down.Store(true)
	got = b.post("/device/confirm", url.Values{"user_code": {code}, "decision": {"allow"}})
	want(t, got, 503, "The directory does not answer just now", requestID)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	h.corp.down.Store(false)
	got = b.post("/device/confirm", url.Values{"user_code": {code}, "decision": {"allow"}})
	if got.status != 303 || got.header.Get("Location") != "/device/done" {
		t.Errorf("%d %v", got.status, got.header)
	}
	want(t, b.get("/device/done"), 200, "The device is signed in")
	want(t, b.post("/device", url.Values{"user_code": {code}}), 422, "No device waits")

	got = b.post("/device/confirm", url.Values{"user_code": {start()}, "decision": {"deny"}})
	want(t, got, 303)
	want(t, b.get(got.header.Get("Location")), 200, "The device was turned away")
}

// Every state an account can be in has its words.
func TestAccountWords(t *testing.T) {
	h := newHouse(t)
	for _, p := range h.corp.all {
		if p.State != "active" && accountWords[p.State] == "" {
			t.Errorf("no words for %s", p.State)
		}
	}
	for _, e := range []error{idp.ErrCredentials, idp.ErrUnavailable, idp.ErrNoAccess, idp.ErrTooMany, idp.ErrNoSession, idp.ErrExpired} {
		if f := explain(e); f.Status == 500 || !strings.HasSuffix(f.Detail, ".") {
			t.Errorf("%v is told as %+v", e, f)
		}
	}
	if !slices.Contains([]int{500}, explain(http.ErrBodyNotAllowed).Status) {
		t.Error("an error nobody knows is not ours")
	}
}
