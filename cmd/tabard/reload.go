package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long files must be quiet before they are read again: several
// change together when a secret is mounted anew or a certificate renewed.
const settle = 300 * time.Millisecond

// watcher reloads the server when SIGHUP comes or a file it read has changed.
type watcher struct {
	server  *server
	notify  *fsnotify.Watcher
	hangups chan os.Signal
	files   map[string][sha256.Size]byte // as of the last attempt
	folders map[string]bool
}

func newWatcher(s *server) (*watcher, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the configuration: %w", err)
	}
	w := &watcher{server: s, notify: n, hangups: make(chan os.Signal, 1), folders: map[string]bool{}}
	signal.Notify(w.hangups, syscall.SIGHUP)
	w.watch(s.started.files)
	return w, nil
}

func (w *watcher) close() error {
	signal.Stop(w.hangups)
	return w.notify.Close()
}

// watch looks at the folders of files: a mounted secret is swapped by renaming a
// link beside it.
func (w *watcher) watch(files map[string][sha256.Size]byte) {
	w.files = files
	for f := range files {
		dir := filepath.Dir(f)
		if w.folders[dir] {
			continue
		}
		if err := w.notify.Add(dir); err != nil {
			w.server.log.WithError(err).Warnf("changes in %s are not noticed: send SIGHUP after one", dir)
			continue
		}
		w.folders[dir] = true
	}
}

// run reloads until ctx ends.
func (w *watcher) run(ctx context.Context) {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.hangups:
			w.reload(ctx)
		case e := <-w.notify.Events:
			if w.concerns(e.Name) {
				quiet.Reset(settle)
			}
		case err, open := <-w.notify.Errors:
			if !open {
				return
			}
			w.server.log.WithError(err).Warn("a change may have been missed: send SIGHUP after one")
		case <-quiet.C:
			if w.changed() {
				w.reload(ctx)
			}
		}
	}
}

// concerns says whether name is one of the files, or the link that a mounted
// secret or config map swaps.
func (w *watcher) concerns(name string) bool {
	if filepath.Base(name) == "..data" {
		return true
	}
	return slices.ContainsFunc(slices.Collect(maps.Keys(w.files)), func(f string) bool { return filepath.Clean(f) == filepath.Clean(name) })
}

// changed compares what is in the files with what was read.
func (w *watcher) changed() bool {
	now := &Config{files: map[string][sha256.Size]byte{}}
	for f := range w.files {
		_, _ = now.read(f, maxConfig) // what cannot be read counts as changed
	}
	return !maps.Equal(now.files, w.files)
}

// reload reads the configuration and puts it to use. A mistake in it leaves
// everything as it is.
func (w *watcher) reload(ctx context.Context) {
	s := w.server
	cfg, err := loadConfig(s.path)
	w.watch(cfg.files)
	if err == nil {
		var next *assembly
		if next, err = s.assemble(ctx, cfg); err == nil {
			if err = s.proxy.Use(cfg.proxy); err == nil {
				logWarnings(s.log, cfg)
				s.warnRestart(cfg)
				s.swap(next)
				s.log.Info("configuration reloaded")
				return
			}
			next.close()
		}
	}
	s.log.WithError(err).Error("the changed configuration is not used, the one before stays: correct it")
}

// swap makes next the current assembly; the one before is closed when its last
// request is done.
func (s *server) swap(next *assembly) {
	next.users = 1
	s.mu.Lock()
	old := s.current
	if old.health != nil {
		next.health.inherit(old.health)
	}
	s.current = next
	s.mu.Unlock()
	s.release(old)
}

// warnRestart names changes that only a restart brings about.
func (s *server) warnRestart(cfg *Config) {
	old := s.started
	for key, changed := range map[string]bool{
		"listen":          cfg.Listen != old.Listen,
		"metrics.listen":  cfg.Metrics.Listen != old.Metrics.Listen,
		"store.bolt.path": cfg.Store.Bolt.Path != old.Store.Bolt.Path,
		"store.etcd":      etcdChanged(cfg, old),
		"audit":           auditChanged(cfg, old),
		"tls":             (cfg.cert == nil) != (old.cert == nil),
	} {
		if changed {
			s.log.Warnf("%s has changed: restart the server to use it", key)
		}
	}
}
