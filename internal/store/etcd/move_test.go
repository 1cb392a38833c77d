package etcd

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/testenv"
)

// TestMove moves a store that is written to from bbolt to etcd and back.
func TestMove(t *testing.T) {
	t.Parallel()
	file, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "from.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	back, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "to.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	shared := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}})
	for i := range 40 {
		var ops []store.Op
		for j := range store.MaxOps {
			ops = append(ops, store.Op{Key: fmt.Sprintf("a/%d.%d", i, j), Value: bytes.Repeat([]byte{byte(j)}, 300)})
		}
		ops[7].Expires = time.Now().Add(time.Hour).Truncate(time.Microsecond).UTC()
		if _, err := file.Txn(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
	}
	first := moved(t, file, shared)
	second := moved(t, shared, back)
	if len(first) != 4_000 || !slices.Equal(first, second) {
		t.Fatalf("%d records moved, %d back", len(first), len(second))
	}
}

// moved moves what from holds to an empty store, while there are writes, and returns
// what was copied.
func moved(t *testing.T, from, to store.Store) []string {
	t.Helper()
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := []byte(fmt.Sprint(i % 2))
			if _, err := from.Txn(t.Context(), nil, []store.Op{{Key: "pair/1", Value: n}, {Key: "pair/2", Value: n}}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for { // until there is a pair
		if e, _, _ := from.List(t.Context(), "pair/", "", 2); len(e) == 2 {
			break
		}
	}
	var file bytes.Buffer
	sum, err := backup.Write(t.Context(), from, &file)
	close(stop)
	writer.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := backup.Restore(t.Context(), to, bytes.NewReader(file.Bytes()), sum.Format); err != nil || got.Records != sum.Records {
		t.Fatal(got, err)
	}
	there := listing(t, to)
	pair := there[len(there)-2:]
	if !strings.HasPrefix(pair[0], "pair/1=") || strings.TrimPrefix(pair[0], "pair/1") != strings.TrimPrefix(pair[1], "pair/2") {
		t.Fatalf("the copy is of no one moment: %q", pair)
	}
	return there[:len(there)-2]
}

// listing is what a store holds.
func listing(t *testing.T, s store.Store) []string {
	t.Helper()
	var all []string
	if _, err := s.Dump(t.Context(), func(e store.Entry) error {
		all = append(all, fmt.Sprintf("%s=%s %v", e.Key, e.Value, e.Expires))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
