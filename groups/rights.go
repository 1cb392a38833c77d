package groups

import (
	"context"
	"fmt"
	"slices"

	"github.com/tabard-id/tabard/internal/store"
)

// IsAdmin reports whether a may do everything.
func (s *Service) IsAdmin(a Actor) bool {
	return a.Operator || slices.ContainsFunc(a.Groups, func(g string) bool { return slices.Contains(s.cfg.Admins, g) })
}

// rights decides what a may do with a group that has these settings. It is the one
// place that does. The caller holds the index's lock.
func (s *Service) rights(a Actor, id string, set Settings) Rights {
	if s.IsAdmin(a) {
		return Rights{See: true, Members: true, Admin: true}
	}
	owns := s.owns(a, set)
	return Rights{
		See:     owns || slices.Contains(a.Groups, set.Name),
		Members: owns && !s.protected(id),
	}
}

// Owns reports whether a is an owner of a group that has these settings, in person or
// through a group that they are in, nested or not.
func (s *Service) Owns(a Actor, set Settings) bool {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	return s.owns(a, set)
}

// owns is Owns for who holds the index's lock.
func (s *Service) owns(a Actor, set Settings) bool {
	return slices.ContainsFunc(set.Owners, func(o Ref) bool { return s.self(a, o) })
}

// protected reports whether a group administers everything, or is beneath one that
// does, by whatever membership: also one that has ended, or that is damaged. The
// caller holds the index's lock.
func (s *Service) protected(id string) bool {
	n, ok := s.index.ids[subject(KindGroup, id)]
	if !ok {
		return false
	}
	for at := range s.index.above(n) {
		v := s.index.nodes[at]
		if v.group != nil && slices.Contains(s.cfg.Admins, v.group.Name) {
			return true
		}
		id := cutSubject(v.subject).ID // its record may be damaged: its name is known by its key
		if slices.ContainsFunc(s.cfg.Admins, func(name string) bool { return s.index.byName[name].id == id }) {
			return true
		}
	}
	return false
}

// above returns a group's node and those of all groups that it is in at any depth,
// by whatever membership. The caller holds the lock.
func (x *index) above(n int32) map[int32]bool {
	seen := map[int32]bool{n: true}
	for todo := []int32{n}; len(todo) > 0; {
		last := len(todo) - 1
		n, todo = todo[last], todo[:last]
		for _, e := range x.nodes[n].edges {
			if !seen[e.to] {
				seen[e.to] = true
				todo = append(todo, e.to)
			}
		}
	}
	return seen
}

// MayLookUp returns nil where a may search the directory for people to add: who
// administers everything or owns a group. ErrForbidden.
func (s *Service) MayLookUp(ctx context.Context, a Actor) error {
	if s.IsAdmin(a) {
		return nil
	}
	owned, _, err := s.List(ctx, a, Filter{Mine: true}, Page{Limit: 1})
	if err == nil && len(owned) == 0 {
		err = fmt.Errorf("look people up: %w", ErrForbidden)
	}
	return err
}

// The rights that acts need.
func toSee(r Rights) bool        { return r.See }
func toMembers(r Rights) bool    { return r.Members }
func toAdminister(r Rights) bool { return r.Admin }

// hiddenError is ErrNotFound to who asked; the trail knows more.
type hiddenError struct{ name, why string }

func (e *hiddenError) Error() string { return fmt.Sprintf("group %.80q: %v", e.name, ErrNotFound) }
func (e *hiddenError) Unwrap() error { return ErrNotFound }

// judge turns a's rights on a group into an error where they are not enough.
func judge(r Rights, name string, need func(Rights) bool) error {
	switch {
	case !r.See:
		return &hiddenError{name, "neither an owner of the group nor in it"}
	case !need(r):
		return fmt.Errorf("group %.80q: %w", name, ErrForbidden)
	}
	return nil
}

// find returns the group that has a name, if a may do with it what need asks.
// ErrNotFound also where they may not see it; ErrForbidden, ErrStale.
func (s *Service) find(a Actor, name string, need func(Rights) bool) (Group, error) {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if s.stale() {
		return Group{}, ErrStale
	}
	g := s.index.named(name)
	if g == nil {
		return Group{}, &hiddenError{name, "there is no such group"}
	}
	return s.index.view(g), judge(s.rights(a, g.id, g.Settings), g.Name, need)
}

// again decides once more, on the group as the store holds it now. It returns the
// conditions under which the decision stands: for an owner, that the group does not
// come beneath one of administrators meanwhile.
func (s *Service) again(ctx context.Context, a Actor, now *current, revision int64, need func(Rights) bool) ([]store.Cond, error) {
	if now.record.Deleting {
		return nil, fmt.Errorf("group %q is being deleted: %w", now.record.Name, ErrNotFound)
	}
	var conds []store.Cond
	if !s.IsAdmin(a) {
		nesting, err := now.nestedAt(ctx)
		if err != nil {
			return nil, err
		}
		conds = append(conds, nesting)
	}
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	id := now.id()
	if err := judge(s.rights(a, id, now.record.Settings), now.record.Name, need); err != nil {
		return nil, err
	}
	if revision != 0 && revision != now.entry.Revision {
		g := indexed{record: now.record, id: id, revision: now.entry.Revision}
		return nil, &MismatchError{s.index.view(&g)}
	}
	return conds, nil
}

// RightsOn returns what a may do with a group: nothing with one that is not there,
// or while the index is stale.
func (s *Service) RightsOn(a Actor, name string) Rights {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	g := s.index.named(name)
	if g == nil || s.stale() {
		return Rights{}
	}
	return s.rights(a, g.id, g.Settings)
}
