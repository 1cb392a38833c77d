package idp

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Client is a registered OAuth client (RFC 6749 section 2).
type Client struct {
	ID       string
	Name     string // for people: the cluster's name, or the id
	Cluster  string // "" for the built-in client
	Public   bool   // cannot prove itself and must use PKCE
	Audience []string

	redirectURIs, postLogoutURIs []string
	secretHash                   []byte
	asserter                     *asserter // nil: it proves itself otherwise
	groups                       []string  // of its own token; none: it gets none
	tokens                       TokenConfig
	sessions                     SessionConfig
	rules                        *ClusterConfig // nil for the built-in client
}

// loopbackURIs are what the kubectl plugin and the commands listen on (RFC 8252
// section 7.3); their port is free.
var loopbackURIs = []string{"http://127.0.0.1/callback", "http://[::1]/callback"}

// clients returns every client by id: one per cluster, the configured ones, and
// the built-in one.
func (c Config) clients() map[string]*Client {
	all := map[string]*Client{BuiltinClient: {
		ID: BuiltinClient, Name: "Tabard", Public: true, Audience: []string{BuiltinClient},
		redirectURIs: loopbackURIs, tokens: c.Tokens, sessions: c.Sessions,
	}}
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		all[cl.ClientID] = &Client{
			ID: cl.ClientID, Name: cl.Name, Cluster: cl.Name, Public: true, Audience: []string{cl.ClientID},
			redirectURIs: slices.Concat(cl.RedirectURIs, loopbackURIs), tokens: cl.Tokens, sessions: cl.Sessions, rules: cl,
		}
	}
	for _, cc := range c.Clients {
		at := slices.IndexFunc(c.Clusters, func(cl ClusterConfig) bool { return cl.Name == cc.Cluster })
		cl := &c.Clusters[at]
		client := &Client{
			ID: cc.ID, Name: cc.ID, Cluster: cl.Name, Audience: []string{cc.ID, cl.ClientID},
			asserter: cc.asserter(c.Issuer), groups: cc.Groups,
			redirectURIs: cc.RedirectURIs, postLogoutURIs: cc.PostLogoutRedirectURIs,
			tokens: cl.Tokens, sessions: cl.Sessions, rules: cl,
		}
		client.Public = cc.Secret == "" && client.asserter == nil
		if cc.Secret != "" {
			client.secretHash = hashSecret(cc.Secret)
		}
		all[cc.ID] = client
	}
	return all
}

// Client returns the client of that id, or ErrInvalidClient.
func (s *Service) Client(id string) (*Client, error) {
	if c := s.clients[id]; c != nil {
		return c, nil
	}
	return nil, ErrInvalidClient
}

// AuthenticateClient returns the client if secret is its own; a public client has
// none and must send none. ErrInvalidClient.
func (s *Service) AuthenticateClient(id, secret string) (*Client, error) {
	c := s.clients[id]
	if c == nil || c.Public != (secret == "") || !c.Public && !isSecret(secret, c.secretHash) {
		return nil, ErrInvalidClient
	}
	return c, nil
}

// AllowsRedirect reports whether uri is registered: the same string, but for the
// port of a registered http://127.0.0.1 or http://[::1] (RFC 8252 section 7.3).
func (c *Client) AllowsRedirect(uri string) bool {
	return slices.ContainsFunc(c.redirectURIs, func(registered string) bool { return redirectMatches(registered, uri) })
}

// AllowsPostLogout is AllowsRedirect for the URIs of RP-initiated logout.
func (c *Client) AllowsPostLogout(uri string) bool {
	return slices.ContainsFunc(c.postLogoutURIs, func(registered string) bool { return redirectMatches(registered, uri) })
}

func redirectMatches(registered, uri string) bool {
	if len(uri) > 2048 {
		return false
	}
	if registered == uri {
		return true
	}
	r, err := url.Parse(registered)
	if err != nil || r.Scheme != "http" || r.Hostname() != "127.0.0.1" && r.Hostname() != "::1" {
		return false
	}
	u, err := url.Parse(uri)
	if err != nil || u.Hostname() != r.Hostname() || u.User != nil {
		return false
	}
	if p, err := strconv.Atoi(u.Port()); u.Port() != "" && (err != nil || p < 1 || p > 65535) {
		return false
	}
	// Put the registered port in place of the asked one: then every other byte
	// must be the same.
	host := "127.0.0.1"
	if r.Hostname() == "::1" {
		host = "[::1]"
	}
	rest, ok := strings.CutPrefix(uri, "http://"+host)
	if ok && u.Port() != "" {
		rest, ok = strings.CutPrefix(rest, ":"+u.Port())
	}
	want, _ := strings.CutPrefix(registered, "http://"+host)
	if r.Port() != "" {
		want, _ = strings.CutPrefix(want, ":"+r.Port())
	}
	return ok && rest == want
}
