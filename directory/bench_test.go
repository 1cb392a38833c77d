package directory

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// BenchmarkLookup is what a refresh asks of slapd, from 16 at once over LDAPS.
func BenchmarkLookup(b *testing.B) {
	s := testenv.StartSlapd(b)
	s.AddLDIF(b, testenv.SampleLDIF())
	d, err := New(slapdConfig(s))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	p, err := d.Find(b.Context(), "alice")
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := d.Lookup(b.Context(), p.ID); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
}

// BenchmarkBind is a person's bind, with and without a connection that waits.
func BenchmarkBind(b *testing.B) {
	h := behindProxies(b)
	p, err := h.d.Find(b.Context(), "alice")
	if err != nil {
		b.Fatal(err)
	}
	for name, fresh := range map[string]bool{"pooled": false, "fresh": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if fresh {
					h.d.binds.drop(h.d.known[0])
				}
				if err := h.d.Bind(b.Context(), p.DN, "pw-alice"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFailOver signs people in, eight at once, while the first of two
// hosts dies; for 2 s before, for 5 s in which it dies, and for 3 s after. A bind
// whose answer is lost is made once more, as a sign-in does it.
func BenchmarkFailOver(b *testing.B) {
	for _, death := range []testenv.LDAPFault{{Kind: testenv.Reset}, {Kind: testenv.BlackHole}, {Kind: testenv.Slow, Delay: 2 * time.Second}} {
		b.Run(string(death.Kind), func(b *testing.B) {
			h := behindProxies(b)
			for b.Loop() {
				h.first.Fail(testenv.LDAPFault{})
				reportLogins(b, "before", signInsFor(b, h.d, 2*time.Second))
				dies := time.AfterFunc(100*time.Millisecond, func() { h.first.Fail(death) })
				reportLogins(b, "first-5s", signInsFor(b, h.d, 5*time.Second))
				dies.Stop()
				reportLogins(b, "after", signInsFor(b, h.d, 3*time.Second))
			}
		})
	}
}

// outcomes are those of many sign-ins.
type outcomes struct {
	took   []time.Duration
	failed int
	over   time.Duration
}

func signInsFor(b *testing.B, d *Directory, length time.Duration) (o outcomes) {
	b.Helper()
	var mu sync.Mutex
	var failed atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for range 8 {
		wg.Go(func() {
			for time.Now().Before(end) {
				began := time.Now()
				_, err := signIn(b.Context(), d, "pw-alice")
				if errors.Is(err, ErrLost) {
					_, err = signIn(b.Context(), d, "pw-alice")
				}
				if err != nil {
					failed.Add(1)
					b.Log(err)
				}
				mu.Lock()
				o.took = append(o.took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	o.failed, o.over = int(failed.Load()), length
	return o
}

func reportLogins(b *testing.B, phase string, o outcomes) {
	slices.Sort(o.took)
	b.ReportMetric(float64(o.failed), phase+"-failed")
	b.ReportMetric(float64(o.took[len(o.took)*99/100].Milliseconds()), phase+"-p99-ms")
	b.ReportMetric(float64(len(o.took))/o.over.Seconds(), phase+"-logins/s")
}
