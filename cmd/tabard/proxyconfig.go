package main

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/proxy"
)

// ClusterConfig is one cluster: what its tokens hold, and how it is proxied.
type ClusterConfig struct {
	idp.ClusterConfig `yaml:",inline"`

	APIServer proxy.APIServerConfig `yaml:"apiServer"`
	Proxy     *proxy.Config         `yaml:"proxy"` // nil: none
}

// proxied is what the proxy is told of the cluster.
func (c *ClusterConfig) proxied() proxy.ClusterConfig {
	return proxy.ClusterConfig{Name: c.Name, APIServer: c.APIServer, Proxy: c.Proxy}
}

// apiServerFiles reads what a cluster's apiServer and proxy name.
func (l *loader) apiServerFiles(at string, cl *ClusterConfig) {
	a := &cl.APIServer
	a.CA = l.caFile(at+".apiServer.caFile", &a.CAFile)
	l.rereadFile(at+".apiServer.tokenFile", &a.TokenFile)
	l.keyPair(at+".apiServer.certFile", l.rereadFile(at+".apiServer.certFile", &a.CertFile), l.rereadFile(at+".apiServer.keyFile", &a.KeyFile))
	if a.Exec != nil && strings.Contains(a.Exec.Command, "/") {
		l.resolve(&a.Exec.Command)
	}
	if cl.Proxy != nil && cl.Proxy.Passthrough != nil {
		l.rereadFile(at+".proxy.passthrough.tokenFile", &cl.Proxy.Passthrough.TokenFile)
	}
}

// rereadFile checks a secret that the proxy reads again by itself: a change of it is no
// reason to reload, but one that cannot be read yet is.
func (l *loader) rereadFile(key string, path *string) []byte {
	before := len(l.mistakes)
	b := l.secretFile(key, path)
	if len(l.mistakes) == before {
		delete(l.cfg.files, *path)
	}
	return b
}

// proxies completes what the provider is told of each cluster, and prepares the proxy.
func (l *loader) proxies() {
	c := l.cfg
	clusters := make([]proxy.ClusterConfig, len(c.Clusters))
	c.idp.Clusters = make([]idp.ClusterConfig, len(c.Clusters))
	for i := range c.Clusters {
		cl, at := &c.Clusters[i], fmt.Sprintf("clusters[%d]", i)
		clusters[i] = cl.proxied()
		c.idp.Clusters[i] = cl.ClusterConfig
		if cl.Proxy == nil {
			l.unusedAccount(at+".apiServer", cl.APIServer)
			c.idp.Clusters[i].APIServer = idp.APIServerConfig{URL: cl.APIServer.URL, CAFile: cl.APIServer.CAFile, CA: cl.APIServer.CA}
			continue
		}
		c.idp.Clusters[i].APIServer = idp.APIServerConfig{URL: c.proxiedAt(cl), CA: c.ownCA(), Proxied: true}
		l.uncovered(at+".proxy.hosts", cl.Proxy.Hosts)
	}
	var err error
	c.proxy, err = proxy.Prepare(c.Issuer, clusters)
	l.fromRoom(err)
}

// unusedAccount refuses the account of a proxy that is not there: somebody may believe
// that it is.
func (l *loader) unusedAccount(at string, a proxy.APIServerConfig) {
	for key, set := range map[string]bool{
		"tokenFile": a.TokenFile != "", "certFile": a.CertFile != "", "keyFile": a.KeyFile != "", "exec": a.Exec != nil, "inCluster": a.InCluster,
	} {
		if set {
			l.fromRoom(&idp.FieldError{Path: at + "." + key, Msg: "is for the proxy, which this cluster does not have: set clusters[].proxy, or leave it out"})
		}
	}
}

// proxiedAt is the URL of a proxied cluster: its first host, or its place under the issuer.
func (c *Config) proxiedAt(cl *ClusterConfig) string {
	u, err := url.Parse(c.Issuer)
	if len(cl.Proxy.Hosts) == 0 || err != nil {
		return c.Issuer + proxy.Path + cl.Name
	}
	host := cl.Proxy.Hosts[0]
	if port := u.Port(); port != "" {
		host = net.JoinHostPort(host, port)
	}
	return "https://" + host
}

// uncovered warns of hosts that the server's certificate is not for.
func (l *loader) uncovered(key string, hosts []string) {
	if l.cfg.cert == nil {
		return
	}
	for i, h := range hosts {
		if leaf := l.cfg.cert.Leaf; leaf.VerifyHostname(h) != nil {
			l.warn("%s[%d]: the certificate of tls.certFile is for %s and not for %s: get one that names it, unless a proxy in front has its own", key, i, certNames(leaf), h)
		}
	}
}
