package web

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
)

const asJSON = "application/json"

// decoded reads an answer that has to have that status.
func decoded[T any](t *testing.T, got answer, status int) T {
	t.Helper()
	var v T
	if got.status != status {
		t.Fatalf("status %d, want %d: %s", got.status, status, got.body)
	}
	must(t, json.Unmarshal([]byte(got.body), &v))
	return v
}

// apiHouse is a house with an administrator whose requests are checked.
func apiHouse(t *testing.T) (*house, *contract, *browser) {
	h := newHouse(t)
	spec := newContract(t)
	return h, spec, spec.check(h.as("carol"))
}

func TestIfMatch(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform", person("bob", 0))
	const path = "/api/v1/groups/platform"
	first := admin.get(path)
	tag := first.header.Get("ETag")
	if g := decoded[api.Group](t, first, 200); tag == "" || g.ETag != tag || !strings.HasPrefix(tag, `"`) {
		t.Fatalf("ETag %s, in the body %s", tag, g.ETag)
	}
	edit := func(ifMatch string) answer {
		t.Helper()
		return admin.do("PATCH", path, mergePatch, fmt.Sprintf(`{"description":%q}`, ifMatch), "If-Match", ifMatch)
	}
	for _, header := range []string{`"x`, `x`, `"1" "2"`, `,`, "", `*, "1"`, `w/"1"`, `"1",W/`} {
		want(t, edit(header), 400, "entity tags")
	}
	for _, header := range []string{`"1"`, "W/" + tag, `"0"`, `"x","y"`, `"99999999999999999999"`, `""`} {
		want(t, edit(header), 412, `"code":"mismatch"`)
	}
	for _, header := range []string{tag, "*", ` "x" , ,` + "%s" + `,W/"y"`} {
		now := admin.get(path).header.Get("ETag")
		header = strings.Replace(strings.ReplaceAll(header, tag, now), "%s", now, 1)
		got := edit(header)
		if g := decoded[api.Group](t, got, 200); g.ETag == now || got.header.Get("ETag") != g.ETag || g.Description != header {
			t.Errorf("%s: %+v", header, g)
		}
	}
	want(t, admin.do("PATCH", path, mergePatch, `{"description":"no condition"}`), 200)
	want(t, admin.do("PATCH", "/api/v1/groups/none", mergePatch, `{"description":"x"}`, "If-Match", "*"), 404)
	want(t, admin.do("PATCH", "/api/v1/groups/none", mergePatch, `{"description":"x"}`, "If-Match", `"1","2"`), 404)
	want(t, h.as("bob").do("PATCH", path, mergePatch, `{"description":"x"}`, "If-Match", `"1"`), 403)
}

// Every change is refused for an old version, and says what is there and what was asked.
func TestMismatchOfEveryChange(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform", person("bob", 0))
	const path = "/api/v1/groups/platform"
	old := admin.get(path).header.Get("ETag")
	want(t, admin.do("PATCH", path, mergePatch, `{"description":"hers"}`), 200)
	for _, c := range []struct{ method, path, ctype, body string }{
		{"PATCH", path, mergePatch, `{"description":"mine","labels":{"a":"b"}}`},
		{"POST", path + "/members", asJSON, `{"person":"alice","reason":"mine"}`},
		{"DELETE", path + "/members/person/corp.id-bob", "", ""},
		{"DELETE", path, "", ""},
	} {
		got := admin.do(c.method, c.path, c.ctype, c.body, "If-Match", old)
		p := decoded[api.Problem](t, got, 412)
		if p.Current == nil || p.Current.Description != "hers" || p.Current.ETag == old || p.Current.ETag != got.header.Get("ETag") || p.Code != api.CodeMismatch || string(p.Sent) != c.body {
			t.Errorf("%s %s: %s", c.method, c.path, got.body)
		}
	}
	g := decoded[api.Group](t, admin.get(path), 200)
	if g.Description != "hers" || g.MemberCount != 1 {
		t.Errorf("%+v", g)
	}
}

// Of writers that all saw one version, one wins.
func TestOneOfManyWins(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform")
	tag := admin.get("/api/v1/groups/platform").header.Get("ETag")
	statuses := make(chan int)
	for i := range 8 {
		go func() {
			statuses <- admin.do("PATCH", "/api/v1/groups/platform", mergePatch, fmt.Sprintf(`{"description":"writer %d"}`, i), "If-Match", tag).status
		}()
	}
	count := map[int]int{}
	for range 8 {
		count[<-statuses]++
	}
	if count[200] != 1 || count[412] != 7 {
		t.Errorf("%v", count)
	}
}

// Labels of two who each set one are both there, without any version named.
func TestLabelsMerge(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform")
	done := make(chan answer)
	for i := range 4 {
		go func() {
			done <- admin.do("PATCH", "/api/v1/groups/platform", mergePatch, fmt.Sprintf(`{"labels":{"k%d":"v"}}`, i))
		}()
	}
	for range 4 {
		want(t, <-done, 200)
	}
	if g := decoded[api.Group](t, admin.get("/api/v1/groups/platform"), 200); len(g.Labels) != 4 {
		t.Errorf("%v", g.Labels)
	}
}

func TestIfNoneMatch(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform")
	const path = "/api/v1/groups/platform"
	tag := admin.get(path).header.Get("ETag")
	for header, status := range map[string]int{
		tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"x"`: 200, `"x`: 400, "W/" + tag + "x": 400,
	} {
		got := admin.do("GET", path, "", "", "If-None-Match", header)
		want(t, got, status)
		if status == 304 && (got.body != "" || got.header.Get("ETag") != tag) {
			t.Errorf("%s: %v %s", header, got.header, got.body)
		}
	}
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform"}`), 409, `"code":"exists"`)
	p := decoded[api.Problem](t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform"}`, "If-None-Match", "*"), 412)
	if p.Current == nil || p.Current.ETag != tag || string(p.Sent) != `{"name":"platform"}` {
		t.Errorf("%+v", p)
	}
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"new"}`, "If-None-Match", "*"), 201)
}

func TestMergePatch(t *testing.T) {
	_, _, admin := apiHouse(t)
	const path = "/api/v1/groups/platform"
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform","description":"runs it","clusters":["prod"],"labels":{"team":"a","tier":"1"},
		"owners":[{"kind":"person","name":"bob"},{"kind":"directoryGroup","id":"corp:devs"}],"requestable":true}`), 201)
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"leads"}`), 201)
	for _, c := range []struct {
		patch  string
		status int
		words  string
	}{
		{`{}`, 200, `"description":"runs it"`},
		{`{"description":"x"}`, 200, `"description":"x"`},
		{`{"labels":{"team":null,"new":"n"}}`, 200, `"labels":{"new":"n","tier":"1"}`},
		{`{"clusters":["vault","prod"]}`, 200, `"clusters":["prod","vault"]`},
		{`{"owners":[{"kind":"group","name":"leads"},{"kind":"person","id":"corp.id-bob"}]}`, 200, `"name":"leads"`},
		{`{"owners":[{"kind":"person","name":"nobody"}]}`, 422, "Nobody was found"},
		{`{"owners":[{"kind":"group","name":"none"}]}`, 404, "No such group"},
		{`{"owners":[{"kind":"robot","name":"x"}]}`, 422, "A kind is"},
		{`{"owners":[{"kind":"person","who":"x"}]}`, 400, "unknown field"},
		{`{"name":null}`, 400, "always has one"},
		{`{"name":"system:x"}`, 422, "belong to Kubernetes"},
		{`{"name":"corp:x"}`, 422, "belong to a directory"},
		{`{"name":"leads"}`, 409, "exists already"},
		{`{"clusters":["none"]}`, 422, "no cluster"},
		{`{"members":[]}`, 400, "unknown field"},
		{`{"Description":"x"}`, 400, "unknown field"},
		{`{"description":1}`, 400, "description"},
		{`{"labels":{"a":1}}`, 400, "labels"},
		{`{"labels":[]}`, 400, "labels"},
		{`{"labels":{"bad key":"x"}}`, 422, "bad key"},
		{`null`, 400, "is an object"},
		{`[]`, 400, "could not be read"},
		{`{"requestable":null,"clusters":null,"labels":null,"owners":null,"description":null}`, 200, `"name":"platform"`},
	} {
		got := admin.do("PATCH", path, mergePatch, c.patch)
		want(t, got, c.status, c.words)
	}
	g := decoded[api.Group](t, admin.get(path), 200)
	if g.Requestable || len(g.Clusters)+len(g.Labels)+len(g.Owners) > 0 || g.Description != "" {
		t.Errorf("%+v", g)
	}
	want(t, admin.do("PATCH", path, "text/plain", `{}`), 415, "merge-patch+json or application/json")
	renamed := decoded[api.Group](t, admin.do("PATCH", path, asJSON, `{"name":"run"}`), 200)
	if renamed.Name != "run" || renamed.ID != g.ID || len(renamed.Formerly) != 1 || renamed.Formerly[0].Name != "platform" || renamed.Formerly[0].ByName != "carol" {
		t.Errorf("%+v", renamed)
	}
	want(t, admin.get(path), 404)
}

// What an owner may, and that nobody is looked up for who may not.
func TestAPIRights(t *testing.T) {
	h, spec, admin := apiHouse(t)
	const path = "/api/v1/groups/platform"
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform","owners":[{"kind":"person","name":"alice"}]}`), 201)
	want(t, admin.do("POST", path+"/members", asJSON, `{"person":"bob"}`), 200)
	owner, member, stranger := spec.check(h.as("alice")), spec.check(h.as("bob")), spec.check(h.as("dora"))
	for _, c := range []struct {
		who                       *browser
		method, path, ctype, body string
		status                    int
	}{
		{owner, "PATCH", path, mergePatch, `{"description":"hers"}`, 200},
		{owner, "PATCH", path, mergePatch, `{"requestable":true}`, 403},
		{owner, "PATCH", path, mergePatch, `{"name":"mine"}`, 403},
		{owner, "PATCH", path, mergePatch, `{"owners":[{"kind":"person","name":"nobody"}]}`, 403},
		{owner, "PATCH", path, mergePatch, `{"owners":[{"kind":"person","id":"corp.id-alice"}],"description":"same owners"}`, 200},
		{owner, "POST", path + "/members", asJSON, `{"person":"nobody"}`, 422},
		{owner, "POST", path + "/members", asJSON, `{"directoryGroup":"corp:devs"}`, 200},
		{owner, "DELETE", path + "/members/directoryGroup/corp:devs", "", "", 200},
		{owner, "GET", path + "/everyone", "", "", 200},
		{owner, "GET", "/api/v1/groups?mine=true", "", "", 200},
		{owner, "DELETE", path, "", "", 403},
		{owner, "POST", "/api/v1/groups", asJSON, `{"name":"x","owners":[{"kind":"person","name":"nobody"}]}`, 403},
		{member, "GET", path, "", "", 200},
		{member, "GET", path + "/members", "", "", 403},
		{member, "GET", path + "/members/person/corp.id-bob", "", "", 200},
		{member, "GET", path + "/everyone", "", "", 403},
		{member, "POST", path + "/members", asJSON, `{"person":"nobody"}`, 403},
		{member, "PATCH", path, mergePatch, `{"owners":[{"kind":"person","name":"bob"}]}`, 403},
		{member, "PATCH", path, mergePatch, `{"description":"x"}`, 403},
		{member, "GET", "/api/v1/people?q=al", "", "", 403},
		{member, "GET", "/api/v1/groups?owner=alice", "", "", 403},
		{member, "GET", "/api/v1/groups?owner=BOB", "", "", 200},
		{stranger, "GET", path, "", "", 404},
		{stranger, "GET", path + "/containing", "", "", 404},
		{stranger, "PATCH", path, mergePatch, `{"description":"x"}`, 404},
		{stranger, "DELETE", path, "", "", 404},
		{stranger, "DELETE", path + "/members/person/corp.id-bob", "", "", 404},
	} {
		if got := c.who.do(c.method, c.path, c.ctype, c.body); got.status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, got.status, c.status, got.body)
		}
	}
}

// Pages go on where they were, whatever is added or deleted meanwhile.
func TestPagesWithChangesBetween(t *testing.T) {
	h, _, admin := apiHouse(t)
	for i := range 9 {
		h.create(fmt.Sprintf("g%d", i))
	}
	page := func(cursor string) api.GroupList {
		t.Helper()
		return decoded[api.GroupList](t, admin.get("/api/v1/groups?limit=4&cursor="+url.QueryEscape(cursor)), 200)
	}
	names := func(l api.GroupList) (out []string) {
		for _, g := range l.Groups {
			out = append(out, g.Name)
		}
		return out
	}
	first := page("")
	want(t, admin.do("DELETE", "/api/v1/groups/g3", "", ""), 204)
	want(t, admin.do("DELETE", "/api/v1/groups/g5", "", ""), 204)
	h.create("a-new-one")
	h.create("g45")
	second := page(first.Next)
	third := page(second.Next)
	if got := fmt.Sprint(names(first), names(second), names(third)); got != "[g0 g1 g2 g3] [g4 g45 g6 g7] [g8]" || third.Next != "" {
		t.Errorf("%s, next %q", got, third.Next)
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "limit=-1", "lable=x", "mine=yes", "label=", "label=a&label=a", "member=bob", "member=robot:x", "q=%zz", "a;b=c"} {
		want(t, admin.get("/api/v1/groups?"+query), 400, `"code":"bad-query"`)
	}
	want(t, admin.get("/api/v1/groups?cursor=%21"), 422, "cursor")
	want(t, admin.get("/api/v1/groups/g1/members?kind=robot"), 400)
	want(t, admin.get("/api/v1/groups?limit=1000"), 200)
}

func TestGroupFilters(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.make(groups.Settings{Name: "leads"}, person("bob", 0))
	h.make(groups.Settings{Name: "platform", Description: "Runs it", Labels: map[string]string{"team": "a", "tier": "1"}, Clusters: []string{"prod"}, Owners: []groups.Ref{{Kind: groups.KindPerson, ID: "corp.id-alice", Name: "alice"}}},
		groups.Member{Ref: groups.Ref{Kind: groups.KindGroup, Name: "leads"}}, groups.Member{Ref: groups.Ref{Kind: groups.KindDirectoryGroup, ID: "corp:devs"}})
	for query, want := range map[string]string{
		"":                                "leads platform",
		"q=RUNS":                          "platform",
		"label=team":                      "platform",
		"label=team=a&label=tier=1":       "platform",
		"label=team=b":                    "",
		"cluster=prod":                    "leads platform",
		"cluster=vault":                   "leads",
		"owner=alice":                     "platform",
		"owner=corp.id-alice":             "platform",
		"member=person:bob":               "leads",
		"member=group:leads":              "platform",
		"member=directoryGroup:corp:devs": "platform",
		"mine=true":                       "",
	} {
		var names []string
		for _, g := range decoded[api.GroupList](t, admin.get("/api/v1/groups?"+query), 200).Groups {
			names = append(names, g.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}

func TestDeleteOfAContainedGroup(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("devs", person("bob", 0))
	h.create("platform", groups.Member{Ref: groups.Ref{Kind: groups.KindGroup, Name: "devs"}})
	h.create("zoo", groups.Member{Ref: groups.Ref{Kind: groups.KindGroup, Name: "devs"}})
	if in := decoded[api.GroupNames](t, admin.get("/api/v1/groups/devs/containing"), 200); !slices.Equal(in.Groups, []string{"platform", "zoo"}) {
		t.Errorf("%q", in.Groups)
	}
	p := decoded[api.Problem](t, admin.do("DELETE", "/api/v1/groups/devs", "", ""), 409)
	if p.Code != api.CodeContained || !slices.Equal(p.In, []string{"platform", "zoo"}) || !strings.Contains(p.Detail, "platform, zoo") {
		t.Errorf("%+v", p)
	}
	want(t, admin.do("DELETE", "/api/v1/groups/devs?contained=yes", "", ""), 400)
	want(t, admin.do("DELETE", "/api/v1/groups/devs?contained=true", "", ""), 204)
	want(t, admin.get("/api/v1/groups/platform"), 200, `"memberCount":0`)
}

func TestNestedMembersAndEveryone(t *testing.T) {
	h, _, admin := apiHouse(t)
	for _, name := range []string{"devs", "platform", "prod-admin"} {
		h.create(name)
	}
	add := func(group, body string) answer {
		t.Helper()
		return admin.do("POST", "/api/v1/groups/"+group+"/members", asJSON, body)
	}
	begin, end := time.Now().Add(time.Hour).UTC().Truncate(time.Second), time.Now().Add(2*time.Hour).UTC().Truncate(time.Second)
	want(t, add("devs", `{"person":"bob","reason":"joins"}`), 200)
	want(t, add("platform", `{"group":"devs"}`), 200)
	want(t, add("prod-admin", fmt.Sprintf(`{"group":"platform","begin":%q,"end":%q}`, begin.Format(time.RFC3339), end.Format(time.RFC3339))), 200)
	want(t, add("prod-admin", `{"directoryGroup":"corp:devs"}`), 200)
	want(t, add("devs", `{"group":"prod-admin"}`), 422, "contains this group")
	want(t, add("devs", `{"group":"none"}`), 422, "no group")
	want(t, add("devs", `{"person":"alice","begin":"2999-01-01T00:00:00Z","end":"2998-01-01T00:00:00Z"}`), 422, "ends after it begins")
	all := decoded[api.Everyone](t, admin.get("/api/v1/groups/prod-admin/everyone"), 200)
	got := map[string]api.Path{}
	for _, one := range all.Everyone {
		got[one.Name] = one.Paths[0]
	}
	bob := got["bob"]
	if len(got) != 2 || len(bob.Steps) != 3 || bob.Counts || bob.Begin == nil || !bob.Begin.Equal(begin) || !bob.End.Equal(end) || bob.Steps[0].Member.Reason != "joins" || !got["corp:devs"].Counts {
		t.Errorf("%+v", all)
	}
	if all := decoded[api.Everyone](t, admin.get("/api/v1/groups/prod-admin/everyone?limit=1"), 200); len(all.Everyone) != 1 || !all.Cut {
		t.Errorf("%+v", all)
	}
	x := decoded[api.Explanation](t, admin.get("/api/v1/explain?user=bob"), 200)
	var late *api.Path
	for _, l := range x.LeftOut {
		if l.Name == "prod-admin" {
			late = l.Path
		}
	}
	if late == nil || len(late.Steps) != 3 || late.Steps[2].Group != "prod-admin" || !late.Steps[2].Member.Pending {
		t.Errorf("%+v", x.LeftOut)
	}
}

func TestLookalikesWarn(t *testing.T) {
	_, _, admin := apiHouse(t)
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform"}`), 201)
	g := decoded[api.Group](t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"plаtform"}`), 201) // with a Cyrillic а
	if len(g.Warnings) != 1 || !strings.Contains(g.Warnings[0], `"platform"`) {
		t.Errorf("%q", g.Warnings)
	}
	g = decoded[api.Group](t, admin.do("PATCH", "/api/v1/groups/"+url.PathEscape(g.Name), mergePatch, `{"name":"Platform"}`), 200)
	if len(g.Warnings) != 1 {
		t.Errorf("renamed: %q", g.Warnings)
	}
	if g := decoded[api.Group](t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"other"}`), 201); len(g.Warnings) != 0 {
		t.Errorf("other: %q", g.Warnings)
	}
}

// Whatever a body or a name holds, the answer is a problem below 500 that does not give
// control characters back.
func TestHostileRequests(t *testing.T) {
	h, _, admin := apiHouse(t)
	h.create("platform")
	long := strings.Repeat("a", 10<<10)
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/api/v1/groups", `{"name":"` + long + `"}`, 422},
		{"POST", "/api/v1/groups", `{"name":""}`, 422},
		{"POST", "/api/v1/groups", `{}`, 422},
		{"POST", "/api/v1/groups", `{"name":"a\u0007b"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"a\u202eb"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"system:masters"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"SYSTEM:masters"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"corp:x"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"x","description":"` + long + `"}`, 422},
		{"POST", "/api/v1/groups", `{"name":"x","labels":{"` + long + `":"y"}}`, 422},
		{"POST", "/api/v1/groups", `{"name":"x","owners":[` + strings.Repeat(`{"kind":"group"},`, 2000) + `{"kind":"group"}]}`, 413},
		{"POST", "/api/v1/groups", `{"name":["x"]}`, 400},
		{"POST", "/api/v1/groups", strings.Repeat("[", 20_000), 400},
		{"POST", "/api/v1/groups", `{"name":"` + strings.Repeat("a", 2<<20) + `"}`, 413},
		{"POST", "/api/v1/groups", "", 400},
		{"POST", "/api/v1/groups/platform/members", `{"person":"` + long + `"}`, 422},
		{"POST", "/api/v1/groups/platform/members", `{"directoryGroup":"devs"}`, 422},
		{"POST", "/api/v1/groups/platform/members", `{"directoryGroup":"corp:` + long + `"}`, 422},
		{"POST", "/api/v1/groups/platform/members", `{"directoryGroup":"corp:a\u001b[31m"}`, 422},
		{"POST", "/api/v1/groups/platform/members", `{"person":"bob","reason":"a\nb"}`, 422},
		{"POST", "/api/v1/groups/platform/members", `{"person":"bob","end":"2027-02-30T00:00:00Z"}`, 400},
		{"POST", "/api/v1/groups/platform/members", `{"person":"bob","until":"2027-02-03T00:00:00Z"}`, 400},
		{"GET", "/api/v1/groups/" + long, "", 404},
		{"GET", "/api/v1/groups/a%00b", "", 404},
		{"GET", "/api/v1/groups/%ff", "", 404},
		{"GET", "/api/v1/groups/platform/members/robot/x", "", 404},
		{"DELETE", "/api/v1/groups/platform/members/person/%00", "", 404},
		{"GET", "/api/v1/groups?q=" + long, "", 200},
		{"GET", "/api/v1/groups?label=" + long + "=x", "", 200},
		{"PATCH", "/api/v1/groups/platform", `{"labels":` + strings.Repeat(`{"a":`, 5000), 400},
	} {
		got := admin.do(c.method, c.path, asJSON, c.body)
		name := c.method + " " + c.path + " " + c.body
		if got.status != c.status {
			t.Errorf("%.90s: %d, want %d: %.300s", name, got.status, c.status, got.body)
		}
		if len(got.body) > 2<<10 || strings.ContainsFunc(strings.TrimSpace(got.body), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%.90s: answer of %d bytes: %.300q", name, len(got.body), got.body)
		}
	}
}

func FuzzEntityTags(f *testing.F) {
	for _, seed := range []string{`"1"`, `W/"1", "2"`, "*", "", ",,", `"a,b"`, `W/`, "\"\x80\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		tags, anything, err := entityTags([]string{header})
		if err != nil && (anything || tags != nil) || anything && tags != nil {
			t.Errorf("%q: %q, %v, %v", header, tags, anything, err)
		}
		again, _, err2 := entityTags([]string{strings.Join(tags, ", ")})
		if err == nil && !anything && (err2 != nil || !slices.Equal(tags, again)) {
			t.Errorf("%q: %q, then %q", header, tags, again)
		}
		for _, tag := range tags {
			if !strings.Contains(header, tag) || !strings.HasSuffix(tag, `"`) {
				t.Errorf("%q gives %q", header, tag)
			}
		}
	})
}
