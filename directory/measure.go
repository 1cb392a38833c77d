package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Measurement is how one strategy did at finding a person's groups.
type Measurement struct {
	Strategy    Nested
	Groups      int           // found
	Queries     int           // searches sent; a long answer comes in several pages
	Took        time.Duration // the second time, as in everyday use
	Error       string        // empty when it went well
	Recommended bool          // the fastest of those that found most
}

// Measure finds the groups of a person by each strategy that the directory can
// do, two times each. `none` is left out: it finds direct groups alone. It
// fails as Find does; a strategy that fails says so in its Measurement.
func (d *Directory) Measure(ctx context.Context, login string) ([]Measurement, error) {
	p, err := d.Find(ctx, login)
	if err != nil {
		return nil, err
	}
	s, err := d.schema(ctx)
	if err != nil {
		return nil, d.failed("measure", err)
	}
	strategies := []Nested{NestedWalk}
	if d.cfg.Type == TypeActiveDirectory {
		strategies = []Nested{NestedInChain, NestedTokenGroups, NestedWalk}
	}
	var all []Measurement
	for _, strategy := range strategies {
		m := d.measure(ctx, s, strategy, p)
		if m.Error == "" {
			m = d.measure(ctx, s, strategy, p)
		}
		all = append(all, m)
	}
	recommend(all)
	return all, nil
}

func (d *Directory) measure(ctx context.Context, s *schema, strategy Nested, p Person) Measurement {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	r := &report{}
	began := time.Now()
	found, err := d.groups(context.WithValue(ctx, reportKey{}, r), s, strategy, p)
	m := Measurement{Strategy: strategy, Groups: len(found), Queries: len(r.queries), Took: time.Since(began)}
	if err != nil {
		m.Error = err.Error()
	}
	return m
}

// recommend marks the fastest of those that found the most groups.
func recommend(all []Measurement) {
	best := -1
	for i, m := range all {
		if m.Error == "" && (best < 0 || m.Groups > all[best].Groups || m.Groups == all[best].Groups && m.Took < all[best].Took) {
			best = i
		}
	}
	if best >= 0 {
		all[best].Recommended = true
	}
}

// maxNames is how many groups DuplicateNames reads.
const maxNames = 50_000

// DuplicateNames returns the names that two or more groups would have in a
// token, sorted: cn is unique only in its organizational unit, and groups.rename
// may make one name of two. It reads every group, and fails when there are more
// than 50,000 or the server does not show all.
func (d *Directory) DuplicateNames(ctx context.Context) ([]string, error) {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	s, err := d.schema(ctx)
	if err != nil {
		return nil, d.failed("look for names used twice", err)
	}
	found, err := d.ask(ctx, "read the name of every group", query{
		base: s.groups.BaseDN, scope: ldap.ScopeWholeSubtree, filter: s.groups.Filter, attributes: []string{s.groups.Name}, limit: maxNames,
	})
	if err != nil {
		return nil, d.failed("look for names used twice", fmt.Errorf("read all groups: %w", err))
	}
	var names, twice []string
	for _, e := range found {
		if g, rule := d.group(s, e); rule == "" {
			names = append(names, g.Name)
		}
	}
	slices.SortFunc(names, strings.Compare)
	for i, name := range names {
		if i > 0 && names[i-1] == name {
			twice = append(twice, name)
		}
	}
	return slices.Compact(twice), nil
}
