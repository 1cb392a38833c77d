package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

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
	index *index
	lanes lanes

	follower *store.Follower // keeps the index current
}

// Open loads the groups and keeps them current until Close. ErrInvalid where cfg
// reserves an empty prefix. Damaged records are logged, and count for nothing.
func Open(ctx context.Context, st store.Store, trail Trail, cfg Config, log logrus.FieldLogger) (*Service, error) {
	if slices.Contains(cfg.Reserved, "") {
		return nil, fmt.Errorf("%w: a directory's prefix is empty", ErrInvalid)
	}
	s := &Service{store: st, trail: trail, cfg: cfg, index: newIndex(log)}
	s.lanes.open = map[string]*lane{}
	var err error
	if s.follower, err = store.Follow(ctx, st, keyPrefix, s.index, log); err != nil {
		return nil, err
	}
	if err := s.heard(ctx, s.index.need); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close waits for changes under way, and ends the watch.
func (s *Service) Close() {
	s.lanes.close()
	s.follower.Close()
}

// stale reports whether the index may be behind: deny then. The caller holds its
// lock.
func (s *Service) stale() bool { return s.follower.Stale() || s.follower.Revision() < s.index.need }

const (
	noteIn  = 10 * time.Second // how long a record of the trail may take
	writeIn = 10 * time.Second // how long one write to the store may take
	heardIn = store.StaleAfter // how long the index may take to hear of a write
)

// heard waits until the index has what was written at a revision.
func (s *Service) heard(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, heardIn)
	defer cancel()
	return s.follower.Reached(ctx, revision)
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
	if err := withTrail(err, s.note(context.WithoutCancel(ctx), a, e)); err != nil {
		return err
	}
	if err := s.heard(ctx, revision); err != nil {
		return fmt.Errorf("%w: it was written, but this server has not seen it yet: %w", ErrUnknown, err)
	}
	return nil
}

// withTrail is what came of a write, whose outcome the trail has unless noting it failed.
func withTrail(err, noting error) error {
	switch {
	case noting == nil:
		return err
	case err == nil:
		return fmt.Errorf("%w: it was written, but not its outcome to the trail: %w", ErrUnknown, noting)
	}
	return fmt.Errorf("%w; nor could this be written to the trail: %w", err, noting)
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
	e.Who, e.Name, e.Detail = a.by(), a.Name, spread(e.Detail)
	if err := s.trail.Append(ctx, e); err != nil {
		return fmt.Errorf("audit %s: %w", e.Act, err)
	}
	return nil
}

// maxDetail is what the trail keeps of one detail, in bytes, with room for its mark.
const maxDetail = 1000

// spread puts what is too long for one detail, a list of owners or labels, into
// several: owners, owners.2 and so on. The trail would cut it.
func spread(detail map[string]string) map[string]string {
	out := make(map[string]string, len(detail))
	for k, v := range detail {
		key := k
		for n := 2; len(v) > maxDetail; n++ {
			end := maxDetail
			for !utf8.RuneStart(v[end]) {
				end--
			}
			out[key], v = v[:end], v[end:]
			key = fmt.Sprintf("%s.%d", k, n)
		}
		out[key] = v
	}
	return out
}

func (a Actor) by() string {
	if a.Operator {
		return "operator"
	}
	return a.Sub
}
