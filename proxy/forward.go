package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	bodyIdle  = 30 * time.Second // how long a client may send nothing of a body it began
	lingering = 10 * time.Second // how long the rest of an answer may take beyond the request's time-out

	plainBuffer  = 32 << 10 // bytes
	streamBuffer = 1 << 10  // a watch holds one all the time
)

// buffers are httputil's, of one size.
type buffers struct {
	size int
	pool sync.Pool
}

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, b.size)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// forwarding sends a request on that passed every step.
type forwarding struct {
	p       *Proxy
	call    *call
	target  target
	who     impersonation // zero for a foreign token
	token   string        // of a foreign one
	decided *policy       // that let it pass
	release func()        // of the person's limits
	next    http.RoundTripper
	open    *stream       // nil for what ends by itself
	body    *sent         // nil for none
	rest    io.ReadCloser // of an answer, where we copy it ourselves
	failed  error
}

// forward sends the request on, and the answer back. After an error the client was
// answered nothing.
func (f *forwarding) forward(w *reply, r *http.Request) error {
	defer func() {
		if f.body != nil {
			f.body.end()
		}
	}()
	if f.call.stream {
		return f.stream(w, r)
	}
	limit := f.call.cluster.cfg.Proxy.Limits.Timeout
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(limit + lingering))
	return f.send(ctx, rc, w, r, &f.p.buffers.plain)
}

// stream forwards what does not end by itself. It is in the registry meanwhile.
func (f *forwarding) stream(w *reply, r *http.Request) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // a dead peer is found by TCP's keep-alive
	f.open = &stream{call: f.call, cancel: cancel, rc: rc, ends: !f.call.upgrade, who: f.call.who, decided: f.decided}
	if err := f.p.streams.add(f.open); err != nil {
		return err
	}
	defer f.p.streams.remove(f.open)
	w.stream = f.open
	if err := f.send(ctx, rc, w, r, &f.p.buffers.plain); err != nil || f.rest == nil {
		return err
	}
	f.forget(r)
	f.pour(rc, w)
	return nil
}

// forget lets go of what only sending the request needed: a watch may wait for hours.
// net/http keeps r meanwhile, and the values of its headers in one array, so that the
// token would outlive a header that is only deleted.
func (f *forwarding) forget(r *http.Request) {
	f.who, f.token = impersonation{}, ""
	clear(r.Header["Authorization"])
}

// pour copies what a watch or a log sends, as it comes. httputil would do the same, but
// keeps the request and 4 KiB more for as long as nothing comes.
func (f *forwarding) pour(rc *http.ResponseController, w *reply) {
	defer f.rest.Close()
	small := f.p.buffers.stream.Get()
	defer f.p.buffers.stream.Put(small)
	err := rc.Flush()
	for buf := small; err == nil; {
		var n int
		n, err = f.rest.Read(buf)
		if n > 0 {
			if werr := w.pass(rc, buf[:n]); werr != nil {
				err = werr
			}
		}
		switch full := n == len(buf); {
		case full && len(buf) == len(small):
			buf = f.p.buffers.plain.Get() // there is more
		case !full && len(buf) > len(small):
			f.p.buffers.plain.Put(buf)
			buf = small
		}
	}
	if err != io.EOF {
		panic(http.ErrAbortHandler) // so that the client sees that it is no end
	}
}

// send runs httputil's proxy: it is what knows trailers, 1xx and upgrades.
func (f *forwarding) send(ctx context.Context, rc *http.ResponseController, w *reply, r *http.Request, pool *buffers) error {
	up := f.call.cluster.up
	switch {
	case f.call.foreign && f.call.upgrade:
		f.next = up.foreignUpgrades()
	case f.call.foreign:
		f.next = up.foreign()
	case f.call.upgrade:
		f.next = up.upgrades()
	default:
		f.next = up.transport()
	}
	r = r.WithContext(ctx)
	r.URL = f.target.at(up.url())
	if r.Body != nil && r.Body != http.NoBody {
		limit := int64(f.call.cluster.cfg.Proxy.Limits.MaxBody)
		f.body = &sent{ReadCloser: http.MaxBytesReader(w.ResponseWriter, r.Body, limit), rc: rc, ctx: ctx}
		_ = rc.SetReadDeadline(time.Now().Add(bodyIdle)) // for the server too, which reads what is left of it
		r.Body = f.body
	} else {
		_ = rc.SetReadDeadline(time.Time{})
	}
	rp := httputil.ReverseProxy{
		Rewrite: f.rewrite, Transport: f, ModifyResponse: f.received, ErrorLog: f.p.errorLog, BufferPool: pool,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { f.failed = err },
	}
	if f.call.stream {
		rp.FlushInterval = -1
	}
	rp.ServeHTTP(w, r)
	stripTrailers(w.Header())
	if f.failed != nil {
		return f.explain(r.Context(), f.failed)
	}
	return nil
}

// at is the target below the API server's URL. The path goes on byte for byte.
func (t target) at(base *url.URL) *url.URL {
	return &url.URL{
		Scheme: base.Scheme, Host: base.Host, RawQuery: t.query,
		Path: strings.TrimSuffix(base.Path, "/") + t.path, RawPath: strings.TrimSuffix(base.EscapedPath(), "/") + t.raw,
	}
}

// rewrite takes off what the client said of itself. httputil has dropped by now what
// Connection named.
func (f *forwarding) rewrite(pr *httputil.ProxyRequest) {
	h := pr.Out.Header
	upgrade := h["Upgrade"]
	strip(h)
	if f.call.upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, upgrade
	}
	pr.Out.Host = "" // that of the URL
	pr.Out.Trailer = nil
}

// RoundTrip puts on who asks: nothing that a client sends can take it off again.
func (f *forwarding) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.call.foreign {
		r.Header["Authorization"] = []string{"Bearer " + f.token}
	} else {
		f.who.set(r.Header)
	}
	r.Header[headerAudit] = []string{f.call.auditID}
	return f.next.RoundTrip(r)
}

var (
	errAccount  = errors.New("the API server refused the proxy's own account")
	errProtocol = errors.New("the API server switched protocols, which was not asked for")
)

// received looks at an answer before the client gets any of it.
func (f *forwarding) received(res *http.Response) error {
	switch {
	case res.StatusCode == http.StatusUnauthorized && !f.call.foreign && f.call.info.Subresource != "proxy":
		return errAccount // the person's own would be a 401 of ours
	case res.StatusCode == http.StatusSwitchingProtocols && !f.call.upgrade:
		return errProtocol
	}
	stripAnswer(res.Header, f.target.base != "")
	f.relocate(res.Header)
	stripTrailers(res.Trailer)
	if f.open != nil && res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = &body{ReadCloser: res.Body, stream: f.open}
		if len(res.Trailer) == 0 && !f.call.upgrade && f.call.info.Subresource != "proxy" {
			f.rest, res.Body = res.Body, http.NoBody
			res.Request = nil // the transport keeps res for as long as the body is open
		}
	}
	return nil
}

// relocate makes a redirect inside the API server one below our own path.
func (f *forwarding) relocate(h http.Header) {
	at := h.Get("Location")
	if at == "" || f.target.base == "" {
		return
	}
	base := f.call.cluster.up.url()
	u, err := url.Parse(at)
	if err != nil || u.Host != "" && u.Host != base.Host || !strings.HasPrefix(u.Path, "/") {
		return
	}
	path, ok := strings.CutPrefix(u.EscapedPath(), strings.TrimSuffix(base.EscapedPath(), "/"))
	if !ok {
		return
	}
	path = f.target.base + path
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	h.Set("Location", path)
}

// explain says in an *answer why there was none from the API server.
func (f *forwarding) explain(ctx context.Context, err error) error {
	if f.body != nil {
		if err := f.body.explain(); err != nil {
			return err
		}
	}
	switch {
	case f.open != nil && f.open.reason() != "":
		why, _, _ := strings.Cut(f.open.reason(), ": ") // the cause is for the log
		return unavailable(time.Second, "ended: "+why)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return gatewayTimeout("the API server did not answer in time")
	case ctx.Err() != nil:
		return unavailable(0, "the client went away") // nobody reads it
	}
	f.p.log(f.call).WithError(err).Warn("no answer from the API server")
	if errors.Is(err, errAccount) {
		return badGateway("the cluster refuses Tabard's own account there: tell whoever runs Tabard")
	}
	return badGateway("the cluster's API server cannot be reached from Tabard")
}

// sent is a request's body as the client sends it.
type sent struct {
	io.ReadCloser
	rc     *http.ResponseController
	ctx    context.Context
	till   time.Time // deadline of reads, extended now and then
	failed atomic.Pointer[error]

	mu    sync.Mutex
	ended bool // rc is not ours any more
}

// end comes before the handler returns: who sends the body may be reading still, and
// net/http panics where a deadline is set on a stream of HTTP/2 that has ended.
func (s *sent) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// deadline sets that of reads, while the request lasts.
func (s *sent) deadline(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended && s.ctx.Err() == nil {
		_ = s.rc.SetReadDeadline(at)
	}
}

// Read waits for a client for bodyIdle at most.
func (s *sent) Read(p []byte) (int, error) {
	if now := time.Now(); s.till.Sub(now) < bodyIdle-time.Second {
		s.till = now.Add(bodyIdle)
		s.deadline(s.till)
	}
	n, err := s.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		s.failed.CompareAndSwap(nil, &err)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.deadline(time.Time{}) // from here on a read only waits for the client to go away
	}
	return n, err
}

// explain says in an *answer what was wrong with the body, nil for nothing.
func (s *sent) explain() error {
	err := s.failed.Load()
	if err == nil {
		return nil
	}
	var long *http.MaxBytesError
	switch {
	case errors.As(*err, &long):
		return tooLarge(long.Limit)
	case errors.Is(*err, os.ErrDeadlineExceeded):
		return &answer{code: http.StatusRequestTimeout, reason: metav1.StatusReasonTimeout, message: "the request's body came too slowly"}
	}
	return badRequest("the request's body cannot be read")
}
