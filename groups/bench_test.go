package groups

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// memberships is how many the benchmarks' store holds: TABARD_BENCH_MEMBERSHIPS, or
// a few for a quick look. There are a tenth as many people, and a hundredth as many
// groups.
func memberships(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("TABARD_BENCH_MEMBERSHIPS"))
	if err != nil {
		return 20_000
	}
	return n
}

func personID(n int) string { return fmt.Sprintf("corp.%08x-1111-4222-8333-%012x", n, n) }
func groupID(n int) string  { return fmt.Sprintf("g%015d", n) }

// big fills a store: each person is in nine or ten groups directly, and in ten more by
// one of their directory groups; each group is in one other, seven deep, and each
// eighth in two.
func big(b *testing.B, st store.Store) (people int) {
	total := memberships(b)
	groups, people := max(total/100, 10), max(total/10, 10)
	ops := make(chan []store.Op, 64)
	var writers sync.WaitGroup
	for range 64 {
		writers.Go(func() {
			for o := range ops {
				if _, err := st.Txn(b.Context(), nil, o); err != nil {
					b.Error(err)
				}
			}
		})
	}
	var batch []store.Op
	add := func(op store.Op) {
		if batch = append(batch, op); len(batch) == store.MaxOps {
			ops <- batch
			batch = nil
		}
	}
	member := func(group int, m Member) {
		m.GrantedBy, m.GrantedByName, m.GrantedAt, m.Reason = personID(0), "carol.coleman", time.Now(), "ticket 4711"
		value, err := encodeMember(m)
		must(b, err)
		add(store.Op{Key: memberKey(groupID(group), m.Kind, m.ID), Value: value})
	}
	each := total / groups
	for g := range groups {
		set := Settings{Name: fmt.Sprintf("team-%05d", g), Description: "What this group is for", Owners: []Ref{{KindPerson, personID(g), ""}}, Labels: map[string]string{"team": fmt.Sprint(g % 100)}}
		op, err := putRecord(groupID(g), record{Settings: set, Created: time.Now(), CreatedBy: "operator"})
		must(b, err)
		add(op)
		add(store.Op{Key: nameKey(set.Name), Value: []byte(groupID(g))})
		member(g, directoryGroup(fmt.Sprintf("corp:dept-%04d", g%1000)))
		for n := range each - 3 {
			m := Member{Ref: Ref{KindPerson, personID((g*each + n*7919) % people), "user.name" + strconv.Itoa(n)}}
			if n%10 == 0 {
				m.End = time.Now().Add(time.Hour)
			}
			member(g, m)
		}
		for _, in := range slices.Compact([]int{g/4 - 1, g/5 - 1}) { // a group's parents have lower numbers
			if in >= 0 && (in == g/4-1 || g%8 == 0) {
				member(in, Member{Ref: Ref{Kind: KindGroup, ID: groupID(g)}})
			}
		}
	}
	ops <- batch
	close(ops)
	writers.Wait()
	return people
}

// heapMiB is what lives on it, in MiB.
func heapMiB() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// resident is this process's memory, in MiB: anonymous, and with pages of files.
func resident(b *testing.B) (anonymous, all float64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0 // not on Linux
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "RssAnon: %f", &kib); err == nil {
			anonymous = kib / 1024
		}
		if _, err := fmt.Sscanf(line, "VmRSS: %f", &kib); err == nil {
			all = kib / 1024
		}
	}
	return anonymous, all
}

// BenchmarkLarge opens a large store anew and asks for people's groups.
func BenchmarkLarge(b *testing.B) {
	path := filepath.Join(b.TempDir(), "tabard.db")
	st, err := bolt.Open(bolt.Config{Path: path})
	must(b, err)
	people := big(b, st)
	must(b, st.Close())
	st = nil
	runtime.GC()
	empty := heapMiB()
	began := time.Now()
	h := newHouse(b, bolt.Config{Path: path})
	open := time.Since(began)
	anon, all := resident(b)
	inHeap := heapMiB() - empty
	eventually(b, "word from the store", func() bool { return !h.follower.Stale() }) // where loading took long
	var took []time.Duration
	n, in := 0, 0
	for b.Loop() {
		at := time.Now()
		got, err := h.Of(personID(n%people), []string{fmt.Sprintf("corp:dept-%04d", n%1000), "corp:staff"}, at)
		took = append(took, time.Since(at))
		if err != nil || len(got) == 0 {
			b.Fatal(len(got), err)
		}
		n, in = n+1, in+len(got)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
	b.ReportMetric(float64(in)/float64(n), "groups")
	b.ReportMetric(open.Seconds(), "open-s")
	b.ReportMetric(inHeap, "heap-MiB")
	b.ReportMetric(anon, "rss-anon-MiB")
	b.ReportMetric(all, "rss-MiB")
}

// BenchmarkAdd adds members from 16 writers, durably, to one group or to sixteen.
func BenchmarkAdd(b *testing.B) {
	for _, groups := range []int{1, 16} {
		b.Run(fmt.Sprint(groups, " groups"), func(b *testing.B) {
			h := newHouse(b, bolt.Config{})
			for g := range groups {
				h.group(fmt.Sprint(g))
			}
			var n atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for w := range 16 {
				all.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						if _, err := h.Add(context.Background(), admin, fmt.Sprint(w%groups), 0, person(fmt.Sprint(i))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "adds/s")
		})
	}
}
