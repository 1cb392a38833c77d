package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"

	"github.com/tabard-id/tabard/internal/parts"
	"github.com/tabard-id/tabard/internal/testenv"
)

const (
	proxyHost    = "prod.k8s.test" // of the cluster prod, beside its path
	proxyAccount = "system:serviceaccount:kube-system:tabard-proxy"
)

// proxyRBAC lets the developers do everything in team, and the operators everything.
const proxyRBAC = `
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: developer, namespace: team}
rules: [{apiGroups: ["", apps, metrics.k8s.io], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: developers, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: developer}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "corp:devs"}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: platform}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: operators}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "corp:ops"}]
`

// reviewer is the account of a cluster that lets in tokens that are not ours.
const reviewer = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: tabard-reviewer, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tabard-reviewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: tabard-reviewer, namespace: kube-system}]
`

// proxyClusters takes the place of the cluster prod's last line, and adds a cluster that
// is the same API server under another name, with passthrough.
const proxyClusters = `  apiServer: {url: %[1]s, caFile: %[2]s, tokenFile: proxy-token}
  proxy:
    hosts: [` + proxyHost + `]
    limits: {rate: 20000, burst: 20000, inFlight: 500, streams: 10000, maxBody: 1073741824}
    policy:
    - {name: no-secrets, effect: deny, when: "resource == 'secrets' && !('corp:ops' in groups)", reason: "secrets are for operators", hint: "ask for group corp:ops"}
`

// proxied is a Tabard with a proxy, and a real API server and a stub kubelet behind it.
type proxied struct {
	*server
	k       *testenv.KubeAPIServer
	kubelet *testenv.StubKubelet
	url     string // of the cluster prod, below the issuer
}

// startProxied starts all of it. The API server knows nothing of the issuer; what the
// proxy may do there is what `tabard cluster rbac` prints.
func startProxied(t testing.TB, o options) *proxied {
	t.Helper()
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	p := &proxied{server: newServer(t, slapd, o), k: testenv.StartKubeAPIServer(t, testenv.KubeAPIServerOptions{Audit: true})}
	p.url = p.issuer + "/k8s/clusters/prod"
	certFile, keyFile := p.ca.Issue(t, "localhost", proxyHost)
	p.write("tabard.yaml", regexp.MustCompile(`(?m)^tls: .*$`).ReplaceAllString(p.readConfig(), fmt.Sprintf("tls: {certFile: %s, keyFile: %s}", certFile, keyFile)))
	p.apply(proxyRBAC)
	p.apply(p.clusterPrints("rbac", "prod", "--for", "proxy"))
	p.write("proxy-token", p.k.Kubectl(t, "create", "token", "tabard-proxy", "-n", "kube-system", "--duration=12h"))
	webhook := "  webhook: {callers: [{tokenFile: tabard-webhook-token}]}\n"
	p.reconfigure(webhook, webhook+fmt.Sprintf(proxyClusters, p.k.URL, p.k.CAFile),
		"- name: closed\n", fmt.Sprintf("  requireGroups: [\"corp:devs\", platform]\n  apiServer: {url: %s, caFile: %s, tokenFile: proxy-token}\n  proxy: {passthrough: {tokenFile: review-token}}\n- name: closed\n"+
			"  tokens: {idTokenLifetime: 10s, minLifetime: 2s}\n  apiServer: {url: %s, caFile: %s, tokenFile: proxy-token}\n  proxy: {}\n", p.k.URL, p.k.CAFile, p.k.URL, p.k.CAFile))
	p.apply(reviewer)
	p.write("review-token", p.k.Kubectl(t, "create", "token", "tabard-reviewer", "-n", "kube-system", "--duration=12h"))
	p.kubelet = testenv.StartStubKubelet(t, p.k)
	for _, right := range []string{"list pods -n team --as=somebody --as-group=corp:devs", "delete nodes --as=somebody --as-group=corp:ops",
		"impersonate users --as=" + proxyAccount, "create tokenreviews.authentication.k8s.io --as=system:serviceaccount:kube-system:tabard-reviewer"} {
		knowsRight(t, p.k, strings.Fields(right)...)
	}
	p.start()
	return p
}

func (p *proxied) readConfig() string {
	p.t.Helper()
	b, err := os.ReadFile(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// in is p for a subtest, which its own failures end.
func (p *proxied) in(t *testing.T) *proxied {
	s, own := *p.server, *p
	s.t, own.server = t, &s
	return &own
}

// apply applies YAML as the administrator, past the proxy.
func (p *proxied) apply(yaml string) {
	p.t.Helper()
	if _, err := p.k.KubectlWith(p.t, testenv.KubectlOptions{Kubeconfig: p.k.AdminKubeconfig, Stdin: yaml}, "apply", "-f", "-"); err != nil {
		p.t.Fatal(err)
	}
}

// member is somebody with a kubeconfig that goes through the proxy.
type member struct {
	*proxied
	tokens
	name string
	file string // kubeconfig
}

// member signs somebody in for the cluster prod.
func (p *proxied) member(name string) *member { return p.memberAt("prod", "kubernetes", name) }

// memberAt signs somebody in for a cluster, by the cluster's own client.
func (p *proxied) memberAt(cluster, client, name string) *member {
	p.t.Helper()
	own := *p
	own.url = p.issuer + "/k8s/clusters/" + cluster
	m := &member{proxied: &own, tokens: p.login(client, name, "pw-"+name), name: name}
	m.file = filepath.Join(p.t.TempDir(), "kubeconfig")
	m.kubeconfig()
	return m
}

// kubeconfig writes m's, with the token that m holds.
func (m *member) kubeconfig() {
	m.t.Helper()
	if err := parts.WriteKubeconfig(m.file, "cluster", m.url, m.caFile, "team", map[string]any{"token": m.IDToken}); err != nil {
		m.t.Fatal(err)
	}
}

// kubectl runs kubectl through the proxy; env may be nil.
func (m *member) kubectl(env []string, stdin string, args ...string) (string, error) {
	m.t.Helper()
	return m.k.KubectlWith(m.t, testenv.KubectlOptions{Kubeconfig: m.file, Env: env, Stdin: stdin}, args...)
}

// must is kubectl that has to work.
func (m *member) must(args ...string) string {
	m.t.Helper()
	out, err := m.kubectl(nil, "", args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// refused wants an error that holds each of words.
func (m *member) refused(words []string, args ...string) {
	m.t.Helper()
	out, err := m.kubectl(nil, "", args...)
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			m.t.Errorf("%s: kubectl %s: want an error with %q, got %v\n%s", m.name, strings.Join(args, " "), w, err, out)
			return
		}
	}
}

// rest is a client-go configuration that reaches the cluster by its host name.
func (m *member) rest() *rest.Config {
	ca, err := os.ReadFile(m.caFile)
	if err != nil {
		m.t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(m.issuer, "https://"))
	if err != nil {
		m.t.Fatal(err)
	}
	return &rest.Config{
		Host: "https://" + net.JoinHostPort(proxyHost, port), BearerToken: m.IDToken, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}
}

// output is what a command writes while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// running is a kubectl in the background. It ends with the test.
type running struct {
	t     testing.TB
	what  string
	cmd   *exec.Cmd
	out   output // and stderr
	ended chan struct{}
	at    time.Time // when it ended
	err   error     // how; read after ended is closed
}

// begin starts kubectl in the background. It reads stdin, which may be nil.
func (m *member) begin(env []string, stdin *os.File, args ...string) *running {
	m.t.Helper()
	r := &running{t: m.t, what: "kubectl " + strings.Join(args, " "), ended: make(chan struct{})}
	r.cmd = exec.Command(testenv.Binary(m.t, "kubectl"), args...)
	r.cmd.Env = append(append(os.Environ(), "KUBECONFIG="+m.file, "KUBECACHEDIR="+filepath.Dir(m.file), "KUBERC=off"), env...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.WaitDelay = &r.out, &r.out, 5*time.Second
	if stdin != nil {
		r.cmd.Stdin = stdin
	}
	if err := r.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		r.err, r.at = r.cmd.Wait(), time.Now()
		close(r.ended)
	}()
	m.t.Cleanup(r.stop)
	return r
}

// onTerminal runs kubectl with a terminal, which it closes then, and returns what it
// writes there.
func (m *member) onTerminal(env []string, person, program *os.File, args ...string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Binary(m.t, "kubectl"), args...)
	cmd.Env = append(append(os.Environ(), "KUBECONFIG="+m.file, "KUBECACHEDIR="+filepath.Dir(m.file), "KUBERC=off"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	var out output
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(&out, person) }) // ends when nobody holds the other end
	err := cmd.Run()
	program.Close()
	reading.Wait()
	if err != nil {
		m.t.Errorf("kubectl %s: %v: %s", strings.Join(args, " "), err, &out)
	}
	return out.String()
}

// stop kills it, if it runs.
func (r *running) stop() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}

// says waits until the output holds want.
func (r *running) says(want string) {
	r.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !strings.Contains(r.out.String(), want); time.Sleep(20 * time.Millisecond) {
		select {
		case <-r.ended:
			if !strings.Contains(r.out.String(), want) {
				r.t.Fatalf("%s ended (%v) and did not say %q:\n%s", r.what, r.err, want, &r.out)
			}
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not say %q:\n%s", r.what, want, &r.out)
		}
	}
}

// ends waits until it has ended by itself, and returns how long after since that was.
func (r *running) ends(since time.Time) time.Duration {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(2 * time.Minute):
		r.t.Errorf("%s goes on:\n%s", r.what, &r.out)
		return 0
	}
	return r.at.Sub(since)
}

// goesOn fails the test if it has ended.
func (r *running) goesOn() {
	r.t.Helper()
	select {
	case <-r.ended:
		r.t.Errorf("%s ended: %v\n%s", r.what, r.err, &r.out)
	default:
	}
}

// seen returns what the API server's audit log holds of requests whose URI or object's
// name has mark in it, once there are n events at least; n of 0 waits for nothing.
func (p *proxied) seen(mark string, n int) []auditv1.Event {
	p.t.Helper()
	var found []auditv1.Event
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		found = slices.DeleteFunc(p.k.AuditLog(p.t), func(e auditv1.Event) bool {
			return !strings.Contains(e.RequestURI, mark) && (e.ObjectRef == nil || !strings.Contains(e.ObjectRef.Name, mark))
		})
		if len(found) >= n || time.Now().After(deadline) {
			return found
		}
	}
}

// trailOf returns the events of our own trail that hold mark, once there are n.
func (p *proxied) trailOf(mark string, n int) (events []trailEvent) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		events = nil
		for line := range strings.Lines(p.trail()) {
			if !strings.Contains(line, mark) || !strings.HasSuffix(line, "\n") { // it may be half written
				continue
			}
			var e trailEvent
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				p.t.Fatalf("the trail: %v: %s", err, line)
			}
			events = append(events, e)
		}
		if len(events) >= n || time.Now().After(deadline) {
			return events
		}
	}
}

// trailEvent is what tests read of the trail.
type trailEvent struct {
	Act, Who, Name, On, Outcome, Reason, Address, Session, JTI, Cluster string
	Detail                                                              map[string]string
}

// dialRaw opens a TLS connection to the server that speaks one of protocols.
func (p *proxied) dialRaw(protocols ...string) (*tls.Conn, error) {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.Cert)
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: protocols}}
	c, err := d.Dial("tcp", strings.Replace(strings.TrimPrefix(p.issuer, "https://"), "localhost", "127.0.0.1", 1))
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), c.SetDeadline(time.Now().Add(2 * time.Minute))
}

// ask sends one request as m by a client of its own kind, with more headers given as
// pairs, and reads the answer.
func (m *member) ask(c *http.Client, method, path string, headers ...string) answer {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+m.IDToken)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return do(m.t, c, req)
}

// wantStatus wants a metav1.Status with a code and words in its message.
func wantStatus(a answer, code int, words ...string) error {
	var s struct {
		Kind, Status, Message, Reason string
		Code                          int
	}
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		return fmt.Errorf("%d, and no Status: %w: %.200s", a.status, err, a.body)
	}
	if a.status != code || s.Kind != "Status" || s.Code != code || s.Status != "Failure" {
		return fmt.Errorf("want %d, got %d: %.300s", code, a.status, a.body)
	}
	for _, w := range words {
		if !strings.Contains(s.Message, w) {
			return errors.New("the message has no " + w + ": " + s.Message)
		}
	}
	return nil
}
