package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Slapd is an OpenLDAP server on 127.0.0.1 with the suffix dc=example,dc=org.
// It holds the suffix's own entry and the read account BindDN, nothing else;
// see SampleLDIF. Everybody who is bound reads everything but passwords. The
// overlay ppolicy is in use, without a default policy; see StartSlapd for others.
// Its certificate names 127.0.0.1, ::1 and localhost.
type Slapd struct{ LDAPServer }

const slapdConfig = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
moduleload memberof
TLSCACertificateFile %[2]s
TLSCertificateFile %[3]s
TLSCertificateKeyFile %[4]s
sizelimit 500
database mdb
maxsize 134217728
suffix %[5]s
rootdn %[6]s
rootpw %[7]s
directory %[1]s
dbnosync
index objectClass,uid,mail,entryUUID,member,uniqueMember,memberUid eq
overlay ppolicy
%[8]saccess to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
`

const slapdBase = `dn: %[1]s
objectClass: dcObject
objectClass: organization
o: Example

dn: %[2]s
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: %[3]s
`

// SampleLDIF is a small company for Slapd.AddLDIF.
//
// People, below ou=people, each with uid, cn, displayName, mail and the
// password pw-<uid>: alice, bob, carol, dave and "jörg (admin)". The mail is
// <uid>@example.org; jörg's is joerg@example.org.
//
// Groups, groupOfNames below ou=groups: devs (alice), all-devs (the group
// devs), ops (carol), cluster-operators (carol).
func SampleLDIF() string {
	var b strings.Builder
	for _, ou := range []string{"people", "groups"} {
		fmt.Fprintf(&b, "dn: ou=%s,dc=example,dc=org\nobjectClass: organizationalUnit\n\n", ou)
	}
	for _, p := range [][3]string{
		{"alice", "Alice Adams", "alice"}, {"bob", "Bob Brown", "bob"}, {"carol", "Carol Clark", "carol"},
		{"dave", "Dave Davis", "dave"}, {"jörg (admin)", "Jörg Jung", "joerg"},
	} {
		fmt.Fprintf(&b, "dn: uid=%[1]s,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: %[1]s\ncn: %[2]s\nsn: %[2]s\n"+
			"displayName: %[2]s\nmail: %[3]s@example.org\nuserPassword: pw-%[1]s\n\n", p[0], p[1], p[2])
	}
	for _, g := range [][2]string{
		{"devs", "uid=alice,ou=people"}, {"all-devs", "cn=devs,ou=groups"},
		{"ops", "uid=carol,ou=people"}, {"cluster-operators", "uid=carol,ou=people"},
	} {
		fmt.Fprintf(&b, "dn: cn=%s,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\nmember: %s,dc=example,dc=org\n\n", g[0], g[1])
	}
	return b.String()
}

// StartSlapd starts an OpenLDAP server that ends with the test. Config holds
// further lines for its database, such as "overlay memberof".
func StartSlapd(t testing.TB, config ...string) *Slapd {
	t.Helper()
	Need(t, "slapd", "slapadd", "ldapmodify", "ldapsearch")
	dir := t.TempDir()
	ca := NewCA(t, dir)
	s := &Slapd{LDAPServer{
		URL: fmt.Sprintf("ldap://127.0.0.1:%d", FreePort(t)), TLSURL: fmt.Sprintf("ldaps://127.0.0.1:%d", FreePort(t)),
		CAFile: ca.File, BaseDN: "dc=example,dc=org",
		AdminDN: "cn=admin,dc=example,dc=org", AdminPassword: "pw-admin",
		BindDN: "cn=tabard,dc=example,dc=org", BindPassword: "pw-tabard",
	}}
	db := filepath.Join(dir, "db")
	if err := os.Mkdir(db, 0o700); err != nil {
		t.Fatalf("create the folder of slapd's database: %v", err)
	}
	certFile, keyFile := ca.Issue(t, "localhost")
	file, base := filepath.Join(dir, "slapd.conf"), filepath.Join(dir, "base.ldif")
	extra := strings.Join(append(config, ""), "\n")
	writeFile(t, file, fmt.Sprintf(slapdConfig, db, s.CAFile, certFile, keyFile, s.BaseDN, s.AdminDN, s.AdminPassword, extra))
	writeFile(t, base, fmt.Sprintf(slapdBase, s.BaseDN, s.BindDN, s.BindPassword))
	if out, err := exec.Command(Path(t, "slapadd"), "-f", file, "-l", base).CombinedOutput(); err != nil {
		t.Fatalf("seed slapd: %v\n%s", err, out)
	}
	// slapd keeps a table for as many connections as it may open files.
	s.command = Command{
		Name: "slapd", Path: "/bin/sh",
		Args:  []string{"-c", `ulimit -n 1024; exec "$0" "$@"`, Path(t, "slapd"), "-f", file, "-h", s.URL + " " + s.TLSURL, "-d", "0"},
		Ready: s.ready,
	}
	s.Start(t)
	return s
}

func (s *Slapd) ready(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "ldapsearch", "-x", "-H", s.TLSURL, "-D", s.BindDN, "-w", s.BindPassword, "-b", s.BaseDN, "-s", "base", "1.1")
	return ldapTool(cmd, s.CAFile)
}
