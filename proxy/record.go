package proxy

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tabard-id/tabard/internal/audit"
)

const (
	maxQueued    = 4_096                  // events that wait to be written; then requests wait
	maxTogether  = 256                    // events that are written at once
	gather       = 5 * time.Millisecond   // how long the first of them waits for more
	writeTimeout = 5 * time.Second        // of one write; a disk that is slower counts as broken
	retryEvery   = 500 * time.Millisecond // how often a broken trail is tried
	closeTimeout = 10 * time.Second       // for what is queued when the process ends
)

// errTrail: the trail cannot be written, so nothing may be done.
var errTrail = errors.New("the audit trail cannot be written")

// recorder leaves each request in the trail: what changes something before it is
// forwarded, everything when it has ended. While the trail cannot be written it lets
// nothing begin. What ended meanwhile is kept and written later, an event perhaps twice
// where it is not known whether it was written.
type recorder struct {
	trail Trail
	log   logrus.FieldLogger

	queue  chan audit.Event
	broken atomic.Bool
	missed atomic.Int64  // what was refused while broken and left no room in the queue
	wake   chan struct{} // holds one: broken was set

	mu     sync.Mutex
	closed bool
	ending sync.WaitGroup // those who queue an event; none is added after closed
	stop   chan struct{}  // closed by Close: no more is queued
	ended  chan struct{}  // closed when run has returned
	ctx    context.Context
	giveUp context.CancelFunc // ends every write and every wait
}

// newRecorder starts the goroutine that Close ends.
func newRecorder(trail Trail, log logrus.FieldLogger) *recorder {
	r := &recorder{
		trail: trail, log: log, queue: make(chan audit.Event, maxQueued), wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	r.ctx, r.giveUp = context.WithCancel(context.Background())
	go r.run()
	return r
}

// Close writes what is queued and ends the goroutine. It takes at most closeTimeout; what
// is not written by then is lost, and the log says how much.
func (r *recorder) Close() {
	late := time.AfterFunc(closeTimeout, r.giveUp)
	defer late.Stop()
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	r.ending.Wait()
	if first {
		close(r.stop)
	}
	<-r.ended
	r.giveUp()
}

// begin comes before a request is forwarded: after errTrail it must not be. It takes no
// notice of the end of ctx: a client that has gone says nothing of the trail.
func (r *recorder) begin(ctx context.Context, c *call) error {
	if r.broken.Load() {
		return errTrail
	}
	if !c.recordedAtStart() {
		c.begun = true
		return nil
	}
	if err := r.write(context.WithoutCancel(ctx), []audit.Event{c.event(ctx, audit.Intended)}); err != nil {
		r.fail(err)
		return errTrail
	}
	c.begun = true
	return nil
}

// end comes once for each call whose bearer is known, when its answer has ended, whether
// it was forwarded or not. It waits while the queue is full, whatever becomes of ctx; but
// not for what was refused while the trail is broken, which may be any number.
func (r *recorder) end(ctx context.Context, c *call) {
	if !c.recordedAtEnd() {
		return
	}
	e := c.event(ctx, c.outcome())
	if !r.enter() {
		r.late(e)
		return
	}
	defer r.ending.Done()
	if !c.begun && r.broken.Load() {
		select {
		case r.queue <- e:
		default:
			r.missed.Add(1)
		}
		return
	}
	select {
	case r.queue <- e:
	case <-r.ctx.Done():
		r.lose(1)
	}
}

// enter is false after Close.
func (r *recorder) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.ending.Add(1)
	}
	return !r.closed
}

// late writes what ended after Close: whoever closes the trail waits for the requests.
func (r *recorder) late(e audit.Event) {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	if err := r.trail.AppendAll(ctx, []audit.Event{e}); err != nil {
		r.lose(1)
	}
}

func (r *recorder) lose(n int) {
	r.log.WithField("events", n).Error("proxy: requests that have ended are not in the audit trail: the process ended before it could be written")
}

func (r *recorder) write(ctx context.Context, events []audit.Event) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return r.trail.AppendAll(ctx, events)
}

// fail closes the door until run has written something again.
func (r *recorder) fail(err error) {
	if !r.broken.Swap(true) {
		r.log.WithError(err).Error("proxy: the audit trail cannot be written, so every request is refused until it can be: see to the disk of audit.dir")
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes what is queued, until Close and the end of the queue.
func (r *recorder) run() {
	defer close(r.ended)
	batch := make([]audit.Event, 0, maxTogether+1)
	for {
		more := true
		if batch, more = r.collect(batch[:0]); len(batch) > 0 {
			if err := r.write(r.ctx, batch); err == nil {
				batch = batch[:0]
			} else {
				r.fail(err)
			}
		}
		if r.broken.Load() && !r.recover(batch) {
			r.lose(len(batch) + len(r.queue))
			return
		}
		if !more {
			return
		}
	}
}

// collect waits for events and returns some, or none when the trail broke. more is false
// when there will be no others.
func (r *recorder) collect(batch []audit.Event) (_ []audit.Event, more bool) {
	select {
	case e := <-r.queue:
		batch = append(batch, e)
	case <-r.wake:
		return batch, true
	case <-r.stop:
	}
	if len(r.queue) < maxTogether {
		select {
		case <-time.After(gather):
		case <-r.stop:
		}
	}
	for len(batch) < maxTogether {
		select {
		case e := <-r.queue:
			batch = append(batch, e)
			continue
		default:
		}
		select {
		case <-r.stop:
			return batch, len(r.queue) > 0
		default:
			return batch, true
		}
	}
	return batch, true
}

// recover tries until batch is written, and with it that requests were refused; then they
// are not any more. It is false when giveUp came first. What batch holds may be in the
// trail already.
func (r *recorder) recover(batch []audit.Event) bool {
	since := time.Now()
	for {
		select {
		case <-time.After(retryEvery):
		case <-r.ctx.Done():
			return false
		}
		missed := r.missed.Swap(0) // refused, and not written by itself
		e := audit.Event{
			Act: "k8s.trail", Outcome: audit.Done, Reason: "the trail could not be written, and proxied requests were refused meanwhile", Soon: true,
			Detail: map[string]string{"since": since.UTC().Format(time.RFC3339), "missed": strconv.FormatInt(missed, 10)},
		}
		if err := r.write(r.ctx, append(batch, e)); err != nil {
			r.missed.Add(missed)
			r.log.WithError(err).Debug("proxy: the audit trail cannot be written yet")
			continue
		}
		r.broken.Store(false)
		r.log.Info("proxy: the audit trail can be written again; requests are taken")
		return true
	}
}

// recordedAtStart says whether the trail must know of a call before it is forwarded.
func (c *call) recordedAtStart() bool {
	switch {
	case c.as != nil:
		return true
	case c.level == auditNone:
		return false
	}
	return c.level == auditFull || c.upgrade || c.changes()
}

// changes is true for all but what is known to only read.
func (c *call) changes() bool {
	switch c.info.Verb {
	case "get", "list", "watch", "head", "options":
		return false
	}
	return true
}

// recordedAtEnd: what was refused and what was done as somebody else is left out by no rule.
func (c *call) recordedAtEnd() bool {
	return c.level != auditNone || c.as != nil || c.refused != "" || !c.decision.Allowed
}

// outcome is what came of a call, by our own word or the API server's.
func (c *call) outcome() string {
	switch {
	case c.refused != "" && c.status < 500, !c.decision.Allowed, c.status == 401, c.status == 403:
		return audit.Denied
	case c.refused != "", c.status == 0, c.status >= 400:
		return audit.Failed
	}
	return audit.Done
}

// why is the reason that goes with outcome.
func (c *call) why() string {
	switch {
	case !c.decision.Allowed && c.decision.Reason != "":
		return c.decision.Reason
	case c.refused != "":
		return c.refused
	case c.cut != "":
		return c.cut
	case c.status == 0:
		return "there was no answer"
	case c.status >= 400:
		return "the API server answered " + strconv.Itoa(c.status)
	}
	return ""
}

// event is what the trail is told of a call. It never holds a body, a header or a query.
func (c *call) event(ctx context.Context, outcome string) audit.Event {
	o := audit.OriginOf(ctx)
	e := audit.Event{
		Act: "k8s.request", Who: c.who.Sub, Name: c.who.Username, On: object(c.info), Outcome: outcome, Address: o.Address, UserAgent: o.UserAgent,
		RequestID: o.RequestID, Session: c.who.Session, JTI: c.who.JTI, Cluster: c.cluster.cfg.Name, Soon: true, Detail: c.detail(outcome == audit.Intended),
	}
	if outcome != audit.Intended {
		e.Reason = c.why()
	}
	return e
}

func (c *call) detail(start bool) map[string]string {
	d := make(map[string]string, 12)
	put := func(key, value string) {
		if value != "" {
			d[key] = value
		}
	}
	put("auditID", c.auditID)
	put("rule", c.decision.Rule)
	put("dryRun", strings.Join(c.decision.DryRun, " "))
	if c.as != nil {
		put("as", c.as.User)
		put("asUID", c.as.UID)
		put("asGroups", strings.Join(c.as.Groups, " "))
	}
	if i := c.info; i != nil {
		put("verb", i.Verb)
		put("apiGroup", i.APIGroup)
		put("resource", i.Resource)
		put("subresource", i.Subresource)
		put("namespace", i.Namespace)
		put("name", i.Name)
		if !i.IsResourceRequest || i.Subresource == "proxy" { // else it says nothing more
			put("path", i.Path)
		}
	}
	if !start {
		d["status"] = strconv.Itoa(c.status)
		d["bytes"] = strconv.FormatInt(c.bytes, 10)
		d["ms"] = strconv.FormatInt(max(0, time.Since(c.started).Milliseconds()), 10)
	}
	return d
}

// object is what a call is about on one line, e.g. "get deployments.apps/scale prod/web".
func object(i *request.RequestInfo) string {
	if i == nil {
		return ""
	}
	if !i.IsResourceRequest {
		return i.Verb + " " + i.Path
	}
	s := i.Verb + " " + i.Resource
	if i.APIGroup != "" {
		s += "." + i.APIGroup
	}
	if i.Subresource != "" {
		s += "/" + i.Subresource
	}
	switch {
	case i.Namespace != "" && i.Name != "":
		s += " " + i.Namespace + "/" + i.Name
	case i.Namespace != "":
		s += " " + i.Namespace + "/"
	case i.Name != "":
		s += " " + i.Name
	}
	return s
}
