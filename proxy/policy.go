package proxy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tabard-id/tabard/idp"
)

const (
	maxRules    = 200 // of one cluster
	maxExamples = 50  // of one rule, or of a policy
	maxWords    = 300 // bytes of a reason or a hint
)

// Effects of a rule.
const (
	allow = "allow"
	deny  = "deny"
)

// Input is what a policy sees of one request. Rules know its fields by the names in
// docs/policy.md.
type Input struct {
	User        string
	Groups      []string
	Verb        string // as the API server's own: get, list, watch, create, …
	Resource    string
	Subresource string
	APIGroup    string // "" for the core
	Namespace   string
	Name        string
	Path        string // without our own prefix, no query
	Now         time.Time
	SourceIP    string
	SessionAge  time.Duration // since the sign-in
	MFA         bool          // a second factor was shown
}

// Decision is what a policy says of one request.
type Decision struct {
	Allowed bool
	Rule    string   // that decided; "" where none did
	Reason  string   // of the rule, from the configuration; "" where it is allowed
	Hint    string   // what to do, likewise
	DryRun  []string // rules in dry run that would have refused
}

// policy is the compiled rules of one cluster.
type policy struct {
	denies, allows       []rule
	dryDenies, dryAllows []rule
	isTimed              bool
}

type rule struct {
	Rule
	when *expression
}

// compilePolicy compiles rules and runs their examples. path is where they are in the
// configuration, e.g. "clusters[0].proxy.policy". Every mistake is an *idp.FieldError.
// Without rules the policy is nil.
func compilePolicy(path string, rules []Rule) (*policy, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	if len(rules) > maxRules {
		return nil, wrong(path, "%d rules are more than %d: join some with || or in", len(rules), maxRules)
	}
	x, err := newExpressions()
	if err != nil {
		return nil, err
	}
	p, taken := &policy{}, map[string]bool{}
	var f idp.Faults
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d]", path, i)
		f.Join(r.validate(at, taken))
		taken[r.Name] = true
		when, err := x.compile(at+".when", r.When)
		if err != nil {
			f.Join(err)
			continue
		}
		c := rule{r, when}
		f.Join(c.check(at + ".examples"))
		p.add(c)
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *policy) add(r rule) {
	p.isTimed = p.isTimed || r.when.timed
	list := &p.denies
	switch {
	case r.DryRun && r.Effect == allow:
		list = &p.dryAllows
	case r.DryRun:
		list = &p.dryDenies
	case r.Effect == allow:
		list = &p.allows
	}
	*list = append(*list, r)
}

var ruleName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validate looks at everything but the expression.
func (r Rule) validate(path string, taken map[string]bool) error {
	var f idp.Faults
	switch {
	case !ruleName.MatchString(r.Name):
		f.Wrong(path+".name", "%.80q must be at most 63 lower-case letters, digits and dashes, e.g. office-hours", r.Name)
	case taken[r.Name]:
		f.Wrong(path+".name", "%q is the name of a rule above: a refusal names its rule, so choose another", r.Name)
	}
	f.When(r.Effect != allow && r.Effect != deny, path+".effect", "%.40q is neither allow nor deny", r.Effect)
	f.Join(validWords(path+".reason", r.Reason), validWords(path+".hint", r.Hint))
	return f.Err()
}

// validWords refuses what would not be shown well on one line of a terminal.
func validWords(path, s string) error {
	if len(s) > maxWords {
		return wrong(path, "is longer than %d bytes: a refusal is one line, so say it shorter", maxWords)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.TrimSpace(s) != s {
		return wrong(path, "must be one line of text without control characters or blanks at its ends")
	}
	return nil
}

// check runs the examples of a rule.
func (r *rule) check(path string) error {
	return checkExamples(path, r.Examples, []string{"match", "noMatch"}, r.when.now, func(in *Input) (string, error) {
		ok, err := r.when.holds(&activation{in: in})
		if ok {
			return "match", err
		}
		return "noMatch", err
	})
}

// check runs the examples of the policy as a whole. Rules in dry run count for nothing.
func (p *policy) check(path string, examples []Example) error {
	now := p != nil && slices.ContainsFunc(slices.Concat(p.denies, p.allows), func(r rule) bool { return r.when.now })
	return checkExamples(path, examples, []string{allow, deny}, now, func(in *Input) (string, error) {
		d := p.decide(in)
		if d.Allowed {
			return allow + by(d.Rule), nil
		}
		return deny + by(d.Rule), nil
	})
}

// by names the rule that decided.
func by(name string) string {
	if name == "" {
		return ""
	}
	return " by " + name
}

// checkExamples runs try for each example. What it says begins with one of words.
func checkExamples(path string, examples []Example, words []string, now bool, try func(*Input) (string, error)) error {
	if len(examples) > maxExamples {
		return wrong(path, "%d examples are more than %d", len(examples), maxExamples)
	}
	var f idp.Faults
	for i, e := range examples {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !slices.Contains(words, e.Want) {
			f.Wrong(at+".want", "%.40q is neither %s nor %s", e.Want, words[0], words[1])
			continue
		}
		if now && e.Now.IsZero() {
			f.Wrong(at+".now", "is missing, and a rule looks at the time: write e.g. 2026-11-23T03:00:00+01:00")
			continue
		}
		if got, err := try(e.input()); err != nil {
			f.Wrong(at, "cannot be evaluated: %v", err)
		} else if word, _, _ := strings.Cut(got, " "); word != e.Want {
			f.Wrong(at, "want %s, but it is %s: correct the rule or the example", e.Want, got)
		}
	}
	return f.Err()
}

func (e *Example) input() *Input {
	return &Input{
		User: e.User, Groups: e.Groups, Verb: e.Verb, Resource: e.Resource, Subresource: e.Subresource, APIGroup: e.APIGroup,
		Namespace: e.Namespace, Name: e.Name, Path: e.Path, Now: e.Now, SourceIP: e.SourceIP, SessionAge: e.SessionAge, MFA: e.MFA,
	}
}

// decide says whether in may go on. No policy allows everything. A rule that cannot be
// evaluated matches if it denies, and does not if it allows.
func (p *policy) decide(in *Input) Decision {
	if p == nil {
		return Decision{Allowed: true}
	}
	a := &activation{in: in}
	d := p.decideReally(a)
	if len(p.dryDenies)+len(p.dryAllows) > 0 {
		d.DryRun = p.decideDry(a)
	}
	return d
}

func (p *policy) decideReally(a *activation) Decision {
	for i := range p.denies {
		r := &p.denies[i]
		if matches, err := r.when.holds(a); err != nil {
			return Decision{Rule: r.Name, Reason: join(r.Reason, failed(r, err)), Hint: r.Hint}
		} else if matches {
			return Decision{Rule: r.Name, Reason: r.Reason, Hint: r.Hint}
		}
	}
	if len(p.allows) == 0 {
		return Decision{Allowed: true}
	}
	why := "no rule allows it"
	for i := range p.allows {
		r := &p.allows[i]
		matches, err := r.when.holds(a)
		if err == nil && matches {
			return Decision{Allowed: true, Rule: r.Name}
		} else if err != nil {
			why = join(why, failed(r, err))
		}
	}
	return Decision{Reason: why, Hint: p.onlyHint()}
}

func failed(r *rule, err error) string {
	return fmt.Sprintf("rule %s cannot be evaluated: %v", r.Name, err)
}

// join puts two parts of a reason together.
func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// onlyHint is what to do where no rule allows: what the rules that do say, if they agree.
func (p *policy) onlyHint() string {
	for _, r := range p.allows[1:] {
		if r.Hint != p.allows[0].Hint {
			return ""
		}
	}
	return p.allows[0].Hint
}

// decideDry returns which rules in dry run would have refused. Those that allow would
// have where they are the only ones that do, and none matches.
func (p *policy) decideDry(a *activation) []string {
	var would []string
	for i := range p.dryDenies {
		if matches, err := p.dryDenies[i].when.holds(a); matches || err != nil {
			would = append(would, p.dryDenies[i].Name)
		}
	}
	if len(p.allows) > 0 {
		return would
	}
	for i := range p.dryAllows {
		if matches, err := p.dryAllows[i].when.holds(a); matches && err == nil {
			return would
		}
	}
	for i := range p.dryAllows {
		would = append(would, p.dryAllows[i].Name)
	}
	return would
}

// timed is true where the same request may be decided otherwise later.
func (p *policy) timed() bool { return p != nil && p.isTimed }

// auditLevel is how much of a request is left in the trail.
type auditLevel uint8

const (
	auditMetadata auditLevel = iota // at completion; changes at the start too
	auditNone                       // nothing, unless it is refused
	auditFull                       // at the start and at completion
)

// auditRules says at what level a request is recorded.
type auditRules struct {
	when   []*expression
	levels []auditLevel
}

var auditLevels = map[string]auditLevel{"none": auditNone, "metadata": auditMetadata, "full": auditFull}

// compileAudit is compilePolicy for the rules of the trail.
func compileAudit(path string, rules []AuditRule) (*auditRules, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	if len(rules) > maxRules {
		return nil, wrong(path, "%d rules are more than %d: join some with || or in", len(rules), maxRules)
	}
	x, err := newExpressions()
	if err != nil {
		return nil, err
	}
	a := &auditRules{}
	var f idp.Faults
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d]", path, i)
		level, ok := auditLevels[r.Level]
		f.When(!ok, at+".level", "%.40q is none of none, metadata and full", r.Level)
		when, err := x.compile(at+".when", r.When)
		f.Join(err)
		a.when, a.levels = append(a.when, when), append(a.levels, level)
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	return a, nil
}

// level of a request: the first rule's that matches, metadata where none does, full where
// one cannot be evaluated.
func (a *auditRules) level(in *Input) auditLevel {
	if a == nil {
		return auditMetadata
	}
	act := &activation{in: in}
	for i, when := range a.when {
		matches, err := when.holds(act)
		if err != nil {
			return auditFull
		} else if matches {
			return a.levels[i]
		}
	}
	return auditMetadata
}

func wrong(path, format string, args ...any) error {
	return &idp.FieldError{Path: path, Msg: fmt.Sprintf(format, args...)}
}
