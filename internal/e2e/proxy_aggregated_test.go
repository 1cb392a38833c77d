package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const aggregated = `
apiVersion: v1
kind: Service
metadata: {name: metrics, namespace: kube-system}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {name: metrics, namespace: kube-system, port: %d}
  caBundle: %s
`

// metricsAnswers are what `kubectl top` asks a metrics server for.
var metricsAnswers = map[string]string{
	"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"metrics.k8s.io","versions":[{"groupVersion":"metrics.k8s.io/v1beta1","version":"v1beta1"}]}]}`,
	"/apis/metrics.k8s.io/v1beta1": `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"metrics.k8s.io/v1beta1","resources":[
		{"name":"nodes","singularName":"","namespaced":false,"kind":"NodeMetrics","verbs":["get","list"]},{"name":"pods","singularName":"","namespaced":true,"kind":"PodMetrics","verbs":["get","list"]}]}`,
	"/apis/metrics.k8s.io/v1beta1/namespaces/team/pods": `{"kind":"PodMetricsList","apiVersion":"metrics.k8s.io/v1beta1","items":[{"metadata":{"name":"web","namespace":"team"},
		"timestamp":"2026-01-01T00:00:00Z","window":"30s","containers":[{"name":"main","usage":{"cpu":"7m","memory":"21Mi"}}]}]}`,
}

// metricsServer is an API server behind the API server, and keeps whom it was asked for.
type metricsServer struct {
	mu    sync.Mutex
	asked []http.Header // of requests for metrics
}

func (s *metricsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := metricsAnswers[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/pods") {
		s.mu.Lock()
		s.asked = append(s.asked, r.Header)
		s.mu.Unlock()
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, body)
}

// startMetrics starts a metrics server that trusts the API server's front proxy alone, and
// registers it.
func (p *proxied) startMetrics() *metricsServer {
	p.t.Helper()
	certFile, keyFile := p.k.CA().Issue(p.t, "metrics.kube-system.svc")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		p.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.k.CA().Cert)
	s := &metricsServer{}
	server := httptest.NewUnstartedServer(s)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	server.StartTLS()
	p.t.Cleanup(server.Close)
	ca, err := os.ReadFile(p.k.CAFile)
	if err != nil {
		p.t.Fatal(err)
	}
	p.apply(fmt.Sprintf(aggregated, server.Listener.Addr().(*net.TCPAddr).Port, base64.StdEncoding.EncodeToString(ca)))
	return s
}

// testProxyTop asks an API server behind the API server, which has to hear who asks.
func testProxyTop(t *testing.T, w *proxyWorld) {
	metrics := w.startMetrics()
	defer w.k.Kubectl(t, "delete", "apiservice", "v1beta1.metrics.k8s.io")
	eventually(t, 3*time.Minute, "kubectl top", func() error {
		out, err := w.alice.kubectl(nil, "", "top", "pods", "--no-headers")
		if err == nil && strings.Join(strings.Fields(out), " ") != "web 7m 21Mi" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	w.bob.refused([]string{`User "bob" cannot list resource "pods" in API group "metrics.k8s.io"`}, "top", "pods")
	metrics.mu.Lock()
	defer metrics.mu.Unlock()
	for _, h := range metrics.asked {
		if h.Get("X-Remote-User") != "alice" || !strings.Contains(strings.Join(h["X-Remote-Group"], " "), "corp:all-devs") || h.Get("X-Remote-Extra-Tabard.dev%2faddress") != "127.0.0.1" {
			t.Errorf("the metrics server was asked for %v", h)
		}
	}
}
