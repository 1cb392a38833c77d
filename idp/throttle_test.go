package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// strict is a directory that counts wrong passwords as Active Directory does: it
// forgets them when a window has passed since the last, or after a right one.
type strict struct {
	*people
	clock  *clock
	policy directory.Lockout
	unread error // what Lockout answers instead

	mu     sync.Mutex
	count  map[string]int // by DN
	last   map[string]time.Time
	worst  int           // the highest count there was
	binds  int           // that arrived
	slow   time.Duration // that a bind takes
	silent bool          // a bind arrives, and its answer is lost
	hold   chan struct{} // where binds with a wrong password wait, if it is there
}

func (d *strict) Lockout(context.Context) (directory.Lockout, error) { return d.policy, d.unread }

func (d *strict) Bind(ctx context.Context, dn, password string) error {
	d.mu.Lock()
	slow, silent, hold := d.slow, d.silent, d.hold
	d.mu.Unlock()
	if hold != nil && password == "wrong" {
		<-hold
	}
	d.clock.pass(slow)
	err := d.people.Bind(ctx, dn, password)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.binds++
	now := d.clock.Now()
	if now.Sub(d.last[dn]) > d.policy.Window || err == nil {
		d.count[dn] = 0
	}
	if errors.Is(err, directory.ErrInvalidCredentials) {
		d.count[dn]++
		d.last[dn] = now
		d.worst = max(d.worst, d.count[dn])
	}
	if silent {
		return errUnreachable
	}
	return err
}

func (d *strict) arrived() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.binds
	d.binds = 0
	return n
}

// guarded is a house whose directory corp locks accounts, and n nodes of it.
func guarded(t testing.TB, policy directory.Lockout, n int, change ...func(*Config)) (*house, *strict, []*Service) {
	t.Helper()
	h := newHouse(t, change...)
	d := &strict{people: h.corp, clock: h.clock, policy: policy, count: map[string]int{}, last: map[string]time.Time{}}
	parts := h.Parts
	parts.Directories = []Directory{d, h.lab}
	var nodes []*Service
	for range n {
		s, err := New(h.ctx, h.cfg, parts)
		h.must(err)
		nodes = append(nodes, s)
	}
	h.Service = nodes[0]
	return h, d, nodes
}

var threshold5 = directory.Lockout{Threshold: 5, Window: 30 * time.Minute}

// waitOf returns the wait of a *TooManyError, 0 for another error.
func waitOf(err error) time.Duration {
	var many *TooManyError
	if errors.As(err, &many) {
		return many.Wait
	}
	return 0
}

func (h *house) guess(login, password string) error {
	_, err := h.SignIn(h.ctx, Credentials{Login: login, Password: password}, nil)
	return err
}

func TestThrottleRule(t *testing.T) {
	unread := errors.New("no right")
	for _, c := range []struct {
		lockout directory.Lockout
		err     error
		tries   int
		want    rule
	}{
		{directory.Lockout{Threshold: 5, Window: time.Minute}, nil, 0, rule{3, 15 * time.Minute}},
		{directory.Lockout{Threshold: 5, Window: time.Hour}, nil, 0, rule{3, time.Hour}},
		{directory.Lockout{Threshold: 50, Window: time.Hour}, nil, 0, rule{48, time.Hour}},
		{directory.Lockout{Threshold: 4, Window: time.Hour}, nil, 0, rule{2, time.Hour}},
		{directory.Lockout{Threshold: 3, Window: time.Hour}, nil, 0, rule{2, time.Hour}},
		{directory.Lockout{Threshold: 2, Window: time.Hour}, nil, 0, rule{1, time.Hour}},
		{directory.Lockout{Threshold: 1, Window: time.Hour}, nil, 0, rule{1, time.Hour}},
		{directory.Lockout{Threshold: 5, Window: time.Hour}, nil, 2, rule{2, time.Hour}},
		{directory.Lockout{Threshold: 5, Window: time.Hour}, nil, 9, rule{3, time.Hour}}, // the directory knows better
		{directory.Lockout{}, nil, 0, rule{10, 15 * time.Minute}},
		{directory.Lockout{}, nil, 20, rule{20, 15 * time.Minute}},
		{directory.Lockout{}, unread, 0, rule{8, 15 * time.Minute}},
		{directory.Lockout{}, unread, 8, rule{8, 15 * time.Minute}},
	} {
		h, d, _ := guarded(t, c.lockout, 1, func(cfg *Config) { cfg.Throttle.AccountTries = c.tries })
		d.unread = c.err
		if got := h.rule(h.ctx, d); got != c.want {
			t.Errorf("%+v, %v, accountTries %d: %+v, want %+v", c.lockout, c.err, c.tries, got, c.want)
		}
	}
}

// An unknown name, a wrong password and a disabled account are refused alike: the
// same answers, waits and calls to the directory, until the time is over.
func TestThrottleTellsNothing(t *testing.T) {
	seen := map[string]string{}
	for _, login := range []string{"alice", "nobody", "off"} {
		h, _, _ := guarded(t, threshold5, 1)
		h.hire(h.corp, "off", "00000000-0000-4000-8000-000000000010")
		h.corp.entries["off"].State = directory.Disabled
		h.corp.entries["off"].bindErr = &directory.AccountError{State: directory.Disabled}
		var said strings.Builder
		for range 3 {
			for range 5 {
				err := h.guess(login, "wrong")
				fmt.Fprintln(&said, err, h.corp.took(), h.lab.took())
			}
			h.clock.pass(34 * time.Minute)
		}
		seen[said.String()] = login
		if !strings.Contains(said.String(), "wait 33m10s [find] [find]\n") {
			t.Errorf("%s:\n%s", login, said.String())
		}
	}
	if len(seen) != 1 {
		t.Errorf("told apart: %v", seen)
	}
}

func TestThrottleIsInTheTrail(t *testing.T) {
	h, _, _ := guarded(t, threshold5, 1)
	for _, login := range []string{"alice", unusualLogin} {
		h.trail.events = nil
		for range 4 {
			h.guess(login, "wrong")
		}
		last := h.trail.events[3]
		if last.Reason != "throttled" || last.Outcome != audit.Denied || (last.Name == "alice") != (login == "alice") {
			t.Errorf("%s: %+v", login, last)
		}
		assertNoSecrets(t, h.trail.events)
	}
	entries, _, err := h.disk.List(h.ctx, "throttle/", "", 10)
	h.must(err)
	if len(entries) != 3 { // two accounts and an address
		t.Errorf("%d records", len(entries))
	}
	for _, e := range entries {
		if strings.Contains(e.Key+string(e.Value), unusualLogin) || e.Expires.IsZero() {
			t.Errorf("record %s: %s, until %s", e.Key, e.Value, e.Expires)
		}
	}
}

// The forms of one name count together, whether it exists or not.
func TestThrottleKey(t *testing.T) {
	h := newHouse(t)
	key := func(login string) string { return h.accountKey(directory.Person{}, login) }
	for _, same := range []string{"JÖRG", " jörg ", "jo\u0308rg", `CORP\jörg`, "jörg@corp.example"} {
		if key(same) != key("jörg") {
			t.Errorf("%q counts apart", same)
		}
	}
	alice := h.corp.entries["alice"].Person
	keys := []string{key("jörg"), key("jorg"), key(""), key(alice.Sub()), h.accountKey(alice, "jörg"), h.accountKey(h.corp.entries["bob"].Person, "jörg")}
	slices.Sort(keys)
	if len(slices.Compact(keys)) != 6 {
		t.Error("different names count together")
	}
	if h.accountKey(alice, "alice") != h.accountKey(alice, "alice@corp.test") {
		t.Error("a person counts by what was typed")
	}
	for address, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8::1": "2001:db8::", "2001:db8::ffff:0:0:1": "2001:db8::",
		"2001:db8:0:1::1": "2001:db8:0:1::", "fe80::1%eth0": "fe80::", "odd": "odd",
	} {
		if got := network(address); got != want {
			t.Errorf("network(%s) is %s", address, got)
		}
	}
}

func TestThrottleForgives(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1)
	for range 5 {
		wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
		wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
		wantErr(t, h.guess("alice", password), nil)
		if _, err := h.disk.Get(h.ctx, h.accountKey(h.corp.entries["alice"].Person, "")); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("there is still a record: %v", err)
		}
	}
	for range 3 {
		wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
	}
	d.arrived()
	wantErr(t, h.guess("alice", password), ErrTooMany) // right, but nobody is asked
	if n := d.arrived(); n != 0 {
		t.Errorf("%d binds", n)
	}
	h.clock.pass(33*time.Minute + 10*time.Second)
	wantErr(t, h.guess("alice", password), nil)
}

func TestThrottleDoublesTheWait(t *testing.T) {
	h, _, _ := guarded(t, directory.Lockout{}, 1)
	var waits []string
	for range 12 {
		wait := waitOf(h.guess("alice", "wrong"))
		if wait > 0 {
			h.clock.pass(wait)
			wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
		}
		waits = append(waits, wait.String())
	}
	if got := strings.Join(waits, " "); got != "0s 0s 0s 1s 2s 4s 8s 16s 32s 1m4s 16m40s 0s" {
		t.Errorf("waits: %s", got)
	}
}

func TestThrottleFiftyAtOnce(t *testing.T) {
	h, d, nodes := guarded(t, threshold5, 3, func(c *Config) { c.Throttle.AddressTries = 1000 })
	var mu sync.Mutex
	said := map[error]int{}
	all(50, func(i int) {
		_, err := nodes[i%3].SignIn(h.ctx, Credentials{Login: "alice", Password: "wrong"}, nil)
		mu.Lock()
		defer mu.Unlock()
		for _, kind := range []error{ErrCredentials, ErrTooMany} {
			if errors.Is(err, kind) {
				said[kind]++
			}
		}
	})
	if n := d.arrived(); n != 3 || said[ErrCredentials] != 3 || said[ErrTooMany] != 47 {
		t.Errorf("%d binds; answers %v", n, said)
	}
}

// Wrong passwords that are on their way while the right one is answered reach the
// directory after it, so it does not forgive them.
func TestThrottleForgivesNothingUnderWay(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1)
	d.hold = make(chan struct{})
	var guesses sync.WaitGroup
	for range 2 {
		guesses.Go(func() { wantErr(t, h.guess("alice", "wrong"), ErrCredentials) })
	}
	key := h.accountKey(h.corp.entries["alice"].Person, "")
	for both := false; !both; time.Sleep(time.Millisecond) {
		var record tries
		if e, err := h.disk.Get(h.ctx, key); err == nil {
			h.must(json.Unmarshal(e.Value, &record))
		}
		both = len(record.Running) == 2
	}
	wantErr(t, h.guess("alice", password), nil)
	close(d.hold)
	guesses.Wait()
	d.mu.Lock()
	d.hold = nil
	d.mu.Unlock()
	wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
	wantErr(t, h.guess("alice", "wrong"), ErrTooMany)
	if d.worst != 3 {
		t.Errorf("the directory counts %d", d.worst)
	}
}

// Somebody who signs in on several devices at once does not stand in their own way.
func TestThrottleLetsRightPasswordsThrough(t *testing.T) {
	h, _, nodes := guarded(t, threshold5, 2)
	all(8, func(i int) {
		if _, err := nodes[i%2].SignIn(h.ctx, Credentials{Login: "alice", Password: password}, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestThrottleOfAnAddress(t *testing.T) {
	h, _, nodes := guarded(t, threshold5, 2)
	from := func(address string, node int) error {
		ctx := audit.WithOrigin(t.Context(), audit.Origin{Address: address})
		_, err := nodes[node].SignIn(ctx, Credentials{Login: "n" + randomID(), Password: "wrong"}, nil)
		return err
	}
	for i := range 20 {
		wantErr(t, from(fmt.Sprintf("2001:db8::%x", i), i%2), ErrCredentials)
	}
	h.corp.took()
	if err := from("2001:db8::1", 0); waitOf(err) != time.Second {
		t.Errorf("after 20: %v", err)
	}
	if calls := h.corp.took(); slices.Contains(calls, "bind") { // the last was at the other node
		t.Errorf("the directory was asked %v", calls)
	}
	if err := from("2001:db8::1", 0); waitOf(err) != time.Second {
		t.Errorf("after 20, and once more: %v", err)
	}
	if calls := h.corp.took(); len(calls) != 0 {
		t.Errorf("the directory was asked %v", calls)
	}
	wantErr(t, from("2001:db8:0:1::1", 0), ErrCredentials)
	wrong := 0
	for end := h.clock.Now().Add(h.cfg.Throttle.Window); h.clock.Now().Before(end) && wrong < 100; wrong++ {
		for wait := waitOf(from("2001:db8::1", 1)); wait > 0; wait = waitOf(from("2001:db8::1", 1)) {
			h.clock.pass(wait)
		}
	}
	if wrong < 20 || wrong > 30 {
		t.Errorf("%d in the next window", wrong)
	}
	h.clock.pass(2 * h.cfg.Throttle.Window)
	wantErr(t, from("2001:db8::1", 0), ErrCredentials)
}

// Many guesses at once from one address, each of another name, with a store that takes
// its time: the tries meet, and none may lose count.
func TestThrottleOfAnAddressAtOnce(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1)
	h.store.Before(func([]string) error { time.Sleep(100 * time.Millisecond); return nil })
	all(100, func(i int) { h.guess(fmt.Sprint("name", i), "wrong") })
	if n := d.arrived(); n > 25 {
		t.Errorf("%d binds", n)
	}
}

// What ends in no session counts, unless the password was right.
func TestThrottleCounts(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1)
	h.hire(h.corp, "off", "00000000-0000-4000-8000-000000000010")
	h.corp.entries["off"].State = directory.Disabled
	var account *directory.AccountError
	for range 6 {
		if err := h.guess("off", password); !errors.As(err, &account) {
			t.Fatal(err)
		}
	}
	h.corp.noGroup = errUnreachable
	for range 6 {
		wantErr(t, h.guess("alice", password), ErrUnavailable)
	}
	h.corp.noGroup = nil
	h.member("vault-users", "person", "corp."+aliceID, time.Time{})
	for range 6 {
		a, err := h.Authorize(h.ctx, h.request("vault"), "", "")
		h.must(err)
		req, err := h.OpenRequest(a.Sealed, a.Binding)
		h.must(err)
		_, err = h.SignIn(h.ctx, Credentials{Login: "bob", Password: password}, req)
		wantErr(t, err, ErrNoAccess)
	}
	d.silent = true
	for range 3 {
		wantErr(t, h.guess("alice", "wrong"), ErrUnavailable)
	}
	wantErr(t, h.guess("alice", "wrong"), ErrTooMany)
}

// A login costs one write more than without a throttle, with wrong passwords before
// it or without.
func TestThrottleCost(t *testing.T) {
	h, _, _ := guarded(t, threshold5, 1)
	for _, before := range []int{0, 2} {
		for range before {
			wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
		}
		n := h.writes("throttle")
		s := h.writes("session")
		h.code("alice", "kubernetes")
		if *s != 1 {
			t.Errorf("after %d wrong ones: %d writes of the session, %d", before, *s, *n)
		}
		n = h.writes("throttle")
		h.code("alice", "kubernetes")
		if *n != 2 {
			t.Errorf("after %d wrong ones: %d writes, of which one is the session's own", before, *n)
		}
	}
}

func TestThrottleStoreFaults(t *testing.T) {
	onThrottle := func(hook storetest.Hook) storetest.Hook {
		return func(keys []string) error {
			if slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, "throttle/") }) {
				return hook(keys)
			}
			return nil
		}
	}
	ever := func([]string) error { return errBroken }
	for name, c := range map[string]struct {
		fail  func(*storetest.Faulty)
		wrong error // what a wrong password hears
		right error
		other bool // another node has counted before
	}{
		"read":              {func(f *storetest.Faulty) { f.Read(onThrottle(ever)) }, errBroken, errBroken, true},
		"before the write":  {func(f *storetest.Faulty) { f.Before(onThrottle(ever)) }, errBroken, errBroken, false},
		"after it, once":    {func(f *storetest.Faulty) { f.After(onThrottle(storetest.Times(1, errBroken))) }, ErrCredentials, nil, false},
		"after each":        {func(f *storetest.Faulty) { f.After(onThrottle(ever)) }, ErrCredentials, store.ErrUnknown, false},
		"before the second": {func(f *storetest.Faulty) { f.Before(onThrottle(failFrom(2))) }, ErrCredentials, errBroken, false},
	} {
		t.Run(name, func(t *testing.T) {
			h, d, nodes := guarded(t, threshold5, 2)
			for _, login := range []string{"alice", "bob"} {
				if c.other {
					_, err := nodes[1].SignIn(h.ctx, Credentials{Login: login, Password: "wrong"}, nil)
					wantErr(t, err, ErrCredentials)
				}
			}
			d.arrived()
			for range 3 {
				c.fail(h.store)
				wantErr(t, h.guess("bob", "wrong"), c.wrong)
				if bound := d.arrived() > 0; bound != errors.Is(c.wrong, ErrCredentials) {
					t.Errorf("bound: %v", bound)
				}
				c.fail(h.store)
				wantErr(t, h.guess("alice", password), c.right)
				h.store.Read(nil)
				h.store.Before(nil)
				h.store.After(nil)
				h.clock.pass(tryLife)
			}
			if d.arrived(); errors.Is(c.wrong, ErrCredentials) {
				wantErr(t, h.guess("bob", "wrong"), ErrTooMany)
			} else {
				wantErr(t, h.guess("bob", "wrong"), ErrCredentials)
			}
		})
	}
}

// failFrom fails the nth call and all after it.
func failFrom(n int) storetest.Hook {
	var mu sync.Mutex
	return func([]string) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n <= 0 {
			return errBroken
		}
		return nil
	}
}

// Whatever an attacker does, with all nodes, from many addresses and at once, with
// a store that fails and a directory that loses answers, the directory does not
// count as many wrong passwords as lock the account.
func TestThrottleNeverLocks(t *testing.T) {
	people := 0
	type setting struct {
		h     *house
		d     *strict
		nodes []*Service
	}
	settings := map[int]setting{}
	for _, threshold := range []int{2, 3, 5, 8} {
		h, d, nodes := guarded(t, directory.Lockout{Threshold: threshold, Window: 20 * time.Minute}, 3, func(c *Config) { c.Throttle.AddressTries = 10_000 })
		settings[threshold] = setting{h, d, nodes}
	}
	rapid.Check(t, func(rt *rapid.T) {
		threshold := rapid.SampledFrom(slices.Sorted(maps.Keys(settings))).Draw(rt, "threshold")
		s := settings[threshold]
		people++
		login := fmt.Sprint("person", people)
		s.h.corp.mu.Lock()
		s.h.hire(s.h.corp, login, fmt.Sprintf("00000000-0000-4000-8000-%012d", 1000+people))
		s.h.corp.mu.Unlock()
		try := func(i int, password string) {
			ctx := audit.WithOrigin(t.Context(), audit.Origin{Address: fmt.Sprintf("10.0.%d.%d", people%250, i)})
			s.nodes[i%3].SignIn(ctx, Credentials{Login: login, Password: password}, nil)
		}
		defer s.h.store.Before(nil)
		defer s.h.store.After(nil)
		defer func() { s.d.slow, s.d.silent = 0, false }()
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"guess", "guess", "slow", "silent", "many", "owner", "pass", "window", "before", "after"}).Draw(rt, "step") {
			case "guess":
				try(rapid.IntRange(0, 2).Draw(rt, "node"), "wrong")
			case "slow":
				s.d.slow = rapid.SampledFrom([]time.Duration{time.Second, loginBudget}).Draw(rt, "slow")
				try(0, "wrong")
				s.d.slow = 0
			case "silent":
				s.d.silent = true
				try(1, "wrong")
				s.d.silent = false
			case "many":
				mixed := rapid.Bool().Draw(rt, "with the owner")
				all(rapid.IntRange(2, 8).Draw(rt, "at once"), func(i int) {
					if mixed && i == 3 {
						try(i, password)
						return
					}
					try(i, "wrong")
				})
			case "owner":
				try(2, password)
			case "pass":
				s.h.clock.pass(time.Duration(rapid.IntRange(1, 600).Draw(rt, "seconds")) * time.Second)
			case "window":
				s.h.clock.pass(20*time.Minute + time.Duration(rapid.IntRange(-20, 200).Draw(rt, "more"))*time.Second)
			case "before":
				s.h.store.Before(storetest.Times(rapid.IntRange(1, 3).Draw(rt, "times"), errBroken))
			case "after":
				s.h.store.After(storetest.Times(rapid.IntRange(1, 3).Draw(rt, "times"), errBroken))
			}
			if s.d.worst >= threshold {
				rt.Fatalf("%d wrong passwords with a threshold of %d", s.d.worst, threshold)
			}
		}
	})
}
