package parts

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Etcd is a running etcd, or one member of a cluster.
type Etcd struct {
	*Process
	// Endpoint is its client URL.
	Endpoint string
}

// EtcdConfig says how an etcd is started.
type EtcdConfig struct {
	// Binary is its path, from Build.
	Binary string
	// Dir gets the log etcd.log and the folder etcd with the data, which are used
	// again when they are there.
	Dir string
	// Unsafe leaves out syncs to disk: data may be lost when the machine stops.
	Unsafe bool
	// Member makes it one of a cluster; nil: it is alone and without TLS.
	Member *EtcdMember
	// ExtraArgs come last, so that they win.
	ExtraArgs []string
}

// EtcdMember is what a member of a cluster with TLS has of its own.
type EtcdMember struct {
	// Name is the member's, and Cluster tells all members as NAME=URL,NAME=URL.
	Name, Cluster string
	// ClientPort and PeerPort are on 127.0.0.1. Endpoint is how clients reach the
	// first, and PeerURL how members reach the second, by way of Proxy, an HTTP proxy.
	ClientPort, PeerPort     int
	Endpoint, PeerURL, Proxy string
	// CAFile signed all certificates. CertFile is for servers, and good for the hosts
	// of Endpoint and PeerURL; ClientCertFile is for clients, of which etcd wants one.
	CAFile, CertFile, KeyFile, ClientCertFile, ClientKeyFile string
}

// StartEtcd starts a real etcd, on free ports where it is alone, and returns when it
// is healthy; a member is not before most others are. Whoever started it calls Stop.
func StartEtcd(ctx context.Context, c EtcdConfig) (*Etcd, error) {
	command := Command{Path: c.Binary, LogFile: filepath.Join(c.Dir, "etcd.log")}
	args := []string{"--data-dir=" + filepath.Join(c.Dir, "etcd"), "--log-level=warn"}
	var endpoint string
	if c.Member == nil {
		alone, url, err := etcdAlone()
		if err != nil {
			return nil, err
		}
		args, endpoint, command.ReadyURL = append(args, alone...), url, url+"/health"
	} else {
		client, err := c.Member.client()
		if err != nil {
			return nil, err
		}
		defer client.CloseIdleConnections()
		args, endpoint = append(args, c.Member.args()...), c.Member.Endpoint
		command.Client, command.ReadyURL = client, fmt.Sprintf("https://127.0.0.1:%d/health", c.Member.ClientPort)
		command.Env = []string{"HTTPS_PROXY=" + c.Member.Proxy, "NO_PROXY="}
	}
	if c.Unsafe {
		args = append(args, "--unsafe-no-fsync")
	}
	command.Args = append(args, c.ExtraArgs...)
	p, err := Start(ctx, command)
	if err != nil {
		return nil, err
	}
	return &Etcd{Process: p, Endpoint: endpoint}, nil
}

// etcdAlone are the arguments of a cluster of one, and its client URL.
func etcdAlone() (args []string, endpoint string, err error) {
	clientPort, err := FreePort()
	peerPort, errPeer := FreePort()
	if err := cmp.Or(err, errPeer); err != nil {
		return nil, "", err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", clientPort), fmt.Sprintf("http://127.0.0.1:%d", peerPort)
	return []string{
		"--name=node",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=node=" + peer,
		"--heartbeat-interval=10", "--election-timeout=100",
	}, client, nil
}

func (m *EtcdMember) args() []string {
	return []string{
		"--name=" + m.Name, "--initial-cluster=" + m.Cluster,
		fmt.Sprintf("--listen-client-urls=https://127.0.0.1:%d", m.ClientPort), "--advertise-client-urls=" + m.Endpoint,
		fmt.Sprintf("--listen-peer-urls=https://127.0.0.1:%d", m.PeerPort), "--initial-advertise-peer-urls=" + m.PeerURL,
		"--client-cert-auth", "--trusted-ca-file=" + m.CAFile, "--cert-file=" + m.CertFile, "--key-file=" + m.KeyFile,
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + m.CAFile, "--peer-cert-file=" + m.CertFile, "--peer-key-file=" + m.KeyFile,
		"--peer-client-cert-file=" + m.ClientCertFile, "--peer-client-key-file=" + m.ClientKeyFile,
		"--client-cert-file=" + m.ClientCertFile, "--client-key-file=" + m.ClientKeyFile,
		"--heartbeat-interval=50", "--election-timeout=500",
	}
}

// client may ask the member for its health.
func (m *EtcdMember) client() (*http.Client, error) {
	pair, err := tls.LoadX509KeyPair(m.ClientCertFile, m.ClientKeyFile)
	if err != nil {
		return nil, fmt.Errorf("load a client certificate for etcd: %w", err)
	}
	ca, err := os.ReadFile(m.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}, nil
}
