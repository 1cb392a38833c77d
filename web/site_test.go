package web

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/html"

	"github.com/tabard-id/tabard/internal/audit"
)

// fill puts something into the values of a route's path.
func fill(path string) string {
	return strings.NewReplacer("{name}", "platform", "{kind}", "person", "{id}", "corp.id-bob", "{file}", "x").Replace(path)
}

func TestEveryPageHasItsHeaders(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", 0))
	b := h.as("carol")
	for _, rt := range h.site.routes() {
		got := b.do(rt.method, fill(rt.path), "application/x-www-form-urlencoded", "")
		for name, value := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
			"Strict-Transport-Security": "max-age=31536000",
		} {
			if got.header.Get(name) != value {
				t.Errorf("%s %s: %s is %q", rt.method, rt.path, name, got.header.Get(name))
			}
		}
		if csp := got.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s %s: policy %q", rt.method, rt.path, csp)
		}
	}
}

func TestOtherSitesCannotPost(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", 0))
	b := h.as("carol")
	before := h.trail.count()
	form := url.Values{"username": {"carol"}, "password": {password}, "name": {"new"}, "kind": {"person"}, "who": {"alice"}, "id": {"corp.id-bob"}, "decision": {"allow"}}
	for _, rt := range h.site.routes() {
		if rt.method != "POST" {
			continue
		}
		for _, header := range [][]string{
			{"Sec-Fetch-Site", "cross-site"},
			{"Sec-Fetch-Site", "same-site", "Origin", h.URL},
			{"Origin", "https://evil.example"},
			{"Origin", "null"},
		} {
			got := b.post(fill(rt.path), form, header...)
			want(t, got, 403, "This came from another site", requestID)
			if got.header.Get("Set-Cookie") != "" {
				t.Errorf("%s %v set a cookie", rt.path, header)
			}
		}
	}
	if after := h.trail.count(); after != before {
		t.Errorf("%d acts were done", after-before)
	}
	want(t, b.post("/groups", url.Values{"name": {"new"}}, "Sec-Fetch-Site", "same-origin", "Origin", h.URL), 303)
}

func TestMethodsAreStrict(t *testing.T) {
	h := newHouse(t)
	b := h.as("carol")
	allowed := map[string][]string{}
	for _, rt := range h.site.routes() {
		allowed[rt.path] = append(allowed[rt.path], rt.method)
	}
	for path, methods := range allowed {
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			got := b.do(m, fill(path), "", "")
			if is405 := got.status == 405; is405 == strings.Contains(strings.Join(methods, " "), m) {
				t.Errorf("%s %s gives %d", m, path, got.status)
			}
			if got.status == 405 && !strings.Contains(got.header.Get("Allow"), methods[0]) {
				t.Errorf("%s %s: Allow is %q", m, path, got.header.Get("Allow"))
			}
		}
	}
	want(t, b.get("/nothing"), 404, "There is no such page", requestID)
	if got := h.as("carol").do("HEAD", "/", "", ""); got.status != 200 || got.body != "" {
		t.Errorf("HEAD gives %d %q", got.status, got.body)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	h := newHouse(t)
	want(t, h.browser().post("/sign-in", url.Values{"username": {strings.Repeat("a", 70<<10)}}), 413)
	want(t, h.as("carol").do("POST", "/api/v1/groups", "application/json", `{"name":"`+strings.Repeat("a", 2<<20)+`"}`), 413)
	want(t, h.browser().do("POST", "/sign-in", "application/x-www-form-urlencoded", "username=%zz"), 400)
}

func TestPanicsAreAnsweredAndLogged(t *testing.T) {
	h := newHouse(t)
	var logged bytes.Buffer
	log := logrus.New()
	log.SetOutput(&logged)
	h.site.log = log
	r := httptest.NewRequest("GET", "/x?password=hunter2", nil)
	r = r.WithContext(audit.WithOrigin(r.Context(), audit.Origin{RequestID: requestID}))
	w := httptest.NewRecorder()
	h.site.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })).ServeHTTP(w, r)
	if body := w.Body.String(); w.Code != 500 || !strings.Contains(body, requestID) || strings.Contains(body, "boom") {
		t.Errorf("%d %s", w.Code, body)
	}
	if l := logged.String(); !strings.Contains(l, "boom") || !strings.Contains(l, "site_test.go") || !strings.Contains(l, requestID) || strings.Contains(l, "hunter2") {
		t.Errorf("log: %s", l)
	}
}

func TestSignInPageIsSmall(t *testing.T) {
	h := newHouse(t)
	b := h.browser()
	page := b.get("/sign-in")
	total := len(page.body)
	for _, link := range regexp.MustCompile(`(?:href|src)="(/assets/[^"]+)"`).FindAllStringSubmatch(page.body, -1) {
		got := b.get(link[1])
		want(t, got, 200)
		if got.header.Get("Cache-Control") != "public, max-age=31536000, immutable" || got.header.Get("Content-Type") == "" {
			t.Errorf("%s: %v", link[1], got.header)
		}
		total += len(got.body)
	}
	if total > 20<<10 {
		t.Errorf("%d bytes", total)
	}
}

func TestBasePathIsInEveryLink(t *testing.T) {
	h := newHouse(t)
	site, err := New(Config{BasePath: "/id"}, h.idp, h.groups, logrus.New())
	must(t, err)
	w := httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequest("GET", "/sign-in", nil))
	links := regexp.MustCompile(`(?:href|src|action)="([^"]+)"`).FindAllStringSubmatch(w.Body.String(), -1)
	for _, link := range links {
		if !strings.HasPrefix(link[1], "/id/") && link[1] != "#main" {
			t.Errorf("link to %s", link[1])
		}
	}
	if len(links) < 5 {
		t.Errorf("only %d links", len(links))
	}
	w = httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequest("GET", "/groups/a%20b?q=1", nil))
	if to := w.Header().Get("Location"); to != "/id/sign-in?next=%2Fgroups%2Fa%2520b%3Fq%3D1" {
		t.Errorf("goes to %s", to)
	}
	for _, bad := range []string{"id", "/id/", "/"} {
		if err := (Config{BasePath: bad}).Validate(); err == nil {
			t.Errorf("base path %q passes", bad)
		}
	}
}

// Text on every background that carries it has 4.5:1 in both themes (WCAG 2.2,
// 1.4.3), edges of fields 3:1 (1.4.11).
func TestContrast(t *testing.T) {
	css, err := assetFiles.ReadFile("assets/tabard.css")
	must(t, err)
	tokens := map[string][2]float64{}
	for _, m := range regexp.MustCompile(`--([a-z-]+): light-dark\(#(\w{6}), #(\w{6})\)`).FindAllStringSubmatch(string(css), -1) {
		tokens[m[1]] = [2]float64{luminance(t, m[2]), luminance(t, m[3])}
	}
	check := func(least float64, fg string, on ...string) {
		for _, bg := range on {
			for theme, a := range tokens[fg] {
				b := tokens[bg][theme]
				if ratio := (max(a, b) + .05) / (min(a, b) + .05); ratio < least || tokens[bg] == [2]float64{} {
					t.Errorf("%s on %s, theme %d: %.2f", fg, bg, theme, ratio)
				}
			}
		}
	}
	check(4.5, "text", "bg", "surface", "accent-soft", "danger-soft", "success-soft")
	check(4.5, "muted", "bg", "surface", "accent-soft")
	check(4.5, "accent", "bg", "surface", "accent-soft")
	check(4.5, "danger", "bg", "surface", "danger-soft", "accent-soft")
	check(4.5, "warning", "bg", "surface", "warning-soft")
	check(4.5, "on-accent", "accent")
	check(4.5, "on-danger", "danger")
	check(3, "edge", "bg", "surface")
}

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(hex, 16, 32)
	must(t, err)
	linear := func(c uint64) float64 {
		v := float64(c&0xff) / 255
		if v <= .04045 {
			return v / 12.92
		}
		return math.Pow((v+.055)/1.055, 2.4)
	}
	return .2126*linear(n>>16) + .7152*linear(n>>8) + .0722*linear(n)
}

func TestUnknownErrorsTellNothing(t *testing.T) {
	if f := explain(errors.New("ldap://dc1: secret")); f.Status != 500 || strings.Contains(f.Title+f.Detail, "dc1") {
		t.Errorf("%+v", f)
	}
}

// What a screen reader lives by: one heading, landmarks, a label for every control,
// scopes in tables, ids that are unique.
func TestPagesAreAccessible(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", time.Hour), person("alice", 0))
	b := h.as("carol")
	client, err := h.idp.Client("kubernetes")
	must(t, err)
	device, err := h.idp.StartDevice(t.Context(), client, false)
	must(t, err)
	pages := map[string]answer{
		"sign-in": h.browser().get("/sign-in"), "device/confirm": b.post("/device", url.Values{"user_code": {device.UserCode}}),
		"choose": h.browser().post("/sign-in", url.Values{"username": {"twin"}, "password": {password}}),
		"remove": b.get("/groups/platform/remove?kind=person&id=corp.id-bob"), "not found": b.get("/x"),
	}
	for _, rt := range h.site.routes() {
		if rt.method == "GET" && rt.path != "/sign-in" {
			pages[rt.path] = b.get(fill(rt.path))
		}
	}
	for name, got := range pages {
		if !strings.HasPrefix(got.header.Get("Content-Type"), "text/html") || got.status == http.StatusSeeOther {
			continue
		}
		for _, fault := range accessFaults(t, got.body) {
			t.Errorf("%s: %s", name, fault)
		}
	}
}

func accessFaults(t *testing.T, body string) (faults []string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body))
	must(t, err)
	count, ids, labelled := map[string]int{}, map[string]int{}, map[string]bool{}
	var controls []*html.Node
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		count[n.Data]++
		if id := attr(n, "id"); id != "" {
			ids[id]++
		}
		switch {
		case n.Data == "label":
			labelled[attr(n, "for")] = true
		case n.Data == "select" || n.Data == "textarea" || n.Data == "input" && attr(n, "type") != "hidden":
			controls = append(controls, n)
		case n.Data == "th" && attr(n, "scope") == "":
			faults = append(faults, "a th without scope")
		case n.Data == "img" && !slices.ContainsFunc(n.Attr, func(a html.Attribute) bool { return a.Key == "alt" }):
			faults = append(faults, "an img without alt")
		case n.Data == "html" && attr(n, "lang") == "":
			faults = append(faults, "no language")
		}
	}
	if count["h1"] != 1 || count["main"] != 1 || count["title"] != 1 {
		faults = append(faults, fmt.Sprintf("%d h1, %d main, %d title", count["h1"], count["main"], count["title"]))
	}
	for id, n := range ids {
		if n > 1 {
			faults = append(faults, "id twice: "+id)
		}
	}
	for _, c := range controls {
		if c.Parent.Data != "label" && !labelled[attr(c, "id")] {
			faults = append(faults, "no label for "+attr(c, "name"))
		}
	}
	return faults
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}
