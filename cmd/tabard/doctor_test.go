package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/testenv"
)

// TestDoctorDirectory breaks one thing after another between Tabard and its directory.
func TestDoctorDirectory(t *testing.T) {
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	other := testenv.NewCA(t, t.TempDir())
	closed := fmt.Sprintf("ldaps://127.0.0.1:%d", testenv.FreePort(t))
	for _, tc := range []struct {
		name, urls, caFile, password, more string
		fails                              int // lines that say fail
		want                               []string
	}{
		{"all is well", ldap.TLSURL, ldap.CAFile, ldap.BindPassword, "", 0, []string{
			": bindDN is let in and reads the base DNs", "ok: people: 5", "ok: groups: 4", "ok: find a person: ", "ok: find groups: ", "locks accounts",
			"ok: every group has a name of its own", "ok: groups of alice by walk, recommended, as groups.nested has it: 2, with "}},
		{"two groups of one name", ldap.TLSURL, ldap.CAFile, ldap.BindPassword, `groups: {rename: [{from: "all-(.*)", to: "$1"}]}`, 1, []string{
			"warn: 1 name is that of several groups", "corp:devs", "fail: groups of alice by walk"}},
		{"one host is down", closed + ", " + ldap.TLSURL, ldap.CAFile, ldap.BindPassword, "", 1, []string{
			"fail: " + closed + ": no connection: check the port", "ok: " + ldap.TLSURL + ": bindDN is let in", "ok: people: 5"}},
		{"another CA", ldap.TLSURL, other.File, ldap.BindPassword, "", 1, []string{"its certificate is not signed by what caFile holds"}},
		{"another password", ldap.TLSURL + ", " + ldap.TLSURL, ldap.CAFile, "wrong-4711", "", 1, []string{
			"were refused: put bindDN and bindPasswordFile right", "warn: " + ldap.TLSURL + ": bindDN was not tried"}},
		{"no such base", ldap.TLSURL, ldap.CAFile, ldap.BindPassword, `groups: {baseDN: "ou=none,dc=example,dc=org"}`, 1, []string{
			"groups.baseDN (ou=none,dc=example,dc=org) cannot be read"}},
		{"no groups", ldap.TLSURL, ldap.CAFile, ldap.BindPassword, `groups: {filter: "(objectClass=dNSDomain)"}`, 0, []string{
			"warn: groups: none below dc=example,dc=org match (objectClass=dNSDomain)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := writeConfig(t, fmt.Sprintf(`issuer: https://127.0.0.1:1
listen: 127.0.0.1:0
store: {bolt: {path: tabard.db}}
directories:
- name: corp
  type: ldap
  urls: [%s]
  caFile: %q
  bindDN: %q
  bindPassword: %q
  %s
`, tc.urls, tc.caFile, ldap.BindDN, tc.password, tc.more))
			code, stdout, stderr := command(t, "doctor", "--config", path, "--user", "alice", "-o", "json")
			var report struct{ Checks []finding }
			if err := json.Unmarshal([]byte(stdout), &report); err != nil {
				t.Fatalf("%v: %s%s", err, stdout, stderr)
			}
			got := check(report.Checks, "directory corp")
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
			if n := strings.Count("\n"+got, "\nfail: "); n != tc.fails || (code == exitFailed) != (n > 0) {
				t.Errorf("exit %d, %d fail:\n%s", code, n, stdout)
			}
			if strings.Contains(stdout+stderr, tc.password) {
				t.Error("the doctor tells the password")
			}
			if found := !strings.Contains(stdout, "nobody signs in as alice"); found != strings.Contains(got, "groups of alice") {
				t.Errorf("alice: %s", stdout)
			}
		})
	}
}

func TestDoctorJudgesStrategies(t *testing.T) {
	slow := directory.Measurement{Strategy: directory.NestedWalk, Groups: 2}
	for _, tc := range []struct {
		other directory.Measurement
		want  bool
	}{
		{directory.Measurement{Groups: 2}, false}, {directory.Measurement{Groups: 3}, true}, {directory.Measurement{Error: "no right"}, false},
	} {
		if got := lacks(slow, []directory.Measurement{slow, tc.other}); got != tc.want {
			t.Errorf("beside %+v: %t", tc.other, got)
		}
	}
	for _, tc := range []struct {
		cfg  directory.Config
		want bool
	}{
		{directory.Config{Type: directory.TypeActiveDirectory}, false},
		{directory.Config{Type: directory.TypeActiveDirectory, Groups: directory.Groups{Name: "CN"}}, true},
		{directory.Config{Type: directory.TypeActiveDirectory, Groups: directory.Groups{Rename: []directory.Rename{{From: "a", To: "b"}}}}, true},
		{directory.Config{Type: directory.TypeLDAP}, true},
		{directory.Config{Type: directory.TypeLDAP, Groups: directory.Groups{Name: "gidNumber"}}, false},
	} {
		if got := takesNames(tc.cfg); got != tc.want {
			t.Errorf("%+v: %t", tc.cfg, got)
		}
	}
}
