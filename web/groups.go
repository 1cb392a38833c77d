package web

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
)

// done is what the page says after an act; the address carries the key alone, so
// that a link cannot put words on our page.
var done = map[string]string{
	"created": "Group created.",
	"deleted": "Group deleted.",
	"added":   "Member added. It counts from their next token.",
	"removed": "Member removed. It counts from their next token.",

	"session-ended":  "Session ended. Tokens it gave out end within minutes.",
	"sessions-ended": "All other sessions ended. Tokens they gave out end within minutes.",
}

// groupsPage is the list with the form to create one.
type groupsPage struct {
	Groups            []groups.Group
	Total             int
	Query             string
	Name, Description string // as typed, after a refusal
	Error, Detail     string
}

func (s *Site) listGroups(w http.ResponseWriter, r *http.Request, v visitor) error {
	return s.renderGroups(w, r, http.StatusOK, v, groupsPage{Query: strings.TrimSpace(r.URL.Query().Get("q"))})
}

func (s *Site) renderGroups(w http.ResponseWriter, r *http.Request, status int, v visitor, data groupsPage) error {
	all, err := s.groups.List(r.Context(), v.actor)
	if err != nil {
		return err
	}
	q := strings.ToLower(data.Query)
	for _, g := range all {
		if strings.Contains(strings.ToLower(g.Name+"\n"+g.Description), q) {
			data.Groups = append(data.Groups, g)
		}
	}
	data.Total = len(all)
	p := s.pageFor(v, "groups", "Groups", data)
	p.Did = done[r.URL.Query().Get("did")]
	return s.render(w, status, "groups", p)
}

func (s *Site) createGroup(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := parseForm(r); err != nil {
		return err
	}
	name, description := strings.TrimSpace(r.PostForm.Get("name")), strings.TrimSpace(r.PostForm.Get("description"))
	g, err := s.groups.Create(r.Context(), v.actor, name, description)
	if f := explain(err); err != nil && correctable(f) {
		return s.renderGroups(w, r, f.Status, v, groupsPage{Name: name, Description: description, Error: f.Title, Detail: f.Detail})
	} else if err != nil {
		return err
	}
	return s.see(w, r, groupPath(g.Name)+"?did=created")
}

// correctable says whether the person can put it right in the form they sent.
func correctable(f fault) bool {
	return f.Status == http.StatusUnprocessableEntity || f.Status == http.StatusConflict || f.Status == http.StatusServiceUnavailable
}

// groupPageData is one group with the form to add a member.
type groupPageData struct {
	groups.Group
	Add           addForm
	Error, Detail string
	Lifetimes     []lifetime
}

// addForm is what was typed into "Add member".
type addForm struct{ Kind, Who, For, Reason string }

// lifetime is a choice of how long a membership lasts. Lengths rather than dates:
// a plain form does not know the time zone of its reader.
type lifetime struct {
	Value, Text string
	d           time.Duration
}

var lifetimes = []lifetime{
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
	return s.renderGroup(w, r, http.StatusOK, v, groupPageData{})
}

func (s *Site) renderGroup(w http.ResponseWriter, r *http.Request, status int, v visitor, data groupPageData) error {
	var err error
	if data.Group, err = s.groups.Get(r.Context(), v.actor, r.PathValue("name")); err != nil {
		return err
	}
	data.Lifetimes = lifetimes
	p := s.pageFor(v, "groups", data.Name, data)
	p.Crumbs = []crumb{{"Groups", s.url("/groups")}}
	p.Did = done[r.URL.Query().Get("did")]
	return s.render(w, status, "group", p)
}

func (s *Site) addMember(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := parseForm(r); err != nil {
		return err
	}
	get := func(key string) string { return strings.TrimSpace(r.PostForm.Get(key)) }
	form := addForm{get("kind"), get("who"), get("for"), get("reason")}
	err := s.addTyped(r.Context(), v.actor, r.PathValue("name"), form)
	if f := explain(err); err != nil && correctable(f) {
		return s.renderGroup(w, r, f.Status, v, groupPageData{Add: form, Error: f.Title, Detail: f.Detail})
	} else if err != nil {
		return err
	}
	return s.see(w, r, groupPath(r.PathValue("name"))+"?did=added")
}

// addTyped adds what was typed into the form.
func (s *Site) addTyped(ctx context.Context, a groups.Actor, group string, form addForm) error {
	m := groups.Member{Reason: form.Reason}
	known := false
	for _, l := range lifetimes {
		if l.Value == form.For {
			known = true
			if l.d > 0 {
				m.End = s.cfg.Now().Add(l.d).UTC().Truncate(time.Second)
			}
		}
	}
	if !known {
		return errBadForm
	}
	find := s.idp.FindPerson
	switch groups.Kind(form.Kind) {
	case groups.KindPerson:
		return addMember(ctx, s.groups, find, a, group, form.Who, "", m)
	case groups.KindDirectoryGroup:
		return addMember(ctx, s.groups, find, a, group, "", form.Who, m)
	}
	return errBadForm
}

// FindPerson looks somebody up by what they type at sign-in, or by sub. Its errors
// are those of idp.Service.FindPerson.
type FindPerson func(ctx context.Context, loginOrSub string) (directory.Person, error)

// addMember adds a person, found in a directory, or a directory group to group.
// Who may not look at the group learns nothing of who is in a directory.
func addMember(ctx context.Context, g *groups.Service, find FindPerson, a groups.Actor, group, person, directoryGroup string, m groups.Member) error {
	if (person == "") == (directoryGroup == "") {
		return &fault{Status: 422, Title: "Who is missing", Detail: "Name one person or one directory group."}
	}
	m.Kind, m.ID, m.Name = groups.KindDirectoryGroup, directoryGroup, directoryGroup
	if person != "" {
		if _, err := g.Get(ctx, a, group); err != nil {
			return err
		}
		p, err := find(ctx, person)
		if err != nil {
			return fmt.Errorf("find %q: %w", person, err)
		}
		m.Kind, m.ID, m.Name = groups.KindPerson, p.Sub(), p.Username
	}
	return g.Add(ctx, a, group, m)
}

func (s *Site) confirmRemove(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return err
	}
	kind, id := groups.Kind(r.URL.Query().Get("kind")), r.URL.Query().Get("id")
	for _, m := range g.Members {
		if m.Kind == kind && m.ID == id {
			return s.render(w, http.StatusOK, "confirm", s.confirmRemoval(v, g, m))
		}
	}
	return fmt.Errorf("member %s of %s: %w", id, g.Name, groups.ErrNotFound)
}

func (s *Site) confirmRemoval(v visitor, g groups.Group, m groups.Member) page {
	effect := fmt.Sprintf("%s loses group %s and what clusters give it, with the next token.", m.Name, g.Name)
	if m.Kind == groups.KindDirectoryGroup {
		effect = fmt.Sprintf("Everyone in %s loses group %s and what clusters give it, with their next token, unless they are in it another way.", m.ID, g.Name)
	}
	p := s.pageFor(v, "groups", "Remove "+m.Name, confirmation{
		Heading: "Remove " + m.Name + " from " + g.Name + "?", Effect: effect, Danger: true,
		Hidden: map[string]string{"kind": string(m.Kind), "id": m.ID},
		Action: s.url(groupPath(g.Name) + "/remove"), Button: "Remove " + m.Name,
		Cancel: "Keep", CancelURL: s.url(groupPath(g.Name)),
	})
	p.Crumbs = []crumb{{"Groups", s.url("/groups")}, {g.Name, s.url(groupPath(g.Name))}}
	return p
}

func (s *Site) removeMember(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := parseForm(r); err != nil {
		return err
	}
	name := r.PathValue("name")
	err := s.groups.Remove(r.Context(), v.actor, name, groups.Kind(r.PostForm.Get("kind")), r.PostForm.Get("id"))
	if err != nil {
		return err
	}
	return s.see(w, r, groupPath(name)+"?did=removed")
}

func (s *Site) confirmDelete(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return err
	}
	effect := "It has no members: nobody loses anything. Bindings in clusters that name it stay, and give nothing."
	if n := len(g.Members); n == 1 {
		effect = "Its one member loses it, and what clusters give it, with the next token. This cannot be undone."
	} else if n > 1 {
		effect = fmt.Sprintf("Its %d members lose it, and what clusters give it, with their next tokens. This cannot be undone.", n)
	}
	p := s.pageFor(v, "groups", "Delete "+g.Name, confirmation{
		Heading: "Delete group " + g.Name + "?", Effect: effect, Danger: true,
		Action: s.url(groupPath(g.Name) + "/delete"), Button: "Delete " + g.Name,
		Cancel: "Keep", CancelURL: s.url(groupPath(g.Name)),
	})
	p.Crumbs = []crumb{{"Groups", s.url("/groups")}, {g.Name, s.url(groupPath(g.Name))}}
	return s.render(w, http.StatusOK, "confirm", p)
}

func (s *Site) deleteGroup(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := s.groups.Delete(r.Context(), v.actor, r.PathValue("name")); err != nil {
		return err
	}
	return s.see(w, r, "/groups?did=deleted")
}
