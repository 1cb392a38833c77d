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
	ends := x.reach(x.starts(sub, directoryGroups), now.UnixMicro())
	out := make([]Effective, 0, len(ends))
	for n, end := range ends {
		g := x.nodes[n].group
		out = append(out, Effective{ID: g.id, Group: g.Name, Clusters: slices.Clone(g.Clusters), End: fromMicros(end)})
	}
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

// reach returns the groups above starts by memberships that count at now, each with
// the latest end of a path to it, which is the earliest of the path's memberships. A
// group comes up again only with a later end, so that it ends, on cycles too. The
// caller holds the lock.
func (x *index) reach(starts []int32, now int64) map[int32]int64 {
	type at struct {
		node int32
		end  int64
	}
	ends := map[int32]int64{}
	todo := make([]at, 0, 64)
	for _, n := range starts {
		todo = append(todo, at{n, forever})
	}
	for i := 0; i < len(todo); i++ {
		from := todo[i]
		if from.end < ends[from.node] {
			continue // a later one waits further behind
		}
		for _, e := range x.nodes[from.node].edges {
			end := min(from.end, e.end)
			if g := x.nodes[e.to].group; g != nil && g.live && e.counts(now) && end > ends[e.to] {
				ends[e.to] = end
				todo = append(todo, at{e.to, end})
			}
		}
	}
	return ends
}
