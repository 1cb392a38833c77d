package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/testenv"
)

const (
	testPrefix = "/tabard/"
	writers    = 6
	// maxStale is how far behind a watch may be that shows life.
	maxStale = 5 * time.Second
)

// startCluster starts three members with TLS and authentication.
func startCluster(t testing.TB) *testenv.EtcdCluster {
	t.Helper()
	return testenv.StartEtcdCluster(t, 3, testenv.EtcdClusterOptions{User: "tabard", Password: "hunter2", Prefix: testPrefix})
}

func clusterConfig(c *testenv.EtcdCluster) Config {
	return Config{
		Endpoints: c.Endpoints, Prefix: testPrefix, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile,
		Username: "tabard", Password: "hunter2", SweepInterval: time.Second, stale: staleAfter,
	}
}

// storm is a cluster that writers and watchers use while it suffers.
type storm struct {
	t       *testing.T
	cluster *testenv.EtcdCluster
	nodes   []*Store
	lag     atomic.Int64 // how late this process has been, at worst

	mu       sync.Mutex
	acked    []acked         // in order of time
	never    map[string]bool // values whose Txn was told to have surely not happened
	last     map[string]int  // by key, as acknowledged
	outcomes map[string]int  // of Txns
	closed   int             // watches
}

// acked is a write that was acknowledged.
type acked struct {
	at       time.Time
	revision int64
}

// TestFaults writes and watches on two nodes while one fault after the other strikes
// the cluster. What was acknowledged stays; what was told to have not happened has
// not; a caller that goes on after ErrUnknown by reading and by conditions loses and
// doubles nothing; and no watch shows life that is over 5 s behind.
// There is a fault for every fifth of TABARD_SOAK_KILLS: one takes seconds.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := &storm{t: t, cluster: startCluster(t), never: map[string]bool{}, last: map[string]int{}, outcomes: map[string]int{}}
	for range 2 {
		s.nodes = append(s.nodes, openTest(t, clusterConfig(s.cluster)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running, watching sync.WaitGroup
	for w := range writers {
		running.Go(func() { s.write(ctx, w) })
	}
	running.Go(func() { s.measureLag(ctx) })
	watchers := make([]*follower, 3*len(s.nodes)) // on each member one of each node, mostly
	for i := range watchers {
		watchers[i] = &follower{storm: s, node: s.nodes[i%len(s.nodes)], values: map[string]string{}, seen: map[string]bool{}}
		watching.Go(func() { watchers[i].follow(t.Context()) })
	}
	s.strike(rand.New(rand.NewPCG(2026, 5)))
	cancel()
	running.Wait()
	_, end, err := s.nodes[0].List(within(t, time.Minute), "w/", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range watchers {
		w.end.Store(end)
	}
	watching.Wait()
	s.compare(watchers)
	t.Logf("outcomes %v, %d watches were closed, this process was up to %v late", s.outcomes, s.closed, time.Duration(s.lag.Load()))
}

// fault is something that happens to the cluster, and how it is made good.
type fault struct {
	name   string
	long   bool // enough for a watch to be over 5 s behind
	strike func(c *testenv.EtcdCluster, leader, follower int) (heal func())
}

func (s *storm) faults() []fault {
	restart := func(m *testenv.EtcdMember) func() {
		m.Kill()
		return func() { m.Restart(s.t) }
	}
	partition := func(c *testenv.EtcdCluster, i int) func() {
		c.Partition(i)
		return c.Heal
	}
	block := func(p *testenv.TCPProxy) func() {
		p.Block()
		return p.Unblock
	}
	freeze := func(m *testenv.EtcdMember) func() {
		_ = m.Freeze()
		return func() { _ = m.Thaw() }
	}
	return []fault{
		{"leader killed", false, func(c *testenv.EtcdCluster, leader, _ int) func() { return restart(c.Members[leader]) }},
		{"follower killed", false, func(c *testenv.EtcdCluster, _, other int) func() { return restart(c.Members[other]) }},
		{"leader partitioned", false, func(c *testenv.EtcdCluster, leader, _ int) func() { return partition(c, leader) }},
		{"follower partitioned", true, func(c *testenv.EtcdCluster, _, other int) func() { return partition(c, other) }},
		{"leader hangs", false, func(c *testenv.EtcdCluster, leader, _ int) func() { return freeze(c.Members[leader]) }},
		{"follower hangs", true, func(c *testenv.EtcdCluster, _, other int) func() { return freeze(c.Members[other]) }},
		{"clients lose a member in silence", true, func(c *testenv.EtcdCluster, _, other int) func() { return block(c.Members[other].Clients) }},
		{"connections cut", false, func(c *testenv.EtcdCluster, _, _ int) func() {
			for _, m := range c.Members {
				m.Clients.Cut()
			}
			return func() {}
		}},
		{"slow", false, func(c *testenv.EtcdCluster, _, _ int) func() {
			c.SlowPeers(150 * time.Millisecond)
			return func() { c.SlowPeers(0) }
		}},
		{"compacted", false, func(c *testenv.EtcdCluster, _, _ int) func() {
			if resp, err := c.Admin().Get(s.t.Context(), "x"); err == nil {
				_, _ = c.Admin().Compact(s.t.Context(), resp.Header.Revision)
			}
			return func() {}
		}},
	}
}

// strike lets each fault happen once, or as many as the environment says, in any order.
func (s *storm) strike(rng *rand.Rand) {
	faults := s.faults()
	order := rng.Perm(len(faults))
	if kills := os.Getenv("TABARD_SOAK_KILLS"); kills != "" {
		n, err := strconv.Atoi(kills)
		if err != nil {
			s.t.Fatalf("TABARD_SOAK_KILLS: %v", err)
		}
		for len(order) < n/5 {
			order = append(order, rng.IntN(len(faults)))
		}
	}
	for _, i := range order {
		leader := s.cluster.Leader(s.t)
		s.t.Logf("%s: %s", time.Now().UTC().Format(time.TimeOnly), faults[i].name)
		heal := faults[i].strike(s.cluster, leader, (leader+1+rng.IntN(2))%3)
		lasts := time.Duration(500+rng.IntN(1500)) * time.Millisecond
		if faults[i].long {
			lasts = maxStale + 2*time.Second
		}
		time.Sleep(lasts)
		heal()
		s.recovered(faults[i].name)
		if s.t.Failed() {
			s.t.Fatalf("after: %s", faults[i].name)
		}
	}
}

// recovered waits until every writer has written since.
func (s *storm) recovered(after string) {
	s.mu.Lock()
	before := maps.Clone(s.last)
	s.mu.Unlock()
	deadline := time.Now().Add(3 * time.Minute)
	for done := false; !done; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("after %q the writers do not go on", after)
		}
		done = true
		s.mu.Lock()
		for w := range writers {
			key := fmt.Sprintf("w/%d", w)
			done = done && s.last[key] > before[key]
		}
		s.mu.Unlock()
	}
}

// write counts up a key of its own. Every try writes a value that no other does.
func (s *storm) write(ctx context.Context, w int) {
	key, node := fmt.Sprintf("w/%d", w), s.nodes[w%len(s.nodes)]
	revision, try := int64(0), 0
	for n := 1; ctx.Err() == nil; n++ {
		for done := false; !done; {
			try++
			value := fmt.Sprintf("%d try %d of %s", n, try, key)
			got, err := node.Txn(s.t.Context(), []store.Cond{{Key: key, Revision: revision}}, []store.Op{{Key: key, Value: []byte(value)}})
			s.note(value, got, err)
			if done = err == nil; !done {
				got, done = s.look(node, key, n)
			}
			revision = got
		}
		s.mu.Lock()
		s.last[key] = n
		s.mu.Unlock()
	}
}

// note keeps what became of a Txn.
func (s *storm) note(value string, revision int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.outcomes["done"]++
		s.acked = append(s.acked, acked{time.Now(), revision})
	case errors.Is(err, store.ErrUnknown):
		s.outcomes["unknown"]++
	default:
		if errors.Is(err, store.ErrConflict) {
			s.outcomes["conflict"]++
		} else {
			s.outcomes["surely not"]++
		}
		s.never[value] = true
	}
}

// look reads until it gets an answer: the key's revision, and whether n is written.
func (s *storm) look(node *Store, key string, n int) (int64, bool) {
	for s.t.Context().Err() == nil {
		e, err := node.Get(s.t.Context(), key)
		if errors.Is(err, store.ErrNotFound) {
			return 0, false
		}
		if err != nil {
			continue
		}
		if at := number(string(e.Value)); at != n && at != n-1 {
			s.t.Errorf("%s is at %q while %d is being written", key, e.Value, n)
		}
		return e.Revision, number(string(e.Value)) == n
	}
	return 0, true
}

func number(value string) int {
	first, _, _ := strings.Cut(value, " ")
	n, _ := strconv.Atoi(first)
	return n
}

// measureLag notes how late this process is at worst: what others do on the machine is
// not held against a watch.
func (s *storm) measureLag(ctx context.Context) {
	const nap = 20 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		time.Sleep(nap)
		s.lag.Store(max(s.lag.Load(), int64(time.Since(began)-nap)))
	}
}

// follower follows a watch as an index does.
type follower struct {
	*storm
	node   *Store
	values map[string]string
	seen   map[string]bool // values
	end    atomic.Int64    // where to stop; 0: not known yet
}

func (f *follower) follow(ctx context.Context) {
	after := int64(0)
	for end := f.end.Load(); end == 0 || after < end; end = f.end.Load() {
		batches, err := f.node.Watch(ctx, "w/", after)
		if errors.Is(err, store.ErrCompacted) {
			after = f.relist(ctx, after)
			continue
		}
		if err != nil {
			continue
		}
		after = f.take(batches, after)
	}
}

func (f *follower) relist(ctx context.Context, after int64) int64 {
	entries, revision, err := f.node.List(ctx, "w/", "", 100)
	if err != nil {
		return after
	}
	clear(f.values)
	for _, e := range entries {
		f.values[e.Key] = string(e.Value)
	}
	return revision
}

// take reads batches until the channel is closed or the end is reached, and returns
// the revision reached.
func (f *follower) take(batches <-chan store.Batch, after int64) int64 {
	for b := range batches {
		f.checkFresh(b.Revision)
		for _, e := range b.Events {
			if e.Revision <= after || e.Revision > b.Revision {
				f.t.Errorf("an event at %d in a batch of %d..%d", e.Revision, after, b.Revision)
			}
			before, now := f.values[e.Key], string(e.Value)
			if number(now) != number(before)+1 {
				f.t.Errorf("%s went from %q to %q", e.Key, before, now)
			}
			f.values[e.Key], f.seen[now] = now, true
		}
		after = b.Revision
		if end := f.end.Load(); end != 0 && after >= end {
			return after
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return after
}

// checkFresh checks that a batch has everything that was acknowledged a while ago.
func (f *follower) checkFresh(revision int64) {
	old := time.Now().Add(-maxStale - time.Duration(f.lag.Load()))
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.acked) - 1; i >= 0; i-- {
		if a := f.acked[i]; a.at.Before(old) {
			if a.revision > revision {
				f.t.Errorf("a watch shows life at revision %d, %v after revision %d was acknowledged", revision, time.Since(a.at), a.revision)
			}
			return
		}
	}
}

// compare holds what watchers and lists show against what was acknowledged.
func (s *storm) compare(watchers []*follower) {
	for i, w := range watchers {
		for value := range w.seen {
			if s.never[value] {
				s.t.Errorf("watch %d told of %q, of which it was told that it has not happened", i, value)
			}
		}
		entries, _, err := w.node.List(within(s.t, time.Minute), "w/", "", 100)
		if err != nil {
			s.t.Fatal(err)
		}
		listed := map[string]string{}
		for _, e := range entries {
			listed[e.Key] = string(e.Value)
			if n := number(string(e.Value)); n != s.last[e.Key] {
				s.t.Errorf("list %d has %s at %d, acknowledged was %d", i, e.Key, n, s.last[e.Key])
			}
		}
		if len(entries) != writers || !maps.Equal(listed, w.values) {
			s.t.Errorf("listed\n%v\nwatch %d told\n%v", listed, i, w.values)
		}
	}
}
