package groups

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/store"
)

// sound checks what holds whatever happens: each membership is of a group that is
// there, each name leads to the group that has it, nothing contains itself, and the
// index is what the store holds.
func (h *house) sound() {
	h.t.Helper()
	entries, revision, err := h.bolt.List(context.WithoutCancel(h.t.Context()), keyPrefix, "", store.MaxList)
	must(h.t, err)
	must(h.t, h.heard(context.WithoutCancel(h.t.Context()), revision))
	fresh := newIndex(logrus.New())
	must(h.t, fresh.Replace(func(yield func(store.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}))
	for _, e := range entries {
		h.soundEntry(fresh, e)
	}
	for n := range fresh.nodes {
		if strings.HasPrefix(fresh.nodes[n].subject, "group/") && fresh.height(int32(n), fresh.containers) > maxNesting {
			h.t.Errorf("%s is nested too deep, or in itself", fresh.nodes[n].subject)
		}
		for _, in := range fresh.containers(int32(n)) {
			if fresh.above(in)[int32(n)] {
				h.t.Errorf("%s contains itself", fresh.nodes[n].subject)
			}
		}
	}
	h.index.mu.RLock()
	defer h.index.mu.RUnlock()
	if got, want := h.index.contents(), fresh.contents(); !reflect.DeepEqual(got, want) {
		h.t.Errorf("the index holds\n%v\nthe store\n%v", got, want)
	}
}

func (h *house) soundEntry(x *index, e store.Entry) {
	h.t.Helper()
	switch {
	case strings.HasPrefix(e.Key, memberKeys):
		group, who := cutMember(e.Key)
		if x.group(group) == nil {
			h.t.Errorf("%s is of no group", e.Key)
		}
		if ref := cutSubject(who); ref.Kind == KindGroup && x.group(ref.ID) == nil {
			h.t.Errorf("%s is for no group", e.Key)
		}
	case strings.HasPrefix(e.Key, nameKeys):
		if g := x.group(string(e.Value)); g == nil || !g.damaged && nameKey(g.Name) != e.Key {
			h.t.Errorf("%s leads to %+v", e.Key, g)
		}
	case strings.HasPrefix(e.Key, recordKeys):
		if g := x.group(strings.TrimPrefix(e.Key, recordKeys)); !g.damaged && x.byName[g.Name].id != g.id {
			h.t.Errorf("%s has no name of its own", e.Key)
		}
	}
}

// contents is all that the index holds, however it is laid out.
func (x *index) contents() map[string]any {
	out := map[string]any{"names": append([]string{}, x.names...), "nodes": len(x.ids), "live nodes": len(x.nodes) - len(x.free)}
	for name, n := range x.byName {
		out["name "+name] = n
	}
	for who, n := range x.ids {
		v := x.nodes[n]
		var in []string
		for _, e := range v.edges {
			in = append(in, x.nodes[e.to].subject+time.UnixMicro(e.begin).String()+time.UnixMicro(e.end).String())
		}
		slices.Sort(in)
		nested := x.nestedSubjects(cutSubject(who).ID)
		slices.Sort(nested)
		out[who] = []any{in, v.members, nested}
		if v.group != nil {
			out["group "+who] = *v.group
		}
	}
	return out
}

// nestedSubjects returns what the index has as the local groups in a group, by their
// subjects. The caller holds the lock.
func (x *index) nestedSubjects(id string) []string {
	var out []string
	if n, ok := x.ids[subject(KindGroup, id)]; ok {
		for _, m := range x.nested[n] {
			out = append(out, x.nodes[m].subject)
		}
	}
	return out
}
