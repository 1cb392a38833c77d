package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	recalled bool   // not read, but as this node last wrote it; see recents

	Sub       string `json:"sub"`
	Directory string `json:"directory"`
	PersonID  string `json:"personID"` // the directory's immutable id
	Username  string `json:"username"`
	Name      string `json:"name"`
	Email     string `json:"email,omitempty"`

	Groups          []string  `json:"groups"` // the directory's, as of ReadAt
	ReadAt          time.Time `json:"readAt"`
	PasswordChanged time.Time `json:"passwordChanged,omitzero"`

	AuthTime  time.Time `json:"authTime"` // when the password was given
	Created   time.Time `json:"created"`
	LastUsed  time.Time `json:"lastUsed"`
	Address   string    `json:"address,omitempty"`   // where it was started
	UserAgent string    `json:"userAgent,omitempty"` // of what started it
	// CookieHash is set when a browser holds the session.
	CookieHash []byte            `json:"cookieHash,omitempty"`
	Families   map[string]family `json:"families,omitempty"`
	Codes      map[string]code   `json:"codes,omitempty"` // not yet redeemed, or lately

	stale bool     // the directory did not answer; Groups are the last known
	try   *attempt // of the password that starts the session, until it is written
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
	maxFamilies = 32              // in one session; the one used longest ago makes room
	readEvery   = 5 * time.Minute // how old a browser's rights may be, and how exact LastUsed is
)

func sessionKey(sid string) string { return sessionPrefix + sid }

// startSession returns a session of p that is not stored yet.
func (s *Service) startSession(ctx context.Context, p directory.Person, dirGroups []string, authTime time.Time) *Session {
	now := s.Now().UTC()
	sess := &Session{
		ID: randomID(), Created: now, LastUsed: now, AuthTime: authTime.UTC(),
		Families: map[string]family{},
	}
	o := audit.OriginOf(ctx)
	sess.Address, sess.UserAgent = o.Address, o.UserAgent
	sess.take(p, dirGroups, now)
	return sess
}

// take puts into the session what the directory just said of its person.
func (sess *Session) take(p directory.Person, dirGroups []string, now time.Time) {
	sess.Sub, sess.Directory, sess.PersonID = p.Sub(), p.Directory, p.ID
	sess.Username, sess.Name, sess.Email = p.Username, p.Name, p.Email
	sess.Groups, sess.ReadAt, sess.stale = dirGroups, now.UTC(), false
	if p.PasswordChanged.After(sess.PasswordChanged) { // a replica may be behind
		sess.PasswordChanged = p.PasswordChanged
	}
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

// tooOld reports whether the sign-in is older than c's cluster lets one be. A
// browser's session may live longer than that.
func (s *Service) tooOld(sess *Session, c *Client) bool {
	return !s.Now().Before(sess.AuthTime.Add(c.sessions.MaxLifetime))
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
	e, err := s.entry(ctx, sessionKey(sid), false)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoSession
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	return s.sessionIn(e)
}

// recall is session without a read where this node wrote the session lately. Another
// one may have written it since, or ended it: what follows from it counts only once it
// is written.
func (s *Service) recall(ctx context.Context, sid string) (*Session, error) {
	e, ok := s.recents.get(sessionKey(sid))
	if !ok {
		return s.session(ctx, sid)
	}
	sess, err := s.sessionIn(e)
	if err != nil {
		return s.session(ctx, sid)
	}
	sess.recalled = true
	return sess, nil
}

// sessionIn is the session in its record, if it lives.
func (s *Service) sessionIn(e store.Entry) (*Session, error) {
	sess := &Session{ID: strings.TrimPrefix(e.Key, sessionPrefix), revision: e.Revision}
	if err := json.Unmarshal(e.Value, sess); err != nil {
		return nil, fmt.Errorf("read session %s: %w", sess.ID, err)
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
	return s.deleteSession(ctx, sess)
}

func (s *Service) deleteSession(ctx context.Context, sess *Session) error {
	_, err := s.txn(ctx, nil, []store.Op{{Key: sessionKey(sess.ID), Delete: true}})
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

// Browser returns the session that a browser's cookie stands for, with the directory
// asked anew when it was last asked too long ago. ErrNoSession, also when that ended
// it; ErrUnavailable; ErrNoAccess.
func (s *Service) Browser(ctx context.Context, cookie string) (*Session, error) {
	sess, err := s.browser(ctx, cookie)
	if err != nil || s.Now().Sub(sess.ReadAt) <= readEvery {
		return sess, err
	}
	take, err := s.reread(ctx, sess)
	if err != nil {
		return nil, err
	}
	take(sess)
	sess.LastUsed = s.Now().UTC()
	// Losing the write to another one is as good as winning it.
	if err := s.putSession(ctx, sess); err != nil && !errors.Is(err, store.ErrConflict) {
		s.Log.WithError(err).WithField("sid", sess.ID).Warn("a browser's last use was not written")
	}
	return sess, nil
}

// browser is Browser without a word from the directory.
func (s *Service) browser(ctx context.Context, cookie string) (*Session, error) {
	sid, secret, ok := splitToken(cookie)
	if !ok {
		return nil, ErrNoSession
	}
	sess, err := s.session(ctx, sid)
	if err != nil {
		return nil, err
	}
	if !isSecret(secret, sess.CookieHash) || !s.Now().Before(sessionEnd(s.cfg.Sessions, sess.AuthTime, sess.LastUsed)) {
		return nil, ErrNoSession
	}
	return sess, nil
}

// EndBrowser ends the session of a browser's cookie; ending none is no error.
func (s *Service) EndBrowser(ctx context.Context, cookie string) error {
	sess, err := s.browser(ctx, cookie)
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
	all, _, err := s.allGroups(sess, "", s.cfg.Tokens.MinLifetime)
	if err != nil {
		return groups.Actor{}, err
	}
	return groups.Actor{Sub: sess.Sub, Name: sess.Username, Groups: all}, nil
}

// seed is what a family begins with. It is drawn once for a request, so that a write
// whose outcome was unknown is known again by it.
type seed struct{ id, secret string }

func newSeed() seed { return seed{encode(randomBytes(6)), encode(randomBytes(32))} }

// addFamily begins a family for a client and returns its first refresh token, ""
// without refresh.
func (s *Service) addFamily(sess *Session, c *Client, from seed, refresh bool) string {
	now := s.Now().UTC()
	s.makeRoom(sess)
	f := family{Client: c.ID, Refresh: refresh, Created: now, LastUsed: now}
	token := ""
	if refresh {
		f.Hash = hashSecret(from.secret)
		token = refreshToken{sess.ID, from.id, 0, from.secret}.String()
	}
	if sess.Families == nil {
		sess.Families = map[string]family{}
	}
	sess.Families[from.id] = f
	return token
}

// makeRoom drops the families that are over, and of too many the one used longest ago.
func (s *Service) makeRoom(sess *Session) {
	maps.DeleteFunc(sess.Families, func(_ string, f family) bool {
		end := s.familyEnd(sess, f)
		if !f.Refresh { // it has nothing but one access token
			end = f.Created.Add(s.cfg.LongestToken())
		}
		return !s.Now().Before(end)
	})
	for len(sess.Families) >= maxFamilies {
		oldest := ""
		for id, f := range sess.Families {
			if oldest == "" || f.LastUsed.Before(sess.Families[oldest].LastUsed) {
				oldest = id
			}
		}
		delete(sess.Families, oldest)
	}
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
