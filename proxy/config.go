package proxy

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

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
	URL       string      `yaml:"url,omitempty"` // may be left out with InCluster
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

// LimitsConfig bounds one person on one cluster, and all of them together. Zero fields
// take the default.
type LimitsConfig struct {
	InFlight int `yaml:"inFlight,omitempty"` // requests that end by themselves
	Streams  int `yaml:"streams,omitempty"`  // watches, logs, execs, forwards
	// AllInFlight and AllStreams are the same of all people together.
	AllInFlight int           `yaml:"allInFlight,omitempty"`
	AllStreams  int           `yaml:"allStreams,omitempty"`
	Rate        float64       `yaml:"rate,omitempty"` // requests a second
	Burst       int           `yaml:"burst,omitempty"`
	MaxBody     audit.Size    `yaml:"maxBody,omitempty"` // bytes of a request's body
	Timeout     time.Duration `yaml:"timeout,omitempty"` // of requests that end by themselves
}

// PassthroughConfig lets in tokens that are not ours, service accounts' above all, which
// the API server itself says are good (TokenReview). They are sent on unchanged and
// nobody is impersonated.
type PassthroughConfig struct {
	TokenFile string   `yaml:"tokenFile"` // of an account that may create TokenReviews and nothing else
	Audiences []string `yaml:"audiences,omitempty"`
}

// Defaults of LimitsConfig. The API server ends a request after a minute itself, and
// takes 3 MiB of an object; more goes only to pods and services behind it.
const (
	defaultInFlight = 100
	defaultStreams  = 200

	defaultAllInFlight = 2_000
	defaultAllStreams  = 20_000
	defaultRate        = 200
	defaultBurst       = 400
	defaultMaxBody     = 16 << 20
	defaultTimeout     = 75 * time.Second
)

// withDefaults fills zero fields.
func (l LimitsConfig) withDefaults() LimitsConfig {
	l.InFlight = cmp.Or(l.InFlight, defaultInFlight)
	l.Streams = cmp.Or(l.Streams, defaultStreams)
	l.AllInFlight = cmp.Or(l.AllInFlight, max(defaultAllInFlight, l.InFlight))
	l.AllStreams = cmp.Or(l.AllStreams, max(defaultAllStreams, l.Streams))
	l.Burst = cmp.Or(l.Burst, max(defaultBurst, int(math.Ceil(min(l.Rate, maxRate)))))
	l.Rate = cmp.Or(l.Rate, defaultRate)
	l.MaxBody = cmp.Or(l.MaxBody, defaultMaxBody)
	l.Timeout = cmp.Or(l.Timeout, defaultTimeout)
	return l
}

// validateClusters returns every mistake in what is not CEL, joined; each is an
// *idp.FieldError.
func validateClusters(issuer string, clusters []ClusterConfig) error {
	home, err := url.Parse(issuer)
	if err != nil || home.Hostname() == "" {
		return wrong("issuer", "must be an https URL with a host")
	}
	var f idp.Faults
	hosts := map[string]string{strings.ToLower(home.Hostname()): "the issuer's own: its pages would share it with pods' pages"}
	for i, c := range clusters {
		path := fmt.Sprintf("clusters[%d]", i)
		f.Join(c.APIServer.validate(path+".apiServer", home, c.Proxy != nil))
		if c.Proxy != nil {
			f.Join(validateHosts(path+".proxy.hosts", c.Proxy.Hosts, hosts, c.Name), c.Proxy.Limits.validate(path+".proxy.limits"),
				c.Proxy.Passthrough.validate(path+".proxy.passthrough", c.APIServer))
		}
	}
	return f.Err()
}

func (c APIServerConfig) validate(path string, home *url.URL, proxied bool) error {
	var f idp.Faults
	switch u, err := url.Parse(c.URL); {
	case c.URL == "" && (c.InCluster || !proxied):
	case c.URL == "":
		f.Wrong(path+".url", "is missing: the proxy needs to know where the API server is, e.g. https://10.0.0.1:6443")
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(c.URL, "?#"):
		f.Wrong(path+".url", "must be an https URL without user, query or fragment, e.g. https://10.0.0.1:6443")
	case proxied && hostPort(u) == hostPort(home):
		f.Wrong(path+".url", "is Tabard itself: write the API server's own address")
	}
	f.Join(c.validateAccount(path, proxied))
	return f.Err()
}

func hostPort(u *url.URL) string {
	return net.JoinHostPort(strings.ToLower(u.Hostname()), cmp.Or(u.Port(), "443"))
}

// validateAccount sees that there is one credential where there has to be one, and never two.
func (c APIServerConfig) validateAccount(path string, proxied bool) error {
	var f idp.Faults
	given := 0
	for _, is := range []bool{c.TokenFile != "", c.CertFile != "" || c.KeyFile != "", c.Exec != nil, c.InCluster} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		f.Wrong(path, "give one of tokenFile, certFile with keyFile, exec and inCluster: it is not clear which account the proxy is to use")
	case given == 0 && proxied:
		f.Wrong(path, "give the account that may impersonate and nothing else: one of tokenFile, certFile with keyFile, exec and inCluster")
	}
	f.When((c.CertFile == "") != (c.KeyFile == ""), path+".certFile", "certFile and keyFile belong together: give both")
	f.When(c.Exec != nil && c.Exec.Command == "", path+".exec.command", "is missing: name the program that prints an ExecCredential")
	if c.Exec != nil {
		for name := range c.Exec.Env {
			f.When(name == "" || strings.ContainsAny(name, "=\x00"), path+".exec.env", "%.40q is not a name of an environment variable", name)
		}
	}
	return f.Err()
}

// hostLabel is one part of a host name (RFC 1123), in lower case.
var hostLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validateHosts takes each host for name in taken, which says whose a host is.
func validateHosts(path string, hosts []string, taken map[string]string, name string) error {
	var f idp.Faults
	for i, host := range hosts {
		at := fmt.Sprintf("%s[%d]", path, i)
		labels := strings.Split(host, ".")
		switch owner, is := taken[strings.ToLower(host)]; {
		case len(host) > 253 || net.ParseIP(host) != nil || slices.ContainsFunc(labels, func(l string) bool { return !hostLabel.MatchString(l) }):
			f.Wrong(at, "%.80q must be a host name in lower case, without scheme, port or wildcard, e.g. prod.k8s.corp.example", host)
		case is:
			f.Wrong(at, "%q is already %s", host, owner)
		default:
			taken[host] = fmt.Sprintf("that of cluster %q", name)
		}
	}
	return f.Err()
}

const maxRate = 100_000 // requests a second; more is as good as no limit

// validate accepts zero fields, which stand for the defaults.
func (l LimitsConfig) validate(path string) error {
	var f idp.Faults
	in := func(key string, value, least, most float64, unit string) {
		between := value >= least && value <= most // not a number is not
		f.When(value != 0 && !between, path+"."+key, "%g%s is not between %g%s and %g%s", value, unit, least, unit, most, unit)
	}
	in("inFlight", float64(l.InFlight), 1, 10_000, "")
	in("streams", float64(l.Streams), 1, 100_000, "")
	in("allInFlight", float64(l.AllInFlight), 1, 100_000, "")
	in("allStreams", float64(l.AllStreams), 1, 1_000_000, "")
	in("rate", l.Rate, 0.1, maxRate, "")
	in("burst", float64(l.Burst), 1, maxRate, "")
	in("maxBody", float64(l.MaxBody), 1<<10, 1<<30, " bytes")
	in("timeout", l.Timeout.Seconds(), 1, 3_600, "s")
	return f.Err()
}

func (c *PassthroughConfig) validate(path string, api APIServerConfig) error {
	if c == nil {
		return nil
	}
	var f idp.Faults
	if c.TokenFile == "" {
		f.Wrong(path+".tokenFile", "is missing: give the token of an account that may create TokenReviews and nothing else")
	} else if c.TokenFile == api.TokenFile {
		f.Wrong(path+".tokenFile", "is the one that may impersonate: give an account of its own, which may create TokenReviews and nothing else")
	}
	for i, a := range c.Audiences {
		f.When(a == "" || len(a) > 253 || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f }), fmt.Sprintf("%s.audiences[%d]", path, i), "%.80q is not an audience: write what the tokens' aud has, or leave audiences out for the API server's own", a)
	}
	return f.Err()
}
