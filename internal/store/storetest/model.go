package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/internal/store"
)

// model is what the contract says a store is: a map, and the story of its changes.
// Each run has a kind of its own, so that one store serves them all.
type model struct {
	s      store.Store
	kind   string
	live   map[string]store.Entry
	told   []string // the events expected of a watch, but those of expired keys
	last   int64
	expiry time.Time
}

// testModel does random things to the store and to a model of it, and compares.
func testModel(t *testing.T, s store.Store) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		_, rev, err := s.List(t.Context(), "", "", 1)
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{s: s, kind: fmt.Sprintf("model%d/", run), live: map[string]store.Entry{}, last: rev, expiry: time.Now().Add(time.Hour).Truncate(time.Microsecond).UTC()}
		rt.Repeat(map[string]func(*rapid.T){
			"txn":  func(rt *rapid.T) { m.txn(t, rt) },
			"get":  func(rt *rapid.T) { m.get(t, rt) },
			"list": func(rt *rapid.T) { m.list(t, rt) },
		})
		m.watched(t, rt, rev)
	})
}

func (m *model) key(rt *rapid.T) string {
	return m.kind + rapid.SampledFrom([]string{"a", "b", "b\x00", "bb", "c", "c/d", "\xff", "é"}).Draw(rt, "key")
}

func (m *model) txn(t *testing.T, rt *rapid.T) {
	var conds []store.Cond
	holds := true
	seen := map[string]bool{}
	for range rapid.IntRange(0, 2).Draw(rt, "conditions") {
		key := m.key(rt)
		if seen[key] {
			continue
		}
		seen[key] = true
		c := store.Cond{Key: key, Revision: m.live[key].Revision}
		if rapid.IntRange(0, 3).Draw(rt, "wrong") == 0 {
			c.Revision = rapid.Int64Range(0, m.last+1).Draw(rt, "revision")
		}
		holds = holds && c.Revision == m.live[key].Revision
		conds = append(conds, c)
	}
	ops := m.ops(rt)
	rev, err := m.s.Txn(t.Context(), conds, ops)
	switch {
	case !holds && !errors.Is(err, store.ErrConflict):
		rt.Fatalf("Txn(%v): %v, want a conflict", conds, err)
	case holds && err != nil:
		rt.Fatalf("Txn(%v): %v", conds, err)
	case holds:
		m.apply(rt, ops, rev)
	}
}

func (m *model) ops(rt *rapid.T) []store.Op {
	byKey := map[string]store.Op{}
	for range rapid.IntRange(0, 3).Draw(rt, "changes") {
		op := store.Op{Key: m.key(rt), Value: []byte(rapid.StringN(0, 8, 20).Draw(rt, "value"))}
		switch rapid.IntRange(0, 4).Draw(rt, "how") {
		case 0, 1:
			op.Delete = true
		case 2:
			op.Expires = m.expiry
		case 3:
			op.Expires = m.expiry.Add(-2 * time.Hour) // expired as it is written
		}
		byKey[op.Key] = op
	}
	ops := make([]store.Op, 0, len(byKey))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		ops = append(ops, byKey[key])
	}
	return ops
}

func (m *model) apply(rt *rapid.T, ops []store.Op, rev int64) {
	if rev < m.last {
		rt.Fatalf("revision %d after %d", rev, m.last)
	}
	for _, op := range ops {
		e := store.Entry{Key: op.Key, Value: op.Value, Revision: rev, Expires: op.Expires}
		_, was := m.live[op.Key]
		switch {
		case op.Delete && was:
			m.told = append(m.told, tell(store.Event{Entry: e, Delete: true}))
			delete(m.live, op.Key)
		case op.Delete:
		case op.Expires.Before(m.expiry) && !op.Expires.IsZero():
			delete(m.live, op.Key)
			m.told = append(m.told, tell(store.Event{Entry: e}))
		default:
			m.live[op.Key] = e
			m.told = append(m.told, tell(store.Event{Entry: e}))
		}
		m.last = max(m.last, rev)
	}
}

func (m *model) get(t *testing.T, rt *rapid.T) {
	key := m.key(rt)
	e, err := m.s.Get(t.Context(), key)
	want, ok := m.live[key]
	if !ok && errors.Is(err, store.ErrNotFound) {
		return
	}
	if err != nil || !ok || !same(e, want) {
		rt.Fatalf("Get(%q) = %+v, %v; want %+v", key, e, err, want)
	}
}

func (m *model) list(t *testing.T, rt *rapid.T) {
	from := rapid.SampledFrom([]string{"", m.kind, m.kind + "b", m.kind + "bc", m.kind + "\xff"}).Draw(rt, "from")
	prefix := m.kind + rapid.SampledFrom([]string{"", "b", "c", "z"}).Draw(rt, "prefix")
	limit := rapid.IntRange(1, 9).Draw(rt, "limit")
	got, rev, err := m.s.List(t.Context(), prefix, from, limit)
	if err != nil || rev < m.last {
		rt.Fatalf("List: revision %d after %d, %v", rev, m.last, err)
	}
	var want []store.Entry
	for _, key := range slices.Sorted(maps.Keys(m.live)) {
		if strings.HasPrefix(key, prefix) && key >= from && len(want) < limit {
			want = append(want, m.live[key])
		}
	}
	if !slices.EqualFunc(got, want, same) {
		rt.Fatalf("List(%q, %q, %d) = %+v, want %+v", prefix, from, limit, got, want)
	}
}

// watched compares what a watch tells of the run with what was done, but for the
// deletes of expired entries, which come when the sweep or a Txn gets to them.
func (m *model) watched(t *testing.T, rt *rapid.T, after int64) {
	if len(m.told) == 0 {
		return
	}
	ch := watch(t, m.s, m.kind, after)
	want := map[string]bool{}
	for _, line := range m.told {
		want[line] = true
	}
	var got []string
	for _, line := range until(t, ch, m.last) {
		if want[line] || !strings.Contains(line, " deleted@") {
			got = append(got, line)
		}
	}
	slices.Sort(got)
	slices.Sort(m.told)
	if !slices.Equal(got, m.told) {
		rt.Fatalf("watch told\n%q\nwant\n%q", got, m.told)
	}
}

func same(a, b store.Entry) bool {
	return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Revision == b.Revision && a.Expires.Equal(b.Expires)
}
