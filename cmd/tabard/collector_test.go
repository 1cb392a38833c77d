package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// TestTuneCollector has a heap that grows and shrinks again.
func TestTuneCollector(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "")
	synctest.Test(t, func(t *testing.T) {
		stop := tuneCollector()
		defer stop()
		percent := func() int {
			runtime.GC() // what lives is counted by a collection
			time.Sleep(lookAtHeap + time.Millisecond)
			synctest.Wait()
			p := debug.SetGCPercent(100)
			debug.SetGCPercent(p)
			return p
		}
		large := make([]byte, 200<<20)
		if p := percent(); p != 40 {
			t.Errorf("%d with a large heap", p)
		}
		runtime.KeepAlive(large)
		large = nil
		if p := percent(); p < 100 {
			t.Errorf("%d with a small one", p)
		}
	})
}
