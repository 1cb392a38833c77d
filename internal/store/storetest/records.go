package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

func testWriteRead(t *testing.T, s store.Store) {
	if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("absent key: %v", err)
	}
	first := write(t, s, put("a/1", "one"), put("a/\x00\xff", "odd"), put("a/e", ""))
	if first <= 0 {
		t.Fatalf("first revision is %d", first)
	}
	e, err := s.Get(t.Context(), "a/1")
	if err != nil || e.Key != "a/1" || string(e.Value) != "one" || e.Revision != first || !e.Expires.IsZero() {
		t.Fatalf("read %+v, %v", e, err)
	}
	equal(t, []string{get(t, s, "a/\x00\xff"), get(t, s, "a/e")}, []string{"odd", ""})

	second := write(t, s, put("a/1", "uno"), del("a/e"), del("a/never"))
	if second <= first {
		t.Fatalf("revision %d after %d", second, first)
	}
	equal(t, []string{get(t, s, "a/1"), get(t, s, "a/e")}, []string{"uno", "absent"})
	if e, _ := s.Get(t.Context(), "a/\x00\xff"); e.Revision != first {
		t.Fatalf("untouched key went from revision %d to %d", first, e.Revision)
	}
	if same := write(t, s, del("a/never")); same != second {
		t.Fatalf("a Txn that changed nothing got revision %d, want %d", same, second)
	}
}

func testCopies(t *testing.T, s store.Store) {
	var filling []store.Op // bbolt copies what fits into one page, and hides a mistake
	for i := range store.MaxOps {
		filling = append(filling, put(fmt.Sprintf("b/%d", i), strings.Repeat("x", 200)))
	}
	before := write(t, s, filling...)
	ch := watch(t, s, "", before)
	value := []byte("mine")
	rev := write(t, s, store.Op{Key: "a/1", Value: value})
	copy(value, "hers")
	e, _ := s.Get(t.Context(), "a/1")
	copy(e.Value, "gets")
	list, _, _ := s.List(t.Context(), "a/", "", 1)
	copy(list[0].Value, "list")
	equal(t, []string{get(t, s, "a/1")}, []string{"mine"})
	equal(t, until(t, ch, rev), []string{fmt.Sprintf("a/1=mine@%d", rev)})
	b := next(t, watch(t, s, "", before))
	copy(b.Events[0].Value, "seen")
	equal(t, until(t, watch(t, s, "", before), rev), []string{fmt.Sprintf("a/1=mine@%d", rev)})
}

func testConditions(t *testing.T, s store.Store) {
	old := write(t, s, put("a/1", "one"))
	now := write(t, s, put("a/1", "uno"), put("a/2", "due"), store.Op{Key: "a/gone", Expires: time.Now().Add(-time.Hour)})
	for _, c := range []struct {
		name  string
		conds []store.Cond
		holds bool
	}{
		{"revision of another key", []store.Cond{{Key: "a/2", Revision: now}}, true},
		{"old revision", []store.Cond{{Key: "a/1", Revision: old}}, false},
		{"future revision", []store.Cond{{Key: "a/1", Revision: now + 100}}, false},
		{"absent, is there", []store.Cond{{Key: "a/1"}}, false},
		{"absent, never was", []store.Cond{{Key: "a/never"}}, true},
		{"absent, has expired", []store.Cond{{Key: "a/gone"}}, true},
		{"there, has expired", []store.Cond{{Key: "a/gone", Revision: now}}, false},
		{"there, never was", []store.Cond{{Key: "a/never", Revision: now}}, false},
		{"one of two", []store.Cond{{Key: "a/2", Revision: now}, {Key: "a/1", Revision: old}}, false},
		{"both", []store.Cond{{Key: "a/2", Revision: now}, {Key: "a/1", Revision: now}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(t, s, put("out/1", "before"), put("out/2", "before"))
			_, err := s.Txn(t.Context(), c.conds, []store.Op{put("out/1", "after"), del("out/2")})
			_, alone := s.Txn(t.Context(), c.conds, nil)
			want := []string{"after", "absent"}
			if !c.holds {
				wantErr(t, err, store.ErrConflict)
				wantErr(t, alone, store.ErrConflict)
				want = []string{"before", "before"}
			} else if err != nil || alone != nil {
				t.Fatal(err, alone)
			}
			equal(t, []string{get(t, s, "out/1"), get(t, s, "out/2")}, want)
		})
	}
}

func testRefusals(t *testing.T, s store.Store) {
	many := make([]store.Op, store.MaxOps+1)
	conds := make([]store.Cond, store.MaxOps+1)
	for i := range many {
		many[i], conds[i] = put(fmt.Sprintf("a/%d", i), ""), store.Cond{Key: fmt.Sprintf("a/%d", i)}
	}
	half := strings.Repeat("x", store.MaxBytes/2)
	for _, c := range []struct {
		name  string
		conds []store.Cond
		ops   []store.Op
		want  error
	}{
		{"no key", nil, []store.Op{put("", "")}, store.ErrInvalid},
		{"no rest", nil, []store.Op{put("a/", "")}, store.ErrInvalid},
		{"no slash", nil, []store.Op{del("a")}, store.ErrInvalid},
		{"no kind", []store.Cond{{Key: "/a"}}, nil, store.ErrInvalid},
		{"long key", nil, []store.Op{put("a/"+half[:store.MaxKey-1], "")}, store.ErrInvalid},
		{"key twice", nil, []store.Op{put("a/1", ""), del("a/1")}, store.ErrInvalid},
		{"condition twice", []store.Cond{{Key: "a/1"}, {Key: "a/1"}}, nil, store.ErrInvalid},
		{"too many changes", nil, many, store.ErrTooLarge},
		{"too many conditions", conds, nil, store.ErrTooLarge},
		{"too many bytes", nil, []store.Op{put("a/1", half), put("a/2", half)}, store.ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Txn(t.Context(), c.conds, c.ops)
			wantErr(t, err, c.want)
		})
	}
	for _, limit := range []int{-1, 0, store.MaxList + 1} {
		_, _, err := s.List(t.Context(), "a/", "", limit)
		wantErr(t, err, store.ErrInvalid)
	}
	_, err := s.Get(t.Context(), "a")
	wantErr(t, err, store.ErrInvalid)
	equal(t, keys(t, s, "", 10), nil)

	key := "a/" + half[:store.MaxKey-2]
	write(t, s, many[:store.MaxOps]...)
	write(t, s, put(key, strings.Repeat("x", store.MaxBytes-len(key))))
	if len(get(t, s, key)) != store.MaxBytes-len(key) {
		t.Fatal("the largest Txn came back different")
	}
}

func testList(t *testing.T, s store.Store) {
	var want []string
	var last int64
	for i := range 25 {
		key := fmt.Sprintf("m/k%02d", i)
		want = append(want, key)
		last = write(t, s, put(key, "x"), store.Op{Key: key + "-old", Expires: time.Now().Add(-time.Hour)})
	}
	last = max(last, write(t, s, put("l/z", "before"), put("m0/a", "behind"), put("n/a", "behind")))
	for _, page := range []int{1, 7, 25, 26, store.MaxList} {
		equal(t, keys(t, s, "m/", page), want)
	}
	equal(t, keys(t, s, "m/k1", 3), want[10:20])
	equal(t, keys(t, s, "m", 100), append(want[:25:25], "m0/a"))
	equal(t, keys(t, s, "", 10), append(append([]string{"l/z"}, want...), "m0/a", "n/a"))
	equal(t, keys(t, s, "x", 10), nil)
	for _, c := range []struct {
		from string
		want []string
	}{{"m/k23", want[23:]}, {"m/k23x", want[24:]}, {"a", want}, {"n", nil}} {
		entries, rev, err := s.List(t.Context(), "m/", c.from, 100)
		if err != nil || rev < last || rev > last+int64(len(want)) { // the sweep may have written since, once for each -old
			t.Fatalf("revision %d, want %d; %v", rev, last, err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Key)
		}
		equal(t, got, c.want)
	}
}

// testListOneMoment writes two keys together for ever; no List may see them apart,
// nor with another revision than the one it returns.
func testListOneMoment(t *testing.T, s store.Store) {
	write(t, s, put("p/1", "-"), put("p/2", "-"))
	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			v := strconv.Itoa(i)
			if _, err := s.Txn(t.Context(), nil, []store.Op{put("p/1", v), put("p/2", v)}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer writer.Wait()
	defer cancel()
	for seen := map[int64]bool{}; len(seen) < 100; {
		es, rev, err := s.List(t.Context(), "p/", "", 10)
		if err != nil || len(es) != 2 {
			t.Fatal(es, err)
		}
		if !bytes.Equal(es[0].Value, es[1].Value) || es[0].Revision != rev || es[1].Revision != rev {
			t.Fatalf("%s@%d and %s@%d in a list at %d", es[0].Value, es[0].Revision, es[1].Value, es[1].Revision, rev)
		}
		seen[rev] = true
	}
}

func testExpiry(t *testing.T, s store.Store) {
	hour := time.Now().Add(time.Hour)
	soon := time.Now().Add(300 * time.Millisecond)
	write(t, s, store.Op{Key: "a/long", Value: []byte("x"), Expires: hour},
		store.Op{Key: "a/old", Expires: time.Now().Add(-time.Minute)},
		store.Op{Key: "a/ancient", Expires: time.Unix(0, 0)},
		store.Op{Key: "a/soon", Value: []byte("x"), Expires: soon},
		store.Op{Key: "a/renewed", Value: []byte("x"), Expires: soon})
	e, err := s.Get(t.Context(), "a/long")
	if err != nil || e.Expires.Sub(hour).Abs() > time.Microsecond || e.Expires.Location() != time.UTC {
		t.Fatalf("expires %v, want %v; %v", e.Expires, hour, err)
	}
	equal(t, []string{get(t, s, "a/old"), get(t, s, "a/ancient")}, []string{"absent", "absent"})
	renewed := write(t, s, put("a/renewed", "y"))

	eventually(t, "a/soon expires", func() bool { return get(t, s, "a/soon") == "absent" })
	if time.Now().Before(soon) {
		t.Fatal("a/soon expired early")
	}
	equal(t, keys(t, s, "a/", 2), []string{"a/long", "a/renewed"})
	rev, err := s.Txn(t.Context(), []store.Cond{{Key: "a/soon"}, {Key: "a/renewed", Revision: renewed}}, []store.Op{put("a/soon", "again")})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get(t.Context(), "a/soon"); err != nil || e.Revision != rev || !e.Expires.IsZero() {
		t.Fatalf("written again: %+v, %v", e, err)
	}
}

// testSweep waits for the sweep to tell of what expired, and checks that it takes
// nothing else.
func testSweep(t *testing.T, s store.Store) {
	ch := watch(t, s, "a/", 0)
	var ops []store.Op
	for i := range 50 {
		ops = append(ops, store.Op{Key: fmt.Sprintf("a/%d", i), Expires: time.Now().Add(-time.Second)})
	}
	write(t, s, ops...)
	write(t, s, put("a/keep", "x"), store.Op{Key: "a/later", Value: []byte("x"), Expires: time.Now().Add(time.Hour)})
	deleted := map[string]bool{}
	for len(deleted) < len(ops) {
		for _, e := range next(t, ch).Events {
			if e.Delete && deleted[e.Key] {
				t.Fatalf("%s was deleted twice", e.Key)
			}
			if e.Delete {
				deleted[e.Key] = true
			}
		}
	}
	if deleted["a/keep"] || deleted["a/later"] {
		t.Fatal("the sweep took what has not expired")
	}
	equal(t, keys(t, s, "", 10), []string{"a/keep", "a/later"})
}

// testCounter has many writers count up one key by compare and swap.
func testCounter(t *testing.T, s store.Store) {
	const writers, each = 16, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := increment(t.Context(), s, "n/1"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	equal(t, []string{get(t, s, "n/1")}, []string{strconv.Itoa(writers * each)})
}

// increment adds one to the number at key, however many others do.
func increment(ctx context.Context, s store.Store, key string) error {
	for {
		e, err := s.Get(ctx, key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		n, _ := strconv.Atoi(string(e.Value))
		_, err = s.Txn(ctx, []store.Cond{{Key: key, Revision: e.Revision}}, []store.Op{put(key, strconv.Itoa(n+1))})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func testContext(t *testing.T, s store.Store) {
	rev := write(t, s, put("a/1", "before"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, "a/1")
	wantErr(t, err, context.Canceled)
	_, _, err = s.List(ctx, "a/", "", 1)
	wantErr(t, err, context.Canceled)
	_, err = s.Watch(ctx, "a/", rev)
	wantErr(t, err, context.Canceled)
	_, err = s.Dump(ctx, func(e store.Entry) error { return fmt.Errorf("told of %q", e.Key) })
	wantErr(t, err, context.Canceled)
	_, err = s.Txn(ctx, nil, []store.Op{put("a/1", "after")})
	wantErr(t, err, context.Canceled)
	equal(t, []string{get(t, s, "a/1")}, []string{"before"})
}

func testClose(t *testing.T, s store.Store) {
	ch := watch(t, s, "a/", write(t, s, put("a/1", "x")))
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			for {
				if _, err := s.Txn(t.Context(), nil, []store.Op{put(fmt.Sprintf("b/%d", i), "x")}); err != nil {
					if !errors.Is(err, store.ErrClosed) {
						t.Errorf("write during Close: %v", err)
					}
					return
				}
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	writers.Wait()
	drain(t, ch)
	_, err := s.Get(t.Context(), "a/1")
	wantErr(t, err, store.ErrClosed)
	_, _, err = s.List(t.Context(), "a/", "", 1)
	wantErr(t, err, store.ErrClosed)
	_, err = s.Txn(t.Context(), nil, []store.Op{put("a/1", "x")})
	wantErr(t, err, store.ErrClosed)
	_, err = s.Watch(t.Context(), "a/", 0)
	wantErr(t, err, store.ErrClosed)
	_, err = s.Dump(t.Context(), func(store.Entry) error { return nil })
	wantErr(t, err, store.ErrClosed)
	if err := s.Close(); err != nil {
		t.Fatalf("closing again: %v", err)
	}
}
