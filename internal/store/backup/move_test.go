package backup_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
	"github.com/tabard-id/tabard/internal/store/etcd"
	"github.com/tabard-id/tabard/internal/testenv"
)

// TestMove moves a store from bbolt into a real etcd, where a restore is cut off on its
// way, and back.
func TestMove(t *testing.T) {
	server := testenv.StartEtcd(t)
	from := mixed(t)
	file, _ := saved(t, from)
	there, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{server.Endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	begin(t, there, file)
	if err := store.NotRestoring(t.Context(), there); !errors.Is(err, store.ErrRestoring) {
		t.Fatal(err)
	}
	if _, err := backup.Restore(t.Context(), there, bytes.NewReader(file), 2); err != nil {
		t.Fatal(err)
	}
	if a, b := all(t, from), all(t, there); !slices.Equal(a, b) {
		t.Fatalf("bolt\n%q\netcd\n%q", a, b)
	}
	if _, err := backup.Restore(t.Context(), there, bytes.NewReader(file), 2); !errors.Is(err, backup.ErrNotEmpty) {
		t.Fatal(err)
	}
	file, _ = saved(t, there)
	back := open(t)
	if _, err := backup.Restore(t.Context(), back, bytes.NewReader(file), 2); err != nil {
		t.Fatal(err)
	}
	if a, b := all(t, from), all(t, back); !slices.Equal(a, b) {
		t.Fatalf("from\n%q\nback\n%q", a, b)
	}
}
