package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestGroupsPage does an admin's day in a real browser without JavaScript: sign in,
// make a group, add bob, see it in his next token, remove him.
func TestGroupsPage(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	bob := s.login("kubernetes", "bob", "pw-bob")
	b := testenv.Chromium(t)
	b.SetJavaScript(false)
	b.Navigate(s.issuer + "/groups")
	b.WaitFor(`document.querySelector('input[name=password]')`)
	b.Type("input[name=username]", "carol")
	b.Type("input[name=password]", "pw-wrong")
	b.Press("Enter")
	b.WaitFor(`document.querySelector('[role=alert]')`)
	if v := b.Eval(`document.querySelector('input[name=password]').value + '|' + document.querySelector('input[name=username]').value`); v != "|carol" {
		t.Errorf("after a wrong password the fields hold %q", v)
	}
	b.Type("input[name=password]", "pw-carol")
	b.Press("Enter")
	b.WaitFor(`location.pathname == '/groups'`)

	b.Type("input[name=name]", "platform")
	b.Type("[name=description]", "Runs the clusters <img src=x onerror=alert(1)>")
	b.Press("Enter")
	b.WaitFor(`location.pathname == '/groups/platform'`)
	if text := b.Text("main"); !strings.Contains(text, "<img src=x") {
		t.Errorf("the description is not shown as it was typed: %q", text)
	}
	b.Type("input[name=who]", "bob")
	b.Press("Enter")
	b.WaitFor(`document.querySelector('tbody th a')?.innerText == 'bob'`)
	bob = s.mustRefresh("kubernetes", bob.RefreshToken)
	if got := groupsOf(t, bob.IDToken); !slices.Equal(got, []string{"platform"}) {
		t.Errorf("bob's groups are %v after he was added", got)
	}
	b.Navigate(s.issuer + "/groups/platform")
	b.Click("td.act .danger-text")
	b.WaitFor(`location.pathname == '/groups/platform/remove'`)
	if text := b.Text("main"); !strings.Contains(text, "bob") || !strings.Contains(text, "platform") {
		t.Errorf("the confirmation does not say who loses what: %q", text)
	}
	b.Click("main form button")
	b.WaitFor(`location.pathname == '/groups/platform' && !document.querySelector('tbody')`)
	bob = s.mustRefresh("kubernetes", bob.RefreshToken)
	if got := groupsOf(t, bob.IDToken); len(got) != 0 {
		t.Errorf("bob's groups are %v after he was removed", got)
	}
	for _, e := range b.ConsoleErrors() {
		if !strings.Contains(e, "422") { // the wrong password
			t.Errorf("the browser complains: %s", e)
		}
	}
}
