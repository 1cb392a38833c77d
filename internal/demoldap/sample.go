package demoldap

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Names in the sample directory.
const (
	BaseDN   = "dc=corp,dc=example"
	PeopleDN = "ou=people," + BaseDN
	GroupsDN = "ou=groups," + BaseDN
	// BindDN is a read account; its password is Config.BindPassword.
	BindDN = "cn=tabard," + BaseDN
)

// Person is somebody in the sample directory.
type Person struct {
	UID  string
	Name string
	// Password is the UID: it is printed for everybody to type.
	Password string
	// Groups are the person's, those through other groups included, sorted.
	Groups []string
}

// sampleGroup holds people by uid and groups by their name with an @.
type sampleGroup struct {
	name, description string
	members           []string
}

func samplePeople() []Person {
	return []Person{
		{UID: "alice", Name: "Alice Adams"}, {UID: "bob", Name: "Bob Brown"}, {UID: "carol", Name: "Carol Clark"},
		{UID: "dave", Name: "Dave Davis"}, {UID: "erin", Name: "Erin Evans"}, {UID: "joerg", Name: "Jörg Jung"},
	}
}

func sampleGroups() []sampleGroup {
	return []sampleGroup{
		{"devs", "Writes the shop", []string{"alice", "erin"}},
		{"all-devs", "Everybody who writes code", []string{"@devs", "dave"}},
		{"support", "Answers the phone", []string{"bob", "joerg"}},
		{"cluster-operators", "Runs the clusters", []string{"carol"}},
	}
}

// People lists who is in the sample directory.
func People() []Person {
	people := samplePeople()
	for i := range people {
		people[i].Password = people[i].UID
		people[i].Groups = groupsOf(people[i].UID)
	}
	return people
}

// groupsOf lists the groups that member is in, through others too.
func groupsOf(member string) []string {
	var names []string
	for _, g := range sampleGroups() {
		if slices.Contains(g.members, member) {
			names = append(append(names, g.name), groupsOf("@"+g.name)...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// entry is one entry.
type entry struct {
	dn          string
	password    string // never shown
	attributes  []attribute
	operational []attribute // shown to those who ask for them by name
}

type attribute struct {
	name   string
	values []string
}

// values are those of an attribute, operational or not.
func (e *entry) values(name string) []string {
	for _, a := range slices.Concat(e.attributes, e.operational) {
		if strings.EqualFold(a.name, name) {
			return a.values
		}
	}
	return nil
}

// sampleEntries are all entries, the root DSE apart.
func sampleEntries(bindPassword string) []*entry {
	all := []*entry{
		newEntry(BaseDN, "", "objectClass", "dcObject", "objectClass", "organization", "dc", "corp", "o", "Corp"),
		newEntry(PeopleDN, "", "objectClass", "organizationalUnit", "ou", "people"),
		newEntry(GroupsDN, "", "objectClass", "organizationalUnit", "ou", "groups"),
		newEntry(BindDN, bindPassword, "objectClass", "organizationalRole", "cn", "tabard"),
	}
	for _, p := range People() {
		sn := p.Name[strings.LastIndexByte(p.Name, ' ')+1:]
		all = append(all, newEntry("uid="+p.UID+","+PeopleDN, p.Password, "objectClass", "person", "objectClass", "inetOrgPerson",
			"uid", p.UID, "cn", p.Name, "sn", sn, "displayName", p.Name, "mail", p.UID+"@corp.example"))
	}
	for _, g := range sampleGroups() {
		pairs := []string{"objectClass", "groupOfNames", "cn", g.name, "description", g.description}
		for _, m := range g.members {
			dn := "uid=" + m + "," + PeopleDN
			if group, ok := strings.CutPrefix(m, "@"); ok {
				dn = "cn=" + group + "," + GroupsDN
			}
			pairs = append(pairs, "member", dn)
		}
		all = append(all, newEntry("cn="+g.name+","+GroupsDN, "", pairs...))
	}
	return all
}

// rootDSE is what a client reads to learn what server this is (RFC 4512 section 5.1).
func rootDSE() *entry {
	return &entry{attributes: []attribute{{"objectClass", []string{"top"}}, {"namingContexts", []string{BaseDN}},
		{"supportedLDAPVersion", []string{"3"}}, {"vendorName", []string{"Tabard demo"}}}}
}

// newEntry makes an entry of pairs of attribute and value. Its entryUUID
// (RFC 4530) hangs on the DN alone, so that it is the same after a restart.
func newEntry(dn, password string, pairs ...string) *entry {
	e := &entry{dn: dn, password: password}
	for i := 0; i < len(pairs); i += 2 {
		if n := len(e.attributes) - 1; n >= 0 && e.attributes[n].name == pairs[i] {
			e.attributes[n].values = append(e.attributes[n].values, pairs[i+1])
			continue
		}
		e.attributes = append(e.attributes, attribute{pairs[i], []string{pairs[i+1]}})
	}
	h := sha256.Sum256([]byte(dn))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8, RFC 9562
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
	e.operational = []attribute{{"entryUUID", []string{uuid}}, {"entryDN", []string{dn}}} // RFC 5020
	return e
}

// fold returns a form of a value that is equal for values that match: letter case
// does not count, and in DNs neither does space around commas.
func fold(attribute, value string) string {
	if strings.EqualFold(attribute, "member") || strings.EqualFold(attribute, "entryDN") {
		return foldDN(value)
	}
	return strings.ToLower(value)
}

// foldDN is enough for the sample's DNs, which hold no escapes.
func foldDN(dn string) string {
	rdns := strings.Split(strings.ToLower(dn), ",")
	for i := range rdns {
		rdns[i] = strings.TrimSpace(rdns[i])
	}
	return strings.Join(rdns, ",")
}
