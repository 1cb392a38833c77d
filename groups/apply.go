package groups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

const (
	chunkBytes = store.MaxBytes / 2 // of what one chunk writes, before its records' names
	paceChunks = 20                 // after so many the index may catch up

	writersOfApply = 8
)

var applyEvent = audit.Event{Act: "group.apply"}

// chunk is what one write of a plan holds.
type chunk struct {
	steps   []step
	targets []*target
	bytes   int
	nests   bool
}

// run writes a plan, phase by phase, and returns what was done.
func (p *plan) run(ctx context.Context) ([]Applied, error) {
	var done []Applied
	steps := p.steps
	for len(steps) > 0 && steps[0].phase != pruning {
		n := 1
		for n < len(steps) && steps[n].phase == steps[0].phase {
			n++
		}
		made, err := p.writeAll(ctx, steps[:n])
		done = append(done, made...)
		if err != nil {
			return done, p.partly(done, err)
		}
		steps = steps[n:]
	}
	for _, st := range steps {
		if err := p.s.delete(ctx, p.a, st.applied.Group, 0, true, p.mayPrune); err != nil && !errors.Is(err, ErrNotFound) {
			return done, p.partly(done, err)
		}
		done = append(done, st.applied)
	}
	return done, nil
}

// mayPrune decides once more, on the group as the store holds it now: it is one that was
// planned, has the labels still, and no group that stays contains it.
func (p *plan) mayPrune(now *current) error {
	g := p.pruned[now.id()]
	if g == nil || !matchesAll(now.record.Labels, p.labels) {
		return fmt.Errorf("group %q: %w: apply the files again", now.record.Name, ErrConflict)
	}
	x := p.s.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	if in := x.containing(g.id, func(in *indexed) bool { return p.pruned[in.id] == nil }); len(in) > 0 {
		return &ContainedError{g.Name, in}
	}
	return nil
}

// writeAll writes the steps of one phase, several groups at once, so that they share
// what waits for the disk; but nesting one after the other, for each moves what the
// next is guarded by.
func (p *plan) writeAll(ctx context.Context, steps []step) ([]Applied, error) {
	parts := split(steps, writersOfApply)
	if steps[0].phase == nesting {
		parts = [][]step{steps}
	}
	dones, errs := make([][]Applied, len(parts)), make([]error, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { dones[i], errs[i] = p.writePart(ctx, part) })
	}
	all.Wait()
	return slices.Concat(dones...), cmp.Or(errs...)
}

// split cuts steps into about n parts, each group in one.
func split(steps []step, n int) [][]step {
	var parts [][]step
	size := len(steps)/n + 1
	for len(steps) > 0 {
		at := min(size, len(steps))
		for at < len(steps) && steps[at].target == steps[at-1].target {
			at++
		}
		parts, steps = append(parts, steps[:at]), steps[at:]
	}
	return parts
}

func (p *plan) writePart(ctx context.Context, steps []step) ([]Applied, error) {
	var done []Applied
	var last int64
	for chunks := 1; len(steps) > 0; chunks++ {
		c := next(steps)
		steps = steps[len(c.steps):]
		revision, err := p.write(ctx, c)
		if err != nil {
			return done, err
		}
		for _, st := range c.steps {
			done = append(done, st.applied)
		}
		if last = revision; chunks%paceChunks == 0 {
			_ = p.s.heard(ctx, last) // it is asked again at the end
		}
	}
	if err := p.s.heard(ctx, last); err != nil {
		return done, fmt.Errorf("%w: it was written, but this server has not seen it yet: %w", ErrUnknown, err)
	}
	return done, nil
}

// partly says that what was done so far stays.
func (p *plan) partly(done []Applied, err error) error {
	if len(done) == 0 {
		return err
	}
	return fmt.Errorf("%w: %d changes were made, the others were not: apply the files again: %w", ErrUnknown, len(done), err)
}

// next makes a chunk of the first of steps.
func next(steps []step) chunk {
	var c chunk
	in := map[*target]bool{}
	ops := 1 // the nesting's
	for _, st := range steps {
		need, size := 1, len(st.op.Key)+len(st.op.Value)
		if !in[st.target] {
			need, size = 3, size+recordSize(st.target.rec)
		}
		if ops+need > store.MaxOps || len(c.steps) > 0 && c.bytes+size > chunkBytes {
			break
		}
		if !in[st.target] {
			in[st.target] = true
			c.targets = append(c.targets, st.target)
		}
		c.steps = append(c.steps, st)
		c.nests = c.nests || st.phase == nesting
		ops, c.bytes = ops+need, c.bytes+size
	}
	return c
}

// recordSize is about how many bytes a record takes.
func recordSize(r record) int {
	size := 512 + 2*(len(r.Description)+len(r.Name))
	for _, o := range r.Owners {
		size += 64 + len(o.ID) + 2*len(o.Name)
	}
	for k, v := range r.Labels {
		size += 8 + len(k) + len(v)
	}
	for _, f := range r.Formerly {
		size += 128 + 2*len(f.Name)
	}
	return size
}

// write records and writes one chunk.
func (p *plan) write(ctx context.Context, c chunk) (int64, error) {
	if err := p.note(ctx, c, audit.Intended, nil); err != nil {
		return 0, err
	}
	revision, err := p.commit(ctx, c)
	err = known(err)
	outcome := audit.Done
	if err != nil {
		outcome = audit.Failed
	}
	return revision, withTrail(err, p.note(context.WithoutCancel(ctx), c, outcome, err))
}

func (p *plan) note(ctx context.Context, c chunk, outcome string, why error) error {
	ctx, cancel := context.WithTimeout(ctx, noteIn)
	defer cancel()
	events := make([]audit.Event, len(c.steps))
	for i, st := range c.steps {
		e := st.event
		e.Outcome, e.Who, e.Name, e.Detail = outcome, p.a.by(), p.a.Name, spread(e.Detail)
		if why != nil {
			e.Reason = why.Error()
		}
		events[i] = e
	}
	if err := p.s.trail.AppendAll(ctx, events); err != nil {
		return fmt.Errorf("audit %s: %w", applyEvent.Act, err)
	}
	return nil
}

// commit writes a chunk on the condition that its groups are as planned; for owners,
// and for nesting, that nobody nests groups meanwhile.
func (p *plan) commit(ctx context.Context, c chunk) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeIn)
	defer cancel()
	var conds []store.Cond
	var ops []store.Op
	for _, t := range c.targets {
		rec, err := putRecord(t.id, t.rec)
		if err != nil {
			return 0, err
		}
		conds, ops = append(conds, store.Cond{Key: rec.Key, Revision: t.revision}), append(ops, rec)
		if t.revision == 0 {
			name := nameKey(t.rec.Name)
			conds, ops = append(conds, store.Cond{Key: name}), append(ops, store.Op{Key: name, Value: []byte(t.id)})
		}
	}
	for _, st := range c.steps {
		if st.op.Key != "" {
			ops = append(ops, st.op)
		}
	}
	if c.nests {
		ops = append(ops, moveNesting)
	}
	if c.nests || !p.s.IsAdmin(p.a) {
		conds = append(conds, store.Cond{Key: nestingKey, Revision: p.nesting})
	}
	revision, err := p.s.store.Txn(ctx, conds, ops)
	if errors.Is(err, store.ErrConflict) {
		return 0, fmt.Errorf("%w: apply the files again", ErrConflict)
	}
	if err != nil {
		return 0, err
	}
	for _, t := range c.targets {
		t.revision = revision
	}
	if c.nests {
		p.nesting = revision
	}
	return revision, nil
}
