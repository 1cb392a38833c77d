package proxy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/idp"
)

const policyPath = "clusters[0].proxy.policy"

func mustPolicy(t testing.TB, rules ...Rule) *policy {
	t.Helper()
	p, err := compilePolicy(policyPath, rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fieldErrors are the mistakes in err, each as its path and message.
func fieldErrors(t testing.TB, err error) (list []*idp.FieldError) {
	t.Helper()
	var walk func(error)
	walk = func(err error) {
		var field *idp.FieldError
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
		} else if errors.As(err, &field) {
			list = append(list, field)
		} else if err != nil {
			t.Errorf("%v is no *idp.FieldError", err)
		}
	}
	walk(err)
	return list
}

func at(t testing.TB, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestExpressions(t *testing.T) {
	in := Input{
		User: "alice", Groups: []string{"corp:dev", "oncall"}, Verb: "get", Resource: "pods", Subresource: "log", APIGroup: "apps", Namespace: "team-a", Name: "web-0",
		Path: "/api/v1/namespaces/team-a/pods/web-0/log", Now: at(t, "2026-11-22T23:30:00Z"), SourceIP: "10.1.2.3", SessionAge: 90 * time.Minute, MFA: true,
	}
	for when, want := range map[string]bool{
		"user == 'alice'":                                true,
		"user == 'Alice'":                                false,
		"'oncall' in groups":                             true,
		"'on' in groups":                                 false,
		"groups.exists(g, g.startsWith('corp:'))":        true,
		"groups.all(g, g.startsWith('corp:'))":           false,
		"size(groups) == 2":                              true,
		"groups[1] == 'oncall'":                          true,
		"groups == ['corp:dev', 'oncall']":               true,
		"verb in ['get', 'list', 'watch']":               true,
		"verb == 'delete'":                               false,
		"resource == 'pods' && subresource == 'log'":     true,
		"apiGroup == 'apps'":                             true,
		"namespace.startsWith('team-')":                  true,
		"name.matches('^web-[0-9]+$')":                   true,
		"path.split('/')[1] == 'api'":                    true,
		"path.lowerAscii().contains('/LOG')":             false,
		"now.getHours() == 23":                           true,
		"now.getHours('Europe/Berlin') == 0":             true,
		"now.getDayOfWeek('Europe/Berlin') == 1":         true, // Monday there, Sunday in Greenwich
		"now.getDayOfWeek() == 0":                        true,
		"now.getDate('+01:00') == 23":                    true,
		"now.getDayOfMonth('-02:30') == 21":              true,
		"now.getMonth('Asia/Tokyo') == 10":               true,
		"now.getFullYear('Asia/Tokyo') == 2026":          true,
		"now.getDayOfYear('UTC') == 325":                 true,
		"now.getMinutes('Asia/Kolkata') == 0":            true,
		"now.getSeconds('UTC') == 0":                     true,
		"now.getMilliseconds('UTC') == 0":                true,
		"now < timestamp('2026-12-01T00:00:00Z')":        true,
		"cidr('10.0.0.0/8').containsIP(source.ip)":       true,
		"cidr('192.168.0.0/16').containsIP(source.ip)":   false,
		"source.ip == '10.1.2.3'":                        true,
		"session.age > duration('1h')":                   true,
		"session.age.getMinutes() == 90":                 true,
		"session.mfa":                                    true,
		"!session.mfa":                                   false,
		"true":                                           true,
		"verb != 'get' || resource == 'secrets' && true": false,
	} {
		t.Run(when, func(t *testing.T) {
			p := mustPolicy(t, Rule{Name: "r", Effect: deny, When: when})
			if d := p.decide(&in); d.Allowed == want || d.Reason != "" {
				t.Errorf("allowed %v, reason %q", d.Allowed, d.Reason)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	in := &Input{User: "alice", Verb: "get", Namespace: "a"}
	yes, no, fails := "user == 'alice'", "user == 'bob'", "namespace.split('/')[7] == ''"
	r := func(name, effect, when string) Rule {
		return Rule{Name: name, Effect: effect, When: when, Reason: "because " + name, Hint: "ask " + name}
	}
	dry := func(r Rule) Rule { r.DryRun = true; return r }
	const index = "cannot be evaluated: index out of bounds: 7"
	for _, c := range []struct {
		name  string
		rules []Rule
		want  Decision
	}{
		{"no rules", nil, Decision{Allowed: true}},
		{"a deny that does not match", []Rule{r("d", deny, no)}, Decision{Allowed: true}},
		{"a deny that matches", []Rule{r("d", deny, yes)}, Decision{Rule: "d", Reason: "because d", Hint: "ask d"}},
		{"the first deny that matches", []Rule{r("d", deny, no), r("e", deny, yes), r("f", deny, yes)}, Decision{Rule: "e", Reason: "because e", Hint: "ask e"}},
		{"deny wins over an allow before it", []Rule{r("a", allow, yes), r("d", deny, yes)}, Decision{Rule: "d", Reason: "because d", Hint: "ask d"}},
		{"deny wins over an allow after it", []Rule{r("d", deny, yes), r("a", allow, yes)}, Decision{Rule: "d", Reason: "because d", Hint: "ask d"}},
		{"an allow that matches", []Rule{r("d", deny, no), r("b", allow, no), r("a", allow, yes)}, Decision{Allowed: true, Rule: "a"}},
		{"no allow matches", []Rule{r("a", allow, no)}, Decision{Reason: "no rule allows it", Hint: "ask a"}},
		{"no allow matches, and their hints differ", []Rule{r("a", allow, no), r("b", allow, no)}, Decision{Reason: "no rule allows it"}},
		{"a deny that fails matches", []Rule{r("d", deny, fails)}, Decision{Rule: "d", Reason: "because d; rule d " + index, Hint: "ask d"}},
		{"an allow that fails does not", []Rule{r("a", allow, fails)}, Decision{Reason: "no rule allows it; rule a " + index, Hint: "ask a"}},
		{"an allow that fails beside one that matches", []Rule{r("a", allow, fails), r("b", allow, yes)}, Decision{Allowed: true, Rule: "b"}},
		{"dry run never refuses", []Rule{dry(r("d", deny, yes))}, Decision{Allowed: true, DryRun: []string{"d"}}},
		{"dry run that fails would have refused", []Rule{dry(r("d", deny, fails))}, Decision{Allowed: true, DryRun: []string{"d"}}},
		{"dry run that does not match", []Rule{dry(r("d", deny, no))}, Decision{Allowed: true}},
		{"dry run beside a refusal", []Rule{r("e", deny, yes), dry(r("d", deny, yes))}, Decision{Rule: "e", Reason: "because e", Hint: "ask e", DryRun: []string{"d"}}},
		{"an allow in dry run does not close the rest", []Rule{dry(r("a", allow, no))}, Decision{Allowed: true, DryRun: []string{"a"}}},
		{"an allow in dry run that matches", []Rule{dry(r("a", allow, no)), dry(r("b", allow, yes))}, Decision{Allowed: true}},
		{"an allow in dry run that fails", []Rule{dry(r("a", allow, fails))}, Decision{Allowed: true, DryRun: []string{"a"}}},
		{"an allow in dry run opens nothing", []Rule{r("a", allow, no), dry(r("b", allow, yes))}, Decision{Reason: "no rule allows it", Hint: "ask a"}},
		{"an allow in dry run beside one that counts", []Rule{r("a", allow, yes), dry(r("b", allow, no))}, Decision{Allowed: true, Rule: "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := mustPolicy(t, c.rules...).decide(in); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// Requests are decided at once by the same rules, each with its own groups.
func TestDecideAtOnce(t *testing.T) {
	p := mustPolicy(t, tenRules()...)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			in := &Input{Verb: "get", Resource: "pods", Namespace: "a", Groups: twentyGroups()[i%2*19:], Now: time.Unix(1.8e9, 0), SourceIP: "10.1.2.3"}
			in.Groups = in.Groups[:len(in.Groups)-i%3/2]
			want := slices.Contains(in.Groups, "corp:k8s-all")
			for range 50 {
				if d := p.decide(in); d.Allowed != want {
					t.Errorf("%d: %+v", i, d)
				}
			}
		})
	}
	wg.Wait()
}

// A rule that would take long is ended, and counts as one that cannot be evaluated.
func TestCostLimit(t *testing.T) {
	in := &Input{Groups: slices.Repeat([]string{strings.Repeat("g", 60)}, 400)}
	p := mustPolicy(t, Rule{Name: "r", Effect: deny, When: "groups.all(a, groups.all(b, groups.all(c, a == b && b == c)))"})
	if d := p.decide(in); d.Allowed || !strings.Contains(d.Reason, "cost limit exceeded") {
		t.Errorf("%+v", d)
	}
}

func TestTimed(t *testing.T) {
	for when, want := range map[string]bool{
		"now.getHours('UTC') < 6":                             true,
		"verb == 'get' && session.age > duration('1h')":       true,
		"groups.exists(g, g == 'a' && now.getMinutes() == 1)": true,
		"session.mfa && verb == 'now'":                        false,
		"'a' in groups":                                       false,
	} {
		p := mustPolicy(t, Rule{Name: "first", Effect: deny, When: "false"}, Rule{Name: "r", Effect: deny, When: when, DryRun: strings.HasPrefix(when, "now")})
		if p.timed() != want {
			t.Errorf("%s: %v", when, !want)
		}
	}
	if (*policy)(nil).timed() {
		t.Error("no policy is timed")
	}
}

// CEL reserves the word, and we use it all the same.
func TestUnreserve(t *testing.T) {
	for in, want := range map[string]string{
		"namespace": "Namespace", "namespace == namespace": "Namespace == Namespace", "namespaces + a_namespace": "namespaces + a_namespace", "a.namespace": "a.namespace",
		"a . namespace": "a . namespace", "'namespace' + \"namespace\"": "'namespace' + \"namespace\"", `'\'namespace' + namespace`: `'\'namespace' + Namespace`,
		`r'\' + namespace`: `r'\' + Namespace`, "'''a' namespace''' + namespace": "'''a' namespace''' + Namespace", "true // namespace": "true // namespace", "'ö' + namespace": "'ö' + Namespace",
		"a in namespace": "a in Namespace", "-namespace": "-Namespace", "": "",
	} {
		if got := unreserve(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// Each mistake is told at its path, with what to write instead.
func TestPolicyMistakes(t *testing.T) {
	ok := Rule{Name: "a", Effect: deny, When: "true"}
	with := func(change func(*Rule)) []Rule { r := ok; change(&r); return []Rule{r} }
	example := func(when string, e ...Example) []Rule {
		return with(func(r *Rule) { r.When, r.Examples = when, e })
	}
	for _, c := range []struct {
		name  string
		rules []Rule
		want  string // path: part of the message; several lines
	}{
		{"no name", with(func(r *Rule) { r.Name = "" }), `[0].name: "" must be at most 63 lower-case`},
		{"a name in capitals", with(func(r *Rule) { r.Name = "Night" }), `[0].name: "Night" must be`},
		{"a name twice", []Rule{ok, ok}, `[1].name: "a" is the name of a rule above`},
		{"no effect", with(func(r *Rule) { r.Effect = "" }), `[0].effect: "" is neither allow nor deny`},
		{"an effect in capitals", with(func(r *Rule) { r.Effect = "Deny" }), `[0].effect: "Deny" is neither`},
		{"a reason of two lines", with(func(r *Rule) { r.Reason = "a\nb" }), `[0].reason: must be one line`},
		{"a reason with an escape", with(func(r *Rule) { r.Reason = "a\x1b[2J" }), `[0].reason: must be one line`},
		{"a hint that is no text", with(func(r *Rule) { r.Hint = "a\xff" }), `[0].hint: must be one line`},
		{"a hint without end", with(func(r *Rule) { r.Hint = strings.Repeat("a", 301) }), `[0].hint: is longer than 300 bytes`},
		{"no expression", with(func(r *Rule) { r.When = " " }), `[0].when: write a CEL expression`},
		{"an expression without end", with(func(r *Rule) { r.When = "true" + strings.Repeat(" && true", 600) }), `[0].when: must be UTF-8 text of at most 4096 bytes`},
		{"no text", with(func(r *Rule) { r.When = "user == '\xff'" }), `[0].when: must be UTF-8`},
		{"a type that is not bool", with(func(r *Rule) { r.When = "user" }), `[0].when: is of type string where a bool is wanted`},
		{"a type that may be anything", with(func(r *Rule) { r.When = "dyn(true)" }), `[0].when: is of type dyn where a bool is wanted`},
		{"an unknown variable", with(func(r *Rule) { r.When = "usr == 'a'" }), `[0].when: line 1, column 1: undeclared reference to 'usr' (in container ''): the variables are user, groups`},
		{"an unknown field", with(func(r *Rule) { r.When = "source.port == 1" }), `[0].when: line 1, column 1: undeclared reference to 'source'`},
		{"two types that never match", with(func(r *Rule) { r.When = "user in ['a', 1]" }), `[0].when: line 1, column 15: expected type 'string' but found 'int'`},
		{"a comparison of two types", with(func(r *Rule) { r.When = "size(groups) == 'a'" }), `[0].when: line 1, column 14: found no matching overload for '_==_'`},
		{"no end of a text", with(func(r *Rule) { r.When = "user == 'a" }), "[0].when: line 1, column 9: Syntax error\n[0].when: line 1, column 11: Syntax error"},
		{"a regular expression that is none", with(func(r *Rule) { r.When = "user.matches('(')" }), `[0].when: line 1, column 14: invalid matches argument`},
		{"a timestamp that is none", with(func(r *Rule) { r.When = "now < timestamp('tomorrow')" }), `[0].when: line 1, column 17: invalid timestamp argument`},
		{"a zone that is none", with(func(r *Rule) { r.When = "now.getHours('Europe/Atlantis') < 6" }), `[0].when: there is no time zone "Europe/Atlantis"`},
		{"the machine's zone", with(func(r *Rule) { r.When = "now.getHours('Local') < 6" }), `[0].when: there is no time zone "Local"`},
		{"a zone out of a variable", with(func(r *Rule) { r.When = "now.getHours(name) < 6" }), `[0].when: getHours: write the time zone as text`},
		{"nesting", with(func(r *Rule) { r.When = strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200) }), `[0].when: expression recursion limit exceeded`},
		{"loops in loops", with(func(r *Rule) {
			r.When = "groups.all(a, groups.all(b, groups.all(c, groups.all(d, a == b && c == d))))"
		}), `[0].when: line 1, column 53: comprehension exceeds nesting limit`},
		{"two mistakes", []Rule{{Name: "b", Effect: "x", When: "usr"}, {Name: "", Effect: deny, When: "true"}}, "[0].effect: \"x\"\n[0].when: line 1\n[1].name: \"\""},
		{"an example that does not match", example("verb == 'get'", Example{Verb: "get", Want: "match"}, Example{Verb: "list", Want: "match"}), `[0].examples[1]: want match, but it is noMatch`},
		{"an example that does", example("verb == 'get'", Example{Verb: "get", Want: "noMatch"}), `[0].examples[0]: want noMatch, but it is match`},
		{"an example that wants nothing", example("true", Example{}), `[0].examples[0].want: "" is neither match nor noMatch`},
		{"an example without time", example("now.getHours() < 6", Example{Want: "match"}), `[0].examples[0].now: is missing`},
		{"an example that fails", example("groups[0] == 'a'", Example{Want: "noMatch"}), `[0].examples[0]: cannot be evaluated: index out of bounds: 0`},
		{"too many examples", example("true", slices.Repeat([]Example{{Want: "match"}}, 51)...), `[0].examples: 51 examples are more than 50`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := compilePolicy(policyPath, c.rules)
			if p != nil {
				t.Error("taken all the same")
			}
			checkMistakes(t, fieldErrors(t, err), policyPath, c.want)
		})
	}
	if _, err := compilePolicy(policyPath, slices.Repeat([]Rule{ok}, 201)); err == nil || !strings.Contains(err.Error(), "201 rules are more than 200") {
		t.Errorf("201 rules: %v", err)
	}
}

// checkMistakes compares a list with lines of paths, without what they begin with, and
// of how the message begins.
func checkMistakes(t *testing.T, got []*idp.FieldError, prefix, want string) {
	t.Helper()
	lines := strings.Split(want, "\n")
	if len(got) != len(lines) {
		t.Fatalf("got %v", got)
	}
	for i, e := range got {
		if !strings.HasPrefix(e.Error(), prefix+lines[i]) || strings.ContainsAny(e.Error(), "\n\r") {
			t.Errorf("got %s\nwant %s", e, prefix+lines[i])
		}
	}
}

// The examples of a policy as a whole say what the rules do together.
func TestPolicyExamples(t *testing.T) {
	p := mustPolicy(t,
		Rule{Name: "night", Effect: deny, When: "now.getHours('Europe/Berlin') < 6 && !('oncall' in groups)"},
		Rule{Name: "read", Effect: allow, When: "verb in ['get', 'list', 'watch']"},
	)
	day, night := at(t, "2026-11-22T12:00:00Z"), at(t, "2026-11-22T03:00:00Z")
	const path = "clusters[0].proxy.examples"
	good := []Example{
		{Verb: "get", Now: day, Want: allow}, {Verb: "get", Now: night, Want: deny}, {Verb: "get", Now: night, Groups: []string{"oncall"}, Want: allow}, {Verb: "delete", Now: day, Want: deny},
	}
	if err := p.check(path, good); err != nil {
		t.Error(err)
	}
	bad := []Example{{Verb: "get", Now: day, Want: deny}, {Verb: "get", Now: night, Want: allow}, {Verb: "list", Want: allow}, {Now: day, Want: "match"}}
	checkMistakes(t, fieldErrors(t, p.check(path, bad)), path,
		"[0]: want deny, but it is allow by read\n[1]: want allow, but it is deny by night\n[2].now: is missing\n[3].want: \"match\" is neither allow nor deny")
	if err := (*policy)(nil).check(path, []Example{{Want: allow}}); err != nil {
		t.Error(err)
	}
	checkMistakes(t, fieldErrors(t, (*policy)(nil).check(path, []Example{{Want: deny}})), path, "[0]: want deny, but it is allow")
}

func TestAuditLevels(t *testing.T) {
	a, err := compileAudit("clusters[0].proxy.audit", []AuditRule{
		{When: "resource == 'leases'", Level: "none"}, {When: "resource == 'secrets'", Level: "full"}, {When: "namespace.split('/')[1] == 'a'", Level: "none"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[*Input]auditLevel{
		{Resource: "leases", Namespace: "/a"}:  auditNone,
		{Resource: "secrets", Namespace: "/a"}: auditFull,
		{Resource: "pods", Namespace: "/b"}:    auditMetadata,
		{Resource: "pods", Namespace: "/a"}:    auditNone,
		{Resource: "pods"}:                     auditFull, // cannot be evaluated
	} {
		if got := a.level(in); got != want {
			t.Errorf("%+v: %d", in, got)
		}
	}
	if got := (*auditRules)(nil).level(&Input{}); got != auditMetadata {
		t.Error(got)
	}
	_, err = compileAudit("clusters[0].proxy.audit", []AuditRule{{When: "usr", Level: "request"}, {When: "true", Level: "none"}, {Level: "full"}})
	checkMistakes(t, fieldErrors(t, err), "clusters[0].proxy.audit", "[0].level: \"request\" is none of none, metadata and full\n[0].when: line 1, column 1\n[2].when: write a CEL")
}

// Whatever stands in the configuration is either refused with a path or decides.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		"now.getHours('Europe/Berlin') < 6 && !('oncall' in groups)", "groups.exists(g, g.startsWith('a'))", "path.split('/')[3].matches('a*')",
		"cidr('10.0.0.0/8').containsIP(source.ip)", "session.age > duration('1h') || session.mfa", "'%s'.format([user]) == name", "[[[[", "user.replace('a','aa').replace('a','aa') != ''",
		"groups.map(g, groups.map(h, g + h)).size() > 3", "now + duration('9999999h') > now", "1/0 == 1", "name.charAt(99) == ''", "now.getHours('+25:61') == 1", "timestamp(name) < now",
	} {
		f.Add(s, s)
	}
	in := &Input{User: "alice", Groups: []string{"a", "b", "oncall"}, Verb: "get", Path: "/api/v1/pods", Now: time.Unix(1.8e9, 0), SourceIP: "10.0.0.1"}
	f.Fuzz(func(t *testing.T, when, words string) {
		p, err := compilePolicy(policyPath, []Rule{{Name: "r", Effect: deny, When: when, Reason: words, Hint: words, Examples: []Example{{User: words, Want: "noMatch"}}}})
		if err == nil {
			d := p.decide(in)
			if len(d.Reason) > 1_000 || strings.ContainsAny(d.Reason, "\n\r\x00") {
				t.Errorf("%q", d.Reason)
			}
			return
		}
		for _, e := range fieldErrors(t, err) {
			if !strings.HasPrefix(e.Path, policyPath+"[0].") || len(e.Msg) > 500 || strings.ContainsAny(e.Msg, "\n\r\x00") {
				t.Errorf("%s: %q", e.Path, e.Msg)
			}
		}
	})
}

// tenRules are what a careful company might have.
func tenRules() []Rule {
	rules := []Rule{
		{Name: "office-hours", Effect: deny, When: "now.getHours('Europe/Berlin') < 6 && !('oncall' in groups)"},
		{Name: "contractors-read", Effect: deny, When: "groups.exists(g, g.startsWith('contractor-')) && !(verb in ['get', 'list', 'watch'])"},
		{Name: "no-exec", Effect: deny, When: "resource == 'pods' && subresource in ['exec', 'attach', 'portforward'] && !('corp:debuggers' in groups)"},
		{Name: "secrets", Effect: deny, When: "resource == 'secrets' && apiGroup == '' && !('corp:secret-readers' in groups)"},
		{Name: "system-namespaces", Effect: deny, When: "namespace.startsWith('kube-') && verb != 'get' && !('corp:cluster-operators' in groups)"},
		{Name: "no-mass-delete", Effect: deny, When: "verb == 'deletecollection'"},
		{Name: "from-inside", Effect: deny, When: "!cidr('10.0.0.0/8').containsIP(source.ip) && !session.mfa"},
		{Name: "fresh", Effect: deny, When: "verb in ['delete', 'patch'] && session.age > duration('1h')"},
		{Name: "no-nodes", Effect: deny, When: "path.startsWith('/api/v1/nodes/') && path.contains('/proxy/')"},
		{Name: "teams", Effect: allow, When: "namespace == '' || groups.exists(g, g == 'corp:team-' + namespace) || 'corp:k8s-all' in groups"},
	}
	return rules
}

func twentyGroups() (groups []string) {
	for i := range 19 {
		groups = append(groups, fmt.Sprintf("corp:k8s-team-number-%d", i))
	}
	return append(groups, "corp:k8s-all")
}

func BenchmarkDecide(b *testing.B) {
	p := mustPolicy(b, tenRules()...)
	in := &Input{
		User: "alice", Groups: twentyGroups(), Verb: "get", Resource: "pods", Namespace: "team-a", Name: "web-0", Path: "/api/v1/namespaces/team-a/pods/web-0",
		Now: at(b, "2026-11-22T12:00:00Z"), SourceIP: "10.1.2.3", SessionAge: time.Hour,
	}
	if d := p.decide(in); !d.Allowed || d.Rule != "teams" {
		b.Fatal(d)
	}
	b.ReportAllocs()
	cpu := cpuTime()
	for b.Loop() {
		p.decide(in)
	}
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// cpuTime is what this process has used so far, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		mustPolicy(b, tenRules()...)
	}
}
