package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
)

const (
	maxEveryone     = 10_000 // of one answer of everyone
	maxOpened       = 50     // directory groups that one answer opens up
	maxOpenedPeople = 1_000  // of one directory group
	pickList        = 20     // people that are offered as somebody types
)

// isSub says whether s has the form of a sub of one of our directories, so that nobody
// needs to be looked up.
func (a *apiServer) isSub(s string) bool {
	name, id, _ := strings.Cut(s, ".")
	if parsed, err := uuid.Parse(id); err != nil || parsed.String() != id {
		return false
	}
	return slices.ContainsFunc(a.idp.Directories, func(d idp.Directory) bool { return d.Name() == name })
}

// searchPeople is the pick list of who adds members.
func (a *apiServer) searchPeople(r *http.Request, c caller) (int, any, error) {
	q, p, err := paged(r, pickList, pickList, "q", "limit")
	if err != nil {
		return 0, nil, err
	}
	if err := a.groups.MayLookUp(r.Context(), c.actor); err != nil {
		return 0, nil, err
	}
	found, err := a.idp.SearchPeople(r.Context(), q.Get("q"), p.Limit)
	return http.StatusOK, api.PeopleList{People: each(found, wirePerson), Cut: len(found) == p.Limit}, err
}

func (a *apiServer) listMembers(r *http.Request, c caller) (int, any, error) {
	q, p, err := paged(r, 0, 1000, "kind", "q", "cursor", "limit")
	if err != nil {
		return 0, nil, err
	}
	f := groups.MemberFilter{Kind: groups.Kind(q.Get("kind")), Query: q.Get("q")}
	switch f.Kind {
	case "", groups.KindPerson, groups.KindDirectoryGroup, groups.KindGroup:
	default:
		return 0, nil, badQuery("kind is person, directoryGroup or group.")
	}
	found, next, err := a.groups.Members(r.Context(), c.actor, r.PathValue("name"), f, p)
	return http.StatusOK, api.MemberList{Members: each(found, asOf(a.now()).member), Next: next}, err
}

func (a *apiServer) getMember(r *http.Request, c caller) (int, any, error) {
	m, err := a.groups.Member(r.Context(), c.actor, r.PathValue("name"), groups.Kind(r.PathValue("kind")), r.PathValue("id"))
	return http.StatusOK, asOf(a.now()).member(m), err
}

// oneOf is the one that is named, of a person the kind alone; false unless there is
// just one.
func oneOf(person, directoryGroup, group string) (groups.Ref, bool) {
	switch {
	case person != "" && directoryGroup == "" && group == "":
		return groups.Ref{Kind: groups.KindPerson}, true
	case directoryGroup != "" && person == "" && group == "":
		return groups.Ref{Kind: groups.KindDirectoryGroup, ID: directoryGroup, Name: directoryGroup}, true
	case group != "" && person == "" && directoryGroup == "":
		return groups.Ref{Kind: groups.KindGroup, Name: group}, true
	}
	return groups.Ref{}, false
}

// addMember answers the group, whose version is another one now. It looks nobody up for
// who may not add members: groups refuses them.
func (a *apiServer) addMember(r *http.Request, c caller) (int, any, error) {
	var in api.AddMember
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	m := groups.Member{Begin: instant(in.Begin), End: instant(in.End), Reason: in.Reason}
	var ok bool
	if m.Ref, ok = oneOf(in.Person, in.DirectoryGroup, in.Group); !ok {
		return 0, nil, &fault{Status: 422, Title: "Who is missing", Code: "invalid", Detail: "Name one person, one directory group or one group."}
	}
	name := r.PathValue("name")
	if m.Kind == groups.KindPerson && a.groups.RightsOn(c.actor, name).Members {
		p, err := a.idp.FindPerson(r.Context(), in.Person)
		if err != nil {
			return 0, nil, fmt.Errorf("find %q: %w", in.Person, err)
		}
		m.ID, m.Name = p.Sub(), p.Username
	}
	revision, err := a.revision(r, c, name)
	if err != nil {
		return 0, nil, asked(err, in)
	}
	g, err := a.groups.Add(r.Context(), c.actor, name, revision, m)
	return http.StatusOK, wireGroup(g), asked(err, in)
}

func (a *apiServer) removeMember(r *http.Request, c caller) (int, any, error) {
	name := r.PathValue("name")
	revision, err := a.revision(r, c, name)
	if err != nil {
		return 0, nil, err
	}
	g, err := a.groups.Remove(r.Context(), c.actor, name, revision, groups.Kind(r.PathValue("kind")), r.PathValue("id"))
	return http.StatusOK, wireGroup(g), err
}

// listEveryone answers who gets the group, nested; with people=true also who is in the
// directory groups on the way. One that cannot be read says so in its place.
func (a *apiServer) listEveryone(r *http.Request, c caller) (int, any, error) {
	q, p, err := paged(r, 1000, maxEveryone, "limit", "people")
	if err != nil {
		return 0, nil, err
	}
	people, err := flag(q, "people")
	if err != nil {
		return 0, nil, err
	}
	reach, cut, err := a.groups.Everyone(r.Context(), c.actor, r.PathValue("name"), p.Limit)
	if err != nil {
		return 0, nil, err
	}
	out := api.Everyone{Everyone: each(reach, asOf(a.now()).reach), Cut: cut}
	if people {
		err = a.openUp(r.Context(), out.Everyone)
	}
	return http.StatusOK, out, err
}

// openUp puts people into the first directory groups of all.
func (a *apiServer) openUp(ctx context.Context, all []api.Reach) error {
	opened := 0
	for i := range all {
		one := &all[i]
		if one.Kind != api.KindDirectoryGroup {
			continue
		}
		if opened++; opened > maxOpened {
			one.Problem = fmt.Sprintf("Only the first %d directory groups are opened up.", maxOpened)
			continue
		}
		found, err := a.idp.DirectoryMembers(ctx, one.ID, maxOpenedPeople)
		if errors.Is(err, context.Canceled) {
			return err
		}
		if err != nil {
			one.Problem = explain(err).Title
			continue
		}
		one.People = each(found.People, func(m directory.Member) api.GroupPerson {
			return api.GroupPerson{Person: wirePerson(m.Person), Path: m.Path}
		})
		one.PeopleCut, one.Unreadable = found.More, found.Unreadable
	}
	return nil
}
