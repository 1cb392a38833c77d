package web

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/tabard-id/tabard/groups"
)

// done is what the page says after an act; the address carries the key alone, so
// that a link cannot put words on our page.
var done = map[string]string{
	"created": "Group created.",
	"deleted": "Group deleted.",
	"saved":   "Settings saved.",
	"renamed": "Group renamed. Bindings in clusters have to name it as it is called now.",
	"same":    "Nothing was changed.",
	"added":   "Member added. It counts from their next token.",
	"changed": "Membership changed. It counts from their next token.",
	"removed": "Member removed. It counts from their next token.",

	"session-ended":  "Session ended. Tokens it gave out end within minutes.",
	"sessions-ended": "All other sessions ended. Tokens they gave out end within minutes.",
}

const (
	perPage   = 50 // rows of a table
	maxLabels = 16 // labels that one listing is narrowed by
)

// chip is one part of a filter: what it says, and where the page is without it.
type chip struct{ Text, URL string }

// groupRow is one group of the list.
type groupRow struct {
	groups.Group
	Labels        []label // the first few
	More          int     // labels beyond them
	Owned, Member bool    // by and of the visitor
}

// label is a label with the listing of all groups that carry it.
type label struct{ Text, URL string }

// groupsPage is the list with the form to create one.
type groupsPage struct {
	Rows              []groupRow
	Query             string
	LabelFilter       []string // "key=value" or "key"
	Cluster           string
	Mine              bool
	Clusters          []string
	Username          string // of the visitor
	Chips             []chip
	First, Next       string // URLs; "" where there is no such page
	Name, Description string // as typed, after a refusal
	Error, Detail     string
}

// Narrowed says that a filter leaves groups out.
func (p groupsPage) Narrowed() bool { return len(p.Chips) > 0 }

func (s *Site) listGroups(w http.ResponseWriter, r *http.Request, v visitor) error {
	return s.renderGroups(w, r, http.StatusOK, v, groupsPage{})
}

func (s *Site) renderGroups(w http.ResponseWriter, r *http.Request, status int, v visitor, data groupsPage) error {
	q := r.URL.Query()
	data.Query, data.Cluster, data.Mine = strings.TrimSpace(q.Get("q")), q.Get("cluster"), q.Get("mine") != ""
	filter := groups.Filter{Query: data.Query, Cluster: data.Cluster, Mine: data.Mine, Labels: map[string]string{}}
	for _, l := range q["label"] {
		key, value, _ := strings.Cut(strings.TrimSpace(l), "=")
		if _, twice := filter.Labels[key]; key != "" && !twice && len(filter.Labels) < maxLabels {
			filter.Labels[key] = value
			data.LabelFilter = append(data.LabelFilter, strings.TrimSpace(l))
		}
	}
	page := groups.Page{Cursor: q.Get("after"), Limit: perPage}
	found, next, err := s.groups.List(r.Context(), v.actor, filter, page)
	if err != nil {
		return badPage(err, page)
	}
	if data.Rows, err = s.groupRows(v, found); err != nil {
		return err
	}
	data.Clusters, data.Username = s.idp.ClusterNames(), v.sess.Username
	data.Chips = s.chips(data)
	data.First, data.Next = turnPages(s.url("/groups"), q, next)
	p := s.pageFor(v, "groups", "Groups", data)
	p.Did = done[q.Get("did")]
	return s.render(w, status, "groups", p)
}

// groupRows says of each group what the visitor has to do with it.
func (s *Site) groupRows(v visitor, found []groups.Group) ([]groupRow, error) {
	in, err := s.groups.Of(v.sess.Sub, v.sess.Groups, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	const shown = 3
	rows := make([]groupRow, len(found))
	for i, g := range found {
		labels := s.labels(g.Labels)
		rows[i] = groupRow{
			Group: g, Labels: labels[:min(len(labels), shown)], More: max(0, len(labels)-shown), Owned: s.groups.Owns(v.actor, g.Settings),
			Member: slices.ContainsFunc(in, func(e groups.Effective) bool { return e.ID == g.ID }),
		}
	}
	return rows, nil
}

// labels lists a group's labels by key.
func (s *Site) labels(of map[string]string) []label {
	out := make([]label, 0, len(of))
	for key, value := range of {
		text := key + "=" + value
		out = append(out, label{text, s.url("/groups?label=" + url.QueryEscape(text))})
	}
	slices.SortFunc(out, func(a, b label) int { return strings.Compare(a.Text, b.Text) })
	return out
}

// chips is what narrows the list, each with the way to the list without it.
func (s *Site) chips(p groupsPage) []chip {
	without := func(drop string) string {
		q := url.Values{}
		set := func(key, value string) {
			if value != "" && key+value != drop {
				q.Add(key, value)
			}
		}
		set("q", p.Query)
		set("cluster", p.Cluster)
		for _, l := range p.LabelFilter {
			set("label", l)
		}
		if p.Mine {
			set("mine", "1")
		}
		return withQuery(s.url("/groups"), q)
	}
	var chips []chip
	if p.Query != "" {
		chips = append(chips, chip{"“" + p.Query + "”", without("q" + p.Query)})
	}
	for _, l := range p.LabelFilter {
		chips = append(chips, chip{"label " + l, without("label" + l)})
	}
	if p.Cluster != "" {
		chips = append(chips, chip{"on " + p.Cluster, without("cluster" + p.Cluster)})
	}
	if p.Mine {
		chips = append(chips, chip{"owned by me", without("mine1")})
	}
	return chips
}

// turnPages returns where the first and the next page of the listing at path are, ""
// where there is none. q is the query of the page that is shown.
func turnPages(path string, q url.Values, next string) (firstURL, nextURL string) {
	q = maps.Clone(q)
	after := q.Get("after")
	q.Del("did")
	q.Del("after")
	if after != "" {
		firstURL = withQuery(path, q)
	}
	if next != "" {
		q.Set("after", next)
		nextURL = withQuery(path, q)
	}
	return firstURL, nextURL
}

// badPage says in words for readers that the address of a page has a cursor that no
// listing gave out.
func badPage(err error, p groups.Page) error {
	if p.Cursor != "" && errors.Is(err, groups.ErrInvalid) {
		return &fault{Status: http.StatusBadRequest, Title: "There is no such page of the list", Detail: "The address has a mistake in it. Go back to the first page."}
	}
	return err
}

func withQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// createGroup makes a group. Where people would take its name for that of another, it
// asks first.
func (s *Site) createGroup(w http.ResponseWriter, r *http.Request, v visitor) error {
	name, description := strings.TrimSpace(r.PostForm.Get("name")), strings.TrimSpace(r.PostForm.Get("description"))
	if alike := s.groups.Lookalikes(name); v.admin && len(alike) > 0 && r.PostForm.Get("sure") != name {
		return s.confirm(w, http.StatusOK, v, "", "Create "+name, confirmation{
			Heading: "Create " + name + " all the same?", Effects: lookalikeWords(name, alike),
			Hidden: url.Values{"name": {name}, "description": {description}, "sure": {name}},
			Action: s.url("/groups"), Button: "Create all the same", Cancel: "Back to groups", CancelURL: s.url("/groups"),
		})
	}
	g, err := s.groups.Create(r.Context(), v.actor, groups.Settings{Name: name, Description: description})
	if f := explain(err); err != nil && correctable(f) {
		return s.renderGroups(w, r, f.Status, v, groupsPage{Name: name, Description: description, Error: f.Title, Detail: f.Detail})
	} else if err != nil {
		return err
	}
	return s.see(w, r, groupPath(g.Name)+"?did=created")
}

// confirm asks once more about a group, "" for one that is not there yet.
func (s *Site) confirm(w http.ResponseWriter, status int, v visitor, group, title string, c confirmation) error {
	p := s.pageFor(v, "groups", title, c)
	p.Crumbs = s.crumbs(group)
	return s.render(w, status, "confirm", p)
}

// lookalikeWords warns that people would take name for one of alike.
func lookalikeWords(name string, alike []string) []string {
	words := []string{"Clusters tell these names apart; people may not."}
	for _, other := range alike {
		words = append(words, fmt.Sprintf("%s looks like %s.", spelled(name), spelled(other)))
	}
	return words
}

// spelled is name with the code point behind every letter that is not ASCII, so that
// look-alikes show.
func spelled(name string) string {
	var b strings.Builder
	for _, r := range name {
		b.WriteRune(r)
		if r > unicode.MaxASCII {
			fmt.Fprintf(&b, " (%U) ", r)
		}
	}
	return strings.TrimSpace(b.String())
}

// correctable says whether the person can put it right in the form they sent.
func correctable(f fault) bool {
	return f.Status == http.StatusUnprocessableEntity || f.Status == http.StatusConflict || f.Status == http.StatusServiceUnavailable
}

// crumbs is the way to the pages of a group, "" for the list.
func (s *Site) crumbs(group string) []crumb {
	way := []crumb{{"Groups", s.url("/groups")}}
	if group != "" {
		way = append(way, crumb{group, s.url(groupPath(group))})
	}
	return way
}
