package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// walker looks for groups from the person upwards, all of one depth at a time.
type walker struct {
	*Directory
	s       *schema
	members []string        // attributes that hold members
	seen    map[string]bool // folded DNs, so that circles end
	// For Explain alone, which wants the way to each group: what is read of
	// each besides the name, and the memberOf of each. The members of a parent
	// may be many thousands, so nobody else reads them.
	edges []string
	above map[string][]string
}

// walk returns the groups of a person by searches for groups that name the
// person, then for groups that name one of those, and so on. Groups nested
// deeper than maxDepth are an error.
func (d *Directory) walk(ctx context.Context, s *schema, strategy Nested, p Person) ([]Group, error) {
	members, err := d.membersInUse(ctx, s)
	if err != nil {
		return nil, err
	}
	w := &walker{Directory: d, s: s, members: members, seen: map[string]bool{}, above: map[string][]string{}}
	if reportOf(ctx).wantsPaths() {
		w.edges = slices.Clone(members)
		if d.cfg.Type == TypeActiveDirectory {
			w.edges = []string{"memberOf"} // member comes in part when it is long
		}
	} else if strategy != NestedNone {
		if all, ok, err := w.atOnce(ctx, p); ok || err != nil {
			return all, err
		}
	}
	found, err := d.searchGroups(ctx, s, "find the groups that name the person", w.personTerms(p), w.edges...)
	if err != nil {
		return nil, err
	}
	level := w.unseen(ctx, found, nil)
	all := level
	for depth := 1; strategy != NestedNone && len(level) > 0; depth++ {
		if level, err = w.parents(ctx, level); err != nil {
			return nil, err
		}
		if all = append(all, level...); len(all) > maxGroups {
			return nil, fmt.Errorf("there are more than %d", maxGroups)
		}
		if depth >= s.groups.MaxDepth && len(level) > 0 {
			return nil, fmt.Errorf("%s is nested deeper than groups.maxDepth %d: raise it", level[0].DN, s.groups.MaxDepth)
		}
	}
	return all, nil
}

// atOnce asks one time for the groups that name the person or one of the groups
// in the person's memberOf, which OpenLDAP's overlay of that name and 389
// maintain. If that finds exactly the groups in memberOf, and all may be seen,
// nothing can be above them: that is all. Otherwise (memberOf is incomplete or
// holds what is hidden, or groups above it are not in it) it says no, and
// nothing of its answer is used.
func (w *walker) atOnce(ctx context.Context, p Person) ([]Group, bool, error) {
	var known []Group
	want := map[string]bool{}
	base := "," + foldDN(w.s.groups.BaseDN)
	for _, dn := range p.memberOf {
		if key := foldDN(dn); strings.HasSuffix(key, base) {
			known, want[key] = append(known, Group{DN: dn}), true
		}
	}
	if w.cfg.Type == TypeActiveDirectory || len(known) == 0 || len(known) > maxBatch {
		return nil, false, nil
	}
	found, err := w.searchGroups(ctx, w.s, "find the groups that name the person or a group in memberOf", append(w.personTerms(p), w.groupTerms(known)...))
	if err != nil || len(found) != len(want) {
		return nil, false, err
	}
	var all []Group
	for _, e := range found {
		g, ok := w.visible(ctx, w.s, e)
		if !ok || !want[foldDN(e.DN)] {
			return nil, false, nil
		}
		all = append(all, g)
	}
	return all, true, nil
}

// parents returns the groups above level that were not seen before.
func (w *walker) parents(ctx context.Context, level []Group) ([]Group, error) {
	var next []Group
	for batch := range slices.Chunk(level, maxBatch) {
		found, err := w.searchGroups(ctx, w.s, "find the groups that name these groups", w.groupTerms(batch), w.edges...)
		if err != nil {
			return nil, err
		}
		next = append(next, w.unseen(ctx, found, batch)...)
	}
	return next, nil
}

// unseen makes groups of those entries that are new and may be seen, and notes
// them as seen. Children are the groups they were found through.
func (w *walker) unseen(ctx context.Context, entries []*ldap.Entry, children []Group) []Group {
	var res []Group
	for _, e := range entries {
		key := foldDN(e.DN)
		if w.seen[key] {
			continue
		}
		w.seen[key] = true
		g, ok := w.visible(ctx, w.s, e)
		if !ok {
			continue
		}
		if w.edges != nil {
			for _, dn := range e.GetEqualFoldAttributeValues("memberOf") {
				w.above[key] = append(w.above[key], foldDN(dn))
			}
			g.Path = append(w.pathThrough(e, children), e.DN)
		}
		res = append(res, g)
	}
	return res
}

// pathThrough is the path of the one of children that e names as a member, or
// that names e in its memberOf.
func (w *walker) pathThrough(e *ldap.Entry, children []Group) []string {
	if len(children) == 1 {
		return slices.Clone(children[0].Path)
	}
	members := map[string]bool{}
	if len(children) > 0 {
		for _, a := range w.members {
			for _, m := range e.GetEqualFoldAttributeValues(a) {
				members[foldDN(m)] = true
			}
		}
	}
	parent := foldDN(e.DN)
	for _, c := range children {
		if key := foldDN(c.DN); members[key] || slices.Contains(w.above[key], parent) {
			return slices.Clone(c.Path)
		}
	}
	return nil
}

// personTerms are filters for the groups that name the person.
func (w *walker) personTerms(p Person) []string {
	var terms []string
	for _, a := range w.members {
		if !strings.EqualFold(a, "memberUid") {
			terms = append(terms, equals(a, p.DN))
			continue
		}
		for _, uid := range p.uids {
			terms = append(terms, equals(a, uid))
		}
	}
	if p.primaryGroup != "" {
		terms = append(terms, equals("objectSid", p.primaryGroup))
	}
	return terms
}

// groupTerms are filters for the groups that name one of children.
func (w *walker) groupTerms(children []Group) []string {
	var terms []string
	for _, g := range children {
		for _, a := range w.members {
			if !strings.EqualFold(a, "memberUid") {
				terms = append(terms, equals(a, g.DN))
			}
		}
	}
	return terms
}

// memberAttributes are those of the schema's members that some group has. A
// filter over attributes that nobody uses costs the server as much as one over
// those that count, and it is sent for every login and refresh.
type memberAttributes struct {
	mu    sync.Mutex
	known []string
	until time.Time
}

// membersKept is how long it may take until the first group of a new kind is
// seen.
const membersKept = 30 * time.Second

// membersInUse returns the attributes to search for members by. With more than
// one to choose from it asks, at most every membersKept, which of them any group
// has; whatever the server does not answer in full counts as in use.
func (d *Directory) membersInUse(ctx context.Context, s *schema) ([]string, error) {
	if len(s.members) == 1 {
		return s.members, nil
	}
	m := &d.members
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Now().Before(m.until) {
		return m.known, nil
	}
	var used []string
	for _, a := range s.members {
		found, err := d.ask(ctx, "see whether any group has "+a, query{
			base: s.groups.BaseDN, scope: ldap.ScopeWholeSubtree, attributes: []string{"1.1"}, limit: 1,
			filter: "(&" + s.groups.Filter + "(" + a + "=*))",
		})
		if err != nil && resultCode(err) == 0 {
			return nil, err // nobody answers
		}
		if err != nil || len(found) > 0 {
			used = append(used, a)
		}
	}
	m.known, m.until = used, time.Now().Add(membersKept)
	return used, nil
}
