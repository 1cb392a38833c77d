package proxy

import "time"

// ClusterConfig is what the proxy is told of one cluster.
type ClusterConfig struct {
	Name      string
	APIServer APIServerConfig
	Proxy     *Config // nil: no proxy
}

// APIServerConfig says where a cluster's API server is and by what account the proxy
// acts there: one that may impersonate and nothing else. At most one of TokenFile,
// CertFile with KeyFile, Exec and InCluster.
type APIServerConfig struct {
	URL       string      `yaml:"url,omitempty"`
	CAFile    string      `yaml:"caFile,omitempty"`
	CA        string      `yaml:"-"`                   // what CAFile holds, PEM
	TokenFile string      `yaml:"tokenFile,omitempty"` // read again as it changes
	CertFile  string      `yaml:"certFile,omitempty"`
	KeyFile   string      `yaml:"keyFile,omitempty"`
	Exec      *ExecConfig `yaml:"exec,omitempty"` // a client.authentication.k8s.io/v1 plugin
	InCluster bool        `yaml:"inCluster,omitempty"`
}

// ExecConfig is a credential plugin, run as client-go runs it.
type ExecConfig struct {
	Command string            `yaml:"command"`
	Args    []string          `yaml:"args,omitempty"`
	Env     map[string]string `yaml:"env,omitempty"`
}

// Config is a cluster's proxy.
type Config struct {
	Hosts       []string           `yaml:"hosts,omitempty"` // reached at these too, beside <issuer>/k8s/clusters/NAME
	Policy      []Rule             `yaml:"policy,omitempty"`
	Examples    []Example          `yaml:"examples,omitempty"` // of the policy as a whole: want allow or deny
	Audit       []AuditRule        `yaml:"audit,omitempty"`
	Limits      LimitsConfig       `yaml:"limits,omitempty"`
	Passthrough *PassthroughConfig `yaml:"passthrough,omitempty"` // nil: no tokens but ours
}

// Rule is one named rule of a policy. A deny that matches wins over every allow. Where
// there is an allow at all, one must match. Without rules the cluster's RBAC alone decides.
type Rule struct {
	Name     string    `yaml:"name"`
	Effect   string    `yaml:"effect"` // allow or deny
	When     string    `yaml:"when"`   // CEL, a bool
	Reason   string    `yaml:"reason,omitempty"`
	Hint     string    `yaml:"hint,omitempty"`     // what to do, e.g. "ask for group oncall"
	DryRun   bool      `yaml:"dryRun,omitempty"`   // only recorded
	Examples []Example `yaml:"examples,omitempty"` // of this rule alone: want match or noMatch
}

// Example is a request, what a policy or a rule has to make of it, and so a test that is
// run before the configuration is taken. What is not given is empty.
type Example struct {
	User        string        `yaml:"user,omitempty"`
	Groups      []string      `yaml:"groups,omitempty"`
	Verb        string        `yaml:"verb,omitempty"`
	Resource    string        `yaml:"resource,omitempty"`
	Subresource string        `yaml:"subresource,omitempty"`
	APIGroup    string        `yaml:"apiGroup,omitempty"`
	Namespace   string        `yaml:"namespace,omitempty"`
	Name        string        `yaml:"name,omitempty"`
	Path        string        `yaml:"path,omitempty"`
	Now         time.Time     `yaml:"now,omitempty"` // RFC 3339; must be given where a rule looks at it
	SourceIP    string        `yaml:"sourceIP,omitempty"`
	SessionAge  time.Duration `yaml:"sessionAge,omitempty"`
	MFA         bool          `yaml:"mfa,omitempty"`
	Want        string        `yaml:"want"` // match or noMatch of a rule, allow or deny of a policy
}

// AuditRule says what is left in the trail of requests that match; the first that
// matches counts, and what none matches is at metadata.
type AuditRule struct {
	When  string `yaml:"when"`  // CEL, a bool
	Level string `yaml:"level"` // none; metadata: at completion, changes at the start too; full: both for all
}

// LimitsConfig bounds one person on one cluster. Zero fields take the default.
type LimitsConfig struct {
	InFlight int           `yaml:"inFlight,omitempty"` // requests that end by themselves
	Streams  int           `yaml:"streams,omitempty"`  // watches, logs, execs, forwards
	Rate     float64       `yaml:"rate,omitempty"`     // requests a second
	Burst    int           `yaml:"burst,omitempty"`
	MaxBody  int64         `yaml:"maxBody,omitempty"` // bytes of a request's body
	Timeout  time.Duration `yaml:"timeout,omitempty"` // of requests that end by themselves
}

// PassthroughConfig lets in tokens that are not ours, service accounts' above all, which
// the API server itself says are good (TokenReview). They are sent on unchanged and
// nobody is impersonated.
type PassthroughConfig struct {
	TokenFile string   `yaml:"tokenFile"` // of an account that may create TokenReviews and nothing else
	Audiences []string `yaml:"audiences,omitempty"`
}
