package directory

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	maxBrowsers = 2                      // calls of Search at once, and as many of Members
	turnTime    = 500 * time.Millisecond // that a further one waits for its turn
)

// turn waits until p has room for one more who looks around. The caller releases p.
func turn(ctx context.Context, p *pool) error {
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	if err := p.acquire(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return nil
}

// browse runs q for somebody who looks around, on a connection of p: sign-ins have
// theirs. Such a search may be slow by itself, so when it takes all its time the
// host is not blamed: else someone who types could drive all sign-ins to another.
func (d *Directory) browse(ctx context.Context, p *pool, q query) ([]*ldap.Entry, error) {
	deadline, _ := ctx.Deadline()
	q.time = max(1, int(math.Ceil(time.Until(deadline).Seconds())))
	var entries []*ldap.Entry
	err := d.onHosts(ctx, func(ctx context.Context, h *host, limit time.Duration) error {
		return d.searchAt(ctx, p, h, limit, func(c *conn) (err error) {
			c.limit = 0
			entries, err = c.search(ctx, q)
			if isStalled(err) || resultCode(err) == ldap.LDAPResultTimeLimitExceeded {
				err = fmt.Errorf("%w: %w", errSlow, err)
			}
			return err
		})
	})
	if resultCode(err) == ldap.LDAPResultAdminLimitExceeded && len(entries) == 0 {
		err = fmt.Errorf("the server looks through no more entries: an index may be missing: %w", err)
	}
	return entries, err
}

// reader makes people of many entries.
type reader struct {
	*Directory
	s     *schema
	now   time.Time
	locks map[string]time.Duration // lockLasts of each policy met
}

func (d *Directory) newReader(s *schema) *reader {
	return &reader{Directory: d, s: s, now: time.Now(), locks: map[string]time.Duration{}}
}

// person reads e as Find does, but for asking whether another has the username.
func (r *reader) person(ctx context.Context, e *ldap.Entry) (Person, error) {
	p, _, err := r.personFromEntry(r.s, e, r.now)
	if err != nil || p.State != Locked || p.lockedSince.IsZero() {
		return p, err
	}
	lasts, known := r.locks[p.policyDN]
	if !known {
		lasts = r.lockLasts(ctx, p.policyDN)
		r.locks[p.policyDN] = lasts
	}
	if p.outlasts(lasts, r.now) {
		p.State = p.unlocked
	}
	return p, nil
}

// byName orders people as a list shows them.
func byName(a, b Person) int {
	if n := strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)); n != 0 {
		return n
	}
	return strings.Compare(a.Username+"\x00"+a.ID, b.Username+"\x00"+b.ID)
}

// enough says whether a part of the answer is there, at least.
func enough(err error, found int) bool { return err == nil || cutOff(err) && found > 0 }
