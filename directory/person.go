package directory

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
	"github.com/google/uuid"
	"golang.org/x/text/unicode/norm"
)

const maxLogin = 256 // bytes

// Find returns the person whose login attributes match what was typed. NAME\user
// means the directory (or Active Directory domain) NAME alone. It fails with
// ErrNotFound, ErrAmbiguous, ErrUnusable or ErrUnavailable.
func (d *Directory) Find(ctx context.Context, login string) (Person, error) {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	p, err := d.find(ctx, login)
	if err != nil {
		return Person{}, d.failed("find a person", err)
	}
	return p, nil
}

func (d *Directory) find(ctx context.Context, login string) (Person, error) {
	if login = strings.TrimSpace(login); !typeable(login) {
		return Person{}, ErrNotFound
	}
	login, err := d.own(ctx, clean(login))
	if err != nil {
		return Person{}, err
	}
	s, err := d.schema(ctx)
	if err != nil {
		return Person{}, err
	}
	return d.person(ctx, s, loginFilter(s.users.Login, login), login)
}

// typeable says whether s may be what somebody is called.
func typeable(s string) bool {
	return s != "" && len(s) <= maxLogin && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// loginFilter is the filter for entries with login in one of attributes.
func loginFilter(attributes []string, login string) string {
	return anyFilter(attributes, ldap.EscapeFilter(login))
}

// anyFilter is the filter for entries with value, which is escaped, in one of
// attributes.
func anyFilter(attributes []string, value string) string {
	var any strings.Builder
	for _, a := range attributes {
		any.WriteString("(" + a + "=" + value + ")")
	}
	return "(|" + any.String() + ")"
}

// own returns login without "NAME\" when NAME means this directory, and
// ErrNotFound when NAME means another.
func (d *Directory) own(ctx context.Context, login string) (string, error) {
	name, user, found := strings.Cut(login, `\`)
	if !found {
		return login, nil
	}
	if user = strings.TrimSpace(user); name == "" || user == "" {
		return "", ErrNotFound
	}
	if strings.EqualFold(name, d.cfg.Name) {
		return user, nil
	}
	if d.cfg.Type != TypeActiveDirectory {
		return "", ErrNotFound
	}
	s, err := d.schema(ctx)
	if err != nil {
		return "", err
	}
	filter := fmt.Sprintf("(&(objectClass=crossRef)(nETBIOSName=%s)(nCName=%s))", ldap.EscapeFilter(name), ldap.EscapeFilter(s.domain))
	domains, err := d.ask(ctx, "look the domain's NetBIOS name up", query{base: s.configuration, scope: ldap.ScopeWholeSubtree, filter: filter, attributes: []string{"1.1"}, limit: 2})
	if err != nil {
		return "", fmt.Errorf("look the domain's NetBIOS name up: %w", err)
	}
	if len(domains) != 1 {
		return "", ErrNotFound
	}
	return user, nil
}

// Lookup returns the person with an immutable id, as Person.ID holds it. It
// fails with ErrNotFound, ErrAmbiguous, ErrUnusable or ErrUnavailable.
func (d *Directory) Lookup(ctx context.Context, id string) (Person, error) {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	p, err := d.lookup(ctx, id)
	if err != nil {
		return Person{}, d.failed("look "+strconv.Quote(id)+" up", err)
	}
	return p, nil
}

func (d *Directory) lookup(ctx context.Context, id string) (Person, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.String() != id {
		return Person{}, ErrNotFound
	}
	s, err := d.schema(ctx)
	if err != nil {
		return Person{}, err
	}
	p, err := d.person(ctx, s, idFilter(s.users.ID, parsed), "")
	if err == nil && p.ID != id {
		return Person{}, fmt.Errorf("%w: the directory answered with another id", ErrUnusable)
	}
	return p, err
}

// person returns the one person that matches filter. Typed is the login in
// filter, if it holds one.
func (d *Directory) person(ctx context.Context, s *schema, filter, typed string) (Person, error) {
	e, err := d.oneUser(ctx, s, filter, s.attributes)
	if err != nil {
		return Person{}, err
	}
	now := time.Now()
	p, raw, err := d.personFromEntry(s, e, now)
	if err != nil {
		return Person{}, fmt.Errorf("%s: %w", e.DN, err)
	}
	if d.lockIsOver(ctx, &p, now) {
		p.State = p.unlocked
	}
	if strings.EqualFold(typed, raw) && slices.Contains(s.users.Login, s.users.Username) {
		return p, nil // that search looked for the username as well
	}
	// Whoever may write their own uid must not become someone else.
	forms := equals(s.users.Username, raw) // which not every directory takes for one name
	for _, form := range []string{norm.NFC.String(raw), norm.NFD.String(raw)} {
		if form != raw {
			forms += equals(s.users.Username, form)
		}
	}
	same, err := d.oneUser(ctx, s, "(|"+forms+")", []string{"1.1"})
	if err != nil {
		return Person{}, fmt.Errorf("search for the username %q: %w", raw, err)
	}
	if foldDN(same.DN) != foldDN(e.DN) {
		return Person{}, fmt.Errorf("search for the username %q: %w", raw, ErrAmbiguous)
	}
	return p, nil
}

// oneUser returns the one entry that matches users.filter and filter.
func (d *Directory) oneUser(ctx context.Context, s *schema, filter string, attributes []string) (*ldap.Entry, error) {
	found, err := d.ask(ctx, "find the person", query{
		base: s.users.BaseDN, scope: ldap.ScopeWholeSubtree, attributes: attributes, limit: 2,
		filter: "(&" + s.users.Filter + filter + ")",
	})
	switch {
	case resultCode(err) == ldap.LDAPResultSizeLimitExceeded || len(found) > 1:
		return nil, ErrAmbiguous
	case err != nil:
		return nil, fmt.Errorf("search below %s: %w", s.users.BaseDN, err)
	case len(found) == 0:
		return nil, ErrNotFound
	}
	return found[0], nil
}

// personFromEntry reads e. It also returns the username as the entry has it.
func (d *Directory) personFromEntry(s *schema, e *ldap.Entry, now time.Time) (p Person, rawUsername string, err error) {
	p = Person{Directory: d.cfg.Name, DN: e.DN, uids: e.GetEqualFoldAttributeValues("uid")}
	if p.ID, err = idFromEntry(e, s.users.ID); err != nil {
		return p, "", err
	}
	if rawUsername, err = onlyValue(e, s.users.Username); err != nil {
		return p, "", err
	}
	if p.Username, err = d.username(s, rawUsername); err != nil {
		return p, "", err
	}
	if email := clean(e.GetEqualFoldAttributeValue(s.users.Email)); printable(email) {
		p.Email = email
	}
	for _, a := range s.names {
		if name := clean(e.GetEqualFoldAttributeValue(a)); p.Name == "" && printable(name) {
			p.Name = name
		}
	}
	p.Name = cmp.Or(p.Name, p.Username)
	if d.cfg.Type == TypeActiveDirectory {
		return p, rawUsername, p.readActiveDirectory(e, now)
	}
	p.readLDAP(e, now)
	return p, rawUsername, nil
}

// username makes a token's username from the directory's.
func (d *Directory) username(s *schema, raw string) (string, error) {
	name, suffix := clean(raw), s.users.UsernameSuffix
	if padded(raw) {
		return "", fmt.Errorf("%w: its %s begins or ends in white space", ErrUnusable, s.users.Username)
	}
	if name == "" || !printable(name) {
		return "", fmt.Errorf("%w: its %s is empty or holds control characters", ErrUnusable, s.users.Username)
	}
	if cut := len(name) - len(suffix); cut <= 0 || !strings.EqualFold(name[cut:], suffix) {
		return "", fmt.Errorf("%w: its %s does not end in usernameSuffix %q", ErrUnusable, s.users.Username, suffix)
	}
	name = s.users.UsernamePrefix + name
	if reserved(name) {
		return "", fmt.Errorf(`%w: its username would begin with "system:"`, ErrUnusable)
	}
	for _, prefix := range d.foreign {
		if strings.HasPrefix(strings.ToLower(name), prefix) {
			return "", fmt.Errorf("%w: its username begins with the usernamePrefix %q of another directory", ErrUnusable, prefix)
		}
	}
	return name, nil
}

// onlyValue returns the value of an attribute that must have one. Of several it
// takes the one that names the entry: the order of the others may change.
func onlyValue(e *ldap.Entry, attribute string) (string, error) {
	values := e.GetEqualFoldAttributeValues(attribute)
	if len(values) == 1 {
		return values[0], nil
	}
	if dn, err := ldap.ParseDN(e.DN); err == nil && len(values) > 1 {
		for _, a := range dn.RDNs[0].Attributes {
			for _, v := range values {
				if strings.EqualFold(a.Type, attribute) && a.Value == v {
					return v, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%w: it has %d values of %s and none of them names it", ErrUnusable, len(values), attribute)
}

// Bits of userAccountControl and msDS-User-Account-Control-Computed [MS-ADTS 2.2.16].
const (
	uacDisabled             = 0x2
	uacLocked               = 0x10
	uacPasswordNeverExpires = 0x10000
	uacPasswordExpired      = 0x800000
)

// readActiveDirectory reads the state of the account and what its groups hang on.
func (p *Person) readActiveDirectory(e *ldap.Entry, now time.Time) error {
	control, ok := number(e, "userAccountControl")
	if !ok {
		return fmt.Errorf("%w: bindDN may not read its userAccountControl, so nobody knows whether it is disabled", ErrUnusable)
	}
	computed, _ := number(e, "msDS-User-Account-Control-Computed")
	expires, _ := number(e, "accountExpires")
	changed, changedKnown := number(e, "pwdLastSet")
	expiry := filetime(expires)
	switch {
	case control&uacDisabled != 0:
		p.State = Disabled
	case !expiry.IsZero() && !now.Before(expiry):
		p.State = Expired
	case computed&uacLocked != 0:
		p.State = Locked
	case changedKnown && changed == 0 && control&uacPasswordNeverExpires == 0:
		p.State = MustChange
	case computed&uacPasswordExpired != 0:
		p.State = PasswordExpired
	default:
		p.State = Active
	}
	p.PasswordChanged = filetime(changed)
	p.memberOf = e.GetEqualFoldAttributeValues("memberOf")
	if primary, ok := number(e, "primaryGroupID"); ok {
		sid, err := decodeSID(e.GetEqualFoldRawAttributeValue("objectSid"))
		if err != nil {
			return fmt.Errorf("%w: its objectSid: %w", ErrUnusable, err)
		}
		p.primaryGroup = fmt.Sprintf("%s-%d", sid[:strings.LastIndexByte(sid, '-')], primary)
	}
	return nil
}

// readLDAP reads the state of the account from what password policies of
// OpenLDAP (pwd…) and 389 leave in the entry.
func (p *Person) readLDAP(e *ldap.Entry, now time.Time) {
	expires, unlocks := generalizedTime(e, "passwordExpirationTime"), generalizedTime(e, "accountUnlockTime")
	never := time.Unix(0, 0) // 389's word for: until somebody does something
	p.State = Active
	switch {
	case strings.EqualFold(e.GetEqualFoldAttributeValue("pwdReset"), "true"), expires.Equal(never):
		p.State = MustChange
	case !expires.IsZero() && !expires.After(now):
		p.State = PasswordExpired
	}
	switch {
	case strings.EqualFold(e.GetEqualFoldAttributeValue("nsAccountLock"), "true"):
		p.State = Disabled
	case e.GetEqualFoldAttributeValue("pwdAccountLockedTime") != "", unlocks.Equal(never), unlocks.After(now):
		p.State, p.unlocked = Locked, p.State
	}
	p.PasswordChanged = generalizedTime(e, "pwdChangedTime")
	// A value that is no time, such as 000001010000Z, is a lock without end.
	p.lockedSince = generalizedTime(e, "pwdAccountLockedTime")
	p.policyDN = e.GetEqualFoldAttributeValue("pwdPolicySubentry")
	p.memberOf = e.GetEqualFoldAttributeValues("memberOf")
}

// lockIsOver says whether OpenLDAP's lock of p has run out. The server takes
// pwdAccountLockedTime away no sooner than at the next bind, so p has to be
// judged by the policy's pwdLockoutDuration. A policy that cannot be read, or
// has none, leaves p locked.
func (d *Directory) lockIsOver(ctx context.Context, p *Person, now time.Time) bool {
	return p.State == Locked && !p.lockedSince.IsZero() && p.outlasts(d.lockLasts(ctx, p.policyDN), now)
}

// outlasts says whether a lock that lasts so long has run out, also by the server's
// clock, which goes by whole seconds and may be a little behind.
func (p *Person) outlasts(lock time.Duration, now time.Time) bool {
	return lock > 0 && now.Sub(p.lockedSince) > lock+time.Second
}

// lockLasts is the pwdLockoutDuration of a policy, or of the directory's where that
// is empty; 0 when it cannot be read or has none.
func (d *Directory) lockLasts(ctx context.Context, policy string) time.Duration {
	if policy == "" {
		lockout, err := d.Lockout(ctx)
		if err != nil {
			return 0
		}
		return lockout.Duration
	}
	found, err := d.ask(ctx, "read the person's password policy", entryQuery(policy, "pwdLockoutDuration"))
	if err != nil || len(found) != 1 {
		return 0
	}
	seconds, _ := number(found[0], "pwdLockoutDuration")
	return time.Duration(min(max(seconds, 0), math.MaxInt32)) * time.Second
}

// generalizedTime reads a time (RFC 4517, 3.3.13); what is none is the zero time.
func generalizedTime(e *ldap.Entry, attribute string) time.Time {
	t, err := time.Parse("20060102150405Z0700", e.GetEqualFoldAttributeValue(attribute))
	if err != nil {
		return time.Time{}
	}
	return t
}

func number(e *ldap.Entry, attribute string) (int64, bool) {
	n, err := strconv.ParseInt(e.GetEqualFoldAttributeValue(attribute), 10, 64)
	return n, err == nil
}

// filetime converts 100 ns intervals since 1601; zero and the highest value mean
// never, which is the zero time.
func filetime(ticks int64) time.Time {
	const never, unixEpoch, perSecond = 0x7FFFFFFFFFFFFFFF, 11644473600, 10_000_000
	if ticks <= 0 || ticks == never {
		return time.Time{}
	}
	return time.Unix(ticks/perSecond-unixEpoch, ticks%perSecond*100).UTC()
}
