package bolt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/testenv"
)

// smallDisk mounts a file system of 4 MiB in memory.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		testenv.Skip(t, "a small disk cannot be mounted ("+err.Error()+"): run the tests as root with CAP_SYS_ADMIN")
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFullForReal writes until the disk is full, more than once. Each refusal is
// clear and changes nothing, all that was acknowledged stays readable, and writing goes
// on when there is space again.
func TestDiskFullForReal(t *testing.T) {
	dir := smallDisk(t)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Config{Path: filepath.Join(dir, "tabard.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { mustClose(t, s) }()
	want := map[string]int{}
	fillUp(t, s, want)
	checkAll(t, s, want)
	if _, err := s.Txn(t.Context(), nil, []store.Op{op("z/small", strings.Repeat("z", 300_000))}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("full, and it takes more: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	want["z/space"] = 100_000
	mustTxn(t, s, op("z/space", strings.Repeat("x", 100_000)))
	fillUp(t, s, want) // and full again
	checkAll(t, s, want)
	mustClose(t, s)
	if s, err = Open(Config{Path: filepath.Join(dir, "tabard.db")}); err != nil {
		t.Fatalf("on the full disk: %v", err)
	}
	checkAll(t, s, want)
}

// fillUp writes until the disk is full, and notes what was acknowledged.
func fillUp(t *testing.T, s *Store, want map[string]int) {
	t.Helper()
	for n := len(want); n < 1_000; n++ {
		key := fmt.Sprintf("a/%04d", n)
		_, err := s.Txn(context.Background(), nil, []store.Op{op(key, strings.Repeat("x", 20_000))})
		if err == nil {
			want[key] = 20_000
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "nothing was written, check the disk") {
			t.Fatalf("not a clear refusal: %v", err)
		}
		return
	}
	t.Fatal("the disk is never full")
}

// checkAll reads everything that was acknowledged, and nothing else.
func checkAll(t *testing.T, s *Store, want map[string]int) {
	t.Helper()
	found := 0
	_, err := s.Dump(t.Context(), func(e store.Entry) error {
		if found++; want[e.Key] != len(e.Value) {
			t.Errorf("%s has %d bytes, acknowledged were %d", e.Key, len(e.Value), want[e.Key])
		}
		return nil
	})
	if err != nil || found != len(want) {
		t.Fatalf("%d records, acknowledged were %d; %v", found, len(want), err)
	}
}
