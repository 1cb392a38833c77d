package idp

import (
	"errors"
	"sync"
	"testing"
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
