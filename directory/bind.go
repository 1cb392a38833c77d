package directory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	trustIdle    = time.Second      // a connection that waited longer is probed
	firstRefusal = 30 * time.Second // for which bindDN is not tried again
	maxRefusal   = 5 * time.Minute
)

// Bind tries a person's password, on a connection that nothing is searched on.
// The answer of the first host that takes the request is final. It fails with
// ErrInvalidCredentials, with an *AccountError when the password was right but the
// account may not be used, or with ErrUnavailable; with ErrLost as well when the
// host fell silent and another one can be asked.
func (d *Directory) Bind(ctx context.Context, dn, password string) error {
	if dn == "" || password == "" {
		return ErrInvalidCredentials // an empty password is an anonymous bind, which succeeds
	}
	ctx, cancel := d.budget(ctx)
	defer cancel()
	err := d.bind(ctx, dn, password)
	if errors.Is(err, ErrLost) && !d.several() {
		err = fmt.Errorf("%w: %v", ErrUnavailable, err) // there is nobody else to ask
	}
	if err != nil {
		return d.failed("bind a person", err)
	}
	return nil
}

func (d *Directory) bind(ctx context.Context, dn, password string) error {
	if err := d.binds.acquire(ctx); err != nil {
		return err
	}
	defer d.binds.release()
	req := ldap.NewSimpleBindRequest(dn, password, []ldap.Control{ldap.NewControlBeheraPasswordPolicy()})
	var outcome error
	err := d.onHosts(ctx, func(ctx context.Context, h *host, limit time.Duration) (err error) {
		outcome, err = d.bindAt(ctx, h, limit, req)
		return err
	})
	return cmp.Or(err, outcome)
}

// bindAt sends req to h and returns what it means, or an error when no answer
// came. A pooled connection that broke before the request left is replaced.
func (d *Directory) bindAt(ctx context.Context, h *host, limit time.Duration, req *ldap.SimpleBindRequest) (outcome, err error) {
	c := d.binds.take(h)
	if c != nil && time.Since(c.used) > trustIdle {
		if err := c.probe(ctx, limit); isStalled(err) {
			return nil, err
		} else if err != nil {
			c = nil
		}
	}
	for {
		if c == nil {
			if c, err = d.connect(ctx, h, limit, nil); err != nil {
				return nil, err
			}
		}
		c.limit = d.bindTime(ctx)
		before := c.raw.sent.Load()
		var res *ldap.SimpleBindResult
		err = c.within(ctx, func() (err error) { res, err = c.SimpleBind(req); return err })
		if err == nil || resultCode(err) != 0 {
			d.binds.put(c)
			return bindOutcome(res, err), nil
		}
		c.Close()
		if c.raw.sent.Load() != before {
			return nil, fmt.Errorf("%w: %w", ErrLost, err)
		}
		if !c.reused || ctx.Err() != nil {
			return nil, err
		}
		c = nil
	}
}

// bindTime is how long an answer to a bind may take: all the time there is, but
// half of it where another host can be asked after this one.
func (d *Directory) bindTime(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	if !d.several() {
		return time.Until(deadline)
	}
	return time.Until(deadline) / 2
}

// several says whether more than one host is known.
func (d *Directory) several() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.known) > 1
}

// probe asks whether the server still has the connection, which it may have
// closed without a word arriving. Any answer will do. Otherwise c is closed.
func (c *conn) probe(ctx context.Context, limit time.Duration) error {
	c.limit = limit
	err := c.within(ctx, func() error { _, err := c.WhoAmI(nil); return err })
	if err == nil || resultCode(err) != 0 {
		return nil
	}
	c.Close()
	return err
}

// bindService binds c as the service account. A refusal is remembered for a
// while that grows, so that our asking does not lock that account.
func (d *Directory) bindService(ctx context.Context, c *conn) error {
	d.mu.Lock()
	refusal, again := d.refusal, d.refusedUntil
	d.mu.Unlock()
	if time.Now().Before(again) {
		return refusal
	}
	err := c.within(ctx, func() error { return c.Conn.Bind(d.cfg.BindDN, d.bindPassword) })
	no := refused(resultCode(err))
	if no {
		err = fmt.Errorf("%w: check directories[%s].bindDN (%s) and its password: %w", errServiceBind, d.cfg.Name, d.cfg.BindDN, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case no:
		d.refusalTime = min(max(2*d.refusalTime, firstRefusal), maxRefusal)
		d.refusal, d.refusedUntil = err, time.Now().Add(d.refusalTime)
	case err == nil:
		d.refusalTime = 0
	}
	return err
}

// DummyDN is below the base of the users and no entry's. Binding it costs the
// directory and the person as much as a wrong password does, so that nobody
// learns from the time whether a login exists.
func (d *Directory) DummyDN() string {
	base := d.cfg.Users.BaseDN
	if s := d.learned.Load(); s != nil {
		base = s.users.BaseDN
	}
	if base == "" {
		base = "dc=invalid" // nothing was asked of the server yet
	}
	return "cn=" + d.nobody + "," + base
}

// bindOutcome turns the answer to a bind into one of Bind's errors.
func bindOutcome(res *ldap.SimpleBindResult, err error) error {
	if state, ok := stateFromPolicy(res); ok {
		return &AccountError{State: state}
	}
	if err == nil {
		return nil
	}
	if !refused(resultCode(err)) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if state, ok := stateFromAD(err); ok {
		return &AccountError{State: state}
	}
	// The server's words may say whether the account exists; they stay here.
	return ErrInvalidCredentials
}

// stateFromPolicy reads the password policy control (draft-behera-ldap-password-policy),
// which OpenLDAP sends for an expired or a reset password only after the right
// one. A locked account it reports whatever the password was, so that stays
// invalid credentials.
func stateFromPolicy(res *ldap.SimpleBindResult) (State, bool) {
	if res == nil {
		return "", false
	}
	policy, ok := ldap.FindControl(res.Controls, ldap.ControlTypeBeheraPasswordPolicy).(*ldap.ControlBeheraPasswordPolicy)
	if !ok {
		return "", false
	}
	switch policy.Error {
	case ldap.BeheraPasswordExpired:
		return PasswordExpired, true
	case ldap.BeheraChangeAfterReset:
		return MustChange, true
	}
	return "", false
}

var adCode = regexp.MustCompile(`, data ([0-9a-fA-F]+)`)

// stateFromAD reads the Windows error in the text of a refused bind. Active
// Directory sends these only after the right password. 775, a locked account,
// it sends whatever the password was: telling it would tell that the account
// exists, so that stays invalid credentials.
func stateFromAD(err error) (State, bool) {
	var e *ldap.Error
	if !errors.As(err, &e) || e.ResultCode != ldap.LDAPResultInvalidCredentials || e.Err == nil {
		return "", false
	}
	m := adCode.FindStringSubmatch(e.Err.Error())
	if m == nil {
		return "", false
	}
	switch m[1] {
	case "530", "531", "533": // not at this hour, not from here, disabled
		return Disabled, true
	case "532":
		return PasswordExpired, true
	case "701":
		return Expired, true
	case "773":
		return MustChange, true
	}
	return "", false
}
