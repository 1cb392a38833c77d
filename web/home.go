package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
)

// access is one group of "My access".
type access struct {
	Name, Source string // Source: "directory" or "local"
	Via          string // directory group that leads to a local one; "" when the person is in it themselves
	By, Reason   string
	End          time.Time
}

// home is "My access": who I am, what I am in, why, and until when.
func (s *Site) home(w http.ResponseWriter, _ *http.Request, v visitor) error {
	local, err := s.groups.Of(v.sess.Sub, v.sess.Groups, s.cfg.Now())
	if err != nil {
		return fmt.Errorf("groups of %s: %w", v.sess.Sub, err)
	}
	return s.render(w, http.StatusOK, "home", s.pageFor(v, "home", "My access", struct {
		*idp.Session
		Access []access
	}{v.sess, accessOf(v.sess, local)}))
}

// accessOf lists what a session's person is in: local groups first, since those
// end and can be asked about here.
func accessOf(sess *idp.Session, local []groups.Effective) []access {
	all := make([]access, 0, len(local)+len(sess.Groups))
	for _, m := range local {
		all = append(all, access{Name: m.Group, Source: "local", End: m.End})
	}
	for _, name := range sess.Groups {
		all = append(all, access{Name: name, Source: "directory"})
	}
	slices.SortStableFunc(all, func(a, b access) int {
		return cmp.Or(strings.Compare(b.Source, a.Source), strings.Compare(a.Name, b.Name))
	})
	return all
}
