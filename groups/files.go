package groups

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/tabard-id/tabard/internal/store"
)

// Export calls fn with each group that f lets through and whose members a may see,
// by name, its members by kind, name and id. What applying them again would find
// unchanged. It ends with the first error of fn. ErrStale, ErrInvalid.
func (s *Service) Export(ctx context.Context, a Actor, f Filter, fn func(File) error) error {
	for page := (Page{Limit: 1000}); ; {
		list, next, err := s.List(ctx, a, f, page)
		if err != nil {
			return err
		}
		for _, g := range list {
			if !s.RightsOn(a, g.Name).Members {
				continue
			}
			file, err := s.file(ctx, g)
			if err != nil {
				return err
			}
			if err := fn(file); err != nil {
				return err
			}
		}
		if page.Cursor = next; next == "" {
			return nil
		}
	}
}

func (s *Service) file(ctx context.Context, g Group) (File, error) {
	f := File{Settings: g.Settings, Members: []Member{}}
	err := s.scan(ctx, membersKey(g.ID), "", store.MaxList, func(m Member) bool {
		f.Members = append(f.Members, m)
		return true
	})
	slices.SortFunc(f.Members, func(a, b Member) int { return byKind(a.Ref, b.Ref) })
	return f, err
}

// byKind orders by kind, name and id.
func byKind(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// Apply makes the groups what files say, or with DryRun tells what it would do. All
// is validated before the first write; then it writes in chunks, each change with
// its own events in the trail, each on the condition that its groups are as they
// were when it began. One that was cut off, or met another's change (ErrConflict), is
// applied again, and goes on where it stopped; what was done by then is returned.
// Owners may apply files that change what they may change. ErrForbidden, ErrInvalid
// (with all that is wrong), *ContainedError for a group to prune, ErrStale,
// ErrConflict, ErrUnknown also when it was done in part.
func (s *Service) Apply(ctx context.Context, a Actor, files []File, o ApplyOptions) ([]Applied, error) {
	p, err := s.plan(ctx, a, files, o)
	if err != nil {
		return nil, s.refuse(ctx, a, applyEvent, err)
	}
	if o.DryRun {
		var out []Applied
		for _, st := range p.steps {
			out = append(out, st.applied)
		}
		return out, nil
	}
	return p.run(ctx)
}

// matchesAll reports whether labels has all of want; an empty value stands for any.
func matchesAll(labels, want map[string]string) bool {
	for k, v := range want {
		if has, ok := labels[k]; !ok || v != "" && v != has {
			return false
		}
	}
	return true
}

func isGroup(subject string) bool { return strings.HasPrefix(subject, string(KindGroup)+"/") }
