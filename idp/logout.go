package idp

import (
	"context"
	"fmt"
	"net/url"
	"time"
)

// LogoutRequest is an RP-initiated logout (OpenID Connect RP-Initiated Logout 1.0).
type LogoutRequest struct {
	ClientName  string    `json:"client,omitempty"`   // "" when not known
	RedirectURI string    `json:"redirect,omitempty"` // registered, with state; "" none
	Issued      time.Time `json:"issued"`
}

// Logout checks an RP-initiated logout. Where the browser's own session is the one
// that the hint names, it is ended at once and done is true; otherwise the sealed
// request goes to the sign-out page, which asks. A hint alone ends nothing: who
// has seen a token may not sign its owner out. ErrInvalidClient when hint, client
// and redirect URI do not belong together, or state is too long.
func (s *Service) Logout(ctx context.Context, cookie, hint, clientID, redirectURI, state string) (r LogoutRequest, sealed string, done bool, err error) {
	var claims idClaims
	if hint != "" {
		if claims, err = s.verifyHint(hint); err != nil {
			return r, "", false, fmt.Errorf("%w: id_token_hint: %w", ErrInvalidClient, err)
		}
		if clientID != "" && clientID != claims.AuthorizedParty {
			return r, "", false, fmt.Errorf("%w: id_token_hint was issued to another client", ErrInvalidClient)
		}
		clientID = claims.AuthorizedParty
	}
	if clientID != "" {
		c, err := s.Client(clientID)
		if err != nil {
			return r, "", false, err
		}
		r.ClientName = c.Name
		if redirectURI != "" && !c.AllowsPostLogout(redirectURI) {
			return r, "", false, fmt.Errorf("%w: post_logout_redirect_uri is not registered", ErrInvalidClient)
		}
		r.RedirectURI = redirectURI
	} else if redirectURI != "" {
		return r, "", false, fmt.Errorf("%w: post_logout_redirect_uri needs id_token_hint or client_id", ErrInvalidClient)
	}
	if len(state) > MaxState {
		return r, "", false, fmt.Errorf("%w: state is too long", ErrInvalidClient)
	}
	if r.RedirectURI != "" {
		r.RedirectURI = RedirectWith(r.RedirectURI, url.Values{"state": {state}})
	}
	if sess, err := s.browser(ctx, cookie); err == nil && hint != "" && claims.SessionID == sess.ID {
		return r, "", true, s.endSession(ctx, sess, "signed out at "+clientID)
	}
	r.Issued = s.Now().UTC()
	sealed, err = s.seals.seal("logout", r)
	return r, sealed, false, err
}

// OpenLogout opens what Logout sealed for the sign-out page. ErrExpired.
func (s *Service) OpenLogout(sealed string) (*LogoutRequest, error) {
	r := &LogoutRequest{}
	if err := s.seals.open("logout", sealed, r); err != nil || s.Now().Sub(r.Issued) > requestLife {
		return nil, ErrExpired
	}
	return r, nil
}

// HintedSub returns the subject of an id_token_hint, an id_token of ours that may
// have expired (OpenID Connect Core section 3.1.2.1).
func (s *Service) HintedSub(raw string) (string, error) {
	c, err := s.verifyHint(raw)
	return c.Subject, err
}
