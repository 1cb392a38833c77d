package main

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/proxy"
)

// authority asks the assembly of the moment who bears a token. The proxy holds on to none:
// a watch that did would keep an old one, with all of its indexes, in memory.
type authority struct{ server *server }

// Identify implements proxy.Authority.
func (a authority) Identify(ctx context.Context, cluster, token string) (idp.Identity, error) {
	now := a.server.acquire()
	defer a.server.release(now)
	return now.idp.Identify(ctx, cluster, token)
}

// Recheck implements proxy.Authority.
func (a authority) Recheck(ctx context.Context, id idp.Identity) (idp.Identity, error) {
	now := a.server.acquire()
	defer a.server.release(now)
	return now.idp.Recheck(ctx, id)
}

// serveProxied hands a request to the proxy, which knows how long each may take: a watch
// has no deadline.
func (s *server) serveProxied(w http.ResponseWriter, r *http.Request) {
	origin := s.originOf(r)
	w.Header().Set("X-Request-Id", origin.RequestID)
	rec, path, start := &recorder{ResponseWriter: w}, r.URL.Path, time.Now()
	defer func() {
		s.finish(rec, "proxy", recover(), func() logrus.Fields { return requestFields(r, path, origin, start) })
	}()
	s.proxy.ServeHTTP(rec, r.WithContext(audit.WithOrigin(r.Context(), origin)))
}

// proxyCollector tells Prometheus how the proxied clusters are now.
type proxyCollector struct {
	health      func() []proxy.Health
	up, streams *prometheus.Desc
}

func newProxyCollector(health func() []proxy.Health) *proxyCollector {
	return &proxyCollector{
		health:  health,
		up:      prometheus.NewDesc("tabard_proxy_upstream_up", "Whether the API server of a proxied cluster answers: 1 or 0.", []string{"cluster"}, nil),
		streams: prometheus.NewDesc("tabard_proxy_open_streams", "Watches, logs, execs and forwards that are open now.", []string{"cluster"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *proxyCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.up
	out <- c.streams
}

// Collect implements prometheus.Collector.
func (c *proxyCollector) Collect(out chan<- prometheus.Metric) {
	for _, h := range c.health() {
		up := 1.0
		if h.Err != "" {
			up = 0
		}
		out <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, up, h.Cluster)
		out <- prometheus.MustNewConstMetric(c.streams, prometheus.GaugeValue, float64(h.Streams), h.Cluster)
	}
}
