package directory

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
)

const (
	searchTime = 2 * time.Second
	minTyped   = 2  // characters: of one, indexes know nothing
	maxShown   = 20 // people
	maxTyped   = 60 // entries read, some of which may be no good
)

// Search returns the people whose login attributes, display name or mail begin with
// what somebody typed so far, sorted by name: at most limit, and never more than 20.
// Less than two characters find nobody. When more match, those whose login attribute
// is just what was typed are among them. Accounts of any State are returned; entries
// that no token can be made of are left out. It takes at most 2 s, and fails with
// ErrUnavailable, with ErrBusy as well when too many search at once.
func (d *Directory) Search(ctx context.Context, typed string, limit int) ([]Person, error) {
	ctx, cancel := context.WithTimeout(ctx, d.searchTime)
	defer cancel()
	if limit <= 0 || limit > maxShown {
		limit = maxShown
	}
	people, err := d.beginsWith(ctx, typed, limit)
	if err != nil {
		return nil, d.failed("search for people", err)
	}
	return people, nil
}

func (d *Directory) beginsWith(ctx context.Context, typed string, limit int) ([]Person, error) {
	if typed = strings.TrimSpace(typed); !typeable(typed) || utf8.RuneCountInString(typed) < minTyped {
		return nil, nil
	}
	if err := turn(ctx, d.finds); err != nil {
		return nil, err
	}
	defer d.finds.release()
	typed, err := d.own(ctx, clean(typed))
	if errors.Is(err, ErrNotFound) || err == nil && utf8.RuneCountInString(typed) < minTyped {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := d.schema(ctx)
	if err != nil {
		return nil, err
	}
	found, more, err := d.peopleWith(ctx, s, typedFilter(s, typed))
	if err != nil || !more && len(found) <= limit {
		return found, err
	}
	exact, _, err := d.peopleWith(ctx, s, loginFilter(s.users.Login, typed))
	if err != nil {
		return nil, err
	}
	shown := slices.Clone(exact[:min(len(exact), limit)])
	for _, p := range found {
		if len(shown) < limit && !slices.ContainsFunc(exact, func(e Person) bool { return e.ID == p.ID }) {
			shown = append(shown, p)
		}
	}
	slices.SortFunc(shown, byName)
	return shown, nil
}

// typedFilter is the filter for people who are called what begins with typed. Each
// term is one that an index for the beginning of a value serves; Active Directory's
// anr is not used, as it looks at offices and former addresses too, and reads a
// leading = as an operator.
func typedFilter(s *schema, typed string) string {
	var attributes []string
	for _, a := range append(slices.Concat(s.users.Login, s.names), s.users.Email) {
		if !slices.ContainsFunc(attributes, func(b string) bool { return strings.EqualFold(a, b) }) {
			attributes = append(attributes, a)
		}
	}
	return anyFilter(attributes, ldap.EscapeFilter(typed)+"*")
}

// peopleWith returns people that match users.filter and filter, sorted by name, and
// says whether there are more entries.
func (d *Directory) peopleWith(ctx context.Context, s *schema, filter string) (people []Person, more bool, err error) {
	found, err := d.browse(ctx, d.finds, query{
		base: s.users.BaseDN, scope: ldap.ScopeWholeSubtree, attributes: s.attributes, limit: maxTyped, part: true,
		filter: "(&" + s.users.Filter + filter + ")",
	})
	if !enough(err, len(found)) {
		return nil, false, err
	}
	r := d.newReader(s)
	for _, e := range found {
		if p, err := r.person(ctx, e); err == nil {
			people = append(people, p)
		}
	}
	slices.SortFunc(people, byName)
	return people, err != nil, nil
}
