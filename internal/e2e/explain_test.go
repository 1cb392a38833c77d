package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/testenv"
)

// randomLDIF is a web of groups: people and groups in groups, some in a circle, drawn by r.
func randomLDIF(r *rand.Rand, people []string, groups int) string {
	var b strings.Builder
	for _, p := range people {
		fmt.Fprintf(&b, "dn: uid=%[1]s,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: %[1]s\ncn: %[1]s\nsn: %[1]s\nuserPassword: pw-%[1]s\n\n", p)
	}
	name := func(i int) string { return fmt.Sprintf("%s-%d", []string{"team", "k8s", "old"}[i%3], i) }
	for i := range groups {
		fmt.Fprintf(&b, "dn: cn=%s,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\n", name(i))
		members := map[string]bool{}
		for range 1 + r.IntN(3) {
			if r.IntN(2) == 0 {
				members["uid="+people[r.IntN(len(people))]+",ou=people"] = true
			} else {
				members["cn="+name(r.IntN(groups))+",ou=groups"] = true
			}
		}
		for _, m := range slices.Sorted(maps.Keys(members)) {
			fmt.Fprintf(&b, "member: %s,dc=example,dc=org\n", m)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// api sends a request as whoever token is of.
func (s *server) api(token, method, path, body string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.issuer+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return do(s.t, s.client(), req)
}

func (s *server) explain(token, user, cluster string) api.Explanation {
	s.t.Helper()
	got := s.api(token, "GET", "/api/v1/explain?"+url.Values{"user": {user}, "cluster": {cluster}}.Encode(), "")
	var x api.Explanation
	if err := json.Unmarshal([]byte(got.body), &x); err != nil || got.status != http.StatusOK {
		s.t.Fatalf("explain %s for %q: %d %s", user, cluster, got.status, got.body)
	}
	return x
}

// TestExplainTellsWhatIsIssued holds explanations to tokens that are really issued, for
// everybody of a company drawn at random and every cluster.
func TestExplainTellsWhatIsIssued(t *testing.T) {
	t.Parallel()
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("RAPID_SEED"), fmt.Sprint(rand.Uint64())), 10, 64)
	if err != nil {
		t.Fatalf("RAPID_SEED: %v", err)
	}
	t.Logf("RAPID_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	people := []string{"p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"}
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	slapd.AddLDIF(t, randomLDIF(r, people, 24))
	s := newServer(t, slapd, options{})
	b, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write("tabard.yaml", strings.NewReplacer(
		`groups: {baseDN: "ou=groups,dc=example,dc=org"}`, `groups: {baseDN: "ou=groups,dc=example,dc=org", exclude: ["old-*"]}`,
		`{include: ["corp:devs", "platform"]}`, `{include: ["corp:k8s-*", "local-*"], exclude: ["corp:*-1*", "local-0"]}`,
		`["corp:ops"]`, `["corp:team-0", "local-2"]`,
	).Replace(string(b)))
	s.start()
	carol := s.login("tabard", "carol", "pw-carol").IDToken
	s.localGroups(r, carol, people)

	found := 0
	for _, p := range people {
		own := s.login("tabard", p, "pw-"+p).IDToken
		for cluster, audience := range map[string]string{"": "", "prod": "kubernetes", "staging": "staging", "closed": "closed"} {
			issued, refused := own, false
			if audience != "" {
				tk := s.token(exchange("tabard", own, audience))
				issued, refused = tk.AccessToken, tk.Error == "access_denied"
			}
			x := s.explain(carol, p, cluster)
			if refused != (x.Token.Refused != "") {
				t.Errorf("%s for %q: refused %t, explained as %q", p, cluster, refused, x.Token.Refused)
			}
			names := []string{}
			for _, g := range x.Groups {
				names = append(names, g.Name)
				if len(g.Path)+len(g.Paths) == 0 {
					t.Errorf("%s for %q: nobody says where %s comes from", p, cluster, g.Name)
				}
				for _, way := range g.Paths {
					if last := way.Steps[len(way.Steps)-1]; last.Group != g.Name || !way.Counts {
						t.Errorf("%s for %q: the way to %s is %+v", p, cluster, g.Name, way)
					}
				}
			}
			found += len(names)
			if refused {
				continue
			}
			if want := groupsOf(t, issued); !slices.Equal(want, names) {
				t.Errorf("%s for %q\nissued    %q\nexplained %q", p, cluster, want, names)
			}
			if size := len(issued); size > x.Token.Size+16 || size < x.Token.Size/2 {
				t.Errorf("%s for %q: %d bytes, explained as %d", p, cluster, size, x.Token.Size)
			}
		}
		if got := s.api(own, "GET", "/api/v1/explain?user=carol", ""); got.status != http.StatusForbidden {
			t.Errorf("%s asks about carol: %d", p, got.status)
		}
		if x := s.explain(own, "", "prod"); x.Person.Username != p {
			t.Errorf("%s asks about themselves and is told of %s", p, x.Person.Username)
		}
	}
	if found < 20 {
		t.Errorf("only %d groups were explained", found)
	}
	if out := s.signIn("carol", "pw-carol").must("explain", "p0", "--cluster", "prod"); !strings.Contains(out, "uid=p0,ou=people") {
		t.Errorf("the command says %s", out)
	}
}

// localGroups puts people, directory groups and earlier local groups into local groups,
// some only for so short, or so late, that it does not count, some for one cluster alone.
func (s *server) localGroups(r *rand.Rand, admin string, people []string) {
	s.t.Helper()
	post := func(path string, body any) {
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		if got := s.api(admin, "POST", path, string(b)); got.status >= 300 {
			s.t.Fatalf("%s %s: %d %s", path, b, got.status, got.body)
		}
	}
	for i := range 6 {
		name := fmt.Sprintf("local-%d", i)
		post("/api/v1/groups", api.Settings{Name: name, Clusters: [][]string{nil, nil, {"prod"}, {"staging", "closed"}}[r.IntN(4)]})
		for range 4 {
			m := api.AddMember{Reason: "drawn"}
			switch kind := r.IntN(3); {
			case kind == 0:
				m.Person = people[r.IntN(len(people))]
			case kind == 1 && i > 0:
				m.Group = fmt.Sprintf("local-%d", r.IntN(i))
			default:
				m.DirectoryGroup = "corp:" + []string{"team-0", "k8s-1", "team-3", "k8s-4"}[r.IntN(4)]
			}
			if r.IntN(5) == 0 {
				begin := time.Now().Add(30 * time.Minute).UTC().Truncate(time.Second)
				m.Begin = &begin
			}
			if left := []time.Duration{0, 40 * time.Second, time.Hour}[r.IntN(3)]; left > 0 && (m.Begin == nil || left == time.Hour) {
				end := time.Now().Add(left).UTC().Truncate(time.Second)
				m.End = &end
			}
			post("/api/v1/groups/"+name+"/members", m)
		}
	}
}
