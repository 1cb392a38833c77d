package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// drain reads until the channel is closed.
func drain(t testing.TB, ch <-chan store.Batch) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the channel was not closed")
		}
	}
}

func testWatch(t *testing.T, s store.Store) {
	before := write(t, s, put("a/1", "old"))
	live := watch(t, s, "a/", before)
	r1 := write(t, s, put("a/1", "one"), put("b/1", "other"))
	write(t, s, put("b/2", "other"))
	r2 := write(t, s, del("a/1"), put("a/2", "two"), del("a/never"))
	want := []string{
		fmt.Sprintf("a/1=one@%d", r1), fmt.Sprintf("a/1 deleted@%d", r2), fmt.Sprintf("a/2=two@%d", r2),
	}
	equal(t, until(t, live, r2), want)
	equal(t, until(t, watch(t, s, "a/", before), r2), want)
	equal(t, until(t, watch(t, s, "a/", r1), r2), want[1:])
	equal(t, until(t, watch(t, s, "a/2", before), r2), want[2:])
	equal(t, until(t, watch(t, s, "a/", r2), r2), nil)

	ctx, cancel := context.WithCancel(t.Context())
	ch, err := s.Watch(ctx, "a/", before)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	drain(t, ch)
}

func testSignsOfLife(t *testing.T, s store.Store) {
	rev := write(t, s, put("a/1", "x"))
	ch := watch(t, s, "a/", rev)
	for range 2 {
		if b := next(t, ch); len(b.Events) != 0 || b.Revision != rev {
			t.Fatalf("batch %+v, want a sign of life at %d", b, rev)
		}
	}
	// What others write moves it on, though it is not under the prefix.
	rev = write(t, s, put("b/1", "x"))
	equal(t, until(t, ch, rev), nil)
}

// load starts writers that put and delete keys under "w/" in Txns of one to three
// changes until stop is called, which returns the last revision written.
func load(t *testing.T, s store.Store) (stop func() int64) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var last int64
	for w := range 4 {
		rng := rand.New(rand.NewPCG(uint64(w), 1))
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				ops := make(map[string]store.Op, 3)
				for range 1 + rng.IntN(3) {
					key := "w/" + strconv.Itoa(rng.IntN(40))
					ops[key] = store.Op{Key: key, Value: fmt.Appendf(nil, "%d.%d", w, i), Delete: rng.IntN(4) == 0}
				}
				rev, err := s.Txn(t.Context(), nil, slices.Collect(maps.Values(ops)))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				last = max(last, rev)
				mu.Unlock()
			}
		})
	}
	return func() int64 {
		cancel()
		wg.Wait()
		return last
	}
}

// state is what a reader of a watch knows.
type state map[string]string

func (st state) apply(b store.Batch) {
	for _, e := range b.Events {
		if e.Delete {
			delete(st, e.Key)
		} else {
			st[e.Key] = fmt.Sprintf("%s@%d", e.Value, e.Revision)
		}
	}
}

// read is the same by List, with its revision.
func read(t testing.TB, s store.Store, prefix string) (state, int64) {
	t.Helper()
	entries, rev, err := s.List(t.Context(), prefix, "", store.MaxList)
	if err != nil {
		t.Fatal(err)
	}
	st := state{}
	for _, e := range entries {
		st[e.Key] = fmt.Sprintf("%s@%d", e.Value, e.Revision)
	}
	return st, rev
}

// follow applies one watch to st, from revision after on, for n batches or, where n
// is 0, up to revision end. It lists again when told that it is too late.
func follow(t *testing.T, s store.Store, st state, after int64, n int, end int64) (state, int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := s.Watch(ctx, "w/", after)
	if errors.Is(err, store.ErrCompacted) {
		return read(t, s, "w/")
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; (n == 0 && after < end) || i < n; i++ {
		b := next(t, ch)
		st.apply(b)
		after = b.Revision
	}
	return st, after
}

// testWatchResumes breaks a watch off again and again under load, goes on from
// where it was, and must end with exactly what List shows.
func testWatchResumes(t *testing.T, s store.Store) {
	stop := load(t, s)
	st, after := state{}, int64(0)
	for range 60 {
		st, after = follow(t, s, st, after, 2, 0)
	}
	end := stop()
	st, _ = follow(t, s, st, after, 0, end)
	want, _ := read(t, s, "w/")
	if !maps.Equal(st, want) {
		t.Fatalf("after resuming\n%v\nlisted\n%v", st, want)
	}
}

// testListThenWatch starts readers under load, each from its own List.
func testListThenWatch(t *testing.T, s store.Store) {
	stop := load(t, s)
	type reader struct {
		st    state
		after int64
	}
	var readers []reader
	for range 20 {
		st, rev := read(t, s, "w/")
		st, rev = follow(t, s, st, rev, 3, 0)
		readers = append(readers, reader{st, rev})
	}
	end := stop()
	want, _ := read(t, s, "w/")
	for i, r := range readers {
		if st, _ := follow(t, s, r.st, r.after, 0, end); !maps.Equal(st, want) {
			t.Fatalf("reader %d knows\n%v\nlisted\n%v", i, st, want)
		}
	}
}
