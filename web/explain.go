package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

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

func accountInWords(state directory.State) string { return cmp.Or(stateWords[state], string(state)) }

// getExplanation answers why somebody has the groups they have: administrators about
// everybody, others about themselves.
func (a *apiServer) getExplanation(r *http.Request, c caller) (int, any, error) {
	q, err := query(r, "user", "cluster")
	if err != nil {
		return 0, nil, err
	}
	x, err := a.idp.ExplainTo(r.Context(), c.actor, c.me.Admin, q.Get("user"), q.Get("cluster"))
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, wireExplanation(x, asOf(a.now())), nil
}

// wireExplanation is x as the API tells it.
func wireExplanation(x idp.Explanation, at asOf) api.Explanation {
	p := x.Entry.Person
	return api.Explanation{
		Person: api.ExplainedPerson{
			Directory: p.Directory, DN: p.DN, Sub: p.Sub(), Username: p.Username, Name: p.Name, Email: p.Email,
			State: string(p.State), Account: accountInWords(p.State), PasswordChanged: when(p.PasswordChanged),
		},
		Strategy: x.Entry.Strategy,
		Queries: each(x.Entry.Queries, func(q directory.Query) api.ExplainedQuery {
			return api.ExplainedQuery{
				Doing: q.Doing, Base: q.Base, Filter: q.Filter, Entries: q.Entries, Error: q.Error,
				Milliseconds: float64(q.Took.Microseconds()) / 1000,
			}
		}),
		Groups: each(x.Groups, func(g idp.ExplainedGroup) api.ExplainedGroup {
			return api.ExplainedGroup{Name: g.Name, Path: g.Path, Paths: each(g.Paths, at.path)}
		}),
		LeftOut: each(x.LeftOut, func(l idp.LeftOut) api.LeftOut {
			return api.LeftOut{Name: l.Name, DN: l.DN, Rule: l.Rule, Path: maybe(l.Path, at.path)}
		}),
		Token: api.ExplainedToken{Cluster: x.Cluster, RequireGroups: x.Required, Refused: x.Refused, Claims: x.Claims, Size: x.Size, MaxSize: x.MaxSize, SizeAdvice: x.SizeAdvice},
	}
}

// explainPage is the form, and what it was asked.
type explainPage struct {
	User, Cluster string // as asked
	Clusters      []string
	Error, Detail string
	Explained     *idp.Explanation
	In            []inToken
	Out           []leftOut
	Account       string // its state in words
	Claims        string // as JSON
}

// inToken is a group in the token: the DNs that lead to a directory's group, the paths
// that lead to a local one.
type inToken struct {
	Name, Href string
	DNs        []string
	Paths      []pathView
}

// leftOut is a group, or a path to one, that a rule keeps out.
type leftOut struct {
	idp.LeftOut
	Path *pathView
}

// traced is x as the page shows it.
func (s *Site) traced(v visitor, x idp.Explanation) (in []inToken, out []leftOut) {
	for _, g := range x.Groups {
		one := inToken{Name: g.Name, DNs: g.Path, Paths: s.paths(v, g.Paths)}
		if len(g.Paths) > 0 {
			one.Href = s.groupHref(v, g.Name)
		}
		in = append(in, one)
	}
	for _, l := range x.LeftOut {
		out = append(out, leftOut{l, maybe(l.Path, func(p groups.Path) pathView { return s.pathView(v, p) })})
	}
	return in, out
}

// showExplanation explains who is asked about, or who asks.
func (s *Site) showExplanation(w http.ResponseWriter, r *http.Request, v visitor) error {
	q := r.URL.Query()
	data := explainPage{User: strings.TrimSpace(q.Get("user")), Cluster: q.Get("cluster"), Clusters: s.idp.ClusterNames()}
	x, err := s.idp.ExplainTo(r.Context(), v.actor, v.admin, data.User, data.Cluster)
	status := http.StatusOK
	if f := explain(err); err != nil && correctable(f) {
		status, data.Error, data.Detail = f.Status, f.Title, f.Detail
	} else if err != nil {
		return err
	} else {
		claims, err := json.MarshalIndent(x.Claims, "", "  ")
		if err != nil {
			return fmt.Errorf("show the claims: %w", err)
		}
		data.Explained, data.Account, data.Claims = &x, accountInWords(x.Entry.Person.State), string(claims)
		data.In, data.Out = s.traced(v, x)
	}
	return s.render(w, status, "explain", s.pageFor(v, "explain", "Why a group?", data))
}
