package web

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/api"
)

// sessions waits until b is told of n sessions, and returns them.
func (b *browser) sessions(path string, n int) []api.Session {
	b.h.t.Helper()
	for {
		var list api.SessionList
		got := b.get(path)
		want(b.h.t, got, 200)
		must(b.h.t, json.Unmarshal([]byte(got.body), &list))
		if len(list.Sessions) == n || b.h.t.Context().Err() != nil {
			return list.Sessions
		}
	}
}

func TestAPISessions(t *testing.T) {
	h := newHouse(t)
	here, there, carol := h.as("alice"), h.as("alice"), h.as("carol")
	const all = "/api/v1/sessions"
	mine := here.sessions(all, 2)
	current := map[bool]string{mine[0].Current: mine[0].ID, mine[1].Current: mine[1].ID}
	if len(current) != 2 || mine[0].Username != "alice" || !mine[0].Browser || mine[0].Clients == nil || mine[0].Device == "" || mine[0].Device != deviceInWords(mine[0].UserAgent) {
		t.Fatalf("sessions %+v", mine)
	}
	hers := carol.sessions(all, 1)[0].ID
	want(t, h.browser().get(all), 401)
	want(t, here.get(all+"?person=*"), 403, "You may not do this")
	want(t, here.get(all+"?person=carol"), 403, "You may not do this")
	want(t, here.get(all+"?person=nobody"), 403, "You may not do this")
	want(t, here.get(all+"?limit=0"), 400, "limit")
	want(t, here.do("DELETE", all, "", ""), 400, "?person=")
	want(t, here.do("DELETE", all+"?person=carol", "", ""), 403)
	want(t, here.do("DELETE", all+"/"+hers, "", ""), 404, "No such session")
	want(t, here.do("DELETE", all+"/x", "", ""), 404, "No such session")
	want(t, here.do("DELETE", all+"/"+current[false], "", "", "Sec-Fetch-Site", "cross-site"), 403, "another site")
	carol.sessions(all+"?person=*", 3)
	carol.sessions(all+"?person=ALICE", 2)
	want(t, carol.get(all+"?person=nobody"), 422, "Nobody was found")

	want(t, here.do("DELETE", all+"/"+current[false], "", ""), 204)
	want(t, there.get("/api/v1/me"), 401)
	want(t, here.get("/api/v1/me"), 200)
	third := h.as("alice")
	want(t, here.do("DELETE", all+"?person=", "", ""), 200, `{"ended":1}`)
	want(t, third.get("/api/v1/me"), 401)
	want(t, carol.do("DELETE", all+"?person=alice", "", ""), 200, `{"ended":1}`)
	want(t, here.get("/api/v1/me"), 401)
}

func TestAPIKeys(t *testing.T) {
	h := newHouse(t)
	alice, carol := h.as("alice"), h.as("carol")
	want(t, alice.get("/api/v1/keys"), 403)
	want(t, alice.do("POST", "/api/v1/keys/rotate", "application/json", `{"emergency":true}`), 403)
	keys := func(got answer) (list api.KeyList) {
		want(t, got, 200)
		must(t, json.Unmarshal([]byte(got.body), &list))
		return list
	}
	before := keys(carol.get("/api/v1/keys"))
	if next := keys(carol.do("POST", "/api/v1/keys/rotate", "application/json", `{}`)); len(next.Keys) != 2 || next.Keys[0] != before.Keys[0] || next.Keys[1].State != "next" {
		t.Errorf("keys %+v", next)
	}
	if after := keys(carol.do("POST", "/api/v1/keys/rotate", "application/json", `{"emergency":true}`)); len(after.Keys) != 1 || after.Keys[0].ID == before.Keys[0].ID || after.Keys[0].State != "current" {
		t.Errorf("keys %+v", after)
	}
}

func TestSessionPages(t *testing.T) {
	h := newHouse(t)
	here, there, carol := h.as("alice"), h.as("alice"), h.as("carol")
	var other string
	for _, s := range here.sessions("/api/v1/sessions", 2) {
		if !s.Current {
			other = s.ID
		}
	}
	want(t, here.get("/sessions"), 200, "My sessions", "this one", other, "End all but this one")
	if got := here.get("/sessions?everyone"); strings.Contains(got.body, "Carol") || !strings.Contains(got.body, "My sessions") {
		t.Errorf("alice is shown %s", got.body)
	}
	want(t, carol.get("/sessions?everyone&q=%3Cb%3E"), 200, "No session fits", "&lt;b&gt;")
	want(t, carol.get("/sessions?everyone"), 200, "alice", "carol")
	want(t, here.post("/sessions/end", url.Values{"id": {"nothing"}}), 404, "No such session")
	want(t, here.post("/sessions/end", url.Values{"id": {other}}, "Sec-Fetch-Site", "cross-site"), 403)
	if got := here.post("/sessions/end", url.Values{"id": {other}}); got.header.Get("Location") != "/sessions?did=session-ended" {
		t.Errorf("ended: %d %v", got.status, got.header)
	}
	want(t, there.get("/api/v1/me"), 401)
	third := h.as("alice")
	if got := here.post("/sessions/end-others", nil); got.header.Get("Location") != "/sessions?did=sessions-ended" {
		t.Errorf("ended: %d %v", got.status, got.header)
	}
	want(t, third.get("/api/v1/me"), 401)
	want(t, here.get("/sessions?did=sessions-ended"), 200, "All other sessions ended")
}

func TestDeviceInWords(t *testing.T) {
	for agent, want := range map[string]string{
		"": "unknown", "kubectl-tabard on linux": "kubectl-tabard on linux",
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36":                         "Chrome on Linux",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0":                                          "Firefox on Windows",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/604.1": "Safari on iPhone",
	} {
		if got := deviceInWords(agent); got != want {
			t.Errorf("%q: %q, want %q", agent, got, want)
		}
	}
}
