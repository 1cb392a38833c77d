package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

func open(t testing.TB) *storetest.Faulty {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return storetest.NewFaulty(s)
}

func txn(t testing.TB, st store.Store, ops ...store.Op) {
	t.Helper()
	if _, err := st.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
}

func op(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

// all is every live entry but leases, without revisions, which a restore makes anew.
func all(t testing.TB, st store.Store) []string {
	t.Helper()
	var told []string
	if _, err := st.Dump(t.Context(), func(e store.Entry) error {
		if !strings.HasPrefix(e.Key, store.LeasePrefix) {
			told = append(told, fmt.Sprintf("%q=%x until %d", e.Key, sha256.Sum256(e.Value), e.Expires.UnixMicro()))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return told
}

// mixed has keys and values of every kind, an end to come, an end that has come, and
// a lease, in more than one Txn of a restore.
func mixed(t testing.TB) *storetest.Faulty {
	t.Helper()
	st := open(t)
	hour := time.Now().Add(time.Hour)
	txn(t, st, op("a/1", ""), op("a/\x00\xff", "raw"), op("a/\"<&>\n", "escaped"), op("é/ü", "\x00\xff"), op("lease/sweep", "me"),
		store.Op{Key: "c/later", Value: []byte("x"), Expires: hour}, store.Op{Key: "c/old", Value: []byte("x"), Expires: time.Now().Add(-time.Hour)})
	for i := range 8 {
		var ops []store.Op
		for j := range 50 {
			ops = append(ops, op(fmt.Sprintf("m/%03d", i*50+j), strings.Repeat("m", 20*(i+j))))
		}
		txn(t, st, ops...)
	}
	txn(t, st, op(store.FormatKey, `{"format":2}`))
	return st
}

// saved is a backup of st.
func saved(t testing.TB, st store.Store) ([]byte, backup.Summary) {
	t.Helper()
	var b bytes.Buffer
	sum, err := backup.Write(t.Context(), st, &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), sum
}

func TestBackupAndRestore(t *testing.T) {
	from := mixed(t)
	long := "k/" + strings.Repeat("\x01", store.MaxKey-2)
	txn(t, from, op(long, strings.Repeat("\xfe", store.MaxBytes-len(long)))) // the largest there is
	txn(t, from, op("l/1", strings.Repeat("x", 600_000)))
	txn(t, from, op("l/2", strings.Repeat("y", 600_000)))
	file, sum := saved(t, from)
	_, rev, _ := from.List(t.Context(), "", "", 1)
	if sum.Records != 409 || sum.Format != 2 || sum.Revision != rev || sum.Bytes != int64(len(file)) || time.Since(sum.Created) > time.Hour {
		t.Fatalf("%+v of a store at %d and a file of %d bytes", sum, rev, len(file))
	}
	read, err := backup.Verify(bytes.NewReader(file))
	if err != nil || read != sum {
		t.Fatalf("written %+v, read %+v, %v", sum, read, err)
	}
	to := open(t)
	txn(t, to, op("lease/other", "x"), op(store.FormatKey, `{"format":1}`))
	got, err := backup.Restore(t.Context(), to, bytes.NewReader(file), 2)
	if err != nil || got.Summary != sum || got.Expired != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if a, b := all(t, from), all(t, to); !slices.Equal(a, b) {
		t.Fatalf("from\n%s\nto\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
	again, _ := saved(t, to)
	_, a, _ := bytes.Cut(file, []byte("\n")) // without the time
	_, b, _ := bytes.Cut(again, []byte("\n"))
	if !bytes.Equal(a[:bytes.LastIndex(a, []byte(`{"end"`))], b[:bytes.LastIndex(b, []byte(`{"end"`))]) {
		t.Fatal("a backup of what was restored has other records")
	}
}

// TestRestoreExpired restores a backup of records that have expired since.
func TestRestoreExpired(t *testing.T) {
	body := `{"backup":"tabard","version":1,"created":"2026-01-02T03:04:05Z"}` + "\n" +
		`{"key":"a/1","value":"eA==","expires":1}` + "\n" + `{"key":"a/2","value":"eA=="}` + "\n" + `{"key":"a/3","value":"eA==","expires":1700000000000000}` + "\n"
	st := open(t)
	got, err := backup.Restore(t.Context(), st, strings.NewReader(sealed(body, 3)), 1)
	if err != nil || got.Expired != 2 || got.Records != 3 || got.Format != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got := all(t, st); len(got) != 1 || !strings.HasPrefix(got[0], `"a/2"`) {
		t.Fatalf("%q", got)
	}
}

// sealed appends the last two lines to body.
func sealed(body string, records int) string {
	body += fmt.Sprintf(`{"end":{"records":%d,"revision":7}}`, records) + "\n"
	sum := sha256.Sum256([]byte(body))
	return body + fmt.Sprintf(`{"sha256":"%s"}`, hex.EncodeToString(sum[:])) + "\n"
}

func TestVerifySays(t *testing.T) {
	const head = `{"backup":"tabard","version":1,"created":"2026-01-02T03:04:05Z"}` + "\n"
	const a, b = `{"key":"a/1","value":"eA=="}` + "\n", `{"key":"b/1","value":"eA=="}` + "\n"
	whole := sealed(head+a+b, 2)
	for _, c := range []struct {
		name, file string
		want       error
		words      string
	}{
		{"empty", "", backup.ErrCutShort, "take another one"},
		{"cut in the header", head[:30], backup.ErrCutShort, ""},
		{"cut behind the header", head, backup.ErrCutShort, ""},
		{"cut in a record", whole[:len(head)+9], backup.ErrCutShort, ""},
		{"cut in the trailer", whole[:len(whole)-9], backup.ErrCutShort, ""},
		{"without the last newline", whole[:len(whole)-1], backup.ErrCutShort, ""},
		{"text", "hello\n", backup.ErrNotBackup, "not a backup of Tabard"},
		{"text without an end", strings.Repeat("hello", 1<<20), backup.ErrNotBackup, ""},
		{"bolt file", strings.Repeat("\x00\xed\xda\x0c", 5_000), backup.ErrNotBackup, ""},
		{"other JSON", `{"apiVersion":"v1"}` + "\n", backup.ErrNotBackup, ""},
		{"newer", strings.Replace(whole, `"version":1`, `"version":2`, 1), store.ErrNewer, "the file has version 2, this Tabard reads up to 1"},
		{"newer with more in the header", strings.Replace(whole, `"version":1`, `"version":3,"cipher":"x"`, 1), store.ErrNewer, ""},
		{"a value changed", strings.Replace(whole, "eA==", "eQ==", 1), backup.ErrChanged, "line 5: it is not the SHA-256 of what is before it, "},
		{"a record removed", head + b + whole[len(head+a+b):], backup.ErrChanged, "there are 1 records, written were 2"},
		{"a record twice", sealed(head+a+a, 2), backup.ErrChanged, "line 3: its key is not above the one before"},
		{"out of order", sealed(head+b+a, 2), backup.ErrChanged, "line 3"},
		{"another end", strings.Replace(whole, `"revision":7`, `"revision":8`, 1), backup.ErrChanged, "line 5"},
		{"no seal", sealed(head+a+b, 2)[:strings.Index(whole, `{"sha256`)], backup.ErrCutShort, ""},
		{"an end that is a record", sealed(head+`{"key":"a/1","value":"","end":{"records":1}}`+"\n", 1), backup.ErrChanged, "line 2: it is no end"},
		{"wrong number", sealed(head+a+b, 3), backup.ErrChanged, "there are 2 records, written were 3"},
		{"a line longer than any", head + `{"key":"` + strings.Repeat("x", 2<<20) + a, backup.ErrChanged, "line 2: it has more than"},
		{"something behind", whole + a, backup.ErrChanged, "line 6: something follows the end"},
		{"garbage", head + "\x00\n", backup.ErrChanged, "line 2: it cannot be read"},
		{"two objects on a line", sealed(head+strings.TrimSpace(a)+b, 2), backup.ErrChanged, "line 2"},
		{"unknown field", sealed(head+`{"key":"a/1","value":"","ttl":5}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"no value", sealed(head+`{"key":"a/1"}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"no key", sealed(head+`{"value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"bad key", sealed(head+`{"key":"a","value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"two keys", sealed(head+`{"key":"a/1","rawKey":"AA==","value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"bad base64", sealed(head+`{"key":"a/1","value":"*"}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"expires before 1970", sealed(head+`{"key":"a/1","value":"","expires":-1}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"a lease", sealed(head+`{"key":"lease/a","value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"a marker", sealed(head+`{"key":"restore/under-way","value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"format", sealed(head+`{"key":"store/format","value":""}`+"\n", 1), backup.ErrChanged, "line 2"},
		{"whole", whole, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := backup.Verify(strings.NewReader(c.file))
			if !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.words) {
				t.Fatalf("error %v, want %v with %q", err, c.want, c.words)
			}
			if c.want == nil {
				return
			}
			st := open(t)
			if _, err := backup.Restore(t.Context(), st, strings.NewReader(c.file), 9); !errors.Is(err, c.want) {
				t.Fatalf("restore: %v", err)
			}
			if got := all(t, st); len(got) > 0 {
				t.Fatalf("it wrote %q", got)
			}
		})
	}
}

// TestVerifyFindsEveryChange flips single bits and cuts at random places: each is
// found, and named as what it is.
func TestVerifyFindsEveryChange(t *testing.T) {
	st := open(t)
	for i := range 40 {
		txn(t, st, op(fmt.Sprintf("a/%02d", i), strings.Repeat("x", i)))
	}
	whole, _ := saved(t, st)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		file := bytes.Clone(whole)
		at, bit := rng.IntN(len(file)), byte(1<<rng.IntN(8))
		file[at] ^= bit
		if sum, err := backup.Verify(bytes.NewReader(file)); err == nil {
			t.Fatalf("bit %#x of byte %d is changed, and it says %+v", bit, at, sum)
		}
		if _, err := backup.Verify(bytes.NewReader(whole[:at])); !errors.Is(err, backup.ErrCutShort) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
}

func TestWriteFails(t *testing.T) {
	broken := errors.New("broken")
	t.Run("store", func(t *testing.T) {
		st := mixed(t)
		st.Read(func(keys []string) error {
			if keys[0] == "m/100" {
				return broken
			}
			return nil
		})
		var b bytes.Buffer
		if _, err := backup.Write(t.Context(), st, &b); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		if _, err := backup.Verify(&b); !errors.Is(err, backup.ErrCutShort) {
			t.Fatal(err)
		}
	})
	t.Run("disk", func(t *testing.T) {
		if _, err := backup.Write(t.Context(), mixed(t), &full{left: 100_000}); !errors.Is(err, errFull) {
			t.Fatal(err)
		}
	})
	t.Run("half restored", func(t *testing.T) {
		st := mixed(t)
		txn(t, st, op(store.RestoreKey, "{}"))
		if _, err := backup.Write(t.Context(), st, io.Discard); !errors.Is(err, store.ErrRestoring) {
			t.Fatal(err)
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := backup.Write(ctx, mixed(t), io.Discard); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

var errFull = errors.New("disk full")

// full is a writer that takes no more than left bytes.
type full struct{ left int }

func (f *full) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestRestoreRefuses(t *testing.T) {
	file, _ := saved(t, mixed(t))
	other := open(t)
	txn(t, other, op("a/1", "other"))
	second, _ := saved(t, other)
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, store.Store)
		file    []byte
		newest  int
		want    error
		words   string
	}{
		{"not empty", func(t *testing.T, st store.Store) { txn(t, st, op("z/1", "")) }, file, 2, backup.ErrNotEmpty, "move the bolt file away"},
		{"newer records", func(*testing.T, store.Store) {}, file, 1, store.ErrNewer, "format 2, this Tabard reads up to 1"},
		{"half of another", func(t *testing.T, st store.Store) { begin(t, st, second) }, file, 2, backup.ErrOther, "with that file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := open(t)
			c.prepare(t, st)
			before := all(t, st)
			_, err := backup.Restore(t.Context(), st, bytes.NewReader(c.file), c.newest)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Fatal(err)
			}
			if got := all(t, st); !slices.Equal(got, before) {
				t.Fatalf("it wrote: %q", got)
			}
		})
	}
}

// begin cuts a restore off behind its marker.
func begin(t *testing.T, st store.Store, file []byte) {
	t.Helper()
	broken := errors.New("died")
	f := storetest.NewFaulty(st)
	f.Before(func(keys []string) error {
		if keys[0] == store.RestoreKey {
			return nil
		}
		return broken
	})
	if _, err := backup.Restore(t.Context(), f, bytes.NewReader(file), 9); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

// TestRestoreCutOff dies at every Txn, before it or after it. Each time the store is
// refused, and the next run goes on until one is through.
func TestRestoreCutOff(t *testing.T) {
	from := mixed(t)
	file, _ := saved(t, from)
	died := errors.New("died")
	st := open(t)
	cuts := 0
	for n := 0; ; n++ {
		left := n
		hook := func([]string) error {
			if left--; left < 0 {
				return died
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
		_, err := backup.Restore(t.Context(), st, bytes.NewReader(file), 2)
		if err == nil {
			break
		}
		cuts++
		if !errors.Is(err, died) {
			t.Fatal(err)
		}
		if _, err := st.Get(t.Context(), store.RestoreKey); err != nil {
			continue // nothing is written yet, or all is
		}
		if err := store.NotRestoring(t.Context(), st); !errors.Is(err, store.ErrRestoring) {
			t.Fatalf("half restored, and not refused: %v", err)
		}
	}
	if cuts < 4 {
		t.Fatalf("cut off %d times only", cuts)
	}
	if a, b := all(t, from), all(t, st); !slices.Equal(a, b) {
		t.Fatalf("from\n%s\nto\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
}

// TestRestoreCompares changes the store behind the back of a restore, which has to
// notice before it lets anybody in.
func TestRestoreCompares(t *testing.T) {
	file, _ := saved(t, mixed(t))
	for name, spoil := range map[string]store.Op{
		"another value":   op("m/100", "another"),
		"another end":     {Key: "a/1", Expires: time.Now().Add(time.Hour)},
		"one is missing":  {Key: "m/100", Delete: true},
		"last is missing": {Key: "é/ü", Delete: true},
		"one more":        op("m/100x", ""),
		"one more at end": op("\xff/1", ""),
	} {
		t.Run(name, func(t *testing.T) {
			st := open(t)
			done := false
			st.Read(func(keys []string) error { // the Dump begins
				if _, err := st.Store.Get(t.Context(), "é/ü"); keys[0] == "" && err == nil && !done {
					done = true
					txn(t, st.Store, spoil)
				}
				return nil
			})
			_, err := backup.Restore(t.Context(), st, bytes.NewReader(file), 2)
			if err == nil || !done || !strings.Contains(err.Error(), "begin again") {
				t.Fatalf("spoiled %v: %v", done, err)
			}
			if err := store.NotRestoring(t.Context(), st.Store); !errors.Is(err, store.ErrRestoring) {
				t.Fatalf("it lets others in: %v", err)
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	const head = `{"backup":"tabard","version":1,"created":"2026-01-02T03:04:05Z"}` + "\n"
	for _, body := range []string{head, head + `{"key":"a/1","value":"eA==","expires":5}` + "\n", head + `{"rawKey":"YS//","value":""}` + "\n", head + `{"key":"store/format","value":"eyJmb3JtYXQiOjJ9"}` + "\n"} {
		f.Add([]byte(sealed(body, strings.Count(body, "\n")-1)), true)
		f.Add([]byte(body), true)
	}
	f.Fuzz(func(t *testing.T, file []byte, seal bool) {
		if seal { // lets the fuzzer past the hash
			file = []byte(sealed(string(file), bytes.Count(file, []byte("\n"))-1))
		}
		sum, err := backup.Verify(bytes.NewReader(file))
		if err != nil {
			return
		}
		if sum.Bytes != int64(len(file)) || sum.Records < 0 || sum.Format < 1 || len(sum.SHA256) != 64 {
			t.Fatalf("%+v of %d bytes", sum, len(file))
		}
		// What is taken can be restored.
		st := open(t)
		defer func() { _ = st.Close() }()
		if _, err := backup.Restore(t.Context(), st, bytes.NewReader(file), sum.Format); err != nil {
			t.Fatal(err)
		}
	})
}
