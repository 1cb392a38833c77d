package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 90 * time.Second
	pingAfter        = 15 * time.Second // of silence on an HTTP/2 connection
	pingTimeout      = 10 * time.Second
	maxIdle          = 256       // connections, which matters with HTTP/1.1 alone
	streamWindow     = 1 << 20   // bytes of an answer that wait here for a slow client
	frameSize        = 64 << 10  // bytes of an HTTP/2 frame that we read: a tenth less CPU for large answers than with 16 KiB
	maxAnswerHeaders = 256 << 10 // bytes
)

// upstream is one cluster's API server, and the account by which the proxy acts there.
type upstream struct {
	name string
	cfg  APIServerConfig
	base *url.URL
	log  logrus.FieldLogger

	link    atomic.Pointer[link] // nil until there is a credential
	tried   chan struct{}        // closed when the credential was looked for once
	refused chan struct{}        // holds one: the API server has refused the account
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	trouble error // see health
	since   time.Time
	credErr error // of the last try to read the credential
}

// link is the way to the API server by one credential.
type link struct {
	cred          *credential
	authorization []string // the header, or nil
	own           pair
	plain         pair // without our client certificate
}

// pair are the connections of one TLS configuration.
type pair struct{ both, http1 *http.Transport }

// newUpstream returns the API server that cfg names, and keeps its health and the
// account's credential current until close. It waits for neither.
func newUpstream(name string, cfg APIServerConfig, log logrus.FieldLogger) (*upstream, error) {
	u, err := prepareUpstream(name, cfg, log)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	u.stop = stop
	go u.run(ctx)
	return u, nil
}

// prepareUpstream is newUpstream without what runs.
func prepareUpstream(name string, cfg APIServerConfig, log logrus.FieldLogger) (*upstream, error) {
	cfg, err := cfg.inCluster(serviceAccountDir)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: apiServer: %w", name, err)
	}
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("cluster %s: apiServer.url is not of the form https://host:port", name)
	}
	return &upstream{
		name: name, cfg: cfg, base: base, log: log.WithField("cluster", name), trouble: errors.New("not tried yet"), since: time.Now(),
		tried: make(chan struct{}), refused: make(chan struct{}, 1), done: make(chan struct{}),
	}, nil
}

// url is where the API server is: https, perhaps with a path in front of its own. Not to
// be changed.
func (u *upstream) url() *url.URL { return u.base }

// transport sends requests that impersonate somebody, over HTTP/2 where the API server
// has it. It puts the account's credential on the request itself, which must be the
// caller's own to change, and refuses one without an Impersonate-User.
func (u *upstream) transport() http.RoundTripper { return &wire{u: u} }

// upgrades is transport for requests with Upgrade: over HTTP/1.1, each on a connection
// of its own.
func (u *upstream) upgrades() http.RoundTripper { return &wire{u: u, http1: true} }

// foreign sends requests that bring their own Authorization, without any credential of
// ours, a client certificate above all: the API server would believe that one first.
func (u *upstream) foreign() http.RoundTripper { return &wire{u: u, foreign: true} }

// foreignUpgrades is foreign for requests with Upgrade.
func (u *upstream) foreignUpgrades() http.RoundTripper {
	return &wire{u: u, foreign: true, http1: true}
}

// close ends what newUpstream started and drops idle connections. Requests under way go
// on.
func (u *upstream) close() {
	u.stop()
	<-u.done
	if l := u.link.Load(); l != nil {
		l.closeIdle()
	}
}

// current returns the link, and waits for the first.
func (u *upstream) current(ctx context.Context) (*link, error) {
	if l := u.link.Load(); l != nil {
		return l, nil
	}
	select {
	case <-u.tried:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l := u.link.Load(); l != nil {
		return l, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return nil, fmt.Errorf("cluster %s: apiServer: %w", u.name, u.credErr)
}

// refresh looks for the credential anew and puts it to use. Requests under way keep the
// connections that they have. Where it cannot be read, the one so far goes on.
func (u *upstream) refresh(ctx context.Context, refused bool) {
	old := u.link.Load()
	var held *credential
	if old != nil {
		held = old.cred
	}
	cred, err := u.cfg.credential(ctx, held, refused)
	u.mu.Lock()
	before := u.credErr
	u.credErr = err
	u.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil && (before == nil || before.Error() != err.Error()) {
			u.log.WithError(err).Error("the proxy's credential for the API server cannot be read")
		}
		return
	}
	if cred == held {
		return
	}
	u.link.Store(newLink(cred, old))
	if old != nil && old.cred.tls != cred.tls {
		u.log.Info("the API server's CA or the proxy's client certificate has changed: new connections")
		old.closeIdle()
	}
}

func newLink(cred *credential, old *link) *link {
	l := &link{cred: cred}
	if cred.authorization != "" {
		l.authorization = []string{cred.authorization}
	}
	if old != nil && old.cred.tls == cred.tls {
		l.own, l.plain = old.own, old.plain
		return l
	}
	l.own = newPair(cred.tlsConfig(true))
	if l.plain = l.own; cred.cert != nil {
		l.plain = newPair(cred.tlsConfig(false))
	}
	return l
}

func (l *link) closeIdle() {
	for _, t := range []*http.Transport{l.own.both, l.own.http1, l.plain.both, l.plain.http1} {
		t.CloseIdleConnections()
	}
}

func newPair(t *tls.Config) pair { return pair{newTransport(t.Clone(), true), newTransport(t, false)} }

// newTransport follows no redirects, and asks for no compression that the client has not
// asked for. How long an answer may take is for the request's context to say.
func newTransport(t *tls.Config, http2 bool) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(http2)
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: pingAfter}).DialContext,
		TLSClientConfig: t, TLSHandshakeTimeout: handshakeTimeout, Protocols: protocols,
		DisableCompression: true, IdleConnTimeout: idleTimeout, MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle,
		MaxResponseHeaderBytes: maxAnswerHeaders, ExpectContinueTimeout: time.Second,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: 2 * pingAfter, MaxReceiveBufferPerStream: streamWindow, MaxReadFrameSize: frameSize},
	}
}

var (
	errNotImpersonating = errors.New("a request that impersonates nobody is not sent by the proxy's account")
	errNoToken          = errors.New("a request without a token is not sent on")
)

// wire sends requests by the link of the moment.
type wire struct {
	u              *upstream
	http1, foreign bool
	plain          bool // as the account itself, for questions of our own
}

// RoundTrip implements http.RoundTripper, but changes the request's Authorization.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	l, err := w.u.current(r.Context())
	if err == nil {
		err = w.check(r.Header)
	}
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	p := &l.own
	switch {
	case w.foreign:
		p = &l.plain
	case l.authorization == nil:
		delete(r.Header, "Authorization")
	default:
		r.Header["Authorization"] = l.authorization
	}
	t := p.both
	if w.http1 {
		t = p.http1
	}
	resp, err := t.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && !w.foreign && !strings.Contains(r.URL.Path, "/proxy") {
		select { // what is behind a proxy subresource has a 401 of its own
		case w.u.refused <- struct{}{}:
		default:
		}
	}
	return resp, err
}

// check sees that a request says for whom it is.
func (w *wire) check(h http.Header) error {
	switch {
	case w.foreign:
		if len(h["Authorization"]) != 1 {
			return errNoToken
		}
	case !w.plain:
		if who := h[headerUser]; len(who) != 1 || who[0] == "" {
			return errNotImpersonating
		}
	}
	return nil
}

// statusError is an answer of the API server that is no success.
type statusError struct {
	code    int
	message string // of its Status, bounded
}

func (e *statusError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("the API server answers %d", e.code)
	}
	return fmt.Sprintf("the API server answers %d: %s", e.code, e.message)
}

// maxAnswer bounds what is read of an answer to a question of our own, in bytes.
const maxAnswer = 1 << 20

// ask sends one request of our own through rt, with in as JSON unless it is nil, and
// reads the answer into out unless that is nil. A *statusError where it is no success.
func (u *upstream) ask(ctx context.Context, rt http.RoundTripper, path string, h http.Header, in, out any) error {
	method, body := http.MethodGet, []byte(nil)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the question: %w", err)
		}
		method, body = http.MethodPost, b
		h.Set("Content-Type", "application/json")
	}
	r, err := http.NewRequestWithContext(ctx, method, u.base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	h.Set("Accept", "application/json")
	r.Header = h
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the API server's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		var s metav1.Status
		_ = json.Unmarshal(b, &s) // of another kind it stays empty
		return &statusError{resp.StatusCode, fmt.Sprintf("%.300s", s.Message)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the API server's answer: %w", err)
	}
	return nil
}
