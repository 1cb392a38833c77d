package web

import (
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
)

// each is f of each of all; never nil, so that JSON has an array.
func each[T, U any](all []T, f func(T) U) []U {
	out := make([]U, len(all))
	for i, one := range all {
		out[i] = f(one)
	}
	return out
}

// maybe is f of what v points to; nil for nil.
func maybe[T, U any](v *T, f func(T) U) *U {
	if v == nil {
		return nil
	}
	out := f(*v)
	return &out
}

// wireGroup is g as the API tells it.
func wireGroup(g groups.Group) api.Group {
	out := api.Group{
		Settings: api.Settings{
			Name: g.Name, Description: g.Description, Clusters: g.Clusters, Labels: g.Labels, Requestable: g.Requestable,
		},
		ID: g.ID, Created: when(g.Created), CreatedBy: g.CreatedBy, CreatedByName: g.CreatedByName,
		MemberCount: g.Members, ETag: etag(g.Revision),
	}
	out.Owners = each(g.Owners, wireRef)
	out.Formerly = each(g.Formerly, func(f groups.FormerName) api.FormerName { return api.FormerName(f) })
	return out
}

func wireRef(r groups.Ref) api.Ref { return api.Ref{Kind: string(r.Kind), ID: r.ID, Name: r.Name} }

// asOf is when something is told: what counts, has ended or waits hangs on it.
type asOf time.Time

// member is m as the API tells it.
func (at asOf) member(m groups.Member) api.Member {
	now := time.Time(at)
	return api.Member{
		Ref: wireRef(m.Ref), Begin: when(m.Begin), End: when(m.End),
		Ended: !m.End.IsZero() && !m.End.After(now), Pending: m.Begin.After(now), Reason: m.Reason,
		GrantedBy: m.GrantedBy, GrantedByName: m.GrantedByName, GrantedAt: when(m.GrantedAt),
	}
}

// path is p as the API tells it.
func (at asOf) path(p groups.Path) api.Path {
	return api.Path{
		Clusters: p.Clusters, Begin: when(p.Begin), End: when(p.End), Counts: counts(p, time.Time(at)),
		Steps: each(p.Steps, func(st groups.Step) api.Step { return api.Step{Group: st.Group, Member: at.member(st.Member)} }),
	}
}

func (at asOf) reach(r groups.Reach) api.Reach {
	return api.Reach{Ref: wireRef(r.Ref), Paths: each(r.Paths, at.path)}
}

func wireCluster(c idp.ClusterConfig) api.Cluster {
	return api.Cluster{Name: c.Name, ClientID: c.ClientID, APIServer: c.APIServer.URL, CA: c.APIServer.CA, Proxied: c.APIServer.Proxied}
}

func wirePerson(p directory.Person) api.Person {
	return api.Person{Sub: p.Sub(), Username: p.Username, Name: p.Name, Email: p.Email}
}

// wireFile is f as the API tells it.
func wireFile(f groups.File) api.File {
	return api.File{
		Name: f.Name, Description: f.Description, Clusters: f.Clusters, Labels: f.Labels, Requestable: f.Requestable,
		Owners: each(f.Owners, wireWho), Members: each(f.Members, wireFileMember),
	}
}

func wireFileMember(m groups.Member) api.FileMember {
	return api.FileMember{Who: wireWho(m.Ref), Begin: when(m.Begin), End: when(m.End), Reason: m.Reason}
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
