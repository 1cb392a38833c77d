package idp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// spell is the record of wrong passwords from one address: a bucket that leaks.
type spell struct {
	Level float64   `json:"level"` // as of At
	At    time.Time `json:"at"`
}

// add counts one more wrong password.
func (p *spell) add(now time.Time, c ThrottleConfig) {
	p.Level = max(0, p.Level-float64(now.Sub(p.At))/float64(c.Window)*float64(c.AddressTries)) + 1
	p.At = now.UTC()
}

func (p *spell) wait(now time.Time, c ThrottleConfig) time.Duration {
	if p.Level < float64(c.AddressTries) {
		return 0
	}
	return p.At.Add(doubled(int(p.Level)-c.AddressTries, c.Window)).Sub(now)
}

func addressKey(address string) string { return "throttle/address/" + network(address) }

// spell returns the record at key, and the condition that nobody has written it since.
// It is read, or where recall says so, taken for what this node knows of it.
func (s *Service) spell(ctx context.Context, key string, recall bool) (spell, store.Cond, error) {
	var p spell
	e, err := s.entry(ctx, key, recall)
	if err == nil {
		err = json.Unmarshal(e.Value, &p)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return p, store.Cond{}, fmt.Errorf("read the tries of an address: %w", err)
	}
	return p, store.Cond{Key: key, Revision: e.Revision}, nil
}

// addressCond is the condition that the address of the try is known as it is, so that
// no node lets one pass that another node has seen enough of. *TooManyError.
func (a *attempt) addressCond(ctx context.Context, recall bool) ([]store.Cond, error) {
	if a.address == "" || a.Alone {
		return nil, nil // admit has read it
	}
	p, cond, err := a.spell(ctx, addressKey(a.address), recall)
	if wait := p.wait(a.Now(), a.cfg.Throttle); err == nil && wait > 0 {
		err = &TooManyError{wait}
	}
	return []store.Cond{cond}, err
}

// countAddress returns what to write to count one more wrong password.
func (s *Service) countAddress(ctx context.Context, address string, recall bool) ([]store.Cond, []store.Op, error) {
	if address == "" {
		return nil, nil, nil
	}
	p, cond, err := s.spell(ctx, addressKey(address), recall)
	if err != nil {
		return nil, nil, err
	}
	p.add(s.Now(), s.cfg.Throttle)
	value, err := json.Marshal(p)
	return []store.Cond{cond}, []store.Op{{Key: cond.Key, Value: value, Expires: s.Now().Add(2 * s.cfg.Throttle.Window)}}, err
}

// admit lets a try from address begin, unless too many were wrong or this node has
// too many under way; leave ends it. *TooManyError.
func (s *Service) admit(ctx context.Context, address string) (leave func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	key, c := addressKey(address), s.cfg.Throttle
	err = s.turns.enter(ctx, key, func() (int, error) {
		p, _, err := s.spell(ctx, key, true)
		if err != nil {
			return 0, err
		}
		if wait := p.wait(s.Now(), c); wait > 0 {
			return 0, &TooManyError{wait}
		}
		return max(1, c.AddressTries-int(p.Level)), nil
	})
	return func() { s.turns.leave(key) }, err
}

// turns lets so many at once go on by key, and the others of this node wait: they
// would only meet in conflicts.
type turns struct {
	mu    sync.Mutex
	lanes map[string]*lane
}

type lane struct {
	taken, waiting int
	freed          chan struct{} // closed when one leaves
}

// maxWaiting bounds those who wait for one key.
const maxWaiting = 256

// enter waits until fewer than most() are under way. most is asked each time anew,
// and its error ends the wait; a *TooManyError does when that takes loginBudget.
func (t *turns) enter(ctx context.Context, key string, most func() (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	for {
		n, err := most()
		if err != nil {
			return err
		}
		freed, ok := t.take(key, n)
		if ok {
			return nil
		}
		if freed == nil {
			return &TooManyError{crowded}
		}
		select {
		case <-freed:
		case <-ctx.Done():
		}
		t.change(key, 0, -1)
		if ctx.Err() != nil {
			return &TooManyError{crowded}
		}
	}
}

// take takes a turn, or a place among those who wait; neither where that is full.
func (t *turns) take(key string, most int) (freed <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[key]
	if l == nil {
		l = &lane{freed: make(chan struct{})}
		t.lanes[key] = l
	}
	switch {
	case l.taken < most:
		l.taken++
		return nil, true
	case l.waiting == maxWaiting:
		return nil, false
	}
	l.waiting++
	return l.freed, false
}

func (t *turns) leave(key string) { t.change(key, -1, 0) }

func (t *turns) change(key string, taken, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lanes[key]
	l.taken, l.waiting = l.taken+taken, l.waiting+waiting
	if taken < 0 {
		close(l.freed)
		l.freed = make(chan struct{})
	}
	if l.taken == 0 && l.waiting == 0 {
		delete(t.lanes, key)
	}
}

// network is what an address counts as: one subscriber has an IPv6 network of 64
// bits whole.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	if ip = ip.Unmap().WithZone(""); ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().Addr().String()
	}
	return ip.String()
}
