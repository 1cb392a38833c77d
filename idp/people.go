package idp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tabard-id/tabard/directory"
)

// maxFound is how many people SearchPeople returns at most.
const maxFound = 20

// SearchPeople returns the people of all directories who are called what begins with
// what was typed, as directory.Search does; at most limit, and never more than 20,
// sorted by name. A directory that gives no answer is left out; where none does, the
// error is ErrUnavailable, with directory.ErrBusy when that is all there is to it.
func (s *Service) SearchPeople(ctx context.Context, typed string, limit int) ([]directory.Person, error) {
	if limit <= 0 || limit > maxFound {
		limit = maxFound
	}
	lists := make([][]directory.Person, len(s.Directories))
	errs := make([]error, len(s.Directories))
	var all sync.WaitGroup
	for i, d := range s.Directories {
		all.Go(func() { lists[i], errs[i] = d.Search(ctx, typed, limit) })
	}
	all.Wait()
	if !slices.Contains(errs, nil) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
	}
	found := slices.Concat(lists...)
	for i, err := range errs {
		if err != nil {
			s.Log.WithError(err).WithField("directory", s.Directories[i].Name()).Debug("search for people goes on without this directory")
		}
	}
	if len(found) > limit { // who is called just that must not be lost among the others
		typed = strings.TrimSpace(typed)
		exact := func(p directory.Person) int {
			if strings.EqualFold(p.Username, typed) || strings.EqualFold(p.Email, typed) {
				return 0
			}
			return 1
		}
		slices.SortFunc(found, func(a, b directory.Person) int { return cmp.Or(exact(a)-exact(b), byName(a, b)) })
		found = found[:limit]
	}
	slices.SortFunc(found, byName)
	return found, nil
}

func byName(a, b directory.Person) int {
	return cmp.Or(strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), strings.Compare(a.Username, b.Username), strings.Compare(a.Sub(), b.Sub()))
}

// DirectoryMembers returns who is in a directory group, named as in tokens, as
// directory.Members does; at most limit. directory.ErrNotFound, also when no directory
// has the name's prefix; ErrUnavailable for whatever else goes wrong, with
// directory.ErrBusy when too many ask at once.
func (s *Service) DirectoryMembers(ctx context.Context, group string, limit int) (directory.Members, error) {
	for _, d := range s.Directories { // no prefix begins another's
		if strings.HasPrefix(group, d.Prefix()) {
			m, err := d.Members(ctx, group, limit)
			return m, outage(err)
		}
	}
	return directory.Members{}, directory.ErrNotFound
}
