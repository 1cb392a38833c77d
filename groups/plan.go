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

const (
	maxWrong = 20 // mistakes that one answer tells
	sweepAt  = 64 // files from which on all memberships are read at once
)

var errMoreWrong = errors.New("and more")

// plan is what applying files does.
type plan struct {
	s       *Service
	a       Actor
	at      time.Time
	targets []*target // one a file
	byName  map[string]*target
	byID    map[string]*target
	pruned  map[string]*indexed // by id
	labels  map[string]string   // of those to prune
	nesting int64               // revision that it was decided on
	steps   []step              // in the order of writing
	wrong   []error
}

// target is a group that a file is about.
type target struct {
	file     File
	id       string
	old      *indexed // nil: to be created
	rec      record   // as it is to be
	revision int64    // as planned, then as written
	now      map[string]store.Entry
	want     map[string]Member // by subject; nil: as they are
	hidden   map[string]bool   // of want, groups that the actor does not see: they may stay as they are
}

// phases are the order of writing. A group is there before it is a member, and what
// goes has gone before what comes, so that no cycle appears in between.
type phase int

const (
	creating phase = iota
	editing
	removing
	adding
	nesting
	pruning
)

// step is one change.
type step struct {
	phase   phase
	target  *target
	op      store.Op // of a membership; no key: none
	applied Applied
	event   audit.Event
}

// plan decides, validates and plans all.
func (s *Service) plan(ctx context.Context, a Actor, files []File, o ApplyOptions) (*plan, error) {
	nesting, err := s.nestedAt(ctx)
	if err != nil {
		return nil, err
	}
	p := &plan{s: s, a: a, at: whole(time.Now()), byName: map[string]*target{}, byID: map[string]*target{}, pruned: map[string]*indexed{}, labels: o.Prune, nesting: nesting}
	if err := p.resolve(files, o); err != nil {
		return nil, err
	}
	if err := p.read(ctx); err != nil {
		return nil, err
	}
	for _, t := range p.targets {
		p.planMembers(t)
	}
	if err := errors.Join(p.wrong...); err != nil {
		return nil, err
	}
	if err := p.checkNesting(); err != nil {
		return nil, err
	}
	p.order()
	return p, nil
}

// resolve finds the groups that files are about and those to prune, decides on them,
// and resolves names.
func (p *plan) resolve(files []File, o ApplyOptions) error {
	p.s.index.mu.RLock()
	defer p.s.index.mu.RUnlock()
	if p.s.stale() {
		return ErrStale
	}
	for _, f := range files {
		if err := p.target(f); err != nil {
			return err
		}
	}
	if err := p.prune(o.Prune); err != nil {
		return err
	}
	for _, t := range p.targets {
		if err := p.planSettings(t); err != nil {
			return err
		}
		p.planWant(t)
	}
	return nil
}

// mistake notes what is wrong with a file.
func (p *plan) mistake(name string, err error) {
	switch {
	case len(p.wrong) < maxWrong:
		p.wrong = append(p.wrong, fmt.Errorf("group %.80q: %w", name, err))
	case len(p.wrong) == maxWrong:
		p.wrong = append(p.wrong, errMoreWrong)
	}
}

func (p *plan) target(f File) error {
	if p.byName[f.Name] != nil {
		p.mistake(f.Name, invalid("it comes twice"))
		return nil
	}
	t := &target{file: f, id: newID()}
	switch g := p.s.index.named(f.Name); {
	case g != nil && p.s.rights(p.a, g.id, g.Settings).Members:
		t.old, t.id, t.rec, t.revision = g, g.id, g.record, g.revision
	case !p.s.IsAdmin(p.a): // whether it is there or not
		return fmt.Errorf("group %.80q: %w", f.Name, ErrForbidden)
	case p.s.index.byName[f.Name].id != "":
		p.mistake(f.Name, invalid("it is half deleted, or damaged: delete it first"))
	default:
		t.rec = record{Created: p.at, CreatedBy: p.a.by(), CreatedByName: p.a.Name}
	}
	p.targets = append(p.targets, t)
	p.byName[f.Name], p.byID[t.id] = t, t
	return nil
}

// prune finds the groups with all of the labels that no file names.
func (p *plan) prune(labels map[string]string) error {
	if len(labels) == 0 {
		return nil
	}
	if !p.s.IsAdmin(p.a) {
		return fmt.Errorf("prune: %w", ErrForbidden)
	}
	for _, name := range p.s.index.names {
		if g := p.s.index.named(name); g != nil && p.byName[name] == nil && matchesAll(g.Labels, labels) {
			p.pruned[g.id] = g
			p.steps = append(p.steps, step{phase: pruning, applied: Applied{Act: "delete", Group: name}})
		}
	}
	return nil
}

// local finds a local group among the files, then among the others that stay.
func (p *plan) local(name string) (id string, ok bool) {
	if t := p.byName[name]; t != nil {
		return t.id, true
	}
	g := p.s.index.named(name)
	if g == nil || p.pruned[g.id] != nil || !p.s.rights(p.a, g.id, g.Settings).See {
		return "", false
	}
	return g.id, true
}

// planSettings validates a file's settings and plans to create or edit the group.
func (p *plan) planSettings(t *target) error {
	set, old := t.file.Settings, t.rec.Settings
	set.Owners = slices.Clone(set.Owners)
	for i, o := range set.Owners {
		if o.Kind == KindGroup {
			id, ok := p.local(o.Name)
			if at := slices.IndexFunc(old.Owners, func(w Ref) bool { return w.Kind == KindGroup && o.Name != "" && p.s.index.nameOf(w.ID) == o.Name }); !ok && at >= 0 {
				id, ok = old.Owners[at].ID, true // whether or not they see it, it may stay
			}
			if !ok {
				p.mistake(set.Name, invalid("there is no group %.80q to own it", o.Name))
				return nil
			}
			set.Owners[i].ID = id
		}
		if at := slices.IndexFunc(old.Owners, o.same); o.Name == "" && at >= 0 {
			set.Owners[i].Name = old.Owners[at].Name
		}
	}
	if err := p.s.validSettings(&set, old); err != nil {
		p.mistake(set.Name, err)
		return nil
	}
	diff := p.s.diff(old, set)
	st := step{phase: editing, target: t, applied: Applied{Act: "edit", Group: set.Name, Diff: diff}}
	switch {
	case t.old == nil:
		st.phase, st.applied = creating, Applied{Act: "create", Group: set.Name}
	case len(diff) == 0:
		return nil
	case !needs(diff)(p.s.rights(p.a, t.id, old)):
		return fmt.Errorf("group %.80q: %w: only administrators change more than its description and members", set.Name, ErrForbidden)
	}
	t.rec.Settings = set
	st.event = audit.Event{Act: "group." + st.applied.Act, On: set.Name, Detail: maps.Clone(diff)}
	st.event.Detail["id"] = t.id
	p.steps = append(p.steps, st)
	return nil
}

// planWant resolves the members that a file wants.
func (p *plan) planWant(t *target) {
	if t.file.Members == nil {
		return
	}
	t.want, t.hidden = make(map[string]Member, len(t.file.Members)), map[string]bool{}
	for _, m := range t.file.Members {
		if m.Kind == KindGroup {
			id, ok := p.local(m.Name)
			if g := p.s.index.named(m.Name); !ok && g != nil && p.pruned[g.id] == nil && t.old != nil && p.s.index.has(t.old, Ref{Kind: KindGroup, ID: g.id}) {
				id, ok = g.id, true
				t.hidden[subject(KindGroup, id)] = true
			}
			if !ok {
				p.mistake(t.file.Name, noMember(m.Name))
				continue
			}
			if !p.mayNest(t, id) {
				p.mistake(t.file.Name, notToNest(m.Name))
				continue
			}
			m.ID = id
		}
		if m.Kind == KindDirectoryGroup {
			m.Name = m.ID
		}
		m.Begin, m.End = whole(m.Begin), whole(m.End)
		who := subject(m.Kind, m.ID)
		if _, twice := t.want[who]; twice {
			p.mistake(t.file.Name, invalid("member %s %.80q comes twice", m.Kind, m.ID))
		}
		t.want[who] = m
	}
}

// mayNest is what canNest asks of rights. What a file is about the actor may list.
func (p *plan) mayNest(t *target, id string) bool {
	g := p.s.index.group(id)
	return p.byID[id] != nil || t.old != nil && p.s.index.has(t.old, Ref{Kind: KindGroup, ID: id}) || p.s.rights(p.a, id, g.Settings).Members
}

func noMember(name string) error { return invalid("there is no group %.80q to be a member", name) }

// read reads the memberships of the targets: for many in one sweep.
func (p *plan) read(ctx context.Context) error {
	var prefixes []string
	for _, t := range p.targets {
		if t.now = map[string]store.Entry{}; t.want != nil && t.old != nil {
			prefixes = append(prefixes, membersKey(t.id))
		}
	}
	if len(prefixes) >= sweepAt {
		prefixes = []string{memberKeys}
	}
	for _, prefix := range prefixes {
		for e, err := range store.All(ctx, p.s.store, prefix, "", store.MaxList) {
			if err != nil {
				return fmt.Errorf("list members: %w", err)
			}
			group, who := cutMember(e.Key)
			if t := p.byID[group]; t != nil && t.want != nil {
				t.now[who] = e
			}
		}
	}
	return nil
}

// planMembers plans the difference between the members that are and those wanted.
func (p *plan) planMembers(t *target) {
	if t.want == nil {
		return
	}
	for _, who := range slices.Sorted(maps.Keys(t.now)) {
		if _, stays := t.want[who]; !stays {
			was := p.s.member(t.now[who])
			p.member(t, who, removing, "remove", was, &was)
		}
	}
	for _, who := range slices.Sorted(maps.Keys(t.want)) {
		m, ph, act := t.want[who], adding, "add"
		var was *Member
		if e, there := t.now[who]; there {
			old := p.s.member(e)
			if was = &old; m.Begin.Equal(old.Begin) && m.End.Equal(old.End) && m.Reason == old.Reason {
				continue
			}
			m.Name = old.Name
			act = "change"
		}
		if t.hidden[who] {
			p.mistake(t.file.Name, noMember(m.Name))
			continue
		}
		if err := p.s.validMember(m, was); err != nil {
			p.mistake(t.file.Name, err)
			continue
		}
		if m.Kind == KindGroup && was == nil {
			ph = nesting
		}
		p.member(t, who, ph, act, m, was)
	}
}

// member plans one change of a membership.
func (p *plan) member(t *target, who string, ph phase, act string, m Member, was *Member) {
	st := step{phase: ph, target: t, op: store.Op{Key: membersKey(t.id) + who, Delete: act == "remove"}}
	ref := m.Ref
	st.applied = Applied{Act: act, Group: t.file.Name, Member: &ref}
	st.event = audit.Event{Act: "group.member." + act, On: t.file.Name, Reason: m.Reason, Detail: memberDetail(Group{ID: t.id}, m, was)}
	switch act {
	case "remove":
		st.event.Reason = ""
	case "change":
		st.event.Act = "group.member.add"
		st.applied.Diff = m.diff(*was)
	}
	if !st.op.Delete {
		m.GrantedBy, m.GrantedByName, m.GrantedAt = p.a.by(), p.a.Name, p.at
		var err error
		if st.op.Value, err = encodeMember(m); err != nil {
			p.mistake(t.file.Name, err)
		}
	}
	p.steps = append(p.steps, st)
}

// diff says what differs from was, for people.
func (m Member) diff(was Member) map[string]string {
	out := map[string]string{}
	text := func(t time.Time) string {
		if t.IsZero() {
			return "–"
		}
		return t.Format(time.RFC3339)
	}
	if !m.Begin.Equal(was.Begin) {
		out["begin"] = text(was.Begin) + " → " + text(m.Begin)
	}
	if !m.End.Equal(was.End) {
		out["end"] = text(was.End) + " → " + text(m.End)
	}
	if m.Reason != was.Reason {
		out["reason"] = was.Reason + " → " + m.Reason
	}
	return out
}

// checkNesting refuses cycles and too deep nesting of what comes out, and to prune
// what others keep. What is to be pruned counts as there: it goes last.
func (p *plan) checkNesting() error {
	x := p.s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	nested := map[string][]string{} // id → ids of its member groups
	for n, members := range x.nested {
		id := cutSubject(x.nodes[n].subject).ID
		for _, m := range members {
			nested[id] = append(nested[id], cutSubject(x.nodes[m].subject).ID)
		}
	}
	for _, t := range p.targets {
		if t.want != nil {
			nested[t.id] = nil
			for who := range t.want {
				if isGroup(who) {
					nested[t.id] = append(nested[t.id], cutSubject(who).ID)
				}
			}
		}
	}
	for id, members := range nested {
		for _, m := range members {
			if g := p.pruned[m]; g != nil && p.pruned[id] == nil {
				return &ContainedError{g.Name, []string{p.nameOf(id)}}
			}
		}
	}
	return p.acyclic(nested)
}

func (p *plan) nameOf(id string) string {
	if t := p.byID[id]; t != nil {
		return t.file.Name
	}
	return p.s.index.nameOf(id)
}

// acyclic walks the nesting downwards from each group once.
func (p *plan) acyclic(nested map[string][]string) error {
	depth := map[string]int{} // -1: under way
	var walk func(id string, path []string) error
	walk = func(id string, path []string) error {
		path = append(path, p.nameOf(id))
		switch d, known := depth[id]; {
		case known && d < 0:
			return invalid("these groups would contain each other: %s", strings.Join(path, " > "))
		case known:
			return nil
		}
		depth[id] = -1
		deepest := 0
		for _, m := range nested[id] {
			if err := walk(m, path); err != nil {
				return err
			}
			deepest = max(deepest, depth[m]+1)
		}
		if depth[id] = deepest; deepest > maxNesting {
			return invalid("group %q would be %d groups deep, %d are allowed", p.nameOf(id), deepest, maxNesting)
		}
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(nested)) {
		if err := walk(id, nil); err != nil {
			return err
		}
	}
	return nil
}

// order brings the steps into the order of writing.
func (p *plan) order() {
	slices.SortStableFunc(p.steps, func(a, b step) int { return int(a.phase - b.phase) })
}
