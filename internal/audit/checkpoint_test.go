package audit

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// signedTrail writes records into files that each end in a checkpoint, and returns
// what a sink would have kept: every line.
func signedTrail(t testing.TB, node string) (cfg Config, files []string, elsewhere string) {
	t.Helper()
	cfg = Config{Dir: filepath.Join(t.TempDir(), "audit"), Node: node, FileSize: 2_000}
	l := openSigned(t, cfg)
	for i := range 20 {
		mustAppend(t, l, fmt.Sprintf("act%d", i+1))
	}
	mustClose(t, l)
	files = paths(t, l.dir)
	if len(files) < 3 {
		t.Fatalf("%d files", len(files))
	}
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return cfg, files, string(all)
}

func publicKeys(t testing.TB, cfg Config) []ed25519.PublicKey {
	t.Helper()
	b, err := os.ReadFile(cfg.PublicKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(b)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// verifyOne is VerifyAll of a folder with one chain.
func verifyOne(t testing.TB, dir string, keys []ed25519.PublicKey, elsewhere string) Summary {
	t.Helper()
	p := Proof{Keys: keys}
	if elsewhere != "" {
		p.Checkpoints = strings.NewReader(elsewhere)
	}
	all, err := VerifyAll(t.Context(), []string{dir}, p)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0]
}

// rechain gives records from line i of the file on, and of all files behind, hashes that
// fit, as somebody would who can write the files and knows the format.
func rechain(t *testing.T, files []string, file, line int, change func([]byte) []byte) {
	t.Helper()
	var end tail
	for i := range files {
		l := linesOf(t, files[i])
		var out []byte
		for n, old := range l[:len(l)-1] {
			r, _ := parse(old)
			if i < file || i == file && n < line {
				end, out = tail{r.seq, r.hash}, append(out, old...)
				continue
			}
			_, rest, _ := bytes.Cut(old, []byte(`,"time":"`))
			at, body, _ := bytes.Cut(rest, []byte(`",`))
			body = body[:bytes.LastIndex(body, []byte(prevIs))]
			when, err := time.Parse(time.RFC3339Nano, string(at))
			if err != nil {
				t.Fatal(err)
			}
			out, end = appendLine(out, end, when, change([]byte("{"+string(body)+"}")))
		}
		rewrite(t, files[i], out)
	}
}

func isCheckpoint(line []byte) bool { return mark(line, checkpointAct) }

// TestCheckpointsProve tampers with a trail in ways that its hashes do not show.
func TestCheckpointsProve(t *testing.T) {
	forge := func(b []byte) []byte { return bytes.Replace(b, []byte(`"act8"`), []byte(`"actX"`), 1) }
	for _, c := range []struct {
		name             string
		tamper           func(*testing.T, []string)
		byKey, elsewhere string // what is said with the key, and with what was kept; "": nothing
	}{
		{"nothing", func(*testing.T, []string) {}, "", ""},
		{"end cut off", func(t *testing.T, f []string) {
			last := f[len(f)-1]
			l := linesOf(t, last)
			rewrite(t, last, l[:len(l)-2]...)
		}, "", "the end was cut off"},
		{"last file removed", func(_ *testing.T, f []string) { _ = os.Remove(f[len(f)-1]) }, "", "the end was cut off"},
		{"all but the first file removed", func(_ *testing.T, f []string) {
			for _, p := range f[1:] {
				_ = os.Remove(p)
			}
		}, "", "the end was cut off"},
		{"rewritten with hashes that fit", func(t *testing.T, f []string) { rechain(t, f, 0, 2, forge) }, "of another chain", "the chain was rewritten"},
		{"rewritten without checkpoints", func(t *testing.T, f []string) {
			rechain(t, f, 0, 2, func(b []byte) []byte {
				if isCheckpoint(b) {
					return []byte(`{"act":"x","outcome":"done"}`)
				}
				return forge(b)
			})
		}, "", "the chain was rewritten"},
		{"checkpoint signed by nobody", func(t *testing.T, f []string) {
			rechain(t, f, 0, 0, func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"signature":"`), []byte(`"signature":"AAAA`), 1)
			})
		}, "signature does not fit", "the chain was rewritten"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, files, elsewhere := signedTrail(t, "")
			keys := publicKeys(t, cfg)
			c.tamper(t, files)
			for _, check := range []struct {
				kept, want string
			}{{"", c.byKey}, {elsewhere, c.elsewhere}} {
				s := verifyOne(t, cfg.Dir, keys, check.kept)
				var broken *BrokenError
				if check.want == "" && s.Err != nil || check.want != "" && (!errors.As(s.Err, &broken) || !strings.Contains(s.Err.Error(), check.want)) {
					t.Errorf("kept elsewhere %v: %v, want %q", check.kept != "", s.Err, check.want)
				}
			}
		})
	}
}

// TestUnsigned: a long end without checkpoints is not what Tabard writes.
func TestUnsigned(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit")}
	mustClose(t, openSigned(t, cfg))
	keys := publicKeys(t, cfg)
	l := openTest(t, cfg)
	batch := slices.Repeat([]Event{{Act: "x", Outcome: Done}}, 1_000)
	for range 3 {
		if err := l.AppendAll(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	if s := verifyOne(t, cfg.Dir, keys, ""); s.Err == nil || !strings.Contains(s.Err.Error(), "no signed checkpoint") {
		t.Fatalf("%+v", s)
	}
}

func TestVerifyAllSummary(t *testing.T) {
	cfg, files, elsewhere := signedTrail(t, "a")
	s := verifyOne(t, cfg.Dir, publicKeys(t, cfg), "Nov 22 host tabard: noise\n<109>1 - - "+elsewhere)
	if s.Err != nil || s.Node != "a" || s.First != 1 || s.Signed != s.Last || s.Checkpoints < len(files) || s.Kept != s.Checkpoints || s.Files != len(files) {
		t.Fatalf("%+v", s)
	}
	if s := verifyOne(t, cfg.Dir, nil, ""); s.Err != nil || s.Signed != 0 || s.Checkpoints == 0 {
		t.Fatalf("without a key: %+v", s)
	}
	stranger, _, _ := ed25519.GenerateKey(nil)
	if s := verifyOne(t, cfg.Dir, []ed25519.PublicKey{stranger}, ""); s.Err == nil || !strings.Contains(s.Err.Error(), "not given") {
		t.Fatalf("another key: %+v", s)
	}
	_, err := VerifyAll(t.Context(), []string{cfg.Dir}, Proof{Keys: []ed25519.PublicKey{stranger}, Checkpoints: strings.NewReader(elsewhere)})
	if err == nil || !strings.Contains(err.Error(), "line") {
		t.Fatal(err)
	}
}

// TestChainsTogether verifies two nodes and a chain from before there were nodes.
func TestChainsTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	var elsewhere []byte
	for _, node := range []string{"", "a", "b"} {
		l := openSigned(t, Config{Dir: dir, Node: node})
		mustAppend(t, l, "x", "y")
		mustClose(t, l)
		b, err := os.ReadFile(paths(t, l.dir)[0])
		if err != nil {
			t.Fatal(err)
		}
		elsewhere = append(b, elsewhere...)
	}
	keys := publicKeys(t, Config{Dir: dir})
	all, err := VerifyAll(t.Context(), []string{dir}, Proof{Keys: keys, Checkpoints: bytes.NewReader(elsewhere)})
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	for i, node := range []string{"", "a", "b"} {
		if s := all[i]; s.Err != nil || s.Node != node || s.Last != 3 || s.Kept != 1 {
			t.Errorf("%+v", s)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	all, err = VerifyAll(t.Context(), []string{dir}, Proof{Checkpoints: bytes.NewReader(elsewhere)})
	if err != nil || len(all) != 3 || all[2].Node != "a" || all[2].Err == nil {
		t.Fatal(all, err)
	}
}

// TestCheckpointsAreTaken looks for them at each of their occasions.
func TestCheckpointsAreTaken(t *testing.T) {
	count := func(l *Log) (n int) {
		for _, e := range events(t, l.dir) {
			if e.Act == checkpointAct {
				n++
			}
		}
		return n
	}
	l := openSigned(t, Config{})
	for i := range 2*checkpointRecords + 1 {
		if err := l.Append(t.Context(), Event{Act: "x", Outcome: Done, Soon: i%100 != 0}); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(l); n != 2 {
		t.Errorf("%d checkpoints of %d records", n, 2*checkpointRecords+1)
	}
	mustClose(t, l)
	if n := count(l); n != 3 {
		t.Errorf("%d checkpoints after Close", n)
	}
	l = openSigned(t, l.cfg)
	mustClose(t, l)
	if n := count(l); n != 3 {
		t.Errorf("%d checkpoints, one of nothing new", n)
	}
	if s := verifyOne(t, l.cfg.Dir, publicKeys(t, l.cfg), ""); s.Err != nil || s.Signed != s.Last {
		t.Errorf("%+v", s)
	}
}

func TestCheckpointByTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Dir: filepath.Join(dir, "audit"), CheckpointEvery: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for want := range 3 {
			if got := len(events(t, l.dir)); got != 2*want {
				t.Fatalf("%d records, want %d", got, 2*want)
			}
			mustAppend(t, l, "x")
			time.Sleep(3 * time.Minute)
			synctest.Wait()
		}
	})
}

func TestKey(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit")}
	mustClose(t, openSigned(t, cfg))
	info, err := os.Stat(cfg.keyFile())
	if err != nil || info.Mode().Perm() != 0o600 || filepath.Dir(cfg.keyFile()) == cfg.Dir {
		t.Fatal(info, err)
	}
	first := publicKeys(t, cfg)
	if err := os.Remove(cfg.PublicKeyFile()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, openSigned(t, cfg))
	if again := publicKeys(t, cfg); len(again) != 1 || !again[0].Equal(first[0]) {
		t.Fatal("the key changed")
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(cfg.keyFile(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "audit key") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseKeys([]byte("x")); err == nil {
		t.Error("no key in x")
	}
}

// FuzzKept reads any line as one of a file of checkpoints.
func FuzzKept(f *testing.F) {
	cfg, files, _ := signedTrail(f, "node")
	keys := publicKeys(f, cfg)
	real := map[tail]bool{}
	for _, path := range files {
		for _, line := range linesOf(f, path) {
			if isCheckpoint(line) {
				f.Add(line)
				f.Add(append([]byte("<109>1 - host "), line...))
				f.Add(bytes.Replace(line, []byte(`"node":"node"`), []byte(`"node":"mode"`), 1))
				r, _ := parse(line)
				real[tail{r.seq, r.hash}] = true
			}
		}
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		node, k, why := parseKept(line, keys)
		if why == "" && k.seq != 0 && (node != "node" || !real[k.tail]) {
			t.Fatalf("took %q for a checkpoint", line)
		}
	})
}
