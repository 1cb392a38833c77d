package main

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tabard-id/tabard/internal/demoldap"
	"github.com/tabard-id/tabard/internal/parts"
)

const (
	demoCertLife = 30 * 24 * time.Hour
	demoCertLeft = 24 * time.Hour // with less left they are made anew
)

const demoConfig = `# Written by "tabard demo" at each start. A change is used at once and lost at the
# next start; "tabard config example" explains every key.
issuer: %[1]s
listen: 127.0.0.1:%[2]d
tls: {certFile: server.pem, keyFile: server.key}
store: {bolt: {path: tabard.db}}
audit: {dir: audit}
admins: ["corp:cluster-operators"]      # carol's group
directories:
- name: corp
  type: ldap
  urls: [ldaps://127.0.0.1:%[3]d]
  caFile: ca.pem
  bindDN: %[5]s
  bindPasswordFile: bind-password
clusters:
- name: %[6]s
  clientID: kubernetes
  redirectURIs: [http://localhost:8000, http://localhost:18000]   # kubelogin's
  # The API server trusts us by its flags. For its other address, %[1]s/k8s/clusters/%[6]s,
  # it needs no flag: the proxy acts for people by an account that may impersonate.
  apiServer: {url: "https://127.0.0.1:%[4]d", caFile: ca.pem, certFile: proxy.pem, keyFile: proxy.key}
  proxy:
    policy:
    - name: pods-stay
      effect: deny
      when: verb == 'delete' && resource == 'pods'
      reason: nobody deletes pods through the proxy
      hint: go to the API server itself
      examples:
      - {user: carol, verb: delete, resource: pods, namespace: demo, name: shop, want: match}
tokens: {idTokenLifetime: 1m, minLifetime: 10s}   # short, so that changes show soon
`

// demoSecrets are what the directory needs of the files.
type demoSecrets struct {
	cert         tls.Certificate
	bindPassword string
}

// writeFiles writes certificates, where they are missing or end soon, and the
// configuration.
func (d *demoRun) writeFiles() (demoSecrets, error) {
	if !d.certificatesGood() {
		if err := d.makeCertificates(); err != nil {
			return demoSecrets{}, err
		}
	}
	s := demoSecrets{bindPassword: rand.Text()}
	var err error
	if s.cert, err = tls.LoadX509KeyPair(d.path("server.pem"), d.path("server.key")); err != nil {
		return s, fmt.Errorf("load the demo's certificate: %w", err)
	}
	if err := d.write("bind-password", s.bindPassword+"\n"); err != nil {
		return s, err
	}
	return s, d.write("tabard.yaml", fmt.Sprintf(demoConfig, d.issuer, d.port, d.port+1, d.port+2, demoldap.BindDN, demoCluster))
}

// makeCertificates makes a CA that is good for loopback alone, and what it signs.
// Its key is never written, so nobody can sign more with it.
func (d *demoRun) makeCertificates() error {
	ca, err := parts.NewCA(d.dir, parts.CAOptions{Name: "Tabard demo, throw-away", Lifetime: demoCertLife, Loopback: true})
	if err != nil {
		return err
	}
	if _, _, err := ca.Issue("server", "localhost", "127.0.0.1", "::1"); err != nil {
		return err
	}
	if _, _, err := ca.IssueClient("proxy", "demo-proxy"); err != nil {
		return err
	}
	_, _, err = ca.IssueClient("admin", "demo-admin", "system:masters")
	return err
}

// certificatesGood says whether all are there, fit together and last for a while.
func (d *demoRun) certificatesGood() bool {
	pem, err := os.ReadFile(d.path("ca.pem"))
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		return false
	}
	for _, name := range []string{"server", "proxy", "admin"} {
		pair, err := tls.LoadX509KeyPair(d.path(name+".pem"), d.path(name+".key"))
		if err != nil {
			return false
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: time.Now().Add(demoCertLeft), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			return false
		}
	}
	return true
}

// writeKubeconfigs writes one for each person, whose token comes from the plugin
// with a cache of its own, and the administrator's.
func (d *demoRun) writeKubeconfigs() error {
	server := fmt.Sprintf("https://127.0.0.1:%d", d.port+2)
	users := map[string]map[string]any{"admin": {"client-certificate": d.path("admin.pem"), "client-key": d.path("admin.key")}}
	for _, p := range demoldap.People() {
		users[p.UID] = map[string]any{"exec": map[string]any{
			"apiVersion": "client.authentication.k8s.io/v1", "command": d.path("bin", "kubectl-tabard"), "interactiveMode": "IfAvailable",
			"args": append([]string{"get-token", "--cluster=" + demoCluster, "--prompt"}, d.pluginArgs(p.UID)...),
		}}
	}
	for name, user := range users {
		if err := parts.WriteKubeconfig(d.path(name+".kubeconfig"), demoCluster, server, d.path("ca.pem"), "demo", user); err != nil {
			return err
		}
	}
	return nil
}

// pluginArgs name the server and the person. The keyring stays as it is.
func (d *demoRun) pluginArgs(uid string) []string {
	return []string{"--server=" + d.issuer, "--ca-file=" + d.path("ca.pem"), "--username=" + uid, "--cache-dir=" + d.path("cache", uid), "--no-keyring"}
}

func (d *demoRun) write(name, content string) error {
	return newFile(d.path(name), true, func(w io.Writer) error {
		_, err := io.WriteString(w, content)
		return err
	})
}

// link makes bin/name a link to target, replacing an older one in one step.
func (d *demoRun) link(name, target string) error {
	unfinished := d.path("bin", "."+name)
	_ = os.Remove(unfinished) // of a run that was killed
	if err := os.Symlink(target, unfinished); err != nil {
		return fmt.Errorf("link %s: %w", filepath.Base(target), err)
	}
	return os.Rename(unfinished, d.path("bin", name))
}
