package main

import (
	"os"
	"runtime/debug"
	rt "runtime/metrics"
	"time"
)

// lookAtHeap is how often tuneCollector looks.
const lookAtHeap = time.Second

// gcPercent is how far the heap may grow between two collections, in percent of what
// lives. Every request makes garbage, and a heap of a few MiB that were collected often
// would cost a tenth of the CPU. With thousands of open watches or a million memberships
// the garbage would be gigabytes; the stacks of the watches count too.
func gcPercent(live uint64) int {
	switch {
	case live < 32<<20:
		return 300
	case live < 64<<20:
		return 100
	}
	return 40
}

// tuneCollector keeps the collector by gcPercent until stop is called. GOGC in the
// environment overrides it.
func tuneCollector() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	now := gcPercent(0)
	debug.SetGCPercent(now)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(lookAtHeap)
		defer tick.Stop()
		live := []rt.Sample{{Name: "/gc/heap/live:bytes"}}
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			rt.Read(live)
			if live[0].Value.Kind() != rt.KindUint64 {
				continue // no such metric in this Go
			}
			if want := gcPercent(live[0].Value.Uint64()); want != now {
				now = want
				debug.SetGCPercent(now)
			}
		}
	}()
	return func() { close(end); <-ended }
}
