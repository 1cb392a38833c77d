package etcd

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

func TestSuite(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t)
	storetest.Run(t, func(t *testing.T) store.Store {
		every := time.Hour // no sweep comes between two reads that are compared
		if strings.HasSuffix(t.Name(), "/sweep") {
			every = time.Second
		}
		return openTest(t, Config{Endpoints: []string{e.Endpoint}, SweepInterval: every})
	})
}

// openTest opens cfg, under a prefix of its own where it names none. Where cfg does not
// say otherwise no sweep comes, and a watch is not closed because the machine is slow.
func openTest(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Prefix == "" {
		cfg.Prefix = "/" + rand.Text() + "/"
	}
	cfg.SweepInterval, cfg.stale = cmp.Or(cfg.SweepInterval, time.Hour), cmp.Or(cfg.stale, time.Hour)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustTxn(t testing.TB, s *Store, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Txn(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func op(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

// TestPrefixes has several stores in one etcd, one prefix within another.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t)
	prefixes := []string{"/a/", "/a/b/", "/ab/"}
	var stores []*Store
	for _, p := range prefixes {
		stores = append(stores, openTest(t, Config{Endpoints: []string{e.Endpoint}, Prefix: p}))
	}
	for i, s := range stores {
		mustTxn(t, s, op("k/1", prefixes[i]), op("k/2", prefixes[i]))
	}
	mustTxn(t, stores[1], store.Op{Key: "k/2", Delete: true})
	for i, s := range stores {
		var got []string
		rev, err := s.Dump(t.Context(), func(e store.Entry) error {
			got = append(got, e.Key+"="+string(e.Value))
			return nil
		})
		want := []string{"k/1=" + prefixes[i], "k/2=" + prefixes[i]}
		if i == 1 {
			want = want[:1]
		}
		if err != nil || rev == 0 || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", prefixes[i], got, err)
		}
	}
}

// TestManyConditions has more conditions than fit into one request with the times
// that their entries expire at.
func TestManyConditions(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, Now: func() time.Time { return now }})
	var ops []store.Op
	var conds []store.Cond
	for i := range store.MaxOps {
		ops = append(ops, store.Op{Key: fmt.Sprintf("a/%d", i), Expires: now.Add(time.Hour)})
		conds = append(conds, store.Cond{Key: ops[i].Key})
	}
	write := func(want error) int64 {
		t.Helper()
		rev, err := s.Txn(t.Context(), conds, ops)
		if !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
		return rev
	}
	first := write(nil)
	write(store.ErrConflict) // they are there now
	for i := range conds {
		conds[i].Revision = first
	}
	second := write(nil)
	write(store.ErrConflict) // they are at second
	for i := range conds {
		conds[i].Revision = second
	}
	now = now.Add(2 * time.Hour)
	write(store.ErrConflict) // they have expired
	for i := range conds {
		conds[i].Revision = 0
	}
	write(nil)
}

// TestExpiresInFlight lets entries expire that conditions of one request are on.
func TestExpiresInFlight(t *testing.T) {
	t.Parallel()
	now := time.UnixMicro(1_000_000)
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, Now: func() time.Time { return now }})
	rev := mustTxn(t, s, store.Op{Key: "a/1", Expires: time.UnixMicro(2_000_000)}, store.Op{Key: "a/2", Value: []byte("x"), Expires: time.UnixMicro(2_000_000)})
	for _, c := range []struct {
		now   int64
		cond  int64
		holds bool
	}{{1_999_999, rev, true}, {1_999_999, 0, false}, {2_000_000, rev, false}, {2_000_000, 0, true}, {2_000_001, 0, true}} {
		now = time.UnixMicro(c.now)
		for _, key := range []string{"a/1", "a/2"} {
			if _, err := s.Txn(t.Context(), []store.Cond{{Key: key, Revision: c.cond}}, nil); (err == nil) != c.holds {
				t.Errorf("%s at %d, condition %d: %v", key, c.now, c.cond, err)
			}
		}
	}
}

// TestStrangers puts what is no record of ours under the prefix.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, SweepInterval: time.Hour})
	for _, c := range []struct {
		value string
		want  error
		says  string
	}{
		{"", nil, "change store.etcd.prefix"},
		{"short", nil, "no record of Tabard"},
		{string(append(bytes.Repeat([]byte{255}, 8), 2)) + "x", store.ErrNewer, "run that version"},
	} {
		if _, err := s.client.Put(t.Context(), s.base+"a/1", c.value); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(t.Context(), "a/1")
		_, _, listErr := s.List(t.Context(), "", "", 10)
		for _, err := range []error{err, listErr} {
			if err == nil || !strings.Contains(err.Error(), c.says) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%q: %v, want %q", c.value, err, c.says)
			}
		}
	}
	ch, err := s.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range ch { // is closed
	}
}

// TestSlowReader has a reader that takes nothing: it costs the others nothing, and its
// channel is closed; what it was told has no gaps.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, RetainEvents: 10, stale: staleAfter})
	rev := mustTxn(t, s, op("a/x", ""))
	slow, err := s.Watch(t.Context(), "a/", rev)
	if err != nil {
		t.Fatal(err)
	}
	fast, err := s.Watch(t.Context(), "a/", rev)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for i := range 100 {
		last = mustTxn(t, s, op(fmt.Sprintf("a/%d", i), strings.Repeat("x", 300)))
		for b := range fast {
			if b.Revision >= last {
				break
			}
		}
	}
	for until := time.Now().Add(staleAfter + 2*time.Second); time.Now().Before(until); { // the slow one reads nothing
		<-fast
	}
	told := rev
	for b := range slow {
		for _, e := range b.Events {
			if told++; e.Revision != told {
				t.Fatalf("event at revision %d, want %d", e.Revision, told)
			}
		}
	}
	if told == last {
		t.Fatal("the slow reader got everything; it should have been cut off")
	}
}

// TestFarBehind watches from before more than fits into one answer of etcd's or into
// one batch.
func TestFarBehind(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, RetainEvents: 500})
	var last int64
	const txns = 40
	for i := range txns {
		var ops []store.Op
		for j := range store.MaxOps {
			ops = append(ops, op(fmt.Sprintf("a/%d.%d", i, j), strings.Repeat("x", 5_000)))
		}
		last = mustTxn(t, s, ops...)
	}
	ch, err := s.Watch(t.Context(), "a/", 0)
	if err != nil {
		t.Fatal(err)
	}
	events := map[int64]int{}
	for b := (store.Batch{}); b.Revision < last; {
		b = <-ch
		if len(b.Events) > batchEvents+store.MaxOps {
			t.Fatalf("%d events at once", len(b.Events))
		}
		for _, e := range b.Events {
			events[e.Revision]++
		}
		if n := events[b.Revision]; n != store.MaxOps {
			t.Fatalf("%d events of revision %d, which ends a batch", n, b.Revision)
		}
	}
	if len(events) != txns {
		t.Fatalf("%d revisions", len(events))
	}
}

// TestLargePages lists and dumps more than one answer may hold.
func TestLargePages(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}})
	const n = 100
	for i := range n {
		mustTxn(t, s, op(fmt.Sprintf("a/%02d", i), strings.Repeat("x", 900_000)))
	}
	entries, _, err := s.List(t.Context(), "a/", "", store.MaxList)
	if err != nil || len(entries) != n {
		t.Fatal(len(entries), err)
	}
	dumped := 0
	if _, err := s.Dump(t.Context(), func(e store.Entry) error {
		if e.Key != entries[dumped].Key || len(e.Value) != 900_000 {
			t.Fatal(e.Key)
		}
		dumped++
		return nil
	}); err != nil || dumped != n {
		t.Fatal(dumped, err)
	}
}

// TestCompacted compacts away what a reader wants to go on from, and what a live watch
// has had.
func TestCompacted(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}})
	first := mustTxn(t, s, op("a/1", ""))
	live, err := s.Watch(t.Context(), "a/", first)
	if err != nil {
		t.Fatal(err)
	}
	seen := mustTxn(t, s, op("a/1", ""))
	for b := range live {
		if b.Revision >= seen {
			break
		}
	}
	mustTxn(t, s, op("a/1", ""))
	last := mustTxn(t, s, op("a/1", ""))
	if _, err := s.client.Compact(t.Context(), last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int64{0, first, last - 1, last + 1_000} {
		if _, err := s.Watch(t.Context(), "a/", after); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch after %d: %v", after, err)
		}
	}
	last = mustTxn(t, s, op("a/1", ""))
	for reached := int64(0); reached < last; {
		b, open := <-live
		if !open {
			t.Fatal("the live watch ended")
		}
		reached = b.Revision
	}
}

// TestSetBack has etcd at a lower revision than before, as after its restore: what
// is watched has to be read anew.
func TestSetBack(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}})
	rev := mustTxn(t, s, op("a/1", ""))
	ch, err := s.Watch(t.Context(), "a/", rev)
	if err != nil {
		t.Fatal(err)
	}
	s.saw(rev + 1_000) // in another life
	for range ch {     // is closed
	}
	if again, err := s.Watch(t.Context(), "a/", rev); err != nil {
		t.Fatal(err)
	} else if b := <-again; b.Revision != rev {
		t.Fatal(b)
	}
}

// TestSweepByOne has two nodes of which one holds the lease.
func TestSweepByOne(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t)
	cfg := Config{Endpoints: []string{e.Endpoint}, Prefix: "/shared/", SweepInterval: time.Hour}
	a, b := openTest(t, cfg), openTest(t, cfg)
	left := func() int64 {
		resp, err := a.client.Get(t.Context(), a.base, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	const n = 2*store.MaxOps + 7
	fill := func() {
		for i := range n {
			mustTxn(t, a, store.Op{Key: fmt.Sprintf("a/%d", i), Expires: time.Now().Add(-time.Second)})
		}
	}
	fill()
	mustTxn(t, a, op("a/stays", ""))
	if err := a.sweep(t.Context(), "a"); err != nil || left() != 1 {
		t.Fatalf("%d are left, %v", left(), err)
	}
	fill()
	if err := b.sweep(t.Context(), "b"); err != nil || left() != n+1 {
		t.Fatalf("b does what a does: %d are left, %v", left(), err)
	}
	if err := a.sweep(t.Context(), "a"); err != nil || left() != 1 {
		t.Fatalf("%d are left, %v", left(), err)
	}
}

// TestSweepLooksAgain renews an entry between the sweep's reading and its delete.
func TestSweepLooksAgain(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}, SweepInterval: time.Hour})
	expired := mustTxn(t, s, store.Op{Key: "a/1", Expires: time.UnixMicro(1)}, store.Op{Key: "a/2", Expires: time.UnixMicro(1)})
	mustTxn(t, s, op("a/1", "renewed"))
	if err := s.remove(t.Context(), "me", []store.Entry{{Key: "a/1", Revision: expired}, {Key: "a/2", Revision: expired}}); err != nil {
		t.Fatal(err)
	}
	entries, _, err := s.List(t.Context(), "", "", 10)
	if err != nil || len(entries) != 1 || string(entries[0].Value) != "renewed" {
		t.Fatal(entries, err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("x"), int64(5), int64(4))
	f.Add([]byte{}, int64(0), int64(0))
	f.Add([]byte{0xff}, int64(-1), int64(1<<62))
	f.Fuzz(func(t *testing.T, value []byte, expires, at int64) {
		at = max(at, 0) % (1 << 60)
		when := time.UnixMicro(expires % (1 << 60)).UTC()
		record := encode(value, when)
		e, err := decode("/p/", &mvccpb.KeyValue{Key: []byte("/p/a/1"), Value: record, ModRevision: 7})
		if err != nil || e.Key != "a/1" || e.Revision != 7 || !bytes.Equal(e.Value, value) {
			t.Fatal(e, err)
		}
		if !e.Expires.Equal(when) && when.UnixMicro() > 0 {
			t.Fatal(e.Expires, when)
		}
		// What etcd finds by comparing bytes is what Get finds by comparing times.
		now := time.UnixMicro(at)
		if bytes.Compare(record, bound(now)) > 0 != live(e, now) {
			t.Fatalf("expires %v, now %v: bytes and times differ", e.Expires, now)
		}
		if !live(store.Entry{}, now) || bytes.Compare(encode(value, time.Time{}), bound(now)) <= 0 {
			t.Fatal("what never expires has expired")
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(encode([]byte("x"), time.Now()))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, record []byte) {
		e, err := decode("", &mvccpb.KeyValue{Key: []byte("a/1"), Value: record})
		if err == nil && len(e.Value) != len(record)-headerSize {
			t.Fatal(e)
		}
	})
}
