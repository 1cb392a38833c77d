package proxy

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// Authority says who bears a token.
type Authority interface {
	// Identify says who bears a token at a cluster now. idp.ErrRefused, idp.ErrNoCluster;
	// any other error means that nothing is known.
	Identify(ctx context.Context, cluster, token string) (idp.Identity, error)
	// Recheck says who somebody that Identify returned is now: by the session, the groups,
	// and the key that signed the token, but not by the token's own end. Any error means
	// that what they have open is to be closed.
	Recheck(ctx context.Context, id idp.Identity) (idp.Identity, error)
}

// Trail is where requests are recorded.
type Trail interface {
	AppendAll(ctx context.Context, events []audit.Event) error
}

// Deps are what a Proxy works with. Observe and Now may be nil.
type Deps struct {
	Authority Authority
	Trail     Trail
	Log       logrus.FieldLogger
	Observe   func(Observation) // is told of each request when it has ended
	Now       func() time.Time
}

// Observation is one request for the metrics. There are few different Clusters and Verbs,
// whatever is asked for.
type Observation struct {
	Cluster  string // "" when there is no such cluster
	Verb     string // of Kubernetes; "" when it was not looked at
	Status   int
	Duration time.Duration
}

// Health is how a cluster's API server is, seen from the proxy.
type Health struct {
	Cluster string
	Err     string    // "" when it answers
	Since   time.Time // when it became so
	Streams int       // open now
}

// Path is what proxied clusters are below, under the issuer: Path and the cluster's name.
const Path = "/k8s/clusters/"

// Table is a configuration that was found good.
type Table struct {
	issuer  string
	prefix  string // raw, e.g. "/k8s/clusters/"
	entries []entry
}

// entry is one cluster of a Table.
type entry struct {
	cfg    ClusterConfig
	policy *policy
	audit  *auditRules
}

// cluster is one cluster as requests see it. It is not changed: Use makes a new one.
type cluster struct {
	entry
	limits      *limits      // kept as long as there is a cluster of that name
	up          *upstream    // kept as long as its configuration is the same
	passthrough *passthrough // nil: no tokens but ours
}

// Prepare validates the configuration, compiles the policies and runs their examples.
// Every mistake is in the error, each an *idp.FieldError with a path such as
// "clusters[0].proxy.policy[1].when". It reads no file and asks nobody. Clusters without
// a Proxy are left out.
func Prepare(issuer string, clusters []ClusterConfig) (*Table, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, wrong("issuer", "is not a URL")
	}
	t := &Table{issuer: issuer, prefix: strings.TrimRight(u.EscapedPath(), "/") + Path}
	errs := []error{validateClusters(issuer, clusters)}
	for i, c := range clusters {
		if c.Proxy == nil {
			continue
		}
		path := fmt.Sprintf("clusters[%d].proxy", i)
		own := *c.Proxy
		own.Limits = own.Limits.withDefaults()
		c.Proxy = &own
		e := entry{cfg: c}
		if e.policy, err = compilePolicy(path+".policy", own.Policy); err == nil {
			err = e.policy.check(path+".examples", own.Examples)
		}
		errs = append(errs, err)
		e.audit, err = compileAudit(path+".audit", own.Audit)
		errs = append(errs, err)
		t.entries = append(t.entries, e)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t, nil
}

// Proxy forwards requests to clusters. One lives as long as the process; its
// configuration comes and goes by Use.
type Proxy struct {
	Deps
	errorLog *stdlog.Logger
	recorder *recorder
	routes   atomic.Pointer[routes]
	streams  registry
	calls    atomic.Int64 // requests under way
	buffers  struct{ plain, stream buffers }
	stop     context.CancelFunc
	stopped  chan struct{} // closed when no stream is looked after any more

	mu     sync.Mutex // of Use and Close
	closed bool
}

// New returns a Proxy without any cluster. Close ends it.
func New(d Deps) *Proxy {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Observe == nil {
		d.Observe = func(Observation) {}
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Proxy{
		Deps: d, errorLog: stdlog.New(debugWriter{d.Log}, "", 0), recorder: newRecorder(d.Trail, d.Log),
		streams: registry{open: map[*stream]struct{}{}}, stop: stop, stopped: make(chan struct{}),
	}
	p.buffers.plain.size, p.buffers.stream.size = plainBuffer, streamBuffer
	p.routes.Store(&routes{})
	go p.lookAfter(ctx)
	return p
}

// debugWriter takes what httputil logs: mostly clients that hang up.
type debugWriter struct{ log logrus.FieldLogger }

func (d debugWriter) Write(b []byte) (int, error) {
	d.log.Debugf("proxy: %.300s", b)
	return len(b), nil
}

// Use takes a table in place of the one before. Clusters whose API server is configured
// as before keep their connections and streams; the streams of those that are gone, and
// of those whose API server is another now, are cut. After an error nothing has changed.
func (p *Proxy) Use(t *Table) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("proxy: closed")
	}
	old := p.routes.Load()
	now := &routes{issuer: t.issuer, prefix: t.prefix, byName: map[string]*cluster{}, byHost: map[string]*cluster{}}
	var made []*upstream
	for _, e := range t.entries {
		c, err := p.renew(old.byName[e.cfg.Name], e)
		if err != nil {
			for _, u := range made {
				u.close()
			}
			return fmt.Errorf("proxy for cluster %s: %w", e.cfg.Name, err)
		}
		if was := old.byName[e.cfg.Name]; was == nil || was.up != c.up {
			made = append(made, c.up)
		}
		now.byName[e.cfg.Name] = c
		for _, host := range e.cfg.Proxy.Hosts {
			now.byHost[strings.ToLower(host)] = c
		}
	}
	for _, c := range now.byName {
		c.limits.configure(c.cfg.Proxy.Limits)
	}
	p.routes.Store(now)
	p.streams.cutIf(p.Now(), func(s *stream) string { return moved(now, s.call.cluster) })
	for name, c := range old.byName {
		if is := now.byName[name]; is == nil || is.up != c.up {
			c.up.close()
		}
	}
	return nil
}

// moved says why a stream that was opened at was cannot go on, or "".
func moved(now *routes, was *cluster) string {
	is := now.byName[was.cfg.Name]
	switch {
	case is == nil:
		return "the cluster was removed"
	case is.up != was.up:
		return "the cluster's API server was configured anew"
	}
	return ""
}

// renew makes the cluster of e with what can be kept of the one before, which may be nil.
func (p *Proxy) renew(was *cluster, e entry) (*cluster, error) {
	c := &cluster{entry: e}
	if was != nil {
		c.limits = was.limits
	} else {
		c.limits = newLimits(e.cfg.Proxy.Limits)
	}
	if was != nil && reflect.DeepEqual(was.cfg.APIServer, e.cfg.APIServer) {
		c.up = was.up
	} else {
		up, err := newUpstream(e.cfg.Name, e.cfg.APIServer, p.Log)
		if err != nil {
			return nil, err
		}
		c.up = up
	}
	switch pt := e.cfg.Proxy.Passthrough; {
	case pt == nil:
	case was != nil && was.up == c.up && reflect.DeepEqual(was.cfg.Proxy.Passthrough, pt):
		c.passthrough = was.passthrough // with what it remembers
	default:
		c.passthrough = newPassthrough(*pt, c.up)
	}
	return c, nil
}

// Health returns how each cluster's API server is, by name.
func (p *Proxy) Health() []Health {
	streams := p.streams.count()
	var all []Health
	for name, c := range p.routes.Load().byName {
		h := Health{Cluster: name, Streams: streams[name]}
		since, err := c.up.health()
		if h.Since = since; err != nil {
			h.Err = err.Error()
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b Health) int { return strings.Compare(a.Cluster, b.Cluster) })
	return all
}

// Drain ends what never ends by itself: watches, logs and proxied streams at once and
// cleanly, so that clients open them anew elsewhere; no new ones are taken. Upgraded
// connections (exec, attach, port-forward) and all other requests have until ctx ends;
// then what is left of the streams is cut.
func (p *Proxy) Drain(ctx context.Context) {
	p.streams.drain(p.Now())
	if !p.idle(ctx) {
		p.streams.cutIf(p.Now(), func(*stream) string { return "the server stops" })
	}
}

// idle waits until no request is under way, and says whether that came before ctx ended.
func (p *Proxy) idle(ctx context.Context) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for p.calls.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Close cuts every stream, waits up to five seconds for what is under way, so that its end
// is in the trail, writes what the trail has not yet, and ends all that New and Use
// started. Nothing is forwarded afterwards.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.streams.drain(p.Now())
	p.streams.cutIf(p.Now(), func(*stream) string { return "the server stops" })
	p.streams.kill(p.Now())
	ctx, cancel := context.WithTimeout(context.Background(), cutGrace)
	defer cancel()
	if !p.idle(ctx) {
		p.Log.Warn("requests were still under way at the end: the trail may lack how they ended")
	}
	p.stop()
	<-p.stopped
	old := p.routes.Swap(&routes{})
	p.recorder.Close()
	for _, c := range old.byName {
		c.up.close()
	}
}
