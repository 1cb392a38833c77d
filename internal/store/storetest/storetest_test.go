package storetest_test

import (
	"errors"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

func TestFaulty(t *testing.T) {
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	f := storetest.NewFaulty(s)
	broken := errors.New("broken")
	put := func(key string) error {
		_, err := f.Txn(t.Context(), nil, []store.Op{{Key: key}})
		return err
	}
	there := func(key string) bool {
		_, err := s.Get(t.Context(), key)
		return err == nil
	}

	f.Before(storetest.Times(1, broken))
	if err := put("a/1"); !errors.Is(err, broken) || there("a/1") {
		t.Fatalf("before: %v, written %v", err, there("a/1"))
	}
	f.After(storetest.Times(1, broken))
	if err := put("a/2"); !errors.Is(err, store.ErrUnknown) || !errors.Is(err, broken) || !there("a/2") {
		t.Fatalf("after: %v, written %v", err, there("a/2"))
	}
	if err := put("a/3"); err != nil || !there("a/3") {
		t.Fatalf("none left: %v", err)
	}
	f.Read(func(keys []string) error {
		if keys[0] == "a/2" {
			return broken
		}
		return nil
	})
	if _, err := f.Get(t.Context(), "a/2"); !errors.Is(err, broken) {
		t.Fatalf("read: %v", err)
	}
	if _, err := f.Get(t.Context(), "a/3"); err != nil {
		t.Fatalf("read of another key: %v", err)
	}
	var told []string
	_, err = f.Dump(t.Context(), func(e store.Entry) error {
		told = append(told, e.Key)
		return nil
	})
	if !errors.Is(err, broken) || len(told) != 0 {
		t.Fatalf("dump: %q, %v", told, err)
	}
	f.Read(nil)
	if _, err = f.Dump(t.Context(), func(e store.Entry) error { told = append(told, e.Key); return nil }); err != nil || len(told) != 2 {
		t.Fatalf("dump: %q, %v", told, err)
	}
}

// TestSuiteOverFaulty shows that the wrapper changes nothing while no hook fails.
func TestSuiteOverFaulty(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "db"), SweepInterval: 50e6})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return storetest.NewFaulty(s)
	})
}
