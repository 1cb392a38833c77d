package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/tabard-id/tabard/idp"
)

// VerifyAuthRequest implements op.Server. It checks the client and the redirect
// URI, without which nothing may be redirected; Authorize checks all else. The
// library gets a request that passes its own checks.
func (s *server) VerifyAuthRequest(ctx context.Context, _ *op.Request[oidc.AuthRequest]) (*op.ClientRequest[oidc.AuthRequest], error) {
	form := formOf(ctx)
	c, err := s.svc.Client(form.Get("client_id"))
	if err != nil {
		return nil, oidc.ErrInvalidRequest().WithDescription("The program that sent you here is not known: there is no client_id %q. Ask whoever runs it to register it.", cut(form.Get("client_id")))
	}
	uri := form.Get("redirect_uri")
	switch {
	case uri == "":
		return nil, oidc.ErrInvalidRequest().WithDescription("The program that sent you here gave no redirect_uri.")
	case !c.AllowsRedirect(uri):
		return nil, oidc.ErrInvalidRequest().WithDescription("The redirect_uri %q is not registered for %s. Add it to the configuration, letter by letter.", cut(uri), c.ID)
	}
	return &op.ClientRequest[oidc.AuthRequest]{
		Request: &op.Request[oidc.AuthRequest]{Data: &oidc.AuthRequest{
			RedirectURI: checkedURI, ResponseType: oidc.ResponseTypeCode, Scopes: oidc.SpaceDelimitedArray{oidc.ScopeOpenID},
		}},
		Client: client{c},
	}, nil
}

func cut(s string) string { return s[:min(len(s), 200)] }

// Authorize implements op.Server (RFC 6749 section 4.1, OpenID Connect Core section
// 3.1.2): back to the client with a code or an error, or on to the sign-in page.
func (s *server) Authorize(ctx context.Context, r *op.ClientRequest[oidc.AuthRequest]) (*op.Redirect, error) {
	form := formOf(ctx)
	req, err := s.authRequest(r.Client.(client).Client, form)
	var a idp.Authorized
	if err == nil {
		a, err = s.svc.Authorize(ctx, req, cookieOf(ctx, idp.SessionCookie), cookieOf(ctx, idp.SignInCookie))
	}
	if err != nil {
		code, description := s.authError(ctx, err)
		state := form.Get("state")
		if len(state) > idp.MaxState {
			state = "" // the error says so, and a header has to stay one
		}
		return op.NewRedirect(idp.RedirectWith(form.Get("redirect_uri"), url.Values{
			"error": {code}, "error_description": {description}, "state": {state}, "iss": {s.svc.Issuer()},
		})), nil
	}
	if a.Redirect != "" {
		return op.NewRedirect(a.Redirect), nil
	}
	to := op.NewRedirect(s.svc.Issuer() + "/sign-in?" + url.Values{"request": {a.Sealed}}.Encode())
	cookie := http.Cookie{Name: idp.SignInCookie, Value: a.Binding, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	to.Header.Set("Set-Cookie", cookie.String())
	return to, nil
}

// authRequest reads the parameters; unknown ones are ignored.
func (s *server) authRequest(c *idp.Client, form url.Values) (idp.AuthRequest, error) {
	r := idp.AuthRequest{
		ClientID: c.ID, RedirectURI: form.Get("redirect_uri"), State: form.Get("state"), Nonce: form.Get("nonce"),
		CodeChallenge: form.Get("code_challenge"), ChallengeBy: form.Get("code_challenge_method"),
		Offline: hasScope(form.Get("scope"), "offline_access"), LoginHint: form.Get("login_hint"),
		Prompt: strings.Fields(form.Get("prompt")), ResponseType: form.Get("response_type"),
	}
	for _, p := range []string{"request", "request_uri", "registration"} {
		if form.Has(p) {
			return r, &idp.RequestError{Code: p + "_not_supported", Description: p + " is not supported"}
		}
	}
	if mode := form.Get("response_mode"); mode != "" && mode != "query" {
		return r, &idp.RequestError{Code: "invalid_request", Description: "response_mode must be query"}
	}
	if form.Has("max_age") {
		seconds, err := strconv.ParseUint(form.Get("max_age"), 10, 31)
		if err != nil {
			return r, &idp.RequestError{Code: "invalid_request", Description: "max_age must be a number of seconds"}
		}
		age := time.Duration(seconds) * time.Second
		r.MaxAge = &age
	}
	if hint := form.Get("id_token_hint"); hint != "" {
		sub, err := s.svc.HintedSub(hint)
		if err != nil {
			return r, &idp.RequestError{Code: "invalid_request", Description: "id_token_hint is not an id_token of this issuer"}
		}
		r.HintedSub = sub
	}
	return r, nil
}

func hasScope(scopes, scope string) bool { return slices.Contains(strings.Fields(scopes), scope) }

// authError is what the client is told by redirect.
func (s *server) authError(ctx context.Context, err error) (code, description string) {
	var asked *idp.RequestError
	if errors.As(err, &asked) {
		return asked.Code, asked.Description
	}
	f := s.classify(ctx, err)
	return f.code, withID(ctx, f.words)
}

// EndSession implements op.Server (OpenID Connect RP-Initiated Logout 1.0).
func (s *server) EndSession(ctx context.Context, _ *op.Request[oidc.EndSessionRequest]) (*op.Redirect, error) {
	form := formOf(ctx)
	r, sealed, done, err := s.svc.Logout(ctx, cookieOf(ctx, idp.SessionCookie),
		form.Get("id_token_hint"), form.Get("client_id"), form.Get("post_logout_redirect_uri"), form.Get("state"))
	if errors.Is(err, idp.ErrInvalidClient) {
		s.log.WithError(err).Info("logout refused")
		return nil, oidc.ErrInvalidRequest().WithDescription("The program that sent you here may not sign you out this way: its id_token_hint, client_id and post_logout_redirect_uri do not belong together.")
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	if !done {
		return op.NewRedirect(s.svc.Issuer() + "/sign-out?" + url.Values{"request": {sealed}}.Encode()), nil
	}
	to := op.NewRedirect(s.svc.Issuer() + "/signed-out")
	if r.RedirectURI != "" {
		to.URL = r.RedirectURI
	}
	gone := http.Cookie{Name: idp.SessionCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	to.Header.Set("Set-Cookie", gone.String())
	return to, nil
}
