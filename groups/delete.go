package groups

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Delete removes a group, its memberships, and its own in other groups: only with
// contained, else it is refused while there are any. From the first write on the
// group counts no more; large ones go in chunks, the record and the name last. One
// that was cut off is done again. For administrators. ErrForbidden, ErrNotFound,
// *ContainedError, *MismatchError, ErrConflict; ErrUnknown also when only a part is
// gone.
func (s *Service) Delete(ctx context.Context, a Actor, name string, revision int64, contained bool) error {
	return s.delete(ctx, a, name, revision, contained, func(*current) error { return nil })
}

// delete is Delete where may, which is asked with the mark, has nothing against it.
func (s *Service) delete(ctx context.Context, a Actor, name string, revision int64, contained bool, may func(*current) error) error {
	e := audit.Event{Act: "group.delete", On: name}
	g, err := s.findToDelete(a, name)
	if err == nil {
		var in []string
		in, err = s.contained(g, name, contained)
		e.Detail = map[string]string{"id": g.id, "in": strings.Join(in, ", ")}
	}
	return s.act(ctx, a, e, err, func(*audit.Event) (int64, error) {
		if err := s.mark(ctx, a, g, name, revision, contained, may); err != nil {
			return 0, err
		}
		revision, err := s.dismantle(ctx, g.id)
		if err != nil {
			err = fmt.Errorf("%w: group %q counts no more, but is not all gone: delete it again: %w", ErrUnknown, name, err)
		}
		return revision, err
	})
}

// findToDelete finds a group, for administrators also one that is damaged or half
// deleted.
func (s *Service) findToDelete(a Actor, name string) (*indexed, error) {
	g, err := s.find(a, name, toAdminister)
	if err != nil && !(errors.Is(err, ErrNotFound) && s.IsAdmin(a)) {
		return nil, err
	}
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	id := s.index.byName[name].id
	if err == nil {
		id = g.ID
	}
	if x := s.index.group(id); x != nil {
		return x, nil
	}
	return nil, &hiddenError{name, "there is no such group"}
}

// contained returns the groups that g is in, with an error if there are any that it
// must not be taken from.
func (s *Service) contained(g *indexed, name string, ok bool) ([]string, error) {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if s.index.group(g.id) == nil {
		return nil, nil
	}
	in := s.index.containing(g.id, func(*indexed) bool { return true })
	if !ok && !g.Deleting && len(in) > 0 {
		return in, &ContainedError{name, in}
	}
	return in, nil
}

// errMarked: the group was marked before.
var errMarked = errors.New("marked already")

// mark makes a group count no more. Nobody can add to it, or it to another, after.
func (s *Service) mark(ctx context.Context, a Actor, g *indexed, name string, revision int64, contained bool, may func(*current) error) error {
	if g.damaged {
		return s.overwrite(ctx, a, g, name)
	}
	var marked int64
	at, err := s.change(ctx, g.id, &change{plan: func(ctx context.Context, now *current) (write, error) {
		if now.record.Name != name {
			return write{}, fmt.Errorf("group %q was renamed to %q: %w", name, now.record.Name, ErrConflict)
		}
		if now.record.Deleting {
			marked = now.entry.Revision
			return write{}, errMarked
		}
		nesting, err := now.nestedAt(ctx)
		if err != nil {
			return write{}, err
		}
		conds, err := s.again(ctx, a, now, revision, toAdminister)
		if err != nil {
			return write{}, err
		}
		if _, err := s.contained(g, name, contained); err != nil {
			return write{}, err
		}
		if err := may(now); err != nil {
			return write{}, err
		}
		rec := now.record
		rec.Deleting = true
		return write{conds: append(conds, nesting), ops: []store.Op{moveNesting}, record: &rec}, nil
	}})
	if errors.Is(err, errMarked) {
		at, err = marked, nil
	}
	if err != nil {
		return err
	}
	if err := s.heard(ctx, at); err != nil { // what it is in must be known from here on
		return fmt.Errorf("%w: group %q counts no more, but is not all gone: delete it again: %w", ErrUnknown, name, err)
	}
	return nil
}

// overwrite marks a group whose record is damaged.
func (s *Service) overwrite(ctx context.Context, a Actor, g *indexed, name string) error {
	op, err := putRecord(g.id, record{Settings: Settings{Name: name}, CreatedBy: a.by(), Deleting: true})
	if err != nil {
		return err
	}
	revision, err := s.store.Txn(ctx, []store.Cond{{Key: op.Key, Revision: g.revision}}, []store.Op{op, moveNesting})
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("group %q: %w", name, ErrConflict)
	}
	if err != nil {
		return err
	}
	return s.heard(ctx, revision)
}

// dismantle deletes what is left of a marked group.
func (s *Service) dismantle(ctx context.Context, id string) (int64, error) {
	for {
		members, _, err := s.store.List(ctx, membersKey(id), "", store.MaxOps)
		if err != nil {
			return 0, fmt.Errorf("list members: %w", err)
		}
		var ops []store.Op
		for _, m := range members {
			ops = append(ops, store.Op{Key: m.Key, Delete: true})
		}
		if len(ops) == 0 {
			break
		}
		if _, err := s.store.Txn(ctx, nil, ops); err != nil {
			return 0, fmt.Errorf("delete members: %w", err)
		}
	}
	if err := s.takeOut(ctx, id); err != nil {
		return 0, err
	}
	return s.dismiss(ctx, id)
}

// dismiss deletes the record and the name of a group that nothing else is left of.
// Where another is faster the name may be another group's already.
func (s *Service) dismiss(ctx context.Context, id string) (int64, error) {
	for range tries {
		now, err := s.read(ctx, id)
		if errors.Is(err, ErrNotFound) { // another was faster; this node may not have heard of it
			_, revision, err := s.store.List(ctx, membersKey(id), "", 1)
			return revision, err
		}
		if err != nil {
			return 0, err
		}
		conds := []store.Cond{{Key: now.entry.Key, Revision: now.entry.Revision}}
		revision, err := s.store.Txn(ctx, conds, []store.Op{{Key: now.entry.Key, Delete: true}, {Key: nameKey(now.record.Name), Delete: true}})
		if !errors.Is(err, store.ErrConflict) { // as when a group is taken out of this one
			return revision, err
		}
	}
	return 0, fmt.Errorf("%d times: %w", tries, ErrConflict)
}

// takeOut removes a marked group from all that it is in.
func (s *Service) takeOut(ctx context.Context, id string) error {
	for _, in := range s.index.containerIDs(id) {
		key := memberKey(in, KindGroup, id)
		ops := []store.Op{{Key: key, Delete: true}}
		_, err := s.change(ctx, in, &change{key: key, plan: func(context.Context, *current) (write, error) { return write{ops: ops}, nil }})
		if errors.Is(err, ErrNotFound) { // it has no record to guard it
			_, err = s.store.Txn(ctx, nil, ops)
		}
		if err != nil {
			return fmt.Errorf("remove it from another group: %w", err)
		}
	}
	return nil
}

// containerIDs returns the ids of the groups that a group is in.
func (x *index) containerIDs(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n, ok := x.ids[subject(KindGroup, id)]
	if !ok {
		return nil
	}
	var out []string
	for _, to := range x.containers(n) {
		out = append(out, cutSubject(x.nodes[to].subject).ID)
	}
	return out
}
