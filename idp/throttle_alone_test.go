package idp

import (
	"errors"
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
