package directory

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"
)

const (
	membersTime  = 10 * time.Second
	maxMembers   = 10_000 // people
	maxGroupName = 1024   // bytes
)

// Members is who is in a group.
type Members struct {
	People []Member // sorted by name
	// More: there are more than were asked for. Unreadable then counts no further.
	More bool
	// Unreadable counts members that are no people here: entries that no token can
	// be made of and, but in Active Directory, what is named as a member and is
	// neither one of the people nor of the groups of this configuration.
	Unreadable int
}

// Member is a person who is in a group.
type Member struct {
	Person Person
	// Path holds DNs from the group that was asked for down to the one that names
	// the person, both included.
	Path []string
}

// Members returns who is in a group, named as in tokens ("corp:devs"), directly or
// through groups in it: all whose Groups have it, where those can be told. At most
// limit people are returned, and never more than 10,000. A group that is hidden by
// configuration is ErrNotFound. Groups nested deeper than groups.maxDepth (of walk),
// or more than 5,000 of them, are an error. It takes at most 10 s, and fails with
// ErrUnavailable, with ErrBusy as well when too many ask at once.
func (d *Directory) Members(ctx context.Context, group string, limit int) (Members, error) {
	ctx, cancel := context.WithTimeout(ctx, d.membersTime)
	defer cancel()
	if limit <= 0 || limit > maxMembers {
		limit = maxMembers
	}
	m, err := d.membersOf(ctx, group, limit)
	if err != nil {
		return Members{}, d.failed("list the members of "+strconv.Quote(group[:min(len(group), 100)]), err)
	}
	slices.SortFunc(m.People, func(a, b Member) int { return byName(a.Person, b.Person) })
	return m, nil
}

func (d *Directory) membersOf(ctx context.Context, group string, limit int) (Members, error) {
	own, ok := strings.CutPrefix(group, d.Prefix())
	if !ok || own == "" || len(group) > maxGroupName || !printable(group) {
		return Members{}, ErrNotFound
	}
	if err := turn(ctx, d.lists); err != nil {
		return Members{}, err
	}
	defer d.lists.release()
	s, err := d.schema(ctx)
	if err != nil {
		return Members{}, err
	}
	n := &nest{reader: d.newReader(s), limit: limit, maxDepth: s.groups.MaxDepth, paths: map[string][]string{}, seen: map[string]bool{}}
	n.base, n.filter = s.groups.BaseDN, s.groups.Filter
	list, attributes := n.down, slices.Clone(s.members)
	if d.cfg.Type == TypeActiveDirectory {
		if attributes = append(attributes, "objectSid"); strings.EqualFold(s.groups.Member, "member") {
			list, attributes = n.byMemberOf, append(tracedAttributes(), "groupType")
		}
	}
	roots, err := n.named(ctx, group, own, attributes)
	if err == nil {
		err = list(ctx, roots)
	}
	return n.members, err
}

// nest finds the people below one group.
type nest struct {
	*reader
	base, filter string // of groups that count as a way
	open         bool   // so do those whose name no token may hold
	limit        int
	maxDepth     int
	paths        map[string][]string // from the top to each group, by its folded DN
	seen         map[string]bool     // folded DNs of people, so that each counts once
	members      Members
}

// named returns the groups that have this name in tokens; own is the name without
// the prefix.
func (n *nest) named(ctx context.Context, name, own string, attributes []string) ([]*ldap.Entry, error) {
	own, err := n.ownName(ctx, name, own)
	if err != nil {
		return nil, err
	}
	terms := []string{equals(n.s.groups.Name, own)}
	if nfd := norm.NFD.String(own); nfd != own {
		terms = append(terms, equals(n.s.groups.Name, nfd))
	}
	found, err := n.groupsWith(ctx, terms, attributes)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(e *ldap.Entry) bool {
		g, rule := n.group(n.s, e)
		return g.Name != name || rule != ""
	})
	if len(found) == 0 {
		return nil, ErrNotFound
	}
	for _, e := range found {
		n.paths[foldDN(e.DN)] = []string{e.DN}
	}
	return found, nil
}

// ownName is the name that the directory has for a group. With groups.rename that
// takes reading the name of every group, as a rule cannot be undone.
func (n *nest) ownName(ctx context.Context, name, own string) (string, error) {
	if len(n.s.renames) == 0 {
		return own, nil
	}
	all, err := n.browse(ctx, n.lists, query{base: n.base, scope: ldap.ScopeWholeSubtree, filter: n.filter, attributes: []string{n.s.groups.Name}, limit: maxNames})
	if err != nil {
		return "", fmt.Errorf("read the name of every group, for groups.rename: %w", err)
	}
	own = ""
	for _, e := range all {
		g, rule := n.group(n.s, e)
		if g.Name != name || rule != "" || g.own == own {
			continue
		}
		if own != "" {
			return "", fmt.Errorf("groups.rename makes %q of both %q and %q: change its rules", name, own, g.own)
		}
		own = g.own
	}
	if own == "" {
		return "", ErrNotFound
	}
	return own, nil
}

// groupsWith returns the groups that match one of terms.
func (n *nest) groupsWith(ctx context.Context, terms, attributes []string) ([]*ldap.Entry, error) {
	return n.browse(ctx, n.lists, query{
		base: n.base, scope: ldap.ScopeWholeSubtree, attributes: append(slices.Clone(attributes), n.s.groups.Name), limit: maxGroups,
		filter: "(&" + n.filter + "(|" + strings.Join(terms, "") + "))",
	})
}

// peopleWith returns people's entries that match one of terms.
func (n *nest) peopleWith(ctx context.Context, terms []string, limit int) ([]*ldap.Entry, error) {
	return n.browse(ctx, n.lists, query{
		base: n.s.users.BaseDN, scope: ldap.ScopeWholeSubtree, attributes: n.s.attributes, limit: limit, part: true,
		filter: "(&" + n.s.users.Filter + "(|" + strings.Join(terms, "") + "))",
	})
}

// add notes that the person of e is in the group, unless that is known. A path of
// nil says that e is not.
func (n *nest) add(ctx context.Context, e *ldap.Entry, path func(Person) []string) {
	key := foldDN(e.DN)
	if n.seen[key] {
		return
	}
	p, err := n.person(ctx, e)
	m := Member{Person: p, Path: path(p)}
	if m.Path == nil {
		return
	}
	n.seen[key] = true
	switch {
	case err != nil || n.cfg.Type == TypeActiveDirectory && p.primaryGroup == "":
		n.members.Unreadable++
	case len(n.members.People) >= n.limit:
		n.members.More = true
	default:
		n.members.People = append(n.members.People, m)
	}
}

// tooMuch says why the nest is more than may be looked through, if it is.
func (n *nest) tooMuch(level []*ldap.Entry, depth int) error {
	switch {
	case len(n.paths) > maxGroups:
		return fmt.Errorf("there are more than %d groups in it", maxGroups)
	case len(level) > 0 && depth > n.maxDepth:
		return fmt.Errorf("%s is nested deeper than groups.maxDepth %d: raise it", level[0].DN, n.maxDepth)
	}
	return nil
}

// down goes from group to group by the members that each names, and looks those up.
// It does not trust memberOf, which is incomplete where an overlay came late.
func (n *nest) down(ctx context.Context, level []*ldap.Entry) error {
	before := map[string]bool{}
	for depth := 1; len(level) > 0; depth++ {
		if err := n.tooMuch(level, depth); err != nil {
			return err
		}
		w := n.namedBy(level, before)
		err := n.peopleOf(ctx, w)
		if err == nil && n.cfg.Type == TypeActiveDirectory {
			err = n.peopleIn(ctx, level, false)
		}
		if err != nil || n.members.More {
			return err
		}
		if level, err = n.groupsOf(ctx, w, slices.Concat(n.s.members, []string{"objectSid"})); err != nil {
			return err
		}
		n.members.Unreadable += len(w.dns) + len(w.uids) - len(w.found)
		if n.s.groups.Nested == NestedNone {
			return nil
		}
	}
	return nil
}

// named are the members that the groups of one level name.
type named struct {
	dns, uids []string            // each once, as they are written
	via       map[string][]string // the path to the group that names it; by dnKey or uidKey
	found     map[string]bool     // those that there are entries for
}

func dnKey(dn string) string { return "dn:" + foldDN(dn) }

// uidKey keeps the case: so does a search for memberUid (RFC 2307, caseExactIA5Match).
func uidKey(uid string) string { return "uid:" + uid }

// namedBy returns the members of level that no level before named.
func (n *nest) namedBy(level []*ldap.Entry, before map[string]bool) *named {
	w := &named{via: map[string][]string{}, found: map[string]bool{}}
	for _, e := range level {
		for _, a := range n.s.members {
			key, all := dnKey, &w.dns
			if strings.EqualFold(a, "memberUid") {
				key, all = uidKey, &w.uids
			}
			for _, v := range e.GetEqualFoldAttributeValues(a) {
				if k := key(v); !before[k] {
					before[k], w.via[k] = true, n.paths[foldDN(e.DN)]
					*all = append(*all, v)
				}
			}
		}
	}
	return w
}

// first returns the path to the first of keys that is named, and notes it as found.
func (w *named) first(keys ...string) []string {
	for _, k := range keys {
		if path := w.via[k]; path != nil {
			w.found[k] = true
			return path
		}
	}
	return nil
}

// peopleOf adds the people that w names.
func (n *nest) peopleOf(ctx context.Context, w *named) error {
	if err := n.peopleBy(ctx, n.dnAttribute(), w.dns, func(p Person) []string { return w.first(dnKey(p.DN)) }); err != nil {
		return err
	}
	return n.peopleBy(ctx, "uid", w.uids, func(p Person) []string {
		var keys []string
		for _, uid := range p.uids {
			keys = append(keys, uidKey(uid))
		}
		return w.first(keys...)
	})
}

// dnAttribute is what finds an entry by its DN: RFC 5020, [MS-ADA1 2.177].
func (n *nest) dnAttribute() string {
	if n.cfg.Type == TypeActiveDirectory {
		return "distinguishedName"
	}
	return "entryDN"
}

// peopleBy adds the people who have one of values in attribute.
func (n *nest) peopleBy(ctx context.Context, attribute string, values []string, path func(Person) []string) error {
	for batch := range slices.Chunk(values, maxBatch) {
		if n.members.More {
			return nil
		}
		found, err := n.peopleWith(ctx, anyOf(attribute, batch), pageSize)
		if err != nil { // a part of them is no answer here
			return fmt.Errorf("read people by %s: %w", attribute, err)
		}
		for _, e := range found {
			n.add(ctx, e, path)
		}
	}
	return nil
}

// groupsOf returns the groups that w names, and are new and may be seen.
func (n *nest) groupsOf(ctx context.Context, w *named, attributes []string) ([]*ldap.Entry, error) {
	var level []*ldap.Entry
	for batch := range slices.Chunk(w.dns, maxBatch) {
		found, err := n.groupsWith(ctx, anyOf(n.dnAttribute(), batch), attributes)
		if err != nil {
			return nil, fmt.Errorf("read groups by %s: %w", n.dnAttribute(), err)
		}
		for _, e := range found {
			key, path := foldDN(e.DN), w.first(dnKey(e.DN))
			if _, rule := n.group(n.s, e); rule != "" || n.paths[key] != nil {
				continue
			}
			n.paths[key] = append(slices.Clone(path), e.DN)
			level = append(level, e)
		}
	}
	return level, nil
}

func anyOf(attribute string, values []string) []string {
	terms := make([]string, len(values))
	for i, v := range values {
		terms[i] = equals(attribute, v)
	}
	return terms
}
