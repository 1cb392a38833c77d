package idp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tabard-id/tabard/internal/store"
)

// AuthRequest is an authorization request (RFC 6749 section 4.1.1, OpenID Connect
// Core section 3.1.2.1) whose client and redirect URI are known to be right. It is
// sealed into the sign-in page rather than stored.
type AuthRequest struct {
	ClientID      string    `json:"client"`
	ClientName    string    `json:"-"` // for people
	RedirectURI   string    `json:"redirect"`
	State         string    `json:"state,omitempty"`
	Nonce         string    `json:"nonce,omitempty"`
	CodeChallenge string    `json:"challenge,omitempty"` // S256
	Offline       bool      `json:"offline,omitempty"`   // scope offline_access
	LoginHint     string    `json:"hint,omitempty"`
	Issued        time.Time `json:"issued"`
	Binding       []byte    `json:"binding"` // hash of the sign-in cookie

	Prompt       []string       `json:"-"`
	MaxAge       *time.Duration `json:"-"`
	HintedSub    string         `json:"-"` // sub of a valid id_token_hint
	ResponseType string         `json:"-"`
	ChallengeBy  string         `json:"-"` // code_challenge_method
}

// RequestError is a fault of an authorization request that the client is told by
// redirect: an error code of RFC 6749 section 4.1.2.1 or OpenID Connect Core
// section 3.1.2.6.
type RequestError struct{ Code, Description string }

func (e *RequestError) Error() string { return e.Code + ": " + e.Description }

// requestLife is how long a sign-in page stays good.
const requestLife = 15 * time.Minute

// codeLife is how long a code may be redeemed; codeMemory is how long a used one
// is remembered, so that a replay is seen.
const (
	codeLife   = 2 * time.Minute
	codeMemory = 15 * time.Minute
)

var challengeForm = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// MaxState bounds the state that a client gets back, in bytes.
const MaxState = 2048

// printable reports whether s comes out of JSON as it went in, and holds nothing
// that RFC 6749 appendix A.5 forbids for good reason.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// check refuses what Tabard does not do.
func (r *AuthRequest) check(c *Client) error {
	none := slices.Contains(r.Prompt, "none")
	switch {
	case r.ResponseType == "":
		return &RequestError{"invalid_request", "response_type is missing"}
	case r.ResponseType != "code":
		return &RequestError{"unsupported_response_type", "only response_type=code is supported"}
	case r.CodeChallenge == "" && r.ChallengeBy != "":
		return &RequestError{"invalid_request", "code_challenge is missing"}
	case r.CodeChallenge == "" && c.Public:
		return &RequestError{"invalid_request", "code_challenge is required: use PKCE with S256"}
	case r.CodeChallenge != "" && r.ChallengeBy != "S256":
		return &RequestError{"invalid_request", "code_challenge_method must be S256"}
	case r.CodeChallenge != "" && !challengeForm.MatchString(r.CodeChallenge):
		return &RequestError{"invalid_request", "code_challenge is not a SHA-256 in base64url"}
	case none && len(r.Prompt) > 1:
		return &RequestError{"invalid_request", "prompt=none stands alone"}
	case len(r.State) > MaxState || len(r.Nonce) > 1024 || len(r.LoginHint) > 256:
		return &RequestError{"invalid_request", "state, nonce or login_hint is too long"}
	case !printable(r.State) || !printable(r.Nonce):
		return &RequestError{"invalid_request", "state and nonce must be UTF-8 without control characters"}
	}
	return nil
}

// Authorized is what comes of an authorization request: a redirect to the client,
// or a sealed request for the sign-in page with the value of the sign-in cookie.
type Authorized struct {
	Redirect string
	Sealed   string
	Binding  string
}

// Authorize answers r from the browser's session where that is enough (single
// sign-on), and otherwise sends the person to the sign-in page. cookie and binding
// are the values of the session and sign-in cookies, "" where absent. A
// *RequestError goes to the client.
func (s *Service) Authorize(ctx context.Context, r AuthRequest, cookie, binding string) (Authorized, error) {
	c, err := s.Client(r.ClientID)
	if err != nil {
		return Authorized{}, err
	}
	if err := r.check(c); err != nil {
		return Authorized{}, err
	}
	r.Issued = s.Now().UTC()
	none := slices.Contains(r.Prompt, "none")
	redirect, err := s.singleSignOn(ctx, &r, c, cookie)
	switch {
	case err == nil && redirect != "":
		return Authorized{Redirect: redirect}, nil
	case err != nil && !errors.Is(err, ErrNoSession) && (none || !errors.Is(err, ErrUnavailable)):
		return Authorized{}, err
	case none:
		return Authorized{}, &RequestError{"login_required", "sign in first"}
	}
	if len(binding) != 43 { // not one of ours
		binding = encode(randomBytes(32))
	}
	r.Binding = hashSecret(binding)
	sealed, err := s.seals.seal("authorize", r)
	return Authorized{Sealed: sealed, Binding: binding}, err
}

// singleSignOn issues a code from the browser's session; "" or ErrNoSession means
// that the person has to sign in: also when the sign-in is older than the client's
// cluster lets one be.
func (s *Service) singleSignOn(ctx context.Context, r *AuthRequest, c *Client, cookie string) (string, error) {
	if cookie == "" || slices.Contains(r.Prompt, "login") || slices.Contains(r.Prompt, "select_account") {
		return "", nil
	}
	var take func(*Session)
	for range maxTries {
		sess, err := s.browser(ctx, cookie)
		if err != nil {
			return "", err
		}
		if r.HintedSub != "" && r.HintedSub != sess.Sub || s.tooOld(sess, c) ||
			r.MaxAge != nil && s.Now().Sub(sess.AuthTime) >= *r.MaxAge {
			return "", nil
		}
		if take == nil {
			if take, err = s.reread(ctx, sess); err != nil {
				return "", err
			}
		}
		take(sess)
		sess.LastUsed = s.Now().UTC()
		redirect, err := s.issueCode(ctx, sess, c, r)
		if !errors.Is(err, store.ErrConflict) {
			return redirect, err
		}
	}
	return "", errBusy
}

// OpenRequest opens what Authorize sealed. binding is the value of the sign-in
// cookie. ErrExpired when the request is too old, not ours, or was made for
// another browser.
func (s *Service) OpenRequest(sealed, binding string) (*AuthRequest, error) {
	r := &AuthRequest{}
	if err := s.seals.open("authorize", sealed, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExpired, err)
	}
	c, err := s.Client(r.ClientID)
	if err != nil || !c.AllowsRedirect(r.RedirectURI) || !isSecret(binding, r.Binding) || s.Now().Sub(r.Issued) > requestLife {
		return nil, ErrExpired
	}
	r.ClientName = c.Name
	return r, nil
}

// code is an authorization code in the record of its session. Only the hash of its
// secret is kept.
type code struct {
	Hash          []byte    `json:"hash"`
	Client        string    `json:"client"`
	RedirectURI   string    `json:"redirect"`
	CodeChallenge string    `json:"challenge,omitempty"`
	Nonce         string    `json:"nonce,omitempty"`
	Offline       bool      `json:"offline,omitempty"`
	Expires       time.Time `json:"expires"`
	Used          string    `json:"used,omitempty"` // the family that it began
}

// maxCodes is how many codes one session remembers; then the oldest makes room.
const maxCodes = 32

// addCode puts rec into the session, and returns the code "sid.id.secret".
func (s *Service) addCode(sess *Session, rec code) string {
	now := s.Now()
	maps.DeleteFunc(sess.Codes, func(_ string, c code) bool { return now.Sub(c.Expires) > codeMemory-codeLife })
	for len(sess.Codes) >= maxCodes {
		oldest := ""
		for id, c := range sess.Codes {
			if oldest == "" || c.Expires.Before(sess.Codes[oldest].Expires) {
				oldest = id
			}
		}
		delete(sess.Codes, oldest)
	}
	if sess.Codes == nil {
		sess.Codes = map[string]code{}
	}
	id, secret := encode(randomBytes(6)), encode(randomBytes(32))
	rec.Hash, rec.Expires = hashSecret(secret), now.Add(codeLife).UTC()
	sess.Codes[id] = rec
	return sess.ID + "." + id + "." + secret
}

// issueCode writes sess with a code for c in it, and returns the redirect to the
// client with it (RFC 9207: with iss). ErrNoAccess if a rule gives the person no
// token, so that they hear of it before they leave.
func (s *Service) issueCode(ctx context.Context, sess *Session, c *Client, r *AuthRequest) (string, error) {
	if _, err := s.entitle(sess, c); err != nil {
		return "", s.denied(ctx, sess, c, err)
	}
	raw := s.addCode(sess, code{Client: c.ID, RedirectURI: r.RedirectURI, CodeChallenge: r.CodeChallenge, Nonce: r.Nonce, Offline: r.Offline})
	if err := s.putSession(ctx, sess); err != nil {
		return "", err
	}
	return RedirectWith(r.RedirectURI, url.Values{"code": {raw}, "state": {r.State}, "iss": {s.cfg.Issuer}}), nil
}

// RedirectWith adds the non-empty parameters to a registered URI, keeping its own.
func RedirectWith(uri string, params url.Values) string {
	u, err := url.Parse(uri)
	if err != nil {
		return uri // registered, so it was parsed before
	}
	q := u.Query()
	for k, v := range params {
		if v[0] != "" {
			q.Set(k, v[0])
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// verifies reports whether verifier is what the challenge was made of (RFC 7636
// section 4.6). Both are there, or neither.
func (c *code) verifies(verifier string) bool {
	if c.CodeChallenge == "" || verifier == "" {
		return c.CodeChallenge == verifier
	}
	sum := sha256.Sum256([]byte(verifier))
	return len(verifier) <= 128 && subtle.ConstantTimeCompare([]byte(encode(sum[:])), []byte(c.CodeChallenge)) == 1
}
