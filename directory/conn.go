package directory

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	defaultBudget = 5 * time.Second // for one call without a deadline
	idleTimeout   = time.Minute     // of a connection that waits in the pool
	maxSearches   = 8               // at once, and so the size of the pool
	maxBinds      = 32              // of people at once
	pageSize      = 500
)

// errServiceBind: the server refused bindDN's password. No other host is
// tried, so that a wrong password does not lock that account.
var errServiceBind = errors.New("bindDN and its password were refused")

// conn is one connection to one host.
type conn struct {
	*ldap.Conn
	raw    net.Conn
	host   int // index in Config.URLs
	reused bool
}

// within runs op, which talks on c, and closes c when ctx ends before op does.
// ctx must have a deadline.
func (c *conn) within(ctx context.Context, op func() error) error {
	deadline, _ := ctx.Deadline()
	c.raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.raw.SetDeadline(time.Unix(1, 0)) })
	err := op()
	if stop() {
		return err
	}
	c.Close()
	if err == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// dial connects to one host and secures the connection.
func (d *Directory) dial(ctx context.Context, host int) (*conn, error) {
	u, err := url.Parse(d.cfg.URLs[host])
	if err != nil {
		return nil, err
	}
	port := map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme]
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)))
	if err != nil {
		return nil, err
	}
	config := d.tls.Clone()
	config.ServerName = u.Hostname()
	stream := raw
	if u.Scheme == "ldaps" {
		secured := tls.Client(raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		stream = secured
	}
	c := &conn{Conn: ldap.NewConn(stream, stream != raw), raw: raw, host: host}
	c.Start()
	if d.cfg.StartTLS {
		if err := c.within(ctx, func() error { return c.StartTLS(config) }); err != nil {
			c.Close()
			return nil, fmt.Errorf("StartTLS: %w", err)
		}
	}
	return c, nil
}

// connect returns a connection to the first host that answers and passes
// prepare, beginning at first. Each host gets a share of the time left, so that
// one that never answers does not use it all.
func (d *Directory) connect(ctx context.Context, first int, prepare func(context.Context, *conn) error) (*conn, error) {
	var failed error
	deadline, _ := ctx.Deadline()
	hosts := len(d.cfg.URLs)
	for i := range hosts {
		host := (first + i) % hosts
		share, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(hosts-i))
		c, err := d.dial(share, host)
		if err == nil && prepare != nil {
			if err = prepare(share, c); err != nil {
				c.Close()
			}
		}
		cancel()
		if err == nil {
			return c, nil
		}
		err = fmt.Errorf("%s: %w", d.cfg.URLs[host], err)
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
		if errors.Is(err, errServiceBind) {
			break
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, failed)
}

// prepareSearch binds c as the service account, and learns what kind of server
// this is when that is not known yet.
func (d *Directory) prepareSearch(ctx context.Context, c *conn) error {
	err := c.within(ctx, func() error { return c.Conn.Bind(d.cfg.BindDN, d.bindPassword) })
	if refused(resultCode(err)) {
		return fmt.Errorf("%w: check directories[%s].bindDN (%s) and its password: %w", errServiceBind, d.cfg.Name, d.cfg.BindDN, err)
	}
	if err != nil || d.learned.Load() != nil {
		return err
	}
	root, err := c.search(ctx, query{scope: ldap.ScopeBaseObject, filter: "(objectClass=*)", attributes: rootAttributes, limit: 1})
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

// do runs op on a connection bound as the service account. When the connection
// breaks op runs once more, on a new connection.
func (d *Directory) do(ctx context.Context, op func(*conn) error) error {
	if err := acquire(ctx, d.searches); err != nil {
		return err
	}
	defer func() { <-d.searches }()
	c := d.takeIdle()
	for attempt, first := 1, 0; ; attempt++ {
		if c == nil {
			var err error
			if c, err = d.connect(ctx, first, d.prepareSearch); err != nil {
				return err
			}
		}
		err := op(c)
		if err == nil || resultCode(err) != 0 {
			d.giveBack(c)
			if temporary(resultCode(err)) {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			return err
		}
		c.Close()
		if attempt == 2 || ctx.Err() != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnavailable, d.cfg.URLs[c.host], err)
		}
		if !c.reused {
			first = c.host + 1
		}
		c = nil
	}
}

func acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: too many requests wait for it: %w", ErrUnavailable, ctx.Err())
	}
}

// takeIdle returns a pooled connection that still stands, or nil.
func (d *Directory) takeIdle() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 {
		c := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if !c.IsClosing() {
			c.reused = true
			return c
		}
	}
	return nil
}

// giveBack puts c into the pool. Its read deadline closes it when nobody takes
// it within idleTimeout.
func (d *Directory) giveBack(c *conn) {
	c.raw.SetDeadline(time.Now().Add(idleTimeout))
	d.mu.Lock()
	keep := !d.closed && !c.IsClosing()
	if keep {
		d.idle = append(d.idle, c)
	}
	d.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// query is one search. Referrals in its answer are never followed.
type query struct {
	base       string
	scope      int
	filter     string
	attributes []string
	limit      int // of entries; more are an error
}

// search runs q on a pooled connection.
func (d *Directory) search(ctx context.Context, q query) ([]*ldap.Entry, error) {
	var entries []*ldap.Entry
	err := d.do(ctx, func(c *conn) error {
		var err error
		entries, err = c.search(ctx, q)
		return err
	})
	return entries, err
}

// search returns all entries that match q, or an error: never a part of them.
func (c *conn) search(ctx context.Context, q query) ([]*ldap.Entry, error) {
	req := ldap.NewSearchRequest(q.base, q.scope, ldap.NeverDerefAliases, 0, 0, false, q.filter, q.attributes, nil)
	paging := ldap.NewControlPaging(pageSize)
	if q.limit > pageSize {
		req.Controls = []ldap.Control{paging}
	} else {
		req.SizeLimit, req.EnforceSizeLimit = q.limit, true
	}
	var entries []*ldap.Entry
	for {
		var page *ldap.SearchResult
		err := c.within(ctx, func() (err error) { page, err = c.Search(req); return err })
		if errors.Is(err, ldap.ErrSizeLimitExceeded) {
			err = ldap.NewError(ldap.LDAPResultSizeLimitExceeded, err)
		}
		if err != nil {
			return nil, err
		}
		if entries = append(entries, page.Entries...); len(entries) > q.limit {
			return nil, ldap.NewError(ldap.LDAPResultSizeLimitExceeded, fmt.Errorf("more than %d entries", q.limit))
		}
		next, _ := ldap.FindControl(page.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if next == nil || len(next.Cookie) == 0 {
			return entries, nil
		}
		paging.SetCookie(next.Cookie)
	}
}

// resultCode is the server's answer in err, and 0 when err is nil or no answer.
func resultCode(err error) uint16 {
	var e *ldap.Error
	if errors.As(err, &e) && e.ResultCode < ldap.ErrorNetwork {
		return e.ResultCode
	}
	return 0
}

// refused says whether a result code of a bind is the server's no to the name
// or the password.
func refused(code uint16) bool {
	switch code {
	case ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultInsufficientAccessRights,
		ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultConstraintViolation:
		return true
	}
	return false
}

// temporary says whether a result code means that the server cannot answer now.
func temporary(code uint16) bool {
	switch code {
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultTimeLimitExceeded:
		return true
	}
	return false
}
