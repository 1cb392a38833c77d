package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

func open(t *testing.T) *storetest.Faulty {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return storetest.NewFaulty(s)
}

func put(t *testing.T, st store.Store, key, value string) {
	t.Helper()
	if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: key, Value: []byte(value)}}); err != nil {
		t.Fatal(err)
	}
}

// all is every live entry as "key=value".
func all(t *testing.T, st store.Store) []string {
	t.Helper()
	var told []string
	if _, err := st.Dump(t.Context(), func(e store.Entry) error {
		told = append(told, e.Key+"="+string(e.Value))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return told
}

// rename is a step that moves every record under from to the prefix to, one Txn each.
func rename(from, to string) store.Migration {
	return store.Migration{Name: "rename " + from, Run: func(ctx context.Context, st store.Store) error {
		entries, _, err := st.List(ctx, from, "", 100)
		for _, e := range entries {
			if err == nil {
				_, err = st.Txn(ctx, []store.Cond{{Key: e.Key, Revision: e.Revision}}, []store.Op{
					{Key: e.Key, Delete: true}, {Key: to + strings.TrimPrefix(e.Key, from), Value: e.Value, Expires: e.Expires}})
			}
		}
		return err
	}}
}

// keeper counts the copies, and notes what was in each.
type keeper struct {
	st     store.Store
	t      *testing.T
	copies [][]string
	err    error
}

func (k *keeper) keep(context.Context) error {
	if k.err == nil {
		k.copies = append(k.copies, all(k.t, k.st))
	}
	return k.err
}

func TestMigrateEmpty(t *testing.T) {
	st := open(t)
	put(t, st, "lease/sweep", "me")
	k := &keeper{st: st, t: t}
	never := store.Migration{Name: "never", Run: func(context.Context, store.Store) error { return errors.New("run on an empty store") }}
	for range 2 {
		if err := store.Migrate(t.Context(), st, []store.Migration{never}, k.keep); err != nil {
			t.Fatal(err)
		}
	}
	if got := all(t, st); !slices.Equal(got, []string{"lease/sweep=me", `store/format={"format":2}`}) || len(k.copies) > 0 {
		t.Fatalf("%q, %d copies", got, len(k.copies))
	}
}

// TestMigrateCutOff lets every Txn of a migration in two steps fail once, before the
// write or after it, and starts again until it is through.
func TestMigrateCutOff(t *testing.T) {
	st := open(t)
	var before, want []string
	for i := range 20 {
		put(t, st, fmt.Sprintf("a/%02d", i), "x")
		before = append(before, fmt.Sprintf("a/%02d=x", i))
		want = append(want, fmt.Sprintf("c/%02d=x", i))
	}
	want = append(want, `store/format={"format":3}`)
	steps := []store.Migration{rename("a/", "b/"), rename("b/", "c/")}
	k := &keeper{st: st, t: t}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dead := errors.New("died")
	runs := 0
	for n := 0; ; n++ {
		left := n // Txns before the one that fails
		hook := func([]string) error {
			if left--; left < 0 {
				return dead
			}
			return nil
		}
		st.Before(nil)
		st.After(nil)
		if n%2 == 0 {
			st.Before(hook)
		} else {
			st.After(hook)
		}
		runs++
		err := store.Migrate(ctx, st, steps, k.keep)
		if err == nil {
			break
		}
		if !errors.Is(err, dead) {
			t.Fatal(err)
		}
	}
	if got := all(t, st); !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	if runs < 5 {
		t.Fatalf("through after %d runs: nothing was cut off", runs)
	}
	// The first runs die as they write down that a copy was made.
	for _, c := range k.copies {
		if !slices.Equal(c, before) {
			t.Fatalf("a copy was made of a store half changed: %q", c)
		}
	}
	if len(k.copies) == 0 {
		t.Fatal("no copy was made")
	}
}

// TestMigrateTogether has a second node do everything just before each Txn of the first:
// both go on, with an empty store as with one to change.
func TestMigrateTogether(t *testing.T) {
	steps := []store.Migration{rename("a/", "b/"), rename("b/", "c/")}
	for _, records := range []int{0, 5} {
		met := 0
		for n := range 30 {
			st := open(t)
			var want []string
			for i := range records {
				put(t, st, fmt.Sprintf("a/%02d", i), "x")
				want = append(want, fmt.Sprintf("c/%02d=x", i))
			}
			want = append(want, `store/format={"format":3}`)
			k := &keeper{st: st, t: t}
			left := n
			st.Before(func([]string) error {
				if left--; left == -1 {
					met++
					if err := store.Migrate(t.Context(), st, steps, k.keep); err != nil {
						t.Errorf("%d records, before Txn %d: the second node: %v", records, n, err)
					}
				}
				return nil
			})
			if err := store.Migrate(t.Context(), st, steps, k.keep); err != nil {
				t.Fatalf("%d records, before Txn %d: %v", records, n, err)
			}
			if got := all(t, st); !slices.Equal(got, want) {
				t.Fatalf("%d records, before Txn %d: %q", records, n, got)
			}
		}
		if met == 0 {
			t.Fatalf("%d records: the nodes never met", records)
		}
	}
}

// TestMigrateEmptyTogether has another node make the whole store, with records, between
// the looks of this one: it is not an old store that wants a copy.
func TestMigrateEmptyTogether(t *testing.T) {
	st := &overtaken{Store: open(t)}
	st.other = func() {
		put(t, st.Store, store.FormatKey, `{"format":2}`)
		put(t, st.Store, "a/1", "x")
	}
	k := &keeper{st: st.Store, t: t}
	if err := store.Migrate(t.Context(), st, []store.Migration{rename("a/", "b/")}, k.keep); err != nil {
		t.Fatal(err)
	}
	if got := all(t, st.Store); !slices.Equal(got, []string{"a/1=x", `store/format={"format":2}`}) || len(k.copies) > 0 {
		t.Fatalf("%q, %d copies", got, len(k.copies))
	}
}

// overtaken lets another node work after its first look at the format.
type overtaken struct {
	store.Store
	other func()
}

func (o *overtaken) Get(ctx context.Context, key string) (store.Entry, error) {
	e, err := o.Store.Get(ctx, key)
	if key == store.FormatKey && o.other != nil {
		other := o.other
		o.other = nil
		other()
	}
	return e, err
}

func TestMigrateRefuses(t *testing.T) {
	full := errors.New("disk full")
	for _, c := range []struct {
		name, key, value string
		keep             error
		want             error
		words            string
	}{
		{"newer", store.FormatKey, `{"format":3}`, nil, store.ErrNewer, "format 3, this Tabard reads up to 2"},
		{"on its way to a newer one", store.FormatKey, `{"format":2,"to":3}`, nil, store.ErrNewer, "format 3"},
		{"garbled", store.FormatKey, `{"format":`, nil, store.ErrInvalid, "restore the last backup"},
		{"format 0", store.FormatKey, `{}`, nil, store.ErrInvalid, "restore the last backup"},
		{"restoring", store.RestoreKey, `{}`, nil, store.ErrRestoring, "tabard restore with the same file again"},
		{"no copy", "a/2", "x", full, full, "copy the store before its records are changed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := open(t)
			put(t, st, "a/1", "x")
			put(t, st, c.key, c.value)
			before := all(t, st)
			k := &keeper{st: st, t: t, err: c.keep}
			err := store.Migrate(t.Context(), st, []store.Migration{rename("a/", "b/")}, k.keep)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if got := all(t, st); !slices.Equal(got, before) {
				t.Fatalf("it wrote: %q", got)
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	st := open(t)
	check := func(want bool) {
		t.Helper()
		if got, err := store.Empty(t.Context(), st); err != nil || got != want {
			t.Fatalf("empty: %v, %v", got, err)
		}
	}
	check(true)
	put(t, st, store.FormatKey, "{}")
	for i := range 150 {
		put(t, st, fmt.Sprintf("lease/%03d", i), "x")
	}
	check(true)
	put(t, st, "z/1", "")
	check(false)
}
