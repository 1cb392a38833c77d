package idp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// A store that no other node shares: a login after no wrong password writes nothing
// of the throttle, and the rule holds all the same.
func TestThrottleAlone(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1, func(c *Config) { c.Throttle.AddressTries = 1000 })
	h.Alone = true
	n := h.writes("throttle")
	for range 3 {
		h.code("alice", "kubernetes")
	}
	if *n != 0 {
		t.Errorf("%d writes for logins after no wrong password", *n)
	}
	d.arrived()
	var mu sync.Mutex
	said := map[error]int{}
	all(50, func(int) {
		err := h.guess("alice", "wrong")
		mu.Lock()
		defer mu.Unlock()
		for _, kind := range []error{ErrCredentials, ErrTooMany} {
			if errors.Is(err, kind) {
				said[kind]++
			}
		}
	})
	if n := d.arrived(); n != 3 || said[ErrCredentials] != 3 || said[ErrTooMany] != 47 {
		t.Errorf("%d binds of 50; answers %v", n, said)
	}
	h.clock.pass(h.rule(h.ctx, d).quiet())
	h.code("alice", "kubernetes")
	all(20, func(int) {
		if err := h.guess("alice", password); err != nil {
			t.Error(err)
		}
	})
}

// A try whose answer is lost counts, though nothing was written before it.
func TestThrottleAloneCountsLostAnswers(t *testing.T) {
	h, d, _ := guarded(t, threshold5, 1)
	h.Alone, d.silent = true, true
	for range 10 {
		_ = h.guess("alice", "wrong")
	}
	if n := d.arrived(); n != 3 {
		t.Errorf("%d binds that nobody heard the answer of", n)
	}
}

// Neither a store that fails nor others who write at once make a wrong password
// forgotten more than the once that the rule leaves room for.
func TestThrottleAloneWithFaults(t *testing.T) {
	onThrottle := func(hook storetest.Hook) storetest.Hook {
		return func(keys []string) error {
			if slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, "throttle/") }) {
				return hook(keys)
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		hook  func() storetest.Hook
		binds int
	}{
		"conflict":  {func() storetest.Hook { return storetest.Times(1, store.ErrConflict) }, 3},
		"disk full": {func() storetest.Hook { return storetest.Times(1000, errBroken) }, 4},
	} {
		h, d, _ := guarded(t, threshold5, 1)
		h.Alone = true
		for range 8 {
			h.store.Before(onThrottle(c.hook()))
			_ = h.guess("alice", "wrong")
		}
		h.store.Before(nil)
		for range 8 {
			_ = h.guess("alice", "wrong")
		}
		if n := d.arrived(); n != c.binds || d.worst >= threshold5.Threshold {
			t.Errorf("%s: %d binds, want %d", name, n, c.binds)
		}
	}
	h, _, _ := guarded(t, directory.Lockout{Threshold: 3, Window: threshold5.Window}, 1)
	h.Alone = true
	n := h.writes("throttle")
	if h.code("alice", "kubernetes"); *n != 2 {
		t.Errorf("%d writes where nothing may be forgotten", *n)
	}
}

// forgetful loses the answers to some binds, as a host that dies does.
type forgetful struct {
	*strict
	lose int
}

func (d *forgetful) Bind(ctx context.Context, dn, password string) error {
	err := d.strict.Bind(ctx, dn, password)
	if d.lose == 0 {
		return err
	}
	d.lose--
	return fmt.Errorf("%w: %w", directory.ErrUnavailable, directory.ErrLost)
}

// A login whose host dies under it goes on at another one. The lost try counts like
// any other, so the account stays below the directory's threshold.
func TestLostBind(t *testing.T) {
	for _, alone := range []bool{true, false} {
		h, counts, _ := guarded(t, threshold5, 1)
		d := &forgetful{strict: counts, lose: 1}
		h.Alone, h.Directories = alone, []Directory{d, h.lab}
		h.must(h.guess("alice", password))
		if n := d.arrived(); n != 2 {
			t.Errorf("%d binds for a right password whose first answer was lost", n)
		}
		d.lose = 1
		wantErr(t, h.guess("alice", "wrong"), ErrCredentials)
		d.lose = 1
		wantErr(t, h.guess("alice", "wrong"), ErrUnavailable) // the third one, and no fourth
		wantErr(t, h.guess("alice", password), ErrTooMany)
		if n := d.arrived(); n != 3 || d.worst != 3 {
			t.Errorf("alone %v: %d binds with wrong passwords, %d counted at once", alone, n, d.worst)
		}
	}
}
