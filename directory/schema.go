package directory

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"
)

// rootAttributes of the server's root DSE tell the kinds of server apart.
var rootAttributes = []string{"objectClass", "vendorName", "ipaDomainLevel", "namingContexts", "defaultNamingContext", "configurationNamingContext"}

// schema is the configuration of users and groups with the server's defaults
// filled in. It is never changed once made.
type schema struct {
	users            Users
	groups           Groups
	attributes       []string // of a person
	names            []string // attributes of the display name, best first
	members          []string // attributes that hold a group's members
	include, exclude []string // cleaned globs
	renames          []rename
	// allSecurity: groups are all security groups of the domain, so a way
	// through a group that is not among them is no way.
	allSecurity bool
	// Active Directory's own naming contexts, to find its NetBIOS name.
	domain, configuration string
}

// newSchema fills what cfg leaves out with what fits the server with this root
// DSE. A key that is set always wins.
func newSchema(cfg *Config, root *ldap.Entry) (*schema, error) {
	s := &schema{
		users: cfg.Users, groups: cfg.Groups,
		domain:        root.GetEqualFoldAttributeValue("defaultNamingContext"),
		configuration: root.GetEqualFoldAttributeValue("configurationNamingContext"),
	}
	for _, p := range cfg.Groups.Include {
		s.include = append(s.include, clean(p))
	}
	for _, p := range cfg.Groups.Exclude {
		s.exclude = append(s.exclude, clean(p))
	}
	for _, r := range cfg.Groups.Rename {
		compiled, err := newRename(r)
		if err != nil {
			return nil, fmt.Errorf("groups.rename: %w", err)
		}
		s.renames = append(s.renames, compiled)
	}
	s.names = []string{"displayName", "cn"}
	if s.users.Name != "" {
		s.names = []string{s.users.Name}
	}
	base := namingContext(root)
	switch {
	case cfg.Type == TypeActiveDirectory:
		s.defaultActiveDirectory()
	case root.GetEqualFoldAttributeValue("ipaDomainLevel") != "" && base != "":
		base = "cn=accounts," + base // beside it is cn=compat, a copy of everybody
		s.defaultLDAP("ipaUniqueID")
	case strings.Contains(root.GetEqualFoldAttributeValue("vendorName"), "389"):
		s.defaultLDAP("nsUniqueId")
	default:
		s.defaultLDAP("entryUUID") // RFC 4530
	}
	setDefault(&s.users.BaseDN, base)
	setDefault(&s.groups.BaseDN, base)
	s.allSecurity = cfg.Type == TypeActiveDirectory && cfg.Groups.Filter == "" && foldDN(s.groups.BaseDN) == foldDN(s.domain)
	setDefault(&s.users.Email, "mail")
	s.attributes = append(s.attributes, s.users.ID, s.users.Username, s.users.Email)
	s.attributes = append(s.attributes, s.names...)
	slices.Sort(s.attributes)
	s.attributes = slices.Compact(s.attributes)
	s.groups.MaxDepth = cmp.Or(s.groups.MaxDepth, defaultMaxDepth)
	if s.users.BaseDN == "" || s.groups.BaseDN == "" {
		return nil, fmt.Errorf("the server does not name one naming context: set directories[%[1]s].users.baseDN and directories[%[1]s].groups.baseDN", cfg.Name)
	}
	return s, nil
}

func (s *schema) defaultActiveDirectory() {
	u, g := &s.users, &s.groups
	setDefault(&u.Filter, "(&(objectCategory=person)(objectClass=user))")
	if len(u.Login) == 0 {
		u.Login = []string{"sAMAccountName", "mail", "userPrincipalName"}
	}
	setDefault(&u.Username, "sAMAccountName")
	setDefault(&u.ID, "objectGUID")
	// Security groups, not distribution lists: bit 0x80000000 of groupType.
	setDefault(&g.Filter, "(&(objectCategory=group)"+securityGroups+")")
	setDefault(&g.Name, "sAMAccountName")
	setDefault(&g.Member, "member")
	s.members = []string{g.Member}
	s.attributes = []string{"userAccountControl", "msDS-User-Account-Control-Computed", "accountExpires", "pwdLastSet", "objectSid", "primaryGroupID", "memberOf"}
	g.Nested = cmp.Or(g.Nested, NestedInChain)
}

func (s *schema) defaultLDAP(id string) {
	u, g := &s.users, &s.groups
	setDefault(&u.Filter, "(|(objectClass=person)(objectClass=posixAccount))")
	if len(u.Login) == 0 {
		u.Login = []string{"uid", "mail"}
	}
	setDefault(&u.Username, "uid")
	setDefault(&u.ID, id)
	setDefault(&g.Filter, "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))")
	setDefault(&g.Name, "cn")
	s.members = []string{"member", "uniqueMember", "memberUid"}
	if g.Member != "" {
		s.members = []string{g.Member}
	}
	s.attributes = []string{"uid", "pwdAccountLockedTime", "pwdPolicySubentry", "pwdReset", "pwdChangedTime", "nsAccountLock", "accountUnlockTime", "passwordExpirationTime", "memberOf"}
	g.Nested = cmp.Or(g.Nested, NestedWalk)
}

func setDefault(s *string, value string) { *s = cmp.Or(*s, value) }

// namingContext is the suffix of the server's data, or empty when it has several
// and none is the default.
func namingContext(root *ldap.Entry) string {
	contexts := root.GetEqualFoldAttributeValues("namingContexts")
	if base := root.GetEqualFoldAttributeValue("defaultNamingContext"); base != "" || len(contexts) != 1 {
		return base
	}
	return contexts[0]
}

// hiddenBy names the rule of groups.include or groups.exclude that hides a
// group of this name, or is empty when none does.
func (s *schema) hiddenBy(name string) string {
	matches := func(pattern string) bool { return Glob(pattern, name) }
	if i := slices.IndexFunc(s.exclude, matches); i >= 0 {
		return fmt.Sprintf("groups.exclude[%d] %s", i, s.exclude[i])
	}
	if len(s.include) > 0 && !slices.ContainsFunc(s.include, matches) {
		return "not in groups.include"
	}
	return ""
}

// hides says whether a group may be hidden by configuration.
func (s *schema) hides() bool { return len(s.include)+len(s.exclude) > 0 }

// rename is one compiled rule of groups.rename.
type rename struct {
	from *regexp.Regexp // anchored
	to   string
}

func newRename(r Rename) (rename, error) {
	from, err := regexp.Compile("^(?:" + r.From + ")$")
	return rename{from, r.To}, err
}

// renamed is what groups.rename makes of name: the template of the first rule
// that matches the whole name, or name itself.
func (s *schema) renamed(name string) string {
	for _, r := range s.renames {
		if m := r.from.FindStringSubmatchIndex(name); m != nil {
			return clean(string(r.from.ExpandString(nil, r.to, name, m)))
		}
	}
	return name
}

// clean returns s in Unicode form NFC and without space around it.
func clean(s string) string { return strings.TrimSpace(norm.NFC.String(s)) }

// padded says whether s begins or ends in white space. To a directory such a name is
// another one than that without it, which clean makes of it.
func padded(s string) bool { return s != strings.TrimSpace(s) }

// printable says whether s is UTF-8 without control characters, among them
// those that turn the direction of the text around.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
	})
}

// reserved says whether s begins with what Kubernetes keeps for itself.
func reserved(s string) bool { return strings.HasPrefix(strings.ToLower(s), "system:") }
