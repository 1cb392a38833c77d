package groups

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Service keeps the local groups. Each change is decided, recorded and written in
// one method. It is safe for concurrent use.
type Service struct {
	store store.Store
	trail Trail
	cfg   Config
	log   logrus.FieldLogger
	index *index
	write chan struct{} // holds one: writers of one node queue here rather than in conflicts

	stop context.CancelFunc
	done chan struct{}
}

// Open loads the groups and keeps them current until Close. ErrInvalid where cfg
// reserves an empty prefix.
func Open(ctx context.Context, st store.Store, trail Trail, cfg Config, log logrus.FieldLogger) (*Service, error) {
	if slices.Contains(cfg.Reserved, "") {
		return nil, fmt.Errorf("%w: a directory's prefix is empty", ErrInvalid)
	}
	s := &Service{store: st, trail: trail, cfg: cfg, log: log, index: newIndex(), write: make(chan struct{}, 1), done: make(chan struct{})}
	if err := s.index.load(ctx, st); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.run(run)
	return s, nil
}

// Close ends the watch and waits for it.
func (s *Service) Close() {
	s.stop()
	<-s.done
}

// run follows the store; where the watch breaks it loads anew, a little later each
// time. Until then the index grows stale and Of denies. Where loading fails it
// follows from where it was, never from further back: that would bring back what
// has been removed.
func (s *Service) run(ctx context.Context) {
	defer close(s.done)
	const shortest, longest = 50 * time.Millisecond, 2 * time.Second
	for pause := shortest; ; pause = min(2*pause, longest) {
		began := time.Now()
		err := s.index.follow(ctx, s.store)
		if ctx.Err() != nil {
			return
		}
		s.log.WithError(err).Warn("groups: loading anew")
		if time.Since(began) > time.Minute {
			pause = shortest
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if err := s.index.load(ctx, s.store); err != nil && ctx.Err() == nil {
			s.log.WithError(err).Error("groups: loading failed, trying again")
		}
	}
}

// IsAdmin reports whether a may do everything.
func (s *Service) IsAdmin(a Actor) bool {
	return a.Operator || slices.ContainsFunc(a.Groups, func(g string) bool { return slices.Contains(s.cfg.Admins, g) })
}

// Of returns the memberships of a person, direct and through directory groups, that
// have not ended at now, sorted by group. ErrStale when the index is not current:
// deny then.
func (s *Service) Of(sub string, directoryGroups []string, now time.Time) ([]Membership, error) {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if s.index.stale() {
		return nil, ErrStale
	}
	var out []Membership
	add := func(ref memberRef) {
		for group, m := range s.index.in[ref] {
			if s.index.groups[group].exists && (m.End.IsZero() || m.End.After(now)) {
				out = append(out, Membership{Group: group, Via: *m, End: m.End})
			}
		}
	}
	add(memberRef{KindPerson, sub})
	for _, g := range directoryGroups {
		add(memberRef{KindDirectoryGroup, g})
	}
	slices.SortFunc(out, func(a, b Membership) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Via.Kind, b.Via.Kind), cmp.Compare(a.Via.ID, b.Via.ID))
	})
	return out, nil
}

// List returns all groups with their members, sorted by name. ErrForbidden, ErrStale.
func (s *Service) List(ctx context.Context, a Actor) ([]Group, error) {
	if err := s.may(ctx, a, audit.Event{Act: "group.list"}); err != nil {
		return nil, err
	}
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if s.index.stale() {
		return nil, ErrStale
	}
	out := []Group{}
	for name, g := range s.index.groups {
		if g.exists {
			out = append(out, g.group(name))
		}
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Get returns one group with its members. ErrForbidden, ErrNotFound, ErrStale.
func (s *Service) Get(ctx context.Context, a Actor, name string) (Group, error) {
	if err := s.may(ctx, a, audit.Event{Act: "group.get", On: name}); err != nil {
		return Group{}, err
	}
	return s.get(name)
}

func (s *Service) get(name string) (Group, error) {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if s.index.stale() {
		return Group{}, ErrStale
	}
	g := s.index.groups[name]
	if g == nil || !g.exists {
		return Group{}, fmt.Errorf("group %q: %w", name, ErrNotFound)
	}
	return g.group(name), nil
}

func (g *indexed) group(name string) Group {
	out := Group{Name: name, Description: g.Description, Created: g.Created, Revision: g.revision, Members: []Member{}}
	for _, m := range g.members {
		out.Members = append(out.Members, *m)
	}
	slices.SortFunc(out.Members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Create makes an empty group. ErrForbidden, ErrInvalid, ErrExists, ErrUnknown.
func (s *Service) Create(ctx context.Context, a Actor, name, description string) (Group, error) {
	invalid := s.validName(name)
	if invalid == nil {
		invalid = validText("description", description)
	}
	rec := record{Description: description, Created: time.Now().UTC().Round(0), CreatedBy: a.by()}
	g := Group{Name: name, Description: description, Created: rec.Created, Members: []Member{}}
	err := s.act(ctx, a, audit.Event{Act: "group.create", On: name}, invalid, func() (int64, error) {
		op, err := put(groupKey(name), rec)
		if err != nil {
			return 0, err
		}
		g.Revision, err = s.store.Txn(ctx, []store.Cond{{Key: groupKey(name)}}, []store.Op{op})
		if errors.Is(err, store.ErrConflict) {
			err = fmt.Errorf("group %q: %w", name, ErrExists)
		}
		return g.Revision, err
	})
	if err != nil {
		return Group{}, err
	}
	return g, nil
}

// Delete removes a group and its memberships; large groups go in chunks, the group
// itself with the last one. One that was cut off is done again. ErrForbidden,
// ErrNotFound, ErrUnknown also when only a part is gone, ErrConflict when others
// keep changing it.
func (s *Service) Delete(ctx context.Context, a Actor, name string) error {
	return s.act(ctx, a, audit.Event{Act: "group.delete", On: name}, nil, func() (int64, error) {
		for gone := 0; ; {
			n, last, revision, err := s.deleteChunk(ctx, name)
			if err != nil && gone > 0 {
				err = fmt.Errorf("%w: %d memberships of group %q are gone, the others may be left: delete it again: %w", ErrUnknown, gone, name, err)
			}
			if err != nil || last {
				return revision, err
			}
			gone += n
		}
	})
}

// deleteChunk deletes as many memberships as one write holds, and the group too when
// these are the last.
func (s *Service) deleteChunk(ctx context.Context, name string) (n int, last bool, revision int64, err error) {
	revision, err = s.change(ctx, name, func(g store.Entry) ([]store.Op, error) {
		members, _, err := s.store.List(ctx, g.Key+"/", "", store.MaxOps)
		if err != nil {
			return nil, fmt.Errorf("list members: %w", err)
		}
		last = len(members) < store.MaxOps
		n = min(len(members), store.MaxOps-1)
		ops := []store.Op{{Key: g.Key, Value: g.Value, Delete: last}}
		for _, m := range members[:n] {
			ops = append(ops, store.Op{Key: m.Key, Delete: true})
		}
		return ops, nil
	})
	return n, last, revision, err
}

// Add puts m (its Kind, ID, Name, End and Reason; the rest is set here) into a
// group, or replaces the membership that is there. ErrForbidden, ErrNotFound,
// ErrInvalid, ErrUnknown, ErrConflict.
func (s *Service) Add(ctx context.Context, a Actor, group string, m Member) error {
	e := audit.Event{Act: "group.member.add", On: group, Reason: m.Reason, Detail: detail(m.Kind, m.ID, m.Name)}
	m.End = m.End.UTC()
	if !m.End.IsZero() {
		e.Detail["end"] = m.End.Format(time.RFC3339)
	}
	return s.act(ctx, a, e, s.validMember(m), func() (int64, error) {
		m.GrantedBy, m.GrantedByName, m.GrantedAt = a.by(), a.Name, time.Now().UTC()
		op, err := put(memberKey(group, m.Kind, m.ID), m)
		if err != nil {
			return 0, err
		}
		return s.change(ctx, group, func(g store.Entry) ([]store.Op, error) {
			return []store.Op{op, {Key: g.Key, Value: g.Value}}, nil
		})
	})
}

// Remove ends a membership at once. ErrForbidden, ErrNotFound, ErrInvalid,
// ErrUnknown, ErrConflict.
func (s *Service) Remove(ctx context.Context, a Actor, group string, kind Kind, id string) error {
	e := audit.Event{Act: "group.member.remove", On: group, Detail: detail(kind, id, "")}
	return s.act(ctx, a, e, validKind(kind), func() (int64, error) {
		return s.change(ctx, group, func(g store.Entry) ([]store.Op, error) {
			key := memberKey(group, kind, id)
			if _, err := s.store.Get(ctx, key); errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) {
				return nil, fmt.Errorf("%s %.80q in group %q: %w", kind, id, group, ErrNotFound)
			} else if err != nil {
				return nil, fmt.Errorf("read membership: %w", err)
			}
			return []store.Op{{Key: key, Delete: true}, {Key: g.Key, Value: g.Value}}, nil
		})
	})
}

func detail(kind Kind, id, name string) map[string]string {
	return map[string]string{"kind": string(kind), "member": id, "name": name}
}

func (a Actor) by() string {
	if a.Operator {
		return "operator"
	}
	return a.Sub
}

// change writes to a group what ops makes of its record, guarded by the record's
// revision, which every write to the group or its memberships moves. Nothing here
// depends on what the caller has seen, so a conflict with another node is tried again.
func (s *Service) change(ctx context.Context, group string, ops func(store.Entry) ([]store.Op, error)) (int64, error) {
	const tries = 10
	for range tries {
		g, err := s.guard(ctx, group)
		if err != nil {
			return 0, err
		}
		todo, err := ops(g)
		if err != nil {
			return 0, err
		}
		revision, err := s.store.Txn(ctx, []store.Cond{{Key: g.Key, Revision: g.Revision}}, todo)
		if !errors.Is(err, store.ErrConflict) {
			return revision, err
		}
	}
	return 0, fmt.Errorf("group %q: %w", group, ErrConflict)
}

func (s *Service) guard(ctx context.Context, group string) (store.Entry, error) {
	e := store.Entry{}
	err := store.ErrNotFound
	if !strings.Contains(group, "/") { // else it would be a membership
		e, err = s.store.Get(ctx, groupKey(group))
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) { // no such key can be
		return e, fmt.Errorf("group %.80q: %w", group, ErrNotFound)
	}
	if err != nil {
		return e, fmt.Errorf("read group: %w", err)
	}
	return e, nil
}

// may refuses all but admins, and leaves the refusal in the trail.
func (s *Service) may(ctx context.Context, a Actor, e audit.Event) error {
	if s.IsAdmin(a) {
		return nil
	}
	return s.refuse(ctx, a, e, "not in a group of admins", ErrForbidden)
}

// refuse leaves a refusal in the trail and returns err. Who asks cannot keep it out
// by hanging up.
func (s *Service) refuse(ctx context.Context, a Actor, e audit.Event, why string, err error) error {
	e.Outcome, e.Reason = audit.Denied, why
	if err := s.note(context.WithoutCancel(ctx), a, e); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", e.Act, err)
}

// note appends e to the trail in a's name.
func (s *Service) note(ctx context.Context, a Actor, e audit.Event) error {
	ctx, cancel := context.WithTimeout(ctx, noteIn)
	defer cancel()
	e.Who, e.Name = a.by(), a.Name
	if err := s.trail.Append(ctx, e); err != nil {
		return fmt.Errorf("audit %s: %w", e.Act, err)
	}
	return nil
}

const (
	noteIn  = 10 * time.Second // how long a record of the trail may take
	heardIn = staleAfter       // how long the index may take to hear of a write
)

// act is the one way to change a group: may they, is it valid, say so in the trail,
// write, say what came of it. A trail that cannot be written stops the act. When it
// returns nil, this node's index knows the change. ErrUnknown where it may have been
// written all the same.
func (s *Service) act(ctx context.Context, a Actor, e audit.Event, invalid error, write func() (int64, error)) error {
	if err := s.may(ctx, a, e); err != nil {
		return err
	}
	if invalid != nil {
		return s.refuse(ctx, a, e, invalid.Error(), invalid)
	}
	e.Outcome = audit.Intended
	if err := s.note(ctx, a, e); err != nil {
		return err
	}
	revision, err := s.alone(ctx, write)
	if errors.Is(err, store.ErrUnknown) && !errors.Is(err, ErrUnknown) {
		err = fmt.Errorf("%w: the store did not say what came of it: %w", ErrUnknown, err)
	}
	e.Outcome = audit.Done
	if err != nil {
		e.Outcome, e.Reason = audit.Failed, err.Error()
	}
	// What was done is told, whether or not someone still waits for it.
	if auditErr := s.note(context.WithoutCancel(ctx), a, e); auditErr != nil && err == nil {
		return fmt.Errorf("%w: it was written, but not its outcome to the trail: %w", ErrUnknown, auditErr)
	} else if auditErr != nil {
		return fmt.Errorf("%w; nor could this be written to the trail: %w", err, auditErr)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, heardIn)
	defer cancel()
	if err := s.index.reached(ctx, revision); err != nil {
		return fmt.Errorf("%w: it was written, but this server has not seen it yet: %w", ErrUnknown, err)
	}
	return nil
}

// alone runs write while no other write of this node runs.
func (s *Service) alone(ctx context.Context, write func() (int64, error)) (int64, error) {
	select {
	case s.write <- struct{}{}:
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for other changes: %w", ctx.Err())
	}
	defer func() { <-s.write }()
	return write()
}

func put(key string, v any) (store.Op, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode %s: %w", key, err)
	}
	return store.Op{Key: key, Value: value}, nil
}
