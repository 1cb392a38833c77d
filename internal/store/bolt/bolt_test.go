package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("TABARD_BOLT_CHILD"); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(testenv.Main{M: m})
}

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openTest(t, Config{SweepInterval: 50 * time.Millisecond})
	})
}

// openTest opens cfg, in a folder of its own where it names none.
func openTest(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "tabard.db")
	}
	s, err := Open(cfg)
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

func mustClose(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReopen(t *testing.T) {
	s := openTest(t, Config{})
	expires := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	mustTxn(t, s, op("a/1", "x"))
	rev := mustTxn(t, s, store.Op{Key: "a/2", Value: []byte("y"), Expires: expires})
	mustClose(t, s)
	if info, err := os.Stat(s.cfg.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}

	s = openTest(t, s.cfg)
	e, err := s.Get(t.Context(), "a/2")
	if err != nil || string(e.Value) != "y" || e.Revision != rev || !e.Expires.Equal(expires) {
		t.Fatal(e, err)
	}
	if _, err := s.Watch(t.Context(), "", rev-1); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch from before the start: %v", err)
	}
	if _, err := s.Watch(t.Context(), "", rev); err != nil {
		t.Fatal(err)
	}
	if next := mustTxn(t, s, op("a/1", "z")); next != rev+1 {
		t.Fatalf("revision %d after %d", next, rev)
	}
}

func TestDump(t *testing.T) {
	s := openTest(t, Config{})
	for i := range 300 {
		mustTxn(t, s, op(fmt.Sprintf("a/%03d", i), strings.Repeat("x", 500)))
	}
	// The store changes while it is read; what is read is of one moment.
	var got []store.Entry
	rev, err := s.Dump(t.Context(), func(e store.Entry) error {
		mustTxn(t, s, op("a/000", "later"), op("b/later", ""))
		got = append(got, e)
		return nil
	})
	if err != nil || len(got) != 300 || rev != 300 || got[0].Revision != 1 || len(got[0].Value) != 500 {
		t.Fatalf("%d entries at %d, %v", len(got), rev, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Dump(ctx, func(store.Entry) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("dump after cancel: %v", err)
	}
}

// TestSlowReader has a reader that takes nothing: it must cost the others nothing,
// and find its channel closed, after batches without a gap.
func TestSlowReader(t *testing.T) {
	for name, cfg := range map[string]Config{"by count": {RetainEvents: 10}, "by bytes": {RetainBytes: 4_000}} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, cfg)
			slow, err := s.Watch(t.Context(), "a/", 0)
			if err != nil {
				t.Fatal(err)
			}
			var last int64
			for i := range 100 {
				last = mustTxn(t, s, op(fmt.Sprintf("a/%d", i), strings.Repeat("x", 300)))
			}
			var told int64
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
			if _, err := s.Watch(t.Context(), "a/", told); !errors.Is(err, store.ErrCompacted) {
				t.Fatalf("resuming too late: %v", err)
			}
			if s.hub.events > 13 || len(s.hub.retained) > 13 {
				t.Fatalf("%d events are retained", s.hub.events)
			}
		})
	}
}

// TestFarBehind watches from before more events than one Batch holds.
func TestFarBehind(t *testing.T) {
	s := openTest(t, Config{})
	for i := range 35 {
		var ops []store.Op
		for j := range store.MaxOps {
			ops = append(ops, op(fmt.Sprintf("a/%d.%d", i, j), ""))
		}
		mustTxn(t, s, ops...)
	}
	ch, err := s.Watch(t.Context(), "a/", 0)
	if err != nil {
		t.Fatal(err)
	}
	events := 0
	for b := (store.Batch{}); b.Revision < 35; {
		b = <-ch
		if events += len(b.Events); int64(events) != b.Revision*store.MaxOps || len(b.Events) > 1_100 {
			t.Fatalf("%d events, now %d at revision %d", len(b.Events), events, b.Revision)
		}
	}
}

// gate stops each commit until the test lets it through.
type gate struct{ arrived, let chan struct{} }

func gated(s *Store) gate {
	g := gate{make(chan struct{}), make(chan struct{})}
	s.commit = func(tx *bbolt.Tx) error {
		g.arrived <- struct{}{}
		<-g.let
		return tx.Commit()
	}
	return g
}

// start starts a Txn.
func start(ctx context.Context, s *Store, conds []store.Cond, ops ...store.Op) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		rev, err := s.Txn(ctx, conds, ops)
		out <- answer{rev, err}
	}()
	return out
}

// queued waits until n Txns wait for the committer.
func queued(s *Store, n int) {
	for len(s.queue) < n {
		time.Sleep(time.Millisecond)
	}
}

// TestGroup holds a commit back so that five Txns become one group, and checks
// that each sees those before it and fails alone.
func TestGroup(t *testing.T) {
	s := openTest(t, Config{})
	g := gated(s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := start(t.Context(), s, nil, op("a/0", ""))
	<-g.arrived
	absent := []store.Cond{{Key: "a/1"}}
	var results []<-chan answer
	for i, begin := range []func() <-chan answer{
		func() <-chan answer { return start(t.Context(), s, absent, op("a/1", "first")) },
		func() <-chan answer { return start(t.Context(), s, absent, op("a/1", "second"), op("a/2", "second")) },
		func() <-chan answer { return start(ctx, s, nil, op("a/3", "withdrawn")) },
		func() <-chan answer {
			return start(t.Context(), s, []store.Cond{{Key: "a/1", Revision: 2}}, op("a/4", "sees the first"))
		},
		func() <-chan answer { return start(t.Context(), s, nil) },
	} {
		results = append(results, begin())
		queued(s, i+1)
	}
	cancel()
	withdrawn := <-results[2]
	g.let <- struct{}{}
	if a := <-first; a.err != nil || a.revision != 1 {
		t.Fatal(a)
	}
	<-g.arrived
	g.let <- struct{}{}
	for i, want := range []answer{{2, nil}, {0, store.ErrConflict}, {0, context.Canceled}, {3, nil}, {3, nil}} {
		got := withdrawn
		if i != 2 {
			got = <-results[i]
		}
		if got.revision != want.revision || !errors.Is(got.err, want.err) || errors.Is(got.err, store.ErrUnknown) {
			t.Errorf("Txn %d: revision %d, %v; want %d, %v", i, got.revision, got.err, want.revision, want.err)
		}
	}
	entries, _, err := s.List(t.Context(), "a/", "", 10)
	if err != nil || len(entries) != 3 || string(entries[1].Value) != "first" || entries[2].Key != "a/4" {
		t.Fatalf("%+v, %v", entries, err)
	}
}

// TestUnknown ends a context while its Txn is being written.
func TestUnknown(t *testing.T) {
	s := openTest(t, Config{})
	g := gated(s)
	ctx, cancel := context.WithCancel(t.Context())
	writing := start(ctx, s, nil, op("a/1", "x"))
	<-g.arrived
	cancel()
	if a := <-writing; !errors.Is(a.err, store.ErrUnknown) || !errors.Is(a.err, context.Canceled) {
		t.Fatal(a)
	}
	g.let <- struct{}{}
	go func() { <-g.arrived; g.let <- struct{}{} }()
	mustTxn(t, s, op("a/2", ""))
	if _, err := s.Get(t.Context(), "a/1"); err != nil {
		t.Fatal("the Txn went on and is there:", err)
	}
}

// TestCloseWaits closes while one Txn is being written and another is queued.
func TestCloseWaits(t *testing.T) {
	s := openTest(t, Config{})
	g := gated(s)
	writing := start(t.Context(), s, nil, op("a/1", ""))
	<-g.arrived
	behind := start(t.Context(), s, nil, op("a/2", ""))
	queued(s, 1)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-s.hub.done
	g.let <- struct{}{}
	if a := <-writing; a.err != nil || a.revision != 1 {
		t.Fatal(a)
	}
	// The committer may still take the other one, or not; the answer must be true.
	over := make(chan struct{})
	var helper sync.WaitGroup
	helper.Go(func() {
		select {
		case <-g.arrived:
			g.let <- struct{}{}
		case <-over:
		}
	})
	a := <-behind
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	close(over)
	helper.Wait()
	_, err := openTest(t, Config{Path: s.cfg.Path}).Get(t.Context(), "a/2")
	if wrote := a.err == nil; wrote != (err == nil) || !wrote && !errors.Is(a.err, store.ErrClosed) {
		t.Fatalf("answered %v, read %v", a.err, err)
	}
}

// TestCommitFails checks both ways a commit can fail: before the new root is
// written, when nothing has happened and the store goes on; and after, when
// nothing can be believed until the file is opened again.
func TestCommitFails(t *testing.T) {
	broken := errors.New("broken disk")
	t.Run("before the root", func(t *testing.T) {
		s := openTest(t, Config{})
		rev := mustTxn(t, s, op("a/1", "x"))
		var fail atomic.Bool
		fail.Store(true)
		s.commit = func(tx *bbolt.Tx) error {
			if fail.Swap(false) {
				return errors.Join(broken, tx.Rollback())
			}
			return tx.Commit()
		}
		_, err := s.Txn(t.Context(), nil, []store.Op{op("a/1", "y")})
		if !errors.Is(err, broken) || errors.Is(err, store.ErrUnknown) {
			t.Fatal(err)
		}
		if next := mustTxn(t, s, op("a/2", "")); next != rev+1 {
			t.Fatalf("revision %d after %d", next, rev)
		}
	})
	t.Run("after the root", func(t *testing.T) {
		s := openTest(t, Config{})
		ch, err := s.Watch(t.Context(), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		s.commit = func(tx *bbolt.Tx) error { return errors.Join(tx.Commit(), broken) }
		for range 2 {
			if _, err := s.Txn(t.Context(), nil, []store.Op{op("a/1", "y")}); !errors.Is(err, store.ErrUnknown) || !errors.Is(err, broken) {
				t.Fatal(err)
			}
		}
		for b := range ch {
			if len(b.Events) > 0 {
				t.Fatalf("told of %v, which may not have happened", b.Events)
			}
		}
		_, getErr := s.Get(t.Context(), "a/1")
		_, watchErr := s.Watch(t.Context(), "", 0)
		if !errors.Is(getErr, broken) || !errors.Is(watchErr, broken) {
			t.Fatal(getErr, watchErr)
		}
		mustClose(t, s)
		openTest(t, Config{Path: s.cfg.Path})
	})
	t.Run("by a panic", func(t *testing.T) {
		s := openTest(t, Config{})
		s.commit = func(*bbolt.Tx) error { panic("page 7: what?") }
		if _, err := s.Txn(t.Context(), nil, []store.Op{op("a/1", "")}); !errors.Is(err, errDamaged) {
			t.Fatal(err)
		}
		mustClose(t, s)
	})
}

// TestDiskFull makes real commits fail, with the file size limit of this process
// in the full disk's place.
func TestDiskFull(t *testing.T) {
	s := openTest(t, Config{})
	rev := mustTxn(t, s, op("a/1", "x"))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint64{0, 2 * 4096, 6 * 4096, 100_000} {
		limit := old
		limit.Cur = size
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
		_, err := s.Txn(t.Context(), nil, []store.Op{op("a/1", "lost"), op("a/big", strings.Repeat("x", 900_000))})
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, syscall.EFBIG) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "check the disk") {
			t.Fatalf("at %d bytes: %v", size, err)
		}
		if e, err := s.Get(t.Context(), "a/1"); err != nil || string(e.Value) != "x" || e.Revision != rev {
			t.Fatalf("at %d bytes: %+v, %v", size, e, err)
		}
		next := mustTxn(t, s, op("a/1", "x"), op("a/2", strings.Repeat("y", 900_000)))
		if next != rev+1 {
			t.Fatalf("revision %d after %d", next, rev)
		}
		rev = next
	}
	mustClose(t, s)
	openTest(t, Config{Path: s.cfg.Path})
}

// clock is a time that tests move.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time { return time.UnixMicro(c.now.Load()) }

// TestSweepLooksAgain renews an entry between the sweep's reading and its delete.
func TestSweepLooksAgain(t *testing.T) {
	c := &clock{}
	c.now.Store(1_000_000)
	s := openTest(t, Config{Now: c.Now})
	expires := time.UnixMicro(2_000_000)
	mustTxn(t, s, store.Op{Key: "a/1", Expires: expires}, store.Op{Key: "a/2", Expires: expires}, op("a/3", ""))
	if _, err := s.Get(t.Context(), "a/1"); err != nil {
		t.Fatal("not expired yet:", err)
	}
	c.now.Store(2_000_000)
	keys, next, err := s.expired(t.Context(), "")
	if err != nil || len(keys) != 2 || next != "" {
		t.Fatal(keys, next, err)
	}
	rev := mustTxn(t, s, op("a/1", "renewed"))
	r := newRequest(nil, 2)
	r.sweep = true
	for _, k := range keys {
		r.add(change{key: k})
	}
	if got, err := s.submit(t.Context(), r); err != nil || got != rev+1 {
		t.Fatal(got, err)
	}
	entries, _, err := s.List(t.Context(), "", "", 10)
	if err != nil || len(entries) != 2 || entries[0].Key != "a/1" {
		t.Fatal(entries, err)
	}
	ch, err := s.Watch(t.Context(), "", rev)
	if err != nil {
		t.Fatal(err)
	}
	if b := <-ch; len(b.Events) != 1 || b.Events[0].Key != "a/2" || !b.Events[0].Delete {
		t.Fatal(b)
	}
}

// TestSweepMany has more to delete than one Txn of the sweep takes.
func TestSweepMany(t *testing.T) {
	c := &clock{}
	s := openTest(t, Config{Now: c.Now})
	const n = 2*sweepKeys + 7
	for i := 0; i < n; i += store.MaxOps {
		var ops []store.Op
		for j := i; j < min(i+store.MaxOps, n); j++ {
			ops = append(ops, store.Op{Key: fmt.Sprintf("a/%05d", j), Expires: time.UnixMicro(5)}, op(fmt.Sprintf("b/%05d", j), ""))
		}
		mustTxn(t, s, ops[:len(ops)/2]...)
		mustTxn(t, s, ops[len(ops)/2:]...)
	}
	c.now.Store(5)
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := s.view(t.Context(), func(tx *bbolt.Tx) error {
		k, _ := tx.Bucket(recordsBucket).Cursor().First()
		if !bytes.HasPrefix(k, []byte("b/")) {
			t.Errorf("%q is left", k)
		}
		return nil
	})
	if left, _, _ := s.List(t.Context(), "b/", "", store.MaxList); err != nil || len(left) != n {
		t.Fatalf("%d are left of what never expires, %v", len(left), err)
	}
}

func BenchmarkTxn(b *testing.B) {
	s := openTest(b, Config{})
	value := bytes.Repeat([]byte("x"), 400)
	for i := 0; b.Loop(); i++ {
		mustTxn(b, s, store.Op{Key: fmt.Sprintf("s/%06d", i%50_000), Value: value})
	}
}

// BenchmarkTxnParallel writes 400-byte values from 64 goroutines, each on a
// condition, as refreshes do.
func BenchmarkTxnParallel(b *testing.B) {
	s := openTest(b, Config{})
	value := bytes.Repeat([]byte("x"), 400)
	var n atomic.Int64
	var wg sync.WaitGroup
	cpu := cpuTime()
	for w := range 64 {
		wg.Go(func() {
			rev := int64(0)
			key := fmt.Sprintf("s/%02d", w)
			for n.Add(1) <= int64(b.N) {
				var err error
				rev, err = s.Txn(b.Context(), []store.Cond{{Key: key, Revision: rev}}, []store.Op{{Key: key, Value: value}})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
	b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what this process has used so far, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkGet(b *testing.B) {
	s := openTest(b, Config{})
	for i := range 10_000 / store.MaxOps {
		var ops []store.Op
		for j := range store.MaxOps {
			ops = append(ops, op(fmt.Sprintf("s/%06d", i*store.MaxOps+j), strings.Repeat("x", 400)))
		}
		mustTxn(b, s, ops...)
	}
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := s.Get(b.Context(), fmt.Sprintf("s/%06d", i%10_000)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
