package groups

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// view is a group as callers get it: theirs to keep and change. The caller holds the
// lock.
func (x *index) view(g *indexed) Group {
	out := Group{
		ID: g.id, Settings: g.Settings, Revision: g.revision,
		Created: g.Created, CreatedBy: g.CreatedBy, CreatedByName: g.CreatedByName,
		Formerly: slices.Clone(g.Formerly),
	}
	out.Owners, out.Clusters, out.Labels = slices.Clone(g.Owners), slices.Clone(g.Clusters), maps.Clone(g.Labels)
	for i, o := range out.Owners {
		if o.Kind == KindGroup {
			out.Owners[i].Name = x.nameOf(o.ID)
		}
	}
	if n, ok := x.ids[subject(KindGroup, g.id)]; ok {
		out.Members = int(x.nodes[n].members)
	}
	return out
}

// deny leaves in the trail that a reading was refused, without waiting for the disk.
// That an administrator asks for what is not there is no refusal.
func (s *Service) deny(ctx context.Context, a Actor, act, on string, why error) error {
	if errors.Is(why, ErrNotFound) && s.IsAdmin(a) {
		return why
	}
	return s.refuse(ctx, a, audit.Event{Act: act, On: on, Soon: true}, why)
}

// Get returns a group. ErrNotFound also for one that a may not see, ErrStale.
func (s *Service) Get(ctx context.Context, a Actor, name string) (Group, error) {
	g, err := s.find(a, name, toSee)
	if err != nil {
		return Group{}, s.deny(ctx, a, "group.get", name, err)
	}
	return g, nil
}

// Cursors say after what a listing goes on. They stay good whatever changes, and
// with another filter they are no more than a place in the order.
func cursor(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

// asks returns how many entries p asks for, and after what.
func (p Page) asks() (limit int, after string, err error) {
	if p.Limit < 0 || p.Limit > 1000 {
		return 0, "", invalid("a page has 1 to 1,000 entries")
	}
	b, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err != nil || len(b) > store.MaxKey {
		return 0, "", invalid("this cursor is none: begin with the first page")
	}
	return cmp.Or(p.Limit, 100), string(b), nil
}

// List returns the groups that a may see and f lets through, sorted by name, and the
// cursor of the next page, "" at the end. ErrInvalid for a page, ErrStale.
func (s *Service) List(ctx context.Context, a Actor, f Filter, p Page) (list []Group, next string, err error) {
	limit, after, err := p.asks()
	if err != nil {
		return nil, "", err
	}
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s.stale() {
		return nil, "", ErrStale
	}
	list = []Group{}
	at, found := slices.BinarySearch(x.names, after)
	if found {
		at++
	}
	f.Query = strings.ToLower(f.Query)
	for _, name := range x.names[at:] {
		g := x.named(name)
		if g == nil || !s.lets(a, f, g) {
			continue
		}
		if len(list) == limit {
			return list, cursor(list[limit-1].Name), ctx.Err()
		}
		list = append(list, x.view(g))
	}
	return list, "", ctx.Err()
}

// lets reports whether a may see g and f lets it through. f.Query is in lower case.
// The caller holds the lock.
func (s *Service) lets(a Actor, f Filter, g *indexed) bool {
	if f.Query != "" && !strings.Contains(strings.ToLower(g.Name), f.Query) && !strings.Contains(strings.ToLower(g.Description), f.Query) {
		return false
	}
	if !matchesAll(g.Labels, f.Labels) {
		return false
	}
	if f.Cluster != "" && len(g.Clusters) > 0 && !slices.Contains(g.Clusters, f.Cluster) {
		return false
	}
	if f.Owner != "" && !slices.ContainsFunc(g.Owners, Ref{Kind: KindPerson, ID: f.Owner}.same) {
		return false
	}
	r := s.rights(a, g.id, g.Settings)
	if !r.See || f.Mine && !s.owns(a, g.Settings) {
		return false
	}
	return f.Member == nil || (r.Members || s.self(a, *f.Member)) && s.index.has(g, *f.Member)
}

// has reports whether a member is in a group directly. The caller holds the lock.
func (x *index) has(g *indexed, m Ref) bool {
	n, ok := x.ids[subject(m.Kind, m.ID)]
	to := x.ids[subject(KindGroup, g.id)]
	return ok && slices.ContainsFunc(x.nodes[n].edges, func(e edge) bool { return e.to == to })
}

// self reports whether m is a, or a group that a is in. The caller holds the lock.
func (s *Service) self(a Actor, m Ref) bool {
	switch m.Kind {
	case KindPerson:
		return m.ID == a.Sub
	case KindDirectoryGroup:
		return slices.Contains(a.Groups, m.ID)
	case KindGroup:
		name := s.index.nameOf(m.ID)
		return name != "" && slices.Contains(a.Groups, name)
	}
	return false
}

// Members returns the members of a group that f lets through, by kind and id, and
// the cursor of the next page, "" at the end. ErrForbidden for who may see the group
// but not its members, ErrNotFound, ErrInvalid, ErrStale.
func (s *Service) Members(ctx context.Context, a Actor, name string, f MemberFilter, p Page) (members []Member, next string, err error) {
	g, err := s.find(a, name, toMembers)
	if err != nil {
		return nil, "", s.deny(ctx, a, "group.members", name, err)
	}
	limit, after, err := p.asks()
	if err != nil {
		return nil, "", err
	}
	prefix := membersKey(g.ID)
	if f.Kind != "" {
		prefix += string(f.Kind) + "/"
	}
	from := ""
	if after != "" {
		from = membersKey(g.ID) + after + "\x00"
	}
	members = []Member{}
	f.Query = strings.ToLower(f.Query)
	err = s.scan(ctx, prefix, from, pageOf(limit, f), func(m Member) bool {
		if !m.matches(f.Query) {
			return true
		}
		if len(members) == limit {
			last := members[limit-1]
			next = cursor(subject(last.Kind, last.ID))
			return false
		}
		members = append(members, m)
		return true
	})
	return members, next, err
}

// pageOf is how many memberships to read at once: no more than the listing needs,
// unless it must search.
func pageOf(limit int, f MemberFilter) int {
	if f.Query != "" {
		return store.MaxList
	}
	return limit + 1
}

// matches reports whether query, in lower case, is in what a member is known by.
func (m Member) matches(query string) bool {
	return query == "" || slices.ContainsFunc([]string{m.Name, m.ID, m.Reason}, func(s string) bool {
		return strings.Contains(strings.ToLower(s), query)
	})
}

// scan reads memberships in the order of their keys until fn returns false.
func (s *Service) scan(ctx context.Context, prefix, from string, page int, fn func(Member) bool) error {
	for e, err := range store.All(ctx, s.store, prefix, from, page) {
		if err != nil {
			return fmt.Errorf("list members: %w", err)
		}
		if !fn(s.member(e)) {
			break
		}
	}
	return nil
}

// member reads a membership. A damaged one is logged, and says so in its reason.
func (s *Service) member(e store.Entry) Member {
	_, who := cutMember(e.Key)
	m, err := decodeMember(cutSubject(who), e.Value)
	if err != nil {
		s.index.damaged(e.Key, err)
	}
	if m.Kind == KindGroup {
		s.index.mu.RLock()
		m.Name = s.index.nameOf(m.ID)
		s.index.mu.RUnlock()
	}
	return m
}

// Member returns one direct membership of a group. Who may see the group sees their
// own, and those of groups that they are in. ErrNotFound, ErrForbidden, ErrStale.
func (s *Service) Member(ctx context.Context, a Actor, name string, kind Kind, id string) (Member, error) {
	s.index.mu.RLock()
	self := s.self(a, Ref{Kind: kind, ID: id})
	s.index.mu.RUnlock()
	g, err := s.find(a, name, func(r Rights) bool { return r.Members || self })
	if err != nil {
		return Member{}, s.deny(ctx, a, "group.members", name, err)
	}
	m, err := s.membership(ctx, g, Ref{Kind: kind, ID: id})
	if err != nil {
		return Member{}, err
	}
	return *m, nil
}

// membership reads one membership from the store. ErrNotFound.
func (s *Service) membership(ctx context.Context, g Group, r Ref) (*Member, error) {
	e, err := s.store.Get(ctx, memberKey(g.ID, r.Kind, r.ID))
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) { // no such key can be
		return nil, fmt.Errorf("%s %.80q in group %q: %w", r.Kind, r.ID, g.Name, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("read membership: %w", err)
	}
	m := s.member(e)
	return &m, nil
}

// Containing returns the names of the groups that a group is a member of, of those
// that a may see, sorted.
func (s *Service) Containing(a Actor, name string) []string {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	g := x.named(name)
	if g == nil || s.stale() || !s.rights(a, g.id, g.Settings).See {
		return nil
	}
	return x.containing(g.id, func(in *indexed) bool { return s.rights(a, in.id, in.Settings).See })
}

// containing returns the names of the groups that a group is in directly, of those
// that are ok, sorted. The caller holds the lock.
func (x *index) containing(id string, ok func(*indexed) bool) []string {
	out := []string{}
	for _, e := range x.nodes[x.ids[subject(KindGroup, id)]].edges {
		if in := x.nodes[e.to].group; in != nil && in.live && ok(in) {
			out = append(out, in.Name)
		}
	}
	slices.Sort(out)
	return out
}
