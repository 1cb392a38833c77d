package idp

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
)

var operator = groups.Actor{Operator: true, Name: "operator"}

// join puts a person of corp, or a directory group, into a local group that is made
// when it is not there.
func (h *house) join(group string, kind groups.Kind, id string, left time.Duration) {
	h.t.Helper()
	_, _ = h.local.Create(h.ctx, operator, groups.Settings{Name: group})
	m := groups.Member{Ref: groups.Ref{Kind: kind, Name: id}, Reason: "on call"}
	if kind != groups.KindGroup { // which is known by its name
		m.ID = id
	}
	if left > 0 {
		m.End = h.clock.Now().Add(left)
	}
	_, err := h.local.Add(h.ctx, operator, group, 0, m)
	h.must(err)
}

// told is x in short: the groups and where they come from, and what was left out.
func told(x Explanation) (in, out []string) {
	for _, g := range x.Groups {
		from := strings.Join(g.Path, " > ")
		for _, p := range g.Paths {
			for _, s := range p.Steps {
				from += string(s.Member.Kind) + " > " + s.Group + " "
			}
		}
		in = append(in, g.Name+": "+strings.TrimSpace(from))
	}
	for _, l := range x.LeftOut {
		out = append(out, l.Name+": "+l.Rule)
	}
	return in, out
}

func TestExplain(t *testing.T) {
	h := newHouse(t, func(c *Config) {
		c.Clusters[0].Groups.Exclude = []string{"*-admins", "corp:k8s-old"}
	})
	h.hire(h.corp, "alice", aliceID, boss, "corp:hidden", "corp:k8s-old", "system:masters", "stray")
	sub := "corp." + aliceID
	h.clock.pass(time.Hour) // the ends below are not past by the groups' own clock
	h.join("platform", groups.KindPerson, sub, 0)
	h.join("platform", groups.KindDirectoryGroup, boss, time.Hour)
	h.join("oncall", groups.KindPerson, sub, 30*time.Second) // minLifetime is a minute
	h.join("oncall", groups.KindDirectoryGroup, boss, 2*time.Hour)
	h.join("past", groups.KindPerson, sub, 10*time.Second)
	h.join("db-admins", groups.KindPerson, sub, 0)
	soon := h.clock.Now().Add(30 * time.Second).Format(time.RFC3339)
	ended := h.clock.Now().Add(10 * time.Second).Format(time.RFC3339)
	h.clock.pass(20 * time.Second)

	x, err := h.Explain(h.ctx, "alice", "prod")
	h.must(err)
	in, out := told(x)
	if want := []string{"corp:k8s-admins: cn=corp:k8s-admins", "oncall: directoryGroup > oncall", "platform: person > platform directoryGroup > platform"}; !slices.Equal(in, want) {
		t.Errorf("in the token: %q", in)
	}
	if want := []string{
		"corp:hidden: not in clusters[prod].groups.include", "corp:k8s-old: clusters[prod].groups.exclude[1] corp:k8s-old",
		"db-admins: clusters[prod].groups.exclude[0] *-admins", "oncall: ends at " + soon + ": less than tokens.minLifetime (1m0s) is left",
		"past: ended at " + ended, "stray: a directory group's name must begin with its directory's prefix", "system:masters: reserved name",
	}; !slices.Equal(out, want) {
		t.Errorf("left out: %q", out)
	}
	if x.Refused != "" || x.Claims["preferred_username"] != "alice" || x.Claims["sid"] != nil || x.Size < 600 || x.Size > 1200 || x.MaxSize != 16<<10 {
		t.Errorf("%+v", x)
	}
	if got := h.trail.said("token.issue"); len(got) > 0 {
		t.Errorf("a token was issued: %v", got)
	}
}

// TestExplainNested goes from a directory group by two local ones to a third, which
// counts on one cluster alone and ends with the first membership on the way.
func TestExplainNested(t *testing.T) {
	h := newHouse(t)
	h.join("platform", groups.KindDirectoryGroup, boss, 0)
	h.join("leads", groups.KindGroup, "platform", time.Hour)
	h.join("prod-admin", groups.KindGroup, "leads", 0)
	only := []string{"prod"}
	_, err := h.local.Edit(h.ctx, operator, "prod-admin", 0, groups.Change{Clusters: &only})
	h.must(err)
	const way = "prod-admin: directoryGroup > platform group > leads group > prod-admin"
	for cluster, where := range map[string]string{"prod": "in", "": "in", "vault": "counts only on prod"} {
		x, err := h.Explain(h.ctx, "alice", cluster)
		h.must(err)
		in, out := told(x)
		switch {
		case where == "in" && !slices.Contains(in, way):
			t.Errorf("%q: %q without %q", cluster, in, out)
		case where != "in" && (slices.Contains(in, way) || !slices.Contains(out, "prod-admin: "+where)):
			t.Errorf("%q: %q without %q", cluster, in, out)
		}
	}
	tokens, _ := h.login("alice", "kubernetes")
	if got := h.groupsIn(tokens.IDToken); !slices.Equal(got, []string{boss, "leads", "platform", "prod-admin"}) {
		t.Errorf("the token holds %q", got)
	}
	h.clock.pass(time.Hour - 2*time.Minute)
	if again, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken); err != nil || h.claims(again.IDToken)["exp"] != float64(h.Now().Add(2*time.Minute).Unix()) {
		t.Errorf("the token outlives a membership on the way: %v", err)
	}
	vault, _ := h.login("alice", "vault")
	if got := h.groupsIn(vault.IDToken); slices.Contains(got, "prod-admin") {
		t.Errorf("another cluster's token holds %q", got)
	}
}

// Whatever refuses the token, the rest is told all the same.
func TestExplainRefused(t *testing.T) {
	many := make([]string, 300)
	for i := range many {
		many[i] = fmt.Sprintf("corp:k8s-%0100d", i)
	}
	h := newHouse(t)
	h.hire(h.corp, "many", "00000000-0000-4000-8000-00000000000a", many...)
	h.hire(h.corp, "lost", "00000000-0000-4000-8000-00000000000b")
	h.corp.change("lost", func(e *entry) { e.State = directory.Locked })
	for _, tc := range []struct {
		login, cluster, refused string
		groups                  int
	}{
		{"alice", "", "", 2}, {"alice", "vault", "", 2},
		{"bob", "vault", "no access: cluster vault requires one of the groups vault-users, corp:k8s-admins", 0},
		{"many", "prod", "token too large: about ", 300},
		{"lost", "prod", "account is locked", 0},
	} {
		x, err := h.Explain(h.ctx, tc.login, tc.cluster)
		h.must(err)
		if !strings.HasPrefix(x.Refused, tc.refused) || (tc.refused == "") != (x.Refused == "") || len(x.Groups) != tc.groups || x.Claims == nil {
			t.Errorf("%s for %q: refused %q, %d groups", tc.login, tc.cluster, x.Refused, len(x.Groups))
		}
		if tooLarge := x.Size > x.MaxSize; tooLarge != (tc.login == "many") {
			t.Errorf("%s: %d of %d bytes", tc.login, x.Size, x.MaxSize)
		}
	}
	if x, err := h.Explain(h.ctx, "bob", "vault"); err != nil || !slices.Equal(x.Required, []string{"vault-users", boss}) {
		t.Errorf("required: %q, %v", x.Required, err)
	}
}

func TestExplainErrors(t *testing.T) {
	h := newHouse(t)
	h.hire(h.lab, "bob", "00000000-0000-4000-8000-00000000000c")
	h.hire(h.corp, "odd", "00000000-0000-4000-8000-00000000000d")
	h.corp.change("odd", func(e *entry) { e.findErr = fmt.Errorf("%w: no uid", directory.ErrUnusable) })
	for _, tc := range []struct {
		who, cluster string
		want         error
	}{
		{"nobody", "", directory.ErrNotFound}, {"bob", "", directory.ErrAmbiguous}, {"odd", "", directory.ErrUnusable},
		{"alice", "none", ErrNoCluster}, {"corp." + bobID, "", nil}, {"corp.nobody", "", directory.ErrNotFound}, {"", "", directory.ErrNotFound},
	} {
		_, err := h.Explain(h.ctx, tc.who, tc.cluster)
		wantErr(t, err, tc.want)
	}
	h.lab.fail(errUnreachable)
	_, err := h.Explain(h.ctx, "alice", "")
	wantErr(t, err, nil)
	_, err = h.Explain(h.ctx, "lena", "")
	wantErr(t, err, ErrUnavailable)
	h.corp.noGroup = errUnreachable
	x, err := h.Explain(h.ctx, "alice", "")
	wantErr(t, err, ErrUnavailable)
	if x.Entry.Person.Username != "alice" || len(x.Entry.Queries) != 1 {
		t.Errorf("%+v", x)
	}
}

func TestExplainTo(t *testing.T) {
	h := newHouse(t)
	bob := groups.Actor{Sub: "corp." + bobID, Name: "bob"}
	carol := groups.Actor{Sub: "lab.x", Name: "carol"}
	for _, tc := range []struct {
		asker  groups.Actor
		admin  bool
		about  string
		answer string // username, or the error
		trail  string
	}{
		{bob, false, "", "bob", audit.Done}, {bob, false, "BOB", "bob", audit.Done}, {bob, false, bob.Sub, "bob", audit.Done},
		{bob, false, "alice", "explain somebody else: for administrators: not allowed", audit.Denied + " only administrators may ask about others"},
		{bob, false, "nobody", "explain somebody else: for administrators: not allowed", audit.Denied + " only administrators may ask about others"},
		{carol, true, "alice", "alice", audit.Done},
		{carol, true, unusualLogin, "no such person", audit.Failed + " no answer about the person or their groups"},
		{groups.Actor{Operator: true, Sub: "operator", Name: "alice"}, true, "alice", "alice", audit.Done},
	} {
		before := len(h.trail.said("explain"))
		x, err := h.ExplainTo(h.ctx, tc.asker, tc.admin, tc.about, "prod")
		got := x.Entry.Person.Username
		if err != nil {
			got = err.Error()
		}
		said := h.trail.said("explain")[before:]
		if got != tc.answer || !slices.Equal(said, []string{tc.trail}) {
			t.Errorf("%s about %q: %s, trail %q", tc.asker.Name, tc.about, got, said)
		}
	}
	b, err := json.Marshal(h.trail.events)
	h.must(err)
	if strings.Contains(string(b), unusualLogin) {
		t.Error("what was typed is in the trail")
	}
	h.corp.noGroup = errUnreachable
	if x, err := h.ExplainTo(h.ctx, carol, true, "alice", ""); err != nil || !strings.Contains(x.Refused, "10.1.2.3") {
		t.Errorf("%q, %v", x.Refused, err)
	}
	_, err = h.ExplainTo(h.ctx, bob, false, "", "")
	wantErr(t, err, ErrUnavailable)
	h.corp.noGroup, h.corp.queryErr = nil, "ldap://10.1.2.3: size limit"
	for _, asker := range []groups.Actor{bob, carol} {
		x, err := h.ExplainTo(h.ctx, asker, asker.Name == "carol", "bob", "")
		wantErr(t, err, nil)
		if got := x.Entry.Queries[0].Error; got != map[string]string{"bob": "failed", "carol": h.corp.queryErr}[asker.Name] {
			t.Errorf("%s is told %q", asker.Name, got)
		}
	}
	h.corp.noGroup, h.trail.down = nil, errUnreachable
	_, err = h.ExplainTo(h.ctx, carol, true, "alice", "")
	wantErr(t, err, errUnreachable)
}

// What is explained is what is issued: the same claims, but for those of one token.
func TestExplainIsWhatIsIssued(t *testing.T) {
	h := newHouse(t)
	h.join("platform", groups.KindPerson, "corp."+aliceID, time.Hour)
	h.join("short", groups.KindDirectoryGroup, boss, 2*time.Minute)
	for _, login := range []string{"alice", "bob"} {
		x, err := h.Explain(h.ctx, login, "prod")
		h.must(err)
		p, err := h.FindPerson(h.ctx, login)
		h.must(err)
		names, err := h.directoryGroups(h.ctx, h.corp, p)
		h.must(err)
		issued, err := h.prepare(h.startSession(h.ctx, p, names, h.clock.Now()), h.client("kubernetes"), grant{azp: "kubernetes"})
		h.must(err)
		var claims map[string]any
		h.must(json.Unmarshal(issued.payload, &claims))
		delete(claims, "jti")
		delete(claims, "sid")
		if a, b := fmt.Sprint(claims), fmt.Sprint(x.Claims); a != b || len(slices.Collect(maps.Keys(claims))) < 10 {
			t.Errorf("issued    %s\nexplained %s", a, b)
		}
	}
}
