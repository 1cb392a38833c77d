package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Session is one sign-in of one person on one device. Ending it ends every token
// family in it. It is one record, so that what changes together is written together.
type Session struct {
	ID       string `json:"-"` // sid
	revision int64  // in the store

	Sub       string `json:"sub"`
	Directory string `json:"directory"`
	PersonID  string `json:"personID"` // the directory's immutable id
	Username  string `json:"username"`
	Name      string `json:"name"`
	Email     string `json:"email,omitempty"`

	Groups          []string  `json:"groups"` // the directory's, as of ReadAt
	ReadAt          time.Time `json:"readAt"`
	PasswordChanged time.Time `json:"passwordChanged,omitzero"`

	AuthTime time.Time `json:"authTime"` // when the password was given
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Address  string    `json:"address,omitempty"` // where it was started
	// CookieHash is set when a browser holds the session.
	CookieHash []byte            `json:"cookieHash,omitempty"`
	Families   map[string]family `json:"families,omitempty"`

	stale bool // the directory did not answer; Groups are the last known
}

// family is the line of refresh tokens that one code or device code began. A
// person may sign in to one client from two places in one browser session, so it
// has an id of its own and is not one per client.
type family struct {
	Client     string    `json:"client"`
	Refresh    bool      `json:"refresh"` // offline_access was asked for
	Generation int       `json:"generation"`
	Hash       []byte    `json:"hash,omitempty"` // of the secret of Generation
	Used       []useTime `json:"used,omitempty"` // when recent generations were first used
	Created    time.Time `json:"created"`
	LastUsed   time.Time `json:"lastUsed"`
}

// useTime says when the secret of a generation was first used.
type useTime struct {
	Generation int       `json:"generation"`
	At         time.Time `json:"at"`
}

// Names of the cookies that the provider and the pages share. The prefix makes
// browsers insist on Secure, Path=/ and no Domain.
const (
	SessionCookie = "__Host-tabard"
	SignInCookie  = "__Host-tabard-signin"
)

const (
	maxFamilies = 32               // in one session; the one used longest ago makes room
	touchEvery  = 10 * time.Minute // how exact LastUsed is for browsers
)

func sessionKey(sid string) string { return "session/" + sid }

// startSession returns a session of p that is not stored yet.
func (s *Service) startSession(ctx context.Context, p directory.Person, dirGroups []string, authTime time.Time) *Session {
	now := s.Now().UTC()
	sess := &Session{
		ID: randomID(), Created: now, LastUsed: now, AuthTime: authTime.UTC(),
		Address: audit.OriginOf(ctx).Address, Families: map[string]family{},
	}
	sess.take(p, dirGroups, now)
	return sess
}

// take puts into the session what the directory just said of its person.
func (sess *Session) take(p directory.Person, dirGroups []string, now time.Time) {
	sess.Sub, sess.Directory, sess.PersonID = p.Sub(), p.Directory, p.ID
	sess.Username, sess.Name, sess.Email = p.Username, p.Name, p.Email
	sess.PasswordChanged, sess.Groups, sess.ReadAt, sess.stale = p.PasswordChanged, dirGroups, now.UTC(), false
}

// expires is when the last right in the session ends by itself.
func (s *Service) expires(sess *Session) time.Time {
	end := sessionEnd(s.cfg.Sessions, sess.AuthTime, sess.LastUsed)
	for _, f := range sess.Families {
		if t := s.familyEnd(sess, f); t.After(end) {
			end = t
		}
	}
	return end
}

// familyEnd is when a family ends by its cluster's limits.
func (s *Service) familyEnd(sess *Session, f family) time.Time {
	limits := s.cfg.Sessions
	if c := s.clients[f.Client]; c != nil {
		limits = c.sessions
	}
	return sessionEnd(limits, sess.AuthTime, f.LastUsed)
}

func sessionEnd(limits SessionConfig, authTime, lastUsed time.Time) time.Time {
	end, idle := authTime.Add(limits.MaxLifetime), lastUsed.Add(limits.IdleTimeout)
	if idle.Before(end) {
		return idle
	}
	return end
}

// op is the write that keeps sess.
func (s *Service) op(sess *Session) (store.Op, error) {
	value, err := json.Marshal(sess)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode session: %w", err)
	}
	return store.Op{Key: sessionKey(sess.ID), Value: value, Expires: s.expires(sess)}, nil
}

// cond holds while nobody else has written sess.
func (sess *Session) cond() store.Cond {
	return store.Cond{Key: sessionKey(sess.ID), Revision: sess.revision}
}

// session reads a live session, or ErrNoSession.
func (s *Service) session(ctx context.Context, sid string) (*Session, error) {
	if !isID(sid) {
		return nil, ErrNoSession
	}
	e, err := s.Store.Get(ctx, sessionKey(sid))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoSession
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	sess := &Session{ID: sid, revision: e.Revision}
	if err := json.Unmarshal(e.Value, sess); err != nil {
		return nil, fmt.Errorf("read session %s: %w", sid, err)
	}
	if !s.Now().Before(s.expires(sess)) || s.directoryNamed(sess.Directory) == nil {
		return nil, ErrNoSession
	}
	return sess, nil
}

// endSession removes a session; one that is gone already is no error.
func (s *Service) endSession(ctx context.Context, sess *Session, reason string) error {
	if err := s.record(ctx, audit.Event{Act: "session.end", On: sess.ID, Outcome: audit.Done, Reason: reason}, sess); err != nil {
		return err
	}
	_, err := s.Store.Txn(ctx, nil, []store.Op{{Key: sessionKey(sess.ID), Delete: true}})
	if errors.Is(err, store.ErrUnknown) { // a delete may be said twice
		_, err = s.Store.Txn(ctx, nil, []store.Op{{Key: sessionKey(sess.ID), Delete: true}})
	}
	if err != nil {
		return fmt.Errorf("end session: %w", err)
	}
	return nil
}

// giveCookie makes the session one that a browser holds and returns the cookie's value.
func (sess *Session) giveCookie() string {
	secret := encode(randomBytes(32))
	sess.CookieHash = hashSecret(secret)
	return sess.ID + "." + secret
}

// Browser returns the session that a browser's cookie stands for, or ErrNoSession.
func (s *Service) Browser(ctx context.Context, cookie string) (*Session, error) {
	sid, secret, ok := splitToken(cookie)
	if !ok {
		return nil, ErrNoSession
	}
	sess, err := s.session(ctx, sid)
	if err != nil {
		return nil, err
	}
	now := s.Now()
	if !isSecret(secret, sess.CookieHash) || !now.Before(sessionEnd(s.cfg.Sessions, sess.AuthTime, sess.LastUsed)) {
		return nil, ErrNoSession
	}
	if now.Sub(sess.LastUsed) > touchEvery {
		s.touch(ctx, sess)
	}
	return sess, nil
}

// touch notes that a browser used the session. Losing the write to another one is
// as good as winning it.
func (s *Service) touch(ctx context.Context, sess *Session) {
	sess.LastUsed = s.Now().UTC()
	op, err := s.op(sess)
	if err == nil {
		sess.revision, err = s.Store.Txn(ctx, []store.Cond{sess.cond()}, []store.Op{op})
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		s.Log.WithError(err).Warn("session: last use not written")
	}
}

// EndBrowser ends the session of a browser's cookie; ending none is no error.
func (s *Service) EndBrowser(ctx context.Context, cookie string) error {
	sess, err := s.Browser(ctx, cookie)
	if errors.Is(err, ErrNoSession) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, sess, "signed out")
}

// Actor is the session's person with every group they are in now.
func (s *Service) Actor(sess *Session) (groups.Actor, error) {
	all, _, err := s.allGroups(sess, s.cfg.Tokens.MinLifetime)
	if err != nil {
		return groups.Actor{}, err
	}
	return groups.Actor{Sub: sess.Sub, Name: sess.Username, Groups: all}, nil
}

// addFamily begins a family for a client and returns its id and its first refresh
// token, "" without refresh.
func (s *Service) addFamily(sess *Session, c *Client, refresh bool) (id, token string) {
	now := s.Now().UTC()
	if len(sess.Families) >= maxFamilies {
		oldest := ""
		for id, f := range sess.Families {
			if oldest == "" || f.LastUsed.Before(sess.Families[oldest].LastUsed) {
				oldest = id
			}
		}
		delete(sess.Families, oldest)
	}
	f := family{Client: c.ID, Refresh: refresh, Created: now, LastUsed: now}
	id = encode(randomBytes(6))
	if refresh {
		secret := encode(randomBytes(32))
		f.Hash = hashSecret(secret)
		token = refreshToken{sess.ID, id, 0, secret}.String()
	}
	if sess.Families == nil {
		sess.Families = map[string]family{}
	}
	sess.Families[id] = f
	return id, token
}

// refreshToken is "sid.family.generation.secret".
type refreshToken struct {
	sid, family string
	generation  int
	secret      string
}

func (t refreshToken) String() string {
	return strings.Join([]string{t.sid, t.family, strconv.Itoa(t.generation), t.secret}, ".")
}

func parseRefreshToken(s string) (refreshToken, bool) {
	p := strings.Split(s, ".")
	if len(s) > 256 || len(p) != 4 || !isID(p[0]) || p[3] == "" {
		return refreshToken{}, false
	}
	n, err := strconv.Atoi(p[2])
	if err != nil || n < 0 || strconv.Itoa(n) != p[2] {
		return refreshToken{}, false
	}
	return refreshToken{p[0], p[1], n, p[3]}, true
}

// successor is the secret that follows t's: all who refresh with t get the same.
func (s *Service) successor(t refreshToken) refreshToken {
	next := refreshToken{t.sid, t.family, t.generation + 1, ""}
	next.secret = encode(s.seals.mac("refresh", t.sid, t.family, strconv.Itoa(next.generation), t.secret))
	return next
}

// standing is what a presented refresh token is to its family.
type standing int

const (
	forged  standing = iota // no token of this family: nothing follows from it
	current                 // the newest one: rotation is due
	recent                  // already used, and still good
	reused                  // genuine, but too old: stolen or replayed
)

// maxAncestry bounds the derivations that tell an old token from a forged one.
const maxAncestry = 5000

// standing judges t. An old token proves itself: deriving from it leads to the
// secret whose hash is stored. So a made-up secret cannot end anybody's session.
func (s *Service) standing(f family, t refreshToken, grace time.Duration) standing {
	if !f.Refresh || t.generation > f.Generation || f.Generation-t.generation > maxAncestry {
		return forged
	}
	newest := t
	for newest.generation < f.Generation {
		newest = s.successor(newest)
	}
	if !isSecret(newest.secret, f.Hash) {
		return forged
	}
	switch t.generation {
	case f.Generation:
		return current
	case f.Generation - 1:
		return recent // its successor was never used
	}
	at := slices.IndexFunc(f.Used, func(u useTime) bool { return u.Generation == t.generation+1 })
	if at >= 0 && s.Now().Sub(f.Used[at].At) <= grace {
		return recent
	}
	return reused
}

// rotate moves the family on to the successor of its current token.
func (f family) rotate(next refreshToken, now time.Time, grace time.Duration) family {
	f.Used = slices.DeleteFunc(append(slices.Clone(f.Used), useTime{f.Generation, now}), func(u useTime) bool {
		return now.Sub(u.At) > grace
	})
	if n := len(f.Used) - maxUsed; n > 0 {
		f.Used = f.Used[n:]
	}
	f.Generation, f.Hash, f.LastUsed = next.generation, hashSecret(next.secret), now
	return f
}

// maxUsed bounds how many generations within the grace are remembered; a client
// that rotates faster than this loses the grace, not the session's newest token.
const maxUsed = 64
