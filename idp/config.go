package idp

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
)

// BuiltinClient is the public client and audience of Tabard's own API and
// commands.
const BuiltinClient = "tabard"

// Config is what the Service is told by the configuration file.
type Config struct {
	Issuer   string          // https URL without query, fragment or trailing slash
	Tokens   TokenConfig     // for every cluster that does not say otherwise
	Sessions SessionConfig   // likewise
	Throttle ThrottleConfig  // of passwords
	Clusters []ClusterConfig // in the order of the file
	Clients  []ClientConfig
	// Outage says for each directory how long a session may go on from what was
	// last read when the directory does not answer; absent or 0: not at all.
	Outage map[string]time.Duration
	Vault  *Vault // that encrypts the server's secret; nil: none
	// DirectoryPrefixes are the prefixes of directory groups' names: no local
	// group may begin with one, and a pattern with one means directory groups.
	DirectoryPrefixes []string
}

// TokenConfig says how tokens are made. Zero fields take the default.
type TokenConfig struct {
	IDTokenLifetime  time.Duration `yaml:"idTokenLifetime,omitempty"`  // 5m
	MinLifetime      time.Duration `yaml:"minLifetime,omitempty"`      // 1m: a membership with less left is left out
	MaxSize          audit.Size    `yaml:"maxSize,omitempty"`          // 16KiB, of a signed id_token
	SigningAlgorithm string        `yaml:"signingAlgorithm,omitempty"` // RS256 or ES256
	UsernameClaim    string        `yaml:"usernameClaim,omitempty"`    // preferred_username
	GroupsClaim      string        `yaml:"groupsClaim,omitempty"`      // groups
}

// SessionConfig says how long sessions live. Zero fields take the default.
type SessionConfig struct {
	IdleTimeout  time.Duration `yaml:"idleTimeout,omitempty"`  // 8h
	MaxLifetime  time.Duration `yaml:"maxLifetime,omitempty"`  // 12h
	RefreshGrace time.Duration `yaml:"refreshGrace,omitempty"` // 30s
}

// ThrottleConfig bounds wrong passwords, counted by all nodes together. Zero fields
// take the default.
type ThrottleConfig struct {
	// AccountTries are the wrong passwords of one account after which nothing is
	// tried for a whole window. 0: below the directory's own lockout, which it is
	// never above where that can be read.
	AccountTries int           `yaml:"accountTries,omitempty"`
	AddressTries int           `yaml:"addressTries,omitempty"` // 20, from one address in a window
	Window       time.Duration `yaml:"window,omitempty"`       // 15m, or the directory's where that is longer
}

// ClusterConfig is one Kubernetes cluster: its audience, and what its tokens hold.
type ClusterConfig struct {
	Name          string          `yaml:"name"`
	ClientID      string          `yaml:"clientID"`
	APIServer     APIServerConfig `yaml:"-"` // the file's is larger: cmd/tabard fills this in
	RedirectURIs  []string        `yaml:"redirectURIs,omitempty"`
	Groups        GroupFilter     `yaml:"groups,omitempty"`
	RequireGroups []string        `yaml:"requireGroups,omitempty"`
	Webhook       *WebhookConfig  `yaml:"webhook,omitempty"` // nil: API servers cannot ask
	Tokens        TokenConfig     `yaml:"tokens,omitempty"`
	Sessions      SessionConfig   `yaml:"sessions,omitempty"`
}

// GroupFilter says by globs which groups leave in a cluster's tokens. An absent
// Include means all.
type GroupFilter struct {
	Include []string `yaml:"include,omitempty"`
	Exclude []string `yaml:"exclude,omitempty"`
}

// ClientConfig is a further client of a cluster, confidential when it has a secret,
// keys or a service account.
type ClientConfig struct {
	ID             string               `yaml:"id"`
	Cluster        string               `yaml:"cluster"`
	Secret         string               `yaml:"secret,omitempty"`
	SecretFile     string               `yaml:"secretFile,omitempty"`
	JWKSFile       string               `yaml:"jwksFile,omitempty"` // its public keys, for private_key_jwt
	JWKS           string               `yaml:"-"`                  // what JWKSFile holds
	ServiceAccount ServiceAccountConfig `yaml:"serviceAccount,omitempty"`
	// Groups are what a token of its own holds, for which no person is needed; without
	// any it gets none.
	Groups                 []string `yaml:"groups,omitempty"`
	RedirectURIs           []string `yaml:"redirectURIs,omitempty"`
	PostLogoutRedirectURIs []string `yaml:"postLogoutRedirectURIs,omitempty"`
}

var (
	defaultTokens = TokenConfig{
		IDTokenLifetime: 5 * time.Minute, MinLifetime: time.Minute, MaxSize: 16 << 10,
		SigningAlgorithm: "RS256", UsernameClaim: "preferred_username", GroupsClaim: "groups",
	}
	defaultSessions = SessionConfig{IdleTimeout: 8 * time.Hour, MaxLifetime: 12 * time.Hour, RefreshGrace: 30 * time.Second}
	defaultThrottle = ThrottleConfig{AddressTries: 20, Window: 15 * time.Minute}
)

// or returns t with its zero fields taken from def.
func (t TokenConfig) or(def TokenConfig) TokenConfig {
	return TokenConfig{
		IDTokenLifetime:  cmp.Or(t.IDTokenLifetime, def.IDTokenLifetime),
		MinLifetime:      cmp.Or(t.MinLifetime, def.MinLifetime),
		MaxSize:          cmp.Or(t.MaxSize, def.MaxSize),
		SigningAlgorithm: cmp.Or(t.SigningAlgorithm, def.SigningAlgorithm),
		UsernameClaim:    cmp.Or(t.UsernameClaim, def.UsernameClaim),
		GroupsClaim:      cmp.Or(t.GroupsClaim, def.GroupsClaim),
	}
}

// or returns c with its zero fields taken from def.
func (c SessionConfig) or(def SessionConfig) SessionConfig {
	return SessionConfig{
		IdleTimeout:  cmp.Or(c.IdleTimeout, def.IdleTimeout),
		MaxLifetime:  cmp.Or(c.MaxLifetime, def.MaxLifetime),
		RefreshGrace: cmp.Or(c.RefreshGrace, def.RefreshGrace),
	}
}

// SetDefaults fills in what the file left out; a cluster takes what it does not
// say from the top level.
func (c *Config) SetDefaults() {
	c.Issuer = strings.TrimSuffix(c.Issuer, "/")
	c.Tokens = c.Tokens.or(defaultTokens)
	c.Sessions = c.Sessions.or(defaultSessions)
	c.Throttle.AddressTries = cmp.Or(c.Throttle.AddressTries, defaultThrottle.AddressTries)
	c.Throttle.Window = cmp.Or(c.Throttle.Window, defaultThrottle.Window)
	for i := range c.Clusters {
		c.Clusters[i].Tokens = c.Clusters[i].Tokens.or(c.Tokens)
		c.Clusters[i].Sessions = c.Clusters[i].Sessions.or(c.Sessions)
	}
}

// KeyAlgorithms returns the signing algorithms in use, sorted.
func (c Config) KeyAlgorithms() []string {
	algs := []string{c.Tokens.SigningAlgorithm}
	for _, cl := range c.Clusters {
		algs = append(algs, cl.Tokens.SigningAlgorithm)
	}
	slices.Sort(algs)
	return slices.Compact(algs)
}

// ClaimNames returns the names of the claims that id_tokens can hold, sorted.
func (c Config) ClaimNames() []string {
	names := []string{"iss", "sub", "aud", "azp", "exp", "iat", "nbf", "jti", "auth_time", "amr", "acr", "sid", "nonce",
		"preferred_username", "email", "email_verified", "name", c.Tokens.UsernameClaim, c.Tokens.GroupsClaim}
	for _, cl := range c.Clusters {
		names = append(names, cl.Tokens.UsernameClaim, cl.Tokens.GroupsClaim)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// LongestToken is the longest life an id_token can have.
func (c Config) LongestToken() time.Duration {
	longest := c.Tokens.IDTokenLifetime
	for _, cl := range c.Clusters {
		longest = max(longest, cl.Tokens.IDTokenLifetime)
	}
	return longest
}

// FieldError is a mistake in the configuration and the path of the key it is in,
// e.g. "clusters[0].clientID".
type FieldError struct {
	Path string
	Msg  string
}

func (e *FieldError) Error() string { return e.Path + ": " + e.Msg }

// Faults collects mistakes in the configuration.
type Faults []error

// Wrong adds a *FieldError.
func (f *Faults) Wrong(path, format string, args ...any) {
	f.Join(&FieldError{Path: path, Msg: fmt.Sprintf(format, args...)})
}

// When is Wrong if bad is true.
func (f *Faults) When(bad bool, path, format string, args ...any) {
	if bad {
		f.Wrong(path, format, args...)
	}
}

// Join adds what others found, of which any may be nil.
func (f *Faults) Join(errs ...error) { *f = append(*f, errs...) }

// Err returns all that was added, joined; nil if that is nothing.
func (f Faults) Err() error { return errors.Join(f...) }

var (
	nameForm     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	clientIDForm = regexp.MustCompile(`^[A-Za-z0-9._~:/-]{1,128}$`)
)

// reservedClaims may not be used as the name of the username or groups claim.
var reservedClaims = []string{"iss", "sub", "aud", "azp", "exp", "iat", "nbf", "jti", "auth_time", "amr", "acr", "sid",
	"nonce", "at_hash", "c_hash", "email", "email_verified", "name", "tabard_stale"}

// Validate returns every mistake, joined; each is a *FieldError. SetDefaults comes
// before it.
func (c Config) Validate() error {
	f := Faults{c.Tokens.validate("tokens"), c.Sessions.validate("sessions"), c.Throttle.validate("throttle")}
	if u, err := url.Parse(c.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || strings.ContainsAny(c.Issuer, "?#") || u.User != nil {
		f.Wrong("issuer", "must be an https URL without query or fragment, because an API server accepts no other")
	}
	ids := map[string]string{BuiltinClient: "the built-in client"}
	take := func(id, path string) {
		if other, taken := ids[id]; taken {
			f.Wrong(path, "%q is already the id of %s", id, other)
		} else if !clientIDForm.MatchString(id) {
			f.Wrong(path, "%q is not a client id: use letters, digits and . _ ~ : / -", id)
		}
		ids[id] = path
	}
	names, callers := map[string]bool{}, map[string]string{}
	for i, cl := range c.Clusters {
		path := fmt.Sprintf("clusters[%d]", i)
		f.When(!nameForm.MatchString(cl.Name) || names[cl.Name], path+".name", "%q must be a unique name of lower-case letters, digits and dashes", cl.Name)
		names[cl.Name] = true
		take(cl.ClientID, path+".clientID")
		if cl.Tokens != c.Tokens { // else the mistake is told at the top
			f.Join(cl.Tokens.validate(path + ".tokens"))
		}
		if cl.Sessions != c.Sessions {
			f.Join(cl.Sessions.validate(path + ".sessions"))
		}
		f.Join(validateURIs(path+".redirectURIs", cl.RedirectURIs), cl.APIServer.validate(path+".apiServer"),
			cl.Webhook.validate(path+".webhook", cl, callers))
	}
	for i, cl := range c.Clients {
		path := fmt.Sprintf("clients[%d]", i)
		take(cl.ID, path+".id")
		f.When(!names[cl.Cluster], path+".cluster", "there is no cluster %q", cl.Cluster)
		f.Join(c.validateProof(path, &cl), validateURIs(path+".redirectURIs", cl.RedirectURIs), validateURIs(path+".postLogoutRedirectURIs", cl.PostLogoutRedirectURIs))
	}
	return f.Err()
}

func (t TokenConfig) validate(path string) error {
	var f Faults
	f.When(t.IDTokenLifetime < time.Minute/6 || t.IDTokenLifetime > 24*time.Hour, path+".idTokenLifetime", "%s is not between 10s and 24h", t.IDTokenLifetime)
	f.When(t.MinLifetime < 0 || t.MinLifetime > t.IDTokenLifetime, path+".minLifetime", "%s must be positive and at most idTokenLifetime (%s)", t.MinLifetime, t.IDTokenLifetime)
	f.When(t.MaxSize < 1<<10, path+".maxSize", "must be at least 1KiB")
	f.When(t.SigningAlgorithm != "RS256" && t.SigningAlgorithm != "ES256", path+".signingAlgorithm", "%q is not RS256 or ES256", t.SigningAlgorithm)
	f.When(slices.Contains(reservedClaims, t.UsernameClaim) || t.UsernameClaim == t.GroupsClaim, path+".usernameClaim", "%q has a meaning of its own: choose another name", t.UsernameClaim)
	f.When(slices.Contains(reservedClaims, t.GroupsClaim) || t.GroupsClaim == "preferred_username", path+".groupsClaim", "%q has a meaning of its own: choose another name", t.GroupsClaim)
	return f.Err()
}

func (c SessionConfig) validate(path string) error {
	var f Faults
	f.When(c.IdleTimeout < time.Minute || c.IdleTimeout > c.MaxLifetime, path+".idleTimeout", "%s must be at least 1m and at most maxLifetime (%s)", c.IdleTimeout, c.MaxLifetime)
	f.When(c.MaxLifetime > 90*24*time.Hour, path+".maxLifetime", "%s is more than 90 days", c.MaxLifetime)
	f.When(c.RefreshGrace < 0 || c.RefreshGrace > 10*time.Minute, path+".refreshGrace", "%s is not between 0s and 10m", c.RefreshGrace)
	return f.Err()
}

func (c ThrottleConfig) validate(path string) error {
	var f Faults
	f.When(c.AccountTries < 0 || c.AccountTries > 100, path+".accountTries", "%d is not between 0 (from the directory) and 100", c.AccountTries)
	f.When(c.AddressTries < 3 || c.AddressTries > 10_000, path+".addressTries", "%d is not between 3 and 10000", c.AddressTries)
	f.When(c.Window < time.Minute || c.Window > 24*time.Hour, path+".window", "%s is not between 1m and 24h", c.Window)
	return f.Err()
}

// validateURIs accepts https, http on loopback, and private-use schemes with a dot
// (RFC 8252 section 7.1); never a fragment, user or wildcard.
func validateURIs(path string, uris []string) error {
	var f Faults
	for i, raw := range uris {
		u, err := url.Parse(raw)
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case err != nil || u.Scheme == "" || u.Fragment != "" || u.User != nil || strings.Contains(raw, "*") || strings.Contains(raw, "#"):
			f.Wrong(at, "must be an absolute URI without fragment, user or wildcard")
		case u.Scheme == "https" && u.Host != "", strings.Contains(u.Scheme, "."):
		case u.Scheme == "http" && slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, u.Hostname()):
		default:
			f.Wrong(at, "must be https; http is for localhost, 127.0.0.1 and [::1] alone")
		}
	}
	return f.Err()
}
