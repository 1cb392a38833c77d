package directory

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Grade says how a Check went.
type Grade string

// The grades of a Check.
const (
	GradeOK   Grade = "ok"
	GradeWarn Grade = "warn" // it works, but somebody should look
	GradeFail Grade = "fail"
)

// Check is one thing that was tried, and what to do about it.
type Check struct {
	Grade  Grade
	Detail string
}

const (
	hostTime    = 3 * time.Second    // for one host to answer one step
	certWarning = 7 * 24 * time.Hour // before a certificate's end
	clockLimit  = 2 * time.Minute    // Kerberos gives up at five
	slowSearch  = 250 * time.Millisecond
	maxCounted  = 10000 // entries
)

// Check tries every host by itself: name, port, TLS and certificate, bindDN, base DNs
// and, with Active Directory, its clock. Where that works it counts people and groups
// and times the searches of a sign-in. It asks for bindDN's password once for each
// host, and no further host when one refuses it: that must not lock the account. Usable
// says whether a host is good for sign-ins.
func (d *Directory) Check(ctx context.Context) (checks []Check, usable bool) {
	urls, err := d.urls(ctx)
	if err != nil {
		return []Check{{GradeFail, "find the hosts: " + err.Error()}}, false
	}
	probes := make([]*probe, len(urls))
	var all sync.WaitGroup
	for i, u := range urls {
		probes[i] = &probe{d: d, url: u}
		all.Go(func() { probes[i].connect(ctx) })
	}
	all.Wait()
	var s *schema
	refused := false
	for _, p := range probes {
		if p.conn != nil && !refused {
			refused = p.ask(ctx)
		} else if p.conn != nil {
			p.say(GradeWarn, "bindDN was not tried: it must not get locked")
		}
		s = cmp.Or(s, p.schema)
		p.close()
		checks = append(checks, p.checks...)
	}
	if s == nil || refused {
		return checks, false
	}
	checks = append(checks, d.count(ctx, "people", "users", s.users.BaseDN, s.users.Filter))
	checks = append(checks, d.count(ctx, "groups", "groups", s.groups.BaseDN, s.groups.Filter))
	return append(checks, d.timeSearches(ctx, s)...), true
}

// urls returns the hosts to try, as configured or as DNS orders them.
func (d *Directory) urls(ctx context.Context) ([]*url.URL, error) {
	hosts, err := d.resolve(ctx)
	if err != nil {
		return nil, err
	}
	var all []*url.URL
	for _, h := range hosts {
		u, err := url.Parse(h.url)
		if err != nil {
			return nil, fmt.Errorf("urls: %w", err)
		}
		all = append(all, u)
	}
	return all, nil
}

// probe tries one host, on a connection of its own.
type probe struct {
	d      *Directory
	url    *url.URL
	raw    net.Conn
	conn   *ldap.Conn // nil until it is secured
	schema *schema    // nil unless bindDN was let in and the bases are there
	checks []Check
}

func (p *probe) say(g Grade, format string, args ...any) {
	p.checks = append(p.checks, Check{g, p.url.String() + ": " + fmt.Sprintf(format, args...)})
}

func (p *probe) close() {
	if p.conn != nil {
		p.conn.Close()
	} else if p.raw != nil {
		p.raw.Close()
	}
}

// connect dials the host and secures the connection.
func (p *probe) connect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.d.hostTime)
	defer cancel()
	port := map[string]string{"ldap": "389", "ldaps": "636"}[p.url.Scheme]
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(p.url.Hostname(), cmp.Or(p.url.Port(), port)))
	if err != nil {
		p.say(GradeFail, "%s", dialTrouble(err))
		return
	}
	p.raw = raw
	config := p.d.tls.Clone()
	config.ServerName, config.ClientSessionCache = p.url.Hostname(), nil // a resumed session shows an old certificate
	if p.url.Scheme == "ldaps" {
		secured := tls.Client(raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			p.say(GradeFail, "TLS: %s", p.tlsTrouble(err))
			return
		}
		p.conn = ldap.NewConn(secured, true)
		p.conn.Start()
	} else {
		c := ldap.NewConn(raw, false)
		c.Start()
		if p.d.cfg.StartTLS {
			if err := p.within(ctx, func() error { return c.StartTLS(config) }); err != nil {
				c.Close()
				p.say(GradeFail, "StartTLS: %s", p.tlsTrouble(err))
				return
			}
		}
		p.conn = c
	}
	p.certificate()
}

// within runs op, which talks on p's connection, until ctx or hostTime ends.
func (p *probe) within(ctx context.Context, op func() error) error {
	ctx, cancel := context.WithTimeout(ctx, p.d.hostTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	p.raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { p.raw.SetDeadline(time.Unix(1, 0)) })
	err := op()
	if stop() {
		p.raw.SetDeadline(time.Time{}) // the next step may be long in coming, after other hosts
	}
	return err
}

// certificate looks at the one that the host showed, which is valid now.
func (p *probe) certificate() {
	state, ok := p.conn.TLSConnectionState()
	if !ok || len(state.PeerCertificates) == 0 {
		p.say(GradeWarn, "connected in the clear: everybody on the way can read passwords")
		return
	}
	leaf := state.PeerCertificates[0]
	names := strings.Join(leaf.DNSNames, ", ")
	for _, ip := range leaf.IPAddresses {
		names = strings.TrimPrefix(names+", "+ip.String(), ", ")
	}
	if left := time.Until(leaf.NotAfter); left < certWarning {
		p.say(GradeWarn, "the certificate for %s ends in %s, at %s: renew it", names, left.Round(time.Hour), leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	p.say(GradeOK, "%s, certificate for %s until %s", tls.VersionName(state.Version), names, leaf.NotAfter.UTC().Format(time.DateOnly))
}

// ask binds as the service account and reads what a sign-in reads. It reports
// whether the password was refused.
func (p *probe) ask(ctx context.Context) (wasRefused bool) {
	began := time.Now()
	err := p.within(ctx, func() error { return p.conn.Bind(p.d.cfg.BindDN, p.d.bindPassword) })
	switch {
	case refused(resultCode(err)):
		p.say(GradeFail, "bindDN (%s) and its password were refused: put bindDN and bindPasswordFile right: %s", p.d.cfg.BindDN, err)
		return true
	case err != nil:
		p.say(GradeFail, "bind: %s", answerTrouble(err))
		return false
	}
	root, err := p.read(ctx, "", append([]string{"currentTime"}, rootAttributes...)...)
	if err != nil {
		p.say(GradeFail, "read the root DSE: %s", answerTrouble(err))
		return false
	}
	s, err := newSchema(&p.d.cfg, root)
	if err != nil {
		p.say(GradeFail, "%s", err)
		return false
	}
	for _, base := range []struct{ key, dn string }{{"users", s.users.BaseDN}, {"groups", s.groups.BaseDN}} {
		if _, err := p.read(ctx, base.dn, "1.1"); err != nil {
			p.say(GradeFail, "%s.baseDN (%s) cannot be read: %s", base.key, base.dn, answerTrouble(err))
			return false
		}
	}
	p.schema = s
	p.say(GradeOK, "bindDN is let in and reads the base DNs, in %s", time.Since(began).Round(100*time.Microsecond))
	p.clock(root.GetEqualFoldAttributeValue("currentTime"))
	return false
}

// read returns one entry.
func (p *probe) read(ctx context.Context, dn string, attributes ...string) (*ldap.Entry, error) {
	req := ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false, "(objectClass=*)", attributes, nil)
	var res *ldap.SearchResult
	err := p.within(ctx, func() (err error) { res, err = p.conn.Search(req); return err })
	if err == nil && len(res.Entries) != 1 {
		err = errors.New("it does not exist or bindDN may not read it")
	}
	if err != nil {
		return nil, err
	}
	return res.Entries[0], nil
}

// clock compares the server's time, which Active Directory alone tells, with ours.
func (p *probe) clock(told string) {
	at, err := time.Parse("20060102150405Z0700", told)
	if err != nil {
		return
	}
	if skew := time.Since(at).Round(time.Second); skew.Abs() > clockLimit {
		p.say(GradeFail, "its clock and this machine's are %s apart: set both by NTP", skew.Abs())
		return
	}
	p.say(GradeOK, "its clock and this machine's agree")
}

// count counts entries, as far as that is reasonable.
func (d *Directory) count(ctx context.Context, what, key, base, filter string) Check {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	found, err := d.search(ctx, query{base: base, scope: ldap.ScopeWholeSubtree, filter: filter, attributes: []string{"1.1"}, limit: maxCounted})
	switch {
	case resultCode(err) == ldap.LDAPResultSizeLimitExceeded:
		return Check{GradeOK, fmt.Sprintf("%s: too many to count (over %d, or over the server's own limit)", what, maxCounted)}
	case err != nil:
		return Check{GradeFail, fmt.Sprintf("count the %s below %s: %s", what, base, answerTrouble(err))}
	case len(found) == 0:
		return Check{GradeWarn, fmt.Sprintf("%s: none below %s match %s: check %s.baseDN, %s.filter and what bindDN may read", what, base, filter, key, key)}
	}
	return Check{GradeOK, fmt.Sprintf("%s: %d", what, len(found))}
}

// timeSearches times the two searches of a sign-in, for somebody who does not exist:
// without an index the server looks at every entry for that.
func (d *Directory) timeSearches(ctx context.Context, s *schema) []Check {
	terms := ""
	for _, a := range s.members {
		value := d.DummyDN()
		if strings.EqualFold(a, "memberUid") {
			value = d.nobody
		}
		terms += equals(a, value)
	}
	return []Check{
		d.timeSearch(ctx, "find a person", s.users.BaseDN, "(&"+s.users.Filter+loginFilter(s.users.Login, d.nobody)+")", s.users.Login),
		d.timeSearch(ctx, "find groups", s.groups.BaseDN, "(&"+s.groups.Filter+"(|"+terms+"))", s.members),
	}
}

// timeSearch takes the better of two, since the first may have had to connect.
func (d *Directory) timeSearch(ctx context.Context, what, base, filter string, attributes []string) Check {
	best := time.Duration(0)
	for range 2 {
		ctx, cancel := d.budget(ctx)
		began := time.Now()
		_, err := d.search(ctx, query{base: base, scope: ldap.ScopeWholeSubtree, filter: filter, attributes: []string{"1.1"}, limit: 2})
		cancel()
		if err != nil {
			return Check{GradeFail, fmt.Sprintf("%s with %s below %s: %s", what, filter, base, answerTrouble(err))}
		}
		if took := time.Since(began); best == 0 || took < best {
			best = took
		}
	}
	return d.graded(what, filter, attributes, best)
}

// graded says whether a search that took that long seems to lack an index.
func (d *Directory) graded(what, filter string, attributes []string, took time.Duration) Check {
	shown := took.Round(100 * time.Microsecond)
	if took > d.slowSearch {
		return Check{GradeWarn, fmt.Sprintf("%s: %s with %s: slow; perhaps the server has no equality index for each of %s", what, shown, filter, strings.Join(attributes, ", "))}
	}
	return Check{GradeOK, fmt.Sprintf("%s: %s", what, shown)}
}

// dialTrouble says why no connection came about, and what to do.
func dialTrouble(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "its name is not known to DNS: check urls: " + err.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no connection within %s: is a firewall in between, or the host down: %s", hostTime, err)
	}
	return "no connection: check the port, and whether the server runs: " + err.Error()
}

// tlsTrouble says why a connection could not be secured, and what to do. The LDAP
// library keeps only the words of what went wrong in StartTLS.
func (p *probe) tlsTrouble(err error) string {
	words := err.Error()
	var timeout net.Error
	var record tls.RecordHeaderError
	switch {
	case strings.Contains(words, x509.UnknownAuthorityError{}.Error()):
		if p.d.cfg.CAFile == "" {
			return "this machine does not know who signed its certificate: set caFile: " + words
		}
		return "its certificate is not signed by what caFile holds: " + words
	case strings.Contains(words, "certificate has expired or is not yet valid"):
		return "its certificate is not valid now: renew it, or set the clocks: " + words
	case strings.Contains(words, "certificate is valid for"), strings.Contains(words, "certificate is not valid for any names"), strings.Contains(words, "doesn't contain any IP SANs"):
		return "its certificate is for another name: write urls as it names the host: " + words
	case errors.As(err, &timeout) && timeout.Timeout(), strings.Contains(words, "i/o timeout"):
		return fmt.Sprintf("it takes the connection but does not answer within %s: %s", hostTime, words)
	case errors.As(err, &record):
		return "it does not speak TLS there: use its LDAPS port, or ldap:// with startTLS: " + words
	}
	return words
}

// answerTrouble says why a request got no answer.
func answerTrouble(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || strings.Contains(err.Error(), "i/o timeout") {
		return fmt.Sprintf("no answer within %s: %s", hostTime, err)
	}
	return err.Error()
}
