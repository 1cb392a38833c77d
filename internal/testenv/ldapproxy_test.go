package testenv

import (
	"bufio"
	"bytes"
	"os/exec"
	"testing"
)

// TestLDAPProxyNamesWrites: a recording that would miss a write proves nothing.
func TestLDAPProxyNamesWrites(t *testing.T) {
	Need(t, "ldappasswd", "ldapdelete")
	s := StartSlapd(t)
	s.AddLDIF(t, SampleLDIF())
	p := StartLDAPProxy(t, s.TLSURL, s.CAFile, nil)
	const ldif = `dn: ou=new,dc=example,dc=org
changetype: add
objectClass: organizationalUnit

dn: ou=new,dc=example,dc=org
changetype: modify
add: description
description: x

dn: ou=new,dc=example,dc=org
changetype: modrdn
newrdn: ou=newer
deleteoldrdn: 1

dn: ou=newer,dc=example,dc=org
changetype: delete

`
	run := func(stdin, tool string, args ...string) {
		t.Helper()
		cmd := exec.Command(tool, append([]string{"-x", "-H", "ldap://" + p.Address, "-D", s.AdminDN, "-w", s.AdminPassword}, args...)...)
		cmd.Stdin = bytes.NewBufferString(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tool, err, out)
		}
	}
	run(ldif, "ldapmodify")
	run("", "ldappasswd", "-s", "new", "uid=bob,ou=people,"+s.BaseDN)
	got := p.Requests()
	for _, want := range []string{"bindRequest", "addRequest", "modifyRequest", "modDNRequest", "delRequest", "extendedReq 1.3.6.1.4.1.4203.1.11.1"} {
		if got[want] == 0 {
			t.Errorf("%s is not in %v", want, got)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x01})
	f.Add([]byte{0x30, 0x84, 0, 0, 0, 3, 0x02, 0x01, 0x01})
	f.Add([]byte{0x30, 0x88, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bufio.NewReader(bytes.NewReader(b)))
		if err == nil && !bytes.HasPrefix(b, m) {
			t.Errorf("%x of %x", m, b)
		}
		(&LDAPProxy{requests: map[string]int{}}).note(b)
	})
}
