package idp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Tokens is what a grant gives (RFC 6749 section 5.1).
type Tokens struct {
	IDToken      string
	AccessToken  string
	RefreshToken string // "" without offline_access
	Expires      time.Time
}

// maxTries bounds how often a write that met another one is tried again. In a round
// of writers one gets through, so it is more than one browser has tabs.
const maxTries = 100

// errBusy says that maxTries other writers came first.
var errBusy = fmt.Errorf("too many writers at once: %w", store.ErrConflict)

// Redeem turns a code into tokens (RFC 6749 section 4.1.3). A wrong client, redirect
// URI or verifier neither uses the code up nor revokes anything; a second redemption
// that passes every check ends the session. ErrInvalidGrant, ErrNoAccess.
func (s *Service) Redeem(ctx context.Context, c *Client, rawCode, redirectURI, verifier string) (Tokens, error) {
	sid, rest, ok := splitToken(rawCode)
	if !ok {
		return Tokens{}, ErrInvalidGrant
	}
	id, secret, _ := strings.Cut(rest, ".")
	mine := newSeed()
	read := s.recall
	for range maxTries {
		sess, err := read(ctx, sid)
		if err != nil {
			return Tokens{}, grantError(err)
		}
		read = s.session
		rec := sess.Codes[id]
		ours := isSecret(secret, rec.Hash) && rec.Client == c.ID && rec.RedirectURI == redirectURI && rec.verifies(verifier)
		var t preparedToken
		if ours {
			t, err = s.prepare(sess, c, grant{azp: c.ID, nonce: rec.Nonce})
		}
		late := rec.Used == "" && !s.Now().Before(rec.Expires)
		switch {
		case sess.recalled && (!ours || err != nil || late || rec.Used != ""):
			continue // only what the store says is refused
		case !ours:
			return Tokens{}, fmt.Errorf("%w: code is not for this client, redirect URI and verifier", ErrInvalidGrant)
		case rec.Used != "" && rec.Used != mine.id:
			return Tokens{}, s.replayed(ctx, sess, c, "code used twice")
		case late:
			return Tokens{}, fmt.Errorf("%w: code is too old", ErrInvalidGrant)
		case err != nil:
			return Tokens{}, s.denied(ctx, sess, c, err)
		}
		refresh := s.addFamily(sess, c, mine, rec.Offline)
		if rec.Used == "" { // else a write of ours whose outcome was unknown
			rec.Used = mine.id
			sess.Codes[id] = rec
			err = s.putSession(ctx, sess)
		}
		if err == nil {
			return s.finish(ctx, sess, c, t, mine.id, refresh)
		}
		if !raced(err) {
			return Tokens{}, err
		}
	}
	return Tokens{}, errBusy
}

// replayed ends a session whose code or refresh token came a second time: one of
// the two who hold it stole it (RFC 9700 section 4.14.2).
func (s *Service) replayed(ctx context.Context, sess *Session, c *Client, what string) error {
	e := audit.Event{Act: "token.reuse", Outcome: audit.Denied, Reason: what, Client: c.ID, Cluster: c.Cluster}
	if err := s.record(ctx, e, sess); err != nil {
		return err
	}
	if err := s.endSession(ctx, sess, what); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s: session ended", ErrInvalidGrant, what)
}

// denied leaves in the trail that a rule gave sess no token for c, and returns err.
func (s *Service) denied(ctx context.Context, sess *Session, c *Client, err error) error {
	if !errors.Is(err, ErrNoAccess) && !errors.Is(err, ErrTooLarge) {
		return err
	}
	e := audit.Event{Act: "token.issue", Outcome: audit.Denied, Reason: err.Error(), Client: c.ID, Cluster: c.Cluster}
	return errors.Join(err, s.record(ctx, e, sess))
}

// grantError turns a session that is gone into a grant that is not good.
func grantError(err error) error {
	if errors.Is(err, ErrNoSession) {
		return fmt.Errorf("%w: %w", ErrInvalidGrant, err)
	}
	return err
}

// finish signs t and makes the opaque access token that goes with it.
func (s *Service) finish(ctx context.Context, sess *Session, c *Client, t preparedToken, fam, refresh string) (Tokens, error) {
	raw, err := s.sign(ctx, sess, c, t)
	if err != nil {
		return Tokens{}, err
	}
	at, err := s.seals.seal("access", accessToken{sess.ID, fam, c.ID, t.expires.Unix()})
	return Tokens{IDToken: raw, AccessToken: at, RefreshToken: refresh, Expires: t.expires}, err
}

// sign records the token in the trail, then signs it.
func (s *Service) sign(ctx context.Context, sess *Session, c *Client, t preparedToken) (string, error) {
	e := audit.Event{Act: "token.issue", Outcome: audit.Done, Client: c.ID, Cluster: c.Cluster, JTI: t.jti, Soon: true, Detail: s.warnLarge(sess, c, t)}
	if sess.stale {
		if e.Detail == nil {
			e.Detail = map[string]string{}
		}
		e.Detail["stale"] = "true"
	}
	if err := s.record(ctx, e, sess); err != nil {
		return "", err
	}
	return s.Keys.Sign(t.alg, t.payload)
}

// Refresh turns a refresh token into new tokens, with the directory and the groups
// read anew (RFC 6749 section 6). All who come with one token get the same
// successor. ErrInvalidGrant, ErrNoAccess, ErrUnavailable.
func (s *Service) Refresh(ctx context.Context, c *Client, raw string) (Tokens, error) {
	t, ok := parseRefreshToken(raw)
	if !ok {
		return Tokens{}, ErrInvalidGrant
	}
	var take func(*Session)
	read := s.recall
	for range maxTries {
		sess, f, is, err := s.judge(ctx, c, t, read)
		read = s.session
		switch {
		case sess != nil && sess.recalled && (err != nil || is != current):
			continue // what is refused, or given without a write, the store has to say
		case err != nil:
			return Tokens{}, err
		case is == reused:
			return Tokens{}, s.replayed(ctx, sess, c, "refresh token used again")
		}
		if take == nil {
			if take, err = s.reread(ctx, sess); err != nil {
				return Tokens{}, grantError(err)
			}
		}
		take(sess)
		token, err := s.prepare(sess, c, grant{azp: c.ID})
		if err != nil && sess.recalled {
			continue
		}
		if err != nil {
			return Tokens{}, s.denied(ctx, sess, c, err)
		}
		next := s.successor(t)
		if is == current {
			sess.LastUsed = s.Now().UTC()
			sess.Families[t.family] = f.rotate(next, sess.LastUsed, c.sessions.RefreshGrace)
			err = s.putSession(ctx, sess)
		}
		if err == nil {
			return s.finish(ctx, sess, c, token, t.family, next.String())
		}
		if !raced(err) {
			return Tokens{}, err
		}
	}
	return Tokens{}, errBusy
}

// judge finds, by read, the live session and family of a refresh token that belongs to
// c. The session also comes with an error, if there is one.
func (s *Service) judge(ctx context.Context, c *Client, t refreshToken, read func(context.Context, string) (*Session, error)) (*Session, family, standing, error) {
	sess, err := read(ctx, t.sid)
	if err != nil {
		return nil, family{}, forged, grantError(err)
	}
	f, ok := sess.Families[t.family]
	if !ok || f.Client != c.ID {
		return sess, family{}, forged, fmt.Errorf("%w: refresh token is not this client's", ErrInvalidGrant)
	}
	is := s.standing(f, t, c.sessions.RefreshGrace)
	if is == forged {
		return sess, family{}, forged, fmt.Errorf("%w: no such refresh token", ErrInvalidGrant)
	}
	if !s.Now().Before(s.familyEnd(sess, f)) {
		return sess, family{}, forged, fmt.Errorf("%w: session is over", ErrInvalidGrant)
	}
	return sess, f, is, nil
}

// Exchange gives a client that holds an id_token one for another audience, from the
// same session and checked as a sign-in would be (RFC 8693). The built-in client
// may ask for every cluster; any other only within its own cluster, because the API
// servers of a cluster see its tokens and must not reach further with them. Nor
// longer: a token that could be exchanged again ends with the one it was made from.
// ErrInvalidGrant, ErrInvalidTarget, ErrNoAccess, ErrUnavailable.
func (s *Service) Exchange(ctx context.Context, c *Client, subjectToken, audience string) (Tokens, error) {
	claims, err := s.verify(subjectToken)
	if err != nil {
		return Tokens{}, fmt.Errorf("%w: subject token: %w", ErrInvalidGrant, err)
	}
	if claims.AuthorizedParty != c.ID || !slices.Contains(claims.Audience, c.ID) {
		return Tokens{}, fmt.Errorf("%w: subject token was not issued to this client", ErrInvalidGrant)
	}
	target := s.clients[audience]
	if target == nil || c.ID != BuiltinClient && (target.Cluster != c.Cluster || c.Cluster == "") {
		return Tokens{}, ErrInvalidTarget
	}
	sess, err := s.session(ctx, claims.SessionID)
	if err != nil {
		return Tokens{}, grantError(err)
	}
	if !s.Now().Before(sessionEnd(target.sessions, sess.AuthTime, sess.LastUsed)) {
		return Tokens{}, fmt.Errorf("%w: session is over for this cluster", ErrInvalidGrant)
	}
	take, err := s.reread(ctx, sess)
	if err != nil {
		return Tokens{}, grantError(err)
	}
	take(sess)
	g := grant{azp: c.ID}
	if slices.Contains(target.Audience, c.ID) {
		g.until = time.Unix(claims.Expires, 0)
	}
	t, err := s.prepare(sess, target, g)
	if err != nil {
		return Tokens{}, s.denied(ctx, sess, target, err)
	}
	raw, err := s.sign(ctx, sess, target, t)
	return Tokens{IDToken: raw, Expires: t.expires}, err
}

// Revoke ends the family of a refresh or access token of c; unknown tokens are no
// error (RFC 7009 section 2.2). A session that nothing holds any more ends, and so
// does every session whose built-in client signs out.
func (s *Service) Revoke(ctx context.Context, c *Client, token string) error {
	sid, fam := "", ""
	if t, ok := parseRefreshToken(token); ok {
		if _, _, is, err := s.judge(ctx, c, t, s.session); err == nil && is != forged {
			sid, fam = t.sid, t.family
		} else if err != nil && !errors.Is(err, ErrInvalidGrant) {
			return err
		}
	} else if at, err := s.openAccess(token); err == nil && at.Client == c.ID {
		sid, fam = at.Session, at.Family
	}
	if sid == "" {
		return nil
	}
	for range maxTries {
		sess, err := s.session(ctx, sid)
		if errors.Is(err, ErrNoSession) {
			return nil
		}
		if err != nil {
			return err
		}
		delete(sess.Families, fam)
		if c.ID == BuiltinClient || len(sess.Families) == 0 && sess.CookieHash == nil {
			return s.endSession(ctx, sess, "revoked by "+c.ID)
		}
		if err := s.record(ctx, audit.Event{Act: "token.revoke", Outcome: audit.Done, Client: c.ID, Cluster: c.Cluster}, sess); err != nil {
			return err
		}
		err = s.putSession(ctx, sess)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
			return err
		}
	}
	return errBusy
}
