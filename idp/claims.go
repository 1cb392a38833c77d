package idp

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
)

// nbfAllowance is how far back nbf lies, for API servers whose clock is behind.
const nbfAllowance = time.Minute

// amrPassword and acrPassword say that the person gave a password (RFC 8176).
const (
	amrPassword = "pwd"
	acrPassword = "urn:tabard:acr:password"
)

// entitlement is what one client's token may say of a session: the groups that
// leave, and when the first of them ends (zero: none does).
type entitlement struct {
	groups []string
	ends   time.Time
}

// allGroups returns the directory's and the local groups of the session's person
// that may be in a token for cluster at all, sorted, and per local group when it
// ends. "" is Tabard itself, where every group counts. A membership with less than
// minLife left does not.
func (s *Service) allGroups(sess *Session, cluster string, minLife time.Duration) ([]string, map[string]time.Time, error) {
	now := s.Now()
	local, err := s.Groups.Of(sess.Sub, sess.Groups, now)
	if err != nil {
		return nil, nil, fmt.Errorf("local groups: %w", err)
	}
	local = slices.DeleteFunc(local, func(e groups.Effective) bool { return !countsOn(e.Clusters, cluster) })
	all, dropped := mergeGroups(sess.Groups, local, s.cfg.DirectoryPrefixes, now.Add(minLife))
	if len(dropped) > 0 {
		s.Log.WithField("sub", sess.Sub).WithField("groups", dropped).Error("groups with reserved or colliding names are left out of tokens: rename them")
	}
	return all.names, all.ends, nil
}

// countsOn reports whether a group that counts on clusters (empty: all) counts on this
// one; on Tabard itself, which has no name, it does.
func countsOn(clusters []string, cluster string) bool {
	return cluster == "" || len(clusters) == 0 || slices.Contains(clusters, cluster)
}

type merged struct {
	names []string
	ends  map[string]time.Time // of local groups that end
}

// mergeGroups joins the groups of both sources. A name beginning with "system:",
// a directory group without its directory's prefix, and a local group with one are
// refused here once more, whatever let them in. Local groups that end before notBefore
// do not count.
func mergeGroups(dirGroups []string, local []groups.Effective, prefixes []string, notBefore time.Time) (m merged, dropped []string) {
	prefixed := func(name string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	m.names, m.ends = []string{}, map[string]time.Time{} // never null in a token
	for _, g := range dirGroups {
		if reservedName(g) || !prefixed(g) {
			dropped = append(dropped, g)
			continue
		}
		m.names = append(m.names, g)
	}
	for _, l := range local {
		switch {
		case reservedName(l.Group) || prefixed(l.Group):
			dropped = append(dropped, l.Group)
			continue
		case !l.End.IsZero() && l.End.Before(notBefore):
			continue
		case !l.End.IsZero():
			m.ends[l.Group] = l.End
		}
		m.names = append(m.names, l.Group)
	}
	slices.Sort(m.names)
	m.names = slices.Compact(m.names)
	return m, dropped
}

// reservedName reports whether Kubernetes gives the name a meaning of its own, or
// it cannot be a name at all.
func reservedName(name string) bool {
	return name == "" || strings.HasPrefix(strings.ToLower(strings.TrimSpace(name)), "system:") ||
		strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// entitle returns what c's token may say of sess, or ErrNoAccess.
func (s *Service) entitle(sess *Session, c *Client) (entitlement, error) {
	if reservedUsername(sess.Username) {
		return entitlement{}, fmt.Errorf("%w: the directory's username %q may not be in a token", ErrNoAccess, sess.Username)
	}
	all, ends, err := s.allGroups(sess, c.Cluster, c.tokens.MinLifetime)
	if err != nil {
		return entitlement{}, err
	}
	return c.entitle(all, ends, s.cfg.DirectoryPrefixes)
}

// entitle applies the cluster's rules: required groups, then the filter. A token
// ends with the first group that is in it, and with the last required group that
// let the person in.
func (c *Client) entitle(all []string, ends map[string]time.Time, prefixes []string) (entitlement, error) {
	if c.rules == nil {
		return entitlement{groups: all, ends: earliest(all, ends)}, nil
	}
	e := entitlement{groups: c.rules.Groups.apply(all, prefixes)}
	e.ends = earliest(e.groups, ends)
	if len(c.rules.RequireGroups) == 0 {
		return e, nil
	}
	var until time.Time
	in := false
	for _, g := range c.rules.RequireGroups {
		if !slices.Contains(all, g) {
			continue
		}
		if end, limited := ends[g]; !limited {
			in, until = true, time.Time{}
			break
		} else if end.After(until) {
			in, until = true, end
		}
	}
	if !in {
		return entitlement{}, fmt.Errorf("%w: cluster %s requires one of the groups %s", ErrNoAccess, c.Cluster, strings.Join(c.rules.RequireGroups, ", "))
	}
	if !until.IsZero() && (e.ends.IsZero() || until.Before(e.ends)) {
		e.ends = until
	}
	return e, nil
}

func earliest(names []string, ends map[string]time.Time) (first time.Time) {
	for _, g := range names {
		if end, ok := ends[g]; ok && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	return first
}

// apply returns the names that pass the filter. A pattern without a directory's
// prefix is for local groups alone.
func (f GroupFilter) apply(names, prefixes []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		if (f.Include == nil || matchesAny(f.Include, n, prefixes)) && !matchesAny(f.Exclude, n, prefixes) {
			out = append(out, n)
		}
	}
	return out
}

func matchesAny(patterns []string, name string, prefixes []string) bool {
	of := func(s string) int {
		return slices.IndexFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
	}
	source := of(name)
	return slices.ContainsFunc(patterns, func(p string) bool { return of(p) == source && directory.Glob(p, name) })
}

// preparedToken is an id_token that lacks only its signature: all that can be
// refused has been, so it can be made before a code or secret is used up.
type preparedToken struct {
	payload []byte
	alg     string
	jti     string
	groups  []string
	expires time.Time
}

// ErrTooLarge says that a token would break headers on its way.
var ErrTooLarge = errors.New("token too large")

// grant is what one request adds to an id_token.
type grant struct {
	azp, nonce string
	until      time.Time // the token does not outlive it; zero: no bound
}

// prepare makes the claims of an id_token of sess for c (OpenID Connect Core section
// 2). It never outlives a membership in it. With ErrTooLarge the token comes too, for
// Explain alone.
func (s *Service) prepare(sess *Session, c *Client, g grant) (preparedToken, error) {
	e, err := s.entitle(sess, c)
	if err != nil {
		return preparedToken{}, err
	}
	now := s.Now()
	t := preparedToken{alg: c.tokens.SigningAlgorithm, jti: randomID(), groups: e.groups, expires: now.Add(c.tokens.IDTokenLifetime)}
	for _, end := range []time.Time{e.ends, g.until} {
		if !end.IsZero() && end.Before(t.expires) {
			t.expires = end
		}
	}
	t.payload, err = json.Marshal(s.claims(sess, c, e, g, now, t))
	if err != nil {
		return preparedToken{}, fmt.Errorf("encode claims: %w", err)
	}
	if size := t.size(); size > int(c.tokens.MaxSize) {
		return t, fmt.Errorf("%w: about %d bytes with %d groups, over tokens.maxSize %d: %s", ErrTooLarge, size, len(e.groups), c.tokens.MaxSize, s.sizeAdvice(c, e.groups))
	}
	return t, nil
}

// size is about what the signed token will have, in bytes.
func (t preparedToken) size() int { return len(t.payload)*4/3 + 512 } // 512: header and signature

func (s *Service) claims(sess *Session, c *Client, e entitlement, g grant, now time.Time, t preparedToken) map[string]any {
	claims := s.person(sess, c, e)
	claims["iss"], claims["aud"], claims["azp"] = s.cfg.Issuer, c.Audience, g.azp
	claims["jti"], claims["sid"] = t.jti, sess.ID
	claims["exp"], claims["iat"], claims["nbf"] = t.expires.Unix(), now.Unix(), now.Add(-nbfAllowance).Unix()
	claims["auth_time"], claims["amr"], claims["acr"] = sess.AuthTime.Unix(), []string{amrPassword}, acrPassword
	if g.nonce != "" {
		claims["nonce"] = g.nonce
	}
	if sess.stale {
		claims["tabard_stale"] = true
	}
	return claims
}

// person is what a token and userinfo say alike.
func (s *Service) person(sess *Session, c *Client, e entitlement) map[string]any {
	claims := map[string]any{"sub": sess.Sub, "name": sess.Name, "preferred_username": sess.Username}
	claims[c.tokens.UsernameClaim] = sess.Username
	claims[c.tokens.GroupsClaim] = e.groups
	if sess.Email != "" {
		claims["email"], claims["email_verified"] = sess.Email, true
	}
	return claims
}
