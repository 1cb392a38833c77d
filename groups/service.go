package groups

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"golang.org/x/text/unicode/norm"

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
	write sync.Mutex // writers of one node queue here rather than in conflicts

	stop context.CancelFunc
	done chan struct{}
}

// Open loads the groups and keeps them current until Close.
func Open(ctx context.Context, st store.Store, trail Trail, cfg Config, log logrus.FieldLogger) (*Service, error) {
	s := &Service{store: st, trail: trail, cfg: cfg, log: log, index: newIndex(), done: make(chan struct{})}
	after, err := s.index.load(ctx, st)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.run(run, after)
	if err := s.index.reached(ctx, after); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the watch and waits for it.
func (s *Service) Close() {
	s.stop()
	<-s.done
}

// run follows the store; where the watch breaks it loads anew, a little later each
// time. Until then the index grows stale and Of denies.
func (s *Service) run(ctx context.Context, after int64) {
	defer close(s.done)
	pause := 50 * time.Millisecond
	for {
		began := time.Now()
		err := s.index.follow(ctx, s.store, after)
		if ctx.Err() != nil {
			return
		}
		s.log.WithError(err).Warn("groups: following the store anew")
		if time.Since(began) > time.Minute {
			pause = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
		if at, err := s.index.load(ctx, s.store); err == nil {
			after = at
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
				out = append(out, Membership{Group: group, Via: m, End: m.End})
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
		out.Members = append(out.Members, m)
	}
	slices.SortFunc(out.Members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Create makes an empty group. ErrForbidden, ErrInvalid, ErrExists.
func (s *Service) Create(ctx context.Context, a Actor, name, description string) (Group, error) {
	e := audit.Event{Act: "group.create", On: name}
	err := s.act(ctx, a, e, func() (int64, error) {
		if err := s.validName(name); err != nil {
			return 0, err
		}
		if len(description) > maxText {
			return 0, fmt.Errorf("%w: the description is longer than %d bytes", ErrInvalid, maxText)
		}
		rec := record{Description: description, Created: time.Now().UTC(), CreatedBy: a.Sub}
		op, err := put(groupKey(name), rec)
		if err != nil {
			return 0, err
		}
		rev, err := s.store.Txn(ctx, []store.Cond{{Key: groupKey(name)}}, []store.Op{op})
		if errors.Is(err, store.ErrConflict) {
			err = fmt.Errorf("group %q: %w", name, ErrExists)
		}
		return rev, err
	})
	if err != nil {
		return Group{}, err
	}
	return s.get(name)
}

// Delete removes a group and its memberships. ErrForbidden, ErrNotFound,
// ErrConflict when someone adds to it meanwhile.
func (s *Service) Delete(ctx context.Context, a Actor, name string) error {
	return s.act(ctx, a, audit.Event{Act: "group.delete", On: name}, func() (int64, error) {
		e, err := s.guard(ctx, name)
		if err != nil {
			return 0, err
		}
		for guard := e.Revision; ; {
			members, _, err := s.store.List(ctx, groupKey(name)+"/", "", store.MaxOps)
			if err != nil {
				return 0, fmt.Errorf("list members: %w", err)
			}
			// Large groups go in chunks; the group itself goes with the last one,
			// so a delete that was cut off is simply done again.
			var ops []store.Op
			last := len(members) < store.MaxOps
			for _, m := range members[:min(len(members), store.MaxOps-1)] {
				ops = append(ops, store.Op{Key: m.Key, Delete: true})
			}
			ops = append(ops, store.Op{Key: e.Key, Value: e.Value, Delete: last})
			rev, err := s.store.Txn(ctx, []store.Cond{{Key: e.Key, Revision: guard}}, ops)
			if err != nil || last {
				return rev, conflict(err)
			}
			guard = rev
		}
	})
}

// Add puts m (its Kind, ID, Name, End and Reason; the rest is set here) into a
// group, or replaces the end and reason of the membership that is there.
// ErrForbidden, ErrNotFound, ErrInvalid, ErrConflict.
func (s *Service) Add(ctx context.Context, a Actor, group string, m Member) error {
	e := audit.Event{Act: "group.member.add", On: group, Reason: m.Reason, Detail: detail(m.Kind, m.ID, m.Name)}
	if !m.End.IsZero() {
		e.Detail["end"] = m.End.UTC().Format(time.RFC3339)
	}
	return s.act(ctx, a, e, func() (int64, error) {
		if err := s.validMember(m); err != nil {
			return 0, err
		}
		m.GrantedBy, m.GrantedByName, m.GrantedAt = a.by(), a.Name, time.Now().UTC()
		op, err := put(memberKey(group, m.Kind, m.ID), m)
		if err != nil {
			return 0, err
		}
		return s.change(ctx, group, op)
	})
}

// Remove ends a membership at once. ErrForbidden, ErrNotFound, ErrConflict.
func (s *Service) Remove(ctx context.Context, a Actor, group string, kind Kind, id string) error {
	return s.act(ctx, a, audit.Event{Act: "group.member.remove", On: group, Detail: detail(kind, id, "")}, func() (int64, error) {
		key := memberKey(group, kind, id)
		if _, err := s.store.Get(ctx, key); errors.Is(err, store.ErrNotFound) {
			return 0, fmt.Errorf("%s %q in group %q: %w", kind, id, group, ErrNotFound)
		} else if err != nil {
			return 0, fmt.Errorf("read membership: %w", err)
		}
		return s.change(ctx, group, store.Op{Key: key, Delete: true})
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

// change writes one membership together with its group, whose revision guards all
// memberships in it.
func (s *Service) change(ctx context.Context, group string, op store.Op) (int64, error) {
	g, err := s.guard(ctx, group)
	if err != nil {
		return 0, err
	}
	rev, err := s.store.Txn(ctx, []store.Cond{{Key: g.Key, Revision: g.Revision}}, []store.Op{op, {Key: g.Key, Value: g.Value}})
	return rev, conflict(err)
}

func (s *Service) guard(ctx context.Context, group string) (store.Entry, error) {
	if strings.Contains(group, "/") || group == "" {
		return store.Entry{}, fmt.Errorf("group %q: %w", group, ErrNotFound)
	}
	e, err := s.store.Get(ctx, groupKey(group))
	if errors.Is(err, store.ErrNotFound) {
		return e, fmt.Errorf("group %q: %w", group, ErrNotFound)
	}
	if err != nil {
		return e, fmt.Errorf("read group: %w", err)
	}
	return e, nil
}

func conflict(err error) error {
	if errors.Is(err, store.ErrConflict) {
		return ErrConflict
	}
	return err
}

// may refuses all but admins, and leaves the refusal in the trail.
func (s *Service) may(ctx context.Context, a Actor, e audit.Event) error {
	if s.IsAdmin(a) {
		return nil
	}
	e.Who, e.Name, e.Outcome, e.Reason = a.by(), a.Name, audit.Denied, "not in a group of admins"
	if err := s.trail.Append(ctx, e); err != nil {
		return fmt.Errorf("audit %s: %w", e.Act, err)
	}
	return fmt.Errorf("%s: %w", e.Act, ErrForbidden)
}

// act is the one way to change a group: may they, say so in the trail, write, say
// what came of it. A trail that cannot be written stops the act. When it returns
// nil, this node's index knows the change.
func (s *Service) act(ctx context.Context, a Actor, e audit.Event, write func() (int64, error)) error {
	if err := s.may(ctx, a, e); err != nil {
		return err
	}
	e.Who, e.Name, e.Outcome = a.by(), a.Name, audit.Intended
	if err := s.trail.Append(ctx, e); err != nil {
		return fmt.Errorf("audit %s: %w", e.Act, err)
	}
	s.write.Lock()
	revision, err := write()
	s.write.Unlock()
	e.Outcome = audit.Done
	if err != nil {
		e.Outcome = audit.Failed
		e.Reason = err.Error()
	}
	if auditErr := s.trail.Append(ctx, e); auditErr != nil {
		return errors.Join(err, fmt.Errorf("audit %s: %w", e.Act, auditErr))
	}
	if err != nil {
		return err
	}
	return s.index.reached(ctx, revision)
}

func put(key string, v any) (store.Op, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode %s: %w", key, err)
	}
	return store.Op{Key: key, Value: value}, nil
}

const (
	maxName = 128  // runes
	maxText = 1024 // bytes, of a description or a reason
)

// validName refuses names that Kubernetes or a directory owns, and those that
// people or programs would read as something else.
func (s *Service) validName(name string) error {
	fold := strings.ToLower(name)
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	switch {
	case name == "" || !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName:
		return bad("a group's name has 1 to %d characters", maxName)
	case strings.HasPrefix(fold, "system:"):
		return bad("names that begin with system: belong to Kubernetes")
	case name != strings.TrimSpace(name) || !norm.NFC.IsNormalString(name):
		return bad("a group's name has no space at its ends and is in Unicode NFC")
	case strings.ContainsAny(name, "/,") || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return bad("a group's name has no slash, comma or unprintable character")
	}
	for _, p := range s.cfg.Reserved {
		if strings.HasPrefix(fold, strings.ToLower(p)) {
			return bad("names that begin with %s belong to a directory", p)
		}
	}
	return nil
}

func (s *Service) validMember(m Member) error {
	switch {
	case m.Kind != KindPerson && m.Kind != KindDirectoryGroup:
		return fmt.Errorf("%w: a member is a %s or a %s", ErrInvalid, KindPerson, KindDirectoryGroup)
	case m.ID == "" || len(m.ID) > 512 || !utf8.ValidString(m.ID) || strings.ContainsFunc(m.ID, unicode.IsControl):
		return fmt.Errorf("%w: the member's id is empty, too long or has control characters", ErrInvalid)
	case m.Kind == KindDirectoryGroup && !slices.ContainsFunc(s.cfg.Reserved, func(p string) bool { return strings.HasPrefix(m.ID, p) && m.ID != p }):
		return fmt.Errorf("%w: a directory group begins with its directory's prefix: %s", ErrInvalid, strings.Join(s.cfg.Reserved, ", "))
	case !m.End.IsZero() && !m.End.After(time.Now()):
		return fmt.Errorf("%w: the end of a membership lies ahead", ErrInvalid)
	case len(m.Reason) > maxText:
		return fmt.Errorf("%w: the reason is longer than %d bytes", ErrInvalid, maxText)
	}
	return nil
}
