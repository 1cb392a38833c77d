package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	lanes lanes

	stop    context.CancelFunc
	workers sync.WaitGroup
}

// Open loads the groups and keeps them current until Close. ErrInvalid where cfg
// reserves an empty prefix. Damaged records are logged, and count for nothing.
func Open(ctx context.Context, st store.Store, trail Trail, cfg Config, log logrus.FieldLogger) (*Service, error) {
	if slices.Contains(cfg.Reserved, "") {
		return nil, fmt.Errorf("%w: a directory's prefix is empty", ErrInvalid)
	}
	s := &Service{store: st, trail: trail, cfg: cfg, log: log, index: newIndex(log)}
	if err := s.index.load(ctx, st); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.lanes.open = map[string]*lane{}
	s.workers.Go(func() { s.run(run) })
	if err := s.heard(ctx, s.index.need); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the watch, and waits for it and for changes under way.
func (s *Service) Close() {
	s.lanes.close()
	s.stop()
	s.workers.Wait()
}

// run follows the store; where the watch breaks it loads anew, a little later each
// time. Until then the index grows stale and Of denies. Where loading fails it
// follows from where it was, never from further back: that would bring back what
// has been removed.
func (s *Service) run(ctx context.Context) {
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

const (
	noteIn  = 10 * time.Second // how long a record of the trail may take
	writeIn = 10 * time.Second // how long one write to the store may take
	heardIn = staleAfter       // how long the index may take to hear of a write
)

// heard waits until the index has what was written at a revision.
func (s *Service) heard(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, heardIn)
	defer cancel()
	return s.index.reached(ctx, revision)
}

// act is the one way to change a group: refused says that they may not or that it
// is invalid; else say so in the trail, write, say what came of it. A trail that
// cannot be written stops the act. When it returns nil, this node's index knows the
// change. ErrUnknown where it may have been written all the same. write may add to
// the details of e.
func (s *Service) act(ctx context.Context, a Actor, e audit.Event, refused error, write func(e *audit.Event) (int64, error)) error {
	if refused != nil {
		return s.refuse(ctx, a, e, refused)
	}
	e.Outcome = audit.Intended
	if err := s.note(ctx, a, e); err != nil {
		return err
	}
	revision, err := write(&e)
	err = known(err)
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
	if err := s.heard(ctx, revision); err != nil {
		return fmt.Errorf("%w: it was written, but this server has not seen it yet: %w", ErrUnknown, err)
	}
	return nil
}

// known puts a store's doubts into this package's words.
func known(err error) error {
	if errors.Is(err, store.ErrUnknown) && !errors.Is(err, ErrUnknown) {
		return fmt.Errorf("%w: the store did not say what came of it: %w", ErrUnknown, err)
	}
	return err
}

// refuse leaves a refusal in the trail and returns why. Who asks cannot keep it out
// by hanging up. That the index is stale is no refusal: nothing was decided.
func (s *Service) refuse(ctx context.Context, a Actor, e audit.Event, why error) error {
	if errors.Is(why, ErrStale) {
		return why
	}
	e.Outcome, e.Reason = audit.Denied, why.Error()
	if !isRule(why) {
		e.Outcome = audit.Failed
	}
	var hidden *hiddenError
	if errors.As(why, &hidden) {
		e.Reason = hidden.why
	}
	if err := s.note(context.WithoutCancel(ctx), a, e); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", e.Act, why)
}

// isRule reports whether err says that a rule was in the way, rather than that
// something broke.
func isRule(err error) bool {
	var mismatch *MismatchError
	var contained *ContainedError
	return errors.As(err, &mismatch) || errors.As(err, &contained) ||
		slices.ContainsFunc([]error{ErrForbidden, ErrNotFound, ErrInvalid, ErrExists}, func(rule error) bool { return errors.Is(err, rule) })
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

func (a Actor) by() string {
	if a.Operator {
		return "operator"
	}
	return a.Sub
}
