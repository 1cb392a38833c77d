package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// trail writes 12 records into files of 4, and returns their paths.
func trail(t testing.TB) (dir string, files []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "audit")
	l := openTest(t, Config{Dir: dir, FileSize: 1 << 20})
	for i := range 12 {
		if i%4 == 0 && i > 0 {
			l.cfg.FileSize = 1
		}
		mustAppend(t, l, fmt.Sprintf("act%d", i+1))
		l.cfg.FileSize = 1 << 20
	}
	mustClose(t, l)
	return dir, paths(t, dir)
}

// lines of a file, and back.
func linesOf(t testing.TB, path string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.SplitAfter(data, []byte("\n"))
}

func rewrite(t testing.TB, path string, lines ...[]byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// forge makes line i of a file a record that is right in itself.
func forge(l [][]byte, i int) {
	r, _ := parse(l[i])
	l[i], _ = appendLine(nil, tail{r.seq - 1, r.prev}, time.Unix(0, 0).UTC(), []byte(`{"act":"forged","outcome":"done"}`))
}

// tampering is a change to the files of trail, and where Verify must see it.
type tampering struct {
	name       string
	tamper     func(*testing.T, []string)
	file, line int // where Verify sees it
}

func tamperings() []tampering {
	replace := func(file, line int, old, new string) func(*testing.T, []string) {
		return func(t *testing.T, f []string) {
			l := linesOf(t, f[file])
			changed := bytes.Replace(l[line], []byte(old), []byte(new), 1)
			if bytes.Equal(changed, l[line]) {
				t.Fatalf("no %q in %s", old, l[line])
			}
			l[line] = changed
			rewrite(t, f[file], l...)
		}
	}
	edit := func(file int, change func(l [][]byte) [][]byte) func(*testing.T, []string) {
		return func(t *testing.T, f []string) { rewrite(t, f[file], change(linesOf(t, f[file]))...) }
	}
	return []tampering{
		{"a word", replace(1, 2, "act7", "act8"), 1, 3},
		{"a word in the last file", replace(2, 1, "act10", "act11"), 2, 2},
		{"the time", replace(0, 0, `"time":"2`, `"time":"3`), 0, 1},
		{"white space", replace(2, 0, `,"act"`, `, "act"`), 2, 1},
		{"carriage return", replace(2, 0, "\n", "\r\n"), 2, 1},
		{"hash in capitals", edit(2, func(l [][]byte) [][]byte {
			i := bytes.LastIndex(l[1], []byte(hashIs)) + len(hashIs)
			l[1] = append(append(bytes.Clone(l[1][:i]), bytes.ToUpper(l[1][i:i+hexLen])...), l[1][i+hexLen:]...)
			return l
		}), 2, 2},
		{"removed in the middle", edit(2, func(l [][]byte) [][]byte { return append(l[:1:1], l[2:]...) }), 2, 2},
		{"removed at the end of a file", edit(1, func(l [][]byte) [][]byte { return l[:3] }), 2, 1},
		{"first of a file removed", edit(2, func(l [][]byte) [][]byte { return l[1:] }), 2, 1},
		{"swapped", edit(2, func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l }), 2, 2},
		{"repeated", edit(2, func(l [][]byte) [][]byte { return append(l[:2:2], l[1:]...) }), 2, 3},
		{"inserted", edit(1, func(l [][]byte) [][]byte { l[1] = append([]byte("{}\n"), l[1]...); return l }), 1, 2},
		{"blank line", edit(1, func(l [][]byte) [][]byte { l[1] = append([]byte("\n"), l[1]...); return l }), 1, 2},
		{"forged, its hash fits", edit(1, func(l [][]byte) [][]byte { forge(l, 1); return l }), 1, 3},
		{"forged last of a file", edit(1, func(l [][]byte) [][]byte { forge(l, 3); return l }), 2, 1},
		{"file emptied", func(t *testing.T, f []string) { rewrite(t, f[1]) }, 2, 1},
		{"file removed", func(t *testing.T, f []string) { _ = os.Remove(f[1]) }, 2, 1},
		{"files swapped", func(t *testing.T, f []string) {
			a, b := linesOf(t, f[1]), linesOf(t, f[2])
			rewrite(t, f[1], b...)
			rewrite(t, f[2], a...)
		}, 1, 1},
		{"long line", edit(2, func(l [][]byte) [][]byte { l[1] = bytes.Repeat([]byte("x"), 5<<20); return l }), 2, 2},
	}
}

func TestVerifyFindsTampering(t *testing.T) {
	for _, c := range tamperings() {
		t.Run(c.name, func(t *testing.T) {
			dir, files := trail(t)
			mustVerify(t, dir, 1, 12)
			c.tamper(t, files)
			_, err := Verify(dir)
			var broken *BrokenError
			if !errors.As(err, &broken) || broken.File != files[c.file] || broken.Line != c.line {
				t.Fatalf("Verify: %v, want %s:%d", err, filepath.Base(files[c.file]), c.line)
			}
			l, err := Open(Config{Dir: dir})
			if err == nil {
				_ = l.Close()
			}
			// Open looks at the last two files alone, and begins with any record there.
			if c.file == 2 && (!errors.As(err, &broken) || !strings.Contains(err.Error(), "move the folder away")) {
				t.Fatalf("Open: %v", err)
			}
		})
	}
}

func TestVerifySummary(t *testing.T) {
	dir, files := trail(t)
	whole, err := Verify(dir)
	if err != nil || whole.Files != 3 || whole.First != 1 || whole.Last != 12 || len(whole.Hash) != hexLen {
		t.Fatal(whole, err)
	}
	// A cut end is seen only by what was kept elsewhere.
	rewrite(t, files[2], linesOf(t, files[2])[:3]...)
	if cut, err := Verify(dir); err != nil || cut.Last != 11 || cut.Hash == whole.Hash {
		t.Fatal(cut, err)
	}
	if _, err := Verify(filepath.Join(dir, "no")); err == nil {
		t.Fatal("no folder is no trail")
	}
}

// TestRecord holds the form of a record fast, for those who verify by other means.
func TestRecord(t *testing.T) {
	end := tail{41, sha256.Sum256([]byte("before"))}
	line, next := appendLine(nil, end, time.Unix(1, 5).UTC(), []byte(`{"act":"a","outcome":"done"}`))
	covered := fmt.Sprintf(`{"seq":42,"time":"1970-01-01T00:00:01.000000005Z","act":"a","outcome":"done","prev":"%x"`, end.hash)
	sum := sha256.Sum256(append(end.hash[:], covered...))
	if want := fmt.Sprintf("%s,\"hash\":\"%x\"}\n", covered, sum); string(line) != want || next != (tail{42, sum}) {
		t.Fatalf("got  %swant %s", line, want)
	}
	if r, why := parse(line); why != "" || r != (record{42, end.hash, sum}) {
		t.Fatal(r, why)
	}
}

// FuzzParse checks that what is taken for a record is exactly what a Log writes
// around a body, and that nothing makes it panic.
func FuzzParse(f *testing.F) {
	line, _ := appendLine(nil, tail{6, hash{1, 2, 3}}, time.Unix(0, 0).UTC(), []byte(`{"act":"a","outcome":"done"}`))
	f.Add(line)
	f.Add(line[:len(line)-1])
	f.Add([]byte(seqIs + prevIs + hashIs + after + "\n"))
	f.Add([]byte(`{"seq":18446744073709551616,"prev":"` + strings.Repeat("0", hexLen) + `","hash":"` + strings.Repeat("0", hexLen) + "\"}\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, why := parse(line)
		if why != "" {
			return
		}
		covered := line[:len(line)-len(hashIs)-hexLen-len(after)-1]
		again := fmt.Sprintf("%s%s%x%s\n", covered, hashIs, r.prev.onto(covered), after)
		if again != string(line) || !bytes.HasPrefix(line, fmt.Appendf(nil, "%s%d", seqIs, r.seq)) {
			t.Fatalf("took %q", line)
		}
	})
}

// FuzzVerify changes bytes of a whole trail at one place: Verify must see it,
// unless nothing changed or the end was cut between records.
func FuzzVerify(f *testing.F) {
	_, files := trail(f)
	var whole []byte
	for _, l := range linesOf(f, files[0]) {
		whole = append(whole, l...)
	}
	f.Add(0, 0, []byte("x"))
	f.Add(len(whole)-1, 1, []byte{})
	f.Add(len(whole)/2, 1, []byte("\n"))
	f.Add(700, 40, []byte("\x00\x00"))
	path := filepath.Join(f.TempDir(), filepath.Base(files[0]))
	f.Fuzz(func(t *testing.T, at, remove int, insert []byte) {
		if at < 0 || at > len(whole) || remove < 0 || remove > len(whole)-at {
			return
		}
		changed := append(append(bytes.Clone(whole[:at]), insert...), whole[at+remove:]...)
		rewrite(t, path, changed)
		_, err := Verify(filepath.Dir(path))
		cut := bytes.HasPrefix(whole, changed) && (len(changed) == 0 || changed[len(changed)-1] == '\n')
		if (err == nil) != cut {
			t.Fatalf("cut %v, Verify: %v", cut, err)
		}
	})
}
