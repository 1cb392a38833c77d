package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// groupServer answers as respond says and remembers what was asked.
func groupServer(t *testing.T, respond func(w http.ResponseWriter, r *http.Request)) (*Client, *[]string) {
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(fmt.Sprint(r.Method, " ", r.URL.EscapedPath(), "?", r.URL.RawQuery, " ", r.Header.Get("If-Match"), " ", r.Header.Get("Content-Type"), " ", string(body))))
		respond(w, r)
	}))
	t.Cleanup(srv.Close)
	return NewClient(srv.URL, srv.Client(), nil), &asked
}

func TestGroupPages(t *testing.T) {
	c, asked := groupServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("cursor") {
		case "":
			io.WriteString(w, `{"groups":[{"name":"a"},{"name":"b"}],"next":"b/&"}`)
		case "b/&":
			io.WriteString(w, `{"groups":[],"next":"c"}`)
		case "c":
			io.WriteString(w, `{"groups":[{"name":"d"}]}`)
		}
	})
	var names []string
	all := c.Groups(t.Context(), GroupFilter{Query: "x y", Labels: []string{"team=a", "tier"}, Cluster: "prod", Owner: "alice", Member: "group:g", Mine: true})
	for g, err := range all {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, g.Name)
	}
	if !slices.Equal(names, []string{"a", "b", "d"}) {
		t.Errorf("%q", names)
	}
	const filter = "label=team%3Da&label=tier&limit=500&member=group%3Ag&mine=true&owner=alice&q=x+y"
	want := []string{"GET /api/v1/groups?cluster=prod&" + filter, "GET /api/v1/groups?cluster=prod&cursor=b%2F%26&" + filter, "GET /api/v1/groups?cluster=prod&cursor=c&" + filter}
	if !slices.Equal(*asked, want) {
		t.Errorf("asked %q", *asked)
	}
	for range all { // begins anew, and may be left
		break
	}
	if len(*asked) != 4 || (*asked)[3] != want[0] {
		t.Errorf("asked %q", (*asked)[3:])
	}
}

func TestGroupPagesEndWithTheError(t *testing.T) {
	c, _ := groupServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") != "" {
			w.WriteHeader(503)
			io.WriteString(w, `{"title":"Groups are not up to date here","status":503,"code":"stale"}`)
			return
		}
		io.WriteString(w, `{"members":[{"kind":"person","id":"a"}],"next":"a"}`)
	})
	n := 0
	var last error
	for _, err := range c.Members(t.Context(), "a/b", KindPerson, "q") {
		n, last = n+1, err
	}
	if n != 2 || !HasCode(last, "stale") {
		t.Errorf("%d, %v", n, last)
	}
}

func TestGroupRequests(t *testing.T) {
	c, asked := groupServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete && !strings.Contains(r.URL.Path, "/members/") {
			w.WriteHeader(204)
			return
		}
		io.WriteString(w, `{"name":"platform","etag":"\"8\""}`)
	})
	ctx := t.Context()
	g, err := c.EditGroup(ctx, "plat/form", `"7"`, map[string]any{"description": nil})
	if err != nil || g.ETag != `"8"` {
		t.Errorf("%+v, %v", g, err)
	}
	_, err1 := c.AddMember(ctx, "platform", `"8"`, AddMember{Group: "devs", Reason: "r"})
	_, err2 := c.RemoveMember(ctx, "platform", "", KindDirectoryGroup, "corp:a/b")
	_, err3 := c.Apply(ctx, nil, true, []string{"team=a"})
	_, err4 := c.Apply(ctx, []File{{Name: "empty", Members: []FileMember{}}, {Name: "as-is"}}, false, nil)
	if err := errors.Join(err1, err2, err3, err4, c.DeleteGroup(ctx, "platform", `"9"`, true)); err != nil {
		t.Error(err)
	}
	want := []string{
		`PATCH /api/v1/groups/plat%2Fform? "7" application/merge-patch+json {"description":null}`,
		`POST /api/v1/groups/platform/members? "8" application/json {"group":"devs","reason":"r"}`,
		`DELETE /api/v1/groups/platform/members/directoryGroup/corp:a%2Fb?`,
		`POST /api/v1/apply?dryRun=true&prune=team%3Da  application/json {"groups":[]}`,
		`POST /api/v1/apply?dryRun=false  application/json {"groups":[{"name":"empty","members":[]},{"name":"as-is"}]}`,
		`DELETE /api/v1/groups/platform?contained=true "9"`,
	}
	for i := range want {
		if i >= len(*asked) || (*asked)[i] != want[i] {
			t.Errorf("want %q\nin %q", want[i], *asked)
		}
	}
}

func TestMismatch(t *testing.T) {
	c, _ := groupServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(412)
		json.NewEncoder(w).Encode(Problem{Title: "t", Status: 412, Code: CodeMismatch, Current: &Group{Settings: Settings{Name: "platform"}, ETag: `"9"`}, Sent: json.RawMessage(`{"description":"mine"}`)})
	})
	_, err := c.EditGroup(t.Context(), "platform", `"7"`, map[string]any{"description": "mine"})
	var p *Problem
	if !errors.As(err, &p) || !HasCode(err, CodeMismatch) || p.Current.ETag != `"9"` || string(p.Sent) != `{"description":"mine"}` {
		t.Errorf("%+v, %v", p, err)
	}
	if HasCode(errors.New("x"), CodeMismatch) || HasCode(nil, CodeMismatch) {
		t.Error("an error that is no problem has a code")
	}
}

// An export that breaks off must not pass for a whole one.
func TestExport(t *testing.T) {
	breakOff := false
	c, _ := groupServer(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "{\"name\":\"a\",\"members\":[]}\n{\"name\":\"b\"}\n")
		if breakOff {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	var got []string
	collect := func(f File) error { got = append(got, fmt.Sprint(f.Name, f.Members != nil)); return nil }
	if err := c.Export(t.Context(), GroupFilter{}, collect); err != nil || !slices.Equal(got, []string{"atrue", "bfalse"}) {
		t.Errorf("%q, %v", got, err)
	}
	stop := errors.New("stop")
	if err := c.Export(t.Context(), GroupFilter{}, func(File) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	breakOff = true
	if err := c.Export(t.Context(), GroupFilter{}, collect); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("broken off: %v", err)
	}
}
