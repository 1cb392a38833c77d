package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/api"
)

// sessions lists by command what args select.
func (a admin) sessions(args ...string) []api.Session {
	a.t.Helper()
	var list api.SessionList
	if err := json.Unmarshal([]byte(a.must(append([]string{"sessions", "list", "-o", "json"}, args...)...)), &list); err != nil {
		a.t.Fatal(err)
	}
	return list.Sessions
}

// TestSessionsByCommand lists and ends sessions, one's own and as an administrator.
func TestSessionsByCommand(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	laptop := s.person()
	laptop.login("bob")
	bob, carol, dave := s.signIn("bob", "pw-bob"), s.signIn("carol", "pw-carol"), s.signIn("dave", "pw-dave")
	other := s.login("kubernetes", "bob", "pw-bob")

	own := bob.sessions()
	byAgent := map[string]api.Session{}
	for _, one := range own {
		agent, _, _ := strings.Cut(one.UserAgent, " ")
		byAgent[agent] = one
	}
	plugin, command := byAgent["kubectl-tabard"], byAgent["tabard"]
	if len(own) != 3 || plugin.ID == "" || !command.Current || plugin.Current {
		t.Fatalf("bob's sessions: %+v", own)
	}
	host, err := os.Hostname()
	if host, _, _ = strings.Cut(host, "."); err != nil || !strings.Contains(plugin.UserAgent, "("+host+")") {
		t.Errorf("the plugin's session is of %q, not of %s (%v)", plugin.UserAgent, host, err)
	}
	if all := carol.sessions("--all"); len(all) != 5 {
		t.Errorf("all sessions: %+v", all)
	}
	for _, args := range [][]string{{"list", "--all"}, {"list", "--person", "bob"}, {"end", plugin.ID}, {"end", "--person", "bob"}} {
		if out, err := s.run(dave.home, "", append([]string{"sessions"}, args...)...); err == nil {
			t.Errorf("dave: sessions %v: %s", args, out)
		}
	}
	if n := len(carol.sessions("--person", "bob")); n != 3 {
		t.Errorf("bob has %d sessions after what dave tried", n)
	}

	bob.must("sessions", "end", plugin.ID)
	if out, err := laptop.do("", "kubectl", "tabard", "get-token", "--cluster", "prod"); err == nil {
		t.Errorf("the plugin goes on after its session ended: %s", out)
	}
	s.mustRefresh("kubernetes", other.RefreshToken)
	if out := bob.must("sessions", "end", "--person", "bob"); !strings.Contains(out, "1 session") {
		t.Errorf("bob ends all others: %s", out)
	}
	if got := s.token(refresh("kubernetes", other.RefreshToken)); got.Error != "invalid_grant" {
		t.Errorf("refresh of a session that ended: %+v", got)
	}
	if n := len(bob.sessions()); n != 1 {
		t.Errorf("bob has %d sessions", n)
	}
	carol.must("sessions", "end", "--person", "bob")
	if out, err := s.run(bob.home, "", "groups", "list"); err == nil || !strings.Contains(err.Error(), "login") {
		t.Errorf("bob's command goes on: %v\n%s", err, out)
	}
	dave.must("sessions", "list") // others are left alone
}
