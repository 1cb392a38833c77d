package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/tabard-id/tabard/groups"
)

func (s *Site) confirmDelete(w http.ResponseWriter, r *http.Request, v visitor) error {
	return s.askDelete(w, r, v, http.StatusOK, "")
}

// askDelete names the effect. Status and notice say that it has to be asked again.
func (s *Site) askDelete(w http.ResponseWriter, r *http.Request, v visitor, status int, notice string) error {
	g, err := s.groups.Get(r.Context(), v.actor, r.PathValue("name"))
	if err != nil {
		return err
	}
	if !s.groups.RightsOn(v.actor, g.Name).Admin {
		return fmt.Errorf("delete %q: %w", g.Name, groups.ErrForbidden)
	}
	in := s.groups.Containing(v.actor, g.Name)
	through, err := s.ownedThrough(r.Context(), v.actor, g)
	if err != nil {
		return err
	}
	hidden := url.Values{"revision": {strconv.FormatInt(g.Revision, 10)}}
	if len(in) > 0 {
		hidden.Set("contained", "yes")
	}
	return s.confirm(w, status, v, g.Name, "Delete "+g.Name, confirmation{
		Heading: "Delete group " + g.Name + "?", Notice: notice, Effects: deletionWords(g, in, through), Danger: true, Hidden: hidden,
		Action: s.url(groupPath(g.Name) + "/delete"), Button: "Delete " + g.Name,
		Cancel: "Keep", CancelURL: s.url(groupPath(g.Name)),
	})
}

// deletionWords names what goes with g: in are the groups that contain it, through
// those that its members own.
func deletionWords(g groups.Group, in, through []string) []string {
	words := []string{"It has no members: nobody loses anything by this name."}
	if g.Members == 1 {
		words[0] = "Its one member loses it, and what clusters give it, with the next token."
	} else if g.Members > 1 {
		words[0] = fmt.Sprintf("Its %d members lose it, and what clusters give it, with their next tokens.", g.Members)
	}
	if len(in) > 0 {
		words = append(words, "It leaves "+listed(in)+", and so does everyone who is there through it.")
	}
	if len(through) > 0 {
		words = append(words, "Its members are no longer owners of "+listed(through)+".")
	}
	return append(words, "Bindings in clusters that name it stay, and give nothing. This cannot be undone.")
}

// ownedThrough returns the names of the groups that g is an owner of.
func (s *Site) ownedThrough(ctx context.Context, a groups.Actor, g groups.Group) (names []string, err error) {
	for cursor := ""; ; {
		found, next, err := s.groups.List(ctx, a, groups.Filter{}, groups.Page{Cursor: cursor, Limit: 1000})
		if err != nil {
			return nil, fmt.Errorf("groups that %q owns: %w", g.Name, err)
		}
		for _, other := range found {
			if slices.ContainsFunc(other.Owners, func(o groups.Ref) bool { return o.Kind == groups.KindGroup && o.ID == g.ID }) {
				names = append(names, other.Name)
			}
		}
		if cursor = next; cursor == "" {
			return names, nil
		}
	}
}

// deleteGroup deletes the group as it was when the effect was named; where it has
// changed since, the effect is named again.
func (s *Site) deleteGroup(w http.ResponseWriter, r *http.Request, v visitor) error {
	revision, err := strconv.ParseInt(r.PostForm.Get("revision"), 10, 64)
	if err != nil || revision <= 0 {
		return errBadForm
	}
	err = s.groups.Delete(r.Context(), v.actor, r.PathValue("name"), revision, r.PostForm.Get("contained") != "")
	var other *groups.MismatchError
	var contained *groups.ContainedError
	if errors.As(err, &other) || errors.As(err, &contained) {
		return s.askDelete(w, r, v, http.StatusPreconditionFailed, "The group was changed since you looked. Nothing was deleted; look once more.")
	} else if err != nil {
		return err
	}
	return s.see(w, r, "/groups?did=deleted")
}
