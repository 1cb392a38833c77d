package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/testenv"
)

const boltStore = "store: {bolt: {path: tabard.db}}"

// etcdStore is the store that replaces it: an etcd with TLS, users and a prefix.
func etcdStore(t testing.TB, s *server) string {
	t.Helper()
	c := testenv.StartEtcdCluster(t, 1, testenv.EtcdClusterOptions{User: "tabard", Password: "pw-etcd", Prefix: "/tabard/"})
	s.write("etcd-password", "pw-etcd\n")
	return fmt.Sprintf("store: {etcd: {endpoints: [%s], caFile: %s, certFile: %s, keyFile: %s, username: tabard, passwordFile: etcd-password}}",
		strings.Join(c.Endpoints, ", "), c.CAFile, c.CertFile, c.KeyFile)
}

// twin is another node of the same issuer, with the same files; before it, clients are
// sent there by what balances load.
func (s *server) twin(oldnew ...string) *server {
	s.t.Helper()
	b := &server{t: s.t, binary: s.binary, dir: s.t.TempDir(), issuer: s.issuer, caFile: s.caFile, ca: s.ca, slapd: s.slapd}
	b.config = filepath.Join(b.dir, "tabard.yaml")
	files, err := os.ReadDir(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files {
		if f.Type().IsRegular() {
			content, err := os.ReadFile(filepath.Join(s.dir, f.Name()))
			if err != nil {
				s.t.Fatal(err)
			}
			b.write(f.Name(), string(content))
		}
	}
	b.at = fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(s.t))
	u, err := url.Parse(s.issuer)
	if err != nil {
		s.t.Fatal(err)
	}
	b.reconfigure(append(oldnew, "listen: 127.0.0.1:"+u.Port(), "listen: "+b.at)...)
	return b
}

// startNodes starts two nodes on one etcd, with one folder for their trails.
func startNodes(t *testing.T) (a, b *server) {
	t.Helper()
	slapd := testenv.StartSlapd(t, "ppolicy_default cn=policy,dc=example,dc=org")
	slapd.AddLDIF(t, testenv.SampleLDIF()+"dn: cn=policy,dc=example,dc=org\nobjectClass: organizationalRole\nobjectClass: pwdPolicy\n"+
		"pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 4\npwdFailureCountInterval: 1800\npwdLockoutDuration: 600\n\n")
	a = newServer(t, slapd, options{extra: "keys: {rotateEvery: 8s, publishAhead: 4s}\nthrottle: {addressTries: 1000}"})
	trail := filepath.Join(a.dir, "audit")
	a.reconfigure(boltStore, etcdStore(t, a), "audit: {dir: audit}", "audit: {dir: "+trail+", node: a}")
	b = a.twin("node: a", "node: b")
	var starting sync.WaitGroup // both make what a new store lacks
	starting.Go(a.start)
	starting.Go(b.start)
	starting.Wait()
	if t.Failed() { // in a goroutine that is gone
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, node := range []string{"a", "b"} {
			for _, found := range secretsIn(t, filepath.Join(trail, node), slapd.BindPassword, "pw-etcd", "pw-alice", "pw-carol", "pw-dave") {
				t.Errorf("the trail of %s holds a secret: %s", node, found)
			}
		}
	})
	return a, b
}

// TestTwoNodes has two servers share an etcd: what one does counts at the other at
// once, and the death of one loses nothing that it has acknowledged.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	a, b := startNodes(t)
	carol := a.login("tabard", "carol", "pw-carol")
	one := a.token(redemption("kubernetes", a.code(a.browser(), authRequest("kubernetes"), "bob", "pw-bob")+"x")) // wrong: consumes nothing
	if one.Error != "invalid_grant" {
		t.Fatalf("a wrong code: %+v", one)
	}
	bob := b.token(redemption("kubernetes", a.code(a.browser(), authRequest("kubernetes"), "bob", "pw-bob")))
	if bob.status != http.StatusOK {
		t.Fatalf("a code of A at B: %+v", bob)
	}
	for _, s := range []*server{a, b, a, a, b, b} {
		bob = s.mustRefresh("kubernetes", bob.RefreshToken)
	}
	bob = testRaceAtBoth(t, a, b, bob)
	alice := a.login("tabard", "alice", "pw-alice")
	if got := b.token(exchange("tabard", alice.IDToken, "kubernetes")); got.status != http.StatusOK {
		t.Errorf("exchange at B: %+v", got)
	}

	testSameGroups(t, a, b, carol.IDToken, bob)
	testTwoAdmins(t, a, b, carol.IDToken)
	testEndedAtA(t, a, b, carol.IDToken)
	testOneRotation(t, a, b, carol.IDToken)
	testDeathOfA(t, a, b, carol.IDToken)
	a.start()
	testSharedThrottle(t, a, b, b.login("tabard", "carol", "pw-carol").IDToken)
	testTwoChains(t, a, b)
}

// testRaceAtBoth refreshes one token twenty times at once, half of them at each node.
func testRaceAtBoth(t *testing.T, a, b *server, tk tokens) tokens {
	t.Helper()
	got := make([]tokens, 20)
	var racing sync.WaitGroup
	for i := range got {
		racing.Go(func() {
			got[i], _ = []*server{a, b}[i%2].try([]*server{a, b}[i%2].client(), refresh("kubernetes", tk.RefreshToken))
		})
	}
	racing.Wait()
	for _, g := range got {
		if g.status != http.StatusOK || g.RefreshToken != got[0].RefreshToken {
			t.Fatalf("twenty refreshes at two nodes: %d %s, and another line: %t", g.status, g.Error, g.RefreshToken != got[0].RefreshToken)
		}
	}
	return got[0]
}

// testSameGroups changes groups at A and looks at tokens of B.
func testSameGroups(t *testing.T, a, b *server, carol string, bob tokens) {
	t.Helper()
	mustCreate(t, a, carol, "platform")
	began := time.Now()
	if got := a.api(carol, "POST", "/api/v1/groups/platform/members", `{"person":"bob","reason":"joins"}`); got.status >= 300 {
		t.Fatalf("add bob at A: %d %s", got.status, got.body)
	}
	seenBy := func(want []string) {
		t.Helper()
		eventually(t, 2*time.Minute, "B knows what A has changed", func() error {
			bob = b.mustRefresh("kubernetes", bob.RefreshToken)
			if got := groupsOf(t, bob.IDToken); !slices.Equal(got, want) {
				return fmt.Errorf("groups %v", got)
			}
			return nil
		})
	}
	seenBy([]string{"platform"})
	t.Logf("a token of B has a group of A %s after it was asked for", time.Since(began))
	if got := a.api(carol, "DELETE", "/api/v1/groups/platform/members/person/"+subOf(t, bob.IDToken), ""); got.status >= 300 {
		t.Fatalf("remove bob at A: %d %s", got.status, got.body)
	}
	seenBy([]string{})
}

func subOf(t *testing.T, token string) string { return claims(t, token)["sub"].(string) }

func mustCreate(t *testing.T, s *server, token, name string) {
	t.Helper()
	if got := s.api(token, "POST", "/api/v1/groups", `{"name":"`+name+`"}`); got.status != http.StatusCreated {
		t.Fatalf("create %s: %d %s", name, got.status, got.body)
	}
}

// testTwoAdmins lets two administrators edit what both have seen, at once: one gets 412,
// with the other's version and their own.
func testTwoAdmins(t *testing.T, a, b *server, carol string) {
	t.Helper()
	mustCreate(t, a, carol, "edited")
	var seen api.Group
	eventually(t, 2*time.Minute, "B has the group", func() error {
		got := b.api(carol, "GET", "/api/v1/groups/edited", "")
		if got.status != http.StatusOK {
			return fmt.Errorf("%d %s", got.status, got.body)
		}
		return json.Unmarshal([]byte(got.body), &seen)
	})
	got := make([]answer, 2)
	var editing sync.WaitGroup
	for i, s := range []*server{a, b} {
		editing.Go(func() {
			req, err := http.NewRequest("PATCH", s.issuer+"/api/v1/groups/edited", strings.NewReader(fmt.Sprintf(`{"description":"by admin %d"}`, i)))
			if err != nil {
				return
			}
			req.Header.Set("Authorization", "Bearer "+carol)
			req.Header.Set("Content-Type", "application/merge-patch+json")
			req.Header.Set("If-Match", seen.ETag)
			got[i] = do(t, s.client(), req)
		})
	}
	editing.Wait()
	if t.Failed() { // in a goroutine that is gone
		t.FailNow()
	}
	won, lost := got[0], got[1]
	winner := 0
	if won.status != http.StatusOK {
		won, lost, winner = lost, won, 1
	}
	var p api.Problem
	if err := json.Unmarshal([]byte(lost.body), &p); err != nil || won.status != http.StatusOK || lost.status != http.StatusPreconditionFailed || p.Current == nil {
		t.Fatalf("two edits at once: %d %s, %d %s", won.status, won.body, lost.status, lost.body)
	}
	if p.Code != api.CodeMismatch || p.Current.Description != fmt.Sprintf("by admin %d", winner) || !strings.Contains(string(p.Sent), fmt.Sprintf("by admin %d", 1-winner)) {
		t.Errorf("the two versions: %s", lost.body)
	}
}

// testEndedAtA ends a session at one node; the other takes nothing of it any more.
func testEndedAtA(t *testing.T, a, b *server, carol string) {
	t.Helper()
	dave := b.login("tabard", "dave", "pw-dave")
	sid := claims(t, dave.IDToken)["sid"].(string)
	if got := b.api(dave.IDToken, "GET", "/api/v1/groups", ""); got.status != http.StatusOK {
		t.Fatalf("dave at B: %d %s", got.status, got.body)
	}
	if got := a.api(carol, "DELETE", "/api/v1/sessions/"+sid, ""); got.status >= 300 {
		t.Fatalf("end at A: %d %s", got.status, got.body)
	}
	if got := b.token(refresh("tabard", dave.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("refresh at B: %+v", got)
	}
	if got := b.token(exchange("tabard", dave.IDToken, "kubernetes")); got.Error != "invalid_grant" {
		t.Errorf("exchange at B: %+v", got)
	}
	if got := b.api(dave.IDToken, "GET", "/api/v1/groups", ""); got.status != http.StatusUnauthorized {
		t.Errorf("the API of B: %d %s", got.status, got.body)
	}
}

// testOneRotation waits for rotations, which both nodes publish and only one makes.
func testOneRotation(t *testing.T, a, b *server, carol string) {
	t.Helper()
	list := func(s *server) (keys []api.Key) {
		var all api.KeyList
		if got := s.api(carol, "GET", "/api/v1/keys", ""); json.Unmarshal([]byte(got.body), &all) != nil || len(all.Keys) == 0 {
			t.Fatalf("keys: %d %s", got.status, got.body)
		}
		return all.Keys
	}
	eventually(t, 2*time.Minute, "two rotations", func() error {
		if n := len(list(a)); n < 4 {
			return fmt.Errorf("%d keys", n)
		}
		return nil
	})
	eventually(t, 2*time.Minute, "the same keys at both", func() error {
		if ka, kb := get(t, a.client(), a.issuer+"/keys").body, get(t, b.client(), b.issuer+"/keys").body; ka != kb {
			return fmt.Errorf("%s and %s", kidsOf(t, ka), kidsOf(t, kb))
		}
		return nil
	})
	keys := list(b)
	for i, k := range keys[1:] {
		if k.Signs.Sub(keys[i].Signs) < 8*time.Second {
			t.Errorf("keys sign from %s and from %s on: rotated twice", keys[i].Signs, k.Signs)
		}
	}
}

// testDeathOfA kills A while both work. B answers all the time, and has what A said was
// done.
func testDeathOfA(t *testing.T, a, b *server, carol string) {
	t.Helper()
	w := &killWorld{server: a, api: carol, token: a.login("kubernetes", "alice", "pw-alice").RefreshToken}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var atB sync.WaitGroup
	var did atomic.Int64
	client := b.client()
	tk := b.login("kubernetes", "alice", "pw-alice").RefreshToken
	atB.Go(func() {
		for ctx.Err() == nil {
			got, err := b.try(client, refresh("kubernetes", tk))
			if err != nil || got.status != http.StatusOK {
				t.Errorf("B while A dies: %+v, %v", got, err)
				return
			}
			tk = got.RefreshToken
			did.Add(1)
		}
	})
	w.work(0)
	eventually(t, 2*time.Minute, "work at both", func() error {
		if groups, refreshes := w.acknowledged(); groups == 0 || refreshes == 0 || did.Load() == 0 {
			return fmt.Errorf("%d groups and %d refreshes at A, %d at B", groups, refreshes, did.Load())
		}
		return nil
	})
	a.Kill()
	w.wait()
	after := did.Load()
	eventually(t, 2*time.Minute, "B goes on", func() error {
		if t.Failed() || did.Load() > after {
			return nil
		}
		return fmt.Errorf("%d refreshes", after)
	})
	stop()
	atB.Wait()
	b.mustRefresh("kubernetes", w.token)
	eventually(t, 2*time.Minute, "B has what A acknowledged", func() error {
		for _, g := range w.groups {
			if got := b.api(carol, "GET", "/api/v1/groups/"+g, ""); got.status != http.StatusOK {
				return fmt.Errorf("%s: %d", g, got.status)
			}
		}
		return nil
	})
	t.Logf("%d groups and %d refreshes at A, %d at B", len(w.groups), w.refreshes, did.Load())
}

// testSharedThrottle types wrong passwords at both nodes at once. The directory locks
// the account at the fourth, and must not have to.
func testSharedThrottle(t *testing.T, a, b *server, carol string) {
	t.Helper()
	var typing sync.WaitGroup
	for i := range 20 {
		s := []*server{a, b}[i%2]
		typing.Go(func() {
			c := s.browser()
			f, _ := s.openSignIn(c, authRequest("kubernetes"))
			if got := s.submit(c, f, "dave", "wrong"); got.status == http.StatusSeeOther {
				t.Errorf("a wrong password: %d", got.status)
			}
		})
	}
	typing.Wait()
	for _, s := range []*server{a, b} {
		c := s.browser()
		f, _ := s.openSignIn(c, authRequest("kubernetes"))
		if got := s.submit(c, f, "dave", "pw-dave"); got.status != http.StatusTooManyRequests {
			t.Errorf("after all those: %d %s", got.status, got.body)
		}
	}
	if x := a.explain(carol, "dave", ""); x.Person.State != "active" {
		t.Errorf("the directory says of dave: %s", x.Person.State)
	}
}

// testTwoChains checks and searches the trail of both.
func testTwoChains(t *testing.T, a, b *server) {
	t.Helper()
	a.Stop()
	b.Stop()
	dir := filepath.Join(a.dir, "audit")
	for _, s := range []*server{a, b} {
		out, err := s.run(t.TempDir(), "", "audit", "verify", "--config", s.config)
		if err != nil || strings.Count(out, "ok ") != 2 || !strings.Contains(out, "/a: ") || !strings.Contains(out, "/b: ") || strings.Count(out, "signed to the end") != 2 {
			t.Errorf("verify: %v\n%s", err, out)
		}
	}
	out, err := a.run(t.TempDir(), "", "audit", "search", "--dir", dir, "--act", "session.", "-o", "json", "--limit", "1000")
	if err != nil || !strings.Contains(out, "dave") {
		t.Errorf("search: %v\n%s", err, out)
	}
	var page api.AuditPage
	if err := json.Unmarshal([]byte(out), &page); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(page.Events, func(x, y api.AuditEvent) int { return y.Time.Compare(x.Time) }) {
		t.Error("the two chains are not searched newest first")
	}
}
