package web

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
)

func TestAPIStatuses(t *testing.T) {
	h := newHouse(t)
	h.create("platform", person("bob", 0))
	spec := newContract(t)
	admin, other, nobody := spec.check(h.as("carol")), spec.check(h.as("alice")), spec.check(h.browser())
	const ctype = "application/json"
	for _, c := range []struct {
		who          *browser
		method, path string
		ctype, body  string
		status       int
		words        string
	}{
		{nobody, "GET", "/api/v1/me", "", "", 401, "You are not signed in"},
		{nobody, "GET", "/api/openapi.json", "", "", 200, `"openapi": "3.1.0"`},
		{other, "GET", "/api/v1/me", "", "", 200, `"username":"alice"`},
		{nobody, "GET", "/api/v1/clusters", "", "", 401, "You are not signed in"},
		{other, "GET", "/api/v1/clusters", "", "", 200, `{"clusters":[{"name":"prod","clientID":"kubernetes","apiServer":"https://prod.example:6443"}]}`},
		{other, "GET", "/api/v1/groups", "", "", 200, `{"groups":[]}`},
		{other, "GET", "/api/v1/groups/platform", "", "", 404, "No such group or member"},
		{other, "POST", "/api/v1/groups", ctype, `{"name":"mine"}`, 403, "You may not do this"},
		{other, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"nobody"}`, 404, "No such group or member"},
		{other, "GET", "/api/v1/people?q=a", "", "", 403, "You may not do this"},
		{nobody, "GET", "/api/v1/explain", "", "", 401, "You are not signed in"},
		{other, "GET", "/api/v1/explain", "", "", 200, `"username":"alice"`},
		{other, "GET", "/api/v1/explain?user=alice&cluster=prod", "", "", 200, `"cluster":"prod"`},
		{other, "GET", "/api/v1/explain?user=bob", "", "", 403, "You may not do this"},
		{other, "GET", "/api/v1/explain?user=nobody", "", "", 403, "You may not do this"},
		{admin, "GET", "/api/v1/explain?user=bob", "", "", 200, `"milliseconds":1.5`},
		{admin, "GET", "/api/v1/explain?user=bob", "", "", 200, `{"name":"corp:old","dn":"cn=old","rule":"groups.exclude[0] old"}`},
		{admin, "GET", "/api/v1/explain?user=nobody", "", "", 422, "Nobody was found"},
		{admin, "GET", "/api/v1/explain?user=bob&cluster=none", "", "", 422, "No such cluster"},
		{admin, "GET", "/api/v1/groups", "", "", 200, `"memberCount":1`},
		{admin, "GET", "/api/v1/groups/none", "", "", 404, "No such group or member"},
		{admin, "GET", "/api/v1/nothing", "", "", 404, "openapi.json"},
		{admin, "PUT", "/api/v1/groups", ctype, "{}", 405, "Method Not Allowed"},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":"readers","description":"look"}`, 201, `"name":"readers"`},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":"readers"}`, 409, "exists already"},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":"corp:x"}`, 422, "belong to a directory"},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":"x","nmae":"y"}`, 400, "nmae"},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":"x"} {}`, 400, "something follows"},
		{admin, "POST", "/api/v1/groups", ctype, `{"name":`, 400, "could not be read"},
		{admin, "POST", "/api/v1/groups", "text/plain", `{"name":"x"}`, 415, "Content-Type"},
		{admin, "POST", "/api/v1/groups", "", `{"name":"x"}`, 415, "Content-Type"},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"alice","end":"2999-01-01T00:00:00Z","reason":"r"}`, 200, `"memberCount":2`},
		{admin, "GET", "/api/v1/groups/platform/members/person/corp.id-alice", "", "", 200, `"end":"2999-01-01T00:00:00Z"`},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"alice","end":"2001-01-01T00:00:00Z"}`, 422, "lies ahead"},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"directoryGroup":"corp:devs"}`, 200, `"memberCount":3`},
		{admin, "GET", "/api/v1/groups/platform/members?kind=directoryGroup", "", "", 200, `"id":"corp:devs"`},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"nobody"}`, 422, "Nobody was found"},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"twin"}`, 422, "Several people"},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"lab.id-twin"}`, 200, `"memberCount":4`},
		{admin, "GET", "/api/v1/groups/platform/members?q=LAB", "", "", 200, `"id":"lab.id-twin"`},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{}`, 422, "one person, one directory group or one group"},
		{admin, "POST", "/api/v1/groups/platform/members", ctype, `{"person":"bob","directoryGroup":"corp:devs"}`, 422, "one person, one directory group or one group"},
		{admin, "DELETE", "/api/v1/groups/platform/members/directoryGroup/corp%3Adevs", "", "", 200, `"memberCount":3`},
		{admin, "DELETE", "/api/v1/groups/platform/members/directoryGroup/corp%3Adevs", "", "", 404, "No such group or member"},
		{admin, "DELETE", "/api/v1/groups/readers", "", "", 204, ""},
		{admin, "DELETE", "/api/v1/groups/readers", "", "", 404, ""},
	} {
		t.Run(c.method+c.path+c.body, func(t *testing.T) {
			got := c.who.do(c.method, c.path, c.ctype, c.body)
			want(t, got, c.status, c.words)
			if got.header.Get("Cache-Control") != "no-store" || got.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", got.header)
			}
			if c.status < 400 {
				return
			}
			var p api.Problem
			must(t, json.Unmarshal([]byte(got.body), &p))
			if p.Code != "" && p.Type != "urn:tabard:problem:"+p.Code || p.Code == "" && c.status != 404 && c.status != 405 {
				t.Errorf("type %s, code %s", p.Type, p.Code)
			}
			if p.Status != c.status || p.Title == "" || p.Detail == "" || p.RequestID != requestID || got.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("problem %+v, %v", p, got.header)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, "Bearer") {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	h.corp.down.Store(true)
	want(t, admin.do("POST", "/api/v1/groups/platform/members", ctype, `{"person":"alice"}`), 503, "does not answer")
}

// A token that was sent decides; the cookie beside it does not help.
func TestAPIAuthentication(t *testing.T) {
	h := newHouse(t)
	b := h.as("carol")
	for _, header := range []string{"Bearer x", "Bearer ", "Basic Y2Fyb2w6eA==", "x"} {
		want(t, b.do("GET", "/api/v1/me", "", "", "Authorization", header), 401)
	}
	const body = `{"name":"x"}`
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}} {
		want(t, b.do("POST", "/api/v1/groups", "application/json", body, header...), 403, "another site")
	}
	want(t, b.get("/api/v1/groups"), 200, `{"groups":[]}`)
	want(t, b.do("POST", "/api/v1/groups", "application/json", body, "Sec-Fetch-Site", "same-origin"), 201)
}

func TestAPIWithoutServer(t *testing.T) {
	h := newHouse(t)
	server := API(h.groups, h.idp, groups.Actor{Operator: true, Name: "operator"}, logrus.New())
	call := func(method, path, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		return w
	}
	if w := call("GET", "/api/v1/me", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"admin":true`) || !strings.Contains(w.Body.String(), `"groups":[]`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call("POST", "/api/v1/groups", `{"name":"x"}`); w.Code != 201 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call("POST", "/api/v1/groups/x/members", `{"person":"bob"}`); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := call("GET", "/api/v1/groups/x/members", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"grantedBy":"operator"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAPIPathsAreUnescapedOnce(t *testing.T) {
	h := newHouse(t)
	for _, name := range []string{"a b", "50%25", "50%", "a%2Fb", "ä?&#", "a:b"} {
		h.create(name)
		got := h.as("carol").get("/api/v1/groups/" + url.PathEscape(name))
		var g api.Group
		if got.status != http.StatusOK || json.Unmarshal([]byte(got.body), &g) != nil || g.Name != name {
			t.Errorf("%q: %d %s", name, got.status, got.body)
		}
	}
}
