package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"

	"github.com/tabard-id/tabard/internal/parts"
)

const kubectlTimeout = 5 * time.Minute

// KubeAPIServerOptions are what a test adds to a kube-apiserver.
type KubeAPIServerOptions struct {
	// ExtraArgs come last, so that they win: --oidc-issuer-url and its like.
	// The issuer need not answer yet; the apiserver tries every 10 s.
	ExtraArgs []string
	// Audit has it write an audit log with who asked for what; see AuditLog.
	Audit bool
}

// KubeAPIServer is a running kube-apiserver with RBAC and its own etcd, and no
// controllers, nodes or service-account admission.
type KubeAPIServer struct {
	*Process
	// URL is https://127.0.0.1:port.
	URL string
	// CAFile signed the server's certificate and the administrator's.
	CAFile string
	// AdminKubeconfig signs in by client certificate as system:masters.
	AdminKubeconfig string
	// AnonymousKubeconfig has no user, for kubectl --token.
	AnonymousKubeconfig string

	kubectl           string
	dir               string
	adminCert, adminK string
	ca                *CA
	config            parts.KubeAPIServerConfig
}

// StartKubeAPIServer starts a real etcd and a real kube-apiserver, and returns
// once the administrator reads ok from /readyz.
func StartKubeAPIServer(t testing.TB, opts KubeAPIServerOptions) *KubeAPIServer {
	t.Helper()
	binary := Binary(t, "kube-apiserver")
	etcd := StartEtcd(t)
	dir := t.TempDir()
	ca := NewCA(t, dir)
	k := &KubeAPIServer{CAFile: ca.File, kubectl: Binary(t, "kubectl"), dir: dir, ca: ca}
	k.adminCert, k.adminK = ca.IssueClient(t, "admin", "system:masters")
	certFile, keyFile := ca.Issue(t, "kubernetes.default.svc")
	args := k.clientArgs(t)
	if opts.Audit {
		args = append(args, k.auditArgs(t)...)
	}
	k.config = parts.KubeAPIServerConfig{
		Binary: binary, Dir: dir, EtcdURL: etcd.Endpoint, Port: FreePort(t), ExtraArgs: append(args, opts.ExtraArgs...),
		CAFile: ca.File, CertFile: certFile, KeyFile: keyFile, AdminCertFile: k.adminCert, AdminKeyFile: k.adminK,
	}
	k.Start(t)
	k.AdminKubeconfig = k.Kubeconfig(t, map[string]any{"client-certificate": k.adminCert, "client-key": k.adminK})
	k.AnonymousKubeconfig = k.Kubeconfig(t, map[string]any{})
	return k
}

// Start starts the server again after Stop or Kill, at the same address and with the same
// data.
func (k *KubeAPIServer) Start(t testing.TB) {
	t.Helper()
	p, err := parts.StartKubeAPIServer(t.Context(), k.config)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(filepath.Join(k.dir, "kube-apiserver.log"), tailBytes))
	}
	endWith(t, p.Process)
	k.Process, k.URL = p.Process, p.URL
}

// clientArgs let the server be known to kubelets and to aggregated API servers, by
// certificates of its own CA.
func (k *KubeAPIServer) clientArgs(t testing.TB) []string {
	kubeletCert, kubeletKey := k.ca.IssueClient(t, "kube-apiserver-kubelet-client", "kubeadm:cluster-admins")
	frontCert, frontKey := k.ca.IssueClient(t, "front-proxy-client")
	return []string{
		"--kubelet-client-certificate=" + kubeletCert, "--kubelet-client-key=" + kubeletKey,
		"--kubelet-certificate-authority=" + k.CAFile, "--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file=" + frontCert, "--proxy-client-key-file=" + frontKey,
		"--requestheader-client-ca-file=" + k.CAFile, "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-uid-headers=X-Remote-Uid", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
	}
}

// CA signs the certificates of this cluster.
func (k *KubeAPIServer) CA() *CA { return k.ca }

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
omitStages: [RequestReceived]
rules:
- {level: None, users: ["system:apiserver", admin]}
- {level: Metadata}
`

// auditArgs have every request logged at the level Metadata, but for those of the
// administrator and the server's own.
func (k *KubeAPIServer) auditArgs(t testing.TB) []string {
	policy := filepath.Join(k.dir, "audit-policy.yaml")
	writeFile(t, policy, auditPolicy)
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + filepath.Join(k.dir, "audit.log"), "--audit-log-mode=blocking-strict"}
}

// AuditLog is what the server's audit log holds by now, the oldest event first. The event
// of a request may come a moment after its answer; of a watch or an upgrade there are two.
func (k *KubeAPIServer) AuditLog(t testing.TB) []auditv1.Event {
	t.Helper()
	f, err := os.Open(filepath.Join(k.dir, "audit.log"))
	if err != nil {
		t.Fatalf("read the audit log: %v", err)
	}
	defer f.Close()
	var events []auditv1.Event
	for d := json.NewDecoder(f); ; {
		var e auditv1.Event
		if err := d.Decode(&e); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return events
		} else if err != nil {
			t.Fatalf("read the audit log: %v", err)
		}
		events = append(events, e)
	}
}

// RESTConfig is the administrator's, for client-go.
func (k *KubeAPIServer) RESTConfig() *rest.Config {
	return &rest.Config{Host: k.URL, TLSClientConfig: rest.TLSClientConfig{CAFile: k.CAFile, CertFile: k.adminCert, KeyFile: k.adminK}}
}

// RESTConfigWithToken is for client-go with a bearer token.
func (k *KubeAPIServer) RESTConfigWithToken(token string) *rest.Config {
	return &rest.Config{Host: k.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: k.CAFile}}
}

// Kubeconfig writes a kubeconfig for this cluster and returns its path. User is
// the user's entry as kubectl reads it: exec, auth-provider, token and so on.
func (k *KubeAPIServer) Kubeconfig(t testing.TB, user map[string]any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := parts.WriteKubeconfig(path, "test", k.URL, k.CAFile, "default", user); err != nil {
		t.Fatal(err)
	}
	return path
}

// Kubectl runs the real kubectl as the administrator and returns its output;
// the test ends when it fails.
func (k *KubeAPIServer) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := k.KubectlWith(t, KubectlOptions{Kubeconfig: k.AdminKubeconfig}, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// KubectlOptions say as whom kubectl runs.
type KubectlOptions struct {
	// Kubeconfig is a path; AnonymousKubeconfig when empty.
	Kubeconfig string
	// Token is given as --token when it is set.
	Token string
	// Env is added to the test's environment, as KEY=value.
	Env []string
	// Stdin is given to kubectl.
	Stdin string
}

// KubectlWith runs the real kubectl and returns its stdout. The error holds
// its stderr, RBAC's words included. It is killed after 5 minutes.
func (k *KubeAPIServer) KubectlWith(t testing.TB, opts KubectlOptions, args ...string) (string, error) {
	t.Helper()
	if opts.Kubeconfig == "" {
		opts.Kubeconfig = k.AnonymousKubeconfig
	}
	if opts.Token != "" {
		args = append([]string{"--token=" + opts.Token}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), kubectlTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+opts.Kubeconfig, "KUBECACHEDIR="+filepath.Join(k.dir, "kubectl"), "KUBERC=off")
	cmd.Env = append(cmd.Env, opts.Env...)
	cmd.Stdin = bytes.NewBufferString(opts.Stdin)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
