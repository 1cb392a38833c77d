package main

import (
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tabard-id/tabard/proxy"
)

// metrics is what Prometheus may read.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	reviews  *prometheus.CounterVec
	proxies  *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tabard_http_requests_total", Help: "Answered HTTP requests by kind of route and status code.",
		}, []string{"route", "code"}),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tabard_token_reviews_total", Help: "Tokens that API servers asked about, by cluster and result: good, refused or failed.",
		}, []string{"cluster", "result"}),
		proxies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tabard_proxy_requests_total", Help: "Proxied requests that have ended, by cluster and status code; 101 is an exec, attach or port-forward.",
		}, []string{"cluster", "code"}),
	}
	release, revision := buildVersion()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tabard_build_info", Help: "Always 1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{"version": release, "revision": revision},
	})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.reviews, m.proxies, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// reviewed counts the answer to one TokenReview.
func (m *metrics) reviewed(cluster, result string) {
	m.reviews.WithLabelValues(cluster, result).Inc()
}

// proxied counts a request that has ended.
func (m *metrics) proxied(o proxy.Observation) {
	m.proxies.WithLabelValues(o.Cluster, strconv.Itoa(o.Status)).Inc()
}

// handler serves metrics and profiles, for a listener of their own.
func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// version is set by the linker (see Makefile).
var version = "devel"

// buildVersion is the release, and the commit as the Go tool recorded it.
func buildVersion() (release, revision string) {
	revision = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	return version, revision
}
