package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestClusterMistakes(t *testing.T) {
	path := writeConfig(t, minimal)
	notes := filepath.Join(filepath.Dir(path), "notes.txt")
	writeFile(t, notes, "no certificate", 0o600)
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"flags nowhere", exitFailed, `there is no cluster "nowhere"`},
		{"flags", exitUsage, "accepts 1 arg(s)"},
		{"flags prod --for x", exitUsage, "use native, authn-config or webhook"},
		{"flags prod --dir pki", exitUsage, "--dir is not an absolute path"},
		{"flags prod --for webhook", exitFailed, "cluster prod has no webhook: set clusters[].webhook.callers"},
		{"webhook-config prod", exitFailed, "cluster prod has no webhook"},
		{"authn-config prod --deny-sid x'y", exitUsage, "is no sid and no jti"},
		{"authn-config prod --deny-jti ${x}", exitUsage, "is no sid and no jti"},
		{"authn-config prod --issuer-ca nowhere", exitFailed, "--issuer-ca: nowhere does not exist"},
		{"authn-config prod --issuer-ca " + notes, exitFailed, "holds no certificate in PEM form"},
		{"rbac prod --for x", exitUsage, "use people, proxy or passthrough"},
		{"rbac prod --namespace A", exitUsage, "--namespace is not the name of one"},
		{"rbac prod --admins system:masters", exitUsage, "no token holds a group"},
		{"rbac prod --for proxy --service-account x", exitUsage, "--service-account is not NAMESPACE/NAME"},
		{"kubeconfig prod", exitFailed, "cluster prod has no apiServer.url in the configuration: set it"},
	} {
		code, stdout, stderr := command(t, append(append([]string{"cluster"}, strings.Fields(c.line)...), "--config", path)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %s%s", c.line, code, stdout, stderr)
		}
	}
	if code, _, stderr := command(t, "cluster", "flags", "prod"); code != exitUsage || !strings.Contains(stderr, "--config is missing") {
		t.Errorf("without --config: exit %d, %s", code, stderr)
	}
}

// TestClusterOfItsOwnNames has claims and an algorithm that are not the defaults.
func TestClusterOfItsOwnNames(t *testing.T) {
	tokens := `clientID: "x:~y", tokens: {usernameClaim: "https://corp/it's", groupsClaim: in, signingAlgorithm: ES256}, apiServer: {url: "https://10.0.0.1:6443"}`
	path := writeConfig(t, strings.Replace(minimal, "clientID: kubernetes", tokens, 1))
	_, flags, _ := command(t, "cluster", "flags", "prod", "--config", path, "--system-roots")
	if want := "--oidc-issuer-url=https://id.corp.example\n--oidc-client-id=x:~y\n--oidc-username-claim=https://corp/it's\n--oidc-username-prefix=-\n--oidc-groups-claim=in\n--oidc-signing-algs=ES256\n"; flags != want {
		t.Errorf("flags\n%s", flags)
	}
	_, authn, _ := command(t, "cluster", "authn-config", "prod", "--config", path)
	var c struct {
		JWT []struct {
			Issuer struct {
				Audiences []string
				CA        string `yaml:"certificateAuthority"`
			}
			ClaimMappings struct{ Username, Groups struct{ Expression string } } `yaml:"claimMappings"`
		}
	}
	if err := yaml.Unmarshal([]byte(authn), &c); err != nil || len(c.JWT) != 1 {
		t.Fatalf("%v\n%s", err, authn)
	}
	m := c.JWT[0].ClaimMappings
	if c.JWT[0].Issuer.Audiences[0] != "x:~y" || m.Username.Expression != `claims['https://corp/it\'s']` || m.Groups.Expression != "claims['in']" || c.JWT[0].Issuer.CA != "" {
		t.Errorf("%+v\n%s", c.JWT[0], authn)
	}
	code, _, warned := command(t, "cluster", "kubeconfig", "prod", "--config", path, "--for", "kubelogin")
	if code != exitDone || !strings.Contains(warned, "warning: kubelogin needs http://localhost:8000 in redirectURIs of cluster prod") {
		t.Errorf("exit %d, %s", code, warned)
	}
}

// TestClusterKnowsTheCA: it is at the end of the server's chain, or given. A key that lies
// beside it stays where it is.
func TestClusterKnowsTheCA(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.NewCA(t, dir)
	cert, key := ca.Issue(t, "id.corp.example")
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	root := strings.TrimSpace(read(ca.File))
	both := filepath.Join(dir, "both.pem")
	writeFile(t, both, read(key)+read(ca.File), 0o600)
	chain := filepath.Join(dir, "chain.pem")
	writeFile(t, chain, read(cert)+read(ca.File), 0o600)
	for name, c := range map[string]struct {
		tls, flag string
		known     bool
	}{
		"leaf alone": {cert, "", false}, "whole chain": {chain, "", true}, "given": {cert, ca.File, true}, "given with a key": {cert, both, true},
	} {
		path := writeConfig(t, strings.Replace(minimal, "admins:", "tls: {certFile: "+c.tls+", keyFile: "+key+"}\nadmins:", 1))
		args := []string{"cluster", "authn-config", "prod", "--config", path}
		if c.flag != "" {
			args = append(args, "--issuer-ca", c.flag)
		}
		code, stdout, stderr := command(t, args...)
		got := strings.Contains(strings.ReplaceAll(stdout, "\n      ", "\n"), root)
		if code != exitDone || got != c.known || strings.Contains(stdout, "PRIVATE KEY") || strings.Contains(stdout, "BEGIN") != c.known {
			t.Errorf("%s: exit %d, %s%s", name, code, stdout, stderr)
		}
	}
}

// TestClusterProxied: people reach a proxied cluster at the proxy, whose certificate is the
// issuer's.
func TestClusterProxied(t *testing.T) {
	dir := t.TempDir()
	own, theirs := testenv.NewCA(t, dir), testenv.NewCA(t, t.TempDir())
	cert, key := own.Issue(t, "id.corp.example")
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	chain, account := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "account")
	writeFile(t, chain, read(cert)+"\n"+read(own.File), 0o600)
	writeFile(t, account, "t", 0o600)
	for _, c := range []struct{ issuer, tls, proxy, flags, server, ca string }{
		{"https://id.corp.example", chain, "{}", "", "https://id.corp.example/k8s/clusters/prod", read(own.File)},
		{"https://id.corp.example:8443/id", cert, "{}", "", "https://id.corp.example:8443/id/k8s/clusters/prod", ""},
		{"https://id.corp.example:8443/id", cert, "{}", "--issuer-ca " + own.File, "https://id.corp.example:8443/id/k8s/clusters/prod", read(own.File)},
		{"https://id.corp.example:8443/id", chain, "{hosts: [prod.k8s.example, p.example]}", "--for kubelogin", "https://prod.k8s.example:8443", read(own.File)},
		{"https://id.corp.example", chain, "{hosts: [prod.k8s.example]}", "", "https://prod.k8s.example", read(own.File)},
		{"https://id.corp.example", chain, "{hosts: [prod.k8s.example]}", "--direct", "https://10.0.0.1:6443", read(theirs.File)},
	} {
		text := strings.Replace(minimal, "kubernetes}", "kubernetes, apiServer: {url: 'https://10.0.0.1:6443', caFile: "+theirs.File+", tokenFile: "+account+"}, proxy: "+c.proxy+"}", 1)
		text = strings.NewReplacer("https://id.corp.example", c.issuer, "admins:", "tls: {certFile: "+c.tls+", keyFile: "+key+"}\nadmins:").Replace(text)
		args := append([]string{"cluster", "kubeconfig", "prod", "--config", writeConfig(t, text)}, strings.Fields(c.flags)...)
		code, stdout, stderr := command(t, args...)
		var k struct {
			Clusters []struct {
				Cluster struct {
					Server string
					CA     string `yaml:"certificate-authority-data"`
				}
			}
		}
		if err := yaml.Unmarshal([]byte(stdout), &k); err != nil || code != exitDone || len(k.Clusters) != 1 {
			t.Fatalf("%s: exit %d, %v: %s%s", c.flags, code, err, stdout, stderr)
		}
		got, ca := k.Clusters[0].Cluster, ""
		if c.ca != "" {
			ca = base64Of(c.ca + "\n")
		}
		if got.Server != c.server || got.CA != ca {
			t.Errorf("%s %s %s:\ngot  %+v\nwant %s %s", c.issuer, c.proxy, c.flags, got, c.server, ca)
		}
		_, _, warned := command(t, "config", "check", args[4])
		if host := strings.Contains(c.proxy, "prod.k8s"); host != strings.Contains(warned, "clusters[0].proxy.hosts[0]: the certificate of tls.certFile is for id.corp.example, localhost, 127.0.0.1, ::1 and not for prod.k8s.example") {
			t.Errorf("%s: warned of %q", c.proxy, warned)
		}
	}
}

func TestYAMLString(t *testing.T) {
	for _, s := range []string{"", "a", "yes", "No", "null", "1", "1e3", "-", "- a", "a: b", "a:b", "corp:team-a", "a:", "#a", "a #b", "'", `"`, "\\", "<&>", "ä\n", "https://h:1/x?y=z&a", "@x", "{a}", "a\u2028b"} {
		text, err := yamlString(s)
		var got any
		if err == nil {
			err = yaml.Unmarshal([]byte("k: "+text+"\n"), &got)
		}
		if m, ok := got.(map[string]any); err != nil || !ok || m["k"] != s {
			t.Errorf("%q as %s: %v, %v", s, text, got, err)
		}
	}
}
