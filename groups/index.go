package groups

import (
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/store"
)

// index holds in memory who is in what until when, and the groups' settings, kept
// current by a watch, so that a token needs no read of the store. Persons, directory
// groups and local groups are nodes; a membership is an edge upwards.
//
// A record that cannot be read is logged and counts for nothing: its group is not
// there, its membership never counts. But its edge stays, so that what is beneath a
// group of administrators stays theirs.
type index struct {
	log logrus.FieldLogger

	mu     sync.RWMutex
	ids    map[string]int32 // subject → node
	nodes  []node
	free   []int32           // nodes that are nobody's
	nested map[int32][]int32 // a group → the local groups that are its members
	byName map[string]named
	names  []string // keys of byName, sorted

	walks sync.Pool // of *walk

	need int64 // below this revision the index may be of different moments
}

type node struct {
	subject string
	edges   []edge   // the groups that it is a member of
	group   *indexed // nil: no local group, or one without a record
	members int32    // of a local group
}

type edge struct {
	span
	to int32
}

// indexed is a local group.
type indexed struct {
	record
	id       string
	revision int64
	damaged  bool
	live     bool // it counts: readable, not being deleted, and its name is its own
}

type named struct{ id, skeleton string }

func newIndex(log logrus.FieldLogger) *index {
	return &index{
		log: log,
		ids: map[string]int32{}, nested: map[int32][]int32{}, byName: map[string]named{},
	}
}

// Replace implements store.Target. The records may be of different moments: until the
// events of the latest of them were applied, which makes them of one, the index is
// stale. What was deleted meanwhile may be missing already, which denies at worst.
func (x *index) Replace(records iter.Seq2[store.Entry, error]) error {
	fresh := newIndex(x.log)
	for e, err := range records {
		if err != nil {
			return err
		}
		fresh.apply(store.Event{Entry: e}, true)
		fresh.need = max(fresh.need, e.Revision)
	}
	fresh.compact()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ids, x.nodes, x.free, x.nested = fresh.ids, fresh.nodes, fresh.free, fresh.nested
	x.byName, x.names, x.need = fresh.byName, fresh.names, fresh.need
	return nil
}

// Apply implements store.Target: revision by revision, so that no reader waits for
// all of it.
func (x *index) Apply(events []store.Event) {
	for len(events) > 0 {
		n := slices.IndexFunc(events, func(e store.Event) bool { return e.Revision != events[0].Revision })
		if n < 0 {
			n = len(events)
		}
		x.mu.Lock()
		for _, e := range events[:n] {
			x.apply(e, false)
		}
		x.mu.Unlock()
		events = events[n:]
	}
}

// compact gives back what growing took.
func (x *index) compact() {
	x.nodes = slices.Clip(slices.Clone(x.nodes))
	for i := range x.nodes {
		x.nodes[i].edges = slices.Clip(slices.Clone(x.nodes[i].edges))
	}
}

// apply puts one change into the index; fresh where its key cannot be there yet. The
// caller holds the lock.
func (x *index) apply(e store.Event, fresh bool) {
	switch {
	case strings.HasPrefix(e.Key, memberKeys):
		x.applyMember(e, fresh)
	case strings.HasPrefix(e.Key, recordKeys):
		x.applyRecord(e)
	case strings.HasPrefix(e.Key, nameKeys):
		x.applyName(e)
	}
}

func (x *index) damaged(key string, err error) {
	x.log.WithError(err).WithField("key", key).Error("groups: a record is damaged, and counts for nothing: write it anew, or restore a backup")
}

func (x *index) applyMember(e store.Event, fresh bool) {
	group, who := cutMember(e.Key)
	from, to := x.node(who), x.node(subject(KindGroup, group))
	at := -1
	if !fresh {
		at = slices.IndexFunc(x.nodes[from].edges, func(e edge) bool { return e.to == to })
	}
	if e.Delete {
		if at >= 0 {
			x.nodes[from].edges = slices.Delete(x.nodes[from].edges, at, at+1)
			x.nodes[to].members--
			x.nest(from, to, false)
		}
		x.release(from)
		x.release(to)
		return
	}
	s, err := decodeSpan(e.Value)
	if err != nil {
		x.damaged(e.Key, err)
	}
	if at >= 0 {
		x.nodes[from].edges[at].span = s
		return
	}
	x.nodes[from].edges = append(x.nodes[from].edges, edge{s, to})
	x.nodes[to].members++
	x.nest(from, to, true)
}

// nest notes that a local group is, or no longer is, a member of another.
func (x *index) nest(from, to int32, is bool) {
	if !isGroup(x.nodes[from].subject) {
		return
	}
	if is {
		x.nested[to] = append(x.nested[to], from)
		return
	}
	rest := slices.DeleteFunc(x.nested[to], func(n int32) bool { return n == from })
	if x.nested[to] = rest; len(rest) == 0 {
		delete(x.nested, to)
	}
}

func (x *index) applyRecord(e store.Event) {
	id := strings.TrimPrefix(e.Key, recordKeys)
	n := x.node(subject(KindGroup, id))
	if e.Delete {
		x.nodes[n].group = nil
		x.release(n)
		return
	}
	g := &indexed{id: id, revision: e.Revision}
	var err error
	if g.record, err = decodeRecord(e.Value); err != nil {
		x.damaged(e.Key, err)
		g.damaged = true
	}
	x.nodes[n].group = g
	x.settle(id)
}

func (x *index) applyName(e store.Event) {
	name := strings.TrimPrefix(e.Key, nameKeys)
	at, there := slices.BinarySearch(x.names, name)
	old := x.byName[name]
	if e.Delete {
		delete(x.byName, name)
		if there {
			x.names = slices.Delete(x.names, at, at+1)
		}
	} else {
		x.byName[name] = named{string(e.Value), skeleton(name)}
		if !there {
			x.names = slices.Insert(x.names, at, name)
		}
	}
	x.settle(old.id)
	x.settle(string(e.Value))
}

// settle decides whether the group counts, now that its record or name has changed.
func (x *index) settle(id string) {
	if g := x.group(id); g != nil {
		g.live = !g.damaged && !g.Deleting && x.byName[g.Name].id == id
	}
}

// node returns the node of a subject, a new one if need be. The caller releases it
// where nothing came of it.
func (x *index) node(subject string) int32 {
	if n, ok := x.ids[subject]; ok {
		return n
	}
	subject = strings.Clone(subject) // of a longer key
	var n int32
	if last := len(x.free) - 1; last >= 0 {
		n, x.free = x.free[last], x.free[:last]
	} else {
		n, x.nodes = int32(len(x.nodes)), append(x.nodes, node{})
	}
	x.nodes[n] = node{subject: subject}
	x.ids[subject] = n
	return n
}

// release frees a node that nothing is left of.
func (x *index) release(n int32) {
	if v := &x.nodes[n]; v.subject != "" && len(v.edges) == 0 && v.group == nil && v.members == 0 {
		delete(x.ids, v.subject)
		*v = node{}
		x.free = append(x.free, n)
	}
}

// group returns the group with an id, whatever its state; nil if it has no record.
func (x *index) group(id string) *indexed {
	if n, ok := x.ids[subject(KindGroup, id)]; ok {
		return x.nodes[n].group
	}
	return nil
}

// named returns the group that has a name, and counts; else nil.
func (x *index) named(name string) *indexed {
	if g := x.group(x.byName[name].id); g != nil && g.live {
		return g
	}
	return nil
}

// nameOf returns the name of a group; "" if it is not there.
func (x *index) nameOf(id string) string {
	if g := x.group(id); g != nil && g.live {
		return g.Name
	}
	return ""
}
