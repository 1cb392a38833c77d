package idp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tabard-id/tabard/groups"
)

// ErrRefused: a token is not good at this cluster now. The cause is for the log.
var ErrRefused = errors.New("token refused")

// Identity is who the bearer of a token is at one cluster now: by the session as it
// lives, the local groups of this moment, and the directory's as of the session's last
// refresh. Of the token itself nothing counts but that it names the session.
type Identity struct {
	Cluster  string
	Sub      string
	Username string
	Groups   []string // that leave to the cluster; not to be changed
	Session  string   // sid; "" for a client's own token
	JTI      string   // of the token
	KeyID    string   // of the key that signed the token
	AuthTime time.Time
	Ends     time.Time // when the first right in it ends by itself; never zero
}

// Identify says who the bearer of an id_token is at a cluster now, by the steps of a
// review without its audiences. ErrNoCluster, ErrRefused; any other error means that
// nothing is known.
func (s *Service) Identify(ctx context.Context, cluster, token string) (Identity, error) {
	c := s.clientOf(cluster)
	if c == nil {
		return Identity{}, fmt.Errorf("%w: %q", ErrNoCluster, cluster)
	}
	claims, err := s.claimsFor(c, token)
	if err != nil {
		return Identity{}, err
	}
	return s.identify(ctx, c, claims)
}

// Recheck says what an identity that Identify returned is worth now, for what outlives
// its token: the token may have expired, but its key must be trusted still, and a
// client's own lasts no longer than a person's session would. Errors are Identify's.
func (s *Service) Recheck(ctx context.Context, id Identity) (Identity, error) {
	c := s.clientOf(id.Cluster)
	switch {
	case c == nil:
		return Identity{}, fmt.Errorf("%w: %q", ErrNoCluster, id.Cluster)
	case !s.Keys.trusted(id.KeyID):
		return Identity{}, fmt.Errorf("%w: the key that signed the token is gone", ErrRefused)
	}
	claims := idClaims{Subject: id.Sub, SessionID: id.Session, ID: id.JTI, key: id.KeyID}
	if id.Session == "" {
		claims.AuthorizedParty = strings.TrimPrefix(id.Sub, ClientPrefix)
	}
	again, err := s.identify(ctx, c, claims)
	if err != nil || id.Session != "" {
		return again, err
	}
	again.AuthTime, again.Ends = id.AuthTime, id.AuthTime.Add(c.sessions.MaxLifetime)
	if !s.Now().Before(again.Ends) {
		return Identity{}, fmt.Errorf("%w: the token of client %s is older than sessions.maxLifetime", ErrRefused, claims.AuthorizedParty)
	}
	return again, nil
}

// claimsFor verifies a token for a cluster's client and reads it. ErrRefused.
func (s *Service) claimsFor(c *Client, token string) (idClaims, error) {
	claims, err := s.verified.claims(s, token)
	if err == nil && !slices.Contains(claims.Audience, c.ID) {
		err = errors.New("token is for another cluster")
	}
	if err != nil {
		return claims, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return claims, nil
}

// Extra are the extra attributes by which an API server, its audit log and RBAC know the
// token and the session, if there is one.
func (id Identity) Extra() map[string][]string {
	extra := map[string][]string{ExtraCredentialID: {"JTI=" + id.JTI}}
	if id.Session != "" {
		extra[ExtraSession] = []string{id.Session}
	}
	return extra
}

func (s *Service) identify(ctx context.Context, c *Client, claims idClaims) (Identity, error) {
	if owner := s.ownerOf(claims); owner != nil && owner.Cluster == c.Cluster {
		return s.identifyClient(owner, claims)
	}
	sess, err := s.live(ctx, claims.SessionID)
	if err == nil && (sess.Sub != claims.Subject || s.tooOld(sess, c)) {
		err = ErrNoSession
	}
	var e entitlement
	if err == nil {
		e, err = s.entitle(sess, c)
	}
	if errors.Is(err, ErrNoSession) || errors.Is(err, ErrNoAccess) {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return Identity{}, err
	}
	id := Identity{
		Cluster: c.Cluster, Sub: sess.Sub, Username: sess.Username, Groups: e.groups, Session: sess.ID, JTI: claims.ID,
		KeyID: claims.key, AuthTime: sess.AuthTime, Ends: sess.AuthTime.Add(c.sessions.MaxLifetime),
	}
	if !e.ends.IsZero() && e.ends.Before(id.Ends) {
		id.Ends = e.ends
	}
	return id, nil
}

// identifyClient says what a client's own token is worth now, by the configuration.
func (s *Service) identifyClient(owner *Client, claims idClaims) (Identity, error) {
	e, err := s.ownGroups(owner)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return Identity{
		Cluster: owner.Cluster, Sub: claims.Subject, Username: claims.Subject, Groups: e.groups, JTI: claims.ID,
		KeyID: claims.key, AuthTime: time.Unix(claims.IssuedAt, 0), Ends: time.Unix(claims.Expires, 0),
	}, nil
}

// clientOf returns the implicit client of a cluster, or nil.
func (s *Service) clientOf(cluster string) *Client {
	for i := range s.cfg.Clusters {
		if s.cfg.Clusters[i].Name == cluster {
			return s.clients[s.cfg.Clusters[i].ClientID]
		}
	}
	return nil
}

// live returns a session as memory knows it, without its families. One that memory does
// not know yet is read from the store. ErrNoSession; groups.ErrStale where memory may be
// behind.
func (s *Service) live(ctx context.Context, sid string) (*Session, error) {
	if s.Sessions.follower.Stale() {
		return nil, fmt.Errorf("sessions: %w", groups.ErrStale)
	}
	s.Sessions.mu.RLock()
	k := s.Sessions.byID[sid]
	s.Sessions.mu.RUnlock()
	if k == nil {
		return s.session(ctx, sid)
	}
	if !s.Now().Before(k.Ends) || s.directoryNamed(k.directory) == nil {
		return nil, ErrNoSession
	}
	return &Session{
		ID: k.ID, Sub: k.Sub, Username: k.Username, Name: k.Name, Email: k.email, Directory: k.directory,
		Groups: k.groups, AuthTime: k.authTime, Created: k.Created, LastUsed: k.LastUsed,
	}, nil
}

// verifiedTokens remembers whose signature was good, by the token's hash: a signature
// costs more than all else about a request.
type verifiedTokens struct {
	mu   sync.RWMutex
	keys uint64 // Keys.generation that the entries were verified by
	by   map[[sha256.Size]byte]idClaims
}

const maxVerified = 16_384

// claims verifies a token, which must not have expired, and reads it.
func (v *verifiedTokens) claims(s *Service, token string) (idClaims, error) {
	if len(token) > maxToken {
		return idClaims{}, errors.New("token is too long")
	}
	hash, keys, now := sha256.Sum256([]byte(token)), s.Keys.generation.Load(), s.Now().Unix()
	v.mu.RLock()
	c, ok := v.by[hash]
	ok = ok && v.keys == keys
	v.mu.RUnlock()
	if ok && now < c.Expires && now >= c.NotBefore {
		return c, nil
	}
	c, err := s.verify(token)
	if err != nil {
		return c, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys != keys || len(v.by) >= maxVerified {
		v.forget(keys, now)
	}
	v.by[hash] = c
	return c, nil
}

// forget drops what has expired, everything after a change of keys, and where that
// makes too little room, as much as it takes.
func (v *verifiedTokens) forget(keys uint64, now int64) {
	if v.keys != keys {
		v.keys, v.by = keys, map[[sha256.Size]byte]idClaims{}
	}
	for hash, c := range v.by {
		if c.Expires <= now {
			delete(v.by, hash)
		}
	}
	for hash := range v.by {
		if len(v.by) < maxVerified*3/4 {
			break
		}
		delete(v.by, hash)
	}
}
