package directory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func validConfig() Config {
	return Config{Name: "corp", Type: TypeLDAP, URLs: []string{"ldaps://ldap.corp.example"}, BindDN: "cn=tabard,dc=corp,dc=example", BindPassword: "secret"}
}

func TestConfigFromYAML(t *testing.T) {
	const text = `
name: corp
type: activeDirectory
urls: [ldap://dc1.corp.example:3268, "ldap://[::1]"]
caFile: corp-ca.pem
startTLS: true
insecurePlaintext: false
bindDN: CN=tabard,OU=Service,DC=corp,DC=example
bindPasswordFile: bind-password
users:  {baseDN: "DC=corp,DC=example", filter: (mail=*), login: [sAMAccountName, mail, userPrincipalName], username: sAMAccountName, usernamePrefix: "", usernameSuffix: "", email: mail, name: displayName, id: objectGUID}
groups: {baseDN: "DC=corp,DC=example", filter: (cn=*), name: sAMAccountName, member: member, nested: inChain, maxDepth: 10, include: ["k8s-*"], exclude: [x], prefix: "corp:"}
outage: {lastKnown: 15m}
`
	var c Config
	strict := yaml.NewDecoder(strings.NewReader(text))
	strict.KnownFields(true)
	if err := strict.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Outage.LastKnown != 15*time.Minute || c.Users.ID != "objectGUID" || c.Groups.MaxDepth != 10 || c.Groups.Prefix != "corp:" || !c.StartTLS {
		t.Errorf("decoded %+v", c)
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // the error begins so; valid when empty
	}{
		"shortest":           {func(*Config) {}, ""},
		"AD":                 {func(c *Config) { c.Type, c.Groups.Nested = TypeActiveDirectory, NestedTokenGroups }, ""},
		"StartTLS":           {func(c *Config) { c.URLs, c.StartTLS = []string{"ldap://x:1389"}, true }, ""},
		"plaintext":          {func(c *Config) { c.URLs, c.InsecurePlaintext = []string{"ldap://x/"}, true }, ""},
		"no name":            {func(c *Config) { c.Name = "" }, `directories[].name: "" is not`},
		"name":               {func(c *Config) { c.Name = "Corp" }, `directories[Corp].name: "Corp" is not`},
		"no type":            {func(c *Config) { c.Type = "" }, `directories[corp].type: "" is unknown`},
		"no URL":             {func(c *Config) { c.URLs = nil }, "directories[corp].urls: is missing"},
		"srv and urls":       {func(c *Config) { c.SRV = "corp.example" }, "directories[corp].srv: contradicts urls"},
		"srv, a record":      {func(c *Config) { c.URLs, c.SRV = nil, "_ldaps._tcp.corp.example" }, "directories[corp].srv: \"_ldaps"},
		"URL":                {func(c *Config) { c.URLs[0] = "ldap.corp.example:636" }, "directories[corp].urls[0]: is not an LDAP URL"},
		"URL scheme":         {func(c *Config) { c.URLs[0] = "https://x" }, "directories[corp].urls[0]: is not an LDAP URL"},
		"URL path":           {func(c *Config) { c.URLs[0] = "ldaps://x/dc=corp" }, "directories[corp].urls[0]: must hold only"},
		"URL user":           {func(c *Config) { c.URLs[0] = "ldaps://u:secret@x" }, "directories[corp].urls[0]: must hold only"},
		"plaintext unnamed":  {func(c *Config) { c.URLs = append(c.URLs, "ldap://x") }, "directories[corp].urls[1]: would send passwords in the clear"},
		"StartTLS on LDAPS":  {func(c *Config) { c.StartTLS = true }, "directories[corp].urls[0]: is LDAPS already"},
		"plaintext on LDAPS": {func(c *Config) { c.InsecurePlaintext = true }, "directories[corp].urls[0]: is LDAPS, which"},
		"both ways": {
			func(c *Config) { c.URLs, c.StartTLS, c.InsecurePlaintext = []string{"ldap://x"}, true, true }, "directories[corp].insecurePlaintext: contradicts",
		},
		"no bindDN":         {func(c *Config) { c.BindDN = "" }, "directories[corp].bindDN: is missing"},
		"bindDN":            {func(c *Config) { c.BindDN = "tabard" }, "directories[corp].bindDN: is not a DN"},
		"no password":       {func(c *Config) { c.BindPassword = "" }, "directories[corp].bindPasswordFile: is missing"},
		"two passwords":     {func(c *Config) { c.BindPasswordFile = "x" }, "directories[corp].bindPasswordFile: contradicts"},
		"users.baseDN":      {func(c *Config) { c.Users.BaseDN = "people" }, "directories[corp].users.baseDN: is not a DN"},
		"users.filter":      {func(c *Config) { c.Users.Filter = "mail=*" }, "directories[corp].users.filter: is not an LDAP filter"},
		"two filters":       {func(c *Config) { c.Users.Filter = "(mail=*)(cn=*)" }, "directories[corp].users.filter: is not an LDAP filter"},
		"half a filter":     {func(c *Config) { c.Groups.Filter = "(|(mail=*)" }, "directories[corp].groups.filter: is not an LDAP filter"},
		"users.login":       {func(c *Config) { c.Users.Login = []string{"uid", ""} }, "directories[corp].users.login[1]: is empty"},
		"login attribute":   {func(c *Config) { c.Users.Login = []string{"uid=*)(x"} }, "directories[corp].users.login[0]: \"uid=*)(x\" is not the name"},
		"username":          {func(c *Config) { c.Users.Username = "u id" }, "directories[corp].users.username: "},
		"email":             {func(c *Config) { c.Users.Email = "1" }, "directories[corp].users.email: "},
		"display name":      {func(c *Config) { c.Users.Name = "-" }, "directories[corp].users.name: "},
		"id":                {func(c *Config) { c.Users.ID = "()" }, "directories[corp].users.id: "},
		"OID":               {func(c *Config) { c.Users.ID = "1.3.6.1.1.16.4" }, ""},
		"system: prefix":    {func(c *Config) { c.Users.UsernamePrefix = "System:" }, "directories[corp].users.usernamePrefix: must not begin"},
		"suffix":            {func(c *Config) { c.Users.UsernameSuffix = "@x\n" }, "directories[corp].users.usernameSuffix: must not hold"},
		"group name":        {func(c *Config) { c.Groups.Name = "c,n" }, "directories[corp].groups.name: "},
		"member":            {func(c *Config) { c.Groups.Member = "member:" }, "directories[corp].groups.member: "},
		"groups.baseDN":     {func(c *Config) { c.Groups.BaseDN = "x=" + `\` }, "directories[corp].groups.baseDN: is not a DN"},
		"prefix":            {func(c *Config) { c.Groups.Prefix = "system:x:" }, "directories[corp].groups.prefix: must not begin"},
		"default prefix":    {func(c *Config) { c.Name = "system" }, "directories[system].groups.prefix: must not begin"},
		"depth":             {func(c *Config) { c.Groups.MaxDepth = -1 }, "directories[corp].groups.maxDepth: must be"},
		"nested":            {func(c *Config) { c.Groups.Nested = "deep" }, `directories[corp].groups.nested: "deep" is unknown`},
		"AD's way on LDAP":  {func(c *Config) { c.Groups.Nested = NestedInChain }, "directories[corp].groups.nested: inChain is known to"},
		"include":           {func(c *Config) { c.Groups.Include = []string{"x", " "} }, "directories[corp].groups.include[1]: is empty"},
		"exclude":           {func(c *Config) { c.Groups.Exclude = []string{""} }, "directories[corp].groups.exclude[0]: is empty"},
		"outage":            {func(c *Config) { c.Outage.LastKnown = -1 }, "directories[corp].outage.lastKnown: must not"},
		"all of it at once": {func(c *Config) { *c = Config{Name: "x"} }, "directories[x].type: \"\" is unknown: use ldap or activeDirectory\ndirectories[x].urls: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			c := validConfig()
			tc.change(&c)
			err := c.Validate()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(err.Error(), "secret") {
				t.Fatalf("%v, want %s", err, tc.want)
			}
			if _, err := New(c); err == nil {
				t.Error("New takes it")
			}
		})
	}
}

func TestValidateAll(t *testing.T) {
	type dir struct{ name, userPrefix, userSuffix, groupPrefix string }
	for name, tc := range map[string]struct {
		dirs []dir
		want string
	}{
		"one":                    {[]dir{{name: "a"}}, ""},
		"same name":              {[]dir{{name: "a"}, {name: "a"}}, "directories[a].name: is used twice"},
		"open":                   {[]dir{{name: "a"}, {name: "b"}}, "directories[b].users.usernamePrefix: someone could"},
		"one prefix":             {[]dir{{name: "a"}, {name: "b", userPrefix: "b-"}}, ""},
		"two prefixes":           {[]dir{{name: "a", userPrefix: "a-"}, {name: "b", userPrefix: "b-"}}, ""},
		"same prefix":            {[]dir{{name: "a", userPrefix: "x-"}, {name: "b", userPrefix: "X-"}}, "directories[b].users.usernamePrefix: "},
		"prefix in prefix":       {[]dir{{name: "a", userPrefix: "x-"}, {name: "b", userPrefix: "x-y-"}}, "directories[b].users.usernamePrefix: "},
		"two empty of three":     {[]dir{{name: "a"}, {name: "b", userPrefix: "b-"}, {name: "c"}}, "directories[c].users.usernamePrefix: "},
		"suffixes":               {[]dir{{name: "a", userSuffix: "@a"}, {name: "b", userSuffix: "@b"}}, ""},
		"suffix in suffix":       {[]dir{{name: "a", userSuffix: ".corp"}, {name: "b", userSuffix: "@eu.Corp"}}, "directories[b].users.usernamePrefix: "},
		"one suffix":             {[]dir{{name: "a", userSuffix: "@a"}, {name: "b"}}, "directories[b].users.usernamePrefix: "},
		"group prefix in prefix": {[]dir{{name: "a", groupPrefix: "x:"}, {name: "b", userPrefix: "b-", groupPrefix: "x:y:"}}, "directories[b].groups.prefix: "},
		"default and given":      {[]dir{{name: "a"}, {name: "b", userPrefix: "b-", groupPrefix: "a:"}}, "directories[b].groups.prefix: "},
	} {
		t.Run(name, func(t *testing.T) {
			var configs []Config
			for _, d := range tc.dirs {
				c := validConfig()
				c.Name, c.Users.UsernamePrefix, c.Users.UsernameSuffix, c.Groups.Prefix = d.name, d.userPrefix, d.userSuffix, d.groupPrefix
				configs = append(configs, c)
			}
			err := ValidateAll(configs)
			if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

func TestFilesOfConfig(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := empty + "-not"
	for want, change := range map[string]func(*Config){
		"directories[corp].caFile: open ":                      func(c *Config) { c.CAFile = missing },
		"directories[corp].caFile: " + empty + " holds no":     func(c *Config) { c.CAFile = empty },
		"directories[corp].bindPasswordFile: open ":            func(c *Config) { c.BindPassword, c.BindPasswordFile = "", missing },
		"directories[corp].bindPasswordFile: " + empty + " is": func(c *Config) { c.BindPassword, c.BindPasswordFile = "", empty },
	} {
		if _, err := New(with(validConfig(), change)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
