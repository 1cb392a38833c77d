package idp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// accessToken is what an opaque access token holds, sealed. It is not stored: it
// lives as long as its family and its time.
type accessToken struct {
	Session string `json:"s"`
	Family  string `json:"f"`
	Client  string `json:"c"`
	Expires int64  `json:"e"` // Unix seconds
}

func (s *Service) openAccess(raw string) (accessToken, error) {
	var at accessToken
	if err := s.seals.open("access", raw, &at); err != nil {
		return at, err
	}
	if s.Now().Unix() >= at.Expires {
		return at, errors.New("access token is too old")
	}
	return at, nil
}

// access returns the live session behind an access token.
func (s *Service) access(ctx context.Context, raw string) (*Session, accessToken, error) {
	at, err := s.openAccess(raw)
	if err != nil {
		return nil, at, fmt.Errorf("%w: %w", ErrNoSession, err)
	}
	sess, err := s.session(ctx, at.Session)
	if err != nil {
		return nil, at, err
	}
	if _, ok := sess.Families[at.Family]; !ok {
		return nil, at, ErrNoSession
	}
	return sess, at, nil
}

// idClaims are the claims of our id_tokens that we read again ourselves.
type idClaims struct {
	Issuer          string   `json:"iss"`
	Subject         string   `json:"sub"`
	Audience        []string `json:"aud"`
	AuthorizedParty string   `json:"azp"`
	SessionID       string   `json:"sid"`
	ID              string   `json:"jti"`
	Expires         int64    `json:"exp"`
	NotBefore       int64    `json:"nbf"`
	IssuedAt        int64    `json:"iat"`

	key string // kid
}

// maxToken bounds what is parsed; no id_token of ours is larger.
const maxToken = 1 << 20

// verifyHint checks the signature and issuer of an id_token of ours that may have
// expired (OpenID Connect RP-Initiated Logout section 2).
func (s *Service) verifyHint(raw string) (idClaims, error) {
	var c idClaims
	if len(raw) > maxToken {
		return c, errors.New("token is too long")
	}
	payload, key, err := s.Keys.Verify(raw)
	if err != nil {
		return c, err
	}
	c.key = key
	if err := json.Unmarshal(payload, &c); err != nil {
		return c, fmt.Errorf("token claims: %w", err)
	}
	if c.Issuer != s.cfg.Issuer {
		return c, errors.New("token is of another issuer")
	}
	return c, nil
}

// verify is verifyHint for a token that lives now, by our own clock.
func (s *Service) verify(raw string) (idClaims, error) {
	c, err := s.verifyHint(raw)
	switch now := s.Now().Unix(); {
	case err != nil:
	case now >= c.Expires:
		err = errors.New("token has expired")
	case now < c.NotBefore:
		err = errors.New("token is not good yet")
	}
	return c, err
}

// Authenticate returns the live session behind a bearer token for Tabard's own API:
// an id_token or access token of the built-in client. ErrNoSession.
func (s *Service) Authenticate(ctx context.Context, bearer string) (*Session, error) {
	if strings.Count(bearer, ".") == 2 {
		c, err := s.verify(bearer)
		if err != nil || !slices.Contains(c.Audience, BuiltinClient) {
			return nil, fmt.Errorf("%w: %w", ErrNoSession, cmp.Or(err, errors.New("token is for another audience")))
		}
		return s.session(ctx, c.SessionID)
	}
	sess, at, err := s.access(ctx, bearer)
	if err == nil && at.Client != BuiltinClient {
		return nil, fmt.Errorf("%w: access token is of another client", ErrNoSession)
	}
	return sess, err
}

// UserInfo returns the claims about the person behind an access token (OpenID
// Connect Core section 5.3). ErrNoSession, ErrNoAccess.
func (s *Service) UserInfo(ctx context.Context, raw string) (map[string]any, error) {
	sess, at, err := s.access(ctx, raw)
	if err != nil {
		return nil, err
	}
	c, err := s.Client(at.Client)
	if err != nil {
		return nil, ErrNoSession
	}
	e, err := s.entitle(sess, c)
	if err != nil {
		return nil, err
	}
	return s.person(sess, c, e), nil
}

// Introspection is the answer of RFC 7662 section 2.2; all is empty unless Active.
type Introspection struct {
	Active   bool
	Client   string
	Subject  string
	Username string
	Type     string // "access_token", "refresh_token" or "id_token"
	Audience []string
	Expires  time.Time
	ID       string // jti
}

// Introspect tells an authenticated client about a token that was issued to it or
// is meant for it; of any other it says only that it is not active.
func (s *Service) Introspect(ctx context.Context, c *Client, token string) (Introspection, error) {
	in, sess, err := s.introspect(ctx, c, token)
	if errors.Is(err, ErrNoSession) || errors.Is(err, ErrInvalidGrant) {
		return Introspection{}, nil
	}
	if err != nil {
		return Introspection{}, err
	}
	in.Active, in.Subject, in.Username = true, sess.Sub, sess.Username
	return in, nil
}

func (s *Service) introspect(ctx context.Context, c *Client, token string) (Introspection, *Session, error) {
	if t, ok := parseRefreshToken(token); ok {
		sess, f, is, err := s.judge(ctx, c, t, s.session)
		if err == nil && is == reused {
			err = ErrInvalidGrant
		}
		if err != nil {
			return Introspection{}, nil, err
		}
		return Introspection{Client: c.ID, Type: "refresh_token", Expires: s.familyEnd(sess, f)}, sess, nil
	}
	if strings.Count(token, ".") == 2 {
		claims, err := s.verify(token)
		if err != nil || !slices.Contains(claims.Audience, c.ID) && claims.AuthorizedParty != c.ID {
			return Introspection{}, nil, ErrNoSession
		}
		in := Introspection{
			Client: claims.AuthorizedParty, Type: "id_token", Audience: claims.Audience,
			Expires: time.Unix(claims.Expires, 0), ID: claims.ID,
		}
		if owner := s.ownerOf(claims); owner != nil {
			return in, &Session{Sub: claims.Subject, Username: claims.Subject}, nil
		}
		sess, err := s.session(ctx, claims.SessionID)
		return in, sess, err
	}
	sess, at, err := s.access(ctx, token)
	if err == nil && at.Client != c.ID {
		err = ErrNoSession
	}
	return Introspection{Client: at.Client, Type: "access_token", Expires: time.Unix(at.Expires, 0)}, sess, err
}
