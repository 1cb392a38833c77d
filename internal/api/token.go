package api

import (
	"context"
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

func (e *TemporaryError) Error() string {
	return "the server cannot refresh the login now, try again in a moment (you are still signed in): " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *TemporaryError) Unwrap() error { return e.Cause }

// tokenAnswer is the answer of the token endpoint (RFC 6749 sections 5.1, 5.2).
type tokenAnswer struct {
	IDToken      string `json:"id_token"`
	RefreshToken string `json:"refresh_token"`
	Error        string `json:"error"`
}

// Limits of one refresh: tries, and time for each.
const (
	refreshTries = 4
	tryTimeout   = 6 * time.Second
)

// Refresh trades the refresh token of l for a new login. A server that is down,
// slow or without its directory is asked again a few times while ctx lasts.
// Sending the same refresh token again is safe: the server answers with the same
// successor. Errors: ErrSignInAgain, *TemporaryError.
func Refresh(ctx context.Context, l Login) (Login, error) {
	hc, err := HTTPClient(l.CA)
	if err != nil {
		return Login{}, err
	}
	defer hc.CloseIdleConnections()
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {l.RefreshToken}, "client_id": {clientID}}
	for try, wait := 1, 200*time.Millisecond; ; try, wait = try+1, 2*wait {
		answer, err := postToken(ctx, hc, l.Server, form)
		if err == nil {
			return l.with(answer, "")
		}
		var temporary *TemporaryError
		if !errors.As(err, &temporary) || try == refreshTries {
			return Login{}, err
		}
		select {
		case <-ctx.Done():
			return Login{}, err
		case <-time.After(wait):
		}
	}
}

// postToken sends one request to the token endpoint.
func postToken(ctx context.Context, hc *http.Client, server string, form url.Values) (tokenAnswer, error) {
	var answer tokenAnswer
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	resp, err := postForm(ctx, hc, server+"/token", form)
	if err != nil {
		return answer, &TemporaryError{unreachable(server, err)}
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
	case resp.StatusCode == http.StatusOK && answer.IDToken != "":
		return answer, nil
	case answer.Error == "invalid_grant":
		return answer, ErrSignInAgain
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, ctx.Err() != nil:
		return answer, &TemporaryError{fmt.Errorf("answer %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	return answer, fmt.Errorf("the server refused with %d %s: check that %s is a Tabard server", resp.StatusCode, clip(answer.Error, 40), server)
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
	hc, err := HTTPClient(l.CA)
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
// and nonce ("" after a refresh). The signature is not checked: the token came
// over TLS from its issuer (OpenID Connect Core 3.1.3.7). The expiry is counted
// from now, so that a wrong clock on this machine does no harm.
func (l Login) with(a tokenAnswer, nonce string) (Login, error) {
	parts := strings.Split(a.IDToken, ".")
	var c claims
	if len(parts) != 3 {
		return Login{}, errors.New("the server sent no readable id_token")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &c) != nil {
		return Login{}, errors.New("the server sent no readable id_token")
	}
	if c.Iss != l.Server || !hasAudience(c.Aud) || nonce != "" && c.Nonce != nonce {
		return Login{}, errors.New("the server sent an id_token that is not for this sign-in: sign in again; if it stays so, the server's URL is not its issuer")
	}
	l.IDToken, l.Expiry = a.IDToken, time.Now().Add(time.Duration(c.Exp-c.Iat)*time.Second)
	if a.RefreshToken != "" {
		l.RefreshToken = a.RefreshToken
	}
	return l, nil
}

// hasAudience reads aud, which is a string or a list of them (RFC 7519 4.1.3).
func hasAudience(aud json.RawMessage) bool {
	var one string
	var many []string
	if json.Unmarshal(aud, &one) == nil {
		return one == clientID
	}
	return json.Unmarshal(aud, &many) == nil && slices.Contains(many, clientID)
}
