package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	os.Setenv("TABARD_KEYRING", "off") // the developer's own
	if dir := os.Getenv("TEST_REFRESH_DIR"); dir != "" {
		os.Exit(refreshOnce(dir))
	}
	goleak.VerifyTestMain(m)
}

// refreshOnce is what a process started by TestOneRefresh does.
func refreshOnce(dir string) int {
	c, err := OpenCache(dir, nil)
	if err == nil {
		_, err = c.ClusterToken(context.Background(), Account{Server: c.Last()}, "prod", nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fake is a server with a form page and a token endpoint that can be told to
// misbehave. The real ones are tested in internal/e2e.
type fake struct {
	*httptest.Server
	refreshes atomic.Int64
	exchanges atomic.Int64
	faults    atomic.Int64 // this many token requests fail first
	token     http.HandlerFunc
	challenge string
	nonce     string
	pages     int
	issuer    string
}

func newFake(t *testing.T) *fake {
	f := &fake{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		issuer := f.URL
		if f.issuer != "" {
			issuer = f.issuer
		}
		json.NewEncoder(w).Encode(map[string]string{"issuer": issuer})
	})
	mux.HandleFunc("GET /authorize", f.authorize)
	mux.HandleFunc("/sign-in", f.signIn)
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		if f.token != nil {
			f.token(w, r)
			return
		}
		f.answerToken(w, r)
	})
	mux.HandleFunc("GET /api/v1/clusters", func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer e30.") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(ClusterList{[]Cluster{{Name: "staging", ClientID: "prod"}, {Name: "prod", ClientID: "kubernetes"}, {Name: "closed", ClientID: "closed"}}})
	})
	mux.HandleFunc("POST /device_authorization", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(deviceAnswer{DeviceCode: "d", UserCode: "ABCD\x1b-EFGH", URL: f.URL + "/device", Interval: 1, Expires: 60})
	})
	mux.HandleFunc("POST /revoke", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("token") != "refresh-0" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	f.Server = httptest.NewTLSServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
}

func (f *fake) idToken(audience string) string {
	now := time.Now().Add(-30 * 365 * 24 * time.Hour) // a server whose clock is far off
	b, _ := json.Marshal(map[string]any{"iss": f.URL, "aud": []string{"other", audience}, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "nonce": f.nonce})
	return "e30." + base64.RawURLEncoding.EncodeToString(b) + ".c2ln"
}

func (f *fake) answerToken(w http.ResponseWriter, r *http.Request) {
	if f.faults.Add(-1) >= 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	switch r.FormValue("grant_type") {
	case "refresh_token":
		f.refreshes.Add(1)
	case "urn:ietf:params:oauth:grant-type:token-exchange":
		f.exchanges.Add(1)
		if r.FormValue("audience") == "closed" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"error":"access_denied","error_description":"your groups give you no access"}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"access_token": f.idToken(r.FormValue("audience"))})
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"id_token": f.idToken(clientID), "refresh_token": "refresh-1", "expires_in": 1})
}

func (f *fake) authorize(w http.ResponseWriter, r *http.Request) {
	f.nonce = r.FormValue("nonce")
	http.SetCookie(w, &http.Cookie{Name: "binding", Value: "b", Path: "/"})
	http.Redirect(w, r, "/sign-in?"+r.URL.RawQuery, http.StatusSeeOther)
}

const form = `<!doctype html><title>x</title><h1>Sign in</h1><form action="/search"><input name=q></form>
%s<form method=post action="/sign-in"><input type=hidden name=request value="%s"><input name=username>
<input type=password name=password>%s<button>Sign in</button></form>`

// signIn knows alice (password "right"), and bob who is in two directories.
func (f *fake) signIn(w http.ResponseWriter, r *http.Request) {
	f.pages++
	request, alert, choice := r.URL.RawQuery, "", ""
	if r.Method == http.MethodPost {
		if _, err := r.Cookie("binding"); err != nil {
			http.Error(w, "no cookie", http.StatusBadRequest)
			return
		}
		request = r.PostFormValue("request")
		switch user := r.PostFormValue("username"); {
		case user == "down":
			w.WriteHeader(http.StatusServiceUnavailable)
			alert = `<p role="alert">The directory is <b>unavailable</b>.</p>`
		case r.PostFormValue("password") != "right":
			w.WriteHeader(http.StatusUnauthorized)
			alert = `<div role="alert">
<strong>Password is wrong</strong><p>Check <b>both</b>.</p></div>`
		case user == "bob" && r.PostFormValue("directory") != "lab":
			choice = `<select name=directory><option value="">Choose</option><option value=corp>corp</option><option>lab</option></select>`
		case user == "away":
			http.Redirect(w, r, "https://evil.example/", http.StatusSeeOther)
			return
		default:
			q, _ := url.ParseQuery(request)
			f.challenge = q.Get("code_challenge")
			http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {"c"}, "state": {q.Get("state")}, "iss": {f.URL}}.Encode(), http.StatusSeeOther)
			return
		}
	}
	fmt.Fprintf(w, form, alert, strings.ReplaceAll(request, "&", "&amp;"), choice)
}

func answers(values ...string) func() (string, error) {
	return func() (string, error) {
		if len(values) == 0 {
			return "", io.EOF
		}
		v := values[0]
		values = values[1:]
		return v, nil
	}
}

func TestPrompt(t *testing.T) {
	for _, tc := range []struct {
		name            string
		users, password []string
		tries           int
		faults          int64
		told, err       string
	}{
		{name: "right", users: []string{"alice"}, password: []string{"right"}},
		{name: "second try", users: []string{"alice", "alice"}, password: []string{"x", "right"}, tries: 3, told: "Password is wrong. Check both."},
		{name: "wrong once", users: []string{"alice"}, password: []string{"x"}, err: "Password is wrong. Check both."},
		{name: "out of tries", users: []string{"a", "a", "a"}, password: []string{"x", "y", "z"}, tries: 2, told: "Password is wrong. Check both.", err: "Password is wrong. Check both."},
		{name: "two directories", users: []string{"bob"}, password: []string{"right"}},
		{name: "directory down", users: []string{"down", "down"}, password: []string{"x", "x"}, tries: 3, err: "The directory is unavailable."},
		{name: "empty password", users: []string{"alice"}, password: []string{""}, err: "username and password may not be empty"},
		{name: "no token", users: []string{"alice"}, password: []string{"right"}, faults: 1, err: "trade the code for tokens: answer 503 Service Unavailable: sign in again"},
		{name: "sent away", users: []string{"away"}, password: []string{"right"}, err: "the sign-in page leads to another server: sign in with --browser"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			s, err := NewSignIn(t.Context(), f.URL, f.ca())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f.faults.Store(tc.faults)
			var told, offered []string
			l, err := s.Prompt(t.Context(), Asker{
				Username: answers(tc.users...), Password: answers(tc.password...), Tries: tc.tries,
				Directory: func(names []string) (string, error) { offered = names; return "lab", nil },
				Tell:      func(m string) { told = append(told, m) },
			})
			if fmt.Sprint(err) != cmpOr(tc.err, "<nil>") || strings.Join(told, "|") != tc.told {
				t.Fatalf("err %v, told %q", err, told)
			}
			if tc.err == "" && (l.RefreshToken != "refresh-1" || !lives(l.Token, 4*time.Minute, 5*time.Minute)) {
				t.Errorf("login %+v", l)
			}
			if tc.users[0] == "bob" && strings.Join(offered, ",") != "corp,lab" {
				t.Errorf("offered %q", offered)
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func TestWrongIssuer(t *testing.T) {
	f := newFake(t)
	f.issuer = "https://id.corp.example"
	_, err := NewSignIn(t.Context(), f.URL, f.ca())
	if want := f.URL + " calls itself https://id.corp.example: use --server https://id.corp.example"; fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = NewSignIn(t.Context(), f.URL, "")
	if err == nil || !strings.Contains(err.Error(), "--ca-file") {
		t.Errorf("unknown authority: %v", err)
	}
}

// visit is a browser that comes back to the redirect URI with q added.
func visit(t *testing.T, change func(q url.Values)) func(string) error {
	return func(target string) error {
		u, _ := url.Parse(target)
		asked := u.Query()
		q := url.Values{"code": {"c"}, "state": {asked.Get("state")}, "iss": {u.Scheme + "://" + u.Host}}
		back := asked.Get("redirect_uri") + "?"
		if resp, err := http.Get(back + "state=guess&code=evil"); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("an answer with a wrong state: %v %v", resp, err)
		} else {
			resp.Body.Close()
		}
		change(q)
		resp, err := http.Get(back + q.Encode())
		if err == nil {
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
		}
		return err
	}
}

func TestBrowser(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(url.Values)
		err    string
	}{
		"good":      {func(url.Values) {}, ""},
		"other iss": {func(q url.Values) { q.Set("iss", "https://evil.example") }, "not from the server that was asked"},
		"no iss":    {func(q url.Values) { q.Del("iss") }, "not from the server that was asked"},
		"refused":   {func(q url.Values) { q.Set("error", "access_denied"); q.Set("error_description", "no\x1b[31m") }, "the sign-in was refused: no[31m"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			s, err := NewSignIn(t.Context(), f.URL, f.ca())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			open := visit(t, tc.change)
			l, err := s.Browser(t.Context(), "", func(target string) error { f.nonce = s.nonce; return open(target) })
			if tc.err == "" && (err != nil || l.Token.Raw == "") || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("login %+v, err %v", l, err)
			}
		})
	}
}

func TestWrongNonceIsRefused(t *testing.T) {
	f := newFake(t)
	f.nonce = "another"
	l := Login{Server: f.URL}
	if _, err := l.with(tokenAnswer{IDToken: f.idToken(clientID)}, "mine"); err == nil {
		t.Error("accepted an id_token with another nonce")
	}
	for _, token := range []string{"", "a.b", "e30.e30.x", "e30.!.x"} {
		if _, err := l.with(tokenAnswer{IDToken: token}, ""); err == nil {
			t.Errorf("accepted %q", token)
		}
	}
}

// login is one whose id_token has expired.
func (f *fake) login() Login {
	past := time.Now().Add(-time.Minute)
	return Login{Server: f.URL, CA: f.ca(), Token: Token{Raw: "old", Expiry: past, Renew: past}, RefreshToken: "refresh-0"}
}

func (f *fake) account() Account { return Account{Server: f.URL} }

// lives says whether t has between least and most left.
func lives(t Token, least, most time.Duration) bool {
	left := time.Until(t.Renew)
	return left > least && left < most && t.Expiry.After(t.Renew)
}

// cached is a cache with an expired login at f.
func cached(t *testing.T, f *fake) *Cache {
	c, err := OpenCache(filepath.Join(t.TempDir(), "tabard"), func(m string) { t.Log(m) })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Add(t.Context(), f.login()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOneRefresh(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if token, err := c.Token(t.Context(), f.account()); err != nil || strings.Count(token, ".") != 2 {
				t.Errorf("token %q: %v", token, err)
			}
		})
	}
	for range 3 { // processes besides
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "TEST_REFRESH_DIR="+c.dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if n := f.refreshes.Load(); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
	if n := f.exchanges.Load(); n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
	if l, _ := c.Load(f.account()); l.RefreshToken != "refresh-1" {
		t.Errorf("cached %+v", l)
	}
}

func TestCacheFilesArePrivate(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	if fi, _ := os.Stat(c.dir); fi.Mode().Perm() != 0o700 {
		t.Errorf("folder %v", fi.Mode())
	}
	entries, _ := os.ReadDir(c.dir)
	if len(entries) != 4 {
		t.Errorf("%d files, want the login, its lock, whose it is and the last server", len(entries))
	}
	for _, e := range entries {
		if fi, _ := e.Info(); fi.Mode().Perm() != 0o600 {
			t.Errorf("%s %v", e.Name(), fi.Mode())
		}
	}
}

func TestRefreshFaults(t *testing.T) {
	hang := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // so that the server sees the client go
		<-r.Context().Done()
	}
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	for _, tc := range []struct {
		name      string
		token     http.HandlerFunc
		faults    int64
		deadline  time.Duration
		left      time.Duration // of the cached id_token
		temporary bool
		again     bool
	}{
		{name: "one 503, then good", faults: 1},
		{name: "always 503", token: status(503, `{"error":"temporarily_unavailable"}`), temporary: true},
		{name: "always 503 while the old token lives", token: status(503, ""), left: time.Hour},
		{name: "hang", token: hang, deadline: 2 * time.Second, temporary: true},
		{name: "invalid_grant", token: status(400, `{"error":"invalid_grant"}`), again: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			f.token = tc.token
			f.faults.Store(tc.faults)
			c := cached(t, f)
			l, _ := c.Load(f.account())
			if tc.left > 0 {
				l.Token.Expiry = time.Now().Add(tc.left)
				c.Add(t.Context(), l)
			}
			ctx := t.Context()
			if tc.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tc.deadline)
				defer cancel()
			}
			_, err := c.Token(ctx, f.account())
			var temporary *TemporaryError
			if errors.As(err, &temporary) != tc.temporary || errors.Is(err, ErrSignInAgain) != tc.again || !tc.temporary && !tc.again && err != nil {
				t.Fatalf("err %v", err)
			}
			after, _ := c.Load(f.account())
			if kept := after.RefreshToken != ""; kept == tc.again || after.CA == "" {
				t.Errorf("after %v the cache holds %+v", err, after)
			}
		})
	}
}

func TestLogout(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	if err := c.Logout(t.Context(), f.account()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Token(t.Context(), f.account()); !errors.Is(err, ErrNoLogin) {
		t.Errorf("after logout: %v", err)
	}
	c.Add(t.Context(), Login{Server: f.URL, CA: f.ca(), RefreshToken: "unknown to the server"})
	if err := c.Logout(t.Context(), f.account()); err == nil || !strings.Contains(err.Error(), "signed out here") {
		t.Errorf("the server could not be told: %v", err)
	}
	if _, err := c.Load(f.account()); !errors.Is(err, ErrNoLogin) {
		t.Errorf("after a failed revocation: %v", err)
	}
}

func TestServerURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://ID.corp.example/":       "https://id.corp.example",
		"id.corp.example":                "https://id.corp.example",
		"https://id.corp.example:8443/a": "https://id.corp.example:8443/a",
		"http://127.0.0.1:80":            "http://127.0.0.1:80",
		"http://id.corp.example":         "",
		"ftp://id.corp.example":          "",
		"https://u:p@id.corp.example":    "",
		"https://id.corp.example?x":      "",
		"":                               "",
	} {
		if got, err := ServerURL(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestClientErrors(t *testing.T) {
	for _, tc := range []struct {
		status     int
		body, want string
	}{
		{401, "", ErrSignInAgain.Error()},
		{403, `{"title":"Forbidden","status":403,"detail":"only members of admins may","requestID":"r1"}`, "Forbidden: only members of admins may (request r1)"},
		{502, "<html>bad gateway", "the server answered 502 Bad Gateway: is the URL right?"},
		{200, "<html>", "the server's answer is not what this version expects: invalid character '<' looking for beginning of value"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(tc.status)
			io.WriteString(w, tc.body)
		}))
		_, err := NewClient(srv.URL, srv.Client(), nil).Group(t.Context(), "platform")
		if fmt.Sprint(err) != tc.want {
			t.Errorf("%d: %v, want %s", tc.status, err, tc.want)
		}
		srv.Close()
		_, err = NewClient(srv.URL, srv.Client(), nil).Group(t.Context(), "platform")
		if err == nil || !strings.Contains(err.Error(), "gives no answer") {
			t.Errorf("server gone: %v", err)
		}
	}
}

func FuzzReadPage(f *testing.F) {
	f.Add(fmt.Sprintf(form, "", "r", `<select name=directory><option>lab</select>`))
	f.Add(`<form action="http://[::1"><input name=password>`)
	f.Add(`<option>`)
	f.Fuzz(func(t *testing.T, doc string) {
		u, _ := url.Parse("https://id.corp.example/sign-in")
		p, err := readPage(&http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(doc)), Request: &http.Request{URL: u}})
		if err == nil && strings.ContainsAny(p.said(), "\x1b\n\r\x00") {
			t.Errorf("control characters in %q", p.said())
		}
	})
}
