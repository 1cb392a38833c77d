package testenv

import (
	"testing"

	"github.com/tabard-id/tabard/internal/parts"
)

// Etcd is a running single-node etcd without TLS.
type Etcd = parts.Etcd

// StartEtcd starts a real etcd with an empty store. It does not sync to disk,
// so it may lose data when it is killed; it keeps them when it is stopped.
func StartEtcd(t testing.TB) *Etcd {
	t.Helper()
	dir := t.TempDir()
	e, err := parts.StartEtcd(t.Context(), parts.EtcdConfig{Binary: Binary(t, "etcd"), Dir: dir, Unsafe: true})
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(dir+"/etcd.log", tailBytes))
	}
	endWith(t, e.Process)
	return e
}
