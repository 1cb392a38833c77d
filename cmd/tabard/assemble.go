package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/idp/provider"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/web"
)

// foundation is what stays open for the life of the process.
type foundation struct {
	store   store.Store
	trail   *audit.Log
	backups *web.Backups
	auditor *web.Auditor
	metrics *metrics
}

// openFoundation opens the store and the audit trail, and brings the records to the
// format of this version.
func openFoundation(ctx context.Context, cfg *Config, log logrus.FieldLogger) (*foundation, error) {
	f, err := openAsIs(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, cfg, f.store, log); err != nil {
		f.close(log)
		return nil, fmt.Errorf("store: %w", err)
	}
	return f, nil
}

// openAsIs opens the store and the audit trail, whatever is in the store.
func openAsIs(ctx context.Context, cfg *Config, log logrus.FieldLogger) (*foundation, error) {
	st, err := openStore(ctx, cfg)
	if err != nil {
		return nil, err
	}
	cfg.Audit.Log = log
	trail, err := audit.Open(cfg.Audit)
	if err != nil {
		closeLogged(log, "store", st.Close)
		return nil, fmt.Errorf("audit.dir: %w", err)
	}
	return &foundation{st, trail, web.NewBackups(st, trail, log), web.NewAuditor(trail), newMetrics()}, nil
}

func (f *foundation) close(log logrus.FieldLogger) {
	closeLogged(log, "store", f.store.Close)
	closeLogged(log, "audit trail", f.trail.Close)
}

func closeLogged(log logrus.FieldLogger, what string, closer func() error) {
	if err := closer(); err != nil {
		log.WithError(err).Error("could not close the " + what)
	}
}

// assembly is everything that one reading of the configuration leads to.
type assembly struct {
	cfg     *Config
	base    string // path of the issuer, "" or like /id
	handler http.Handler
	health  *health
	site    *web.Site
	idp     *idp.Service
	groups  *groups.Service
	closers []func()
	users   int // requests under way, and 1 while current; guarded by server.mu
}

// close ends what the assembly runs, last begun first.
func (a *assembly) close() {
	for _, c := range slices.Backward(a.closers) {
		c()
	}
}

// assemble joins the rooms. It asks no directory, so it works while they are down.
func (s *server) assemble(ctx context.Context, cfg *Config) (_ *assembly, err error) {
	f, log := s.foundation, s.log
	a := &assembly{cfg: cfg}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	dirs, err := a.openRooms(ctx, f, log)
	if err != nil {
		return nil, err
	}
	a.health = &health{store: f.store, keys: a.idp.Keys, directories: dirs, proxied: s.proxy.Health, stopping: s.stopping.Load, log: log}
	if err := a.route(f, log); err != nil {
		return nil, err
	}
	a.health.start()
	a.closers = append(a.closers, a.health.close)
	return a, nil
}

// openRooms opens what the pages and the provider's endpoints are in front of.
func (a *assembly) openRooms(ctx context.Context, f *foundation, log logrus.FieldLogger) ([]*directory.Directory, error) {
	dirs, err := a.openDirectories()
	if err != nil {
		return nil, err
	}
	if a.groups, err = a.openGroups(ctx, f, log); err != nil {
		return nil, err
	}
	keys, err := idp.OpenKeys(ctx, f.store, a.cfg.Keys, log, nil)
	if err != nil {
		return nil, fmt.Errorf("open the signing keys: %w", err)
	}
	a.closers = append(a.closers, keys.Close)
	sessions, err := idp.OpenSessions(ctx, f.store, log)
	if err != nil {
		return nil, fmt.Errorf("open the sessions: %w", err)
	}
	a.closers = append(a.closers, sessions.Close)
	parts := idp.Parts{Store: f.store, Trail: f.trail, Groups: a.groups, Keys: keys, Sessions: sessions, Alone: a.cfg.Store.Etcd == nil, Log: log}
	for _, d := range dirs {
		parts.Directories = append(parts.Directories, d)
	}
	if a.idp, err = idp.New(ctx, a.cfg.idp, parts); err != nil {
		return nil, fmt.Errorf("start the identity provider: %w", err)
	}
	return dirs, nil
}

func (a *assembly) openDirectories() ([]*directory.Directory, error) {
	var dirs []*directory.Directory
	for _, c := range a.cfg.Directories {
		d, err := directory.New(c, a.cfg.Directories...)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, d)
		a.closers = append(a.closers, d.Close)
	}
	return dirs, nil
}

func (a *assembly) openGroups(ctx context.Context, f *foundation, log logrus.FieldLogger) (*groups.Service, error) {
	gc := groups.Config{Admins: a.cfg.Admins, Reserved: a.cfg.idp.DirectoryPrefixes}
	for _, c := range a.cfg.idp.Clusters {
		gc.Clusters = append(gc.Clusters, c.Name)
	}
	local, err := groups.Open(ctx, f.store, f.trail, gc, log)
	if err != nil {
		return nil, fmt.Errorf("open the groups: %w", err)
	}
	a.closers = append(a.closers, local.Close)
	return local, nil
}

// route puts the provider's endpoints, the pages and the probes under the path of
// the issuer; the probes are at the root as well.
func (a *assembly) route(f *foundation, log logrus.FieldLogger) error {
	u, err := url.Parse(a.cfg.Issuer)
	if err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	a.base = u.Path
	if a.site, err = web.New(web.Config{BasePath: a.base, Brand: a.cfg.Brand, Backups: f.backups, Auditor: f.auditor}, a.idp, a.groups, log); err != nil {
		return fmt.Errorf("pages: %w", err)
	}
	endpoints := provider.New(a.idp, a.idp.Keys, provider.Config{ErrorPage: a.site.ErrorPage, Log: log})
	reviews := provider.Reviews(a.idp, provider.ReviewConfig{Log: log, Count: f.metrics.reviewed})
	paths := provider.Paths()
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case slices.Contains(paths, r.URL.Path):
			endpoints.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, provider.ReviewPath):
			reviews.ServeHTTP(w, r)
		default:
			a.site.ServeHTTP(w, r)
		}
	})
	a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, under := strings.CutPrefix(r.URL.Path, a.base)
		switch {
		case r.URL.Path == "/healthz", under && rest == "/healthz":
			serveAlive(w, r)
		case r.URL.Path == "/readyz", under && rest == "/readyz":
			a.health.ServeHTTP(w, r)
		case a.base != "" && r.URL.Path == provider.MetadataPath+a.base:
			r = r.Clone(r.Context())
			r.URL.Path, r.URL.RawPath = provider.MetadataPath, ""
			endpoints.ServeHTTP(w, r)
		case under && strings.HasPrefix(rest, "/"):
			http.StripPrefix(a.base, app).ServeHTTP(w, r)
		default:
			http.Error(w, "Tabard is at "+a.cfg.Issuer, http.StatusNotFound)
		}
	})
	return nil
}
