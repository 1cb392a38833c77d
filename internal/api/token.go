package api

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// clientID is the built-in public client and audience of the API.
const clientID = "tabard"

// TemporaryError says that a token could not be had now, but that the login is
// still good.
type TemporaryError struct{ Cause error }

// temporarily makes err a *TemporaryError unless the server's certificate is to
// blame, which no waiting mends.
func temporarily(err error) error {
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return err
	}
	return &TemporaryError{err}
}

func (e *TemporaryError) Error() string {
	return "the server cannot refresh the login now, try again in a moment (you are still signed in): " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *TemporaryError) Unwrap() error { return e.Cause }

// tokenAnswer is the answer of the token endpoint (RFC 6749 sections 5.1, 5.2).
type tokenAnswer struct {
	IDToken      string `json:"id_token"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	Error        string `json:"error"`
	Description  string `json:"error_description"`
}

// refusal is an error answer of the token endpoint that has no name of its own.
type refusal struct {
	code, words string // fit for a terminal
	message     string
}

func (r *refusal) Error() string { return r.message }

// postToken sends one request to the token endpoint.
func postToken(ctx context.Context, hc *http.Client, server string, form url.Values) (tokenAnswer, error) {
	var answer tokenAnswer
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	resp, err := postForm(ctx, hc, server+"/token", form)
	if err != nil {
		return answer, temporarily(unreachable(server, err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return answer, &TemporaryError{fmt.Errorf("read the answer: %w", err)}
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		answer = tokenAnswer{}
	}
	switch {
	case resp.StatusCode == http.StatusOK && answer.IDToken+answer.AccessToken != "":
		return answer, nil
	case answer.Error == "invalid_grant":
		return answer, ErrSignInAgain
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, ctx.Err() != nil:
		return answer, &TemporaryError{fmt.Errorf("answer %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	code, words := clip(answer.Error, 40), clip(answer.Description, 200)
	return answer, &refusal{code, words, fmt.Sprintf("the server refused with %d %s %s: check that %s is a Tabard server", resp.StatusCode, code, words, server)}
}

func postForm(ctx context.Context, hc *http.Client, target string, form url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return hc.Do(req)
}

// revoke ends the login at the server (RFC 7009).
func revoke(ctx context.Context, l Login) error {
	hc, err := HTTPClient(l.roots())
	if err != nil {
		return err
	}
	defer hc.CloseIdleConnections()
	form := url.Values{"token": {l.RefreshToken}, "token_type_hint": {"refresh_token"}, "client_id": {clientID}}
	resp, err := postForm(ctx, hc, l.Server+"/revoke", form)
	if err != nil {
		return unreachable(l.Server, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("revocation answered %d", resp.StatusCode)
	}
	return nil
}

// claims are those of the id_token that its receiver checks.
type claims struct {
	Iss   string          `json:"iss"`
	Aud   json.RawMessage `json:"aud"`
	Exp   int64           `json:"exp"`
	Iat   int64           `json:"iat"`
	Nonce string          `json:"nonce"`
}

// with returns l with the tokens of a, after checking the id_token against server
// and nonce ("": none was sent).
func (l Login) with(a tokenAnswer, nonce string) (Login, error) {
	t, err := readToken(a.IDToken, l.Server, clientID, nonce)
	if err != nil {
		return l, err
	}
	l.Token = t
	if a.RefreshToken != "" {
		l.RefreshToken = a.RefreshToken
	}
	return l, nil
}

// maxMargin is how long before its end a token is renewed, if it lives long.
const maxMargin = 30 * time.Second

// readToken checks an id_token's claims. The signature is not checked: the token
// came over TLS from its issuer (OpenID Connect Core 3.1.3.7). The expiry is counted
// from now, so that a wrong clock on this machine does no harm.
func readToken(raw, issuer, audience, nonce string) (Token, error) {
	parts := strings.Split(raw, ".")
	var c claims
	if len(parts) != 3 {
		return Token{}, errors.New("the server sent no readable id_token")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &c) != nil {
		return Token{}, errors.New("the server sent no readable id_token")
	}
	if c.Iss != issuer || !hasAudience(c.Aud, audience) || nonce != "" && c.Nonce != nonce {
		return Token{}, errors.New("the server sent an id_token that is not for this sign-in: sign in again; if it stays so, the server's URL is not its issuer")
	}
	life := time.Duration(c.Exp-c.Iat) * time.Second
	end := time.Now().Add(life)
	return Token{Raw: raw, Expiry: end, Renew: end.Add(-min(maxMargin, life/4)).Truncate(time.Second)}, nil
}

// hasAudience reads aud, which is a string or a list of them (RFC 7519 4.1.3).
func hasAudience(aud json.RawMessage, want string) bool {
	var one string
	var many []string
	if json.Unmarshal(aud, &one) == nil {
		return one == want
	}
	return json.Unmarshal(aud, &many) == nil && slices.Contains(many, want)
}
