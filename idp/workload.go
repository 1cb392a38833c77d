package idp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
)

// ClientPrefix begins the username and the sub of every token that a client has of its
// own, and those of no person: a directory's sub has no colon, and a username that
// begins so gets no token.
const ClientPrefix = "client:"

// maxClientGroups bounds the groups of a client, and so its token.
const maxClientGroups = 50

// reservedUsername reports whether no person may be called name in a token.
func reservedUsername(name string) bool {
	return reservedName(name) || strings.HasPrefix(strings.ToLower(strings.TrimSpace(name)), ClientPrefix)
}

// HasOwnToken reports whether the client gets tokens without a person.
func (c *Client) HasOwnToken() bool { return len(c.groups) > 0 }

// ClientToken gives an authenticated client a token of its own for its cluster, with
// the groups of the configuration and no others (RFC 6749 section 4.4). There is no
// session and nothing to refresh. ErrNoAccess.
func (s *Service) ClientToken(ctx context.Context, c *Client) (Tokens, error) {
	e, err := s.ownGroups(c)
	if err != nil {
		return Tokens{}, err
	}
	now, name := s.Now(), ClientPrefix+c.ID
	t := Tokens{Expires: now.Add(c.tokens.IDTokenLifetime)}
	jti := randomID()
	claims := map[string]any{
		"iss": s.cfg.Issuer, "sub": name, "aud": c.Audience, "azp": c.ID, "jti": jti,
		"exp": t.Expires.Unix(), "iat": now.Unix(), "nbf": now.Add(-nbfAllowance).Unix(), "preferred_username": name,
	}
	claims[c.tokens.UsernameClaim], claims[c.tokens.GroupsClaim] = name, e.groups
	payload, err := json.Marshal(claims)
	if err != nil {
		return Tokens{}, fmt.Errorf("encode claims: %w", err)
	}
	event := audit.Event{
		Act: "token.issue", Who: name, Name: name, Outcome: audit.Done, Client: c.ID, Cluster: c.Cluster, JTI: jti, Soon: true,
		Detail: map[string]string{"assertion": c.asserter.subject},
	}
	if err := s.record(ctx, event, nil); err != nil {
		return Tokens{}, err
	}
	t.IDToken, err = s.Keys.Sign(c.tokens.SigningAlgorithm, payload)
	return t, err
}

// ownGroups is what the client's own token may say, by the same rules as a person's.
func (s *Service) ownGroups(c *Client) (entitlement, error) {
	if !c.HasOwnToken() {
		return entitlement{}, fmt.Errorf("%w: client %s has no groups of its own", ErrNoAccess, c.ID)
	}
	own := make([]groups.Effective, len(c.groups))
	for i, g := range c.groups {
		own[i].Group = g
	}
	all, _ := mergeGroups(nil, own, s.cfg.DirectoryPrefixes, time.Time{})
	return c.entitle(all.names, all.ends, s.cfg.DirectoryPrefixes)
}

// ownerOf returns the client whose own token has these verified claims, or nil: then
// they are a person's, and nothing without a session.
func (s *Service) ownerOf(claims idClaims) *Client {
	c := s.clients[claims.AuthorizedParty]
	if c == nil || !c.HasOwnToken() || claims.SessionID != "" || claims.Subject != ClientPrefix+c.ID {
		return nil
	}
	return c
}

// validateProof checks by what a client proves itself, and what it then gets.
func (c Config) validateProof(path string, cc *ClientConfig) error {
	var f Faults
	keys, account, ways := cc.JWKS != "" || cc.JWKSFile != "", cc.ServiceAccount != ServiceAccountConfig{}, 0
	for _, used := range []bool{cc.Secret != "", keys, account} {
		if used {
			ways++
		}
	}
	f.When(ways > 1, path, "secret, jwksFile and serviceAccount exclude each other: keep one")
	_, err := parseJWKS(cc.JWKS)
	f.When(keys && err != nil, path+".jwksFile", "%s", err)
	if account {
		f.Join(cc.ServiceAccount.validate(path + ".serviceAccount"))
	}
	f.When(len(cc.Groups) > 0 && !keys && !account, path+".groups", "needs jwksFile or serviceAccount: a token without a person is for clients with keys alone")
	f.Join(c.validateOwnGroups(path+".groups", cc))
	return f.Err()
}

func (c Config) validateOwnGroups(path string, cc *ClientConfig) error {
	at := slices.IndexFunc(c.Clusters, func(cl ClusterConfig) bool { return cl.Name == cc.Cluster })
	if at < 0 || len(cc.Groups) == 0 {
		return nil
	}
	var f Faults
	cl := &c.Clusters[at]
	for i, g := range cc.Groups {
		here := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case reservedName(g) || g != strings.TrimSpace(g):
			f.Wrong(here, "%q may not be in a token", g)
		case slices.ContainsFunc(c.DirectoryPrefixes, func(p string) bool { return strings.HasPrefix(g, p) }):
			f.Wrong(here, "%q begins like a directory's groups: use a name without prefix", g)
		case len(cl.Groups.apply([]string{g}, c.DirectoryPrefixes)) == 0:
			f.Wrong(here, "%q does not pass the groups filter of cluster %s: include it there", g, cl.Name)
		}
	}
	f.When(len(cc.Groups) > maxClientGroups, path, "%d groups are too many: use at most %d", len(cc.Groups), maxClientGroups)
	f.When(len(cl.RequireGroups) > 0 && !slices.ContainsFunc(cc.Groups, func(g string) bool { return slices.Contains(cl.RequireGroups, g) }), path, "cluster %s gives no token without one of its requireGroups: %s", cl.Name, strings.Join(cl.RequireGroups, ", "))
	return f.Err()
}
