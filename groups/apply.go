package groups

import (
	"context"
	"errors"
	"fmt"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

const (
	chunkBytes = store.MaxBytes / 2 // of what one chunk writes, before its records' names
	paceChunks = 20                 // after so many the index may catch up
)

var applyEvent = audit.Event{Act: "group.apply"}

// chunk is what one write of a plan holds.
type chunk struct {
	steps   []step
	targets []*target
	bytes   int
	nests   bool
}

// run writes a plan and returns what was done.
func (p *plan) run(ctx context.Context) ([]Applied, error) {
	var done []Applied
	var last int64
	chunks := 0
	for len(p.steps) > 0 {
		c := p.next()
		if len(c.steps) == 0 {
			break // what is left is to be pruned
		}
		revision, err := p.write(ctx, c)
		if err != nil {
			return done, p.partly(done, err)
		}
		for _, st := range c.steps {
			done = append(done, st.applied)
		}
		if last, chunks = revision, chunks+1; chunks%paceChunks == 0 {
			_ = p.s.heard(ctx, last) // it is asked again at the end
		}
	}
	if err := p.s.heard(ctx, last); err != nil {
		return done, fmt.Errorf("%w: it was written, but this server has not seen it yet: %w", ErrUnknown, err)
	}
	for _, st := range p.steps {
		if err := p.s.Delete(ctx, p.a, st.applied.Group, 0, true); err != nil && !errors.Is(err, ErrNotFound) {
			return done, p.partly(done, err)
		}
		done = append(done, st.applied)
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

// next takes the steps of the next chunk from the plan.
func (p *plan) next() chunk {
	var c chunk
	in := map[*target]bool{}
	ops := 1 // the nesting's
	for i, st := range p.steps {
		if st.phase == pruning {
			break
		}
		need, size := 1, len(st.op.Key)+len(st.op.Value)
		if !in[st.target] {
			need, size = 3, size+recordSize(st.target.rec)
		}
		// A group that is new has its own conditions: it ends where that phase does.
		if ops+need > store.MaxOps || len(c.steps) > 0 && (c.bytes+size > chunkBytes || p.steps[i-1].phase != st.phase) {
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
	p.steps = p.steps[len(c.steps):]
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
	if auditErr := p.note(context.WithoutCancel(ctx), c, outcome, err); auditErr != nil && err == nil {
		return 0, fmt.Errorf("%w: it was written, but not its outcome to the trail: %w", ErrUnknown, auditErr)
	} else if auditErr != nil {
		return 0, fmt.Errorf("%w; nor could this be written to the trail: %w", err, auditErr)
	}
	return revision, err
}

func (p *plan) note(ctx context.Context, c chunk, outcome string, why error) error {
	ctx, cancel := context.WithTimeout(ctx, noteIn)
	defer cancel()
	events := make([]audit.Event, len(c.steps))
	for i, st := range c.steps {
		e := st.event
		e.Outcome, e.Who, e.Name = outcome, p.a.by(), p.a.Name
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
