package directory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// securityGroups are the groups that Windows puts into tokens: bit 0x80000000 of
// groupType [MS-ADTS 2.2.12].
const (
	securityGroup  = 0x80000000
	securityGroups = "(groupType:1.2.840.113556.1.4.803:=2147483648)"
)

// byMemberOf asks Active Directory for the groups in level, for those in these and
// so on, and then for the people whose memberOf or primary group is one of them.
// memberOf is the server's own index of member, so it is always complete, and asking
// for it costs the server less than the in-chain rule does.
func (n *nest) byMemberOf(ctx context.Context, level []*ldap.Entry) error {
	if n.s.groups.Nested == NestedTokenGroups { // no token holds another group
		n.filter = "(&" + n.filter + securityGroups + ")"
		level = slices.DeleteFunc(level, func(e *ldap.Entry) bool {
			kind, _ := number(e, "groupType")
			return kind&securityGroup == 0
		})
	}
	n.widen()
	var all []*ldap.Entry
	for depth := 1; len(level) > 0; depth++ {
		if err := n.tooMuch(level, depth); err != nil {
			return err
		}
		all = append(all, level...)
		if n.s.groups.Nested == NestedNone {
			break
		}
		var err error
		if level, err = n.children(ctx, level); err != nil {
			return err
		}
	}
	return n.peopleIn(ctx, all, true)
}

// widen makes a way count as trace does: where groups.baseDN or groups.filter keep
// groups out of sight and nothing is hidden, the ways through those count as well.
func (n *nest) widen() {
	nested := n.s.groups.Nested
	if nested == NestedWalk || nested == NestedNone {
		return
	}
	n.maxDepth = maxGroups // the server counts no depth either
	if n.s.hides() || n.s.allSecurity {
		return
	}
	n.open, n.base, n.filter = true, cmp.Or(n.s.domain, n.base), "(objectClass=group)"
	if nested == NestedTokenGroups {
		n.filter += securityGroups
	}
}

// children returns the groups that are members of level, new, and count as a way.
func (n *nest) children(ctx context.Context, level []*ldap.Entry) ([]*ldap.Entry, error) {
	var next []*ldap.Entry
	for batch := range slices.Chunk(level, maxBatch) {
		terms := make([]string, len(batch))
		for i, e := range batch {
			terms[i] = equals("memberOf", e.DN)
		}
		found, err := n.groupsWith(ctx, terms, tracedAttributes())
		if err != nil {
			return nil, fmt.Errorf("read the groups in a group: %w", err)
		}
		for _, e := range found {
			key, above := foldDN(e.DN), n.shortest(e.GetEqualFoldAttributeValues("memberOf"))
			_, rule := n.group(n.s, e)
			if n.paths[key] == nil && above != nil && (n.open || rule == "") {
				n.paths[key] = append(slices.Clone(above), e.DN)
				next = append(next, e)
			}
		}
	}
	return next, nil
}

// shortest is the shortest path to one of these groups, and nil when none is of the nest.
func (n *nest) shortest(dns []string) []string {
	var best []string
	for _, dn := range dns {
		if path := n.paths[foldDN(dn)]; path != nil && (best == nil || len(path) < len(best)) {
			best = path
		}
	}
	return best
}

// peopleIn adds the people who have one of groups as their primary group or, when
// that counts, in their memberOf.
func (n *nest) peopleIn(ctx context.Context, groups []*ldap.Entry, memberOf bool) error {
	dns := map[string]string{} // by security identifier
	for batch := range slices.Chunk(groups, maxBatch/2) {
		var terms []string
		for _, e := range batch {
			sid, err := decodeSID(e.GetEqualFoldRawAttributeValue("objectSid"))
			if err != nil {
				return fmt.Errorf("bindDN may not read the objectSid of %s, so nobody knows whose primary group it is: %w", e.DN, err)
			}
			dns[sid] = e.DN
			if terms = append(terms, equals("primaryGroupID", sid[strings.LastIndexByte(sid, '-')+1:])); memberOf {
				terms = append(terms, equals("memberOf", e.DN))
			}
		}
		found, err := n.peopleWith(ctx, terms, n.limit+1)
		if !enough(err, len(found)) {
			return fmt.Errorf("read the people in a group: %w", err)
		}
		for _, e := range found {
			n.add(ctx, e, func(p Person) []string {
				in := []string{dns[p.primaryGroup]}
				if memberOf {
					in = append(in, e.GetEqualFoldAttributeValues("memberOf")...)
				}
				return n.shortest(in)
			})
		}
		if n.members.More = n.members.More || err != nil; n.members.More {
			return nil
		}
	}
	return nil
}
