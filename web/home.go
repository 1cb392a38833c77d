package web

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
)

// access is one local group of "My access".
type access struct {
	Name, Href string
	Clusters   []string // that it counts on; empty: all
	Paths      []pathView
	Begin, End time.Time // Begin lies ahead where none counts yet
}

// homePage is who I am, what I am in, why, and until when, and what I look after.
type homePage struct {
	*idp.Session
	Local         []access
	FromDirectory []string
	Owned         []groups.Group
	MoreOwned     bool
}

// Count is how many groups there are.
func (p homePage) Count() int { return len(p.Local) + len(p.FromDirectory) }

func (s *Site) home(w http.ResponseWriter, r *http.Request, v visitor) error {
	data := homePage{Session: v.sess}
	var err error
	if data.Local, err = s.localAccess(r.Context(), v); err != nil {
		return err
	}
	data.FromDirectory = slices.Sorted(slices.Values(v.sess.Groups))
	owned, next, err := s.groups.List(r.Context(), v.actor, groups.Filter{Mine: true}, groups.Page{Limit: perPage})
	if err != nil {
		return fmt.Errorf("groups that %s owns: %w", v.sess.Sub, err)
	}
	data.Owned, data.MoreOwned = owned, next != ""
	return s.render(w, http.StatusOK, "home", s.pageFor(v, "home", "My access", data))
}

// localAccess lists the local groups that v is in, and those that they will be in.
func (s *Site) localAccess(ctx context.Context, v visitor) ([]access, error) {
	in, err := s.groups.Of(v.sess.Sub, v.sess.Groups, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("groups of %s: %w", v.sess.Sub, err)
	}
	why, err := s.groups.Why(ctx, v.sess.Sub, v.sess.Groups)
	if err != nil {
		return nil, fmt.Errorf("why %s is in groups: %w", v.sess.Sub, err)
	}
	out := each(in, func(g groups.Effective) access {
		return access{Name: g.Group, Href: s.url(groupPath(g.Group)), Clusters: g.Clusters, End: g.End}
	})
	now := s.cfg.Now()
	for _, p := range why {
		i := slices.IndexFunc(out, func(a access) bool { return a.Name == p.Group() })
		switch {
		case i >= 0 && (counts(p, now) || waits(p, now)):
			out[i].Paths = append(out[i].Paths, s.pathView(v, p))
		case i < 0 && waits(p, now):
			out = append(out, access{p.Group(), s.groupHref(v, p.Group()), p.Clusters, []pathView{s.pathView(v, p)}, p.Begin, p.End})
		}
	}
	slices.SortStableFunc(out, func(a, b access) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
