package directory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Lockout is when a directory locks accounts after wrong passwords: its own
// policy, the strictest where several were found.
type Lockout struct {
	Threshold int           // wrong passwords that lock an account; 0: it never does
	Window    time.Duration // without one, after which it forgets them
	Duration  time.Duration // that an account stays locked; 0: until somebody unlocks it
}

// never stands for a window without end, and is the longest that is told.
const never = 24 * time.Hour

// How long what was read of the policy is good, and for how long a failure to read
// it is remembered: it is asked for at every sign-in.
const (
	lockoutKept    = 10 * time.Minute
	lockoutRetried = time.Minute
)

var errNoPolicy = errors.New("bindDN can read no lockout policy")

// lockoutMemory is the last answer of Lockout.
type lockoutMemory struct {
	mu      sync.Mutex
	lockout Lockout
	err     error
	until   time.Time
}

// Lockout returns the directory's policy: of the domain and of the fine-grained
// policies that bindDN may read in Active Directory; of the pwdPolicy entries of
// OpenLDAP, whichever people they are for; of cn=config in 389 Directory Server, and
// FreeIPA's global_policy. It is read every ten minutes. An error means that it
// cannot be read, not that there is none.
func (d *Directory) Lockout(ctx context.Context) (Lockout, error) {
	m := &d.policy
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Now().Before(m.until) {
		return m.lockout, m.err
	}
	// Others use the answer as well, so it does not end with who asked first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.callTime)
	defer cancel()
	lockout, err := d.readLockout(ctx)
	known := !m.until.IsZero() && m.err == nil
	switch {
	case err == nil:
		m.lockout, m.err, m.until = lockout, nil, time.Now().Add(lockoutKept)
	case known: // it may be a moment's trouble
		m.until = time.Now().Add(lockoutRetried)
	default:
		m.err, m.until = d.failed("read the lockout policy", err), time.Now().Add(lockoutRetried)
	}
	return m.lockout, m.err
}

func (d *Directory) readLockout(ctx context.Context) (Lockout, error) {
	roots, err := d.search(ctx, entryQuery("", rootAttributes...))
	if err != nil || len(roots) != 1 {
		return Lockout{}, fmt.Errorf("read the root DSE: %w", errors.Join(err, errNoPolicy))
	}
	base := namingContext(roots[0])
	if d.cfg.Type == TypeActiveDirectory {
		return d.lockoutOfDomain(ctx, base)
	}
	if strings.Contains(roots[0].GetEqualFoldAttributeValue("vendorName"), "389") && roots[0].GetEqualFoldAttributeValue("ipaDomainLevel") == "" {
		return d.lockoutOf(ctx, entryQuery("cn=config"), lockout389)
	}
	if base == "" {
		return Lockout{}, errNoPolicy
	}
	return d.lockoutOf(ctx, query{base: base, scope: ldap.ScopeWholeSubtree, filter: "(|(objectClass=pwdPolicy)(objectClass=krbPwdPolicy))", limit: maxPolicies}, lockoutPpolicy, lockoutIPA)
}

const maxPolicies = 100 // read of one directory

// lockoutOfDomain reads the domain object, and the policies that take its place for
// some people (MS-ADTS 3.1.1.5.2.1.1), which only administrators can read unless
// they were given the right.
func (d *Directory) lockoutOfDomain(ctx context.Context, domain string) (Lockout, error) {
	all, err := d.lockoutOf(ctx, entryQuery(domain), lockoutAD)
	if err != nil {
		return Lockout{}, err
	}
	finer, err := d.lockoutOf(ctx, query{
		base: "CN=Password Settings Container,CN=System," + domain, scope: ldap.ScopeWholeSubtree,
		filter: "(objectClass=msDS-PasswordSettings)", limit: maxPolicies,
	}, lockoutPSO)
	if errors.Is(err, ErrUnavailable) {
		return Lockout{}, err
	}
	if err == nil {
		all = stricter(all, finer)
	}
	return all, nil
}

// lockoutOf returns the strictest of what q finds, as one of forms reads it.
func (d *Directory) lockoutOf(ctx context.Context, q query, forms ...lockoutForm) (Lockout, error) {
	for _, f := range forms {
		q.attributes = append(q.attributes, f.threshold, f.window, f.duration)
		if f.on != "" {
			q.attributes = append(q.attributes, f.on)
		}
	}
	found, err := d.search(ctx, q)
	if err != nil {
		return Lockout{}, fmt.Errorf("search below %s: %w", q.base, err)
	}
	var strictest Lockout
	read := false
	for _, e := range found {
		for _, f := range forms {
			if l, ok := f.read(e); ok {
				strictest, read = stricter(strictest, l), true
			}
		}
	}
	if !read {
		return Lockout{}, errNoPolicy
	}
	return strictest, nil
}

// stricter takes from each of two policies what lets fewer passwords be tried.
func stricter(a, b Lockout) Lockout {
	switch {
	case a.Threshold == 0:
		return b
	case b.Threshold == 0:
		return a
	}
	l := Lockout{Threshold: min(a.Threshold, b.Threshold), Window: max(a.Window, b.Window), Duration: max(a.Duration, b.Duration)}
	if a.Duration == 0 || b.Duration == 0 {
		l.Duration = 0
	}
	return l
}

// lockoutForm says how one kind of server writes a policy.
type lockoutForm struct {
	threshold, window, duration string
	on                          string        // FALSE or off: it does not lock
	unit                        time.Duration // of window and duration
}

var (
	// In Active Directory intervals are negative, in 100 ns.
	lockoutAD  = lockoutForm{"lockoutThreshold", "lockOutObservationWindow", "lockoutDuration", "", -100}
	lockoutPSO = lockoutForm{"msDS-LockoutThreshold", "msDS-LockoutObservationWindow", "msDS-LockoutDuration", "", -100}
	// draft-behera-ldap-password-policy; a window of 0 has no end.
	lockoutPpolicy = lockoutForm{"pwdMaxFailure", "pwdFailureCountInterval", "pwdLockoutDuration", "pwdLockout", time.Second}
	lockout389     = lockoutForm{"passwordMaxFailure", "passwordResetFailureCount", "passwordLockoutDuration", "passwordLockout", time.Second}
	lockoutIPA     = lockoutForm{"krbPwdMaxFailure", "krbPwdFailureCountInterval", "krbPwdLockoutDuration", "", time.Second}
)

// read returns the policy in e, and whether there is one of this form. One that
// does not say that it is off counts.
func (f lockoutForm) read(e *ldap.Entry) (Lockout, bool) {
	if f.on != "" {
		if on := e.GetEqualFoldAttributeValue(f.on); strings.EqualFold(on, "FALSE") || strings.EqualFold(on, "off") {
			return Lockout{}, true
		}
	}
	threshold, err := strconv.Atoi(e.GetEqualFoldAttributeValue(f.threshold))
	if err != nil || threshold <= 0 {
		return Lockout{}, err == nil
	}
	l := Lockout{Threshold: threshold, Window: f.interval(e, f.window), Duration: f.interval(e, f.duration)}
	if l.Window == 0 {
		l.Window = never
	}
	return l, true
}

// interval reads an attribute as at most a day; what is absent is 0.
func (f lockoutForm) interval(e *ldap.Entry, attribute string) time.Duration {
	n, err := strconv.ParseFloat(e.GetEqualFoldAttributeValue(attribute), 64)
	if err != nil {
		return 0
	}
	return time.Duration(min(max(n*float64(f.unit), 0), float64(never)))
}
