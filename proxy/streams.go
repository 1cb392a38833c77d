package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/tabard-id/tabard/idp"
)

const (
	lookEvery   = time.Second            // how often what is open is looked at
	lookTime    = 700 * time.Millisecond // for all of it; what was not reached twice running is cut
	cutGrace    = 5 * time.Second        // how long a stream that was cut may take to end by itself, cleanly, on a busy machine too
	forgetEvery = 30                     // looks between two times that limits are tidied up
)

// stream is an answer that does not end by itself, or an upgraded connection, for as long
// as it is open.
type stream struct {
	call   *call
	cancel context.CancelFunc // of the request to the API server
	rc     *http.ResponseController
	ends   bool // has an end that the client understands: not an upgraded connection

	// Of lookAfter alone.
	who     idp.Identity
	decided *policy // that allowed it
	late    bool    // the last look had no time for it

	mu    sync.Mutex
	why   string // it was cut, or ""
	cutAt time.Time
	conn  net.Conn // the client's, once it was upgraded
	ended bool
}

// cut ends a stream: its body reads as if the API server had ended it.
func (s *stream) cut(now time.Time, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" || s.ended {
		return
	}
	s.why, s.cutAt = why, now
	s.cancel()
	if s.conn != nil {
		_ = s.conn.Close() // who reads nothing would hold it open
	}
}

// kill ends a stream that was cut before the given time and is open still, because the
// client reads nothing.
func (s *stream) kill(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" && !s.ended && !s.cutAt.After(before) {
		_ = s.rc.SetWriteDeadline(time.Unix(1, 0))
	}
}

// reason is why the stream was cut, or "".
func (s *stream) reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// upgraded tells the stream of the connection that it is from now on. An error if it was
// cut before.
func (s *stream) upgraded(conn net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		return fmt.Errorf("cut: %s", s.why)
	}
	s.conn = conn
	return nil
}

// end comes before the handler returns: afterwards the connection is others'.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.call.cut = s.why
}

// body is the answer's body on its way to the client.
type body struct {
	io.ReadCloser
	stream *stream
}

// Read ends cleanly where the stream was cut.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.stream.reason() != "" {
		err = io.EOF
	}
	return n, err
}

// registry knows the streams that are open.
type registry struct {
	mu       sync.Mutex
	open     map[*stream]struct{}
	draining bool
}

// add takes a stream, which is removed once. The error is an *answer.
func (r *registry) add(s *stream) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return unavailable(time.Second, "this server stops: try again")
	}
	r.open[s] = struct{}{}
	return nil
}

func (r *registry) remove(s *stream) {
	s.end()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, s)
}

func (r *registry) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// count returns how many are open at each cluster.
func (r *registry) count() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[string]int{}
	for s := range r.open {
		n[s.call.cluster.cfg.Name]++
	}
	return n
}

// all returns what is open, in no order.
func (r *registry) all() []*stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*stream, 0, len(r.open))
	for s := range r.open {
		all = append(all, s)
	}
	return all
}

// cutIf cuts the streams for which why returns something.
func (r *registry) cutIf(now time.Time, why func(*stream) string) {
	for _, s := range r.all() {
		if w := why(s); w != "" {
			s.cut(now, w)
		}
	}
}

// drain takes no more, and cuts what has a clean end.
func (r *registry) drain(now time.Time) {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	r.cutIf(now, func(s *stream) string {
		if !s.ends {
			return ""
		}
		return "the server stops"
	})
}

// kill ends at once what was cut before the given time.
func (r *registry) kill(before time.Time) {
	for _, s := range r.all() {
		s.kill(before)
	}
}

// lookAfter looks at every open stream once a second until ctx ends.
func (p *Proxy) lookAfter(ctx context.Context) {
	defer close(p.stopped)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.look(ctx)
		if n%forgetEvery == 0 {
			for _, c := range p.routes.Load().byName {
				c.limits.forget(p.Now())
			}
		}
	}
}

// holder is what a Recheck depends on: a token.
type holder struct{ cluster, sub, session, jti string }

// seen is the outcome of one Recheck.
type seen struct {
	who idp.Identity
	err error
}

// look cuts every stream whose right has ended. Each token is looked at once.
func (p *Proxy) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	routes, now, known := p.routes.Load(), p.Now(), map[holder]seen{}
	for _, s := range p.streams.all() {
		if s.reason() != "" {
			s.kill(now.Add(-cutGrace))
			continue
		}
		if why := p.ended(ctx, routes, s, now, known); why != "" {
			s.cut(now, why)
			p.Log.WithField("cluster", s.call.cluster.cfg.Name).WithField("user", s.call.who.Username).
				WithField("auditID", s.call.auditID).Info("closed what was open: " + why)
		}
	}
}

// ended says why a stream may not go on, or "".
func (p *Proxy) ended(ctx context.Context, routes *routes, s *stream, now time.Time, known map[holder]seen) string {
	if why := moved(routes, s.call.cluster); why != "" {
		return why
	}
	c := routes.byName[s.call.cluster.cfg.Name]
	changed := s.decided != c.policy || c.policy.timed()
	if s.call.foreign {
		if c.passthrough == nil {
			return "passthrough was switched off"
		}
	} else {
		k := holder{c.cfg.Name, s.who.Sub, s.who.Session, s.who.JTI}
		is, ok := known[k]
		if !ok {
			is.who, is.err = p.Authority.Recheck(ctx, s.call.who)
			known[k] = is
		}
		// What there was no time to find out is left to the next look, once: a server that
		// stood still for a moment does not cut off everybody.
		if late := is.err != nil && ctx.Err() != nil && !errors.Is(is.err, idp.ErrRefused); late && !s.late {
			s.late = true
			return ""
		}
		s.late = false
		if why := lost(s.call.who, is); why != "" {
			return why
		}
		changed = changed || !slices.Equal(s.who.Groups, is.who.Groups)
		s.who = is.who
	}
	if !changed {
		return ""
	}
	s.decided = c.policy
	if d := c.policy.decide(s.call.inputFor(s.who, now)); !d.Allowed {
		return "the policy refuses it now: rule " + d.Rule
	}
	return ""
}

// lost says which right that was there when a stream was opened is there no more, or "".
func lost(was idp.Identity, is seen) string {
	switch {
	case is.err != nil:
		return "the session or the token's right ended: " + is.err.Error()
	case is.who.Username != was.Username || is.who.Sub != was.Sub:
		return "the username changed"
	}
	for _, g := range was.Groups {
		if !slices.Contains(is.who.Groups, g) {
			return "a group was taken away: " + g
		}
	}
	return ""
}
