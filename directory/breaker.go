package directory

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"time"
)

const (
	openAfter    = 3 // time-outs in a row, and calls no longer wait for a host
	firstBackoff = time.Second
	maxBackoff   = 30 * time.Second
	checkEvery   = 30 * time.Second // a host that nobody heard of
	checkTime    = 2 * time.Second  // for that, and for DNS
)

// host is one server of a directory and a circuit breaker for it. A host that
// failed comes last; one that timed out openAfter times is left alone for a
// back-off that grows with each failure, and then one trial decides.
type host struct {
	url     string
	address string // host:port
	name    string // that its certificate must hold
	secure  bool   // TLS from the first byte

	mu       sync.Mutex
	failures int  // since the last answer
	stalled  bool // the last of them took all its time
	failedAt time.Time
	heard    time.Time // last answer, or when the host became known
	retry    time.Time // when the next trial is due
	backoff  time.Duration
}

func newHost(u *url.URL) *host {
	return &host{
		url: u.String(), address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme])),
		name: u.Hostname(), secure: u.Scheme == "ldaps", heard: time.Now(),
	}
}

// healthy says whether the last call to the host was answered.
func (h *host) healthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failures == 0
}

// admit says whether a call may try the host at now. Of an open breaker only one
// gets through each time the back-off ends.
func (h *host) admit(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failures < openAfter || !h.stalled {
		return true // a host that fails at once costs a call no time
	}
	return h.trial(now)
}

// due says whether the host is to be checked at now, and takes the trial.
func (h *host) due(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return (h.failures > 0 || now.Sub(h.heard) >= checkEvery) && h.trial(now)
}

// trial takes the one trial of a back-off. h.mu is held.
func (h *host) trial(now time.Time) bool {
	if now.Before(h.retry) {
		return false
	}
	h.retry = now.Add(max(h.backoff, checkTime))
	return true
}

// answered closes the breaker.
func (h *host) answered(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.heard, h.retry = 0, now, time.Time{}
}

// failed counts a failure. A host that comes and goes waits longer each time.
func (h *host) failed(now time.Time, stalled bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case now.Sub(h.failedAt) > 2*maxBackoff:
		h.backoff = firstBackoff
	case h.failures == 0 || !now.Before(h.failedAt.Add(h.backoff)):
		h.backoff = min(2*h.backoff, maxBackoff)
	}
	h.failures, h.stalled, h.failedAt = h.failures+1, stalled, now
	h.retry = now.Add(h.backoff)
}

// blame counts a failure of a call to h that began then, unless it is ours or
// the call came with little time. It says whether another host may be asked.
func (d *Directory) blame(ctx context.Context, h *host, began time.Time, err error) (next bool) {
	if errors.Is(err, errServiceBind) || errors.Is(ctx.Err(), context.Canceled) {
		return false
	}
	now, stalled := time.Now(), isStalled(err)
	if stalled { // so would its other connections
		for _, p := range d.pools() {
			p.drop(h)
		}
	}
	if !stalled || ctx.Err() == nil || now.Sub(began) >= d.patience {
		h.failed(now, stalled)
	}
	return !errors.Is(err, ErrLost) && ctx.Err() == nil
}

// watch checks hosts that failed, so that no call has to, and those that nobody
// heard of. It does so until Close, once the directory is in use.
func (d *Directory) watch(ctx context.Context) {
	tick := time.NewTicker(firstBackoff)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !d.used.Load() {
			continue
		}
		hosts, _ := d.resolve(ctx) // none while DNS names none
		for _, h := range hosts {
			if h.due(time.Now()) {
				d.watching.Go(func() { d.check(ctx, h) })
			}
		}
	}
}

// check asks h for something small, on a new connection or one of the pool.
func (d *Directory) check(ctx context.Context, h *host) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	began := time.Now()
	err := d.searchAt(ctx, d.searches, h, d.patience, func(c *conn) error {
		_, err := c.search(ctx, entryQuery("", "1.1"))
		return err
	})
	if answered(err) {
		h.answered(time.Now())
	} else {
		d.blame(ctx, h, began, err)
	}
}
