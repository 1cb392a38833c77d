package web

import (
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
)

func TestExplainPage(t *testing.T) {
	h := newHouse(t)
	m := person("bob", 2*time.Hour)
	m.Reason = "on <call>"
	h.create("platform", m, directoryGroup("corp:devs"))
	h.create("short", person("bob", 4*time.Minute))
	admin, bob := h.as("carol"), h.as("bob")
	for _, c := range []struct {
		who    *browser
		path   string
		status int
		words  []string
	}{
		{admin, "/explain?user=bob&cluster=prod", 200, []string{
			`<code>uid=bob</code>`, "<option selected>prod</option>", "<code>cn=corp:devs</code>", "by operator, ", "“on &lt;call&gt;”", "<li>corp:devs</li>",
			"less than tokens.minLifetime", "<code>groups.exclude[0] old</code>", "(uid=bob)", ">1.5 ms<", "&#34;preferred_username&#34;: &#34;bob&#34;", "of at most 16384 bytes"}},
		{admin, "/explain?user=bob&cluster=vault", 200, []string{"There would be no token", "requires one of the groups nobody-is-in-this"}},
		{admin, "/explain?user=locked", 200, []string{"There would be no token", "account is locked", "locked in the directory"}},
		{admin, "/explain?user=nobody", 422, []string{"Nobody was found", `value="nobody"`}},
		{admin, "/explain?cluster=none", 422, []string{"No such cluster"}},
		{admin, "/explain", 200, []string{"<code>uid=carol</code>", `name="user"`}},
		{bob, "/explain", 200, []string{"<code>uid=bob</code>"}},
		{bob, "/explain?user=alice", 403, []string{"You may not do this"}},
	} {
		got := c.who.get(c.path)
		want(t, got, c.status, c.words...)
		if c.who == bob && (strings.Contains(got.body, `name="user"`) || strings.Contains(got.body, "uid=alice")) {
			t.Errorf("%s offers bob to ask about others: %s", c.path, got.body)
		}
		for _, fault := range accessFaults(t, got.body) {
			t.Errorf("%s: %s", c.path, fault)
		}
	}
	want(t, admin.get("/groups"), 200, `href="/explain"`)
	if h.browser().get("/explain?user=bob").status != 303 {
		t.Error("who is not signed in is not sent to sign in")
	}
	h.corp.down.Store(true)
	want(t, admin.get("/explain?user=bob"), 503, "does not answer")
}

func TestEveryStateHasWords(t *testing.T) {
	for _, s := range []directory.State{directory.Active, directory.Disabled, directory.Locked, directory.Expired, directory.PasswordExpired, directory.MustChange} {
		if stateWords[s] == "" {
			t.Errorf("%s has no words", s)
		}
	}
	if accountInWords("odd") != "odd" {
		t.Error("a new state is not told")
	}
}
