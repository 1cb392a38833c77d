package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
)

// groupPage is one group: what the visitor may see of it, and the form to add a
// member for those who may.
type groupPage struct {
	groups.Group
	Rights    groups.Rights
	Kept      bool // the visitor owns it, but administrators alone may change it
	LabelList []label
	OwnerList []party
	In        []party    // groups that contain it
	Mine      []pathView // the visitor's own ways in

	Listed      []memberRow
	Query       string
	Kind        groups.Kind
	First, Next string // URLs; "" where there is no such page

	Add             addForm
	Starts, Lengths []length
	Error, Detail   string
}

// memberRow is one membership of the table.
type memberRow struct {
	groups.Member
	Who party
}

// addForm is what was typed into "Add member".
type addForm struct {
	Kind, Who, From, For, Reason string
	// Change is the name of the member whose membership is changed: Who is their id
	// then. Nobody is looked up, so that it can be done while a directory is down.
	Change string
}

// Group says that a kind of group is chosen.
func (f addForm) Group() bool {
	return f.Kind == string(groups.KindDirectoryGroup) || f.Kind == string(groups.KindGroup)
}

// length is a choice of when a membership begins, or how long it lasts. Lengths rather
// than dates: a plain form does not know the time zone of its reader.
type length struct {
	Value, Text string
	d           time.Duration
}

// asNow leaves the begin or the end of a membership as it is.
const asNow = "keep"

var starts = []length{
	{"", "now", 0},
	{"1h", "in 1 hour", time.Hour},
	{"8h", "in 8 hours", 8 * time.Hour},
	{"1d", "in 1 day", 24 * time.Hour},
	{"7d", "in 7 days", 7 * 24 * time.Hour},
	{"30d", "in 30 days", 30 * 24 * time.Hour},
}

var lengths = []length{
	{"", "until removed", 0},
	{"1h", "1 hour", time.Hour},
	{"8h", "8 hours", 8 * time.Hour},
	{"1d", "1 day", 24 * time.Hour},
	{"7d", "7 days", 7 * 24 * time.Hour},
	{"30d", "30 days", 30 * 24 * time.Hour},
	{"90d", "90 days", 90 * 24 * time.Hour},
	{"365d", "1 year", 365 * 24 * time.Hour},
}

func (s *Site) showGroup(w http.ResponseWriter, r *http.Request, v visitor) error {
	data := groupPage{}
	if id := r.URL.Query().Get("change"); id != "" {
		m, err := s.groups.Member(r.Context(), v.actor, r.PathValue("name"), groups.Kind(r.URL.Query().Get("kind")), id)
		if err != nil {
			return err
		}
		data.Add = addForm{Kind: string(m.Kind), Who: m.ID, From: asNow, For: asNow, Reason: m.Reason, Change: party{Ref: m.Ref}.Shown()}
	}
	return s.renderGroup(w, r, http.StatusOK, v, data)
}

func (s *Site) renderGroup(w http.ResponseWriter, r *http.Request, status int, v visitor, data groupPage) error {
	var err error
	if data.Group, err = s.groups.Get(r.Context(), v.actor, r.PathValue("name")); err != nil {
		return err
	}
	data.Rights = s.groups.RightsOn(v.actor, data.Name)
	data.Kept = !data.Rights.Members && s.groups.Owns(v.actor, data.Settings)
	data.LabelList, data.OwnerList = s.labels(data.Labels), s.parties(v, data.Owners)
	data.In = each(s.groups.Containing(v.actor, data.Name), func(name string) party {
		return s.party(v, groups.Ref{Kind: groups.KindGroup, Name: name})
	})
	if data.Mine, err = s.ownWays(r.Context(), v, data.Name); err != nil {
		return err
	}
	if data.Rights.Members {
		if err := s.listMembers(r, v, &data); err != nil {
			return err
		}
	}
	data.Starts, data.Lengths = starts, lengths
	if data.Add.Change != "" {
		keep := []length{{Value: asNow, Text: "not changed"}}
		data.Starts, data.Lengths = slices.Concat(keep, starts), slices.Concat(keep, lengths)
	}
	p := s.pageFor(v, "groups", data.Name, data)
	p.Crumbs, p.Scripts = s.crumbs(""), []string{"pick.js"}
	p.Did = done[r.URL.Query().Get("did")]
	return s.render(w, status, "group", p)
}

// ownWays is how the visitor is in a group, or will be another way; what has ended is
// left out.
func (s *Site) ownWays(ctx context.Context, v visitor, group string) ([]pathView, error) {
	if !slices.Contains(v.actor.Groups, group) {
		return nil, nil
	}
	all, err := s.groups.Why(ctx, v.sess.Sub, v.sess.Groups)
	if err != nil {
		return nil, fmt.Errorf("why %s is in %q: %w", v.sess.Sub, group, err)
	}
	now := s.cfg.Now()
	all = slices.DeleteFunc(all, func(p groups.Path) bool {
		return p.Group() != group || !counts(p, now) && !waits(p, now)
	})
	return s.paths(v, all), nil
}

func (s *Site) listMembers(r *http.Request, v visitor, data *groupPage) error {
	q := r.URL.Query()
	if q.Get("change") != "" || r.Method == http.MethodPost {
		q = url.Values{}
	}
	data.Query, data.Kind = strings.TrimSpace(q.Get("q")), groups.Kind(q.Get("kind"))
	filter, page := groups.MemberFilter{Kind: data.Kind, Query: data.Query}, groups.Page{Cursor: q.Get("after"), Limit: perPage}
	found, next, err := s.groups.Members(r.Context(), v.actor, data.Name, filter, page)
	if err != nil {
		return badPage(err, page)
	}
	data.Listed = each(found, func(m groups.Member) memberRow { return memberRow{m, s.party(v, m.Ref)} })
	data.First, data.Next = turnPages(s.url(groupPath(data.Name)), q, next)
	return nil
}

func (s *Site) addMember(w http.ResponseWriter, r *http.Request, v visitor) error {
	get := func(key string) string { return strings.TrimSpace(r.PostForm.Get(key)) }
	form := addForm{get("kind"), get("who"), get("from"), get("for"), get("reason"), get("change")}
	did, err := s.addTyped(r.Context(), v, r.PathValue("name"), form)
	if f := explain(err); err != nil && correctable(f) {
		return s.renderGroup(w, r, f.Status, v, groupPage{Add: form, Error: f.Title, Detail: f.Detail})
	} else if err != nil {
		return err
	}
	return s.see(w, r, groupPath(r.PathValue("name"))+"?did="+did)
}

// addTyped adds what was typed into the form, and says what that did. Who may not add
// learns nothing of who is in a directory.
func (s *Site) addTyped(ctx context.Context, v visitor, group string, form addForm) (did string, err error) {
	if _, err := s.groups.Get(ctx, v.actor, group); err != nil {
		return "", err
	}
	m := groups.Member{Ref: groups.Ref{Kind: groups.Kind(form.Kind)}, Reason: form.Reason}
	if !s.groups.RightsOn(v.actor, group).Members {
		_, err := s.groups.Add(ctx, v.actor, group, 0, m) // refuses, and leaves that in the trail
		return "", err
	}
	before, err := s.before(ctx, v, group, form)
	if err != nil {
		return "", err
	}
	if before != nil {
		m.Ref, did = before.Ref, "changed"
	} else if m.Ref, err = s.newcomer(ctx, v, group, m.Kind, form.Who); err != nil {
		return "", err
	}
	if m.Begin, m.End, err = span(form, before, s.cfg.Now()); err != nil {
		return "", err
	}
	_, err = s.groups.Add(ctx, v.actor, group, 0, m)
	return cmp.Or(did, "added"), err
}

// before is the membership that the form changes, nil where it adds one.
func (s *Site) before(ctx context.Context, v visitor, group string, form addForm) (*groups.Member, error) {
	if form.Change == "" {
		return nil, nil
	}
	m, err := s.groups.Member(ctx, v.actor, group, groups.Kind(form.Kind), form.Who)
	return &m, err
}

// newcomer is findParty for who is not a member yet: adding them again would put a
// new end in place of one that somebody has set.
func (s *Site) newcomer(ctx context.Context, v visitor, group string, kind groups.Kind, typed string) (groups.Ref, error) {
	ref, err := s.findParty(ctx, kind, typed)
	if err != nil {
		return ref, err
	}
	var there bool
	if kind == groups.KindGroup { // its id is not known to who may not see it
		var nested []groups.Member
		nested, _, err = s.groups.Members(ctx, v.actor, group, groups.MemberFilter{Kind: kind, Query: ref.Name}, groups.Page{})
		there = slices.ContainsFunc(nested, func(m groups.Member) bool { return m.Name == ref.Name })
	} else if _, err = s.groups.Member(ctx, v.actor, group, kind, ref.ID); err == nil {
		there = true
	} else if errors.Is(err, groups.ErrNotFound) {
		err = nil
	}
	if there {
		err = &fault{Status: http.StatusConflict, Title: "That is a member already", Detail: "Nothing was changed. Change begin, end and reason by the link in the member's row."}
	}
	return ref, err
}

// span is when a membership begins and ends, both zero for "now" and "until removed".
// before is the one that is there already, or nil.
func span(form addForm, before *groups.Member, now time.Time) (begin, end time.Time, err error) {
	now = now.UTC().Truncate(time.Second)
	if form.From == asNow && before != nil {
		begin = before.Begin
	} else if i := slices.IndexFunc(starts, func(l length) bool { return l.Value == form.From }); i < 0 {
		return begin, end, errBadForm
	} else if starts[i].d > 0 {
		begin = now.Add(starts[i].d)
	}
	if form.For == asNow && before != nil {
		return begin, before.End, nil
	}
	i := slices.IndexFunc(lengths, func(l length) bool { return l.Value == form.For })
	if i < 0 {
		return begin, end, errBadForm
	}
	if from := now; lengths[i].d > 0 {
		if begin.After(now) {
			from = begin
		}
		end = from.Add(lengths[i].d)
	}
	return begin, end, nil
}

// findParty is who was typed: a person is looked up in the directories, by login or
// sub. Of a local group it knows the name alone.
func (s *Site) findParty(ctx context.Context, kind groups.Kind, typed string) (groups.Ref, error) {
	if typed == "" {
		return groups.Ref{}, &fault{Status: 422, Title: "Who is missing", Detail: "Type a person's user name, or a group's name."}
	}
	switch kind {
	case groups.KindPerson:
		p, err := s.idp.FindPerson(ctx, typed)
		if err != nil {
			return groups.Ref{}, fmt.Errorf("find %q: %w", typed, err)
		}
		return groups.Ref{Kind: kind, ID: p.Sub(), Name: p.Username}, nil
	case groups.KindDirectoryGroup:
		return groups.Ref{Kind: kind, ID: typed, Name: typed}, nil
	case groups.KindGroup:
		return groups.Ref{Kind: kind, Name: typed}, nil
	}
	return groups.Ref{}, errBadForm
}

func (s *Site) confirmRemove(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return err
	}
	q := r.URL.Query()
	m, err := s.groups.Member(r.Context(), v.actor, g.Name, groups.Kind(q.Get("kind")), q.Get("id"))
	if err != nil {
		return err
	}
	if !s.groups.RightsOn(v.actor, g.Name).Members {
		return fmt.Errorf("remove a member of %q: %w", g.Name, groups.ErrForbidden)
	}
	name := party{Ref: m.Ref}.Shown()
	return s.confirm(w, http.StatusOK, v, g.Name, "Remove "+name, confirmation{
		Heading: "Remove " + name + " from " + g.Name + "?", Effects: s.removalWords(v, g, m), Danger: true,
		Hidden: url.Values{"kind": {string(m.Kind)}, "id": {m.ID}},
		Action: s.url(groupPath(g.Name) + "/remove"), Button: "Remove " + name,
		Cancel: "Keep", CancelURL: s.url(groupPath(g.Name)),
	})
}

// removalWords names the effect of taking m out of g.
func (s *Site) removalWords(v visitor, g groups.Group, m groups.Member) []string {
	lose := []string{g.Name}
	if in := s.groups.Containing(v.actor, g.Name); len(in) > 0 {
		lose = append(lose, in...)
	}
	name := party{Ref: m.Ref}.Shown()
	who := name + " loses "
	if m.Kind != groups.KindPerson {
		who = "Everyone in " + name + " loses "
	}
	if !m.CountsAt(s.cfg.Now()) {
		return []string{"This membership does not count now, so nobody loses anything at once."}
	}
	words := []string{who + listed(lose) + ", and what clusters give to " + itOrThem(len(lose)) + ", with the next token, but for what another path still gives."}
	if m.Kind == groups.KindPerson && m.ID == v.sess.Sub {
		words = append(words, "This is you.")
	}
	return words
}

func itOrThem(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

func (s *Site) removeMember(w http.ResponseWriter, r *http.Request, v visitor) error {
	name := r.PathValue("name")
	_, err := s.groups.Remove(r.Context(), v.actor, name, 0, groups.Kind(r.PostForm.Get("kind")), r.PostForm.Get("id"))
	if err != nil {
		return err
	}
	to := groupPath(name) + "?did=removed"
	if _, err := s.groups.Get(r.Context(), v.actor, name); errors.Is(err, groups.ErrNotFound) {
		to = "/groups?did=removed" // who removed themselves may not see it any more
	}
	return s.see(w, r, to)
}
