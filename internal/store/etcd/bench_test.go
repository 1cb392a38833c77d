package etcd

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/testenv"
)

// eachCluster runs a benchmark on one member and on three, all on this machine's disk
// and with TLS.
func eachCluster(b *testing.B, bench func(b *testing.B, cfg Config)) {
	for _, members := range []int{1, 3} {
		b.Run(fmt.Sprintf("members=%d", members), func(b *testing.B) {
			cfg := clusterConfig(testenv.StartEtcdCluster(b, members, testenv.EtcdClusterOptions{}))
			cfg.Username, cfg.Password = "", ""
			bench(b, cfg)
		})
	}
}

// BenchmarkTxn writes 400-byte values from 16 goroutines, each on a condition, as
// changes of groups do.
func BenchmarkTxn(b *testing.B) {
	eachCluster(b, func(b *testing.B, cfg Config) {
		s := openTest(b, cfg)
		value := bytes.Repeat([]byte("x"), 400)
		var n atomic.Int64
		var wg sync.WaitGroup
		b.ResetTimer()
		for w := range 16 {
			wg.Go(func() {
				revision, key := int64(0), fmt.Sprintf("s/%02d", w)
				for n.Add(1) <= int64(b.N) {
					var err error
					revision, err = s.Txn(b.Context(), []store.Cond{{Key: key, Revision: revision}}, []store.Op{{Key: key, Value: value}})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
	})
}

// BenchmarkChangeSeen writes on one node and waits until a watch of another tells of
// it, while 16 others write.
func BenchmarkChangeSeen(b *testing.B) {
	eachCluster(b, func(b *testing.B, cfg Config) {
		one, another := openTest(b, cfg), openTest(b, cfg)
		ch, err := another.Watch(b.Context(), "s/", mustTxn(b, one, op("s/1", "")))
		if err != nil {
			b.Fatal(err)
		}
		stop := make(chan struct{})
		var others sync.WaitGroup
		for w := range 16 {
			others.Go(func() { busy(b, one, fmt.Sprintf("other/%d", w), stop) })
		}
		b.ResetTimer()
		var seen []time.Duration
		for b.Loop() {
			began := time.Now()
			revision := mustTxn(b, one, op("s/1", "x"))
			for batch := range ch {
				if batch.Revision >= revision {
					break
				}
			}
			seen = append(seen, time.Since(began))
		}
		close(stop)
		others.Wait()
		slices.Sort(seen)
		b.ReportMetric(float64(seen[len(seen)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(seen[len(seen)*99/100].Microseconds())/1000, "p99-ms")
	})
}

// busy writes about a hundred times a second.
func busy(b *testing.B, s *Store, key string, stop chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if _, err := s.Txn(b.Context(), nil, []store.Op{op(key, "x")}); err != nil {
			b.Error(err)
			return
		}
	}
}

func BenchmarkGet(b *testing.B) {
	eachCluster(b, func(b *testing.B, cfg Config) {
		s := openTest(b, cfg)
		mustTxn(b, s, op("s/1", "x"))
		for b.Loop() {
			if _, err := s.Get(b.Context(), "s/1"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkList reads 10,000 entries of 300 bytes.
func BenchmarkList(b *testing.B) {
	eachCluster(b, func(b *testing.B, cfg Config) {
		s := openTest(b, cfg)
		for i := range store.MaxList / store.MaxOps {
			var ops []store.Op
			for j := range store.MaxOps {
				ops = append(ops, store.Op{Key: fmt.Sprintf("s/%03d%02d", i, j), Value: bytes.Repeat([]byte("x"), 300)})
			}
			mustTxn(b, s, ops...)
		}
		for b.Loop() {
			if entries, _, err := s.List(b.Context(), "s/", "", store.MaxList); err != nil || len(entries) != store.MaxList {
				b.Fatal(len(entries), err)
			}
		}
	})
}
