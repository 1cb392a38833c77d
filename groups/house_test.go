package groups

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testenv.Main{M: m}) }

var (
	admin    = Actor{Sub: "corp.1", Name: "carol", Groups: []string{"corp:staff", "corp:admins"}}
	stranger = Actor{Sub: "corp.2", Name: "mallory", Groups: []string{"corp:staff", "corp:admins2", "admins"}}
	errDisk  = errors.New("disk on fire")
)

// house is a Service on a real store and a real trail, each behind something that
// can make it fail.
type house struct {
	*Service
	t      testing.TB
	bolt   *bolt.Store
	faults *storetest.Faulty // over bolt
	tap    *tap              // over faults; what the Service sees
	trail  *trail
	cfg    Config
}

func newHouse(t testing.TB, cfg bolt.Config) *house {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "tabard.db")
	}
	st, err := bolt.Open(cfg)
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	dir := filepath.Join(t.TempDir(), "audit")
	log, err := audit.Open(audit.Config{Dir: dir})
	must(t, err)
	t.Cleanup(func() { _ = log.Close() })
	h := &house{t: t, bolt: st, faults: storetest.NewFaulty(st), trail: &trail{log: log, dir: dir}}
	h.cfg = Config{Admins: []string{"corp:admins", "operators"}, Reserved: []string{"corp:", "lab-"}, Clusters: []string{"prod", "test"}}
	h.tap = newTap(h.faults)
	h.Service = h.open(h.tap)
	return h
}

// open opens one more Service, as another node.
func (h *house) open(st store.Store) *Service {
	h.t.Helper()
	log := logrus.New()
	log.SetOutput(h.t.Output())
	s, err := Open(h.t.Context(), st, h.trail, h.cfg, log)
	must(h.t, err)
	h.t.Cleanup(s.Close)
	return s
}

// group creates a group with members.
func (h *house) group(name string, members ...Member) Group {
	h.t.Helper()
	return h.make(Settings{Name: name}, members...)
}

func (h *house) make(set Settings, members ...Member) Group {
	h.t.Helper()
	g, err := h.Create(h.t.Context(), admin, set)
	must(h.t, err)
	for _, m := range members {
		g = h.add(set.Name, m)
	}
	return g
}

func (h *house) add(name string, m Member) Group {
	h.t.Helper()
	g, err := h.Add(h.t.Context(), admin, name, 0, m)
	must(h.t, err)
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func person(id string) Member {
	return Member{Ref: Ref{KindPerson, "corp." + id, "name of " + id}}
}

func directoryGroup(name string) Member {
	return Member{Ref: Ref{KindDirectoryGroup, name, name}}
}

func local(name string) Member { return Member{Ref: Ref{Kind: KindGroup, Name: name}} }

// inStore returns what the store holds of groups: keys and values.
func (h *house) inStore() map[string]string {
	h.t.Helper()
	entries, _, err := h.bolt.List(context.WithoutCancel(h.t.Context()), keyPrefix, "", store.MaxList)
	must(h.t, err)
	out := map[string]string{}
	for _, e := range entries {
		out[e.Key] = string(e.Value)
	}
	return out
}

// eventually waits until ok, which nothing but a bug keeps from coming.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

// trail is an audit.Log whose Append fails when a hook says so.
type trail struct {
	log  *audit.Log
	dir  string
	mu   sync.Mutex
	fail func(audit.Event) error
}

func (l *trail) Append(ctx context.Context, e audit.Event) error {
	l.mu.Lock()
	fail := l.fail
	l.mu.Unlock()
	if fail != nil {
		if err := fail(e); err != nil {
			return err
		}
	}
	return l.log.Append(ctx, e)
}

// AppendAll asks about each event, and writes all or none.
func (l *trail) AppendAll(ctx context.Context, events []audit.Event) error {
	l.mu.Lock()
	fail := l.fail
	l.mu.Unlock()
	for _, e := range events {
		if fail == nil {
			break
		}
		if err := fail(e); err != nil {
			return err
		}
	}
	return l.log.AppendAll(ctx, events)
}

func (l *trail) setFail(fail func(audit.Event) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = fail
}

// records closes the trail and returns what is in its files, once the chain holds.
func (h *house) records() []audit.Event {
	h.t.Helper()
	must(h.t, h.trail.log.Close())
	_, err := audit.Verify(h.trail.dir)
	must(h.t, err)
	files, err := filepath.Glob(filepath.Join(h.trail.dir, "*.jsonl"))
	must(h.t, err)
	var out []audit.Event
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(h.t, err)
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			var e audit.Event
			must(h.t, json.Unmarshal(lines.Bytes(), &e))
			if e.Act != "audit.checkpoint" { // which the trail writes for itself
				out = append(out, e)
			}
		}
	}
	return out
}

// tap is a store whose watches can be held back or broken, and whose List can fail.
type tap struct {
	store.Store

	mu     sync.Mutex
	gate   chan struct{} // closed: batches pass
	broken chan struct{} // closed: watches end
	list   error         // what List fails with
}

func newTap(s store.Store) *tap {
	open := make(chan struct{})
	close(open)
	return &tap{Store: s, gate: open, broken: make(chan struct{})}
}

// hold keeps batches back until the function it returns is called.
func (w *tap) hold() (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate := make(chan struct{})
	w.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

// cut ends all watches.
func (w *tap) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.broken)
	w.broken = make(chan struct{})
}

func (w *tap) failList(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = err
}

func (w *tap) List(ctx context.Context, prefix, from string, limit int) ([]store.Entry, int64, error) {
	w.mu.Lock()
	err := w.list
	w.mu.Unlock()
	if err != nil {
		return nil, 0, err
	}
	return w.Store.List(ctx, prefix, from, limit)
}

func (w *tap) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	ctx, cancel := context.WithCancel(ctx)
	in, err := w.Store.Watch(ctx, prefix, after)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		cancel()
		return nil, err
	}
	out := make(chan store.Batch)
	go func(broken <-chan struct{}) {
		defer cancel()
		defer close(out)
		w.forward(ctx, in, out, broken)
	}(w.broken)
	return out, nil
}

func (w *tap) forward(ctx context.Context, in <-chan store.Batch, out chan<- store.Batch, broken <-chan struct{}) {
	for {
		select {
		case b, open := <-in:
			if !open {
				return
			}
			w.mu.Lock()
			gate := w.gate
			w.mu.Unlock()
			select {
			case <-gate:
			case <-broken:
				return
			case <-ctx.Done():
				return
			}
			select {
			case out <- b:
			case <-broken:
				return
			case <-ctx.Done():
				return
			}
		case <-broken:
			return
		}
	}
}
