package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/testenv"
)

// groupsConfig is a configuration over a directory with the sample people.
func groupsConfig(t *testing.T) string {
	t.Helper()
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	return writeConfig(t, fmt.Sprintf(explained, ldap.TLSURL, ldap.CAFile, ldap.BindDN, ldap.BindPassword))
}

// doing runs commands on the store of a configuration, and wants their exit code.
func doing(t *testing.T, path string) func(want int, args ...string) string {
	return func(want int, args ...string) string {
		t.Helper()
		code, stdout, stderr := command(t, append(args, "--config", path)...)
		if code != want {
			t.Fatalf("%q: exit %d, want %d: %s%s", args, code, want, stdout, stderr)
		}
		return stdout + stderr
	}
}

// says fails unless text has all words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(squeeze(text), w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

func TestGroupsCommands(t *testing.T) {
	do := doing(t, groupsConfig(t))
	if got := do(exitDone, "groups", "list"); strings.Contains(got, "MEMBERS") || !strings.Contains(got, "`tabard groups create NAME` makes one") {
		t.Errorf("no groups: %s", got)
	}
	for _, args := range [][]string{{"show", "leads"}, {"edit", "leads", "--cluster", ""}, {"rename", "leads", "x"}, {"delete", "leads"}, {"add", "leads", "alice"}, {"add", "leads", "--local-group", "platform"}, {"remove", "leads", "alice"}, {"everyone", "leads"}} {
		if got := do(exitFailed, append([]string{"groups"}, args...)...); !strings.HasPrefix(got, "tabard: there is no group leads, or you may not see it") {
			t.Errorf("%q: %s", args, got)
		}
	}
	says(t, do(exitDone, "groups", "create", "leads"), "group leads created")
	says(t, do(exitFailed, "groups", "add", "leads", "--local-group", "platform"), "tabard: add platform: ")
	do(exitDone, "groups", "create", "platform", "--description", "runs it", "--owner", "alice", "--owner", "group:leads", "--owner", "corp:devs", "--cluster", "prod", "--label", "team=a", "--requestable")
	says(t, do(exitDone, "groups", "create", "plаtform"), `warning: "plаtform" looks like "platform"`)
	do(exitDone, "groups", "delete", "plаtform", "--yes")
	do(exitUsage, "groups", "create", "x", "--label", "team")

	do(exitDone, "groups", "add", "leads", "bob", "--until", "8h", "--reason", "on call")
	do(exitDone, "groups", "add", "platform", "alice", "--group", "corp:devs", "--local-group", "leads", "--from", "2999-01-01T00:00:00Z")
	do(exitUsage, "groups", "add", "platform")
	do(exitUsage, "groups", "add", "platform", "bob", "--from", "yesterday")
	says(t, do(exitFailed, "groups", "add", "leads", "--local-group", "platform"), "contains this group")

	says(t, do(exitDone, "groups", "list"), "leads 1 all", "platform 3 prod team=a runs it")
	says(t, do(exitDone, "groups", "list", "--member", "person:bob"), "leads")
	says(t, do(exitDone, "groups", "list", "--owner", "alice", "-l", "team", "--cluster", "prod", "-q", "RUNS"), "platform")
	if got := do(exitDone, "groups", "list", "--mine"); strings.Contains(got, "leads") {
		t.Errorf("the operator owns\n%s", got)
	}
	for _, args := range [][]string{{"--member", "bob"}, {"--member", "group:"}, {"-l", "=x"}} {
		do(exitUsage, append([]string{"groups", "list"}, args...)...)
		do(exitUsage, append([]string{"groups", "export"}, args...)...)
	}
	says(t, do(exitDone, "groups", "list", "-q", "nowhere"), "No group fits")
	if got := do(exitDone, "groups", "show", "platform"); strings.Contains(got, "Requestable") || strings.Contains(got, `"`) {
		t.Errorf("got\n%s", got)
	}
	says(t, do(exitDone, "groups", "show", "platform", "-o", "yaml"), "requestable: true")
	says(t, do(exitDone, "groups", "show", "leads"), "Group leads", "Contained in platform", "Clusters all", "bob person at once", "on call")
	says(t, do(exitDone, "groups", "show", "platform"), "Owners alice, leads, corp:devs", "Labels team=a", "corp:devs directory group 2999", "leads local group 2999", "by operator")
	var s shown
	if err := json.Unmarshal([]byte(do(exitDone, "groups", "show", "leads", "-o", "json")), &s); err != nil || s.Name != "leads" || len(s.Members) != 1 || s.Members[0].End == nil || !slices.Equal(s.ContainedIn, []string{"platform"}) {
		t.Errorf("%v, %+v", err, s)
	}
	says(t, do(exitDone, "groups", "everyone", "platform"), "bob person bob → leads → platform from 2999", "corp:devs directory group corp:devs → platform from 2999")
	do(exitUsage, "groups", "everyone", "platform", "--limit", "0")

	do(exitUsage, "groups", "edit", "platform")
	do(exitUsage, "groups", "edit", "platform", "--label", "team")
	do(exitDone, "groups", "edit", "platform", "--description", "new", "--add-owner", "bob", "--remove-owner", "ALICE", "--remove-owner", "group:leads", "--cluster", "", "--label", "team-", "--label", "tier=1", "--requestable=false")
	says(t, do(exitDone, "groups", "show", "platform"), "Description new", "Owners corp:devs, bob", "Clusters all", "Labels tier=1")
	says(t, do(exitFailed, "groups", "edit", "platform", "--remove-owner", "alice"), "alice is no owner of platform")
	says(t, do(exitDone, "groups", "rename", "platform", "run"), "group platform is run now")
	says(t, do(exitDone, "groups", "show", "run"), "Formerly platform (until")
	do(exitFailed, "groups", "show", "platform")

	do(exitDone, "groups", "remove", "run", "alice", "--local-group", "leads")
	says(t, do(exitFailed, "groups", "remove", "run", "alice"), "alice is not in run")
	do(exitDone, "groups", "add", "run", "--local-group", "leads")
	says(t, do(exitFailed, "groups", "delete", "leads"), "leads is a member of run", "say --yes")
	says(t, do(exitDone, "groups", "delete", "leads", "--yes"), "group leads deleted")
}

// What export writes apply leaves as it is, also after a rename, with an ended membership
// and with somebody who left the directory.
func TestExportApply(t *testing.T) {
	config := groupsConfig(t)
	do := doing(t, config)
	dir := t.TempDir()
	file := filepath.Join(dir, "groups.yaml")
	end, ended := time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC) // of bob's membership
	text := func(end time.Time) string {
		return fmt.Sprintf(`# whoever reads this
name: platform
description: "runs: it"
labels: {from: git, "tier": "1"}
owners: [{group: leads}, {person: alice}]
members:
- person: bob
  reason: joins
  end: %s
- directoryGroup: corp:devs
- group: leads
---
---
name: leads
labels: {from: git}
members:
- {person: corp.0191d9e0-93aa-7bbb-8ccc-123456789abc, name: gone, begin: 2026-01-01T00:00:00+01:00}
`, end.Format(time.RFC3339))
	}
	writeFile(t, file, text(end), 0o600)
	says(t, do(exitDiffer, "groups", "apply", file, "--dry-run"), "+ group platform", "+ group leads", "+ group platform: directory group corp:devs", "would be: 2 groups created, 4 members added")
	if got := do(exitDone, "groups", "list"); strings.Contains(got, "platform") {
		t.Errorf("a dry run wrote\n%s", got)
	}
	says(t, do(exitDone, "groups", "apply", file), "+ group platform: person bob", "\n2 groups created, 4 members added")
	passes(t, filepath.Join(filepath.Dir(config), "tabard.db"), end, ended)
	writeFile(t, file, text(ended), 0o600)
	exported := do(exitDone, "groups", "export")
	for range 2 {
		says(t, do(exitDone, "groups", "apply", dir, "--dry-run"), "nothing to change")
		writeFile(t, file, exported, 0o600)
		if again := do(exitDone, "groups", "export"); again != exported {
			t.Errorf("%s\nthen\n%s", exported, again)
		}
	}
	says(t, exported, "name: platform", "- person: corp.", "name: bob", "- group: leads", "description: 'runs: it'", "begin: 2025-12-31T23:00:00Z")
	if strings.Index(exported, "name: leads") > strings.Index(exported, "name: platform") {
		t.Errorf("no order in\n%s", exported)
	}

	writeFile(t, file, "name: leads\ndescription: new\nlabels: {from: git}\n", 0o600)
	says(t, do(exitDiffer, "groups", "apply", file, "--dry-run", "--prune", "from=git"), "~ group leads", "description: → new", "- group platform")
	says(t, do(exitFailed, "groups", "apply", file, "--prune", "from=git"), "say --yes")
	do(exitUsage, "groups", "apply", file, "--prune", "from")
	says(t, do(exitDone, "groups", "apply", file, "--prune", "from=git", "--yes"), "1 group changed, 1 group deleted")
	var done api.Applied
	if err := json.Unmarshal([]byte(do(exitDone, "groups", "apply", file, "-o", "json")), &done); err != nil || len(done.Changes) != 0 {
		t.Errorf("%v, %+v", err, done)
	}
	do(exitUsage, "groups", "export", "-o", "json")
	do(exitUsage, "groups", "apply")
	says(t, do(exitFailed, "groups", "apply", filepath.Join(dir, "none.yaml")), "does not exist")
	says(t, do(exitFailed, "groups", "apply", t.TempDir()), "holds no *.yaml")
	writeFile(t, file, "name: system:x\nmembers: [{person: nobody}]\n", 0o600)
	says(t, do(exitFailed, "groups", "apply", file), `names "nobody"`)
	writeFile(t, file, "name: corp:x\n---\nname: system:y\n", 0o600)
	says(t, do(exitFailed, "groups", "apply", file), "corp:", "system:")
}

// passes lets the one membership in the store that ends at end have ended, which no
// command would take.
func passes(t *testing.T, path string, end, ended time.Time) {
	t.Helper()
	st, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	stored := func(at time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro())) }
	entries, _, err := st.List(t.Context(), "groups/m/", "", store.MaxList)
	if err != nil {
		t.Fatal(err)
	}
	var ops []store.Op
	for _, e := range entries {
		if bytes.Contains(e.Value, stored(end)) {
			ops = append(ops, store.Op{Key: e.Key, Value: bytes.Replace(e.Value, stored(end), stored(ended), 1)})
		}
	}
	if _, err := st.Txn(t.Context(), nil, ops); err != nil || len(ops) != 1 {
		t.Fatal(len(ops), err)
	}
}

func TestGroupFileMistakes(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "name: x\nowner: [y]", []string{":2:1: owner: is not a key: use clusters, description, labels, members, name, owners, requestable"}},
		{"twice", "name: x\nname: y", []string{":2:1: name: is there twice: keep one"}},
		{"no name", "description: x", []string{":1:1: has no name: a document is one group"}},
		{"second document", "name: x\n---\nmembers: [{person: a, group: b}, {end: 5, person: c}]", []string{
			":3:11: members[0]: must name one person, one directoryGroup or one group",
			":3:40: members[1].end: must be a time with its zone, such as 2027-01-31T18:00:00Z", ":3:1: has no name: a document is one group"}},
		{"types", "name: 7\nrequestable: maybe\nclusters: prod\nlabels: [a]\nowners: [alice]\ndescription: [x]", []string{
			":1:7: name: must be text: put it in quotes", ":2:14: requestable: must be true or false", ":3:11: clusters: must be a list",
			":4:9: labels: must be a mapping of keys to values", ":5:10: owners[0]: must be a mapping of keys to values", ":6:14: description: must be a single value; put text that holds a colon in quotes"}},
		{"labels", "name: x\nlabels: {a: 1, b: true, a: \"x\"}", []string{
			":2:13: labels: must be text: put it in quotes", ":2:19: labels: must be text: put it in quotes", ":2:25: labels: has a label twice: keep one"}},
		{"a day alone", "name: x\nmembers: [{person: a, begin: 2027-01-31}]", []string{":2:30: members[0].begin: must be a time with its zone, such as 2027-01-31T18:00:00Z"}},
		{"ends first", "name: x\nmembers: [{person: a, begin: 2027-01-31T00:00:00Z, end: 2027-01-30T00:00:00Z}]", []string{":2:11: members[0]: ends before it begins"}},
		{"no value", "name: x\nmembers:", []string{":2:9: members: has no value: give it one or leave the key out"}},
		{"anchors", "name: &a x\ndescription: *a\n<<: {a: b}", []string{
			":1:7: name: anchors, aliases and tags are not read: write the value out", ":2:14: description: anchors, aliases and tags are not read: write the value out", ":3:1: has a key that cannot be one"}},
		{"tag", "name: !!str x", []string{":1:7: name: anchors, aliases and tags are not read: write the value out"}},
		{"list", "- name: x", []string{":1:1: must be a mapping of keys to values"}},
		{"syntax", "name: x\n---\nname: [", []string{":3: is not YAML: did not find expected node content"}},
		{"not text", "name: \xff", []string{": is not UTF-8 text"}},
		{"the same group", "name: x\n---\nname: y\n---\nname: x", []string{`:5:1: name: "x" is in FILE:1 already: a group is in one document`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "groups.yaml")
			writeFile(t, path, tc.text, 0o600)
			_, err := readGroupFiles([]string{path}, nil)
			got := strings.Split(strings.ReplaceAll(fmt.Sprint(err), path, "FILE"), "\n")
			for i := range tc.want {
				tc.want[i] = "FILE" + tc.want[i]
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// Mistakes in several files are all told; a group may not be in two of them.
func TestGroupFilesTogether(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), "name: x\n", 0o600)
	writeFile(t, filepath.Join(dir, "b.yml"), "nmae: z\n---\nname: x\n", 0o600)
	writeFile(t, filepath.Join(dir, "c.txt"), "no group", 0o600)
	if err := os.Mkdir(filepath.Join(dir, "d.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := readGroupFiles([]string{dir, "-"}, strings.NewReader("name: 1\n"))
	says(t, fmt.Sprint(err), "b.yml:1:1: nmae: is not a key", `b.yml:3:1: name: "x" is in `+dir+`/a.yaml:1 already`, "-:1:7: name: must be text")
	if strings.Contains(err.Error(), "c.txt") {
		t.Error(err)
	}
	groups, err := readGroupFiles([]string{filepath.Join(dir, "a.yaml"), "-"}, strings.NewReader("name: y\nmembers: []\n"))
	if err != nil || len(groups) != 2 || groups[0].Members != nil || groups[1].Members == nil {
		t.Errorf("%+v, %v", groups, err)
	}
}

// FuzzGroupFile: what is read without a mistake is written so that it is read again as
// the same, and mistakes never hold more of the file than names of keys and groups.
func FuzzGroupFile(f *testing.F) {
	for _, seed := range []string{
		"name: x", "name: x\n---\nname: y\nmembers: [{person: a, end: 2027-01-31T18:00:00.5+01:00, reason: 'a: b'}]",
		"name: \"\\u0007\"\nlabels: {a: b}\nowners: [{group: g}]\nclusters: [prod]\nrequestable: true", "{name: [", "&a {name: *a}", "name: !!binary x", "? [a]\n: b",
		"name: |\n  2027-01-31\n", "name: '~'\ndescription: 'null'", "members: []\nname: 'yes'",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := readGroups(b)
		if len(read.mistakes) > 0 {
			return
		}
		var out bytes.Buffer
		for _, g := range read.groups {
			if err := writeGroup(&out, g); err != nil {
				t.Fatal(err)
			}
		}
		again := readGroups(out.Bytes())
		if len(again.mistakes) > 0 || len(again.groups) != len(read.groups) {
			t.Fatalf("%q\nis written as\n%s\n%v", b, out.Bytes(), again.mistakes)
		}
		for i := range read.groups {
			if want, got := asJSON(t, read.groups[i]), asJSON(t, again.groups[i]); !reflect.DeepEqual(want, got) {
				t.Errorf("%s\nis read again as\n%s", want, got)
			}
		}
	})
}

func asJSON(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A store of the version before is read, after a copy of it was made.
func TestGroupsOfTheFirstFormat(t *testing.T) {
	config, path := offlineStore(t)
	fill(t, path,
		store.Op{Key: "group/platform", Value: []byte(`{"name":"platform","description":"runs it","created":"2026-01-02T03:04:05Z"}`)},
		store.Op{Key: "group/platform/person/corp.1", Value: []byte(`{"kind":"person","id":"corp.1","name":"bob","end":"2999-01-01T00:00:00Z","reason":"on call","grantedBy":"corp.2","grantedByName":"carol","grantedAt":"2026-01-02T03:04:05Z"}`)})
	do := doing(t, config)
	for range 2 {
		says(t, do(exitDone, "groups", "show", "platform"), "Description runs it", "bob person at once 2999-01-01", "carol on call corp.1")
	}
	if copies, err := filepath.Glob(path + ".format1-*.backup"); err != nil || len(copies) != 1 {
		t.Errorf("%q, %v", copies, err)
	}
}
