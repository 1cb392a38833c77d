package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/client-go/rest"

	"github.com/tabard-id/tabard/internal/testenv"
)

// binDir holds the built commands.
var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "tabard-deploy"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-o", binDir, "github.com/tabard-id/tabard/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the commands: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// decode decodes one YAML document; a key that into does not have is an error.
func decode(t *testing.T, what, document string, into any) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(document))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// documents splits a YAML file.
func documents(file string) []string { return strings.Split(file, "\n---\n") }

// command runs one of the built commands.
func command(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(binDir, args[0]), args[1:]...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// clusterConfiguration is what we use of kubeadm's; Args is a map in v1beta3.
type clusterConfiguration[Args any] struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	APIServer  struct {
		ExtraArgs Args `yaml:"extraArgs"`
	} `yaml:"apiServer"`
}

type argList []struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

func (l argList) flags() []string {
	var flags []string
	for _, a := range l {
		flags = append(flags, "--"+a.Name+"="+a.Value)
	}
	return flags
}

func kubeadmFlags(t *testing.T) []string {
	var c clusterConfiguration[argList]
	decode(t, "kubeadm.yaml", read(t, "apiserver/kubeadm.yaml"), &c)
	if c.APIVersion != "kubeadm.k8s.io/v1beta4" || c.Kind != "ClusterConfiguration" {
		t.Errorf("kubeadm.yaml is a %s %s", c.APIVersion, c.Kind)
	}
	return c.APIServer.ExtraArgs.flags()
}

func k3sFlags(t *testing.T) []string {
	var c struct {
		Args []string `yaml:"kube-apiserver-arg+"`
	}
	decode(t, "k3s.yaml", read(t, "apiserver/k3s.yaml"), &c)
	var flags []string
	for _, a := range c.Args {
		flags = append(flags, "--"+a)
	}
	return flags
}

// kindFlags returns the flags for each of the two forms that kubeadm takes them in.
func kindFlags(t *testing.T) (list, older []string) {
	var c struct {
		Kind       string `yaml:"kind"`
		APIVersion string `yaml:"apiVersion"`
		Nodes      []struct {
			Role        string `yaml:"role"`
			ExtraMounts []struct {
				HostPath      string `yaml:"hostPath"`
				ContainerPath string `yaml:"containerPath"`
				ReadOnly      bool   `yaml:"readOnly"`
			} `yaml:"extraMounts"`
		} `yaml:"nodes"`
		Patches []string `yaml:"kubeadmConfigPatches"`
	}
	decode(t, "kind.yaml", read(t, "apiserver/kind.yaml"), &c)
	if c.Kind != "Cluster" || c.APIVersion != "kind.x-k8s.io/v1alpha4" || len(c.Patches) != 2 {
		t.Fatalf("kind.yaml: %+v", c)
	}
	var newer clusterConfiguration[argList]
	decode(t, "the patch for v1beta4", c.Patches[0], &newer)
	var before clusterConfiguration[map[string]string]
	decode(t, "the patch for v1beta3", c.Patches[1], &before)
	if newer.APIVersion != "kubeadm.k8s.io/v1beta4" || before.APIVersion != "kubeadm.k8s.io/v1beta3" || newer.Kind != before.Kind {
		t.Errorf("kind.yaml patches %s and %s", newer.APIVersion, before.APIVersion)
	}
	for k, v := range before.APIServer.ExtraArgs {
		older = append(older, "--"+k+"="+v)
	}
	list = newer.APIServer.ExtraArgs.flags()
	if mount := c.Nodes[0].ExtraMounts[0]; !slices.Contains(list, "--oidc-ca-file="+mount.ContainerPath) {
		t.Errorf("the CA is mounted at %s, which no flag names", mount.ContainerPath)
	}
	return list, older
}

// TestFlagsAgree holds every way to configure an API server to the same flags.
func TestFlagsAgree(t *testing.T) {
	want := strings.Fields(read(t, "apiserver/flags.txt"))
	slices.Sort(want)
	list, older := kindFlags(t)
	for where, flags := range map[string][]string{
		"kubeadm.yaml": kubeadmFlags(t), "k3s.yaml": k3sFlags(t), "kind.yaml": list, "kind.yaml before 1.36": older,
		"README.md": regexp.MustCompile(`--oidc-\S+`).FindAllString(section(t, read(t, "../README.md"), "Tell the API server"), -1),
	} {
		slices.Sort(flags)
		for i := range flags {
			flags[i] = strings.Replace(flags[i], "/etc/rancher/k3s/", "/etc/kubernetes/pki/", 1)
		}
		if !slices.Equal(flags, want) {
			t.Errorf("%s has\n%s\nand flags.txt\n%s", where, strings.Join(flags, "\n"), strings.Join(want, "\n"))
		}
	}
}

// examplePlace writes the example configuration, with the keys of prod that it shows as
// comments, and the files that it names, and returns its path.
func examplePlace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ca := testenv.NewCA(t, dir)
	cert, key := ca.Issue(t, "id.corp.example")
	text := regexp.MustCompile(`(?m)^  #(webhook:|  callers: |apiServer:|  url: )`).ReplaceAllString(read(t, "tabard.example.yaml"), "  $1")
	text = strings.Replace(text, ", {token: ...}", "", 1)
	for name, content := range map[string]string{
		"tabard.yaml": text, "tls.crt": read(t, cert), "tls.key": read(t, key), "corp-ca.pem": read(t, ca.File), "bind-password": "secret",
		"headlamp-secret": "a long enough secret", "prod-webhook-token": "0123456789abcdef0123456789abcdef",
	} {
		write(t, filepath.Join(dir, name), content)
	}
	return filepath.Join(dir, "tabard.yaml")
}

// TestGeneratedFiles holds the files of this folder to what the program prints.
func TestGeneratedFiles(t *testing.T) {
	config := examplePlace(t)
	for file, line := range map[string]string{
		"apiserver/flags.txt":           "flags",
		"apiserver/authn-config.yaml":   "authn-config",
		"apiserver/webhook-flags.txt":   "flags --for webhook",
		"apiserver/webhook-config.yaml": "webhook-config",
		"rbac/people.yaml":              "rbac --namespace team-a --admins corp:team-a --viewers corp:devs --cluster-admins platform",
		"rbac/proxy.yaml":               "rbac --for proxy",
		"rbac/passthrough.yaml":         "rbac --for passthrough",
	} {
		words := strings.Fields(line)
		args := append([]string{"tabard", "cluster", words[0], "prod", "--config", config}, words[1:]...)
		printed, err := command(args...)
		if again, _ := command(args...); err != nil || again != printed {
			t.Errorf("%s: %v, printed\n%s\nand then\n%s", line, err, printed, again)
		}
		if os.Getenv("TABARD_GENERATE") != "" {
			write(t, file, printed)
		}
		if printed != read(t, file) {
			t.Errorf("%s is not what `tabard cluster %s` prints: run this test with TABARD_GENERATE=1\n%s", file, line, printed)
		}
	}
}

// section is the text under the heading that ends in title.
func section(t *testing.T, markdown, title string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^#+ .*` + regexp.QuoteMeta(title) + `$`).FindStringIndex(markdown)
	if m == nil {
		t.Fatalf("there is no heading %q", title)
	}
	text, _, _ := strings.Cut(markdown[m[1]:], "\n#")
	return text
}

// TestCluster applies everything to a real API server that was started with the
// flags of kubeadm.yaml and judges pods by the Pod Security Standards.
func TestCluster(t *testing.T) {
	ca := testenv.NewCA(t, t.TempDir())
	args := []string{"--enable-admission-plugins=PodSecurity"}
	for _, f := range kubeadmFlags(t) {
		args = append(args, strings.Replace(f, "/etc/kubernetes/pki/tabard-ca.pem", ca.File, 1))
	}
	k := testenv.StartKubeAPIServer(t, testenv.KubeAPIServerOptions{ExtraArgs: args})
	strict := []string{"apply", "--server-side", "--validate=strict"}
	k.Kubectl(t, append(strict, "-k", "kubernetes")...)
	k.Kubectl(t, "create", "namespace", "team-a")
	k.Kubectl(t, "apply", "--dry-run=server", "--validate=strict", "-f", "rbac")
	k.Kubectl(t, append(strict, "-f", "kubernetes/secret.example.yaml", "-f", "rbac")...)
	t.Run("all files are used", func(t *testing.T) { everyFileIsUsed(t) })
	t.Run("the pod is restricted", func(t *testing.T) { podIsRestricted(t, k) })
	t.Run("roles", func(t *testing.T) { rolesReachWhatTheySay(t, k) })
	t.Run("impersonation", func(t *testing.T) { proxyMayImpersonateAlone(t, k) })
	t.Run("token reviews", func(t *testing.T) { passthroughMayReviewAlone(t, k) })
}

func everyFileIsUsed(t *testing.T) {
	var kustomization struct {
		Resources []string `yaml:"resources"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "kubernetes/kustomization.yaml")), &kustomization); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if name != "kustomization.yaml" && name != "secret.example.yaml" && !slices.Contains(kustomization.Resources, name) {
			t.Errorf("kustomization.yaml does not list %s", name)
		}
	}
}

// podIsRestricted makes the pod that the Deployment's controller would make. A
// pod with one guard less is refused, which shows that somebody looks.
func podIsRestricted(t *testing.T, k *testenv.KubeAPIServer) {
	var deployment struct {
		Spec struct {
			Template map[string]any `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(k.Kubectl(t, "get", "deployment", "tabard", "-n", "tabard", "-o", "json")), &deployment); err != nil {
		t.Fatal(err)
	}
	pod := deployment.Spec.Template
	pod["apiVersion"], pod["kind"] = "v1", "Pod"
	pod["metadata"].(map[string]any)["generateName"] = "tabard-"
	create := func() error {
		b, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: k.AdminKubeconfig, Stdin: string(b)}, "create", "-n", "tabard", "-f", "-")
		return err
	}
	if err := create(); err != nil {
		t.Errorf("the pod is refused: %v", err)
	}
	container := pod["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)
	delete(container["securityContext"].(map[string]any), "capabilities")
	if err := create(); err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
		t.Errorf("a pod that keeps its capabilities: %v", err)
	}
}

func rolesReachWhatTheySay(t *testing.T, k *testenv.KubeAPIServer) {
	aggregate(t, k, "view", "view")
	aggregate(t, k, "admin", "view", "edit", "admin")
	for _, c := range []struct {
		group, verb, resource, namespace string
		ok                               bool
	}{
		{"platform", "delete", "nodes", "", true},
		{"corp:team-a", "create", "rolebindings.rbac.authorization.k8s.io", "team-a", true},
		{"corp:team-a", "create", "pods", "default", false},
		{"corp:devs", "list", "pods", "team-a", true},
		{"corp:devs", "list", "pods", "default", false},
		{"corp:devs", "list", "secrets", "team-a", false},
		{"corp:devs", "delete", "pods", "team-a", false},
		{"corp:nobody", "list", "pods", "team-a", false},
		{"corp:nobody", "create", "selfsubjectreviews.authentication.k8s.io", "", true},
	} {
		args := []string{"auth", "can-i", c.verb, c.resource, "--as=somebody", "--as-group=system:authenticated", "--as-group=" + c.group}
		if c.namespace != "" {
			args = append(args, "-n", c.namespace)
		}
		within(t, fmt.Sprintf("%s may %s %s in %q", c.group, c.verb, c.resource, c.namespace), func() error {
			out, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: k.AdminKubeconfig}, args...)
			if answer := strings.TrimSpace(out); answer != "yes" && answer != "no" || (answer == "yes") != c.ok {
				return fmt.Errorf("%q (%v)", answer, err)
			}
			return nil
		})
	}
}

// proxyMayImpersonateAlone takes each of the account's two roles away in turn: the other
// one is enough, and without both nothing is left. It never does anything as itself.
func proxyMayImpersonateAlone(t *testing.T, k *testenv.KubeAPIServer) {
	token := strings.TrimSpace(k.Kubectl(t, "create", "token", "tabard-proxy", "-n", "kube-system"))
	alice := asAlice(t, k, token)
	roles := []string{"tabard-impersonate", "tabard-impersonate-constrained"}
	for _, gone := range [][]string{{}, roles[:1], roles[1:], roles} {
		for _, r := range gone {
			k.Kubectl(t, "delete", "clusterrolebinding", r)
		}
		allowed := len(gone) < 2
		within(t, fmt.Sprintf("without %q a person is seen: %v", gone, allowed), func() error {
			for _, ask := range []struct{ method, path, body, want string }{
				{"POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`,
					`"userInfo":{"username":"alice","uid":"corp.1","groups":["corp:devs","system:authenticated"],"extra":{"authentication.kubernetes.io/credential-id":["JTI=1"],"tabard.dev/address":["192.0.2.1"],"tabard.dev/impersonator":["bob"],"tabard.dev/impersonator-uid":["corp.2"],"tabard.dev/sid":["s1"]}}`},
				{"GET", "/api/v1/namespaces/team-a/pods", "", `"items":[]`},
				{"GET", "/version", "", `"gitVersion":`}, // no resource
			} {
				status, body := alice.ask(t, ask.method, k.URL+ask.path, ask.body)
				body = spaces.ReplaceAllString(body, "")
				if allowed && (status >= 300 || !strings.Contains(body, ask.want)) || !allowed && status != http.StatusForbidden {
					return fmt.Errorf("%s: %d %s", ask.path, status, body)
				}
			}
			return nil
		})
		if _, err := k.KubectlWith(t, testenv.KubectlOptions{Token: token}, "get", "pods", "-n", "team-a"); err == nil || !strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("without %q the account as itself: %v", gone, err)
		}
		k.Kubectl(t, "apply", "--server-side", "-f", "rbac/proxy.yaml")
	}
}

// passthroughMayReviewAlone has the account review a token, and do nothing else.
func passthroughMayReviewAlone(t *testing.T, k *testenv.KubeAPIServer) {
	const as = "--as=system:serviceaccount:kube-system:tabard-passthrough"
	for ask, want := range map[string]string{
		"create tokenreviews.authentication.k8s.io": "yes", "list tokenreviews.authentication.k8s.io": "no", "list pods": "no", "get secrets": "no",
		"impersonate users": "no", "create subjectaccessreviews.authorization.k8s.io": "no",
	} {
		out, err := k.KubectlWith(t, testenv.KubectlOptions{Kubeconfig: k.AdminKubeconfig}, append([]string{"auth", "can-i", as, "-A"}, strings.Fields(ask)...)...)
		if answer := strings.TrimSpace(out); answer != want {
			t.Errorf("%s: %q, want %s (%v)", ask, answer, want, err)
		}
	}
}

var spaces = regexp.MustCompile(`\s`)

// proxied is an HTTP client that says it acts for somebody, as the proxy does.
type proxied struct{ *http.Client }

func asAlice(t *testing.T, k *testenv.KubeAPIServer, token string) proxied {
	t.Helper()
	c := k.RESTConfigWithToken(token)
	c.Impersonate = rest.ImpersonationConfig{UserName: "alice", UID: "corp.1", Groups: []string{"corp:devs"}, Extra: map[string][]string{
		"authentication.kubernetes.io/credential-id": {"JTI=1"}, "tabard.dev/sid": {"s1"}, "tabard.dev/address": {"192.0.2.1"},
		"tabard.dev/impersonator": {"bob"}, "tabard.dev/impersonator-uid": {"corp.2"},
	}}
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return proxied{client}
}

func (p proxied) ask(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// within tries for two minutes: API servers learn of roles by a watch, and keep for ten
// seconds who may impersonate.
func within(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for range 480 {
		if err = ok(); err == nil {
			return
		}
		time.Sleep(250 * time.Millisecond)
	}
	t.Errorf("%s: %v", what, err)
}

// aggregate fills a role that a cluster's controller manager, which does not run
// here, makes of others.
func aggregate(t *testing.T, k *testenv.KubeAPIServer, role string, from ...string) {
	t.Helper()
	var rules []any
	for _, f := range from {
		var part struct {
			Rules []any `json:"rules"`
		}
		if err := json.Unmarshal([]byte(k.Kubectl(t, "get", "clusterrole", "system:aggregate-to-"+f, "-o", "json")), &part); err != nil {
			t.Fatal(err)
		}
		rules = append(rules, part.Rules...)
	}
	patch, err := json.Marshal(map[string]any{"rules": rules})
	if err != nil {
		t.Fatal(err)
	}
	k.Kubectl(t, "patch", "clusterrole", role, "--type=merge", "-p", string(patch))
}

// TestConfigMap checks the configuration with the files that the pod mounts
// beside it.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.NewCA(t, dir)
	cert, key := ca.Issue(t, "id.corp.example")
	real := map[string]string{"bind-password": "secret", "corp-ca.pem": read(t, ca.File), "tls.crt": read(t, cert), "tls.key": read(t, key)}
	for _, d := range append(documents(read(t, "kubernetes/config.yaml")), documents(read(t, "kubernetes/secret.example.yaml"))...) {
		var object struct {
			Data       map[string]string `yaml:"data"`
			StringData map[string]string `yaml:"stringData"`
		}
		if err := yaml.Unmarshal([]byte(d), &object); err != nil {
			t.Fatal(err)
		}
		for name, content := range object.Data {
			write(t, filepath.Join(dir, name), content)
		}
		for name := range object.StringData {
			write(t, filepath.Join(dir, name), real[name])
		}
	}
	out, err := command("tabard", "config", "check", filepath.Join(dir, "tabard.yaml"))
	if err != nil || !strings.HasPrefix(out, "ok\n") {
		t.Errorf("%v: %s", err, out)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestUnit asks systemd about the unit, with the built binary in its place.
func TestUnit(t *testing.T) {
	analyze := testenv.Path(t, "systemd-analyze")
	unit := strings.ReplaceAll(read(t, "systemd/tabard.service"), "/usr/local/bin/tabard", filepath.Join(binDir, "tabard"))
	file := filepath.Join(t.TempDir(), "tabard.service")
	write(t, file, unit)
	if out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// The threshold is ten times the exposure level that systemd tells.
	if out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=20", file).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	for _, line := range regexp.MustCompile(`(?m)^Exec\w+=/usr/local/bin/(tabard .*)$`).FindAllStringSubmatch(read(t, "systemd/tabard.service"), -1) {
		if err := understood(line[1]); err != nil {
			t.Error(err)
		}
	}
}
