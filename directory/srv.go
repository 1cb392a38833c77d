package directory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxHosts     = 16 // of an SRV record
	resolveEvery = time.Minute
)

// hosts returns the servers, those that answered last time first.
func (d *Directory) hosts(ctx context.Context) ([]*host, error) {
	d.mu.Lock()
	known := slices.Clone(d.known)
	d.mu.Unlock()
	if len(known) == 0 {
		var err error
		if known, err = d.resolve(ctx); err != nil {
			return nil, err
		}
	}
	var healthy, failed []*host
	for _, h := range known {
		if h.healthy() {
			healthy = append(healthy, h)
		} else {
			failed = append(failed, h)
		}
	}
	return append(healthy, failed...), nil
}

// resolve returns the servers as configured, or as the SRV record (RFC 2782)
// orders them. It asks DNS once a minute; while that fails the servers it named
// last stay. What is known of a server's health is kept.
func (d *Directory) resolve(ctx context.Context) ([]*host, error) {
	d.mu.Lock()
	known, fresh := d.known, d.cfg.SRV == "" || len(d.known) > 0 && time.Since(d.resolved) < resolveEvery
	d.mu.Unlock()
	if fresh {
		return slices.Clone(known), nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	service := "ldaps"
	if d.cfg.StartTLS || d.cfg.InsecurePlaintext {
		service = "ldap"
	}
	_, records, err := d.lookupSRV(ctx, service, "tcp", d.cfg.SRV)
	found := d.serversOf(records, service)
	if err == nil && len(found) == 0 {
		err = errors.New("it names no host in that domain")
	}
	if err != nil && len(known) == 0 {
		return nil, fmt.Errorf("%w: look up the SRV record _%s._tcp.%s: %w", ErrUnavailable, service, d.cfg.SRV, err)
	} else if err != nil {
		found = known
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resolved = time.Now()
	for i, h := range found {
		if at := slices.IndexFunc(d.known, func(k *host) bool { return k.url == h.url }); at >= 0 {
			found[i] = d.known[at]
		}
	}
	d.known = found
	return slices.Clone(found), nil
}

// serversOf makes hosts of an answer from DNS, which has put them in order.
// Hosts outside of the domain are left out: whoever forges that answer must not
// choose where passwords go.
func (d *Directory) serversOf(records []*net.SRV, scheme string) []*host {
	var found []*host
	domain := "." + strings.ToLower(d.cfg.SRV)
	for _, r := range records {
		target := strings.ToLower(strings.TrimSuffix(r.Target, "."))
		if strings.HasSuffix("."+target, domain) && len(found) < maxHosts {
			found = append(found, newHost(&url.URL{Scheme: scheme, Host: net.JoinHostPort(target, strconv.Itoa(int(r.Port)))}))
		}
	}
	return found
}
