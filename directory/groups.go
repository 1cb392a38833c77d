package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

const (
	maxGroups = 5000 // of one person; more are an error
	maxBatch  = 200  // DNs or SIDs in one filter
)

// Groups returns all groups of a person that Find or Lookup returned, sorted by
// name. Groups hidden by include or exclude are left out and not looked
// through; so are groups whose name no token may hold. It returns all groups or
// an error, never a part of them: more than 5,000 groups, or groups nested
// deeper than groups.maxDepth, are an error.
func (d *Directory) Groups(ctx context.Context, p Person) ([]Group, error) {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	s, err := d.schema(ctx)
	if err != nil {
		return nil, d.failed("find the groups of "+p.DN, err)
	}
	found, err := d.groups(ctx, s, s.groups.Nested, p)
	if err != nil {
		return nil, d.failed("find the groups of "+p.DN, err)
	}
	return found, nil
}

// groups returns the groups that strategy finds, sorted by name and each name
// once.
func (d *Directory) groups(ctx context.Context, s *schema, strategy Nested, p Person) ([]Group, error) {
	if d.cfg.Type == TypeActiveDirectory && p.primaryGroup == "" {
		return nil, errors.New("bindDN may not read the person's primaryGroupID: give it the right to")
	}
	var found []Group
	var err error
	switch strategy {
	case NestedInChain:
		found, err = d.inChain(ctx, s, p)
	case NestedTokenGroups:
		found, err = d.tokenGroups(ctx, s, p)
	default:
		found, err = d.walk(ctx, s, strategy, p)
	}
	if err != nil {
		return nil, err
	}
	if len(found) > maxGroups {
		return nil, fmt.Errorf("there are more than %d", maxGroups)
	}
	slices.SortFunc(found, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	if err := d.refuseCollisions(ctx, s, found); err != nil {
		return nil, err
	}
	return slices.CompactFunc(found, func(a, b Group) bool { return a.Name == b.Name }), nil
}

// group makes a Group of an entry, and names the rule that hides it if one does.
func (d *Directory) group(s *schema, e *ldap.Entry) (Group, string) {
	raw := e.GetEqualFoldAttributeValue(s.groups.Name)
	g := Group{DN: e.DN, own: clean(raw)}
	name := s.renamed(g.own)
	g.Name = d.Prefix() + name
	switch {
	case g.own == "":
		return g, "it has no " + s.groups.Name
	case padded(raw):
		return g, "its name begins or ends in white space"
	case !printable(g.own) || !printable(name):
		return g, "its name holds control characters"
	case name == "":
		return g, "groups.rename leaves nothing of its name"
	case reserved(g.Name):
		return g, "reserved name"
	}
	return g, s.hiddenBy(g.own)
}

// visible is group, which tells the report of ctx what it hides.
func (d *Directory) visible(ctx context.Context, s *schema, e *ldap.Entry) (Group, bool) {
	g, rule := d.group(s, e)
	if rule != "" {
		reportOf(ctx).hide(g.Name, g.DN, rule)
	}
	return g, rule == ""
}

// refuseCollisions fails when groups.rename made one name of two: of two groups
// of the person, or of one of theirs and any other group. Who may name a group
// must not get the rights of another.
func (d *Directory) refuseCollisions(ctx context.Context, s *schema, sorted []Group) error {
	if len(s.renames) == 0 {
		return nil
	}
	const collision = "groups.rename makes %q of both %q and %q: change its rules"
	var terms []string
	owns := map[string]string{}
	for i, g := range sorted {
		if i > 0 && sorted[i-1].Name == g.Name && sorted[i-1].own != g.own {
			return fmt.Errorf(collision, g.Name, sorted[i-1].own, g.own)
		}
		if name := strings.TrimPrefix(g.Name, d.Prefix()); name != g.own {
			owns[g.Name] = g.own
			terms = append(terms, equals(s.groups.Name, name))
		}
	}
	for batch := range slices.Chunk(terms, maxBatch) {
		taken, err := d.searchGroups(ctx, s, "see whether renamed groups take another's name", batch)
		if err != nil {
			return err
		}
		for _, e := range taken {
			g, rule := d.group(s, e)
			if own := owns[g.Name]; rule == "" && own != "" && own != g.own {
				return fmt.Errorf(collision, g.Name, own, g.own)
			}
		}
	}
	return nil
}

// searchGroups returns the groups that match groups.filter and one of terms.
func (d *Directory) searchGroups(ctx context.Context, s *schema, doing string, terms []string, attributes ...string) ([]*ldap.Entry, error) {
	if len(terms) == 0 {
		return nil, nil
	}
	return d.ask(ctx, doing, query{
		base: s.groups.BaseDN, scope: ldap.ScopeWholeSubtree, attributes: append(attributes, s.groups.Name), limit: maxGroups,
		filter: "(&" + s.groups.Filter + "(|" + strings.Join(terms, "") + "))",
	})
}

func equals(attribute, value string) string {
	return "(" + attribute + "=" + ldap.EscapeFilter(value) + ")"
}
