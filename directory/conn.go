package directory

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	defaultBudget = 5 * time.Second // for one call without a deadline
	idleTimeout   = time.Minute     // of a connection that waits for a search
	bindIdle      = 30 * time.Second
	maxSearches   = 8  // at once, and so the size of the pool
	maxBinds      = 32 // of people at once
	maxIdleBinds  = 8
	maxAnswer     = 64 << 20 // bytes on the wire for one request

	// patience is how long a host may take for one request while another host
	// that works is left. It keeps a login within a second.
	patience = 750 * time.Millisecond
)

var (
	// errServiceBind: the server refused bindDN's password. No other host is
	// tried, so that a wrong password does not lock that account.
	errServiceBind = errors.New("bindDN and its password were refused")
	errStalled     = errors.New("no answer in time")
	// errConnect wraps what happens before the request itself.
	errConnect   = errors.New("connect")
	errLeftAlone = errors.New("did not answer lately and is left alone for a while")
	errTooLong   = errors.New("the answer is too long")
	// errSlow is of a search that says nothing about the host; see browse.
	errSlow = errors.New("the search took too long: an index may be missing")
)

// wire is a TCP connection that counts.
type wire struct {
	net.Conn
	sent atomic.Int64 // bytes
	read atomic.Int64 // bytes, for this request
}

func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.sent.Add(int64(n))
	return n, err
}

func (w *wire) Read(b []byte) (int, error) {
	if w.read.Load() > maxAnswer {
		return 0, errTooLong
	}
	n, err := w.Conn.Read(b)
	w.read.Add(int64(n))
	return n, err
}

// conn is one connection to one host. One call at a time uses it.
type conn struct {
	*ldap.Conn
	raw    *wire
	host   *host
	limit  time.Duration // for one request; none when zero
	used   time.Time     // last
	reused bool
}

// within runs op, one request on c, and closes c when ctx or the connection's
// limit ends before op does. ctx must have a deadline.
func (c *conn) within(ctx context.Context, op func() error) error {
	deadline, _ := ctx.Deadline()
	if limit := time.Now().Add(c.limit); c.limit > 0 && limit.Before(deadline) {
		deadline = limit
	}
	c.raw.read.Store(0)
	c.raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.raw.SetDeadline(time.Unix(1, 0)) })
	err := op()
	if stop() {
		if err != nil && resultCode(err) == 0 && !time.Now().Before(deadline) {
			return fmt.Errorf("%w: %w", errStalled, err)
		}
		return err
	}
	c.Close()
	if err == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// isStalled says whether err is that of a host that used up its time.
func isStalled(err error) bool {
	var timeout net.Error
	return errors.Is(err, errStalled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// dial connects to one host and secures the connection.
func (d *Directory) dial(ctx context.Context, h *host) (*conn, error) {
	tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.address)
	if err != nil {
		return nil, err
	}
	raw := &wire{Conn: tcp}
	config := d.tls.Clone()
	config.ServerName = h.name
	stream := net.Conn(raw)
	if h.secure {
		secured := tls.Client(raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		stream = secured
	}
	c := &conn{Conn: ldap.NewConn(stream, h.secure), raw: raw, host: h}
	c.Start()
	if d.cfg.StartTLS {
		if err := c.within(ctx, func() error { return c.StartTLS(config) }); err != nil {
			c.Close()
			return nil, fmt.Errorf("StartTLS: %w", err)
		}
	}
	return c, nil
}

// onHosts runs try at one host after another until one answers, within one
// budget. Limit is what try may take of it to connect, and then for a request;
// a host that is the last hope has all the time there is.
func (d *Directory) onHosts(ctx context.Context, try func(ctx context.Context, h *host, limit time.Duration) error) error {
	d.used.Store(true)
	hosts, err := d.hosts(ctx)
	if err != nil {
		return err
	}
	var all error
	for i, h := range hosts {
		err, next := errLeftAlone, true
		if began := time.Now(); h.admit(began) {
			if err = try(ctx, h, d.share(ctx, hosts[i+1:])); answered(err) {
				h.answered(time.Now())
				return err
			}
			if errors.Is(err, errSlow) {
				return fmt.Errorf("%w: %s: %w", ErrUnavailable, h.url, err)
			}
			next = d.blame(ctx, h, began, err)
		}
		if err = fmt.Errorf("%s: %w", h.url, err); all != nil {
			err = fmt.Errorf("%w; %w", all, err)
		}
		if all = err; !next {
			break
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, all)
}

// share is the part of ctx's time for one host, with rest to come after it.
func (d *Directory) share(ctx context.Context, rest []*host) time.Duration {
	deadline, _ := ctx.Deadline()
	part := time.Until(deadline) / time.Duration(1+len(rest))
	for _, h := range rest {
		if h.healthy() {
			return min(part, d.patience)
		}
	}
	return part
}

// answered says whether err is what the server said to the request itself.
func answered(err error) bool {
	code := resultCode(err)
	return err == nil || code != 0 && !temporary(code) && !errors.Is(err, errConnect)
}

// connect dials h and runs prepare, if there is one, within limit.
func (d *Directory) connect(ctx context.Context, h *host, limit time.Duration, prepare func(context.Context, *conn) error) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := d.dial(ctx, h)
	if err == nil && prepare != nil {
		if err = prepare(ctx, c); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConnect, err)
	}
	return c, nil
}

// prepareSearch binds c as the service account, and learns what kind of server
// this is when that is not known yet.
func (d *Directory) prepareSearch(ctx context.Context, c *conn) error {
	if err := d.bindService(ctx, c); err != nil || d.learned.Load() != nil {
		return err
	}
	root, err := c.search(ctx, entryQuery("", rootAttributes...))
	if err != nil || len(root) != 1 {
		return fmt.Errorf("read the root DSE: %w", cmp.Or(err, errors.New("it is not there")))
	}
	s, err := newSchema(&d.cfg, root[0])
	if err != nil {
		return err
	}
	d.learned.CompareAndSwap(nil, s)
	return nil
}

// do runs op on a connection bound as the service account, on one host after
// another until one answers.
func (d *Directory) do(ctx context.Context, op func(*conn) error) error {
	if err := d.searches.acquire(ctx); err != nil {
		return err
	}
	defer d.searches.release()
	return d.onHosts(ctx, func(ctx context.Context, h *host, limit time.Duration) error {
		return d.searchAt(ctx, d.searches, h, limit, op)
	})
}

// searchAt runs op at h, on a connection of p. When a pooled connection turns out to be broken it
// runs once more, on a new one.
func (d *Directory) searchAt(ctx context.Context, p *pool, h *host, limit time.Duration, op func(*conn) error) error {
	c := p.take(h)
	for {
		if c == nil {
			var err error
			if c, err = d.connect(ctx, h, limit, d.prepareSearch); err != nil {
				return err
			}
		}
		c.limit = limit
		err := op(c)
		if err == nil || resultCode(err) != 0 {
			p.put(c)
			return err
		}
		c.Close()
		if !c.reused || isStalled(err) || ctx.Err() != nil {
			return err
		}
		c = nil
	}
}
