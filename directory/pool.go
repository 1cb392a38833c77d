package directory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// pool bounds the calls of one purpose that run at once, and keeps their
// connections for the next.
type pool struct {
	slots chan struct{}
	keep  int           // connections that wait, at most
	idle  time.Duration // until a connection that waits is closed

	mu     sync.Mutex
	free   []*conn // used last at the end
	closed bool
}

func newPool(calls, keep int, idle time.Duration) *pool {
	return &pool{slots: make(chan struct{}, calls), keep: keep, idle: idle}
}

// acquire waits for a slot. The caller releases it.
func (p *pool) acquire(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: too many requests wait for it: %w", ErrUnavailable, ctx.Err())
	}
}

func (p *pool) release() { <-p.slots }

// take returns a connection to h that still stands, or nil.
func (p *pool) take(h *host) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.free) - 1; i >= 0; i-- {
		if c := p.free[i]; c.host == h {
			p.free = slices.Delete(p.free, i, i+1)
			if !c.IsClosing() {
				c.reused = true
				return c
			}
		}
	}
	return nil
}

// put keeps c for the next call. Its read deadline closes it when none comes.
func (p *pool) put(c *conn) {
	c.used = time.Now()
	c.raw.SetDeadline(c.used.Add(p.idle))
	p.mu.Lock()
	p.free = slices.DeleteFunc(p.free, func(f *conn) bool { return f.IsClosing() })
	var excess *conn
	switch {
	case p.closed || c.IsClosing():
		excess = c
	case len(p.free) >= p.keep:
		excess, p.free = p.free[0], append(p.free[1:], c)
	default:
		p.free = append(p.free, c)
	}
	p.mu.Unlock()
	if excess != nil {
		excess.Close()
	}
}

// drop closes the connections to h that wait.
func (p *pool) drop(h *host) { p.remove(func(c *conn) bool { return c.host == h }) }

// close closes all that wait. Calls go on, each on a connection of its own.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.remove(func(*conn) bool { return true })
}

func (p *pool) remove(which func(*conn) bool) {
	var gone []*conn
	p.mu.Lock()
	p.free = slices.DeleteFunc(p.free, func(c *conn) bool {
		if !which(c) {
			return false
		}
		gone = append(gone, c)
		return true
	})
	p.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}
