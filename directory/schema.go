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
	include, exclude []*regexp.Regexp
	// Active Directory's own naming contexts, to find its NetBIOS name.
	domain, configuration string
}

// newSchema fills what cfg leaves out with what fits the server with this root
// DSE. A key that is set always wins.
func newSchema(cfg *Config, root *ldap.Entry) (*schema, error) {
	s := &schema{
		users: cfg.Users, groups: cfg.Groups,
		include: globs(cfg.Groups.Include), exclude: globs(cfg.Groups.Exclude),
		domain:        root.GetEqualFoldAttributeValue("defaultNamingContext"),
		configuration: root.GetEqualFoldAttributeValue("configurationNamingContext"),
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
	setDefault(&s.users.Email, "mail")
	s.attributes = append(s.attributes, s.users.ID, s.users.Username, s.users.Email)
	s.attributes = append(s.attributes, s.names...)
	slices.Sort(s.attributes)
	s.attributes = slices.Compact(s.attributes)
	s.groups.MaxDepth = cmp.Or(s.groups.MaxDepth, defaultMaxDepth)
	if s.groups.Nested == NestedNone {
		s.groups.MaxDepth = 1
	}
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
	setDefault(&g.Filter, "(&(objectCategory=group)(groupType:1.2.840.113556.1.4.803:=2147483648))")
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
	s.attributes = []string{"uid", "pwdAccountLockedTime", "pwdReset", "pwdChangedTime", "nsAccountLock"}
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

// visible says whether groups.include and groups.exclude let a group be seen.
func (s *schema) visible(name string) bool {
	return (len(s.include) == 0 || anyMatch(s.include, name)) && !anyMatch(s.exclude, name)
}

// hides says whether a group may be hidden by configuration.
func (s *schema) hides() bool { return len(s.include)+len(s.exclude) > 0 }

func anyMatch(globs []*regexp.Regexp, name string) bool {
	for _, g := range globs {
		if g.MatchString(name) {
			return true
		}
	}
	return false
}

// globs compiles patterns in which * stands for any characters and ? for one.
func globs(patterns []string) []*regexp.Regexp {
	var res []*regexp.Regexp
	for _, p := range patterns {
		quoted := regexp.QuoteMeta(clean(p))
		quoted = strings.ReplaceAll(strings.ReplaceAll(quoted, `\*`, `.*`), `\?`, `.`)
		res = append(res, regexp.MustCompile(`(?s)^`+quoted+`$`))
	}
	return res
}

// clean returns s in Unicode form NFC and without space around it.
func clean(s string) string { return strings.TrimSpace(norm.NFC.String(s)) }

// printable says whether s is UTF-8 without control characters, among them
// those that turn the direction of the text around.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
	})
}

// reserved says whether s begins with what Kubernetes keeps for itself.
func reserved(s string) bool { return strings.HasPrefix(strings.ToLower(s), "system:") }
