package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/testenv"
)

// searchable gives h a trail that can be searched, with these events in it.
func searchable(t *testing.T, h *house, events ...audit.Event) *audit.Log {
	t.Helper()
	trail, err := audit.Open(audit.Config{Dir: filepath.Join(t.TempDir(), "audit")})
	must(t, err)
	t.Cleanup(func() { _ = trail.Close() })
	if len(events) > 0 {
		must(t, trail.AppendAll(t.Context(), events))
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	h.site, err = New(Config{Brand: "Corp & Co", Auditor: NewAuditor(trail)}, h.idp, h.groups, log)
	must(t, err)
	return trail
}

func someEvents() []audit.Event {
	return []audit.Event{
		{Act: "login", Who: "corp.id-alice", Name: "alice", Outcome: audit.Done, Address: "192.0.2.9", Session: "s1"},
		{Act: "login", Outcome: audit.Denied, Reason: "user name or password is wrong", Address: "192.0.2.9"},
		{Act: "token.issue", Who: "corp.id-alice", Name: "alice", Outcome: audit.Done, Session: "s1", JTI: "j1", Client: "kubernetes", Cluster: "prod"},
		{Act: "group.member.add", Who: "corp.id-carol", Name: "carol", On: "a/b <x>", Outcome: audit.Done, Reason: "<script>alert(1)</script>", Detail: map[string]string{"member": "corp.id-alice", "name": "alice", "kind": "person"}},
		{Act: "audit.checkpoint", Outcome: audit.Done},
	}
}

func TestAuditAPI(t *testing.T) {
	h := newHouse(t)
	trail := searchable(t, h, someEvents()...)
	admin, other := h.as("carol"), h.as("alice")
	for _, c := range []struct {
		b      *browser
		query  string
		status int
		acts   string // or words of the answer
	}{
		{admin, "person=ALICE", 200, "group.member.add token.issue login"},
		{admin, "person=alice&act=login", 200, "login"},
		{admin, "group=a/b+%3Cx%3E", 200, "group.member.add"},
		{admin, "cluster=prod&session=s1&jti=j1", 200, "token.issue"},
		{admin, "outcome=denied&from=1h", 200, "login"},
		{admin, "text=SCRIPT", 200, "group.member.add"},
		{admin, "person=alice&to=2020-01-01", 200, ""},
		{admin, "person=alice&from=2020-01-01T00:00&limit=1", 200, "group.member.add"},
		{admin, "from=yesterday", 422, "from must be a time"},
		{admin, "limit=0", 422, "limit must be"},
		{admin, "limit=1001", 422, "limit must be"},
		{admin, "cursor=x", 422, "cursor is not"},
		{admin, "person=" + strings.Repeat("x", 257), 422, "person is longer"},
		{other, "person=alice", 403, "administrators"},
		{h.browser(), "", 401, "signed in"},
	} {
		got := c.b.get("/api/v1/audit?" + c.query)
		var page api.AuditPage
		if got.status != c.status || json.Unmarshal([]byte(got.body), &page) != nil {
			t.Errorf("%s: %d %s", c.query, got.status, got.body)
			continue
		}
		var acts []string
		for _, e := range page.Events {
			acts = append(acts, e.Act)
		}
		if c.status == 200 && strings.Join(acts, " ") != c.acts || c.status != 200 && !strings.Contains(got.body, c.acts) {
			t.Errorf("%s: %v %s", c.query, acts, got.body)
		}
	}
	var searches []string
	_, err := trail.Search(t.Context(), audit.Query{Act: "audit.search"}, func(e audit.Event) error {
		searches = append(searches, e.Name+" "+e.Outcome+" "+e.Detail["person"]+" "+e.Detail["act"])
		return nil
	})
	must(t, err)
	if all := strings.Join(searches, "\n"); !strings.HasPrefix(all, "alice denied  \n") || !strings.HasSuffix(all, "carol done alice login\ncarol done ALICE ") {
		t.Errorf("the searches left %q", searches)
	}
}

func TestAuditAPIPages(t *testing.T) {
	h := newHouse(t)
	var events []audit.Event
	for i := range 25 {
		events = append(events, audit.Event{Act: "login", Name: fmt.Sprint(i), Outcome: audit.Done})
	}
	searchable(t, h, events...)
	b, q := h.as("carol"), url.Values{"act": {"login"}, "limit": {"10"}}
	for i := 24; ; {
		got := b.get("/api/v1/audit?" + q.Encode())
		var page api.AuditPage
		must(t, json.Unmarshal([]byte(got.body), &page))
		for _, e := range page.Events {
			if e.Name != fmt.Sprint(i) {
				t.Fatalf("%+v, want %d", e, i)
			}
			i--
		}
		if page.Next == "" {
			if i != -1 {
				t.Fatalf("%d are left", i+1)
			}
			break
		}
		q.Set("cursor", page.Next)
	}
}

// A page of large records is shorter than was asked for, and goes on.
func TestAuditAPISize(t *testing.T) {
	h := newHouse(t)
	detail := map[string]string{}
	for i := range 30 {
		detail[fmt.Sprint(i)] = strings.Repeat("x", 1000)
	}
	var events []audit.Event
	for range 100 {
		events = append(events, audit.Event{Act: "large", Outcome: audit.Done, Detail: detail})
	}
	searchable(t, h, events...)
	b, found := h.as("carol"), 0
	for q := (url.Values{"act": {"large"}, "limit": {"1000"}}); ; {
		got := b.get("/api/v1/audit?" + q.Encode())
		var page api.AuditPage
		must(t, json.Unmarshal([]byte(got.body), &page))
		if found += len(page.Events); page.Next == "" {
			break
		}
		if n := len(got.body); n < maxAuditSize/2 || n > 2*maxAuditSize {
			t.Errorf("a page of %d bytes", n)
		}
		q.Set("cursor", page.Next)
	}
	if found != 100 {
		t.Errorf("found %d", found)
	}
}

// TestAuditOneSearchAtATime: each administrator has one, others are not kept waiting.
func TestAuditOneSearchAtATime(t *testing.T) {
	h := newHouse(t)
	trail := searchable(t, h, someEvents()...)
	a := NewAuditor(trail)
	if !a.begin("carol") || a.begin("carol") || !a.begin("dave") {
		t.Fatal("one each")
	}
	a.end("carol")
	if !a.begin("carol") {
		t.Fatal("again")
	}
	must(t, trail.Close())
	if got := h.as("carol").get("/api/v1/audit"); got.status < 500 {
		t.Errorf("searched though that cannot be recorded: %d", got.status)
	}
	h.site = must1(New(Config{}, h.idp, h.groups, logrus.New()))(t)
	if got := h.as("carol").get("/api/v1/audit"); got.status != http.StatusNotFound || !strings.Contains(got.body, "tabard audit search") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T { t.Helper(); must(t, err); return v }
}

func TestAuditPage(t *testing.T) {
	h := newHouse(t)
	searchable(t, h, someEvents()...)
	b := h.as("carol")
	got := b.get("/audit?person=alice&act=group.&junk=1")
	for _, want := range []string{
		`aria-current="page">Audit</a>`, `href="/audit?person=corp.id-carol"`, `href="/groups/a%2Fb%20%3Cx%3E"`, "&lt;script&gt;alert(1)&lt;/script&gt;",
		`<a class="chip" href="/audit?act=group.">person: alice`, `<a class="chip" href="/audit?person=alice">act: group.`, `value="alice"`,
	} {
		if got.status != 200 || !strings.Contains(got.body, want) {
			t.Errorf("%d, no %s in %s", got.status, want, got.body)
		}
	}
	if got := b.get("/audit?from=x"); got.status != 422 || !strings.Contains(got.body, "from must be a time") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := b.get("/audit?person=nobody"); got.status != 200 || !strings.Contains(got.body, "Remove a filter") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := h.as("alice").get("/audit"); got.status != 403 || strings.Contains(got.body, "192.0.2.9") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := h.browser().get("/audit?person=alice"); got.status != http.StatusSeeOther || !strings.Contains(got.header.Get("Location"), "next=") {
		t.Errorf("%d %v", got.status, got.header)
	}
	older := b.get("/audit?limit=1&session=s1").body
	_, link, _ := strings.Cut(older, `rel="next" href="`)
	link, _, _ = strings.Cut(link, `"`)
	if got := b.get(strings.ReplaceAll(link, "&amp;", "&")); got.status != 200 || !strings.Contains(got.body, ">Newest</a>") || !strings.Contains(got.body, "192.0.2.9") {
		t.Errorf("%q: %d %s", link, got.status, got.body)
	}
}

// Every field of an event is told.
func TestAuditEventIsWhole(t *testing.T) {
	var e audit.Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Uint64:
			f.SetUint(7)
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"a": "b"}))
		}
	}
	e.Time = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	want, err := json.Marshal(e)
	must(t, err)
	if got, err := json.Marshal(AuditEvent(e)); err != nil || string(got) != string(want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The page works without scripts, on a desk and on a phone, in both themes.
func TestChromiumAudit(t *testing.T) {
	h := newHouse(t)
	searchable(t, h, append(someEvents(), someEvents()...)...)
	b := testenv.Chromium(t)
	b.SetJavaScript(false)
	for _, width := range []int{1280, 390} {
		b.SetViewport(width, 900, width < 600, width < 600)
		b.Navigate(h.URL + "/audit?person=alice")
		if width == 1280 {
			b.Type("#username", "carol")
			b.Type("#password", password)
			b.Click("button.primary")
		}
		b.WaitFor(`document.querySelector("table.audit tbody tr") !== null`)
		if wide := b.Eval(`document.documentElement.scrollWidth > innerWidth`); wide != false {
			t.Errorf("at %d the page is wider than the screen", width)
		}
		b.Click("table.audit summary")
		b.WaitFor(`document.querySelector("table.audit details[open] dd") !== null`)
		if dir := os.Getenv("TABARD_SHOTS"); dir != "" {
			b.Screenshot(filepath.Join(dir, fmt.Sprintf("audit-%d.png", width)))
		}
		b.Type("#text", "script")
		b.Click(".filters button")
		b.WaitFor(`document.querySelectorAll("a.chip").length === 2`)
		b.Click("a.chip")
		b.WaitFor(`document.querySelectorAll("a.chip").length === 1`)
	}
	if errs := b.ConsoleErrors(); len(errs) > 0 {
		t.Error(errs)
	}
}

// The document has every field of the trail's wire types and no other.
func TestOpenAPIDescribesAudit(t *testing.T) {
	var doc struct {
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	must(t, json.Unmarshal(openAPI, &doc))
	for _, wire := range []any{api.AuditPage{}, api.AuditEvent{}} {
		kind := reflect.TypeOf(wire)
		props := doc.Components.Schemas[kind.Name()].Properties
		for i := range kind.NumField() {
			name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
			if _, ok := props[name]; !ok {
				t.Errorf("%s.%s is not described", kind.Name(), name)
			}
			delete(props, name)
		}
		if len(props) > 0 {
			t.Errorf("%s has not: %v", kind.Name(), props)
		}
	}
}
