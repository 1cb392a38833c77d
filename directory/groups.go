package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

const (
	maxGroups = 5000 // of one person; more are an error
	maxBatch  = 50   // DNs or SIDs in one filter
)

// inChainRule is LDAP_MATCHING_RULE_IN_CHAIN [MS-ADTS 3.1.1.3.4.4.3].
const inChainRule = "1.2.840.113556.1.4.1941"

// Groups returns all groups of a person that Find or Lookup returned, sorted by
// name. Groups hidden by include or exclude are left out and not looked
// through; so are groups whose name no token may hold. It returns all groups or
// an error, never a part of them.
func (d *Directory) Groups(ctx context.Context, p Person) ([]Group, error) {
	ctx, cancel := budget(ctx)
	defer cancel()
	found, err := d.groups(ctx, p)
	if err != nil {
		return nil, d.failed("find the groups of "+p.DN, err)
	}
	slices.SortFunc(found, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(found, func(a, b Group) bool { return a.Name == b.Name }), nil
}

func (d *Directory) groups(ctx context.Context, p Person) ([]Group, error) {
	s, err := d.schema(ctx)
	if err != nil {
		return nil, err
	}
	if d.cfg.Type == TypeActiveDirectory && p.primaryGroup == "" {
		return nil, errors.New("bindDN may not read the person's primaryGroupID: give it the right to")
	}
	var found []*ldap.Entry
	switch s.groups.Nested {
	case NestedInChain:
		found, err = d.inChain(ctx, s, p)
	case NestedTokenGroups:
		found, err = d.tokenGroups(ctx, s, p)
	default:
		return d.walk(ctx, s, p)
	}
	if err != nil {
		return nil, err
	}
	return d.trace(s, p, found)
}

// group makes a Group of an entry, or says that it may not be seen.
func (d *Directory) group(s *schema, e *ldap.Entry) (Group, bool) {
	name := clean(e.GetEqualFoldAttributeValue(s.groups.Name))
	full := d.Prefix() + name
	ok := name != "" && printable(name) && !reserved(full) && s.visible(name)
	return Group{Name: full, DN: e.DN, Path: []string{e.DN}}, ok
}

// searchGroups returns the groups that match groups.filter and one of terms.
func (d *Directory) searchGroups(ctx context.Context, s *schema, terms, attributes []string) ([]*ldap.Entry, error) {
	filter := "(&" + s.groups.Filter + "(|" + strings.Join(terms, "") + "))"
	return d.ask(ctx, "find groups", query{base: s.groups.BaseDN, scope: ldap.ScopeWholeSubtree, filter: filter, attributes: append(attributes, s.groups.Name), limit: maxGroups})
}

// walk looks for groups from the person upwards, all of one depth at a time. A
// group that was seen is not looked through again, so circles end. It stops at
// maxDepth.
func (d *Directory) walk(ctx context.Context, s *schema, p Person) ([]Group, error) {
	found, err := d.searchGroups(ctx, s, s.personTerms(p), nil)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	level := d.unseen(s, seen, found, nil)
	all := level
	for depth := 2; depth <= s.groups.MaxDepth && len(level) > 0; depth++ {
		var next []Group
		for batch := range slices.Chunk(level, maxBatch) {
			found, err := d.searchGroups(ctx, s, s.groupTerms(batch), slices.Clone(s.members))
			if err != nil {
				return nil, err
			}
			next = append(next, d.unseen(s, seen, found, batch)...)
		}
		if all = append(all, next...); len(all) > maxGroups {
			return nil, fmt.Errorf("there are more than %d", maxGroups)
		}
		level = next
	}
	return all, nil
}

// unseen makes groups of those entries that are new and may be seen, and notes
// them in seen. Children are the groups they were found through.
func (d *Directory) unseen(s *schema, seen map[string]bool, entries []*ldap.Entry, children []Group) []Group {
	var res []Group
	for _, e := range entries {
		key := foldDN(e.DN)
		g, ok := d.group(s, e)
		if ok && !seen[key] {
			g.Path = append(pathThrough(s, e, children), e.DN)
			res = append(res, g)
		}
		seen[key] = true
	}
	return res
}

// pathThrough is the path of the one of children that e names as a member.
func pathThrough(s *schema, e *ldap.Entry, children []Group) []string {
	if len(children) == 1 {
		return slices.Clone(children[0].Path)
	}
	members := map[string]bool{}
	if len(children) > 0 {
		for _, a := range s.members {
			for _, m := range e.GetEqualFoldAttributeValues(a) {
				members[foldDN(m)] = true
			}
		}
	}
	for _, c := range children {
		if members[foldDN(c.DN)] {
			return slices.Clone(c.Path)
		}
	}
	return nil
}

// personTerms are filters for the groups that name the person.
func (s *schema) personTerms(p Person) []string {
	var terms []string
	for _, a := range s.members {
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
func (s *schema) groupTerms(children []Group) []string {
	var terms []string
	for _, g := range children {
		for _, a := range s.members {
			if !strings.EqualFold(a, "memberUid") {
				terms = append(terms, equals(a, g.DN))
			}
		}
	}
	return terms
}

func equals(attribute, value string) string {
	return "(" + attribute + "=" + ldap.EscapeFilter(value) + ")"
}

// tracedAttributes are what trace reads of each group.
func tracedAttributes() []string { return []string{"memberOf", "objectSid"} }

// inChain asks Active Directory for all groups at any depth. Its rule does not
// see the primary group, so that and the groups it is in are asked for as well.
func (d *Directory) inChain(ctx context.Context, s *schema, p Person) ([]*ldap.Entry, error) {
	primary, err := d.ask(ctx, "read the primary group", query{base: "<SID=" + p.primaryGroup + ">", scope: ldap.ScopeBaseObject, filter: "(objectClass=*)", attributes: []string{"1.1"}, limit: 1})
	if err == nil && len(primary) != 1 {
		err = errors.New("bindDN may not read it")
	}
	if err != nil {
		return nil, fmt.Errorf("read the primary group %s: %w", p.primaryGroup, err)
	}
	rule := s.groups.Member + ":" + inChainRule + ":"
	return d.searchGroups(ctx, s, []string{equals(rule, p.DN), equals(rule, primary[0].DN), equals("objectSid", p.primaryGroup)}, tracedAttributes())
}

// tokenGroups reads the security identifiers that Active Directory computes for
// a person, and then the groups they stand for.
func (d *Directory) tokenGroups(ctx context.Context, s *schema, p Person) ([]*ldap.Entry, error) {
	person, err := d.ask(ctx, "read tokenGroups", query{base: p.DN, scope: ldap.ScopeBaseObject, filter: "(objectClass=*)", attributes: []string{"tokenGroups"}, limit: 1})
	if err != nil {
		return nil, err
	}
	var terms []string
	for _, e := range person {
		for _, raw := range e.GetEqualFoldRawAttributeValues("tokenGroups") {
			sid, err := decodeSID(raw)
			if err != nil {
				return nil, fmt.Errorf("tokenGroups: %w", err)
			}
			terms = append(terms, equals("objectSid", sid))
		}
	}
	if len(terms) == 0 {
		return nil, errors.New("tokenGroups is empty: bindDN needs the right to read it (group Pre-Windows 2000 Compatible Access or Windows Authorization Access)")
	}
	var all []*ldap.Entry
	for batch := range slices.Chunk(terms, maxBatch) {
		found, err := d.searchGroups(ctx, s, batch, tracedAttributes())
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// trace finds the way from the person to each of found by their memberOf, and
// leaves out what is reached only through hidden groups. While nothing is
// hidden, a group whose way leads through one outside of groups.baseDN or
// groups.filter counts too.
func (d *Directory) trace(s *schema, p Person, found []*ldap.Entry) ([]Group, error) {
	entries := map[string]*ldap.Entry{}
	level := map[string][]string{} // folded DN to the path before it
	for _, dn := range p.memberOf {
		level[foldDN(dn)] = nil
	}
	for _, e := range found {
		if err := whole(e); err != nil {
			return nil, err
		}
		entries[foldDN(e.DN)] = e
		if sid, err := decodeSID(e.GetEqualFoldRawAttributeValue("objectSid")); err == nil && sid == p.primaryGroup {
			level[foldDN(e.DN)] = nil
		}
	}
	var all []Group
	for len(level) > 0 {
		var reached []Group
		reached, level = d.climb(s, entries, level)
		all = append(all, reached...)
	}
	for _, e := range entries {
		if g, ok := d.group(s, e); ok && !s.hides() {
			all = append(all, g)
		}
	}
	return all, nil
}

// climb takes the groups of level out of entries and returns them, and the
// level above.
func (d *Directory) climb(s *schema, entries map[string]*ldap.Entry, level map[string][]string) ([]Group, map[string][]string) {
	var reached []Group
	above := map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(level)) {
		e := entries[key]
		if e == nil {
			continue
		}
		delete(entries, key)
		g, ok := d.group(s, e)
		if !ok {
			continue
		}
		g.Path = append(slices.Clone(level[key]), e.DN)
		reached = append(reached, g)
		for _, parent := range e.GetEqualFoldAttributeValues("memberOf") {
			above[foldDN(parent)] = g.Path
		}
	}
	return reached, above
}

// whole refuses an entry of which Active Directory sent an attribute in part:
// over 1,500 values come in ranges.
func whole(e *ldap.Entry) error {
	for _, a := range e.Attributes {
		if strings.Contains(strings.ToLower(a.Name), ";range=") {
			return fmt.Errorf("%w: %s is in more groups than the server shows at once", ErrUnusable, e.DN)
		}
	}
	return nil
}
