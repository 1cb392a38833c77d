package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// testLease has holders take a lease from each other, and many race for one.
func testLease(t *testing.T, s store.Store) {
	lease := func(holder string, ttl time.Duration, want bool) {
		t.Helper()
		if held, err := store.Lease(t.Context(), s, "lease/work", holder, ttl); err != nil || held != want {
			t.Fatalf("lease for %s: %v, %v; want %v", holder, held, err, want)
		}
	}
	lease("a", time.Hour, true)
	lease("b", time.Hour, false)
	lease("a", time.Millisecond, true) // renewed, for less
	eventually(t, "b gets what a let expire", func() bool {
		held, err := store.Lease(t.Context(), s, "lease/work", "b", time.Hour)
		return err == nil && held
	})
	lease("a", time.Hour, false)
	lease("b", time.Hour, true)
	for _, bad := range []struct {
		key, holder string
		ttl         time.Duration
	}{{"lease/work", "", time.Hour}, {"lease/work", "b", 0}, {"lease", "b", time.Hour}} {
		_, err := store.Lease(t.Context(), s, bad.key, bad.holder, bad.ttl)
		wantErr(t, err, store.ErrInvalid)
	}

	var wg sync.WaitGroup
	won := make(chan string, 16)
	for i := range cap(won) {
		wg.Go(func() {
			held, err := store.Lease(t.Context(), s, "lease/race", fmt.Sprint(i), time.Hour)
			if err != nil {
				t.Error(err)
			}
			if held {
				won <- fmt.Sprint(i)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || get(t, s, "lease/race") != <-won {
		t.Fatalf("%d of %d won the race", len(won), cap(won))
	}
}
