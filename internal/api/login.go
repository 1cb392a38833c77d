package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// SignIn is one sign-in of a person at a server: authorization code with PKCE
// (RFC 6749, RFC 7636) as the built-in client.
type SignIn struct {
	login                  Login
	http                   *http.Client
	state, nonce, verifier string
}

// NewSignIn prepares a sign-in. It asks the server for its discovery document and
// fails when its issuer is not the URL given. caPEM may be empty.
func NewSignIn(ctx context.Context, server, caPEM string) (*SignIn, error) {
	hc, err := HTTPClient(caPEM)
	if err != nil {
		return nil, err
	}
	s := &SignIn{login: Login{Server: server, CA: caPEM}, http: hc, state: rand.Text(), nonce: rand.Text(), verifier: rand.Text() + rand.Text()}
	return s, s.discover(ctx)
}

// Close frees the connections.
func (s *SignIn) Close() { s.http.CloseIdleConnections() }

func (s *SignIn) discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := s.get(ctx, s.login.Server+"/.well-known/openid-configuration")
	if err != nil {
		return unreachable(s.login.Server, err)
	}
	defer resp.Body.Close()
	var doc struct {
		Issuer string `json:"issuer"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&doc)
	if resp.StatusCode != http.StatusOK || err != nil || doc.Issuer == "" {
		return fmt.Errorf("%s is no Tabard server: its discovery document answered %d: check the URL", s.login.Server, resp.StatusCode)
	}
	if doc.Issuer != s.login.Server {
		return fmt.Errorf("%s calls itself %s: use --server %s", s.login.Server, clip(doc.Issuer, 200), clip(doc.Issuer, 200))
	}
	return nil
}

func (s *SignIn) get(ctx context.Context, target string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	return s.http.Do(req)
}

// authorizeURL is where the sign-in begins.
func (s *SignIn) authorizeURL(redirect, hint string) string {
	sum := sha256.Sum256([]byte(s.verifier))
	q := url.Values{
		"response_type": {"code"}, "client_id": {clientID}, "redirect_uri": {redirect},
		"scope": {"openid offline_access"}, "state": {s.state}, "nonce": {s.nonce},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(sum[:])},
		"code_challenge_method": {"S256"},
	}
	if hint != "" {
		q.Set("login_hint", hint)
	}
	return s.login.Server + "/authorize?" + q.Encode()
}

// Browser signs in through a browser: it listens on loopback, calls open with
// the URL that the browser has to visit, and waits for it to come back until ctx
// ends. hint is put into the form as the username and may be empty.
func (s *SignIn) Browser(ctx context.Context, hint string, open func(url string) error) (Login, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp6", "[::1]:0")
	}
	if err != nil {
		return Login{}, fmt.Errorf("listen for the browser: %w: use --prompt or --device", err)
	}
	redirect := "http://" + l.Addr().String() + "/callback"
	answers := make(chan url.Values, 1)
	srv := &http.Server{Handler: s.callback(answers), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { // the page is written before the server goes
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
		<-done
	}()
	if err := open(s.authorizeURL(redirect, hint)); err != nil {
		return Login{}, err
	}
	select {
	case q := <-answers:
		return s.finish(ctx, q, redirect)
	case <-ctx.Done():
		return Login{}, tooLate(ctx, "nobody signed in in the browser in time: run the command again, or use --prompt or --device")
	}
}

// tooLate is msg when a deadline ended ctx, and its own error when the person did.
func tooLate(ctx context.Context, msg string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New(msg)
	}
	return ctx.Err()
}

// callbackPage is what the browser shows at the end.
const callbackPage = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>%s</title>
<style>body{font:1.1rem/1.5 system-ui,sans-serif;margin:15vh auto;max-width:30rem;padding:0 1rem;color-scheme:light dark}</style><h1>%s</h1><p>%s</p>
`

// callback serves the redirect URI. Only an answer with our state counts; others
// are turned away and the wait goes on.
func (s *SignIn) callback(answers chan<- url.Values) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		if !s.ours(r.URL.Query()) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, callbackPage, "Not this one", "Not this one", "This is not the answer to the sign-in that waits here.")
			return
		}
		select {
		case answers <- r.URL.Query():
		default: // one answer is enough
		}
		title := "Signed in"
		if r.URL.Query().Get("error") != "" {
			title = "Not signed in"
		}
		fmt.Fprintf(w, callbackPage, title, title, "Go back to the terminal; this window can be closed.")
	})
	return mux
}

func (s *SignIn) ours(q url.Values) bool {
	return subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(s.state)) == 1
}

// finish checks what came back to the redirect URI and trades the code for
// tokens. iss is checked against mix-up (RFC 9207).
func (s *SignIn) finish(ctx context.Context, q url.Values, redirect string) (Login, error) {
	switch {
	case !s.ours(q), q.Get("iss") != s.login.Server:
		return Login{}, errors.New("the answer is not from the server that was asked: sign in again")
	case q.Get("error") == "access_denied":
		return Login{}, errors.New("the sign-in was refused: " + clip(q.Get("error_description"), 200))
	case q.Get("error") != "":
		return Login{}, fmt.Errorf("the server could not sign you in: %s %s", clip(q.Get("error"), 60), clip(q.Get("error_description"), 200))
	}
	form := url.Values{
		"grant_type": {"authorization_code"}, "code": {q.Get("code")}, "redirect_uri": {redirect},
		"client_id": {clientID}, "code_verifier": {s.verifier},
	}
	answer, err := postToken(ctx, s.http, s.login.Server, form) // once: a code that comes twice ends the session
	var temporary *TemporaryError
	if errors.As(err, &temporary) {
		err = fmt.Errorf("%w: sign in again", temporary.Cause)
	}
	if err != nil {
		return Login{}, fmt.Errorf("trade the code for tokens: %w", err)
	}
	return s.login.with(answer, s.nonce)
}

// Printable leaves out of s what could move a terminal's cursor or break a row.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// clip makes text from a server fit for a terminal: no control characters, white
// space collapsed, at most n runes.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) > n {
		return string(r[:n]) + "…"
	}
	return string(r)
}
