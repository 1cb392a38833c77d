package groups

import (
	"cmp"
	"slices"
	"time"
)

// Of returns the local groups that a person is in at now: directly, through their
// directory groups, and through local groups in those, sorted by name. End is when
// the last way into a group ends. It reads nothing from the store. ErrStale when the
// index is not current: deny then.
func (s *Service) Of(sub string, directoryGroups []string, now time.Time) ([]Effective, error) {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s.stale() {
		return nil, ErrStale
	}
	w := x.reach(x.starts(sub, directoryGroups), now.UnixMicro())
	out := make([]Effective, 0, len(w.groups))
	for _, n := range w.groups {
		g := x.nodes[n].group
		out = append(out, Effective{ID: g.id, Group: g.Name, Clusters: slices.Clone(g.Clusters), End: fromMicros(w.ends[n])})
	}
	w.release(x)
	slices.SortFunc(out, func(a, b Effective) int { return cmp.Compare(a.Group, b.Group) })
	return out, nil
}

// starts returns the nodes of a person and of directory groups, of those that are in
// any group. The caller holds the lock.
func (x *index) starts(sub string, directoryGroups []string) []int32 {
	var out []int32
	if n, ok := x.ids[subject(KindPerson, sub)]; ok {
		out = append(out, n)
	}
	for _, g := range directoryGroups {
		if n, ok := x.ids[subject(KindDirectoryGroup, g)]; ok {
			out = append(out, n)
		}
	}
	return out
}

// walk is what one walk through the index notes.
type walk struct {
	ends   []int64 // of each node; 0: not reached
	groups []int32 // that were reached
	todo   []waypoint
}

type waypoint struct {
	node int32
	end  int64
}

// release keeps w for the next walk.
func (w *walk) release(x *index) {
	for _, n := range w.groups {
		w.ends[n] = 0
	}
	w.groups, w.todo = w.groups[:0], w.todo[:0]
	x.walks.Put(w)
}

// reach notes the groups above starts by memberships that count at now, each with
// the latest end of a path to it, which is the earliest of the path's memberships. A
// group comes up again only with a later end, so that it ends, on cycles too. The
// caller holds the lock, and releases the walk.
func (x *index) reach(starts []int32, now int64) *walk {
	w, ok := x.walks.Get().(*walk)
	if !ok || len(w.ends) < len(x.nodes) {
		w = &walk{ends: make([]int64, len(x.nodes)+len(x.nodes)/8)}
	}
	for _, n := range starts {
		w.todo = append(w.todo, waypoint{n, forever})
	}
	for i := 0; i < len(w.todo); i++ {
		from := w.todo[i]
		if from.end < w.ends[from.node] {
			continue // a later one waits further behind
		}
		for _, e := range x.nodes[from.node].edges {
			end := min(from.end, e.end)
			if g := x.nodes[e.to].group; g == nil || !g.live || !e.counts(now) || end <= w.ends[e.to] {
				continue
			}
			if w.ends[e.to] == 0 {
				w.groups = append(w.groups, e.to)
			}
			w.ends[e.to] = end
			w.todo = append(w.todo, waypoint{e.to, end})
		}
	}
	return w
}
