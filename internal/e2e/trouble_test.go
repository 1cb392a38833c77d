package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestDirectoryDown: the server starts without its directory, says so, keeps every
// session through an outage, and goes on by itself.
func TestDirectoryDown(t *testing.T) {
	t.Parallel()
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	s := newServer(t, slapd, options{})
	slapd.Stop()
	s.start()
	unready := func() error {
		if a := get(t, s.client(), s.issuer+"/readyz?include=directories"); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "corp") {
			return fmt.Errorf("readyz: %d %s", a.status, a.body)
		}
		return nil
	}
	eventually(t, 2*time.Minute, "readyz names the directory that is down", unready)
	browser := s.browser()
	f, _ := s.openSignIn(browser, authRequest("kubernetes"))
	if a := s.submit(browser, f, "alice", "pw-alice"); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "directory") || strings.Contains(a.body, "127.0.0.1:") {
		t.Errorf("sign-in while the directory is down: %d %s", a.status, a.body)
	}

	slapd.Start(t)
	var tk tokens
	eventually(t, 2*time.Minute, "sign-in after the directory came", func() error {
		b := s.browser()
		f, _ := s.openSignIn(b, authRequest("kubernetes"))
		a := s.submit(b, f, "alice", "pw-alice")
		if a.status != http.StatusSeeOther {
			return fmt.Errorf("%d", a.status)
		}
		tk = s.token(redemption("kubernetes", s.codeFrom(a, authRequest("kubernetes"))))
		return nil
	})
	slapd.Stop()
	got := s.token(refresh("kubernetes", tk.RefreshToken))
	if got.status != http.StatusServiceUnavailable || got.Error != "temporarily_unavailable" || strings.Contains(got.Description, "127.0.0.1") {
		t.Errorf("refresh in an outage: %+v", got)
	}
	slapd.Start(t)
	eventually(t, 2*time.Minute, "refresh after the outage", func() error {
		if got := s.token(refresh("kubernetes", tk.RefreshToken)); got.status != http.StatusOK {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	slapd.AddLDIF(t, "dn: uid=alice,ou=people,dc=example,dc=org\nchangetype: delete\n")
	if got := s.token(refresh("kubernetes", tk.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("refresh of somebody who left: %+v", got)
	}
}

// TestLastKnown: a directory with outage.lastKnown lets sessions go on from what was
// last read, and the token says so.
func TestLastKnown(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{ldap: "  outage: {lastKnown: 15m}"})
	tk := s.login("kubernetes", "alice", "pw-alice")
	s.slapd.Stop()
	tk = s.mustRefresh("kubernetes", tk.RefreshToken)
	if c := claims(t, tk.IDToken); c["tabard_stale"] != true || !slices.Contains(groupsOf(t, tk.IDToken), "corp:devs") {
		t.Errorf("claims %v", c)
	}
	s.slapd.Start(t)
	eventually(t, 2*time.Minute, "fresh again", func() error {
		tk = s.mustRefresh("kubernetes", tk.RefreshToken)
		if claims(t, tk.IDToken)["tabard_stale"] == true {
			return fmt.Errorf("still stale")
		}
		return nil
	})
}

// TestSecondProcess: a store belongs to one process; the offline commands say so
// and work when the server is stopped. Sessions and keys survive the stop.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	tk := s.login("kubernetes", "bob", "pw-bob")
	for _, args := range [][]string{{"serve", "--config", s.config}, {"groups", "list", "--config", s.config}} {
		if _, err := s.run(t.TempDir(), "", args...); err == nil || !strings.Contains(err.Error(), "exit status 1") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("tabard %v beside a running server: %v", args, err)
		} else if !strings.Contains(err.Error(), "another process") && !strings.Contains(err.Error(), "server") {
			t.Errorf("tabard %v does not say why: %v", args, err)
		}
	}
	s.Stop()
	home := t.TempDir()
	for _, args := range [][]string{{"groups", "create", "platform"}, {"groups", "add", "platform", "bob"}} {
		if _, err := s.run(home, "", append(args, "--config", s.config)...); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	if got := groupsOf(t, s.mustRefresh("kubernetes", tk.RefreshToken).IDToken); !slices.Equal(got, []string{"platform"}) {
		t.Errorf("groups %v after the offline change", got)
	}
}

// TestKill kills the server in the middle of group changes and refreshes. Whatever
// it acknowledged is there afterwards; keys and sessions survive.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 50
	if n := os.Getenv("TABARD_SOAK_KILLS"); n != "" {
		if _, err := fmt.Sscan(n, &rounds); err != nil {
			t.Fatal(err)
		}
	}
	s := startTabard(t, options{})
	seed := uint64(20261122)
	rnd := rand.New(rand.NewPCG(seed, seed))
	carol := s.signIn("carol", "pw-carol")
	carol.must("groups", "create", "kept")
	w := &killWorld{server: s, token: s.login("kubernetes", "alice", "pw-alice").RefreshToken, api: s.login("tabard", "carol", "pw-carol").IDToken}
	keys := get(t, s.client(), s.issuer+"/keys").body
	for round := range rounds {
		w.work(round)
		time.Sleep(time.Duration(20+rnd.IntN(120)) * time.Millisecond)
		s.Kill()
		w.wait()
		for _, word := range []string{"panic", "DATA RACE", "goroutine "} {
			if strings.Contains(s.Log(), word) {
				t.Fatalf("%q in the server's log", word)
			}
		}
		s.start()
		w.check(round)
	}
	if got := get(t, s.client(), s.issuer+"/keys").body; got != keys {
		t.Errorf("keys changed:\n%s\n%s", keys, got)
	}
	t.Logf("%d rounds, %d groups and %d refreshes acknowledged", rounds, len(w.groups), w.refreshes)
}

// killWorld is what clients were told before each kill.
type killWorld struct {
	*server
	api string

	workers   sync.WaitGroup
	mu        sync.Mutex
	groups    []string // acknowledged
	token     string   // the newest refresh token that was acknowledged
	refreshes int
}

// work starts a client that makes groups and one that refreshes.
func (w *killWorld) work(round int) {
	c := w.client()
	w.workers.Go(func() {
		for i := 0; ; i++ {
			name := fmt.Sprintf("round-%d-%d", round, i)
			if status, err := w.createGroup(c, name); err != nil || status != http.StatusCreated {
				return
			}
			w.mu.Lock()
			w.groups = append(w.groups, name)
			w.mu.Unlock()
		}
	})
	w.workers.Go(func() {
		for {
			tk, err := w.tryRefresh(c, w.token)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.token = tk
			w.refreshes++
			w.mu.Unlock()
		}
	})
}

func (w *killWorld) wait() { w.workers.Wait() }

// acknowledged counts what clients were told so far.
func (w *killWorld) acknowledged() (groups, refreshes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.groups), w.refreshes
}

// check compares the restarted server with what was acknowledged.
func (w *killWorld) check(round int) {
	w.t.Helper()
	tk := w.server.token(refresh("kubernetes", w.token))
	if tk.status != http.StatusOK {
		w.t.Fatalf("round %d: the session is lost: %+v", round, tk)
	}
	w.token = tk.RefreshToken
	a := w.apiGet("/api/v1/export") // a listing has pages
	for _, g := range w.groups {
		if !strings.Contains(a.body, `"`+g+`"`) {
			w.t.Fatalf("round %d: group %s was acknowledged and is lost: %d", round, g, a.status)
		}
	}
}

// TestBadFiles: what operators get wrong is answered by one clear sentence.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	slapd := testenv.StartSlapd(t)
	for _, c := range []struct {
		name, old, new, want string
	}{
		{"unknown key", "issuer:", "isuer:", "isuer"},
		{"missing certificate", "certFile: ", "certFile: /nowhere", "does not exist"},
		{"missing secret", "bindPasswordFile: bind-password", "bindPasswordFile: gone", "gone"},
		{"plain LDAP", "ldaps://", "ldap://", "insecurePlaintext"},
		{"no issuer", "issuer: https", "issuer: http", "https"},
		{"unwritable store", "path: tabard.db", "path: /nowhere/tabard.db", "/nowhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, slapd, options{})
			b, err := os.ReadFile(s.config)
			if err != nil {
				t.Fatal(err)
			}
			s.write("tabard.yaml", strings.Replace(string(b), c.old, c.new, 1))
			_, err = s.run(t.TempDir(), "", "serve", "--config", s.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want %q, got %v", c.want, err)
			}
			for _, never := range []string{"goroutine", "panic", slapd.BindPassword} {
				if strings.Contains(err.Error(), never) {
					t.Errorf("%q in %v", never, err)
				}
			}
		})
	}
	s := newServer(t, slapd, options{})
	if err := os.WriteFile(filepath.Join(s.dir, "tabard.db"), []byte("not a store"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.run(t.TempDir(), "", "serve", "--config", s.config); err == nil || !strings.Contains(err.Error(), "backup") || strings.Contains(err.Error(), "goroutine") {
		t.Errorf("a damaged store: %v", err)
	}
}
