// Package storetest is the one suite that every back end of store passes, and a
// wrapper that makes a store fail when a test asks for it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// patience is how long the suite waits for what must come. It is no measure of
// speed: a store that is right never uses it up.
const patience = 60 * time.Second

// Run proves the contract of store.Store. open returns an empty store and has it
// closed at the end of t, though the suite may close it before. The store should
// sweep expired entries every second or more often, or the suite waits for it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"write and read":      testWriteRead,
		"copies":              testCopies,
		"conditions":          testConditions,
		"refusals":            testRefusals,
		"list":                testList,
		"list is one moment":  testListOneMoment,
		"expiry":              testExpiry,
		"sweep":               testSweep,
		"counter":             testCounter,
		"lease":               testLease,
		"dump":                testDump,
		"dump is one moment":  testDumpOneMoment,
		"dump ends early":     testDumpEnds,
		"watch":               testWatch,
		"watch resumes":       testWatchResumes,
		"list and then watch": testListThenWatch,
		"signs of life":       testSignsOfLife,
		"context":             testContext,
		"close":               testClose,
		"model":               testModel,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// write is a Txn that must succeed.
func write(t testing.TB, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Txn(t.Context(), nil, ops)
	if err != nil {
		t.Fatalf("write %v: %v", ops, err)
	}
	return rev
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func del(key string) store.Op { return store.Op{Key: key, Delete: true} }

// get returns the value at key, or "absent".
func get(t testing.TB, s store.Store, key string) string {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(e.Value)
}

// keys lists all keys under prefix, by pages of the given size.
func keys(t testing.TB, s store.Store, prefix string, page int) []string {
	t.Helper()
	var all []string
	for from := ""; ; {
		entries, _, err := s.List(t.Context(), prefix, from, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Key)
		}
		if len(entries) < page {
			return all
		}
		from = entries[page-1].Key + "\x00"
	}
}

func watch(t testing.TB, s store.Store, prefix string, after int64) <-chan store.Batch {
	t.Helper()
	ch, err := s.Watch(t.Context(), prefix, after)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// next returns the next Batch, and fails the test if the channel is closed.
func next(t testing.TB, ch <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(patience):
		t.Fatal("nothing from the watch")
	}
	panic("not reached")
}

// until reads events up to and with revision, as "key=value@revision" or
// "key deleted@revision", and checks their order.
func until(t testing.TB, ch <-chan store.Batch, revision int64) []string {
	t.Helper()
	var told []string
	var reached int64
	for reached < revision {
		b := next(t, ch)
		if b.Revision < reached {
			t.Fatalf("batch at revision %d after %d", b.Revision, reached)
		}
		for _, e := range b.Events {
			if e.Revision <= reached || e.Revision > b.Revision {
				t.Fatalf("event at %d in a batch of %d..%d", e.Revision, reached, b.Revision)
			}
			told = append(told, tell(e))
		}
		reached = b.Revision
	}
	return told
}

func tell(e store.Event) string {
	if e.Delete {
		return fmt.Sprintf("%s deleted@%d", e.Key, e.Revision)
	}
	return fmt.Sprintf("%s=%s@%d", e.Key, e.Value, e.Revision)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func wantErr(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error %v, want %v", got, want)
	}
}

func equal(t testing.TB, got, want []string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
