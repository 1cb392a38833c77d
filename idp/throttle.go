package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// TooManyError is ErrTooMany with the time until another try is heard. It does not
// tell whether the login exists.
type TooManyError struct{ Wait time.Duration }

func (e *TooManyError) Error() string { return fmt.Sprintf("%s: wait %s", ErrTooMany, e.Wait) }

// Unwrap returns ErrTooMany.
func (e *TooManyError) Unwrap() error { return ErrTooMany }

const (
	// tryLife is how long after its reservation a try can reach the directory. One
	// without an outcome then counts as a wrong password.
	tryLife = 2 * loginBudget
	// freeTries wrong passwords cost no wait, and so many tries of one account may
	// run at once. Then each wait is twice as long as the one before.
	freeTries = 3
	maxRaces  = 9 // for one record; the waits between them make about 1.3 s
	crowded   = time.Second
)

// unreadLockout stands for a policy that the directory does not show. Most such
// directories have none: OpenLDAP without one looks the same as one that hides it.
var unreadLockout = directory.Lockout{Threshold: 10, Window: 15 * time.Minute}

// rule is how many wrong passwords an account may have, none of them a whole window
// after the one before. After so many the window has to pass without a try, because
// Active Directory forgets them only then.
type rule struct {
	tries  int
	window time.Duration
}

// rule stays below d's lockout: by one, and where it leaves room by one more, for a
// wrong password that was typed elsewhere.
func (s *Service) rule(ctx context.Context, d Directory) rule {
	r := rule{s.cfg.Throttle.AccountTries, s.cfg.Throttle.Window}
	lockout, err := d.Lockout(ctx)
	if err != nil {
		if r.tries > 0 {
			return r // they know what we cannot read
		}
		lockout = unreadLockout
	}
	r.window = max(r.window, lockout.Window)
	safe := lockout.Threshold - 1
	switch {
	case lockout.Threshold == 0:
		safe = 10
		if r.tries > 0 {
			safe = r.tries
		}
	case safe > 2:
		safe--
	}
	if r.tries == 0 || r.tries > safe {
		r.tries = max(safe, 1)
	}
	return r
}

// quiet is the time without a wrong password after which the directory has
// forgotten all, though clocks differ and the last may have arrived late.
func (r rule) quiet() time.Duration { return r.window + r.window/10 + tryLife }

// tries is the record of one account. It is gone when there is nothing to remember.
type tries struct {
	Wrong    int                  `json:"wrong"`    // passwords since the record began
	Forgiven int                  `json:"forgiven"` // of these, by a right one or a quiet time
	Last     time.Time            `json:"last"`     // when the last of them was answered at the latest
	Running  map[string]time.Time `json:"running"`  // reserved at, outcome not known
}

// age counts what never got an outcome, and forgives after a quiet time.
func (t *tries) age(now time.Time, r rule) {
	for id, since := range t.Running {
		if end := since.Add(tryLife); !end.After(now) {
			t.wrong(id, end)
		}
	}
	if now.Sub(t.Last) >= r.quiet() {
		t.Forgiven = t.Wrong
	}
}

// wrong ends a try that counts.
func (t *tries) wrong(id string, at time.Time) {
	delete(t.Running, id)
	t.Wrong++
	if at.After(t.Last) {
		t.Last = at.UTC()
	}
}

// wait returns how long no try may be made, and whether one may as soon as others
// have ended.
func (t *tries) wait(now time.Time, r rule) (wait time.Duration, busy bool) {
	n := t.Wrong - t.Forgiven
	if n >= r.tries {
		return t.Last.Add(r.quiet()).Sub(now), false
	}
	if len(t.Running) > 0 && n+len(t.Running) >= min(freeTries, r.tries) {
		return 0, true
	}
	return t.Last.Add(doubled(n-freeTries, r.window)).Sub(now), false
}

// doubled is a second, doubled n times, at most limit; nothing for n below 0.
func doubled(n int, limit time.Duration) time.Duration {
	if n < 0 {
		return 0
	}
	return min(time.Second<<min(n, 20), limit)
}

// op writes the record, or removes one that says nothing.
func (t *tries) op(key string, r rule) (store.Op, error) {
	if t.Wrong == t.Forgiven && len(t.Running) == 0 {
		return store.Op{Key: key, Delete: true}, nil
	}
	end := t.Last
	for _, since := range t.Running {
		if since.Add(tryLife).After(end) {
			end = since.Add(tryLife)
		}
	}
	value, err := json.Marshal(t)
	return store.Op{Key: key, Value: value, Expires: end.Add(r.quiet())}, err
}

// attempt is one try of a password that was reserved.
type attempt struct {
	*Service
	rule
	id, key  string
	address  string // "": not known
	before   int    // wrong passwords that the directory had answered when this was reserved
	record   tries
	revision int64  // of record
	leave    func() // lets the next one of this node try
	// reserved: the store knows of the try. Where no other node shares the store,
	// tries of an account come one by one, and one that follows no wrong password is
	// not written: a crash can forget that one, which the rule leaves room for.
	reserved bool
}

// accountKey is where a person's tries are counted: whatever they typed, for one who
// exists. For an unknown name nothing is kept that could be a password.
func (s *Service) accountKey(p directory.Person, login string) string {
	who := []string{"sub", p.Sub()}
	if p.ID == "" {
		// The forms in which one name can be typed count together, as they do for one
		// who exists.
		name := login[strings.LastIndexByte(login, '\\')+1:]
		name, _, _ = strings.Cut(name, "@")
		who = []string{"name", cases.Fold().String(norm.NFC.String(strings.TrimSpace(name)))}
	}
	return "throttle/account/" + encode(s.seals.mac("throttle", who...))
}

// reserve counts a try as running before it reaches the directory, by one
// conditional write, so that all nodes together stay within the rule.
// *TooManyError; any other error means that nothing may be tried.
func (s *Service) reserve(ctx context.Context, d Directory, key string) (*attempt, error) {
	ctx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	a := &attempt{Service: s, rule: s.rule(ctx, d), id: randomID(), key: key, address: audit.OriginOf(ctx).Address}
	at := min(freeTries, a.tries)
	if s.Alone {
		at = 1 // around the bind alone, see attempt.reserved
	}
	if err := s.turns.enter(ctx, key, func() (int, error) { return at, nil }); err != nil {
		return nil, err
	}
	a.leave = sync.OnceFunc(func() { s.turns.leave(key) })
	if err := a.reserve(ctx); err != nil {
		a.leave()
		return nil, err
	}
	return a, nil
}

func (a *attempt) reserve(ctx context.Context) error {
	for race := range maxRaces {
		done := false
		err := a.writing(ctx, a.key, func() (err error) {
			done, err = a.reserveOnce(ctx, race == 0 && !a.Alone)
			return err
		})
		if done || err != nil {
			return err
		}
		if race > 0 {
			breathe(ctx, race)
		}
	}
	return &TooManyError{crowded}
}

// reserveOnce writes the try into the record; false where others came first, or have to
// end before. The record is read, or where recall says so, taken for what this node's
// other tries left: most often there is none, and one write is all. The address must be
// as this node knows it as well.
func (a *attempt) reserveOnce(ctx context.Context, recall bool) (done bool, err error) {
	if err := a.read(ctx, recall); err != nil {
		return false, err
	}
	cond, err := a.addressCond(ctx, recall)
	if err != nil {
		return false, err
	}
	if _, mine := a.record.Running[a.id]; mine {
		return true, nil // written, though the answer was lost
	}
	now := a.Now().UTC()
	wait, busy := a.record.wait(now, a.rule)
	switch {
	case recall && wait > 0, busy:
		return false, nil
	case wait > 0:
		return false, &TooManyError{wait}
	}
	a.before = a.record.Wrong
	a.record.Running[a.id] = now
	if a.mayForget() && a.record.Wrong == a.record.Forgiven && len(a.record.Running) == 1 {
		return true, nil
	}
	a.reserved = true
	_, err = a.write(ctx, cond, nil)
	if err != nil && raced(err) {
		return false, nil
	}
	return err == nil, err
}

// writing lets one of this node's tries at a time read and write the record at key, of
// an account or an address, in f: they would only meet in conflicts, and run out of tries
// to write.
func (a *attempt) writing(ctx context.Context, key string, f func() error) error {
	key += "/write"
	if err := a.turns.enter(ctx, key, func() (int, error) { return 1, nil }); err != nil {
		return err
	}
	defer a.turns.leave(key)
	return f()
}

// mayForget reports whether a try may do without a reservation. A rule of fewer tries
// has no room for a forgotten one, and a store that failed once to write one down is
// asked before each try from then on.
func (a *attempt) mayForget() bool {
	return a.Alone && a.tries >= freeTries && !a.mustReserve.Load()
}

// raced reports whether a write has to be looked at again.
func raced(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown)
}

// breathe lets others go first.
func breathe(ctx context.Context, race int) {
	select {
	case <-ctx.Done():
	case <-time.After(rand.N(5 * time.Millisecond << race)):
	}
}

// read reads the record, or where recall says so, takes it for what this node knows of
// it: nothing, as a rule.
func (a *attempt) read(ctx context.Context, recall bool) error {
	e, err := a.entry(ctx, a.key, recall)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read the tries of an account: %w", err)
	}
	return a.take(e)
}

// take reads the record in e, the zero Entry where there is none.
func (a *attempt) take(e store.Entry) error {
	a.record, a.revision = tries{}, e.Revision
	if e.Revision != 0 {
		if err := json.Unmarshal(e.Value, &a.record); err != nil {
			return fmt.Errorf("read the tries of an account: %w", err)
		}
	}
	if a.record.Running == nil {
		a.record.Running = map[string]time.Time{}
	}
	a.record.age(a.Now(), a.rule)
	return nil
}

// catchUp brings the record on to what other tries of this node have made of it.
func (a *attempt) catchUp() error {
	e, ok := a.recents.get(a.key)
	if !ok {
		return nil
	}
	return a.take(e)
}

// write makes other changes together with that of the record.
func (a *attempt) write(ctx context.Context, conds []store.Cond, ops []store.Op) (revision int64, err error) {
	op, err := a.record.op(a.key, a.rule)
	if err == nil {
		revision, err = a.txn(ctx, append(slices.Clip(conds), store.Cond{Key: a.key, Revision: a.revision}), append(slices.Clip(ops), op))
	}
	if err != nil {
		return 0, fmt.Errorf("count the tries of an account: %w", err)
	}
	return revision, nil
}

// end is for a try that started no session: wrong ones count, also at the address.
// If it cannot be written the reservation stays, which counts as well.
func (a *attempt) end(ctx context.Context, wrong bool) {
	defer a.leave()
	if !a.reserved && !wrong {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginBudget)
	defer cancel()
	write := func() error { return a.endReserved(ctx, wrong) }
	err := a.writing(ctx, a.key, func() error {
		if !wrong || a.address == "" {
			return write()
		}
		return a.writing(ctx, addressKey(a.address), write)
	})
	if err == nil {
		return
	}
	if !a.reserved {
		a.mustReserve.Store(true)
	}
	a.Log.WithError(err).Warn("the outcome of a sign-in was not written: if it was reserved it counts as a wrong password of the account")
}

func (a *attempt) endReserved(ctx context.Context, wrong bool) error {
	if err := a.catchUp(); err != nil {
		return err
	}
	for race := 0; ; race++ {
		if _, running := a.record.Running[a.id]; !running && a.reserved {
			return nil // counted by another node that saw no outcome in time
		}
		var conds []store.Cond
		var ops []store.Op
		var err error
		if delete(a.record.Running, a.id); wrong {
			a.record.wrong(a.id, a.Now())
			conds, ops, err = a.countAddress(ctx, a.address, race == 0)
		}
		if err == nil {
			_, err = a.write(ctx, conds, ops)
		}
		if err == nil || !raced(err) || race == maxRaces-1 {
			return err
		}
		if err := a.again(ctx, race); err != nil {
			return err
		}
	}
}

// again reads the record anew after a conflict: at once the first time, which others of
// this node have caused, and then when those of other nodes had time.
func (a *attempt) again(ctx context.Context, race int) error {
	if race > 0 {
		breathe(ctx, race)
	}
	return a.read(ctx, false)
}

// commit makes the changes that a right password leads to, and forgives in the same
// write the wrong ones that the directory had answered before it.
func (a *attempt) commit(ctx context.Context, conds []store.Cond, ops []store.Op) (revision int64, err error) {
	if !a.reserved {
		return a.txn(ctx, conds, ops)
	}
	err = a.writing(ctx, a.key, func() error {
		revision, err = a.commitReserved(ctx, conds, ops)
		return err
	})
	return revision, err
}

func (a *attempt) commitReserved(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	if err := a.catchUp(); err != nil {
		return 0, err
	}
	for race := 0; ; race++ {
		if _, running := a.record.Running[a.id]; running {
			delete(a.record.Running, a.id)
			a.record.Forgiven = max(a.record.Forgiven, a.before)
		}
		revision, err := a.write(ctx, conds, ops)
		if err == nil {
			a.leave()
		}
		if !errors.Is(err, store.ErrConflict) || race == maxRaces {
			return revision, err
		}
		if err := a.again(ctx, race); err != nil {
			return 0, err
		}
	}
}
