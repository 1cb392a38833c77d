package groups

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	maxPaths = 8      // to one group
	maxReach = 10_000 // of one Everyone
)

// route is a path as the index has it, seen from its end.
type route struct {
	span  // when all of its memberships count
	node  int32
	steps int
	last  *route // without the last step; nil where it begins
}

// better orders routes: those that count, the one that ends last, the shortest. A
// longer route is never better than what it goes on from.
func better(a, b *route, now int64) int {
	if x, y := a.counts(now), b.counts(now); x != y {
		if x {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(b.end, a.end), cmp.Compare(a.steps, b.steps), cmp.Compare(a.node, b.node))
}

// queue is a heap of routes, the best first.
type queue struct {
	routes []*route
	now    int64
}

func (q *queue) Len() int           { return len(q.routes) }
func (q *queue) Less(i, j int) bool { return better(q.routes[i], q.routes[j], q.now) < 0 }
func (q *queue) Swap(i, j int)      { q.routes[i], q.routes[j] = q.routes[j], q.routes[i] }
func (q *queue) Push(r any)         { q.routes = append(q.routes, r.(*route)) }
func (q *queue) Pop() any {
	last := len(q.routes) - 1
	r := q.routes[last]
	q.routes = q.routes[:last]
	return r
}

// routes returns the best routes to each group above starts, at most maxPaths each;
// also those that have ended or not begun. within, unless nil, are the ids of the
// groups that they may lead through. The caller holds the lock.
func (x *index) routes(starts []int32, within map[string]bool, now int64) map[int32][]*route {
	out := map[int32][]*route{}
	q := &queue{now: now}
	for _, n := range starts {
		q.routes = append(q.routes, &route{span: span{end: forever}, node: n})
	}
	for heap.Init(q); q.Len() > 0; {
		r := heap.Pop(q).(*route)
		if r.steps > 0 {
			if len(out[r.node]) == maxPaths {
				continue
			}
			out[r.node] = append(out[r.node], r)
		}
		for _, e := range x.nodes[r.node].edges {
			g := x.nodes[e.to].group
			if g == nil || !g.live || e.span == never || within != nil && !within[g.id] || r.passes(e.to) || len(out[e.to]) == maxPaths {
				continue
			}
			heap.Push(q, &route{span{max(r.begin, e.begin), min(r.end, e.end)}, e.to, r.steps + 1, r})
		}
	}
	return out
}

func (r *route) passes(n int32) bool {
	for ; r != nil; r = r.last {
		if r.node == n {
			return true
		}
	}
	return false
}

// hop is one step of a path, its membership not read yet.
type hop struct{ key, group string }

// trace is a path, its memberships not read yet.
type trace struct {
	hops     []hop
	clusters []string
}

func (x *index) trace(r *route) trace {
	t := trace{clusters: slices.Clone(x.nodes[r.node].group.Clusters)}
	for ; r.last != nil; r = r.last {
		g := x.nodes[r.node].group
		t.hops = append(t.hops, hop{membersKey(g.id) + x.nodes[r.last.node].subject, g.Name})
	}
	slices.Reverse(t.hops)
	return t
}

// reader reads memberships, each once.
type reader struct {
	s    *Service
	have map[string]Member
}

// path reads the memberships of a trace. It is false where one is gone by now.
func (r *reader) path(ctx context.Context, t trace) (Path, bool, error) {
	p := Path{Clusters: t.clusters}
	for _, h := range t.hops {
		m, ok := r.have[h.key]
		if !ok {
			e, err := r.s.store.Get(ctx, h.key)
			if errors.Is(err, store.ErrNotFound) {
				return Path{}, false, nil
			}
			if err != nil {
				return Path{}, false, fmt.Errorf("read membership: %w", err)
			}
			m = r.s.member(e)
			r.have[h.key] = m
		}
		p.Steps = append(p.Steps, Step{h.group, m})
		if m.Begin.After(p.Begin) {
			p.Begin = m.Begin
		}
		if !m.End.IsZero() && (p.End.IsZero() || m.End.Before(p.End)) {
			p.End = m.End
		}
	}
	return p, true, nil
}

func (r *reader) paths(ctx context.Context, traces []trace) ([]Path, error) {
	var out []Path
	for _, t := range traces {
		p, ok, err := r.path(ctx, t)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// Why returns the paths by which a person gets local groups, directly and through
// their directory groups, sorted by group: for each at most 8, those that count now
// first, then by when they end. Also those that have ended, or not begun yet. It
// reads the memberships concerned. ErrStale.
func (s *Service) Why(ctx context.Context, sub string, directoryGroups []string) ([]Path, error) {
	traces, err := s.tracesUp(sub, directoryGroups)
	if err != nil {
		return nil, err
	}
	r := reader{s, map[string]Member{}}
	return r.paths(ctx, traces)
}

func (s *Service) tracesUp(sub string, directoryGroups []string) ([]trace, error) {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s.stale() {
		return nil, ErrStale
	}
	routes := x.routes(x.starts(sub, directoryGroups), nil, time.Now().UnixMicro())
	byName := func(a, b int32) int { return cmp.Compare(x.nodes[a].group.Name, x.nodes[b].group.Name) }
	var out []trace
	for _, n := range slices.SortedFunc(maps.Keys(routes), byName) {
		for _, r := range routes[n] {
			out = append(out, x.trace(r))
		}
	}
	return out, nil
}

// Everyone returns the persons and directory groups that get a group, directly or
// through local groups, each with its paths as Why has them, sorted by kind, name and
// id. There are at most limit (0: 10,000, which is the most); cut says that there
// are more. Directory groups are not opened up. ErrForbidden, ErrNotFound, ErrStale.
func (s *Service) Everyone(ctx context.Context, a Actor, name string, limit int) (reach []Reach, cut bool, err error) {
	g, err := s.find(a, name, toMembers)
	if err != nil {
		return nil, false, s.deny(ctx, a, "group.members", name, err)
	}
	if limit <= 0 || limit > maxReach {
		limit = maxReach
	}
	below := s.below(g.ID)
	within := make(map[string]bool, len(below))
	for _, id := range below {
		within[id] = true
	}
	r := reader{s, map[string]Member{}}
	refs, cut, err := s.collect(ctx, below, limit, r.have)
	if err != nil {
		return nil, false, err
	}
	for _, ref := range refs {
		paths, err := r.paths(ctx, s.tracesTo(ref, g.ID, within))
		if err != nil {
			return nil, false, err
		}
		if len(paths) > 0 {
			reach = append(reach, Reach{ref, paths})
		}
	}
	slices.SortFunc(reach, func(a, b Reach) int { return byKind(a.Ref, b.Ref) })
	return reach, cut, nil
}

// below returns the id of a group and those of the groups beneath it that count,
// nearest first.
func (s *Service) below(id string) []string {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	n, ok := x.ids[subject(KindGroup, id)]
	if !ok {
		return nil
	}
	seen, todo := map[int32]bool{n: true}, []int32{n}
	var out []string
	for i := 0; i < len(todo); i++ {
		g := x.nodes[todo[i]].group
		if g == nil || !g.live {
			continue
		}
		out = append(out, g.id)
		for _, m := range x.nested[todo[i]] {
			if !seen[m] {
				seen[m] = true
				todo = append(todo, m)
			}
		}
	}
	return out
}

// collect returns the persons and directory groups that are directly in any of the
// groups, and keeps their memberships in have.
func (s *Service) collect(ctx context.Context, groups []string, limit int, have map[string]Member) (refs []Ref, cut bool, err error) {
	seen := map[string]bool{}
	for _, id := range groups {
		err := s.scan(ctx, membersKey(id), "", min(limit+1, store.MaxList), func(m Member) bool {
			who := subject(m.Kind, m.ID)
			have[membersKey(id)+who] = m
			if m.Kind == KindGroup || seen[who] {
				return true
			}
			if cut = len(refs) == limit; cut {
				return false
			}
			seen[who] = true
			refs = append(refs, m.Ref)
			return true
		})
		if err != nil || cut {
			return refs, cut, err
		}
	}
	return refs, false, nil
}

// tracesTo returns the paths from a person or directory group to a group, through
// the groups within.
func (s *Service) tracesTo(ref Ref, id string, within map[string]bool) []trace {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	from, ok := x.ids[subject(ref.Kind, ref.ID)]
	to, there := x.ids[subject(KindGroup, id)]
	if !ok || !there {
		return nil
	}
	var out []trace
	for _, r := range x.routes([]int32{from}, within, time.Now().UnixMicro())[to] {
		out = append(out, x.trace(r))
	}
	return out
}
