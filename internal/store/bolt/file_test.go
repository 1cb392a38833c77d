package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Minute})
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

// spoilers each damage a file, as disks and people do.
func spoilers() map[string]func(*rand.Rand, []byte) []byte {
	const page = 4096
	at := func(rng *rand.Rand, file []byte) []byte { return file[page*rng.IntN(len(file)/page):][:page] }
	return map[string]func(*rand.Rand, []byte) []byte{
		"words in a page": func(rng *rand.Rand, file []byte) []byte {
			p := at(rng, file)
			for range 1 + rng.IntN(40) {
				binary.BigEndian.PutUint16(p[rng.IntN(page-2):], uint16(rng.Uint32()))
			}
			return file
		},
		"one bit": func(rng *rand.Rand, file []byte) []byte {
			at(rng, file)[rng.IntN(page)] ^= 1 << rng.IntN(8)
			return file
		},
		"one bit of a page's head": func(rng *rand.Rand, file []byte) []byte {
			at(rng, file)[rng.IntN(64)] ^= 1 << rng.IntN(8)
			return file
		},
		"a page of zeros":   func(rng *rand.Rand, file []byte) []byte { clear(at(rng, file)); return file },
		"a page of another": func(rng *rand.Rand, file []byte) []byte { copy(at(rng, file), at(rng, file)); return file },
		"a page not written": func(rng *rand.Rand, file []byte) []byte {
			copy(at(rng, file)[512*rng.IntN(8):], make([]byte, 512))
			return file
		},
		"cut": func(rng *rand.Rand, file []byte) []byte { return file[:rng.IntN(len(file))] },
		"cut and filled": func(rng *rand.Rand, file []byte) []byte {
			clear(file[rng.IntN(len(file)):])
			return file
		},
	}
}

// TestOpenSpoiled damages a file at random places. Open either says so and names the
// way out, or what it reads is what was written: at the last Txn or, when that one's
// root is gone, at the one before. It must not panic, nor hang.
func TestOpenSpoiled(t *testing.T) {
	path := filled(t)
	s := openTest(t, Config{Path: path})
	mustTxn(t, s, store.Op{Key: "a/0100", Delete: true}, op("a/0200", "y")) // leaves free pages
	before := contents(t, s)
	mustTxn(t, s, op("b/1", "z"))
	after := contents(t, s)
	mustClose(t, s)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(tx *bbolt.Tx) error { whole = whole[:tx.Size()]; return nil }) // what follows is not used yet
	for name, spoil := range spoilers() {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			refused := 0
			for round := range 40 {
				path := filepath.Join(t.TempDir(), "tabard.db") // a refused file may stay locked
				if err := os.WriteFile(path, spoil(rng, slices.Clone(whole)), 0o600); err != nil {
					t.Fatal(err)
				}
				s, err := Open(Config{Path: path})
				if err != nil {
					if refused++; !strings.Contains(err.Error(), "tabard restore") || strings.Contains(err.Error(), "\n") {
						t.Fatalf("round %d: it does not say what to do: %v", round, err)
					}
					continue
				}
				if got := contents(t, s); got != after && got != before {
					t.Fatalf("round %d: it opened, and reads what was never written", round)
				}
				mustTxn(t, s, op("c/1", "on"))
				mustClose(t, s)
				mustClose(t, openTest(t, Config{Path: path}))
			}
			if refused == 0 {
				t.Fatal("nothing was noticed")
			}
		})
	}
}

// contents is every record of s in one string.
func contents(t *testing.T, s *Store) string {
	t.Helper()
	var b strings.Builder
	rev, err := s.Dump(t.Context(), func(e store.Entry) error {
		fmt.Fprintf(&b, "%q=%q@%d\n", e.Key, e.Value, e.Revision)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(b.String(), rev)
}

// TestFreePageInUse lists a page of records as free: the next write would take it.
func TestFreePageInUse(t *testing.T) {
	path := filled(t)
	var inUse uint64
	s := openTest(t, Config{Path: path})
	mustTxn(t, s, store.Op{Key: "a/0500", Delete: true}) // frees pages
	mustClose(t, s)
	edit(t, path, func(tx *bbolt.Tx) error { inUse = uint64(tx.Bucket(recordsBucket).Root()); return nil })
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page, head = 4096, 16
	var newest, list uint64 // of the root that is in force: its number, and where its list is
	for _, root := range [][]byte{file[head:], file[page+head:]} {
		if n := binary.NativeEndian.Uint64(root[48:]); n >= newest {
			newest, list = n, binary.NativeEndian.Uint64(root[32:])
		}
	}
	binary.NativeEndian.PutUint64(file[list*page+head:], inUse)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "is in use and listed as free") {
		t.Fatal(err)
	}
}

// TestDigest opens a store that an older Tabard wrote to, which knows no digest, and
// one whose digest is wrong.
func TestDigest(t *testing.T) {
	path := filled(t)
	edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Delete(digestKey) })
	s := openTest(t, Config{Path: path})
	rev := mustTxn(t, s, op("a/0001", "x"))
	mustClose(t, s)
	var written []byte
	edit(t, path, func(tx *bbolt.Tx) error { // as the older one leaves it behind
		written = slices.Clone(tx.Bucket(metaBucket).Get(digestKey))
		return errors.Join(tx.Bucket(metaBucket).Put(revisionKey, number(rev+1)), tx.Bucket(recordsBucket).Put([]byte("a/2"), append(number(rev+1), number(0)...)))
	})
	s = openTest(t, Config{Path: path})
	if _, err := s.Get(t.Context(), "a/2"); err != nil {
		t.Fatal(err)
	}
	mustTxn(t, s, store.Op{Key: "a/2", Delete: true})
	mustClose(t, s)
	openClose := func() error {
		s, err := Open(Config{Path: path})
		if err == nil {
			err = s.Close()
		}
		return err
	}
	if err := openClose(); err != nil {
		t.Fatal(err)
	}
	edit(t, path, func(tx *bbolt.Tx) error {
		now := slices.Clone(tx.Bucket(metaBucket).Get(digestKey))
		copy(now[8:], written[8:])
		now[len(now)-1]++
		return tx.Bucket(metaBucket).Put(digestKey, now)
	})
	if err := openClose(); !errors.Is(err, errDamaged) {
		t.Fatal(err)
	}
}

func TestInUse(t *testing.T) {
	s := openTest(t, Config{})
	_, err := Open(Config{Path: s.cfg.Path})
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "stop the other tabard") {
		t.Fatal(err)
	}
}
