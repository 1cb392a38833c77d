package web

import (
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
)

// wireGroup is g as the API tells it.
func wireGroup(g groups.Group) api.Group {
	out := api.Group{
		Settings: api.Settings{
			Name: g.Name, Description: g.Description, Clusters: g.Clusters, Labels: g.Labels, Requestable: g.Requestable,
		},
		ID: g.ID, Created: when(g.Created), CreatedBy: g.CreatedBy, CreatedByName: g.CreatedByName,
		MemberCount: g.Members, ETag: etag(g.Revision),
	}
	for _, o := range g.Owners {
		out.Owners = append(out.Owners, wireRef(o))
	}
	for _, f := range g.Formerly {
		out.Formerly = append(out.Formerly, api.FormerName{Name: f.Name, Until: f.Until, By: f.By, ByName: f.ByName})
	}
	return out
}

func wireRef(r groups.Ref) api.Ref { return api.Ref{Kind: string(r.Kind), ID: r.ID, Name: r.Name} }

// wireMember is m as the API tells it.
func wireMember(m groups.Member, now time.Time) api.Member {
	return api.Member{
		Ref: wireRef(m.Ref), Begin: when(m.Begin), End: when(m.End),
		Ended: !m.End.IsZero() && !m.End.After(now), Pending: m.Begin.After(now), Reason: m.Reason,
		GrantedBy: m.GrantedBy, GrantedByName: m.GrantedByName, GrantedAt: when(m.GrantedAt),
	}
}

// wirePath is p as the API tells it.
func wirePath(p groups.Path, now time.Time) api.Path {
	out := api.Path{Clusters: p.Clusters, Begin: when(p.Begin), End: when(p.End), Counts: true}
	for _, st := range p.Steps {
		out.Steps = append(out.Steps, api.Step{Group: st.Group, Member: wireMember(st.Member, now)})
		out.Counts = out.Counts && st.Member.CountsAt(now)
	}
	return out
}

func wireReach(r groups.Reach, now time.Time) api.Reach {
	out := api.Reach{Ref: wireRef(r.Ref), Paths: make([]api.Path, 0, len(r.Paths))}
	for _, p := range r.Paths {
		out.Paths = append(out.Paths, wirePath(p, now))
	}
	return out
}

// wirePeople is never nil, so that JSON has an array.
func wirePeople(found []directory.Person) []api.Person {
	out := make([]api.Person, 0, len(found))
	for _, p := range found {
		out = append(out, wirePerson(p))
	}
	return out
}

func wirePerson(p directory.Person) api.Person {
	return api.Person{Sub: p.Sub(), Username: p.Username, Name: p.Name, Email: p.Email}
}

// wireFile is f as the API tells it.
func wireFile(f groups.File) api.File {
	out := api.File{
		Name: f.Name, Description: f.Description, Clusters: f.Clusters, Labels: f.Labels, Requestable: f.Requestable,
		Members: make([]api.FileMember, 0, len(f.Members)),
	}
	for _, o := range f.Owners {
		out.Owners = append(out.Owners, wireWho(o))
	}
	for _, m := range f.Members {
		out.Members = append(out.Members, api.FileMember{Who: wireWho(m.Ref), Begin: when(m.Begin), End: when(m.End), Reason: m.Reason})
	}
	return out
}

func wireWho(r groups.Ref) api.Who {
	switch r.Kind {
	case groups.KindPerson:
		return api.Who{Person: r.ID, Name: r.Name}
	case groups.KindDirectoryGroup:
		return api.Who{DirectoryGroup: r.ID}
	}
	return api.Who{Group: r.Name}
}

// instant is t in UTC; nil is the zero time.
func instant(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
