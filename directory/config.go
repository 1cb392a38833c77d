package directory

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Type says how a directory is read.
type Type string

// The types of directory.
const (
	TypeLDAP            Type = "ldap" // OpenLDAP, 389 Directory Server, FreeIPA
	TypeActiveDirectory Type = "activeDirectory"
)

// Nested says how groups in groups are found.
type Nested string

// The ways to find groups in groups.
const (
	NestedInChain     Nested = "inChain"     // Active Directory's matching rule; its default
	NestedTokenGroups Nested = "tokenGroups" // Active Directory's computed attribute
	NestedWalk        Nested = "walk"        // from group to group; the default elsewhere
	NestedNone        Nested = "none"        // only groups that name the person
)

// Config is one entry of `directories` in the configuration. What is left out
// of users and groups gets a default that fits the server.
type Config struct {
	Name              string   `yaml:"name"` // [a-z0-9-]+
	Type              Type     `yaml:"type"`
	URLs              []string `yaml:"urls"` // ldaps://host[:port] or ldap://…, tried in this order
	SRV               string   `yaml:"srv"`  // domain with SRV records, instead of urls
	CAFile            string   `yaml:"caFile"`
	StartTLS          bool     `yaml:"startTLS"`
	InsecurePlaintext bool     `yaml:"insecurePlaintext"`
	BindDN            string   `yaml:"bindDN"`
	BindPassword      string   `yaml:"bindPassword"`
	BindPasswordFile  string   `yaml:"bindPasswordFile"`
	Users             Users    `yaml:"users"`
	Groups            Groups   `yaml:"groups"`
	Outage            Outage   `yaml:"outage"`
}

// Users says which entries are people and how they are read.
type Users struct {
	BaseDN         string   `yaml:"baseDN"`         // the server's naming context when empty
	Filter         string   `yaml:"filter"`         // everybody who may sign in; a whole filter without placeholders
	Login          []string `yaml:"login"`          // attributes that what was typed may match
	Username       string   `yaml:"username"`       // attribute
	UsernamePrefix string   `yaml:"usernamePrefix"` // put before every username
	UsernameSuffix string   `yaml:"usernameSuffix"` // what every username must end in
	Email          string   `yaml:"email"`          // attribute
	Name           string   `yaml:"name"`           // attribute
	ID             string   `yaml:"id"`             // attribute with a UUID that never changes
}

// Groups says which entries are groups and how they are read.
type Groups struct {
	BaseDN   string   `yaml:"baseDN"` // the server's naming context when empty
	Filter   string   `yaml:"filter"`
	Name     string   `yaml:"name"`     // attribute
	Member   string   `yaml:"member"`   // attribute with DNs, or memberUid
	Nested   Nested   `yaml:"nested"`   // see Nested
	MaxDepth int      `yaml:"maxDepth"` // of walk: how many groups deep it looks, more are an error; 10 when zero
	Include  []string `yaml:"include"`  // globs of names without prefix; all when empty
	Exclude  []string `yaml:"exclude"`
	Prefix   string   `yaml:"prefix"` // "<name>:" when empty
	Rename   []Rename `yaml:"rename"` // the first that matches is used; after include and exclude
}

// Rename gives groups another name in tokens. Where that would give two groups
// one name, whoever is in one of them gets no groups but an error.
type Rename struct {
	From string `yaml:"from"` // RE2 expression that the whole name without prefix must match
	To   string `yaml:"to"`   // template: $1 or ${1} is the first group of From
}

// Outage says what happens while no host answers.
type Outage struct {
	// LastKnown is how long a refresh may go on from what was read last; zero
	// refuses at once.
	LastKnown time.Duration `yaml:"lastKnown"`
}

const (
	defaultMaxDepth = 10
	highestMaxDepth = 100
)

// GroupPrefix is what every group name of the directory begins with.
func (c *Config) GroupPrefix() string {
	if c.Groups.Prefix == "" {
		return c.Name + ":"
	}
	return c.Groups.Prefix
}

// faults collects what is wrong with a configuration below one yaml path.
type faults struct {
	path string
	errs []error
}

// when adds a fault at key if bad is true.
func (f *faults) when(bad bool, key, format string, args ...any) {
	if bad {
		f.errs = append(f.errs, fmt.Errorf("%s.%s: %s", f.path, key, fmt.Sprintf(format, args...)))
	}
}

// Validate returns every fault of c, one sentence each with the yaml path of
// the key, joined. It reads no file and asks no server.
func (c *Config) Validate() error {
	f := &faults{path: "directories[" + c.Name + "]"}
	f.when(!regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(c.Name), "name", "%q is not a name: use lower-case letters, digits and hyphens", c.Name)
	f.when(c.Type != TypeLDAP && c.Type != TypeActiveDirectory, "type", "%q is unknown: use %s or %s", c.Type, TypeLDAP, TypeActiveDirectory)
	c.validateConnection(f)
	c.validateUsers(f)
	c.validateGroups(f)
	f.when(c.Outage.LastKnown < 0, "outage.lastKnown", "must not be negative")
	return errors.Join(f.errs...)
}

var domainName = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*$`)

func (c *Config) validateConnection(f *faults) {
	f.when(c.SRV != "" && !domainName.MatchString(c.SRV), "srv", "%q is not a domain: write corp.example, without _ldaps._tcp before it", c.SRV)
	f.when(c.SRV != "" && len(c.URLs) > 0, "srv", "contradicts urls: leave one out")
	f.when(c.SRV == "" && len(c.URLs) == 0, "urls", "is missing: list at least one, such as ldaps://ldap.corp.example, or set srv")
	for i, u := range c.URLs {
		c.validateURL(f, fmt.Sprintf("urls[%d]", i), u)
	}
	f.when(c.StartTLS && c.InsecurePlaintext, "insecurePlaintext", "contradicts startTLS: leave one out")
	f.when(c.BindDN == "", "bindDN", "is missing: name the account that Tabard reads with")
	f.validDN("bindDN", c.BindDN)
	f.when(c.BindPassword == "" && c.BindPasswordFile == "", "bindPasswordFile", "is missing: set bindPasswordFile or bindPassword")
	f.when(c.BindPassword != "" && c.BindPasswordFile != "", "bindPasswordFile", "contradicts bindPassword: leave one out")
}

func (c *Config) validateURL(f *faults, key, raw string) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.Scheme != "ldap" && u.Scheme != "ldaps" {
		f.when(true, key, "is not an LDAP URL: write ldaps://host, ldaps://host:port or ldap://host")
		return
	}
	f.when(u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "", key, "must hold only a host and a port")
	f.when(u.Scheme == "ldap" && !c.StartTLS && !c.InsecurePlaintext, key, "would send passwords in the clear: use ldaps:// or startTLS: true (or insecurePlaintext: true, if you must)")
	f.when(u.Scheme == "ldaps" && c.StartTLS, key, "is LDAPS already, which contradicts startTLS: use ldap:// or leave startTLS out")
	f.when(u.Scheme == "ldaps" && c.InsecurePlaintext, key, "is LDAPS, which contradicts insecurePlaintext: leave that out")
}

func (c *Config) validateUsers(f *faults) {
	u := &c.Users
	f.validDN("users.baseDN", u.BaseDN)
	f.validFilter("users.filter", u.Filter)
	for i, a := range u.Login {
		f.when(a == "", fmt.Sprintf("users.login[%d]", i), "is empty: name an attribute")
		f.validAttribute(fmt.Sprintf("users.login[%d]", i), a)
	}
	f.validAttribute("users.username", u.Username)
	f.validAttribute("users.email", u.Email)
	f.validAttribute("users.name", u.Name)
	f.validAttribute("users.id", u.ID)
	f.validAffix("users.usernamePrefix", u.UsernamePrefix)
	f.validAffix("users.usernameSuffix", u.UsernameSuffix)
}

func (c *Config) validateGroups(f *faults) {
	g := &c.Groups
	f.validDN("groups.baseDN", g.BaseDN)
	f.validFilter("groups.filter", g.Filter)
	f.validAttribute("groups.name", g.Name)
	f.validAttribute("groups.member", g.Member)
	f.validAffix("groups.prefix", c.GroupPrefix())
	f.when(g.MaxDepth < 0 || g.MaxDepth > highestMaxDepth, "groups.maxDepth", "must be from 1 to %d", highestMaxDepth)
	switch g.Nested {
	case "", NestedWalk, NestedNone:
	case NestedInChain, NestedTokenGroups:
		f.when(c.Type == TypeLDAP, "groups.nested", "%s is known to Active Directory alone: use walk or none", g.Nested)
	default:
		f.when(true, "groups.nested", "%q is unknown: use inChain, tokenGroups, walk or none", g.Nested)
	}
	f.validGlobs("groups.include", g.Include)
	f.validGlobs("groups.exclude", g.Exclude)
	for i, r := range g.Rename {
		_, err := newRename(r)
		f.when(err != nil, fmt.Sprintf("groups.rename[%d].from", i), "is not a regular expression (RE2): %v", err)
		f.when(r.From == "", fmt.Sprintf("groups.rename[%d].from", i), "is empty: write an expression such as k8s-(.*)")
		f.when(clean(r.To) == "", fmt.Sprintf("groups.rename[%d].to", i), "is empty: write a template such as $1; groups.exclude hides groups")
	}
}

func (f *faults) validGlobs(key string, globs []string) {
	for i, glob := range globs {
		f.when(clean(glob) == "", fmt.Sprintf("%s[%d]", key, i), "is empty: write a pattern such as k8s-*")
	}
}

func (f *faults) validDN(key, dn string) {
	_, err := ldap.ParseDN(dn)
	f.when(err != nil, key, "is not a DN: %v", err)
}

func (f *faults) validFilter(key, filter string) {
	if filter != "" {
		_, err := ldap.CompileFilter(filter)
		f.when(err != nil, key, "is not an LDAP filter: %v", err)
	}
}

var attributeName = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9-]*|[0-9]+(\.[0-9]+)+)$`)

func (f *faults) validAttribute(key, name string) {
	f.when(name != "" && !attributeName.MatchString(name), key, "%q is not the name of an attribute", name)
}

// validAffix accepts what may stand before or after a name in a token.
func (f *faults) validAffix(key, s string) {
	f.when(reserved(s), key, `must not begin with "system:", which belongs to Kubernetes`)
	f.when(s != clean(s) || !printable(s), key, "must not hold control characters or space around it, and must be in Unicode form NFC")
}

// ValidateAll validates each of configs and what must hold between them: names
// differ, no group prefix begins another's, and no two people can share a
// username.
func ValidateAll(configs []Config) error {
	var errs []error
	for i := range configs {
		errs = append(errs, configs[i].Validate())
		for j := range configs[:i] {
			errs = append(errs, validatePair(&configs[j], &configs[i]))
		}
	}
	return errors.Join(errs...)
}

func validatePair(a, b *Config) error {
	f := &faults{path: "directories[" + b.Name + "]"}
	if a.Name == b.Name {
		f.when(true, "name", "is used twice")
		return errors.Join(f.errs...)
	}
	x, y := a.GroupPrefix(), b.GroupPrefix()
	f.when(strings.HasPrefix(x, y) || strings.HasPrefix(y, x), "groups.prefix",
		"%q and %q of directories[%s] begin alike: neither may begin the other", y, x, a.Name)
	f.when(!apartBySuffix(&a.Users, &b.Users) && !apartByPrefix(&a.Users, &b.Users), "users.usernamePrefix",
		"someone could have the same username as someone in directories[%s]: give each directory its own usernamePrefix (one may be empty), or each its own usernameSuffix", a.Name)
	return errors.Join(f.errs...)
}

// apartBySuffix says whether the suffixes alone keep usernames of a and b apart.
func apartBySuffix(a, b *Users) bool {
	x, y := strings.ToLower(a.UsernameSuffix), strings.ToLower(b.UsernameSuffix)
	return x != "" && y != "" && !strings.HasSuffix(x, y) && !strings.HasSuffix(y, x)
}

// apartByPrefix says whether the prefixes keep usernames of a and b apart.
// Where one is empty, that takes refusing usernames there that begin with the
// other: see New.
func apartByPrefix(a, b *Users) bool {
	x, y := strings.ToLower(a.UsernamePrefix), strings.ToLower(b.UsernamePrefix)
	if x == "" || y == "" {
		return x != y
	}
	return !strings.HasPrefix(x, y) && !strings.HasPrefix(y, x)
}
