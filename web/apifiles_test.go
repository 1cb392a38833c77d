package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
)

const aSub = "corp.0191d9e0-93aa-7bbb-8ccc-123456789abc" // of nobody in the directory

// applied lists changes in short.
func applied(t *testing.T, got answer) (out []string) {
	t.Helper()
	for _, ch := range decoded[api.Applied](t, got, 200).Changes {
		text := ch.Act + " " + ch.Group
		if ch.Member != nil {
			text += " " + ch.Member.Kind + " " + ch.Member.Name
		}
		out = append(out, text)
	}
	return out
}

func TestApply(t *testing.T) {
	_, _, admin := apiHouse(t)
	apply := func(query, body string) answer {
		t.Helper()
		return admin.do("POST", "/api/v1/apply"+query, asJSON, `{"groups":[`+body+`]}`)
	}
	const devs = `{"name":"devs","labels":{"from":"git"},"members":[{"person":"bob","reason":"joins"},{"person":"` + aSub + `","name":"gone"}]}`
	const platform = `{"name":"platform","labels":{"from":"git"},"owners":[{"group":"devs"},{"person":"alice"}],"clusters":["prod"],
		"members":[{"group":"devs"},{"directoryGroup":"corp:devs","end":"2999-01-01T00:00:00+01:00"}]}`
	all := []string{
		"create devs", "create platform", "edit platform", "add devs person bob", "add devs person gone",
		"add platform directoryGroup corp:devs", "add platform group devs",
	}
	same := func(got, want []string) {
		t.Helper()
		seen := map[string]bool{}
		for _, g := range got {
			seen[g] = true
		}
		for _, w := range want {
			if !seen[w] && w != "edit platform" { // owners may be set at the creation
				t.Errorf("no %q in %q", w, got)
			}
		}
	}
	same(applied(t, apply("?dryRun=true", platform+","+devs)), all)
	want(t, admin.get("/api/v1/groups"), 200, `{"groups":[]}`)
	same(applied(t, apply("", platform+","+devs)), all)
	if again := applied(t, apply("", platform+","+devs)); len(again) != 0 {
		t.Errorf("again: %q", again)
	}
	for _, c := range []struct {
		query, body string
		status      int
		words       string
	}{
		{"", `{"name":"x","members":[{"person":"nobody"}]}`, 422, `Group \"x\" names \"nobody\". No directory`},
		{"", `{"name":"x","members":[{"person":"twin"}]}`, 422, "More than one person"},
		{"", `{"name":"x","members":[{}]}`, 422, `Group \"x\": name one`},
		{"", `{"name":"x","members":[{"person":"bob","group":"devs"}]}`, 422, "name one"},
		{"", `{"name":"x","members":[{"group":"none"}]}`, 422, "none"},
		{"", `{"name":"x","membres":[]}`, 400, "membres"},
		{"", `{"name":"corp:x"},{"name":"system:y"}`, 422, "Kubernetes"},
		{"?prune=from", "", 400, "prune is written key=value"},
		{"?prune=from=", "", 400, "prune is written key=value"},
		{"?dryrun=true", "", 400, "dryRun"},
	} {
		want(t, apply(c.query, c.body), c.status, c.words)
	}
	if got := applied(t, apply("?prune=from=git&dryRun=true", devs)); len(got) != 1 || got[0] != "delete platform" {
		t.Errorf("prune: %q", got)
	}
	if got := applied(t, apply("?prune=from=git", devs)); len(got) != 1 {
		t.Errorf("prune: %q", got)
	}
	want(t, admin.get("/api/v1/groups/platform"), 404)
	change := decoded[api.Applied](t, apply("?dryRun=true", `{"name":"devs","description":"new"}`), 200)
	if len(change.Changes) != 1 || change.Changes[0].Act != "edit" || !strings.Contains(change.Changes[0].Diff["description"], "→ new") || !change.DryRun {
		t.Errorf("%+v", change)
	}
}

func TestLoginsOfOneRequestAreBounded(t *testing.T) {
	h := newHouse(t)
	l := lookup{a: &apiServer{groups: h.groups, idp: h.idp}, found: map[string]groups.Ref{}}
	l.c.me.Admin = true
	if ref, err := l.person(t.Context(), "x", api.Who{Person: "bob"}); err != nil || ref.ID != "corp.id-bob" {
		t.Errorf("%v, %v", ref, err)
	}
	for i := range maxLookups - 1 {
		l.found[fmt.Sprint(i)] = groups.Ref{}
	}
	if _, err := l.person(t.Context(), "x", api.Who{Person: "alice"}); err == nil || !strings.Contains(err.Error(), "At most 1000") {
		t.Error(err)
	}
	if _, err := l.person(t.Context(), "x", api.Who{Person: "Bob"}); err != nil { // looked up before
		t.Error(err)
	}
	if ref, err := l.person(t.Context(), "x", api.Who{Person: aSub, Name: "n"}); err != nil || ref.ID != aSub || ref.Name != "n" {
		t.Errorf("%v, %v", ref, err)
	}
}

// Who is no administrator applies what they own, and learns nothing of others.
func TestApplyIsForAdministratorsAndOwners(t *testing.T) {
	h, spec, admin := apiHouse(t)
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform","owners":[{"kind":"person","name":"alice"}]}`), 201)
	owner := spec.check(h.as("alice"))
	const file = `{"groups":[{"name":%q,"owners":[{"person":"corp.id-alice"}],"members":[{"person":%q}]}]}`
	send := func(group, who string) answer {
		return owner.do("POST", "/api/v1/apply", asJSON, fmt.Sprintf(file, group, who))
	}
	want(t, send("mine", "nobody"), 403)
	want(t, send("mine", "bob"), 403)
	want(t, send("platform", "nobody"), 422)
	want(t, send("platform", "bob"), 200, `"act":"add"`)
	want(t, owner.do("POST", "/api/v1/apply", asJSON, `{"groups":[{"name":"`+strings.Repeat("a", maxJSON)+`"}]}`), 413)
	want(t, owner.do("POST", "/api/v1/apply?prune=a=b", asJSON, `{"groups":[]}`), 403)
}

func TestExportIsWhatApplyTakes(t *testing.T) {
	h, spec, admin := apiHouse(t)
	want(t, admin.get("/api/v1/export"), 200)
	h.make(groups.Settings{Name: "leads", Labels: map[string]string{"a": "b"}}, person("bob", 0))
	h.make(groups.Settings{Name: "platform", Description: "ä\"\\<>", Clusters: []string{"prod"}, Requestable: true, Owners: []groups.Ref{{Kind: groups.KindPerson, ID: "corp.id-alice", Name: "alice"}}},
		groups.Member{Ref: groups.Ref{Kind: groups.KindGroup, Name: "leads"}}, groups.Member{Ref: groups.Ref{Kind: groups.KindDirectoryGroup, ID: "corp:devs"}, Reason: "why"})
	h.create("empty")
	got := admin.get("/api/v1/export")
	want(t, got, 200)
	lines := strings.Split(strings.TrimSpace(got.body), "\n")
	if got.header.Get("Content-Type") != "application/jsonl" || len(lines) != 3 || !strings.HasPrefix(lines[0], `{"name":"empty"`) || !strings.Contains(lines[0], `"members":[]`) {
		t.Fatalf("%v\n%s", got.header, got.body)
	}
	if again := applied(t, admin.do("POST", "/api/v1/apply", asJSON, `{"groups":[`+strings.Join(lines, ",")+`]}`)); len(again) != 0 {
		t.Errorf("%q", again)
	}
	want(t, admin.get("/api/v1/export?label=a=b"), 200, `"leads"`)
	want(t, admin.get("/api/v1/export?lable=a"), 400)
	if got := spec.check(h.as("dora")).get("/api/v1/export"); got.status != 200 || got.body != "" {
		t.Errorf("a stranger exports %d %s", got.status, got.body)
	}
}

// brokenWriter takes one line and no more.
type brokenWriter struct {
	*httptest.ResponseRecorder
	n int
}

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.n++; w.n > 1 {
		return 0, errors.New("gone")
	}
	return w.ResponseRecorder.Write(b)
}

// An export that ends early does not look whole.
func TestBrokenExport(t *testing.T) {
	h := newHouse(t)
	h.create("a")
	h.create("b")
	log := logrus.New()
	log.SetOutput(t.Output())
	server := API(h.groups, h.idp, operator(), log)
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("the connection is not cut")
		}
	}()
	server.ServeHTTP(&brokenWriter{ResponseRecorder: httptest.NewRecorder()}, httptest.NewRequest("GET", "/api/v1/export", nil))
}

func FuzzFilter(f *testing.F) {
	for _, seed := range []string{"label=a=b&label=c", "member=group:x&mine=true", "q=%00&limit=3", "owner=corp.x&cluster=prod"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := &http.Request{URL: &url.URL{RawQuery: raw}}
		q, err := query(r, filterNames...)
		if err != nil {
			return
		}
		for name := range q {
			if !strings.Contains(strings.Join(filterNames, " "), name) {
				t.Errorf("parameter %q", name)
			}
		}
		labels, err := labelsOf(q["label"])
		if err == nil && len(labels) != len(q["label"]) {
			t.Errorf("%q gives %v", raw, labels)
		}
		if _, err := json.Marshal(labels); err != nil {
			t.Error(err)
		}
	})
}

// TestApplySlowSender: somebody without rights who sends a body slowly keeps no
// administrator from applying files.
func TestApplySlowSender(t *testing.T) {
	h, _, admin := apiHouse(t)
	slow := h.as("bob")
	u, err := url.Parse(h.URL)
	must(t, err)
	body := &slowBody{reading: make(chan struct{}), gone: make(chan struct{})}
	req := httptest.NewRequestWithContext(t.Context(), "POST", h.URL+"/api/v1/apply", body)
	req.Header.Set("Content-Type", asJSON)
	for _, c := range slow.Jar.Cookies(u) {
		req.AddCookie(c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.site.ServeHTTP(httptest.NewRecorder(), req)
	}()
	<-body.reading
	want(t, admin.do("POST", "/api/v1/apply?dryRun=true", asJSON, `{"groups":[]}`), 200)
	close(body.gone)
	<-done
}

// slowBody sends nothing until its sender is gone.
type slowBody struct{ reading, gone chan struct{} }

func (b *slowBody) Read([]byte) (int, error) {
	close(b.reading)
	<-b.gone
	return 0, io.ErrUnexpectedEOF
}

// TestApplyNamesAreTheDirectorys: an owner cannot show one person under another's name.
func TestApplyNamesAreTheDirectorys(t *testing.T) {
	h, spec, admin := apiHouse(t)
	id := strings.TrimPrefix(aSub, "corp.")
	h.corp.all[id] = directory.Person{Directory: "corp", ID: id, DN: "uid=mallory", Username: "mallory", Name: "Mallory", State: directory.Active}
	const gone = "corp.0191d9e0-93aa-7bbb-8ccc-000000000000"
	want(t, admin.do("POST", "/api/v1/groups", asJSON, `{"name":"platform","owners":[{"kind":"person","name":"alice"}]}`), 201)
	owner := spec.check(h.as("alice"))
	file := func(who string) string {
		return `{"groups":[{"name":"platform","owners":[{"person":"corp.id-alice"}],"members":[` + who + `]}]}`
	}
	want(t, owner.do("POST", "/api/v1/apply", asJSON, file(`{"person":"`+gone+`","name":"dora"}`)), 422, "Nobody")
	want(t, owner.do("POST", "/api/v1/apply", asJSON, file(`{"person":"`+aSub+`","name":"dora"}`)), 200, "mallory")
	if got := admin.get("/api/v1/groups/platform/members").body; !strings.Contains(got, "mallory") || strings.Contains(got, "dora") {
		t.Errorf("members: %s", got)
	}
	// Somebody who left the directory stays, as administrators named them.
	want(t, admin.do("POST", "/api/v1/apply", asJSON, file(`{"person":"`+gone+`","name":"former"}`)), 200)
	want(t, owner.do("POST", "/api/v1/apply", asJSON, file(`{"person":"`+gone+`","name":"former"}`)), 200, `"changes":[]`)
}
