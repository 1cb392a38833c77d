package parts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// KubeAPIServer is a running kube-apiserver with RBAC, and no controllers, nodes
// or service-account admission.
type KubeAPIServer struct {
	*Process
	// URL is https://127.0.0.1:port.
	URL string
}

// KubeAPIServerConfig says how a kube-apiserver is started.
type KubeAPIServerConfig struct {
	// Binary is its path, from Build.
	Binary string
	// Dir gets the log kube-apiserver.log and the key that signs service-account
	// tokens, which is used again when it is there.
	Dir string
	// EtcdURL is the client URL of its etcd.
	EtcdURL string
	// Port on 127.0.0.1.
	Port int
	// CAFile signed all certificates: the server's, good for 127.0.0.1, and the
	// administrator's, of the group system:masters.
	CAFile, CertFile, KeyFile, AdminCertFile, AdminKeyFile string
	// ExtraArgs come last, so that they win: --oidc-issuer-url and its like. The
	// issuer need not answer yet; the apiserver tries every 10 s.
	ExtraArgs []string
}

// StartKubeAPIServer starts a real kube-apiserver, and returns once the
// administrator reads ok from /readyz. Whoever started it calls Stop.
func StartKubeAPIServer(ctx context.Context, c KubeAPIServerConfig) (*KubeAPIServer, error) {
	saKey, err := serviceAccountKey(c.Dir)
	if err != nil {
		return nil, err
	}
	client, err := c.adminClient()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("https://127.0.0.1:%d", c.Port)
	p, err := Start(ctx, Command{
		Path: c.Binary, Args: c.args(saKey), LogFile: filepath.Join(c.Dir, "kube-apiserver.log"),
		ReadyURL: url + "/readyz", Client: client, ReadyTimeout: 5 * time.Minute,
	})
	if err != nil {
		return nil, err
	}
	return &KubeAPIServer{Process: p, URL: url}, nil
}

// args are those of a small cluster, without what only controllers need and with
// small caches.
func (c *KubeAPIServerConfig) args(saKey string) []string {
	return append([]string{
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.Port),
		"--tls-cert-file=" + c.CertFile, "--tls-private-key-file=" + c.KeyFile, "--client-ca-file=" + c.CAFile,
		"--etcd-servers=" + c.EtcdURL,
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + saKey, "--service-account-signing-key-file=" + saKey,
		"--service-cluster-ip-range=10.0.0.0/24",
		"--disable-admission-plugins=ServiceAccount",
		"--endpoint-reconciler-type=none",
		"--event-ttl=5m", "--profiling=false", "--shutdown-delay-duration=0s",
	}, c.ExtraArgs...)
}

// serviceAccountKey writes the key that signs service-account tokens, unless it
// is there.
func serviceAccountKey(dir string) (string, error) {
	path := filepath.Join(dir, "service-account.key")
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make the service-account key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encode the service-account key: %w", err)
	}
	if err := writePEM(path+".new", "EC PRIVATE KEY", der); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

func (c *KubeAPIServerConfig) adminClient() (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(c.AdminCertFile, c.AdminKeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the administrator's certificate: %w", err)
	}
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}

// WriteKubeconfig writes a kubeconfig whose one context is called name, which
// only its owner reads and which appears whole. User is the user's entry as
// kubectl reads it: exec, token, client-certificate and so on.
func WriteKubeconfig(path, name, server, caFile, namespace string, user map[string]any) error {
	type entry map[string]any
	content, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []entry{{"name": name, "cluster": entry{"server": server, "certificate-authority": caFile}}},
		"users":    []entry{{"name": name, "user": user}},
		"contexts": []entry{{"name": name, "context": entry{"cluster": name, "user": name, "namespace": namespace}}},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode a kubeconfig: %w", err)
	}
	if err := os.WriteFile(path+".new", append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("write a kubeconfig: %w", err)
	}
	return os.Rename(path+".new", path)
}
