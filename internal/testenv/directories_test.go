package testenv

import (
	"os/exec"
	"strings"
	"testing"
)

func TestSlapd(t *testing.T) {
	s := StartSlapd(t)
	s.AddLDIF(t, SampleLDIF())
	read := func() string {
		cmd := exec.Command("ldapsearch", "-LLL", "-x", "-ZZ", "-H", s.URL, "-D", "uid=jörg (admin),ou=people,dc=example,dc=org", "-w", "pw-jörg (admin)", "-b", s.BaseDN, "(member=*)", "cn")
		cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := read(); strings.Count(out, "dn: ") != 4 {
		t.Errorf("groups:\n%s", out)
	}
	s.Stop()
	if s.ready(t.Context()) == nil {
		t.Error("answers after Stop")
	}
	s.Start(t)
	if out := read(); strings.Count(out, "dn: ") != 4 {
		t.Errorf("groups after a restart:\n%s", out)
	}
}

func TestSamba(t *testing.T) {
	s := StartSamba(t)
	s.AddLDIF(t, UserLDIF("CN=Jane,CN=Users,"+s.BaseDN, "jane", "Passw0rd-Jane1", "mail: jane@corp.example"))
	cmd := exec.Command("ldapsearch", "-LLL", "-x", "-H", s.TLSURL, "-D", s.BindDN, "-w", s.BindPassword, "-b", s.BaseDN, "(sAMAccountName=jane)", "mail")
	cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "mail: jane@corp.example") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDS389(t *testing.T) {
	s := StartDS389(t)
	s.AddLDIF(t, "dn: uid=alice,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: alice\ncn: a\nsn: a\nuserPassword: pw\n\n")
	cmd := exec.Command("ldapsearch", "-LLL", "-x", "-H", s.URL, "-D", s.BindDN, "-w", s.BindPassword, "-b", s.BaseDN, "(uid=alice)", "nsUniqueId", "userPassword")
	cmd.Env = append(cmd.Environ(), "LDAPTLS_CACERT="+s.CAFile)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "nsUniqueId: ") || strings.Contains(string(out), "userPassword") {
		t.Errorf("%v\n%s", err, out)
	}
}
