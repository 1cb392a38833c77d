package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tabard-id/tabard/internal/store"
)

// filled returns the path of a closed store with some pages in it.
func filled(t testing.TB) string {
	t.Helper()
	s := openTest(t, Config{})
	for i := range 40 {
		var ops []store.Op
		for j := range 25 {
			ops = append(ops, op(fmt.Sprintf("a/%04d", i*25+j), strings.Repeat("x", 200)))
		}
		mustTxn(t, s, ops...)
	}
	mustClose(t, s)
	return s.cfg.Path
}

// edit changes the closed file as bbolt sees it.
func edit(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(change); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
}

// overwrite writes n bytes of 0xAA at off.
func overwrite(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("\xaa", n)), off); err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
}

// badFile is a store that was spoiled, and what Open must say of it.
type badFile struct {
	name  string
	spoil func(*testing.T, string)
	want  error
	says  string
}

func badFiles() []badFile {
	truncate := func(n int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	setMeta := func(key []byte, value int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(key, number(value)) })
		}
	}
	return []badFile{
		{"newer", setMeta(formatKey, format+1), store.ErrNewer, "run that version"},
		{"empty", truncate(0), nil, "restore the last backup"},
		{"one byte", truncate(1), errDamaged, "restore the last backup"},
		{"a page and a bit", truncate(5_000), errDamaged, "restore the last backup"},
		{"two pages", truncate(8192), errDamaged, "restore the last backup"},
		{"four pages", truncate(4 * 4096), errDamaged, "restore the last backup"},
		{"half", truncate(150_000), errDamaged, "restore the last backup"},
		{"inside a large value", func(t *testing.T, p string) {
			var size int64
			edit(t, p, func(tx *bbolt.Tx) error {
				return tx.Bucket(recordsBucket).Put([]byte("a/big"), make([]byte, 900_000))
			})
			edit(t, p, func(tx *bbolt.Tx) error { size = tx.Size(); return nil })
			truncate(size-100_000)(t, p)
		}, errDamaged, "it ends at byte"},
		{"both roots", func(t *testing.T, p string) { overwrite(t, p, 0, 8192) }, errDamaged, "restore"},
		{"all pages behind", func(t *testing.T, p string) { overwrite(t, p, 8192, 200_000) }, errDamaged, "restore"},
		{"text", func(t *testing.T, p string) {
			_ = os.WriteFile(p, []byte(strings.Repeat("not a store\n", 9_000)), 0o600)
		}, errDamaged, "restore"},
		{"short record", func(t *testing.T, p string) {
			edit(t, p, func(tx *bbolt.Tx) error { return tx.Bucket(recordsBucket).Put([]byte("a/5"), []byte("short")) })
		}, errDamaged, "a/5"},
		{"record of the future", setMeta(revisionKey, 3), errDamaged, "restore"},
		{"no records", func(t *testing.T, p string) {
			edit(t, p, func(tx *bbolt.Tx) error { return tx.DeleteBucket(recordsBucket) })
		}, errDamaged, "no records"},
		{"of another program", func(t *testing.T, p string) {
			edit(t, p, func(tx *bbolt.Tx) error { return tx.DeleteBucket(metaBucket) })
		}, nil, "not a Tabard store"},
		{"folder", func(t *testing.T, p string) { _ = os.Remove(p); _ = os.Mkdir(p, 0o700) }, nil, "name a file"},
	}
}

// TestOpenRefuses checks that each bad file is one clear sentence with what to do.
func TestOpenRefuses(t *testing.T) {
	for _, c := range badFiles() {
		t.Run(c.name, func(t *testing.T) {
			path := filled(t)
			c.spoil(t, path)
			s, err := Open(Config{Path: path})
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %q, want %v and %q", err, c.want, c.says)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
				t.Fatalf("not one sentence: %q", err)
			}
		})
	}
	_, err := Open(Config{Path: filepath.Join(t.TempDir(), "no", "tabard.db")})
	if err == nil || !strings.Contains(err.Error(), "create it") {
		t.Fatalf("no folder: %v", err)
	}
}

// TestOpenGarbled overwrites random pages: Open may find it out or not, but it must
// not panic, nor hang.
func TestOpenGarbled(t *testing.T) {
	path := filled(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 150 {
		garbled := append([]byte(nil), whole[:400_000]...)
		page := garbled[4096*rng.IntN(60):][:4096]
		for range 1 + rng.IntN(40) {
			binary.BigEndian.PutUint16(page[rng.IntN(len(page)-2):], uint16(rng.Uint32()))
		}
		path := filepath.Join(t.TempDir(), "tabard.db") // a refused file may stay locked
		if err := os.WriteFile(path, garbled, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Path: path})
		if err != nil {
			refused++
			continue
		}
		_ = s.Close()
	}
	if refused == 0 {
		t.Fatal("nothing was noticed")
	}
}

func TestInUse(t *testing.T) {
	s := openTest(t, Config{})
	_, err := Open(Config{Path: s.cfg.Path})
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "stop the other tabard") {
		t.Fatal(err)
	}
}
