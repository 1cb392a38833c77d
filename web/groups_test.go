package web

import (
	"fmt"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
)

func TestGroupsStory(t *testing.T) {
	h := newHouse(t)
	b := h.as("carol")
	want(t, b.get("/groups"), 200, "There are no local groups yet")
	want(t, b.post("/groups", url.Values{"name": {"system:masters"}, "description": {"all"}}), 422, "belong to Kubernetes", `value="system:masters"`, `value="all"`)
	got := b.post("/groups", url.Values{"name": {"plat form"}, "description": {"runs it"}})
	if got.status != 303 || got.header.Get("Location") != "/groups/plat%20form?did=created" {
		t.Fatalf("%d %v %s", got.status, got.header, got.body)
	}
	want(t, b.get(got.header.Get("Location")), 200, "Group created.", "Nobody is in this group", "runs it", "all clusters", "administrators look after it")
	want(t, b.post("/groups", url.Values{"name": {"plat form"}}), 409, "exists already")
	h.create("inner", person("alice", 0))

	members := "/groups/plat%20form/members"
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"nobody"}, "from": {"1d"}, "for": {"8h"}, "reason": {"why"}}), 422, "Nobody was found", `value="nobody"`, `value="1d" selected`, `value="8h" selected`, `value="why"`)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {" "}}), 422, "Who is missing")
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"twin"}}), 422, "Several people were found")
	want(t, b.post(members, url.Values{"kind": {"directoryGroup"}, "who": {"devs"}}), 422, "begins with its directory&#39;s prefix")
	want(t, b.post(members, url.Values{"kind": {"group"}, "who": {"none"}}), 422)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "for": {"100y"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "from": {"yesterday"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "for": {"keep"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"cat"}, "who": {"bob"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "for": {"8h"}, "reason": {"INC-1"}}), 303)
	want(t, b.post(members, url.Values{"kind": {"directoryGroup"}, "who": {"corp:devs"}}), 303)
	want(t, b.post(members, url.Values{"kind": {"group"}, "who": {"inner"}, "from": {"7d"}, "for": {"1d"}}), 303)
	for kind, who := range map[string]string{"person": "bob", "directoryGroup": "corp:devs", "group": "inner"} {
		want(t, b.post(members, url.Values{"kind": {kind}, "who": {who}}), 409, "That is a member already")
	}
	want(t, b.get("/groups/plat%20form?did=added"), 200, "Member added.", "bob", "INC-1", "ends <time", "in 8 h", "corp:devs", "until removed", "by carol", `href="/groups/inner"`, "begins <time", "in 7 days", "in 8 days")
	want(t, b.get("/groups/plat%20form?kind=group"), 200, `href="/groups/inner"`)
	if got := b.get("/groups/plat%20form?kind=group"); strings.Contains(got.body, "INC-1") {
		t.Error("the filter by kind does nothing")
	}
	want(t, b.get("/groups/plat%20form?q=inc-1"), 200, "INC-1")
	want(t, b.get("/groups/plat%20form?q=nothing"), 200, "No member matches.")
	want(t, h.as("bob").get("/"), 200, `<a href="/groups/plat%20form">plat form</a>`, "by carol", "INC-1", "corp:devs", "in 8 h")

	h.corp.down.Store(true)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"alice"}}), 503, "The directory does not answer just now")
	h.corp.down.Store(false)

	ask := "/groups/plat%20form/remove?kind=person&id=corp.id-bob"
	got = b.get(ask)
	want(t, got, 200, "Remove bob from plat form?", "bob loses plat form, and what clusters give to it")
	want(t, b.get("/groups/plat%20form"), 200, "corp.id-bob") // asking is not doing
	want(t, b.post("/groups/plat%20form/remove", hidden(t, got.body)), 303)
	want(t, b.get(ask), 404, "No such group or member", requestID)
	want(t, b.get("/groups/plat%20form/remove?kind=directoryGroup&id=corp:devs"), 200, "Everyone in corp:devs loses plat form")

	got = b.get("/groups/plat%20form/delete")
	want(t, got, 200, "Its 2 members lose it", "cannot be undone")
	want(t, b.post("/groups/plat%20form/delete", hidden(t, got.body)), 303)
	want(t, b.get("/groups/plat%20form"), 404, "No such group or member")
}

// hidden is what the last form of a page sends without being filled in.
func hidden(t *testing.T, body string) url.Values {
	t.Helper()
	v := url.Values{}
	for name, all := range fields(t, body) {
		for _, f := range all {
			if f["type"] == "hidden" {
				v.Add(name, f["value"])
			}
		}
	}
	return v
}

// rights is a house with one group that has an owner and a member, in another group.
func rightsHouse(t *testing.T) *house {
	h := newHouse(t)
	h.make(groups.Settings{Name: "platform", Description: "runs it", Owners: []groups.Ref{personRef("alice")}}, person("bob", 0), person("dave", 0))
	h.create("outer", localGroup("platform"))
	return h
}

func TestEveryRouteHasItsRights(t *testing.T) {
	h := rightsHouse(t)
	roles := []*browser{h.browser(), h.as("dora"), h.as("bob"), h.as("alice"), h.as("carol")}
	for _, c := range []struct {
		method, path, form                     string
		nobody, stranger, member, owner, admin int // in this order
	}{
		{"GET", "/groups", "", 303, 200, 200, 200, 200},
		{"GET", "/groups/platform", "", 303, 404, 200, 200, 200},
		{"GET", "/groups/platform/everyone", "", 303, 404, 403, 200, 200},
		{"GET", "/groups/platform/edit", "", 303, 404, 403, 200, 200},
		{"GET", "/groups/platform/remove?kind=person&id=corp.id-dave", "", 303, 404, 403, 200, 200},
		{"GET", "/groups/platform?change=corp.id-dave&kind=person", "", 303, 404, 403, 200, 200},
		{"GET", "/groups/platform/delete", "", 303, 404, 403, 403, 200},
		{"POST", "/groups/platform/members", "kind=person&who=fresh", 303, 404, 403, 303, 409},
		{"POST", "/groups/platform/members", "kind=person&who=nobody-at-all", 303, 404, 403, 422, 422},
		{"POST", "/groups/platform/edit", "description=new&name=platform", 303, 404, 403, 412, 412},
		{"POST", "/groups/platform/remove", "kind=person&id=corp.id-fresh", 303, 404, 403, 303, 404},
		{"POST", "/groups/platform/delete", "revision=1", 303, 404, 403, 403, 412},
		{"POST", "/groups", "name=new", 303, 403, 403, 403, 303},
	} {
		for i, status := range []int{c.nobody, c.stranger, c.member, c.owner, c.admin} {
			got := roles[i].do(c.method, c.path, "application/x-www-form-urlencoded", c.form)
			if got.status != status {
				t.Errorf("%s %s: %d, want %d for role %d", c.method, c.path, got.status, status, i)
			}
			if i == 0 && !strings.HasPrefix(got.header.Get("Location"), "/sign-in?") {
				t.Errorf("%s %s sends who is not signed in to %s", c.method, c.path, got.header.Get("Location"))
			}
			if i == 1 && strings.Contains(got.body, "runs it") || 0 < i && i < 3 && strings.Contains(got.body, "dave") {
				t.Errorf("%s %s tells role %d too much: %s", c.method, c.path, i, got.body)
			}
		}
	}
	g, err := h.groups.Get(t.Context(), operator(), "platform")
	if err != nil || g.Members != 2 || g.Description != "runs it" {
		t.Errorf("%+v, %v", g, err)
	}
}

// An owner of a group that administers is told why they may not change it.
func TestOwnersOfAdministratorsGroups(t *testing.T) {
	h := newHouse(t)
	h.make(groups.Settings{Name: "root", Owners: []groups.Ref{personRef("alice")}}, person("bob", 0))
	h.create("admins", localGroup("root"))
	b := h.as("alice")
	got := b.get("/groups/root")
	want(t, got, 200, "administrators alone see and change that")
	if strings.Contains(got.body, "Ask one of these") || strings.Contains(got.body, "Add member") {
		t.Error("alice is offered what she may not do")
	}
	want(t, b.post("/groups/root/members", url.Values{"kind": {"person"}, "who": {"alice"}}), 403)
	want(t, b.get("/groups/root/edit"), 403)
}

// What somebody may not do is not on the page.
func TestPagesShowWhatOneMayDo(t *testing.T) {
	h := rightsHouse(t)
	for login, c := range map[string]struct{ has, lacks []string }{
		"carol": {[]string{"/platform/edit", "/platform/delete", "/platform/everyone", `href="/groups/outer"`, "dave", "Add member", "/platform/remove"}, []string{"How you are in it", "Ask one of these"}},
		"alice": {[]string{"/platform/edit", "/platform/everyone", "dave", "Add member", "/platform/remove"}, []string{"/platform/delete", `href="/groups/outer"`, "Ask one of these"}},
		"bob":   {[]string{"How you are in it", "Ask one of these", "alice", "by operator", `href="/groups/outer"`}, []string{"/platform/delete", "/platform/edit", "/platform/everyone", "dave", "Add member", "/platform/remove"}},
	} {
		got := h.as(login).get("/groups/platform")
		want(t, got, 200, c.has...)
		for _, lacks := range c.lacks {
			if strings.Contains(got.body, lacks) {
				t.Errorf("%s is shown %q", login, lacks)
			}
		}
	}
	list := h.as("alice").get("/groups")
	want(t, list, 200, "/groups/platform", ">owner</span>")
	if strings.Contains(list.body, "/groups/outer") || strings.Contains(list.body, "Create group") || strings.Contains(list.body, ">member</span>") {
		t.Errorf("the owner's list: %s", list.body)
	}
	want(t, h.as("bob").get("/groups"), 200, "/groups/platform", "/groups/outer", ">member</span>")
	want(t, h.as("dora").get("/groups"), 200, "You are in no local group", "<code>dora</code>")
	want(t, h.as("alice").get("/"), 200, "Groups that you own", `href="/groups/platform"`)
	if got := h.as("bob").get("/"); strings.Contains(got.body, "Groups that you own") {
		t.Error("bob owns nothing")
	}
}

func TestLookalikesAreAskedAbout(t *testing.T) {
	h := newHouse(t)
	h.create("platform")
	b := h.as("carol")
	const alike = "pl\u0430tform"
	form := url.Values{"name": {alike}, "description": {"mine"}}
	got := b.post("/groups", form)
	want(t, got, 200, "Create "+alike+" all the same?", "pl\u0430 (U&#43;0430) tform looks like platform.")
	want(t, b.get("/groups/"+url.PathEscape(alike)), 404)
	form.Set("sure", "another")
	want(t, b.post("/groups", form), 200, "all the same?")
	want(t, b.post("/groups", hidden(t, got.body)), 303)
	want(t, b.get("/groups/"+url.PathEscape(alike)), 200, "mine")
	if got := h.as("alice").post("/groups", url.Values{"name": {alike}}); got.status != 403 || strings.Contains(got.body, "platform") {
		t.Errorf("who may not create learns which groups there are: %d %s", got.status, got.body)
	}
}

func TestGroupsFilterAndPages(t *testing.T) {
	h := newHouse(t)
	h.make(groups.Settings{Name: "platform", Labels: map[string]string{"team": "core", "tier": "1"}, Clusters: []string{"prod"}, Owners: []groups.Ref{personRef("carol")}})
	h.make(groups.Settings{Name: "readers", Description: "look at platforms", Labels: map[string]string{"team": "web"}})
	for i := range perPage {
		h.create(fmt.Sprintf("team %03d", i))
	}
	b := h.as("carol")
	for _, c := range []struct {
		query       string
		has, hasNot []string
	}{
		{"q=PLATF", []string{"/groups/platform", "/groups/readers", "“PLATF” <span"}, []string{"/groups/team"}},
		{"label=team%3Dcore", []string{"/groups/platform", "label team=core <span"}, []string{`href="/groups/readers"`}},
		{"label=team", []string{"/groups/platform", "/groups/readers"}, []string{"/groups/team"}},
		{"label=team&label=tier%3D1", []string{"/groups/platform", `href="/groups?label=tier%3D1"`, `href="/groups?label=team"`}, []string{`href="/groups/readers"`}},
		{"cluster=vault&q=platf", []string{"/groups/readers", "on vault <span", `href="/groups?cluster=vault"`, `href="/groups?q=platf"`}, []string{`href="/groups/platform"`}},
		{"mine=1", []string{"/groups/platform", "owned by me <span"}, []string{`href="/groups/readers"`}},
		{"q=nothing", []string{"No group matches"}, []string{"<table"}},
		{"label=%3D&label=&label=a%3Db%3Dc", []string{"No group matches", "label a=b=c"}, nil},
	} {
		got := b.get("/groups?" + c.query)
		want(t, got, 200, c.has...)
		for _, lacks := range c.hasNot {
			if strings.Contains(got.body, lacks) {
				t.Errorf("%s shows %s", c.query, lacks)
			}
		}
	}
	seen := map[string]int{}
	for next, n := "/groups", 0; next != ""; n++ {
		got := b.get(next)
		want(t, got, 200)
		for _, m := range regexp.MustCompile(`<th scope="row"><a href="([^"]+)"`).FindAllStringSubmatch(got.body, -1) {
			seen[m[1]]++
		}
		next = ""
		if m := regexp.MustCompile(`href="([^"]+)" rel="next"`).FindStringSubmatch(got.body); m != nil {
			next = html.UnescapeString(m[1])
		}
		if n > 5 {
			t.Fatal("the pages have no end")
		}
	}
	if len(seen) != perPage+2 {
		t.Errorf("%d groups on all pages", len(seen))
	}
	for group, n := range seen {
		if n != 1 {
			t.Errorf("%s is listed %d times", group, n)
		}
	}
	want(t, b.get("/groups"), 200, fmt.Sprintf(">%d+<", perPage))
	want(t, b.get("/groups?after=!!"), 400, "There is no such page of the list")
	want(t, b.get("/groups/platform?after=!!"), 400, "There is no such page of the list")
}

func TestMembersHavePages(t *testing.T) {
	h := newHouse(t)
	all := make([]groups.Member, perPage+5)
	for i := range all {
		all[i] = person(fmt.Sprintf("p%03d", i), 0)
	}
	h.create("platform", all...)
	b := h.as("carol")
	first := b.get("/groups/platform")
	want(t, first, 200, fmt.Sprintf(">%d<", len(all)), "p000", "Next page")
	m := regexp.MustCompile(`href="([^"]+)" rel="next"`).FindStringSubmatch(first.body)
	second := b.get(html.UnescapeString(m[1]))
	want(t, second, 200, "p054", "First page")
	if strings.Contains(second.body, "p000") || strings.Contains(second.body, "Next page") {
		t.Error("the second page is not the last")
	}
}

func TestSettings(t *testing.T) {
	h := newHouse(t)
	h.make(groups.Settings{Name: "platform", Description: "runs it", Owners: []groups.Ref{personRef("alice")}}, person("bob", 0))
	h.create("inner")
	b, edit := h.as("carol"), "/groups/platform/edit"
	base := url.Values{"base": {hidden(t, b.get(edit).body).Get("base")}, "name": {"platform"}, "description": {"runs it"}, "owner": {"person corp.id-alice"}}
	with := func(change url.Values) url.Values {
		form := url.Values{}
		for key := range base {
			form[key] = base[key]
		}
		for key := range change {
			form[key] = change[key]
		}
		return form
	}
	for _, c := range []struct {
		form   url.Values
		status int
		words  []string
	}{
		{url.Values{"labels": {"a=1\na=2"}}, 422, []string{"Label a has two lines", "a=1\na=2"}},
		{url.Values{"kind": {"person"}, "who": {"nobody"}}, 422, []string{"Nobody was found", `value="nobody"`}},
		{url.Values{"kind": {"group"}, "who": {"none"}}, 422, []string{"There is no local group none"}},
		{url.Values{"kind": {"cat"}, "who": {"none"}}, 400, nil},
		{url.Values{"owner": {"person corp.id-alice", "person corp.id-nobody"}}, 422, []string{"Nobody was found"}},
		{url.Values{"do": {"owner"}, "kind": {"group"}, "who": {"inner"}}, 200, []string{"Nothing is saved yet", `value="group inner" checked`}},
		{url.Values{"do": {"owner"}, "kind": {"directoryGroup"}, "who": {"corp:devs"}}, 200, []string{`value="directoryGroup corp:devs" checked`}},
		{url.Values{"name": {"system:x"}, "sure": {"system:x"}}, 422, []string{"belong to Kubernetes", `value="system:x"`}},
		{nil, 303, nil},
	} {
		want(t, b.post(edit, with(c.form)), c.status, c.words...)
	}
	want(t, b.get("/groups/platform"), 200, "runs it", "alice")

	got := b.post(edit, with(url.Values{"owner": {"person corp.id-alice", "group inner"}, "kind": {"person"}, "who": {"bob"}, "cluster": {"prod"}, "labels": {" team = core \r\n\r\ntier=1"}, "description": {"new"}}))
	if want(t, got, 303); got.header.Get("Location") != "/groups/platform?did=saved" {
		t.Errorf("goes to %v", got.header)
	}
	g, err := h.groups.Get(t.Context(), operator(), "platform")
	must(t, err)
	if len(g.Owners) != 3 || g.Labels["team"] != "core" || g.Labels["tier"] != "1" || len(g.Labels) != 2 || !slices.Equal(g.Clusters, []string{"prod"}) || g.Description != "new" {
		t.Errorf("saved %+v", g)
	}
	want(t, b.get("/groups/platform?did=saved"), 200, "Settings saved.", "prod", "team=core", "inner", "bob")
}

// An owner changes what the group is for, whatever else they send.
func TestOwnersChangeTheDescriptionAlone(t *testing.T) {
	h := rightsHouse(t)
	b := h.as("alice")
	page := b.get("/groups/platform/edit")
	want(t, page, 200, `name="description"`)
	if f := fields(t, page.body); f["name"] != nil || f["owner"] != nil || f["cluster"] != nil || strings.Contains(page.body, `name="labels"`) {
		t.Error("the owner is offered what only administrators may change")
	}
	form := hidden(t, page.body)
	for key, value := range map[string]string{"description": "ours", "name": "mine", "sure": "mine", "owner": "person corp.id-bob", "cluster": "prod", "labels": "a=b", "kind": "person", "who": "bob"} {
		form.Set(key, value)
	}
	want(t, b.post("/groups/platform/edit", form), 303)
	g, err := h.groups.Get(t.Context(), operator(), "platform")
	must(t, err)
	labels := map[string]string{"team": "x"}
	_, err = h.groups.Edit(t.Context(), operator(), "platform", 0, groups.Change{Labels: &labels})
	must(t, err)
	form.Set("description", "still ours")
	got := b.post("/groups/platform/edit", form)
	want(t, got, 412, "<pre>still ours</pre>")
	if strings.Contains(got.body, "team=x") {
		t.Error("the owner is shown a difference in what they cannot change")
	}
	form["base"] = hidden(t, got.body)["base"]
	want(t, b.post("/groups/platform/edit", form), 303)
	if now, err := h.groups.Get(t.Context(), operator(), "platform"); err != nil || now.Description != "still ours" || now.Labels["team"] != "x" {
		t.Errorf("%+v, %v", now, err)
	}
	if g.Description != "ours" || len(g.Owners) != 1 || g.Owners[0].Name != "alice" || len(g.Clusters)+len(g.Labels) > 0 {
		t.Errorf("saved %+v", g)
	}
}

func TestRenameNamesItsEffect(t *testing.T) {
	h := rightsHouse(t)
	h.create("base")
	b := h.as("carol")
	form := hidden(t, b.get("/groups/platform/edit").body)
	form["name"], form["description"], form["owner"] = []string{"b\u0430se"}, []string{"other"}, []string{"person corp.id-alice"}
	form.Set("labels", "a=1\nb=2")
	form["cluster"] = []string{"prod", "vault"}
	got := b.post("/groups/platform/edit", form)
	want(t, got, 200, "Rename platform to b\u0430se?", "bindings in clusters that name platform stop giving anything", "It keeps 2 members and 1 owner.", "It stays a member of 1 group.", "looks like base.")
	got = b.post("/groups/platform/edit", hidden(t, got.body))
	if want(t, got, 303); got.header.Get("Location") != "/groups/b%D0%B0se?did=renamed" {
		t.Errorf("goes to %v", got.header)
	}
	want(t, b.get(got.header.Get("Location")), 200, "Group renamed.", "Formerly", "platform", "renamed by carol", "other", "a=1", "b=2", "prod, vault", "alice")
	want(t, b.get("/groups/platform"), 404)
}

// Two people edit at once: the second sees both versions, and what they typed stays.
func TestSettingsThatDiffer(t *testing.T) {
	h := rightsHouse(t)
	b := h.as("carol")
	form := hidden(t, b.get("/groups/platform/edit").body)
	form["name"], form["owner"], form["description"] = []string{"platform"}, []string{"person corp.id-alice"}, []string{"mine"}

	_, err := h.groups.Add(t.Context(), operator(), "platform", 0, person("alice", 0))
	must(t, err)
	want(t, b.post("/groups/platform/edit", form), 303) // a new member is no other version

	theirs, labels := "theirs", map[string]string{"team": "x"}
	_, err = h.groups.Edit(t.Context(), operator(), "platform", 0, groups.Change{Description: &theirs, Labels: &labels})
	must(t, err)
	form["description"] = []string{"mine too"}
	got := b.post("/groups/platform/edit", form)
	want(t, got, 412, "Someone else changed this group meanwhile", "<pre>theirs</pre>", "<pre>mine too</pre>", "<pre>team=x</pre>", `value="mine too"`, "Save over the present version")
	g, err := h.groups.Get(t.Context(), operator(), "platform")
	must(t, err)
	if g.Description != "theirs" {
		t.Errorf("it was saved before it was asked: %+v", g)
	}
	form["base"] = hidden(t, got.body)["base"]
	want(t, b.post("/groups/platform/edit", form), 303)
	want(t, b.get("/groups/platform"), 200, "mine too")
}

func TestDeletionNamesItsEffect(t *testing.T) {
	h := newHouse(t)
	g, err := h.groups.Create(t.Context(), operator(), groups.Settings{Name: "platform"})
	must(t, err)
	h.create("outer", localGroup("platform"))
	h.make(groups.Settings{Name: "owned", Owners: []groups.Ref{{Kind: groups.KindGroup, ID: g.ID, Name: "platform"}}})
	b := h.as("carol")
	ask := "/groups/platform/delete"
	got := b.get(ask)
	want(t, got, 200, "It has no members", "It leaves outer,", "no longer owners of owned.")
	old := hidden(t, got.body)
	_, err = h.groups.Add(t.Context(), operator(), "platform", 0, person("bob", 0))
	must(t, err)
	got = b.post(ask, old)
	want(t, got, 412, "The group was changed since you looked", "Its one member loses it")
	want(t, b.get("/groups/platform"), 200)
	form := hidden(t, got.body)
	form.Del("contained")
	want(t, b.post(ask, form), 412, "It leaves outer,")
	want(t, b.post(ask, hidden(t, got.body)), 303)
	want(t, b.get("/groups/platform"), 404)
	want(t, b.post("/groups/outer/delete", nil), 400)
}

func TestEveryoneByPath(t *testing.T) {
	h := newHouse(t)
	ended := person("dora", time.Hour)
	devs := directoryGroup("corp:devs")
	devs.Reason = "<rota>"
	h.create("platform", devs, person("alice", 0), ended)
	h.create("prod-admin", localGroup("platform"), person("alice", 2*time.Hour))
	b := h.as("carol")
	got := b.get("/groups/prod-admin/everyone")
	want(t, got, 200, "Everyone in prod-admin", `href="/groups/platform"`, "“&lt;rota&gt;”", "by operator", "until removed", "ends <time",
		`href="/explain?user=corp.id-alice"`, `href="/groups/prod-admin/everyone?open=corp%3Adevs#open"`)
	if n := strings.Count(got.body, `<ol class="path">`); n != 4 {
		t.Errorf("%d paths", n)
	}
	want(t, b.get("/groups/prod-admin/everyone?open=corp:devs"), 200, "The directory has", "Alice Ångström", ">Close</a>", `id="open"`)
	if got := b.get("/groups/prod-admin/everyone?open=corp:admins"); strings.Contains(got.body, "The directory has") {
		t.Error("a directory group that does not lead here is opened")
	}
	h.corp.down.Store(true)
	want(t, b.get("/groups/prod-admin/everyone?open=corp:devs"), 200, "The directory does not answer just now", "“&lt;rota&gt;”")
	h.create("empty")
	want(t, b.get("/groups/empty/everyone"), 200, "Nobody gets this group")
}

func TestMembershipIsChangedFromItsRow(t *testing.T) {
	h := newHouse(t)
	m := person("bob", time.Hour)
	m.Reason = "INC-1"
	h.create("platform", m)
	b := h.as("carol")
	got := b.get("/groups/platform")
	link := regexp.MustCompile(`href="([^"]+)">Change`).FindStringSubmatch(got.body)
	got = b.get(html.UnescapeString(strings.TrimSuffix(link[1], "#add")))
	want(t, got, 200, "Change bob", `value="corp.id-bob"`, `value="INC-1"`, "INC-1</td>", `value="keep" selected`)
	form := hidden(t, got.body)
	form["from"], form["for"], form["reason"] = []string{"keep"}, []string{"keep"}, []string{"INC-3"}
	want(t, b.post("/groups/platform/members", form), 303)
	kept, err := h.groups.Member(t.Context(), operator(), "platform", groups.KindPerson, "corp.id-bob")
	if err != nil || kept.Reason != "INC-3" || !kept.End.Equal(m.End.Truncate(time.Microsecond)) {
		t.Errorf("%+v, %v: the end was %s", kept, err, m.End)
	}
	form.Set("for", "9d")
	want(t, b.post("/groups/platform/members", form), 400)
	form.Set("reason", strings.Repeat("r", 2000))
	form.Set("for", "30d")
	want(t, b.post("/groups/platform/members", form), 422, "Change bob", `value="30d" selected`)
	form.Set("reason", "INC-2")
	h.corp.down.Store(true) // nobody is looked up
	got = b.post("/groups/platform/members", form)
	if want(t, got, 303); got.header.Get("Location") != "/groups/platform?did=changed" {
		t.Errorf("goes to %v", got.header)
	}
	want(t, b.get("/groups/platform?did=changed"), 200, "Membership changed", "INC-2", "in 30 days", ">1</span>")
	want(t, b.get("/groups/platform?change=corp.id-none&kind=person"), 404)
}

// Access that begins later is shown as such, and other paths that will count.
func TestHomeShowsWhatIsToCome(t *testing.T) {
	h := newHouse(t)
	later := person("bob", 0)
	later.Begin, later.Reason = time.Now().Add(49*time.Hour), "on call"
	h.create("platform", later)
	h.make(groups.Settings{Name: "scoped", Clusters: []string{"prod"}}, person("bob", 0))
	got := h.as("bob").get("/")
	want(t, got, 200, "begins <time", "in 2 days", "“on call”", "Counts on prod alone")
	if strings.Contains(h.as("alice").get("/").body, "scoped") {
		t.Error("alice is shown bob's groups")
	}
}

func TestNothingIsReflectedUnescaped(t *testing.T) {
	const evil = `<img src=x onerror=1>"'&{{.}}`
	h := newHouse(t)
	m := person("bob", 0)
	m.Reason, m.Name = evil, evil
	own := personRef("carol")
	own.Name = evil
	h.make(groups.Settings{Name: evil, Description: evil, Owners: []groups.Ref{own}}, m)
	through := directoryGroup("corp:devs")
	through.Name, through.Reason = evil, evil
	h.create("through", through, localGroup(evil))
	b := h.as("carol")
	name, q := url.PathEscape(evil), url.QueryEscape(evil)
	for _, got := range []answer{
		b.get("/"), b.get("/groups?q=" + q), b.get("/groups?label=" + q + "&cluster=" + q + "&after=" + q), b.get("/groups"),
		b.get("/groups/" + name), b.get("/groups/" + name + "/delete"), b.get("/groups/" + name + "/edit"), b.get("/groups/" + name + "/everyone"),
		b.get("/groups/through"), b.get("/groups/through/everyone?open=" + q), b.get("/groups/through?q=" + q + "&kind=" + q + "&after=" + q),
		b.get("/groups/" + name + "?change=corp.id-bob&kind=person"), b.get("/groups/" + name + "?change=" + q + "&kind=" + q),
		b.get("/groups/" + name + "/remove?kind=person&id=corp.id-bob"), b.get("/groups/" + name + "?did=" + q), b.get("/explain?user=bob"),
		b.get("/device?user_code=" + q), b.get("/sign-out?request=" + q), b.get("/no/" + name),
		b.post("/groups", url.Values{"name": {"system:" + evil}, "description": {evil}}),
		b.post("/groups/"+name+"/members", url.Values{"kind": {"person"}, "who": {evil}, "reason": {evil}}),
		b.post("/groups/"+name+"/edit", url.Values{"name": {evil + "2"}, "description": {evil}, "labels": {evil}, "cluster": {evil}, "owner": {evil}, "base": {evil}}),
		b.post("/groups/"+name+"/edit", url.Values{"name": {evil}, "description": {evil + "2"}, "labels": {evil + "=" + evil}, "cluster": {evil}}),
		b.post("/groups/"+name+"/delete", url.Values{"revision": {"1"}}),
		h.browser().post("/sign-in", url.Values{"username": {evil}, "password": {evil}, "directories": {evil}, "directory": {evil}, "next": {evil}}),
	} {
		if strings.Contains(got.body, "<img src=x") || strings.Contains(got.body, `"'&{{`) {
			t.Errorf("unescaped in %s", got.body)
		}
		if got.status >= 500 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	got := b.get("/groups/" + name)
	want(t, got, 200, "&lt;img src=x onerror=1&gt;")
	link := regexp.MustCompile(`href="([^"]+/remove[^"]*)"`).FindStringSubmatch(got.body)
	if link == nil {
		t.Fatal("no link to remove the member")
	}
	want(t, b.get(html.UnescapeString(link[1])), 200, "Remove &lt;img src=x onerror=1&gt;")
}

// Names that addresses have a meaning for lead to their group from every link and form.
func TestHostileNamesInAddresses(t *testing.T) {
	h := newHouse(t)
	b := h.as("carol")
	for _, name := range []string{"a b", "50%25", "50%", "a%2Fb", "ä?&#", "a:b", "...x", "new", "+", "everyone", strings.Repeat("界", 128)} {
		h.create(name, person("bob", 0))
		page := b.get("/groups/" + url.PathEscape(name))
		want(t, page, 200, "<h1>"+strings.ReplaceAll(html.EscapeString(name), "+", "&#43;")+"</h1>")
		for _, m := range regexp.MustCompile(`(?:href|action)="(/groups/[^"]+)"`).FindAllStringSubmatch(page.body, -1) {
			path, _, _ := strings.Cut(html.UnescapeString(m[1]), "#")
			if strings.HasSuffix(path, "/members") {
				want(t, b.post(path, url.Values{"kind": {"person"}, "who": {"alice"}}), 303)
				continue
			}
			want(t, b.get(path), 200)
		}
	}
}

func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for d, text := range map[time.Duration]string{
		10 * time.Second: "in a moment", -10 * time.Second: "just now", 5 * time.Minute: "in 5 min", -time.Hour: "1 h ago",
		8 * time.Hour: "in 8 h", -47 * time.Hour: "2 days ago", 365 * 24 * time.Hour: "22 November 2027",
	} {
		if m := momentOf(now.Add(d), now); m.Text != text || m.Past != (d < 0) {
			t.Errorf("%s: %+v, want %q", d, m, text)
		}
	}
	if momentOf(time.Time{}, now).Set {
		t.Error("the zero time is shown")
	}
}

// A membership that has ended is still listed, and says so on the page and in the API.
func TestEndedMembershipsSaySo(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", time.Hour))
	b := h.as("carol")
	later, err := New(Config{Now: func() time.Time { return time.Now().Add(3 * time.Hour) }}, h.idp, h.groups, h.site.log)
	must(t, err)
	h.site = later
	want(t, b.get("/groups/platform"), 200, "ended <time", "2 h ago")
	want(t, b.get("/groups/platform/everyone"), 200, "Does not count now", "ended <time")
	want(t, b.get("/groups/platform/remove?kind=person&id=corp.id-bob"), 200, "does not count now")
	if got := h.as("bob").get("/"); strings.Contains(got.body, "platform") {
		t.Error("an ended membership is shown as access")
	}
}
