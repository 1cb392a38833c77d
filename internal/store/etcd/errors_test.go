package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/testenv"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestUnknown breaks the way to etcd before and after a Txn has gone out: only the
// second may have happened.
func TestUnknown(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t)
	proxy := testenv.StartTCPProxy(t, strings.TrimPrefix(e.Endpoint, "http://"))
	s := openTest(t, Config{Endpoints: []string{"http://" + proxy.Address}})
	rev := mustTxn(t, s, op("a/1", "before"))

	proxy.Delay(2 * time.Second)
	_, err := s.Txn(within(t, 3500*time.Millisecond), nil, []store.Op{op("a/1", "late")})
	if !errors.Is(err, store.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("no answer in time: %v", err)
	}
	proxy.Delay(0)
	for value := ""; value != "late"; { // it has happened
		e, err := s.Get(t.Context(), "a/1")
		if err != nil || e.Revision < rev {
			t.Fatal(e, err)
		}
		value = string(e.Value)
	}

	proxy.Block()
	_, err = s.Txn(within(t, 2*time.Second), nil, []store.Op{op("a/1", "lost")})
	if !errors.Is(err, store.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("no answer at all: %v", err)
	}
	_, err = s.Get(within(t, 300*time.Millisecond), "a/1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read without an answer: %v", err)
	}
	e.Kill()
	proxy.Unblock()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); { // until gRPC has noticed
		if _, err = s.Txn(within(t, time.Second), nil, []store.Op{op("a/1", "lost")}); !errors.Is(err, store.ErrUnknown) {
			break
		}
	}
	if errors.Is(err, store.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody to send it to: %v", err)
	}
}

// TestQuota fills an etcd up: it refuses with what to do, reads go on, and nothing
// that was told to have not been written is there.
func TestQuota(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t, "--quota-backend-bytes=4000000")
	s := openTest(t, Config{Endpoints: []string{e.Endpoint}, Prefix: "/q/"})
	node := openTest(t, Config{Endpoints: []string{e.Endpoint}, Prefix: "/q/"})
	ch, err := node.Watch(t.Context(), "a/", mustTxn(t, s, op("a/keep", "x")))
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{"a/keep": true}
	refused := 0
	for i := 0; refused < 5; i++ {
		key := fmt.Sprintf("a/%d", i)
		_, err := s.Txn(t.Context(), nil, []store.Op{op(key, strings.Repeat("x", 300_000))})
		switch {
		case err == nil:
			written[key] = true
		case !strings.Contains(err.Error(), "compact and defragment"):
			t.Fatal(err)
		case errors.Is(err, store.ErrUnknown): // may be there
			refused++
		default:
			refused++
			written[key] = false
		}
	}
	check := func() {
		t.Helper()
		for key, want := range written {
			if _, err := node.Get(t.Context(), key); want != (err == nil) || err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v, written: %v", key, err, want)
			}
		}
	}
	check()
	if m := s.Members(t.Context()); len(m) != 1 || len(m[0].Alarms) == 0 || m[0].Quota != 4_000_000 {
		t.Fatal(m)
	}
	// What takes no space is still taken.
	last, err := s.Txn(t.Context(), nil, []store.Op{{Key: "a/1", Delete: true}})
	if err != nil {
		t.Fatal(err)
	}
	written["a/1"] = false
	for b := range ch {
		if b.Revision >= last {
			break
		}
	}
	if _, err := s.client.Compact(t.Context(), last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for i := range written {
		if i != "a/keep" && written[i] {
			if _, err := s.Txn(t.Context(), nil, []store.Op{{Key: i, Delete: true}}); err != nil {
				t.Fatal(err)
			}
			written[i] = false
		}
	}
	if rev, err := s.revision(t.Context()); err != nil {
		t.Fatal(err)
	} else if _, err := s.client.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Defragment(t.Context(), e.Endpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	mustTxn(t, s, op("a/keep", "y"))
	check()
}

// TestLimits has an etcd that takes less than Tabard sends.
func TestLimits(t *testing.T) {
	t.Parallel()
	e := testenv.StartEtcd(t, "--max-request-bytes=10000", "--max-txn-ops=16")
	s := openTest(t, Config{Endpoints: []string{e.Endpoint}})
	var many []store.Op
	for i := range 20 {
		many = append(many, op(fmt.Sprintf("a/%d", i), ""))
	}
	for _, ops := range [][]store.Op{{op("a/1", strings.Repeat("x", 100_000))}, {op("a/1", strings.Repeat("x", 900_000))}, many} {
		_, err := s.Txn(t.Context(), nil, ops)
		if !errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "--max-txn-ops") {
			t.Errorf("%d changes: %v", len(ops), err)
		}
	}
	if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
}

// TestOpenRefuses has all that can be wrong with the configuration of a cluster with
// TLS and authentication: each is told with what to do, and without the password.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	other := t.TempDir()
	otherCA := testenv.NewCA(t, other)
	otherCert, otherKey := otherCA.IssueClient(t, "tabard")
	for _, tc := range []struct {
		name   string
		within time.Duration // short where it tries until then
		change func(*Config)
		says   string
	}{
		{"wrong password", time.Minute, func(c *Config) { c.Password = "hunter3" }, "correct store.etcd.username and passwordFile"},
		{"unknown user", time.Minute, func(c *Config) { c.Username = "nobody" }, "correct store.etcd.username and passwordFile"},
		{"no user", time.Minute, func(c *Config) { c.Username, c.Password = "", "" }, "or the name in the certificate"},
		{"other prefix", time.Minute, func(c *Config) { c.Prefix = "/other/" }, "grant it readwrite on the prefix /other/"},
		{"other CA", 6 * time.Second, func(c *Config) { c.CAFile = otherCA.File }, "certificate"},
		{"no certificate", 6 * time.Second, func(c *Config) { c.CertFile, c.KeyFile = "", "" }, "that it trusts certFile"},
		{"other certificate", 6 * time.Second, func(c *Config) { c.CertFile, c.KeyFile = otherCert, otherKey }, "that it trusts certFile"},
		{"certificate gone", time.Minute, func(c *Config) { c.CertFile = "nowhere.pem" }, "certFile: "},
		{"CA gone", time.Minute, func(c *Config) { c.CAFile = "nowhere.pem" }, "caFile: "},
		{"CA without certificates", time.Minute, func(c *Config) { c.CAFile = c.KeyFile }, "holds no certificate"},
		{"nobody there", 6 * time.Second, func(c *Config) { c.Endpoints = []string{fmt.Sprintf("https://127.0.0.1:%d", testenv.FreePort(t))} }, "connection refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cfg := clusterConfig(c)
			tc.change(&cfg)
			s, err := Open(within(t, tc.within), cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%q, want %q", err, tc.says)
			}
		})
	}
}

// TestCertificateRenewed replaces the client's certificate; the next connection shows
// the new one.
func TestCertificateRenewed(t *testing.T) {
	t.Parallel()
	cluster := testenv.StartEtcdCluster(t, 1, testenv.EtcdClusterOptions{})
	cfg := clusterConfig(cluster)
	dir := t.TempDir()
	good, key := cfg.CertFile, cfg.KeyFile
	strange, strangeKey := testenv.NewCA(t, dir).IssueClient(t, "x")
	cfg.CertFile, cfg.KeyFile, cfg.Username, cfg.Password = dir+"/cert.pem", dir+"/key.pem", "", ""
	show := func(cert, key string) {
		for from, to := range map[string]string{cert: cfg.CertFile, key: cfg.KeyFile} {
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	show(good, key)
	s := openTest(t, cfg)
	show(strange, strangeKey)
	cluster.Members[0].Clients.Cut()
	if _, err := s.Get(within(t, time.Second), "a/1"); errors.Is(err, store.ErrNotFound) {
		t.Fatal("etcd takes a certificate of a stranger, or the old one is still shown")
	}
	show(good, key)
	if _, err := s.Get(within(t, time.Minute), "a/1"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
}

// TestTokenExpires leaves a store alone for longer than etcd keeps its token.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	s := openTest(t, clusterConfig(testenv.StartEtcdCluster(t, 1, testenv.EtcdClusterOptions{
		User: "tabard", Password: "hunter2", Prefix: testPrefix, ExtraArgs: []string{"--auth-token-ttl=1"},
	})))
	s.stop() // else it reads every second
	ctx := within(t, time.Minute)
	ops := []store.Op{op("a/1", "x")}
	time.Sleep(3 * time.Second)
	if _, err := s.commit(ctx, (&txn{changes: s.changes(ops)}).request(time.Now()), ops); err != nil {
		t.Errorf("write after the token's time: %v", err)
	}
	time.Sleep(3 * time.Second)
	if _, err := s.revision(ctx); err != nil {
		t.Errorf("read after the token's time: %v", err)
	}
}

// TestCloseEndsReads closes a store of which a copy is being made.
func TestCloseEndsReads(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Endpoints: []string{testenv.StartEtcd(t).Endpoint}})
	var ops []store.Op
	for i := range store.MaxOps {
		ops = append(ops, op(fmt.Sprintf("a/%d", i), ""))
	}
	mustTxn(t, s, ops...)
	closed := make(chan error, 1)
	calls := 0
	_, err := s.Dump(t.Context(), func(store.Entry) error {
		if calls++; calls == 1 {
			go func() { closed <- s.Close() }()
			<-s.ctx.Done()
		}
		time.Sleep(50 * time.Millisecond) // a hundred times, if it does not end
		return nil
	})
	if !errors.Is(err, store.ErrClosed) {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestTooOld(t *testing.T) {
	for version, good := range map[string]bool{
		"3.3.27": false, "3.4.30": false, "3.4.31": true, "3.4.40": true, "3.5.0": false, "3.5.12": false,
		"3.5.13": true, "3.6.0": true, "3.7.3": true, "4.0.0": true, "not a version": true,
	} {
		if err := tooOld([]Member{{Endpoint: "https://e1", Version: version}}); (err == nil) != good {
			t.Errorf("%s: %v", version, err)
		}
	}
	if err := tooOld([]Member{{Version: "3.7.3", Cluster: 1}, {Err: errors.New("down")}, {Version: "3.7.3", Cluster: 2}}); err == nil {
		t.Error("two clusters are taken for one")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Endpoints: []string{"https://e1.example", "https://e2.example:4001/", "https://[::1]"}}
	good.SetDefaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(good.Endpoints, " "); got != "https://e1.example:2379 https://e2.example:4001/ https://[::1]:2379" || good.Prefix != "/tabard/" {
		t.Fatal(got, good.Prefix)
	}
	for prefix, ok := range map[string]bool{"/": false, "/x": false, "x/": true, "/é/": false, "/a b/": false, "/a\x00/": false, strings.Repeat("x", 200) + "/": false} {
		c := good
		if c.Prefix = prefix; (c.Validate() == nil) != ok {
			t.Errorf("prefix %q: %v", prefix, c.Validate())
		}
	}
	plain := Config{Endpoints: []string{"http://e1.example:2379"}, InsecurePlaintext: true}
	plain.SetDefaults()
	if err := plain.Validate(); err != nil {
		t.Fatal(err)
	}
	if !good.Same(good) || good.Same(plain) {
		t.Fatal("Same")
	}
}
