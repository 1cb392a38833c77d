package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/proxy"
)

// How often directories are probed, and how long one probe may take.
const (
	probeEvery   = 10 * time.Second
	probeTimeout = 4 * time.Second
)

// Words of /readyz. Causes, which may name hosts, are in the log alone.
const (
	stateOK      = "ok"
	stateError   = "error"
	stateUnknown = "not checked yet"
)

// readiness is the body of /readyz.
type readiness struct {
	Ready       bool              `json:"ready"`
	Stopping    bool              `json:"stopping,omitempty"`
	Store       string            `json:"store"`
	Keys        string            `json:"keys"`
	Directories map[string]string `json:"directories"`
	Clusters    map[string]string `json:"clusters,omitempty"` // that are proxied
}

// health knows how the parts of one assembly are. Directories are probed in the
// background, so that nobody can make the server ask them.
type health struct {
	store       store.Store
	keys        *idp.Keys
	directories []*directory.Directory
	proxied     func() []proxy.Health
	stopping    func() bool
	log         logrus.FieldLogger

	mu    sync.Mutex
	state map[string]string // of directories
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// start begins probing until close.
func (h *health) start() {
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.state = stop, map[string]string{}
	for _, d := range h.directories {
		h.state[d.Name()] = stateUnknown
	}
	for _, d := range h.directories { // from here on the state changes
		h.done.Go(func() { h.watch(ctx, d) })
	}
}

func (h *health) close() {
	h.stop()
	h.done.Wait()
}

// inherit takes over what old knows of directories that were not probed yet, so
// that a reload does not make the server look unready.
func (h *health) inherit(old *health) {
	old.mu.Lock()
	known := maps.Clone(old.state)
	old.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, state := range known {
		if h.state[name] == stateUnknown {
			h.state[name] = state
		}
	}
}

// watch probes one directory again and again, and logs when its state changes.
func (h *health) watch(ctx context.Context, d *directory.Directory) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		err := d.Ping(probe)
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.set(d.Name(), err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *health) set(name string, err error) {
	state, log := stateOK, h.log.WithField("directory", name)
	if err != nil {
		state = stateError
	}
	h.mu.Lock()
	before := h.state[name]
	h.state[name] = state
	h.mu.Unlock()
	switch {
	case state == before:
	case err != nil:
		log.WithError(err).Error("directory does not work: nobody of it can sign in until it does; `tabard doctor` says more")
	default:
		log.Info("directory works")
	}
}

// now is how things are.
func (h *health) now(ctx context.Context) readiness {
	r := readiness{Store: stateOK, Keys: stateOK, Directories: map[string]string{}, Stopping: h.stopping()}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := h.store.Get(ctx, "health/probe"); err != nil && !errors.Is(err, store.ErrNotFound) {
		h.log.WithError(err).Error("the store does not answer")
		r.Store = stateError
	}
	if len(h.keys.Public().Keys) == 0 {
		r.Keys = stateError
	}
	for _, c := range h.proxied() {
		if r.Clusters == nil {
			r.Clusters = map[string]string{}
		}
		if r.Clusters[c.Cluster] = stateOK; c.Err != "" {
			r.Clusters[c.Cluster] = stateError
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(r.Directories, h.state)
	r.Ready = !r.Stopping && r.Store == stateOK && r.Keys == stateOK
	return r
}

// ServeHTTP answers /readyz. With ?include=directories it also fails when no
// directory works.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := h.now(r.Context())
	if r.URL.Query().Get("include") == "directories" {
		now.Ready = now.Ready && slices.Contains(slices.Collect(maps.Values(now.Directories)), stateOK)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !now.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(now) // a prober that went away is nobody to tell
}

func serveAlive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n"))
}
