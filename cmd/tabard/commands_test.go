package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/testenv"
)

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"8h": "2026-11-22T20:00:00Z", "2027-01-31T18:00:00+01:00": "2027-01-31T18:00:00+01:00",
		"-1h": "", "0s": "", "2020-01-01T00:00:00Z": "", "tomorrow": "",
	} {
		end, err := parseMoment("--until", in, now)
		got := ""
		if err == nil {
			got = end.Format(time.RFC3339)
		}
		if got != want {
			t.Errorf("%s: got %s, %v", in, got, err)
		}
	}
	if end, err := parseMoment("--until", "", now); end != nil || err != nil {
		t.Errorf("no end: %v, %v", end, err)
	}
}

func TestRemoveOne(t *testing.T) {
	removed := ""
	c := api.NewClient("http://store", &http.Client{Transport: &handlerTransport{h: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			list := api.MemberList{}
			for _, m := range []api.Ref{{Kind: api.KindPerson, ID: "corp.1", Name: "bob"}, {Kind: api.KindPerson, ID: "corp.2", Name: "ann"}, {Kind: api.KindPerson, ID: "lab.2", Name: "ann"}, {Kind: api.KindDirectoryGroup, ID: "corp:a/b", Name: "corp:a/b"}, {Kind: api.KindGroup, ID: "g1", Name: "devs"}} {
				if m.Kind == r.URL.Query().Get("kind") {
					list.Members = append(list.Members, api.Member{Ref: m})
				}
			}
			_ = json.NewEncoder(w).Encode(list)
			return
		}
		removed = r.Method + " " + r.URL.EscapedPath()
		_, _ = w.Write([]byte("{}"))
	})}}, nil)
	for _, tc := range []struct{ kind, name, request, err string }{
		{api.KindPerson, "Bob", "DELETE /api/v1/groups/platform/members/person/corp.1", ""},
		{api.KindPerson, "lab.2", "DELETE /api/v1/groups/platform/members/person/lab.2", ""},
		{api.KindDirectoryGroup, "corp:a/b", "DELETE /api/v1/groups/platform/members/directoryGroup/corp:a%2Fb", ""},
		{api.KindGroup, "devs", "DELETE /api/v1/groups/platform/members/group/g1", ""},
		{api.KindPerson, "ann", "", "ann is more than one member of platform: name one by id: corp.2, lab.2"},
		{api.KindPerson, "corp:a/b", "", "corp:a/b is not in platform: `tabard groups show platform` lists who is"},
	} {
		removed = ""
		err := removeOne(t.Context(), c, "platform", named{tc.kind, tc.name})
		if removed != tc.request || err == nil != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%s: %q, %v", tc.name, removed, err)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := write(&b, "table", nil, func() [][]string {
		return [][]string{{"NAME", "N"}, {"zoë\x1b[31m\n", "1"}, {"a", "12"}}
	}); err != nil {
		t.Fatal(err)
	}
	if want := "NAME    N\nzoë[31m  1\na        12\n"; strings.Join(strings.Fields(b.String()), " ") != strings.Join(strings.Fields(want), " ") || strings.Contains(b.String(), "\x1b") || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("got %q", b.String())
	}
}

// Beside the people of a directory group stands who else is in it, or why nobody is read.
func TestEveryoneRows(t *testing.T) {
	corp := func(id string) api.Ref { return api.Ref{Kind: api.KindDirectoryGroup, ID: id, Name: id} }
	later := time.Now().Add(time.Hour)
	path := func(ref api.Ref, begin *time.Time) []api.Path {
		return []api.Path{{Steps: []api.Step{{Group: "platform", Member: api.Member{Ref: ref}}}, Begin: begin}}
	}
	rows := everyoneRows(api.Everyone{Everyone: []api.Reach{
		{Ref: corp("corp:devs"), Paths: path(corp("corp:devs"), nil), People: []api.GroupPerson{{Person: api.Person{Username: "bob", Name: "Bob"}}}, PeopleCut: true, Unreadable: 2},
		{Ref: corp("corp:one"), Paths: path(corp("corp:one"), &later), Unreadable: 1},
		{Ref: corp("corp:gone"), Paths: path(corp("corp:gone"), nil), Problem: "Nobody was found"},
	}})
	want := [][]string{
		{"WHO", "KIND", "HOW", "UNTIL"},
		{"corp:devs", "directory group", "corp:devs → platform", "no end"},
		{"  bob", "person", "in corp:devs", "Bob"},
		{"  …", "directory group", "in corp:devs are more"},
		{"  …", "directory group", "2 more members of corp:devs are no people that could sign in"},
		{"corp:one", "directory group", "corp:one → platform", "from " + clock(later) + ", no end"},
		{"  …", "directory group", "1 more member of corp:one is nobody that could sign in"},
		{"corp:gone", "directory group", "corp:gone → platform", "no end"},
		{"  …", "directory group", "who is in corp:gone could not be read: Nobody was found"},
	}
	if !slices.EqualFunc(rows, want, slices.Equal) {
		t.Errorf("got  %q\nwant %q", rows, want)
	}
}

func TestSessionRows(t *testing.T) {
	now := time.Now()
	rows := sessionRows([]api.Session{{ID: "s1", Username: "bob", Clients: []string{"tabard"}, Browser: true, Address: "192.0.2.1", UserAgent: "Mozilla/5.0", Device: "Chrome on Linux", Created: now, LastUsed: now, Ends: now}})
	if want := []string{"s1", "bob", "tabard,browser", "192.0.2.1", "Chrome on Linux", clock(now), clock(now), clock(now)}; len(rows) != 2 || !slices.Equal(rows[1], want) {
		t.Errorf("got %q, want %q", rows, want)
	}
}

// Wrong use points, once, to the help of the command that was used.
func TestWrongUseHelp(t *testing.T) {
	for _, tc := range []struct{ args, help string }{
		{"nope", "tabard"}, {"groups", "tabard groups"}, {"groups nope", "tabard groups"}, {"groups add", "tabard groups add"},
		{"groups add x --nope", "tabard groups add"}, {"groups everyone x --limit many", "tabard groups everyone"}, {"groups list -o xml", "tabard groups list"},
		{"groups add x bob --from yesterday", "tabard groups add"}, {"groups add x bob --until 31.1.", "tabard groups add"}, {"groups list --member bob", "tabard groups list"},
	} {
		code, _, stderr := command(t, strings.Fields(tc.args)...)
		if code != exitUsage || strings.Contains(stderr, "no server") || !strings.HasSuffix(stderr, "\nSee `"+tc.help+" --help`.\n") || strings.Count(stderr, "--help") != 1 {
			t.Errorf("%s: exit %d: %s", tc.args, code, stderr)
		}
	}
}

// check returns what the doctor says, as "result: detail", of one check.
func check(findings []finding, name string) string {
	var out []string
	for _, f := range findings {
		if f.Check == name {
			out = append(out, f.Result+": "+f.Detail)
		}
	}
	return strings.Join(out, "\n")
}

func TestDoctorIssuer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer string
		date   string
		check  string
		want   string
	}{
		{"other issuer", `{"issuer": "https://other.example"}`, "", "issuer", `fail: ISSUER answers as "https://other.example": API servers refuse that; is another server there?`},
		{"no JSON", `<html>`, "", "issuer", "fail: ISSUER/.well-known/openid-configuration answers no JSON: is another server there?"},
		{"no keys", `{"issuer": "ISSUER", "jwks_uri": "ISSUER/keys"}`, "", "issuer", "fail: no key for RS256 is published: reload or restart the server"},
		{"clock", `{"issuer": "ISSUER", "jwks_uri": "ISSUER/keys"}`, "Sun, 22 Nov 2020 12:00:00 GMT", "clock", "apart: set both by NTP"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var issuer string
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tc.date != "" {
					w.Header().Set("Date", tc.date)
				}
				if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
					_, _ = w.Write([]byte(strings.ReplaceAll(tc.answer, "ISSUER", issuer)))
					return
				}
				_ = json.NewEncoder(w).Encode(map[string]any{"keys": []string{}})
			}))
			defer srv.Close()
			issuer = srv.URL
			cfg := &Config{Issuer: issuer, cert: &srv.TLS.Certificates[0]}
			cfg.idp.SetDefaults()
			d := &doctor{cfg: cfg}
			d.issuer(t.Context(), true)
			if got := check(d.findings, tc.check); !strings.Contains(got, strings.ReplaceAll(tc.want, "ISSUER", issuer)) {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestDoctorFindsWhatIsWrong runs the command on a configuration whose server is
// stopped and whose certificate is for another host.
func TestDoctorFindsWhatIsWrong(t *testing.T) {
	path := writeConfig(t, strings.Replace(minimal, "admins:", "tls: {certFile: tls.crt, keyFile: tls.key}\nadmins:", 1))
	s := &instance{dir: strings.TrimSuffix(path, "/tabard.yaml")}
	s.ca = testenv.NewCA(t, s.dir)
	s.certificate(t, "other.example")
	code, stdout, _ := command(t, "doctor", "--config", path, "-o", "json")
	var report struct{ Checks []finding }
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != exitFailed {
		t.Fatalf("exit %d, %v: %s", code, err, stdout)
	}
	for name, want := range map[string]string{
		"config":         "ok: issuer https://id.corp.example",
		"tls":            "fail: the certificate is for other.example",
		"store":          "warn: " + s.dir + "/tabard.db does not exist yet",
		"directory corp": "fail: ldaps://127.0.0.1:1: no connection: check the port",
		"issuer":         "warn: id.corp.example",
	} {
		if got := check(report.Checks, name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if strings.Contains(stdout, secret) {
		t.Error("the doctor tells the password")
	}
	code, stdout, _ = command(t, "doctor", "--config", "nowhere.yaml")
	if code != exitFailed || !strings.Contains(stdout, "nowhere.yaml: does not exist") {
		t.Errorf("exit %d: %s", code, stdout)
	}
}
