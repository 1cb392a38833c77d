package directory

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Explanation is what Explain tells of one person.
type Explanation struct {
	Person   Person
	Strategy string   // how groups in groups were found; see Nested
	Queries  []Query  // in the order sent
	Groups   []Group  // with Path
	Hidden   []Hidden // groups that were found and left out
}

// Query is one search that was sent.
type Query struct {
	Doing, Base, Filter string
	Entries             int // that came back
	Took                time.Duration
	Error               string // empty when it went well
}

// Hidden is a group that was found and left out.
type Hidden struct {
	Name, DN string
	Rule     string // such as `groups.exclude[0] k8s-old-*`
}

// Explain finds a person, by login or by id, and their groups, as Find, Lookup
// and Groups do, and tells what it did. It fails as they do; the Explanation
// then holds what was learned until then.
func (d *Directory) Explain(ctx context.Context, loginOrID string) (Explanation, error) {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	r := &report{paths: true}
	ctx = context.WithValue(ctx, reportKey{}, r)
	var e Explanation
	p, err := d.lookup(ctx, loginOrID) // which sends nothing unless it is an id
	if errors.Is(err, ErrNotFound) {
		p, err = d.find(ctx, loginOrID)
	}
	if err != nil {
		err = d.failed("find a person", err)
	} else {
		e.Person = p
		e.Groups, err = d.Groups(ctx, p)
	}
	if s := d.learned.Load(); s != nil {
		e.Strategy = string(s.groups.Nested)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Queries, e.Hidden = r.queries, r.hidden
	slices.SortFunc(e.Hidden, func(a, b Hidden) int { return strings.Compare(a.Name+a.DN, b.Name+b.DN) })
	e.Hidden = slices.Compact(e.Hidden)
	return e, err
}

// report is filled by the searches whose context holds it under reportKey.
type report struct {
	paths   bool // wants the way to each group, which may cost more
	mu      sync.Mutex
	queries []Query
	hidden  []Hidden
}

type reportKey struct{}

// reportOf is the report that ctx carries, or nil. A nil report takes nothing.
func reportOf(ctx context.Context) *report {
	r, _ := ctx.Value(reportKey{}).(*report)
	return r
}

func (r *report) wantsPaths() bool { return r != nil && r.paths }

func (r *report) hide(name, dn, rule string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.hidden = append(r.hidden, Hidden{Name: name, DN: dn, Rule: rule})
	r.mu.Unlock()
}

// ask searches, and tells the report of ctx, if it has one, what for.
func (d *Directory) ask(ctx context.Context, doing string, q query) ([]*ldap.Entry, error) {
	began := time.Now()
	entries, err := d.search(ctx, q)
	if r := reportOf(ctx); r != nil {
		sent := Query{Doing: doing, Base: q.base, Filter: q.filter, Entries: len(entries), Took: time.Since(began)}
		if err != nil {
			sent.Error = err.Error()
		}
		r.mu.Lock()
		r.queries = append(r.queries, sent)
		r.mu.Unlock()
	}
	return entries, err
}
