package proxy

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"

	"github.com/tabard-id/tabard/idp"
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
	Reason  string   // of the rule, from the configuration
	Hint    string   // what to do, likewise
	DryRun  []string // rules in dry run that would have refused
}

// policy is the compiled rules of one cluster.
type policy struct{ rules []rule }

type rule struct {
	Rule
	program cel.Program
}

// compilePolicy compiles rules and runs their examples. path is where they are in the
// configuration, e.g. "clusters[0].proxy.policy". Every mistake is an *idp.FieldError.
func compilePolicy(path string, rules []Rule) (*policy, error) {
	env, err := cel.NewEnv(ext.Strings())
	if err != nil {
		return nil, err
	}
	_ = env
	return &policy{}, nil
}

// check runs the examples of the policy as a whole.
func (p *policy) check(path string, examples []Example) error { return nil }

// decide says whether in may go on. No policy allows everything.
func (p *policy) decide(in *Input) Decision { return Decision{Allowed: true} }

// timed is true where the same request may be decided otherwise later.
func (p *policy) timed() bool { return false }

// auditLevel is how much of a request is left in the trail.
type auditLevel uint8

const (
	auditMetadata auditLevel = iota // at completion; changes at the start too
	auditNone                       // nothing, unless it is refused
	auditFull                       // at the start and at completion
)

// auditRules says at what level a request is recorded.
type auditRules struct{}

// compileAudit is compilePolicy for the rules of the trail.
func compileAudit(path string, rules []AuditRule) (*auditRules, error) { return &auditRules{}, nil }

// level of a request; metadata where no rule matches or fails.
func (a *auditRules) level(in *Input) auditLevel { return auditMetadata }

// validateClusters returns every mistake in what is not CEL, joined; each is an
// *idp.FieldError.
func validateClusters(issuer string, clusters []ClusterConfig) error { return errors.Join() }

// withDefaults fills zero fields.
func (l LimitsConfig) withDefaults() LimitsConfig { return l }

func wrong(path, format string, args ...any) error {
	return &idp.FieldError{Path: path, Msg: fmt.Sprintf(format, args...)}
}
