package testenv

import (
	"fmt"
	"testing"
)

// Etcd is a running single-node etcd without TLS.
type Etcd struct {
	*Process
	// Endpoint is its client URL.
	Endpoint string
}

// StartEtcd starts a real etcd with an empty store. It does not sync to disk,
// so it may lose data when it is killed; it keeps them when it is stopped.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	client := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	p := Start(t, Command{
		Path: Binary(t, "etcd"),
		Args: []string{
			"--name=node", "--data-dir=" + t.TempDir(), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=node=" + peer,
			"--heartbeat-interval=10", "--election-timeout=100",
		},
		ReadyURL: client + "/health",
	})
	return &Etcd{Process: p, Endpoint: client}
}
