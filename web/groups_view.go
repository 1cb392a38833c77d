package web

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
)

// party is a person, a directory group or a local group as pages show it.
type party struct {
	groups.Ref
	Full string // display name, where a directory was asked
	Href string // a local group's page, or why a person has what they have; "" where the visitor may not look
}

// Shown is the name, or the id of who has none.
func (p party) Shown() string {
	if p.Name == "" || p.Kind == groups.KindDirectoryGroup {
		return p.ID
	}
	return p.Name
}

// Key names the party in a form: a local group by its name, others by id.
func (p party) Key() string {
	if p.Kind == groups.KindGroup {
		return string(p.Kind) + " " + p.Name
	}
	return string(p.Kind) + " " + p.ID
}

// party links ref to what the visitor may see of it.
func (s *Site) party(v visitor, ref groups.Ref) party {
	p := party{Ref: ref}
	switch {
	case ref.Kind == groups.KindPerson && ref.ID == v.sess.Sub:
		p.Href = s.url("/explain")
	case ref.Kind == groups.KindPerson && v.admin:
		p.Href = s.url("/explain?user=" + url.QueryEscape(ref.ID))
	case ref.Kind == groups.KindGroup:
		p.Href = s.groupHref(v, ref.Name)
	}
	return p
}

func (s *Site) parties(v visitor, refs []groups.Ref) []party {
	return each(refs, func(ref groups.Ref) party { return s.party(v, ref) })
}

// groupHref is the page of a local group, "" where the visitor may not see it.
func (s *Site) groupHref(v visitor, name string) string {
	if !v.admin && !s.groups.RightsOn(v.actor, name).See {
		return ""
	}
	return s.url(groupPath(name))
}

// pathView is a way to a group as pages show it: who it begins with, and each membership
// with who gave it, when, why and until when.
type pathView struct {
	From       party
	Steps      []step
	Begin, End time.Time // of the whole: the latest begin, the earliest end
}

type step struct {
	Group, Href string
	groups.Member
}

func (s *Site) pathView(v visitor, p groups.Path) pathView {
	return pathView{
		From: s.party(v, p.From()), Begin: p.Begin, End: p.End,
		Steps: each(p.Steps, func(st groups.Step) step { return step{st.Group, s.groupHref(v, st.Group), st.Member} }),
	}
}

func (s *Site) paths(v visitor, all []groups.Path) []pathView {
	return each(all, func(p groups.Path) pathView { return s.pathView(v, p) })
}

// counts reports whether every membership of p has begun and none has ended.
func counts(p groups.Path, now time.Time) bool {
	return !p.Begin.After(now) && (p.End.IsZero() || p.End.After(now))
}

// waits reports whether p will count later.
func waits(p groups.Path, now time.Time) bool {
	return p.Begin.After(now) && (p.End.IsZero() || p.End.After(p.Begin))
}

// listed joins names in a sentence; of many it says how many more there are.
func listed(names []string) string {
	const shown = 5
	if len(names) > shown+1 {
		names = append(slices.Clone(names[:shown]), fmt.Sprintf("%d more", len(names)-shown))
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// many says a number of things: "1 group", "3 groups".
func many(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
