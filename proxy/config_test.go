package proxy

import (
	"math"
	"strings"
	"testing"
	"time"
)

// proxied is a cluster as it has to be.
func proxied(name string, change func(*ClusterConfig)) ClusterConfig {
	c := ClusterConfig{Name: name, APIServer: APIServerConfig{URL: "https://10.0.0.1:6443", TokenFile: "token"}, Proxy: &Config{}}
	if change != nil {
		change(&c)
	}
	return c
}

func TestClusterMistakes(t *testing.T) {
	hosts := func(list ...string) func(*ClusterConfig) { return func(c *ClusterConfig) { c.Proxy.Hosts = list } }
	url := func(u string) func(*ClusterConfig) { return func(c *ClusterConfig) { c.APIServer.URL = u } }
	account := func(a APIServerConfig) func(*ClusterConfig) {
		return func(c *ClusterConfig) { a.URL = c.APIServer.URL; c.APIServer = a }
	}
	limits := func(l LimitsConfig) func(*ClusterConfig) { return func(c *ClusterConfig) { c.Proxy.Limits = l } }
	pass := func(p PassthroughConfig) func(*ClusterConfig) {
		return func(c *ClusterConfig) { c.Proxy.Passthrough = &p }
	}
	for _, c := range []struct {
		name   string
		change func(*ClusterConfig)
		want   string // of clusters[0]; "" where it is good
	}{
		{"as it has to be", nil, ""},
		{"hosts", hosts("prod.k8s.corp.example", "k8s", "xn--bcher-kva.example"), ""},
		{"a host with a port", hosts("prod.example:443"), `.proxy.hosts[0]: "prod.example:443" must be a host name in lower case`},
		{"a host in capitals", hosts("Prod.example"), `.proxy.hosts[0]: "Prod.example" must be`},
		{"a wildcard", hosts("*.example"), `.proxy.hosts[0]: "*.example" must be`},
		{"an address", hosts("10.0.0.1", "::1"), ".proxy.hosts[0]: \"10.0.0.1\" must be\n.proxy.hosts[1]: \"::1\" must be"},
		{"an empty host", hosts(""), `.proxy.hosts[0]: "" must be`},
		{"a root's dot", hosts("prod.example."), `.proxy.hosts[0]: "prod.example." must be`},
		{"a long label", hosts(strings.Repeat("a", 64) + ".example"), `.proxy.hosts[0]: "aaaaaaaa`},
		{"a host twice", hosts("a.example", "a.example"), `.proxy.hosts[1]: "a.example" is already that of cluster "prod"`},
		{"the issuer's host", hosts("id.example"), `.proxy.hosts[0]: "id.example" is already the issuer's own`},

		{"no URL", url(""), ".apiServer.url: is missing"},
		{"no TLS", url("http://10.0.0.1"), ".apiServer.url: must be an https URL"},
		{"no host", url("https:///api"), ".apiServer.url: must be an https URL"},
		{"a user", url("https://u:p@10.0.0.1"), ".apiServer.url: must be an https URL"},
		{"a query", url("https://10.0.0.1?x=y"), ".apiServer.url: must be an https URL"},
		{"no URL at all", url("10.0.0.1:6443"), ".apiServer.url: must be an https URL"},
		{"a path", url("https://rancher.example/k8s/clusters/c-1"), ""},
		{"ourselves", url("https://ID.example:443/k8s"), ".apiServer.url: is Tabard itself"},
		{"another port of our host", url("https://id.example:6443"), ""},

		{"no account", account(APIServerConfig{}), ".apiServer: give the account"},
		{"two accounts", account(APIServerConfig{TokenFile: "a", InCluster: true}), ".apiServer: give one of"},
		{"a certificate", account(APIServerConfig{CertFile: "c", KeyFile: "k"}), ""},
		{"a certificate without key", account(APIServerConfig{CertFile: "c"}), ".apiServer.certFile: certFile and keyFile belong together"},
		{"a key without certificate", account(APIServerConfig{KeyFile: "k"}), ".apiServer.certFile: certFile and keyFile belong together"},
		{"a plugin", account(APIServerConfig{Exec: &ExecConfig{Command: "aws", Env: map[string]string{"AWS_PROFILE": "p"}}}), ""},
		{"a plugin without command", account(APIServerConfig{Exec: &ExecConfig{}}), ".apiServer.exec.command: is missing"},
		{"a plugin's bad environment", account(APIServerConfig{Exec: &ExecConfig{Command: "aws", Env: map[string]string{"A=B": ""}}}), `.apiServer.exec.env: "A=B" is not a name`},
		{"in the cluster", func(c *ClusterConfig) { c.APIServer = APIServerConfig{InCluster: true} }, ""},
		{"no proxy, no account", func(c *ClusterConfig) { c.Proxy, c.APIServer = nil, APIServerConfig{} }, ""},
		{"no proxy, two accounts", func(c *ClusterConfig) { c.Proxy, c.APIServer.InCluster = nil, true }, ".apiServer: give one of"},

		{"all limits", limits(LimitsConfig{InFlight: 1, Streams: 1, Rate: 0.5, Burst: 1, MaxBody: 1 << 10, Timeout: time.Second}), ""},
		{"negative limits", limits(LimitsConfig{InFlight: -1, Streams: -1, Rate: -1, Burst: -1, MaxBody: -1, Timeout: -1}),
			".proxy.limits.inFlight: -1 is not between 1 and 10000\n.proxy.limits.streams: -1 is\n.proxy.limits.rate: -1 is\n.proxy.limits.burst: -1 is\n.proxy.limits.maxBody: -1 bytes\n.proxy.limits.timeout: -1e-09s is not between 1s and 3600s"},
		{"no number", limits(LimitsConfig{Rate: math.NaN()}), ".proxy.limits.rate: NaN is not between"},
		{"infinity", limits(LimitsConfig{Rate: math.Inf(1)}), ".proxy.limits.rate: +Inf is not between"},
		{"a long time-out", limits(LimitsConfig{Timeout: 2 * time.Hour}), ".proxy.limits.timeout: 7200s is not between"},

		{"passthrough", pass(PassthroughConfig{TokenFile: "reviewer", Audiences: []string{"https://kubernetes.default.svc"}}), ""},
		{"passthrough without account", pass(PassthroughConfig{}), ".proxy.passthrough.tokenFile: is missing"},
		{"passthrough with the proxy's account", pass(PassthroughConfig{TokenFile: "token"}), ".proxy.passthrough.tokenFile: is the one that may impersonate"},
		{"an empty audience", pass(PassthroughConfig{TokenFile: "r", Audiences: []string{"a", ""}}), `.proxy.passthrough.audiences[1]: "" is not an audience`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := validateClusters("https://id.example/tabard", []ClusterConfig{proxied("prod", c.change)})
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkMistakes(t, fieldErrors(t, err), "clusters[0]", c.want)
		})
	}
}

// A host is one cluster's alone, and every mistake of every cluster is told.
func TestSeveralClusters(t *testing.T) {
	err := validateClusters("https://id.example", []ClusterConfig{
		proxied("prod", func(c *ClusterConfig) { c.Proxy.Hosts = []string{"k8s.example"} }),
		proxied("test", func(c *ClusterConfig) { c.Proxy.Hosts, c.APIServer.URL = []string{"k8s.example"}, "" }),
	})
	checkMistakes(t, fieldErrors(t, err), "clusters[1]", ".apiServer.url: is missing\n.proxy.hosts[0]: \"k8s.example\" is already that of cluster \"prod\"")
	for _, issuer := range []string{"", "id.example", "://"} {
		checkMistakes(t, fieldErrors(t, validateClusters(issuer, nil)), "", "issuer: must be an https URL")
	}
}

func TestLimitDefaults(t *testing.T) {
	l := LimitsConfig{}.withDefaults()
	if l != (LimitsConfig{InFlight: defaultInFlight, Streams: defaultStreams, AllInFlight: defaultAllInFlight, AllStreams: defaultAllStreams, Rate: defaultRate, Burst: defaultBurst, MaxBody: defaultMaxBody, Timeout: defaultTimeout}) {
		t.Error(l)
	}
	if err := l.validate("limits"); err != nil {
		t.Error(err)
	}
	given := LimitsConfig{InFlight: 1, Streams: 2, AllInFlight: 7, AllStreams: 8, Rate: 3, Burst: 4, MaxBody: 5_000, Timeout: 6 * time.Second}
	if got := given.withDefaults(); got != given {
		t.Error(got)
	}
	if got := (LimitsConfig{InFlight: 5_000, Streams: 50_000}).withDefaults(); got.AllInFlight != 5_000 || got.AllStreams != 50_000 { // or one person could not have them
		t.Error(got)
	}
	if got := (LimitsConfig{Rate: 5_000}).withDefaults(); got.Burst != 5_000 { // else the rate could never be reached
		t.Error(got)
	}
}
