package idp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

const sessionPrefix = "session/"

// Sessions is every session in memory, without secrets, kept in step with the store.
type Sessions struct {
	follower *store.Follower
	log      logrus.FieldLogger

	mu    sync.RWMutex
	byID  map[string]*known
	bySub map[string][]string // ids
}

// known is what is kept in memory of a session: a hundred thousand have to fit.
type known struct {
	SessionInfo
	email, directory string
	groups           []string
	authTime         time.Time
}

// OpenSessions loads the sessions and follows them until Close.
func OpenSessions(ctx context.Context, st store.Store, log logrus.FieldLogger) (*Sessions, error) {
	l := &Sessions{log: log}
	var err error
	if l.follower, err = store.Follow(ctx, st, sessionPrefix, l, log); err != nil {
		return nil, err
	}
	return l, nil
}

// Close ends it.
func (l *Sessions) Close() { l.follower.Close() }

// Replace implements store.Target.
func (l *Sessions) Replace(records iter.Seq2[store.Entry, error]) error {
	fresh := &Sessions{log: l.log, byID: map[string]*known{}, bySub: map[string][]string{}}
	for e, err := range records {
		if err != nil {
			return err
		}
		fresh.put(e)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byID, l.bySub = fresh.byID, fresh.bySub
	return nil
}

// Apply implements store.Target.
func (l *Sessions) Apply(events []store.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		if e.Delete {
			l.remove(strings.TrimPrefix(e.Key, sessionPrefix))
		} else {
			l.put(e.Entry)
		}
	}
}

// put takes a session in. One whose record is damaged is none, as at every other use.
func (l *Sessions) put(e store.Entry) {
	k, err := readKnown(e, l.byID[strings.TrimPrefix(e.Key, sessionPrefix)])
	if err != nil {
		l.log.WithError(err).WithField("key", e.Key).Error("a session's record is damaged")
		l.remove(k.ID)
		return
	}
	if l.byID[k.ID] == nil {
		l.bySub[k.Sub] = append(l.bySub[k.Sub], k.ID)
	}
	l.byID[k.ID] = k
}

// readKnown reads the part of a session's record that memory keeps, with one copy of
// the words that many sessions share. Before is what was known of the session, or nil.
func readKnown(e store.Entry, before *known) (*known, error) {
	k := &known{SessionInfo: SessionInfo{ID: strings.TrimPrefix(e.Key, sessionPrefix), Ends: e.Expires}}
	var rec struct {
		Sub, Username, Name, Email, Directory, Address, UserAgent string
		Groups                                                    []string
		AuthTime, Created, LastUsed                               time.Time
		CookieHash                                                string
		Families                                                  map[string]struct {
			Client   string
			LastUsed time.Time
		}
	}
	if err := json.Unmarshal(e.Value, &rec); err != nil {
		return k, err
	}
	one := func(s string) string { return unique.Make(s).Value() }
	if before != nil && before.Sub == rec.Sub && slices.Equal(before.groups, rec.Groups) {
		k.groups, rec.Groups = before.groups, nil // as nearly always
	}
	k.Sub, k.Username, k.Name, k.email = one(rec.Sub), one(rec.Username), one(rec.Name), one(rec.Email)
	k.Address, k.UserAgent, k.Browser = one(rec.Address), one(rec.UserAgent), rec.CookieHash != ""
	k.directory, k.authTime, k.Created, k.LastUsed = one(rec.Directory), rec.AuthTime, rec.Created, rec.LastUsed
	for _, g := range rec.Groups {
		k.groups = append(k.groups, one(g))
	}
	k.groups = slices.Clip(k.groups)
	for _, f := range rec.Families {
		k.Clients = append(k.Clients, one(f.Client))
		if f.LastUsed.After(k.LastUsed) {
			k.LastUsed = f.LastUsed
		}
	}
	slices.Sort(k.Clients)
	k.Clients = slices.Clip(slices.Compact(k.Clients))
	return k, nil
}

func (l *Sessions) remove(id string) {
	k := l.byID[id]
	if k == nil {
		return
	}
	delete(l.byID, id)
	left := slices.DeleteFunc(l.bySub[k.Sub], func(other string) bool { return other == id })
	if len(left) == 0 {
		delete(l.bySub, k.Sub)
	} else {
		l.bySub[k.Sub] = left
	}
}

// catchUp waits until everything that is in the store now is known here, which the
// store says every 2 s at least.
func (l *Sessions) catchUp(ctx context.Context, st store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, store.StaleAfter)
	defer cancel()
	_, revision, err := st.List(ctx, sessionPrefix, "", 1)
	if err == nil {
		err = l.follower.Reached(ctx, revision)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", groups.ErrStale, err)
	}
	return nil
}

// of returns the sessions of sub, of everybody where sub is "", in no order.
func (l *Sessions) of(sub string) []*known {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []*known
	if sub != "" {
		for _, id := range l.bySub[sub] {
			out = append(out, l.byID[id])
		}
		return out
	}
	return slices.Collect(maps.Values(l.byID))
}

// SubjectOfSession returns the sub of whoever has a session under that sub or username,
// if there is just one; also of those who are not in a directory any more.
func (s *Service) SubjectOfSession(person string) (sub string, ok bool) {
	for _, k := range s.Sessions.of("") {
		if k.Sub == person || strings.EqualFold(k.Username, person) {
			if sub != "" && sub != k.Sub {
				return "", false
			}
			sub = k.Sub
		}
	}
	return sub, sub != ""
}

// SessionInfo is what people are told of a session.
type SessionInfo struct {
	ID        string
	Sub       string
	Username  string
	Name      string
	Clients   []string // that hold tokens of it, sorted; a browser alone holds none
	Browser   bool     // a browser holds it
	Address   string   // where it was started
	UserAgent string   // of what started it
	Created   time.Time
	LastUsed  time.Time // within some minutes
	Ends      time.Time // unless it is used before that
}

// SessionFilter narrows a listing of sessions.
type SessionFilter struct {
	Sub   string // of one person
	Query string // in username, name, client, address or user agent, whatever the case
	After string // cursor: where the page before ended
	Limit int    // 1 to 1,000; 0: 100
}

// ListSessions returns live sessions, used last first, and the cursor of the next page.
// Administrators see everybody's, others their own. groups.ErrForbidden,
// groups.ErrStale where this node cannot tell just now.
func (s *Service) ListSessions(a groups.Actor, admin bool, f SessionFilter) (page []SessionInfo, next string, err error) {
	if !admin && f.Sub != a.Sub {
		return nil, "", fmt.Errorf("list sessions of others: %w", ErrAdministrators)
	}
	if s.Sessions.follower.Stale() {
		return nil, "", groups.ErrStale
	}
	limit := min(cmp.Or(f.Limit, 100), 1000)
	var all []SessionInfo
	for _, k := range s.Sessions.of(f.Sub) {
		if s.Now().Before(k.Ends) && k.matches(f.Query) {
			all = append(all, k.SessionInfo)
		}
	}
	slices.SortFunc(all, func(a, b SessionInfo) int { return strings.Compare(b.place(), a.place()) })
	if f.After != "" {
		at, _ := slices.BinarySearchFunc(all, f.After, func(i SessionInfo, after string) int { return strings.Compare(after, i.place()) })
		all = all[min(at, len(all)):]
		if len(all) > 0 && all[0].place() == f.After {
			all = all[1:]
		}
	}
	if len(all) > limit {
		all = all[:limit]
		next = all[limit-1].place()
	}
	return all, next, nil
}

// place is where a session stands in a listing.
func (i SessionInfo) place() string { return i.LastUsed.UTC().Format("20060102T150405.000000") + i.ID }

func (i SessionInfo) matches(query string) bool {
	text := strings.Join(append([]string{i.Username, i.Name, i.Address, i.UserAgent}, i.Clients...), "\n")
	return strings.Contains(strings.ToLower(text), strings.ToLower(query))
}

// EndSession ends one session, at once for whatever asks us, and when its last
// id_token ends for the API servers that do not. Administrators may end any, others
// their own; one that is not there, or not theirs, is ErrNoSession.
func (s *Service) EndSession(ctx context.Context, a groups.Actor, admin bool, sid string) error {
	sess, err := s.session(ctx, sid)
	if err == nil && !admin && sess.Sub != a.Sub {
		e := audit.Event{Act: "session.end", Who: a.Sub, Name: a.Name, On: sess.ID, Outcome: audit.Denied, Reason: "another person's session"}
		return cmp.Or(s.record(ctx, e, nil), ErrNoSession)
	}
	if err != nil {
		return err
	}
	return s.endSessionBy(ctx, a, sess)
}

// EndSessions ends every session of a person but the one whose id is keep, and returns
// how many there were. groups.ErrForbidden, groups.ErrStale.
func (s *Service) EndSessions(ctx context.Context, a groups.Actor, admin bool, sub, keep string) (n int, err error) {
	if sub == "" || !admin && sub != a.Sub {
		return 0, fmt.Errorf("end sessions of others: %w", ErrAdministrators)
	}
	if err := s.Sessions.catchUp(ctx, s.Store); err != nil {
		return 0, err
	}
	for _, k := range s.Sessions.of(sub) {
		if k.ID == keep {
			continue
		}
		sess, err := s.session(ctx, k.ID)
		if errors.Is(err, ErrNoSession) {
			continue
		}
		if err == nil {
			err = s.endSessionBy(ctx, a, sess)
		}
		if err != nil {
			return n, fmt.Errorf("after %d sessions: %w", n, err)
		}
		n++
	}
	return n, nil
}

// endSessionBy ends a session because a person says so.
func (s *Service) endSessionBy(ctx context.Context, a groups.Actor, sess *Session) error {
	e := audit.Event{
		Act: "session.end", Who: a.Sub, Name: a.Name, On: sess.ID, Session: sess.ID, Outcome: audit.Done, Reason: "ended by " + a.Name,
		Detail: map[string]string{"person": sess.Sub, "username": sess.Username},
	}
	if a.Operator {
		e.Who = "operator"
	}
	if err := s.record(ctx, e, nil); err != nil {
		return err
	}
	return s.deleteSession(ctx, sess)
}
