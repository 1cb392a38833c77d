package groups

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// whole cuts t to what the store keeps.
func whole(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// Create makes an empty group. For administrators. ErrForbidden, ErrInvalid,
// ErrExists, ErrUnknown.
func (s *Service) Create(ctx context.Context, a Actor, set Settings) (Group, error) {
	id := newID()
	rec := record{Created: whole(time.Now()), CreatedBy: a.by(), CreatedByName: a.Name}
	err := error(ErrForbidden)
	if s.IsAdmin(a) {
		err = s.newSettings(&set, Settings{})
	}
	e := audit.Event{Act: "group.create", On: set.Name, Detail: s.diff(Settings{}, set)}
	e.Detail["id"] = id
	rec.Settings = set
	err = s.act(ctx, a, e, err, func(*audit.Event) (int64, error) {
		op, err := putRecord(id, rec)
		if err != nil {
			return 0, err
		}
		revision, err := s.store.Txn(ctx, []store.Cond{{Key: op.Key}, {Key: nameKey(set.Name)}}, []store.Op{op, {Key: nameKey(set.Name), Value: []byte(id)}})
		if errors.Is(err, store.ErrConflict) {
			err = s.taken(set.Name)
		}
		return revision, err
	})
	return s.after(id, err)
}

// taken is ErrExists with what to do about it.
func (s *Service) taken(name string) error {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if g := s.index.group(s.index.byName[name].id); g != nil && g.Deleting {
		return fmt.Errorf("group %q is half deleted, delete it again: %w", name, ErrExists)
	}
	return fmt.Errorf("group %q: %w", name, ErrExists)
}

// after returns a group as the index has it once a change is in.
func (s *Service) after(id string, err error) (Group, error) {
	if err != nil {
		return Group{}, err
	}
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if g := s.index.group(id); g != nil {
		return s.index.view(g), nil
	}
	return Group{}, fmt.Errorf("it was written, and deleted since: %w", ErrNotFound)
}

// newSettings finds the ids of owners that are named alone, and checks what differs
// from old.
func (s *Service) newSettings(set *Settings, old Settings) error {
	set.Owners = slices.Clone(set.Owners)
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	for i, o := range set.Owners {
		if o.Kind != KindGroup || o.ID != "" && slices.ContainsFunc(old.Owners, o.same) {
			continue
		}
		g := s.index.local(o)
		if g == nil {
			return invalid("there is no group %.80q to own it", o.Name+o.ID)
		}
		set.Owners[i].ID = g.id
	}
	return s.validSettings(set, old)
}

// local returns the group that a Ref names by its id, or by its name alone; nil if
// there is none. The caller holds the lock.
func (x *index) local(r Ref) *indexed {
	if r.ID == "" {
		return x.named(r.Name)
	}
	if g := x.group(r.ID); g != nil && g.live {
		return g
	}
	return nil
}

// on returns what becomes of settings by c.
func (c Change) on(set Settings) Settings {
	put(&set.Name, c.Name)
	put(&set.Description, c.Description)
	put(&set.Owners, c.Owners)
	put(&set.Clusters, c.Clusters)
	put(&set.Labels, c.Labels)
	put(&set.Requestable, c.Requestable)
	return set
}

func put[T any](field, is *T) {
	if is != nil {
		*field = *is
	}
}

// needs returns the right that a change of these fields needs.
func needs(diff map[string]string) func(Rights) bool {
	for field := range diff {
		if field != "description" {
			return toAdminister
		}
	}
	return toMembers
}

// Edit changes a group's settings, its name included, which it remembers. Nothing
// that differs is nothing done. Owners may change the description. ErrForbidden,
// ErrNotFound, ErrInvalid, ErrExists, *MismatchError, ErrConflict, ErrUnknown.
func (s *Service) Edit(ctx context.Context, a Actor, name string, revision int64, c Change) (Group, error) {
	e := audit.Event{Act: "group.edit", On: name}
	g, err := s.find(a, name, toSee)
	if err == nil {
		set := c.on(g.Settings)
		err = s.newSettings(&set, g.Settings)
		if c.Owners != nil {
			c.Owners = &set.Owners
		}
		e.Detail = s.diff(g.Settings, set)
		if judged := judge(s.RightsOn(a, name), name, needs(e.Detail)); judged != nil {
			err = judged // before what is wrong with it
		}
		if err == nil && len(e.Detail) == 0 && (revision == 0 || revision == g.Revision) {
			return g, nil
		}
		e.Detail["id"] = g.ID
	}
	err = s.act(ctx, a, e, err, func(e *audit.Event) (int64, error) {
		return s.change(ctx, g.ID, &change{plan: func(ctx context.Context, now *current) (write, error) {
			return s.planEdit(ctx, a, now, revision, c, e)
		}})
	})
	return s.after(g.ID, err)
}

// planEdit decides and plans an edit on what the store holds.
func (s *Service) planEdit(ctx context.Context, a Actor, now *current, revision int64, c Change, e *audit.Event) (write, error) {
	old := now.record.Settings
	set := c.on(old)
	if err := s.newSettings(&set, old); err != nil {
		return write{}, err
	}
	diff := s.diff(old, set)
	conds, err := s.again(ctx, a, now, revision, needs(diff))
	if err != nil {
		return write{}, err
	}
	e.Detail = diff
	e.Detail["id"] = now.id()
	rec := now.record
	rec.Settings = set
	w := write{conds: conds, record: &rec}
	if set.Name == old.Name {
		return w, nil
	}
	if _, err := s.store.Get(ctx, nameKey(set.Name)); err == nil {
		return write{}, s.taken(set.Name)
	} else if !errors.Is(err, store.ErrNotFound) {
		return write{}, fmt.Errorf("read name: %w", err)
	}
	former := FormerName{Name: old.Name, Until: whole(time.Now()), By: a.by(), ByName: a.Name}
	rec.Formerly = slices.Concat([]FormerName{former}, rec.Formerly)
	rec.Formerly = rec.Formerly[:min(len(rec.Formerly), maxFormer)]
	w.conds = append(w.conds, store.Cond{Key: nameKey(set.Name)})
	w.ops = []store.Op{{Key: nameKey(set.Name), Value: []byte(now.id())}, {Key: nameKey(old.Name), Delete: true}, moveNesting}
	return w, nil
}

// moveNesting makes what was decided on the nesting, or on the names of groups of
// administrators, be decided again.
var moveNesting = store.Op{Key: nestingKey, Value: []byte("{}")}

// diff says for each field what it was and what it is to be, for people.
func (s *Service) diff(old, set Settings) map[string]string {
	out := map[string]string{}
	add := func(field, was, is string) {
		if was != is {
			out[field] = was + " → " + is
		}
	}
	add("name", old.Name, set.Name)
	add("description", old.Description, set.Description)
	add("owners", s.ownerText(old.Owners), s.ownerText(set.Owners))
	add("clusters", strings.Join(old.Clusters, ", "), strings.Join(set.Clusters, ", "))
	add("labels", labelText(old.Labels), labelText(set.Labels))
	if old.Requestable != set.Requestable {
		add("requestable", fmt.Sprint(old.Requestable), fmt.Sprint(set.Requestable))
	}
	return out
}

func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ", ")
}

// ownerText lists owners by what they are known by, so that two lists that read
// the same are the same.
func (s *Service) ownerText(owners []Ref) string {
	var out []string
	for _, o := range owners {
		text := string(o.Kind) + " " + o.ID
		if o.Kind == KindPerson && o.Name != "" {
			text += " (" + o.Name + ")"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// Add puts m (its Kind, ID, Name, Begin, End and Reason; the rest is set here) into a
// group, or replaces the membership that is there. ErrForbidden, ErrNotFound,
// ErrInvalid, *MismatchError, ErrConflict, ErrUnknown.
func (s *Service) Add(ctx context.Context, a Actor, name string, revision int64, m Member) (Group, error) {
	m.Begin, m.End = whole(m.Begin), whole(m.End)
	m.GrantedBy, m.GrantedByName, m.GrantedAt = a.by(), a.Name, whole(time.Now())
	g, was, err := s.prepare(ctx, a, name, &m)
	e := audit.Event{Act: "group.member.add", On: name, Reason: m.Reason, Detail: memberDetail(g, m, was)}
	var value []byte
	if err == nil {
		value, err = encodeMember(m)
	}
	err = s.act(ctx, a, e, err, func(*audit.Event) (int64, error) {
		c := s.memberChange(a, revision, store.Op{Key: memberKey(g.ID, m.Kind, m.ID), Value: value})
		if m.Kind == KindGroup {
			plain := c.plan
			c.key, c.plan = "", func(ctx context.Context, now *current) (write, error) { return s.planNest(ctx, a, now, m, plain) }
		}
		return s.change(ctx, g.ID, c)
	})
	return s.after(g.ID, err)
}

// memberChange writes one membership. It goes alone where it is made for a revision.
func (s *Service) memberChange(a Actor, revision int64, op store.Op) *change {
	c := &change{plan: func(ctx context.Context, now *current) (write, error) {
		conds, err := s.again(ctx, a, now, revision, toMembers)
		return write{conds: conds, ops: []store.Op{op}}, err
	}}
	if revision == 0 {
		c.key = op.Key
	}
	return c
}

// prepare decides on an Add and completes m. It returns the membership that is there.
func (s *Service) prepare(ctx context.Context, a Actor, name string, m *Member) (Group, *Member, error) {
	g, err := s.find(a, name, toMembers)
	if err != nil {
		return g, nil, err
	}
	if m.Kind == KindGroup {
		if err := s.canNest(a, &m.Ref, g.ID); err != nil {
			return g, nil, err
		}
	}
	if err := s.validMember(*m, nil); err != nil {
		return g, nil, err
	}
	was, err := s.membership(ctx, g, m.Ref)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return g, was, err
}

// planNest plans that a local group becomes a member: decided on all nesting that
// the store holds, and moving what that is guarded by.
func (s *Service) planNest(ctx context.Context, a Actor, now *current, m Member, plain func(context.Context, *current) (write, error)) (write, error) {
	w, err := plain(ctx, now)
	if err != nil {
		return write{}, err
	}
	nesting, err := now.nestedAt(ctx)
	if err != nil {
		return write{}, err
	}
	w.conds = append(w.conds, nesting)
	w.ops = append(w.ops, moveNesting)
	return w, s.canNest(a, &m.Ref, now.id())
}

// notToNest: who owns a group sees who gets it, and so the members of all that is in it.
func notToNest(name string) error {
	return invalid("group %q can be made a member by its owners and administrators, who see its members", name)
}

// canNest decides whether a local group can become a member of another: a must see
// its members, unless it is one already, and there is no cycle and no end of nesting.
// It completes m.
func (s *Service) canNest(a Actor, m *Ref, in string) error {
	x := s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	g := x.local(*m)
	if g == nil || !s.rights(a, g.id, g.Settings).See {
		return noMember(m.Name + m.ID)
	}
	m.ID, m.Name = g.id, g.Name
	below, above := x.ids[subject(KindGroup, g.id)], x.ids[subject(KindGroup, in)]
	if !slices.Contains(x.containers(below), above) && !s.rights(a, g.id, g.Settings).Members {
		return notToNest(g.Name)
	}
	if x.above(above)[below] {
		return invalid("group %q cannot be a member: it contains this group, or is it", g.Name)
	}
	if x.height(below, x.nestedIn)+1+x.height(above, x.containers) > maxNesting {
		return invalid("groups can be nested %d deep, and this would be deeper", maxNesting)
	}
	return nil
}

func (x *index) nestedIn(n int32) []int32 { return x.nested[n] }

func (x *index) containers(n int32) []int32 {
	var out []int32
	for _, e := range x.nodes[n].edges {
		out = append(out, e.to)
	}
	return out
}

// height is how many memberships the longest way from n has. The caller holds the
// lock.
func (x *index) height(n int32, next func(int32) []int32) int {
	known := map[int32]int{}
	var from func(int32) int
	from = func(n int32) int {
		if h, ok := known[n]; ok {
			return h
		}
		known[n] = 0 // ends what a damaged store may hold as a cycle
		h := 0
		for _, m := range next(n) {
			h = max(h, from(m)+1)
		}
		known[n] = h
		return h
	}
	return from(n)
}

// Remove ends a membership at once. ErrForbidden, ErrNotFound, ErrInvalid,
// *MismatchError, ErrConflict, ErrUnknown.
func (s *Service) Remove(ctx context.Context, a Actor, name string, revision int64, kind Kind, id string) (Group, error) {
	m := Member{Ref: Ref{Kind: kind, ID: id}}
	g, err := s.find(a, name, toMembers)
	if err == nil {
		err = validKind(kind)
	}
	var was *Member
	if err == nil {
		if was, err = s.membership(ctx, g, m.Ref); err == nil {
			m.Ref = was.Ref
		}
	}
	e := audit.Event{Act: "group.member.remove", On: name, Detail: memberDetail(g, m, was)}
	err = s.act(ctx, a, e, err, func(*audit.Event) (int64, error) {
		return s.change(ctx, g.ID, s.memberChange(a, revision, store.Op{Key: memberKey(g.ID, kind, id), Delete: true}))
	})
	return s.after(g.ID, err)
}

// memberDetail is what the trail keeps of a change of a membership, besides the
// reason; was is what it was before, if it was.
func memberDetail(g Group, m Member, was *Member) map[string]string {
	d := map[string]string{"kind": string(m.Kind), "member": m.ID, "name": m.Name}
	if g.ID != "" {
		d["id"] = g.ID
	}
	if !m.Begin.IsZero() {
		d["begin"] = m.Begin.Format(time.RFC3339)
	}
	if !m.End.IsZero() {
		d["end"] = m.End.Format(time.RFC3339)
	}
	if was != nil {
		d["before"] = was.text()
	}
	return d
}

// text says when and why a membership counts, for people.
func (m Member) text() string {
	out := "at once"
	if !m.Begin.IsZero() {
		out = "from " + m.Begin.Format(time.RFC3339)
	}
	if !m.End.IsZero() {
		out += " until " + m.End.Format(time.RFC3339)
	}
	if m.Reason != "" {
		out += ": " + m.Reason
	}
	return out
}
