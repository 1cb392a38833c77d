package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// dump returns what Dump tells, as "key=value@revision".
func dump(t testing.TB, s store.Store) ([]string, int64) {
	t.Helper()
	var told []string
	rev, err := s.Dump(t.Context(), func(e store.Entry) error {
		told = append(told, tell(store.Event{Entry: e}))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return told, rev
}

func testDump(t *testing.T, s store.Store) {
	told, none := dump(t, s)
	equal(t, told, nil)
	hour := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	first := write(t, s, put("b/1", "one"), put("a/\x00\xff", "odd"), put("é/1", ""), put("a/1", "old"),
		store.Op{Key: "c/old", Expires: time.Now().Add(-time.Hour)}, put("d/1", "gone"))
	second := write(t, s, put("a/1", "new"), del("d/1"), store.Op{Key: "c/1", Value: []byte("x"), Expires: hour})
	told, rev := dump(t, s)
	equal(t, told, []string{
		fmt.Sprintf("a/\x00\xff=odd@%d", first), fmt.Sprintf("a/1=new@%d", second), fmt.Sprintf("b/1=one@%d", first),
		fmt.Sprintf("c/1=x@%d", second), fmt.Sprintf("é/1=@%d", first),
	})
	// The sweep of c/old may come between the two.
	if _, listed, err := s.List(t.Context(), "", "", 1); err != nil || listed < rev || listed > rev+1 || rev <= none {
		t.Fatalf("revision %d, listed at %d, empty at %d; %v", rev, listed, none, err)
	}
	_, err := s.Dump(t.Context(), func(e store.Entry) error {
		if want := e.Key == "c/1"; want != e.Expires.Equal(hour) || want != !e.Expires.IsZero() {
			t.Errorf("%q expires %v", e.Key, e.Expires)
		}
		copy(e.Value, "mine") // fn may keep it and change it
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, []string{get(t, s, "a/1"), get(t, s, "c/1")}, []string{"new", "x"})
}

// testDumpOneMoment dumps more than a back end reads at once, while the first and the
// last key, and one that is added, are written together. It must find the two alike
// and nothing that was written after it began.
func testDumpOneMoment(t *testing.T, s store.Store) {
	filler := strings.Repeat("x", 4_000)
	for i := range 12 {
		var ops []store.Op
		for j := range 100 {
			ops = append(ops, put(fmt.Sprintf("m/%04d", i*100+j), filler))
		}
		write(t, s, ops...)
	}
	write(t, s, put("a/1", "0"), put("z/1", "0"))
	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			v := fmt.Sprint(i)
			if _, err := s.Txn(t.Context(), nil, []store.Op{put("a/1", v), put("z/1", v), put("n/"+v, v), put(fmt.Sprintf("m/%04d", i%1200), v)}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer writer.Wait()
	defer cancel()
	for seen := map[int64]bool{}; len(seen) < 5; {
		at := dumpPair(t, s)
		if !seen[at] {
			seen[at] = true
			eventually(t, "the writer goes on", func() bool { _, rev, _ := s.List(t.Context(), "", "", 1); return rev > at })
		}
	}
}

// dumpPair dumps s, with a write from within, and returns the revision of the dump.
func dumpPair(t *testing.T, s store.Store) int64 {
	t.Helper()
	var first, last store.Entry
	newest := int64(0)
	rev, err := s.Dump(t.Context(), func(e store.Entry) error {
		switch {
		case e.Key == "a/1":
			first = e
			write(t, s, put("a/1", "within"), put("z/1", "within"), put("n/within", ""))
		case e.Key == "z/1":
			last = e
		case e.Key == "n/within":
			return errors.New("told of what was written after it began")
		}
		newest = max(newest, e.Revision)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(first.Value) != string(last.Value) || first.Revision != last.Revision || newest > rev {
		t.Fatalf("%s@%d and %s@%d, the newest at %d, in a dump at %d", first.Value, first.Revision, last.Value, last.Revision, newest, rev)
	}
	write(t, s, del("n/within"))
	return rev
}

func testDumpEnds(t *testing.T, s store.Store) {
	for i := range 5 {
		write(t, s, put(fmt.Sprintf("a/%d", i), "x"))
	}
	broken := errors.New("broken")
	calls := 0
	_, err := s.Dump(t.Context(), func(store.Entry) error {
		if calls++; calls == 3 {
			return broken
		}
		return nil
	})
	wantErr(t, err, broken)
	if calls != 3 {
		t.Fatalf("%d calls, the third failed", calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls = 0
	_, err = s.Dump(ctx, func(store.Entry) error {
		calls++
		cancel()
		return nil
	})
	wantErr(t, err, context.Canceled)
	if calls > 1 {
		t.Fatalf("%d calls, the context ended in the first", calls)
	}
}
