package web

import (
	"html"
	"net/url"
	"regexp"
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
	want(t, b.get(got.header.Get("Location")), 200, "Group created.", "Nobody is in this group")
	want(t, b.post("/groups", url.Values{"name": {"plat form"}}), 409, "exists already")

	members := "/groups/plat%20form/members"
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"nobody"}, "for": {"8h"}, "reason": {"why"}}), 422, "Nobody was found", `value="nobody"`, `value="8h" selected`, `value="why"`)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"twin"}}), 422, "Several people were found")
	want(t, b.post(members, url.Values{"kind": {"directoryGroup"}, "who": {"devs"}}), 422, "begins with its directory&#39;s prefix")
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "for": {"100y"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"localGroup"}, "who": {"bob"}}), 400)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"bob"}, "for": {"8h"}, "reason": {"INC-1"}}), 303)
	want(t, b.post(members, url.Values{"kind": {"directoryGroup"}, "who": {"corp:devs"}}), 303)
	want(t, b.get("/groups/plat%20form?did=added"), 200, "Member added.", "bob", "INC-1", "ends <time", "in 8 h", "corp:devs", "until removed", "by carol")
	want(t, h.as("bob").get("/"), 200, "plat form", "added by carol: INC-1", "through corp:devs")

	h.corp.down.Store(true)
	want(t, b.post(members, url.Values{"kind": {"person"}, "who": {"alice"}}), 503, "The directory does not answer just now")
	h.corp.down.Store(false)

	ask := "/groups/plat%20form/remove?kind=person&id=corp.id-bob"
	got = b.get(ask)
	want(t, got, 200, "Remove bob from plat form?", "bob loses group plat form")
	want(t, b.get("/groups/plat%20form"), 200, "corp.id-bob") // asking is not doing
	f := fields(t, got.body)
	want(t, b.post("/groups/plat%20form/remove", url.Values{"kind": {f["kind"][0]["value"]}, "id": {f["id"][0]["value"]}}), 303)
	want(t, b.get(ask), 404, "No such group or member", requestID)
	want(t, b.get("/groups/plat%20form/remove?kind=directoryGroup&id=corp:devs"), 200, "Everyone in corp:devs loses group plat form")

	want(t, b.get("/groups/plat%20form/delete"), 200, "Its one member loses it")
	want(t, b.post("/groups/plat%20form/delete", nil), 303)
	want(t, b.get("/groups/plat%20form"), 404, "No such group or member")
}

func TestGroupsAreForAdmins(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", 0))
	b := h.as("alice")
	if strings.Contains(b.get("/").body, `href="/groups"`) {
		t.Error("the way to the groups is shown to who may not go it")
	}
	for _, rt := range h.site.routes() {
		if !strings.HasPrefix(rt.path, "/groups") {
			continue
		}
		path := strings.Replace(rt.path, "{name}", "platform", 1) + "?kind=person&id=corp.id-bob"
		got := b.do(rt.method, path, "application/x-www-form-urlencoded", "name=x&kind=person&who=alice&id=corp.id-bob")
		want(t, got, 403, "Only members of an administrators")
		if strings.Contains(got.body, "bob") {
			t.Errorf("%s %s tells who is in it", rt.method, rt.path)
		}
	}
	g, err := h.groups.Get(t.Context(), groups.Actor{Operator: true}, "platform")
	if err != nil || len(g.Members) != 1 {
		t.Errorf("%v, %v", g, err)
	}
}

func TestGroupsFilter(t *testing.T) {
	h := newHouse(t)
	h.create("platform")
	h.create("readers")
	b := h.as("carol")
	got := b.get("/groups?q=PLAT")
	want(t, got, 200, "/groups/platform", `value="PLAT"`)
	if strings.Contains(got.body, "/groups/readers") {
		t.Error("the filter does nothing")
	}
	want(t, b.get("/groups?q=nothing"), 200, "No group has “nothing”")
}

func TestNothingIsReflectedUnescaped(t *testing.T) {
	const evil = `<img src=x onerror=1>"'&{{.}}`
	h := newHouse(t)
	m := person("bob", 0)
	m.Reason, m.Name = evil, evil
	h.create(evil, m)
	h.create("through", groups.Member{Kind: groups.KindDirectoryGroup, ID: "corp:devs", Name: evil, Reason: evil})
	b := h.as("carol")
	name, q := url.PathEscape(evil), url.QueryEscape(evil)
	for _, got := range []answer{
		b.get("/"), b.get("/groups?q=" + q), b.get("/groups"), b.get("/groups/" + name), b.get("/groups/" + name + "/delete"),
		b.get("/groups/" + name + "/remove?kind=person&id=corp.id-bob"), b.get("/groups/" + name + "?did=" + q),
		b.get("/device?user_code=" + q), b.get("/sign-out?request=" + q), b.get("/no/" + name),
		b.post("/groups", url.Values{"name": {"system:" + evil}, "description": {evil}}),
		b.post("/groups/"+name+"/members", url.Values{"kind": {"person"}, "who": {evil}, "reason": {evil}}),
		h.browser().post("/sign-in", url.Values{"username": {evil}, "password": {evil}, "directories": {evil}, "directory": {evil}, "next": {evil}}),
	} {
		if strings.Contains(got.body, "<img src=x") || strings.Contains(got.body, `"'&{{`) {
			t.Errorf("unescaped in %s", got.body)
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
	want(t, b.get("/api/v1/groups/platform"), 200, `"end":`)
	if got := b.get("/api/v1/groups/platform"); strings.Contains(got.body, `"ended"`) {
		t.Errorf("ended before its end: %s", got.body)
	}
	later, err := New(Config{Now: func() time.Time { return time.Now().Add(3 * time.Hour) }}, h.idp, h.groups, h.site.log)
	must(t, err)
	h.site = later
	want(t, b.get("/api/v1/groups/platform"), 200, `"ended":true`)
	want(t, b.get("/groups/platform"), 200, "ended <time", "2 h ago")
	if got := h.as("bob").get("/"); strings.Contains(got.body, "platform") {
		t.Error("an ended membership is shown as access")
	}
}
