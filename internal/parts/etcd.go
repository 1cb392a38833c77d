package parts

import (
	"context"
	"fmt"
	"path/filepath"
)

// Etcd is a running single-node etcd without TLS.
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
}

// StartEtcd starts a real etcd on free ports. Whoever started it calls Stop.
func StartEtcd(ctx context.Context, c EtcdConfig) (*Etcd, error) {
	clientPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	peerPort, err := FreePort()
	if err != nil {
		return nil, err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", clientPort), fmt.Sprintf("http://127.0.0.1:%d", peerPort)
	args := []string{
		"--name=node", "--data-dir=" + filepath.Join(c.Dir, "etcd"), "--log-level=warn",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=node=" + peer,
		"--heartbeat-interval=10", "--election-timeout=100",
	}
	if c.Unsafe {
		args = append(args, "--unsafe-no-fsync")
	}
	p, err := Start(ctx, Command{Path: c.Binary, Args: args, LogFile: filepath.Join(c.Dir, "etcd.log"), ReadyURL: client + "/health"})
	if err != nil {
		return nil, err
	}
	return &Etcd{Process: p, Endpoint: client}, nil
}
