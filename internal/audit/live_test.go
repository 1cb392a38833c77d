package audit

import (
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestLive verifies and searches while several write, files end, and retention removes
// them.
func TestLive(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit"), Node: "n", FileSize: 20_000, Retain: RetainConfig{Size: 100_000}, Serve: true, CheckpointEvery: time.Millisecond}
	l := openSigned(t, cfg)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				if err := l.AppendAll(t.Context(), []Event{{Act: "done.it", Who: "x", Outcome: Done}, {Act: "b", Outcome: Done, Soon: true}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	keys := publicKeys(t, cfg)
	until(t, "the first records", func() bool { return l.durable.Load() > 0 })
	for first := uint64(0); first < 500; {
		s := verifyOne(t, cfg.Dir, keys, "")
		if s.Err != nil {
			t.Fatal(s.Err)
		}
		first = s.First
		last := uint64(0)
		for _, e := range searchAll(t, []string{cfg.Dir}, Query{Act: "done."}) {
			if last != 0 && e.Seq >= last || e.Who != "x" {
				t.Fatalf("record %d after %d", e.Seq, last)
			}
			last = e.Seq
		}
		if last == 0 {
			t.Fatal("nothing found")
		}
	}
	stop.Store(true)
	wg.Wait()
	mustClose(t, l)
	if s := verifyOne(t, cfg.Dir, keys, ""); s.Err != nil || s.Signed != s.Last {
		t.Fatalf("%+v", s)
	}
}

// TestTrailOfOlderVersion: a long chain without checkpoints is signed as soon as it is
// opened.
func TestTrailOfOlderVersion(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit")}
	old := openTest(t, cfg)
	batch := make([]Event, maxEvents)
	for i := range batch {
		batch[i] = Event{Act: "x", Outcome: Done}
	}
	for range 4 {
		if err := old.AppendAll(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, old)
	l := openSigned(t, cfg)
	until(t, "it is signed", func() bool { return l.durable.Load() > 4*maxEvents })
	if s := verifyOne(t, cfg.Dir, publicKeys(t, cfg), ""); s.Err != nil || s.Signed != 4*maxEvents+1 {
		t.Fatalf("%+v", s)
	}
}
