package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/etcd"
)

// StoreConfig says what keeps the records: one of the two.
type StoreConfig struct {
	Bolt bolt.Config  `yaml:"bolt"`
	Etcd *etcd.Config `yaml:"etcd"`
}

// openStore opens what the configuration names. The error begins with its key.
func openStore(ctx context.Context, cfg *Config) (store.Store, error) {
	if cfg.Store.Etcd == nil {
		st, err := bolt.Open(cfg.Store.Bolt)
		if err != nil {
			return nil, fmt.Errorf("store.bolt.path: %w", err)
		}
		return st, nil
	}
	st, err := etcd.Open(ctx, *cfg.Store.Etcd)
	if err != nil {
		return nil, fmt.Errorf("store.etcd: %w", err)
	}
	return st, nil
}

// checkStore wants one store, and a folder for the trail.
func (l *loader) checkStore() {
	c := l.cfg
	_, hasBolt := l.at["store.bolt"]
	if c.Store.Etcd != nil {
		c.Store.Etcd.SetDefaults()
	}
	switch {
	case c.Store.Etcd != nil && hasBolt:
		l.wrongAt("store.etcd", "contradicts store.bolt: leave one out; `tabard backup` and `tabard restore` move the records")
	case c.Store.Etcd != nil && c.Audit.Dir == "":
		l.wrongAt("audit.dir", "is missing: with store.etcd, name the folder of this machine that keeps this server's part of the audit trail")
	case c.Store.Etcd == nil && c.Store.Bolt.Path == "":
		l.wrongAt("store.bolt.path", "is missing: name the file that keeps groups, sessions and keys")
	}
	l.resolve(&c.Store.Bolt.Path)
	if c.Store.Etcd == nil {
		c.Audit.Dir = cmp.Or(c.Audit.Dir, filepath.Join(filepath.Dir(c.Store.Bolt.Path), "audit"))
	}
	l.resolve(&c.Audit.Dir)
}

// etcdFiles reads what store.etcd names, if it is there.
func (l *loader) etcdFiles() {
	e := l.cfg.Store.Etcd
	if e == nil {
		return
	}
	l.caFile("store.etcd.caFile", &e.CAFile)
	l.keyPair("store.etcd.certFile", l.file("store.etcd.certFile", &e.CertFile), l.secretFile("store.etcd.keyFile", &e.KeyFile))
	l.secret("store.etcd.password", &e.Password, &e.PasswordFile)
	if e.InsecurePlaintext {
		l.warn("store.etcd.insecurePlaintext: whoever is on the way to etcd can read and change groups, sessions and signing keys")
	}
}

// etcdChanged says whether only a restart puts now in the place of before. A renewed
// client certificate needs none.
func etcdChanged(now, before *Config) bool {
	a, b := now.Store.Etcd, before.Store.Etcd
	if a == nil || b == nil {
		return a != b
	}
	ca := func(c *Config) [sha256.Size]byte { return c.files[c.Store.Etcd.CAFile] }
	return !a.Same(*b) || ca(now) != ca(before)
}
