package audit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l := openSigned(b, Config{})
			work := make(chan struct{}, writers)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for range work {
						if err := l.Append(context.Background(), Event{Act: "login", Who: "corp.0f1e2d3c", Name: "alice", Outcome: Done}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(l.syncs.Load())/float64(b.N), "fsyncs/op")
		})
	}
}

// BenchmarkAppendParallel is a busy server: 64 at once, and the CPU that each costs.
func BenchmarkAppendParallel(b *testing.B) {
	l := openSigned(b, Config{})
	e := Event{
		Act: "token.issue", Who: "corp.6f9619ff-8b86-d011-b42d-00c04fc964ff", Name: "alice", On: "kubernetes", Outcome: Done,
		Address: "192.0.2.10", UserAgent: "kubelogin/1.36.3", RequestID: "0f8e7d6c5b4a", Session: "sid-0123456789", Cluster: "prod",
		Detail: map[string]string{"groups": "20", "exp": "2026-11-22T12:00:00Z"},
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	cpu := cpuTime()
	for range 64 {
		wg.Go(func() {
			for n.Add(1) <= int64(b.N) {
				if err := l.Append(b.Context(), e); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what this process has used so far, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// largeTrail is a trail of TABARD_AUDIT_MIB MiB, 32 if that is not set, with records of
// 10,000 people.
func largeTrail(b *testing.B) (dir string, size int64) {
	b.Helper()
	mib, err := strconv.Atoi(os.Getenv("TABARD_AUDIT_MIB"))
	if err != nil {
		mib = 32
	}
	dir = filepath.Join(b.TempDir(), "audit")
	at := searchDay
	l := openSigned(b, Config{Dir: dir, Now: func() time.Time { return at }})
	batch := make([]Event, maxEvents)
	for n := 0; size < int64(mib)<<20; n += len(batch) {
		for i := range batch {
			person := (n + i) * 7919 % 10_000
			batch[i] = Event{
				Act: "token.issue", Who: fmt.Sprintf("corp.3b241101-e2bb-4255-8caf-%012d", person), Name: fmt.Sprintf("person%d", person), Outcome: Done,
				Address: "192.0.2.17", UserAgent: "kubectl-tabard/v1.2.3 (linux/amd64)", RequestID: fmt.Sprintf("r%016x", n+i), Session: fmt.Sprintf("s%016x", person),
				JTI: fmt.Sprintf("j%016x", n+i), Client: "kubernetes", Cluster: "prod", Soon: i > 0,
			}
		}
		at = at.Add(time.Second)
		if err := l.AppendAll(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
		size += int64(maxEvents) * 520
	}
	mustClose(b, l)
	size = 0
	for _, p := range paths(b, dir) {
		info, err := os.Stat(p)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	return dir, size
}

func BenchmarkSearch(b *testing.B) {
	dir, size := largeTrail(b)
	for _, c := range []struct {
		name string
		q    Query
	}{
		{"one person", Query{Person: "person4711"}},
		{"one page of one person", Query{Person: "person4711", Limit: 50}},
		{"text that is not there", Query{Text: "nowhere"}},
		{"one page of everything", Query{Limit: 50}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size)
			found := 0
			for b.Loop() {
				found = 0
				if _, err := Search(context.Background(), []string{dir}, c.q, func(Event) error { found++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(found), "found")
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	dir, size := largeTrail(b)
	keys := publicKeys(b, Config{Dir: dir})
	b.SetBytes(size)
	for b.Loop() {
		if all, err := VerifyAll(context.Background(), []string{dir}, Proof{Keys: keys}); err != nil || all[0].Err != nil {
			b.Fatal(all, err)
		}
	}
}
