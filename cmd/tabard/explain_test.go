package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/testenv"
)

// explained is the configuration of TestExplain: a directory that hides a group, and a
// cluster that lets few out.
const explained = `issuer: https://id.corp.example
listen: 127.0.0.1:0
store: {bolt: {path: tabard.db}}
admins: ["corp:cluster-operators"]
directories:
- name: corp
  type: ldap
  urls: [%q]
  caFile: %q
  bindDN: %q
  bindPassword: %q
  users: {baseDN: "ou=people,dc=example,dc=org"}
  groups: {baseDN: "ou=groups,dc=example,dc=org", exclude: ["*-old"]}
tokens: {minLifetime: 5m}
clusters:
- {name: prod, clientID: kubernetes, requireGroups: [platform], groups: {include: ["corp:all-*", "*"], exclude: [night]}}
`

const explainedGroups = `dn: cn=devs-old,ou=groups,dc=example,dc=org
objectClass: groupOfNames
member: uid=alice,ou=people,dc=example,dc=org
`

const explainedTable = `Person               alice                                                     Alice Adams
Entry                uid=alice,ou=people,dc=example,dc=org                     in directory corp
Subject              corp.UUID
Account              active
Token                prod                                                      about N of at most N bytes
Requires             one of platform
Claim                acr                                                       urn:tabard:acr:password
Claim                amr                                                       [pwd]
Claim                aud                                                       [kubernetes]
Claim                auth_time                                                 TIME
Claim                azp                                                       kubernetes
Claim                email                                                     alice@example.org
Claim                email_verified                                            true
Claim                exp                                                       TIME
Claim                groups                                                    3 values
Claim                iat                                                       TIME
Claim                iss                                                       https://id.corp.example
Claim                name                                                      Alice Adams
Claim                nbf                                                       TIME
Claim                preferred_username                                        alice
Claim                sub                                                       corp.UUID

GROUP IN THE TOKEN   WHY                                                       UNTIL
corp:all-devs        cn=devs,ou=groups,dc=example,dc=org > cn=all-devs,ou=groups,dc=example,dc=org with the directory
platform             corp:devs → platform, added by operator at TIME           no end
platform             alice → team → platform                                   no end
                       alice in team, added by operator at TIME: joins           no end
                       team in platform, added by operator at TIME               no end
platform             alice → platform, added by operator at TIME: on call      TIME
team                 alice → team, added by operator at TIME: joins            no end

LEFT OUT             RULE                                                      WHAT
corp:devs            not in clusters[prod].groups.include                      cn=devs,ou=groups,dc=example,dc=org
corp:devs-old        groups.exclude[0] *-old                                   cn=devs-old,ou=groups,dc=example,dc=org
late                 ends at TIME: less than tokens.minLifetime (5m0s) is left alice → late
night                clusters[prod].groups.exclude[0] night                    alice → night

QUERY                TIME                                                      ENTRIES BASE FILTER
`

// TestExplain asks, with the server stopped, about somebody with groups in groups,
// local groups that end, and filters.
func TestExplain(t *testing.T) {
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	ldap.AddLDIF(t, explainedGroups)
	path := writeConfig(t, fmt.Sprintf(explained, ldap.TLSURL, ldap.CAFile, ldap.BindDN, ldap.BindPassword))
	do := func(want int, args ...string) string {
		t.Helper()
		code, stdout, stderr := command(t, append(args, "--config", path)...)
		if code != want || strings.Contains(stdout+stderr, ldap.BindPassword) {
			t.Fatalf("%q: exit %d, want %d: %s%s", args, code, want, stdout, stderr)
		}
		return stdout + stderr
	}
	for _, group := range []string{"platform", "late", "night", "team"} {
		do(exitDone, "groups", "create", group)
	}
	do(exitDone, "groups", "add", "platform", "alice", "--until", "8h", "--reason", "on call")
	do(exitDone, "groups", "add", "platform", "--group", "corp:devs")
	do(exitDone, "groups", "add", "late", "alice", "--until", "4m")
	do(exitDone, "groups", "add", "night", "alice")
	do(exitDone, "groups", "add", "team", "alice", "--reason", "joins")
	do(exitDone, "groups", "add", "platform", "--local-group", "team")

	got := do(exitDone, "explain", "alice", "--cluster", "prod")
	table, queries, _ := strings.Cut(got, "QUERY")
	for pattern, word := range map[string]string{
		`[0-9a-f]{8}-[0-9a-f-]{27}`: "UUID", `\d{4}-\d\d-\d\dT[0-9:]+(Z|[+-]\d\d:\d\d)`: "TIME", `about \d+ of at most \d+`: "about N of at most N",
	} {
		table = regexp.MustCompile(pattern).ReplaceAllString(table, word)
	}
	want, _, _ := strings.Cut(explainedTable, "QUERY")
	if squeeze(table) != squeeze(want) {
		t.Errorf("got\n%s", got)
	}
	for _, filter := range []string{"(uid=alice)", "(member=uid=alice,ou=people,dc=example,dc=org)", "(member=cn=devs,ou=groups,dc=example,dc=org)", "nested groups: walk"} {
		if !strings.Contains(queries, filter) {
			t.Errorf("no %s in\n%s", filter, queries)
		}
	}
	var x api.Explanation
	if err := json.Unmarshal([]byte(do(exitDone, "explain", "alice", "-o", "json")), &x); err != nil || len(x.Groups) != 5 || x.Token.Cluster != "" {
		t.Errorf("%v: %+v", err, x)
	}
	if got := do(exitDone, "explain", "bob", "--cluster", "prod", "-o", "yaml"); !strings.Contains(got, "refused: 'no access: cluster prod requires one of the groups platform'") {
		t.Errorf("bob: %s", got)
	}
	if got := do(exitFailed, "explain", "nobody"); !strings.Contains(got, "No directory has a person of that name") {
		t.Errorf("nobody: %s", got)
	}
	if got := do(exitFailed, "explain", "alice", "--cluster", "x"); !strings.Contains(got, "no cluster of that name") {
		t.Errorf("no cluster: %s", got)
	}
	do(exitUsage, "explain")
	ldap.Stop()
	if got := do(exitFailed, "explain", "alice"); !strings.Contains(got, "Nobody can be looked up") && !strings.Contains(got, "Nobody's name") {
		t.Errorf("outage: %s", got)
	}
	var said []byte
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "audit", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no trail: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, b...)
	}
	if n := strings.Count(string(said), `"act":"explain","who":"operator"`); n != 6 {
		t.Errorf("%d questions in the trail:\n%s", n, said)
	}
}

// squeeze takes runs of spaces for one, so that a column may become wider.
func squeeze(s string) string { return regexp.MustCompile(` +`).ReplaceAllString(s, " ") }
