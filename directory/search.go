package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

const pageSize = 500

// query is one search. Referrals in its answer are never followed.
type query struct {
	base       string
	scope      int
	filter     string
	attributes []string
	limit      int // of entries; more are an error
	// part: with the error that there are more come those that were read. See cutOff.
	part bool
	time int // seconds after which the server gives up; none when zero
}

// entryQuery reads attributes of one entry; "" is the root DSE.
func entryQuery(dn string, attributes ...string) query {
	return query{base: dn, scope: ldap.ScopeBaseObject, filter: "(objectClass=*)", attributes: attributes, limit: 1}
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

// search returns all entries that match q, or an error: never a part of them
// unless q.part wants it.
func (c *conn) search(ctx context.Context, q query) ([]*ldap.Entry, error) {
	req := ldap.NewSearchRequest(q.base, q.scope, ldap.NeverDerefAliases, 0, q.time, false, q.filter, q.attributes, nil)
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
		if err != nil && !(q.part && cutOff(err)) {
			return nil, err
		}
		if entries = append(entries, page.Entries...); err != nil || len(entries) > q.limit {
			return c.partOf(ctx, q, entries, err)
		}
		next, _ := ldap.FindControl(page.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if next == nil || len(next.Cookie) == 0 {
			if err := c.complete(ctx, entries); err != nil {
				return nil, err
			}
			return entries, nil
		}
		paging.SetCookie(next.Cookie)
	}
}

// partOf is the end of a search with more entries than are wanted, or than the
// server sends: an error, which with q.part those that were read come with.
func (c *conn) partOf(ctx context.Context, q query, entries []*ldap.Entry, more error) ([]*ldap.Entry, error) {
	if more == nil {
		more = ldap.NewError(ldap.LDAPResultSizeLimitExceeded, fmt.Errorf("more than %d entries", q.limit))
	}
	if !q.part {
		return nil, more
	}
	entries = entries[:min(len(entries), q.limit)]
	if err := c.complete(ctx, entries); err != nil {
		return nil, err
	}
	return entries, more
}

// cutOff says whether err means that there are more entries than were wanted, or
// than the server is willing to send or to look through.
func cutOff(err error) bool {
	code := resultCode(err)
	return code == ldap.LDAPResultSizeLimitExceeded || code == ldap.LDAPResultAdminLimitExceeded
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

// maxValues of one attribute are read; more are an error.
const maxValues = 100_000

// complete fetches the rest of the attributes that Active Directory sent in
// part, as in "member;range=0-1499" [MS-ADTS 3.1.1.3.1.3.3].
func (c *conn) complete(ctx context.Context, entries []*ldap.Entry) error {
	for _, e := range entries {
		for _, a := range e.Attributes {
			if !strings.Contains(strings.ToLower(a.Name), ";range=") {
				continue
			}
			name, next, ok := parseRange(a.Name, 0)
			if !ok {
				return partial(e, a.Name, errRange)
			}
			for next > 0 {
				if len(a.Values) > maxValues {
					return partial(e, name, fmt.Errorf("%w: there are more than %d", errRange, maxValues))
				}
				rest, err := c.valuesFrom(ctx, e.DN, name, next)
				if err != nil {
					return partial(e, name, err)
				}
				_, after, _ := parseRange(rest.Name, next)
				a.Values, a.ByteValues, next = append(a.Values, rest.Values...), append(a.ByteValues, rest.ByteValues...), after
			}
			a.Name = name
		}
		e.Attributes = slices.DeleteFunc(e.Attributes, func(a *ldap.EntryAttribute) bool { return len(a.Values) == 0 })
	}
	return nil
}

// partial says that an attribute was read in part, which is an answer, unless
// err is that of the connection.
func partial(e *ldap.Entry, attribute string, err error) error {
	if resultCode(err) == 0 && !errors.Is(err, errRange) {
		return err
	}
	return ldap.NewError(ldap.LDAPResultOther, fmt.Errorf("read all values of %s of %s: %w", attribute, e.DN, err))
}

var errRange = errors.New("the server sends no range that fits")

// valuesFrom reads the values of an attribute from number first on, as many as
// the server sends.
func (c *conn) valuesFrom(ctx context.Context, dn, attribute string, first int) (*ldap.EntryAttribute, error) {
	req := ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
		[]string{attribute + ";range=" + strconv.Itoa(first) + "-*"}, nil)
	var res *ldap.SearchResult
	if err := c.within(ctx, func() (err error) { res, err = c.Search(req); return err }); err != nil {
		return nil, err
	}
	for _, e := range res.Entries {
		for _, a := range e.Attributes {
			if name, _, ok := parseRange(a.Name, first); ok && strings.EqualFold(name, attribute) && len(a.Values) > 0 {
				return a, nil
			}
		}
	}
	return nil, errRange
}

// parseRange takes "member;range=0-1499" apart. Next is the number of the value
// that follows, and 0 when there is none. A range that does not begin at first,
// or ends before it begins, is none.
func parseRange(description string, first int) (name string, next int, ok bool) {
	name, bounds, found := strings.Cut(description, ";range=")
	low, high, dash := strings.Cut(bounds, "-")
	from, err := strconv.Atoi(low)
	if !found || !dash || err != nil || from != first {
		return description, 0, false
	}
	if high == "*" {
		return name, 0, true
	}
	to, err := strconv.Atoi(high)
	if err != nil || to < first || to >= maxValues+first {
		return description, 0, false
	}
	return name, to + 1, true
}
