package web

import (
	"net/http"
	"net/url"

	"github.com/tabard-id/tabard/groups"
)

const (
	maxReach  = 500 // people and directory groups of one page
	maxPeople = 200 // of one directory group
)

// everyonePage is everyone who gets a group.
type everyonePage struct {
	groups.Group
	Reach  []reachRow
	Cut    bool
	Max    int
	People int // among Reach
}

type reachRow struct {
	Who      party
	Ways     []way
	OpenURL  string // asks the directory who is in it; "" when that is shown
	Opened   *openedGroup
	CloseURL string
}

// way is a path, and whether it counts now.
type way struct {
	pathView
	Counts bool
}

// openedGroup is who is in a directory group.
type openedGroup struct {
	People        []party // sorted by name
	More          bool
	Unreadable    int // members that are no people here
	Error, Detail string
}

func (s *Site) showEveryone(w http.ResponseWriter, r *http.Request, v visitor) error {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return err
	}
	reach, cut, err := s.groups.Everyone(r.Context(), v.actor, g.Name, maxReach)
	if err != nil {
		return err
	}
	data := everyonePage{Group: g, Cut: cut, Max: maxReach}
	here, open := s.url(groupPath(g.Name)+"/everyone"), r.URL.Query().Get("open")
	for _, who := range reach {
		row := reachRow{Who: s.party(v, who.Ref), Ways: s.ways(v, who.Paths)}
		switch {
		case who.Kind != groups.KindDirectoryGroup:
			data.People++
		case who.ID == open:
			row.CloseURL, row.Opened = here, s.openGroup(r, v, who.ID)
		default:
			row.OpenURL = here + "?open=" + url.QueryEscape(who.ID) + "#open"
		}
		data.Reach = append(data.Reach, row)
	}
	p := s.pageFor(v, "groups", "Everyone in "+g.Name, data)
	p.Crumbs = s.crumbs(g.Name)
	return s.render(w, http.StatusOK, "everyone", p)
}

func (s *Site) ways(v visitor, all []groups.Path) []way {
	now := s.cfg.Now()
	return each(all, func(p groups.Path) way { return way{s.pathView(v, p), counts(p, now)} })
}

// openGroup asks the directory who is in one of its groups. That it does not answer is
// told beside the group: the rest of the page does not need it.
func (s *Site) openGroup(r *http.Request, v visitor, name string) *openedGroup {
	found, err := s.idp.DirectoryMembers(r.Context(), name, maxPeople)
	if err != nil {
		f := s.explainLogged(r, err)
		return &openedGroup{Error: f.Title, Detail: f.Detail}
	}
	opened := &openedGroup{More: found.More, Unreadable: found.Unreadable}
	for _, m := range found.People {
		p := m.Person
		one := s.party(v, groups.Ref{Kind: groups.KindPerson, ID: p.Sub(), Name: p.Username})
		one.Full = p.Name
		opened.People = append(opened.People, one)
	}
	return opened
}
