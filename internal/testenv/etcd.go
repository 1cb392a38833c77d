package testenv

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tabard-id/tabard/internal/parts"
)

// Etcd is a running etcd.
type Etcd = parts.Etcd

// StartEtcd starts a real etcd with an empty store and without TLS. It does not sync
// to disk, so it may lose data when it is killed; it keeps them when it is stopped.
func StartEtcd(t testing.TB, extraArgs ...string) *Etcd {
	t.Helper()
	dir := t.TempDir()
	e, err := parts.StartEtcd(t.Context(), parts.EtcdConfig{Binary: Binary(t, "etcd"), Dir: dir, Unsafe: true, ExtraArgs: extraArgs})
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(dir+"/etcd.log", tailBytes))
	}
	endWith(t, e.Process)
	return e
}

// EtcdClusterOptions are what a test adds to a cluster.
type EtcdClusterOptions struct {
	// User and Password, when set, turn authentication on; the user may read and write
	// what begins with Prefix.
	User, Password, Prefix string
	// ExtraArgs come last, so that they win.
	ExtraArgs []string
}

// EtcdCluster is a running cluster whose members and clients all show certificates.
type EtcdCluster struct {
	// Members are not all running where a test has killed some.
	Members []*EtcdMember
	// Endpoints are the client URLs, each by way of the member's proxy.
	Endpoints []string
	// CAFile signed all certificates; CertFile and KeyFile are a client's.
	CAFile, CertFile, KeyFile string

	opts  EtcdClusterOptions
	admin *clientv3.Client
}

// EtcdMember is one member.
type EtcdMember struct {
	*parts.Etcd
	// Clients stands between the clients and the member.
	Clients *TCPProxy

	peers  *TCPProxy // stands between the member and those it calls
	name   string    // host:port that others call
	config parts.EtcdConfig
}

// StartEtcdCluster starts a real cluster of n members with TLS. Its members sync to
// disk.
func StartEtcdCluster(t testing.TB, n int, opts EtcdClusterOptions) *EtcdCluster {
	t.Helper()
	dir := t.TempDir()
	ca := NewCA(t, dir)
	c := &EtcdCluster{CAFile: ca.File, opts: opts, Members: make([]*EtcdMember, n)}
	c.CertFile, c.KeyFile = ca.IssueClient(t, "client-without-a-user")
	names, members := map[string]string{}, make([]string, n)
	for i := range c.Members {
		m := &EtcdMember{}
		m.config = parts.EtcdConfig{Binary: Binary(t, "etcd"), Dir: filepath.Join(dir, fmt.Sprintf("m%d", i)), ExtraArgs: opts.ExtraArgs}
		if err := os.Mkdir(m.config.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		host := fmt.Sprintf("m%d.etcd.test", i)
		own := &parts.EtcdMember{Name: fmt.Sprintf("m%d", i), ClientPort: FreePort(t), PeerPort: FreePort(t), CAFile: ca.File}
		own.CertFile, own.KeyFile = ca.Issue(t, host)
		own.ClientCertFile, own.ClientKeyFile = ca.IssueClient(t, host)
		m.name = fmt.Sprintf("%s:%d", host, own.PeerPort)
		m.Clients = StartTCPProxy(t, fmt.Sprintf("127.0.0.1:%d", own.ClientPort))
		own.Endpoint, own.PeerURL = "https://"+m.Clients.Address, "https://"+m.name
		names[m.name] = fmt.Sprintf("127.0.0.1:%d", own.PeerPort)
		members[i] = own.Name + "=" + own.PeerURL
		m.config.Member = own
		c.Members[i], c.Endpoints = m, append(c.Endpoints, own.Endpoint)
	}
	for _, m := range c.Members {
		m.peers = startConnectProxy(t, names)
		m.config.Member.Proxy, m.config.Member.Cluster = "http://"+m.peers.Address, strings.Join(members, ",")
	}
	c.start(t)
	t.Cleanup(c.Heal) // members that reach nobody end slowly
	c.admin = c.adminOf(t, ca)
	if opts.User != "" {
		c.authenticate(t)
	}
	return c
}

// start starts all members at once: none is ready alone.
func (c *EtcdCluster) start(t testing.TB) {
	t.Helper()
	var wg sync.WaitGroup
	for _, m := range c.Members {
		wg.Go(func() { m.start(t) })
	}
	wg.Wait()
	for _, m := range c.Members {
		if m.Etcd == nil {
			t.Fatal("the cluster has not started")
		}
	}
}

func (m *EtcdMember) start(t testing.TB) {
	e, err := parts.StartEtcd(t.Context(), m.config)
	if err != nil {
		t.Errorf("%v\n%s", err, tail(m.config.Dir+"/etcd.log", tailBytes))
		return
	}
	endWith(t, e.Process)
	m.Etcd = e
}

// Restart starts a member again that was killed or stopped.
func (m *EtcdMember) Restart(t testing.TB) {
	t.Helper()
	m.start(t)
	if t.Failed() {
		t.FailNow()
	}
}

// Freeze stops a member without ending it, as a disk or a machine that hangs. Thaw
// lets it go on.
func (m *EtcdMember) Freeze() error { return m.Signal(syscall.SIGSTOP) }

// Thaw lets a member go on.
func (m *EtcdMember) Thaw() error { return m.Signal(syscall.SIGCONT) }

// Partition cuts the ith member off from the others, both ways. Clients reach it.
func (c *EtcdCluster) Partition(i int) {
	for j, m := range c.Members {
		if j == i {
			m.peers.Block()
		} else {
			m.peers.Block(c.Members[i].name)
		}
	}
}

// Heal ends all partitions.
func (c *EtcdCluster) Heal() {
	for _, m := range c.Members {
		m.peers.Unblock()
	}
}

// SlowPeers makes everything between members arrive later by d.
func (c *EtcdCluster) SlowPeers(d time.Duration) {
	for _, m := range c.Members {
		m.peers.Delay(d)
	}
}

// Leader returns the index of the member that leads, once there is one.
func (c *EtcdCluster) Leader(t testing.TB) int {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		for i, endpoint := range c.Endpoints {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			st, err := c.admin.Status(ctx, endpoint)
			cancel()
			if err == nil && st.Leader == st.Header.MemberId {
				return i
			}
		}
	}
	t.Fatal("no member leads")
	return 0
}

// Admin may do everything in the cluster.
func (c *EtcdCluster) Admin() *clientv3.Client { return c.admin }

// adminOf returns a client with root's certificate.
func (c *EtcdCluster) adminOf(t testing.TB, ca *CA) *clientv3.Client {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.IssueClient(t, "root"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, Logger: zap.NewNop(),
		TLS: &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// authenticate turns authentication on, with a user who may use one prefix.
func (c *EtcdCluster) authenticate(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	end := clientv3.GetPrefixRangeEnd(c.opts.Prefix)
	for _, step := range []func() error{
		func() error { _, err := c.admin.RoleAdd(ctx, "root"); return err },
		func() error {
			_, err := c.admin.UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { _, err := c.admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.admin.RoleAdd(ctx, "tabard"); return err },
		func() error {
			_, err := c.admin.RoleGrantPermission(ctx, "tabard", c.opts.Prefix, end, clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := c.admin.UserAdd(ctx, c.opts.User, c.opts.Password); return err },
		func() error { _, err := c.admin.UserGrantRole(ctx, c.opts.User, "tabard"); return err },
		func() error { _, err := c.admin.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatalf("turn on etcd's authentication: %v", err)
		}
	}
}
