package web

import (
	"cmp"
	"net/http"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
)

// stateWords says to an administrator what a directory says of an account.
var stateWords = map[directory.State]string{
	directory.Active:          "active",
	directory.Disabled:        "disabled in the directory",
	directory.Locked:          "locked in the directory",
	directory.Expired:         "past its end date",
	directory.PasswordExpired: "its password has expired",
	directory.MustChange:      "must change the password before anything else",
}

// getExplanation answers why somebody has the groups they have: administrators about
// everybody, others about themselves.
func (a *apiServer) getExplanation(r *http.Request, c caller) (int, any, error) {
	q := r.URL.Query()
	x, err := a.idp.ExplainTo(r.Context(), c.actor, c.me.Admin, q.Get("user"), q.Get("cluster"))
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, wireExplanation(x, a.now()), nil
}

// wireExplanation is x as the API tells it.
func wireExplanation(x idp.Explanation, now time.Time) api.Explanation {
	p := x.Entry.Person
	out := api.Explanation{
		Person: api.ExplainedPerson{
			Directory: p.Directory, DN: p.DN, Sub: p.Sub(), Username: p.Username, Name: p.Name, Email: p.Email,
			State: string(p.State), Account: cmp.Or(stateWords[p.State], string(p.State)), PasswordChanged: when(p.PasswordChanged),
		},
		Strategy: x.Entry.Strategy, Queries: []api.ExplainedQuery{}, Groups: []api.ExplainedGroup{}, LeftOut: []api.LeftOut{},
		Token: api.ExplainedToken{Cluster: x.Cluster, RequireGroups: x.Required, Refused: x.Refused, Claims: x.Claims, Size: x.Size, MaxSize: x.MaxSize},
	}
	for _, q := range x.Entry.Queries {
		out.Queries = append(out.Queries, api.ExplainedQuery{
			Doing: q.Doing, Base: q.Base, Filter: q.Filter, Entries: q.Entries, Error: q.Error,
			Milliseconds: float64(q.Took.Microseconds()) / 1000,
		})
	}
	for _, g := range x.Groups {
		e := api.ExplainedGroup{Name: g.Name, Path: g.Path}
		for _, m := range g.Through {
			e.Through = append(e.Through, wireMember(m, now))
		}
		out.Groups = append(out.Groups, e)
	}
	for _, l := range x.LeftOut {
		e := api.LeftOut{Name: l.Name, DN: l.DN, Rule: l.Rule}
		if l.Through != nil {
			m := wireMember(*l.Through, now)
			e.Through = &m
		}
		out.LeftOut = append(out.LeftOut, e)
	}
	return out
}

// wireMember is m as the API tells it.
func wireMember(m groups.Member, now time.Time) api.Member {
	return api.Member{
		Kind: string(m.Kind), ID: m.ID, Name: m.Name, End: when(m.End),
		Ended: !m.End.IsZero() && !m.End.After(now), Reason: m.Reason,
		GrantedBy: m.GrantedBy, GrantedByName: m.GrantedByName, GrantedAt: when(m.GrantedAt),
	}
}
