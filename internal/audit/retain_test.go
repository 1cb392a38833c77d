package audit

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestRetainSize(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit"), FileSize: 2_000, Retain: RetainConfig{Size: 9_000}, Serve: true}
	l := openSigned(t, cfg)
	for range 100 {
		mustAppend(t, l, "x")
	}
	mustClose(t, l)
	total := int64(0)
	for _, p := range paths(t, l.dir) {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 13_000 {
		t.Errorf("%d bytes are left", total)
	}
	s := verifyOne(t, cfg.Dir, publicKeys(t, cfg), "")
	if s.Err != nil || s.First < 50 || s.Last < 100 {
		t.Fatalf("%+v", s)
	}
	// Each removal is told by the number and hash of the last record that went.
	for _, e := range events(t, l.dir) {
		if e.Act == retentionAct && (len(e.Detail["hash"]) != hexLen || e.On == "" || e.Reason == "") {
			t.Errorf("%+v", e)
		}
	}
	// And files that were taken away besides show.
	files := paths(t, l.dir)
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if s := verifyOne(t, cfg.Dir, nil, ""); s.Err == nil || !strings.HasPrefix(s.Err.Error(), files[1]+":1:") {
		t.Fatalf("%+v", s)
	}
}

func TestRetainAge(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit"), FileSize: 1_000, Retain: RetainConfig{Age: 24 * time.Hour}, Serve: true}
	for range 10 {
		at := now
		cfg.Now = func() time.Time { return at }
		l := openSigned(t, cfg)
		mustAppend(t, l, "x", "y", "z")
		mustClose(t, l)
		now = now.Add(8 * time.Hour)
	}
	s := verifyOne(t, cfg.Dir, publicKeys(t, cfg), "")
	if s.Err != nil || s.First == 1 {
		t.Fatalf("%+v", s)
	}
	for _, e := range events(t, cfg.Dir) {
		if age := now.Add(-8 * time.Hour).Sub(e.Time); age > 32*time.Hour { // a file reaches over two rounds
			t.Errorf("record %d is %s old", e.Seq, age)
		}
	}
	cfg.Retain, cfg.Now = RetainConfig{}, nil
	first := s.First
	mustClose(t, openSigned(t, cfg))
	if s := verifyOne(t, cfg.Dir, nil, ""); s.First != first {
		t.Fatalf("without a limit: %+v", s)
	}
}

// TestRetainWaitsForSinks: what a sink has not taken stays up to the hard limit, and
// then the trail says what it missed.
func TestRetainWaitsForSinks(t *testing.T) {
	cfg := Config{
		Dir: filepath.Join(t.TempDir(), "audit"), FileSize: 2_000, Serve: true,
		Retain: RetainConfig{Size: 6_000, HardSize: 20_000},
		Sinks:  []SinkConfig{{Name: "gone", File: &FileConfig{filepath.Join(t.TempDir(), "no", "file")}}},
	}
	l := openSigned(t, cfg)
	for range 20 {
		mustAppend(t, l, "x")
	}
	if first := events(t, l.dir)[0].Seq; first != 1 {
		t.Fatalf("records before %d are gone, and the sink has none", first)
	}
	for range 80 {
		mustAppend(t, l, "x")
	}
	mustClose(t, l)
	s := verifyOne(t, cfg.Dir, publicKeys(t, cfg), "")
	if s.Err != nil || s.First == 1 {
		t.Fatalf("%+v", s)
	}
	missed := 0
	for _, e := range events(t, l.dir) {
		if what := e.Detail["missed by gone"]; what != "" {
			missed++
			if !strings.HasSuffix(what, " to "+e.Detail["last"]) {
				t.Errorf("%q of %+v", what, e)
			}
		}
	}
	if missed == 0 {
		t.Error("the trail does not say what the sink missed")
	}
	// It gets the rest once it works.
	cfg.Sinks[0].File.Path = filepath.Join(t.TempDir(), "copy")
	l = openSigned(t, cfg)
	for end := time.Now().Add(time.Minute); l.sinks[0].position.Load() < l.durable.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) { // it may read a file just as that is removed, and try again
			t.Fatal("the sink does not get the rest")
		}
	}
	mustClose(t, l)
	lines := linesOf(t, cfg.Sinks[0].File.Path)
	if seq, _ := seqOf(lines[0]); strconv.FormatUint(seq, 10) == "1" || len(lines) < 10 {
		t.Fatalf("the copy begins with record %d and has %d lines", seq, len(lines))
	}
}
