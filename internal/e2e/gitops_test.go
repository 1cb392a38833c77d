package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// gitops are local groups as a repository has them: a team within a group that the API
// server knows, led by somebody who administers nothing.
const gitops = `name: platform
description: runs the clusters
labels: {managed-by: git}
members:
  - group: team-blue
---
name: team-blue
labels: {managed-by: git}
owners:
  - person: alice
members:
  - {person: bob, reason: on loan%s}
`

// TestGroupsFromFiles follows local groups from files to what a real API server allows:
// nested, for a while, by an owner, under another name, and from another store.
func TestGroupsFromFiles(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: "{idTokenLifetime: 15s, minLifetime: 2s}"})
	k := startCluster(t, s, "kubernetes")
	eventually(t, 2*time.Minute, "the API server knows the issuer", func() error { return pods(t, k, s.login("kubernetes", "alice", "pw-alice").IDToken) })
	carol, alice := s.signIn("carol", "pw-carol"), s.signIn("alice", "pw-alice")
	w := &visitors{s: s, k: k, t: t, held: map[string]tokens{}}
	for _, who := range []string{"bob", "dave"} {
		w.held[who] = s.login("kubernetes", who, "pw-"+who)
		w.mustNot(who)
	}

	testApply(t, carol, w)
	if _, err := s.run(alice.home, "", "groups", "add", "platform", "dave"); err == nil {
		t.Error("alice owns team-blue and changed platform")
	}
	alice.must("groups", "add", "team-blue", "dave", "--reason", "pairing")
	w.may("dave")
	if out := carol.must("explain", "dave", "--cluster", "prod"); !strings.Contains(out, "added by alice") || !strings.Contains(out, "pairing") {
		t.Errorf("explain does not say who let dave in: %s", out)
	}
	eventually(t, 3*time.Minute, "bob's time in the team ends", func() error {
		return wantForbidden("bob", w.pods("bob"))
	})
	if out := carol.must("explain", "bob", "--cluster", "prod"); !regexp.MustCompile(`(?m)^platform +end(s|ed) at .* bob → team-blue → platform$`).MatchString(out) {
		t.Errorf("explain does not say what became of bob's membership: %s", out)
	}

	carol.must("groups", "rename", "platform", "platform-engineering")
	w.mustNot("dave") // the RoleBinding has the old name
	carol.must("groups", "rename", "platform-engineering", "platform")
	w.may("dave")
	testMoveToEtcd(t, carol, w)
}

// visitors are people with tokens who try the API server.
type visitors struct {
	t    *testing.T
	s    *server
	k    *testenv.KubeAPIServer
	held map[string]tokens
}

// pods refreshes and lists pods.
func (w *visitors) pods(who string) error {
	w.t.Helper()
	held := w.held[who]
	defer func() { w.held[who] = held }()
	return w.s.podsOf(w.t, w.k, &held)
}

func (w *visitors) may(who string) {
	w.t.Helper()
	if err := w.pods(who); err != nil {
		w.t.Errorf("%s: %v", who, err)
	}
}

func (w *visitors) mustNot(who string) {
	w.t.Helper()
	if err := wantForbidden(who, w.pods(who)); err != nil {
		w.t.Error(err)
	}
}

// testApply applies a folder, first to see what it would do, and again when it lets bob
// stay for some seconds more.
func testApply(t *testing.T, carol admin, w *visitors) {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "groups")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	say := func(end string) {
		for i, doc := range strings.Split(fmt.Sprintf(gitops, end), "---\n") {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%d.yaml", i)), []byte(doc), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	say("")
	apply := []string{"groups", "apply", folder, "--prune", "managed-by=git"}
	out, err := carol.run(carol.home, "", append(apply, "--dry-run")...)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(out, "+") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	if list := carol.must("groups", "list"); strings.Contains(list, "platform") {
		t.Errorf("the dry run has made groups:\n%s", list)
	}
	carol.must(append(apply, "--yes")...)
	w.may("bob")
	if _, err := carol.run(carol.home, "", append(apply, "--dry-run")...); err != nil {
		t.Errorf("something is left to do: %v", err)
	}
	out = carol.must("explain", "bob", "--cluster", "prod")
	for _, want := range []string{"platform", "bob in team-blue", "team-blue in platform", "on loan", "added by carol"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
	say(", end: " + time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
	carol.must(append(apply, "--yes")...)
}

// testMoveToEtcd moves everything from the file to an etcd by backup and restore. Groups,
// sign-ins and keys are the same there.
func testMoveToEtcd(t *testing.T, carol admin, w *visitors) {
	t.Helper()
	s, file := w.s, filepath.Join(t.TempDir(), "tabard.backup")
	before, shown, keys := carol.must("groups", "export"), carol.shown("platform"), get(t, s.client(), s.issuer+"/keys").body
	carol.must("backup", file)
	s.Stop()
	s.reconfigure(boltStore, etcdStore(t, s))
	if out, err := s.run(t.TempDir(), "", "restore", file, "--config", s.config); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.start()
	if after := get(t, s.client(), s.issuer+"/keys").body; after != keys {
		t.Errorf("other keys:\n%s\n%s", keys, after)
	}
	if after := carol.must("groups", "export"); after != before {
		t.Errorf("other groups:\n%s\n%s", before, after)
	}
	if after := carol.shown("platform"); after != shown || !strings.Contains(shown, "platform-engineering") {
		t.Errorf("another history:\n%s\n%s", shown, after)
	}
	w.may("dave")
	w.mustNot("bob")
	if out, err := s.run(t.TempDir(), "", "restore", file, "--config", s.config); err == nil {
		t.Errorf("restored beside a running server: %s", out)
	}
	if out, err := s.run(t.TempDir(), "", "audit", "verify", "--config", s.config); err != nil || !strings.Contains(out, "ok ") {
		t.Errorf("the trail: %v\n%s", err, out)
	}
}

// shown is all that is known of a group but its version in the store.
func (a admin) shown(group string) string {
	a.t.Helper()
	var all map[string]any
	if err := json.Unmarshal([]byte(a.must("groups", "show", group, "-o", "json")), &all); err != nil {
		a.t.Fatal(err)
	}
	dropVersions(all)
	b, err := json.Marshal(all)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

func dropVersions(v any) {
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	delete(m, "etag")
	for _, inner := range m {
		dropVersions(inner)
	}
}
