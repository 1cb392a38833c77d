package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/transport"

	"github.com/tabard-id/tabard/internal/testenv"
)

// These benchmarks run the binary as it ships beside two others on the same machine: Go's
// ReverseProxy with fixed headers, and kube-oidc-proxy's method. Each is a process of its
// own, so that its CPU time can be told apart from that of the client and the API server
// in this process. alice is in 20 groups, the policy has ten rules, the trail is on.
const (
	proxyWorkers = 16
	watches      = 5000
	bigBody      = 1 << 30
	podsPath     = "/api/v1/namespaces/team/pods"
	bigPath      = "/api/v1/namespaces/team/configmaps"
)

const benchPolicy = `    policy:
    - {name: secrets, effect: deny, when: "resource == 'secrets' && !('corp:ops' in groups)"}
    - {name: night, effect: deny, when: "now.getHours('Europe/Berlin') < 0 && !('corp:ops' in groups)"}
    - {name: exec, effect: deny, when: "subresource in ['exec', 'attach', 'portforward'] && !groups.exists(g, g.startsWith('corp:team-'))"}
    - {name: system, effect: deny, when: "namespace == 'kube-system' && verb in ['create', 'update', 'patch', 'delete']"}
    - {name: nodes, effect: deny, when: "resource == 'nodes' && subresource == 'proxy'"}
    - {name: far, effect: deny, when: "source.ip.startsWith('203.0.113.')"}
    - {name: old, effect: deny, when: "session.age > duration('24h')"}
    - {name: names, effect: deny, when: "name.matches('^forbidden-[a-z]+$')"}
    - {name: urls, effect: deny, when: "path.startsWith('/debug/') || path.startsWith('/logs')"}
    - {name: devs, effect: allow, when: "'corp:devs' in groups || 'corp:team-07' in groups"}
`

// benchAPIServer answers as an API server would, without its work.
type benchAPIServer struct {
	*httptest.Server
	pods   []byte
	caFile string

	mu       sync.Mutex
	watchers []chan []byte
}

func startBenchAPIServer(b *testing.B) *benchAPIServer {
	b.Helper()
	ca := testenv.NewCA(b, b.TempDir())
	certFile, keyFile := ca.Issue(b, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		b.Fatal(err)
	}
	pod := `{"metadata":{"name":"web-%d","namespace":"team","uid":"37b8e68a-7af6-1041-9635-714dc0044a11"},"spec":{"nodeName":"node-1","containers":[{"name":"main","image":"registry.example/web:1"}]},"status":{"phase":"Running"}}`
	list := make([]string, 10)
	for i := range list {
		list[i] = fmt.Sprintf(pod, i)
	}
	s := &benchAPIServer{pods: []byte(`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[` + strings.Join(list, ",") + `]}`), caFile: ca.File}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS, s.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{pair}}, true
	s.StartTLS()
	b.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// ServeHTTP implements http.Handler.
func (s *benchAPIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == bigPath:
		zeros := make([]byte, 64<<10)
		for sent := 0; sent < bigBody; sent += len(zeros) {
			if _, err := w.Write(zeros); err != nil {
				return
			}
		}
	case r.URL.Path != podsPath:
		_, _ = io.WriteString(w, "ok")
	case r.Header.Get("Impersonate-User") != "alice" || len(r.Header["Impersonate-Group"]) < 20:
		http.Error(w, "not alice in 20 groups", http.StatusForbidden)
	case r.FormValue("watch") == "true":
		s.watch(w, r)
	default:
		_, _ = w.Write(s.pods)
	}
}

func (s *benchAPIServer) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan []byte, 64)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	s.mu.Lock()
	s.watchers = append(s.watchers, events)
	s.mu.Unlock()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			if _, err := w.Write(e); err != nil || flush.Flush() != nil {
				return
			}
		}
	}
}

// contender is one of the three, running.
type contender struct {
	*benchServer
	url   string
	token string
	api   *benchAPIServer
}

// startContender starts tabard and, where another is meant, that one beside it.
func startContender(b *testing.B, method string) *contender {
	b.Helper()
	slapd := testenv.StartSlapd(b)
	slapd.AddLDIF(b, testenv.SampleLDIF())
	var ldif strings.Builder
	for i := range 18 { // and devs and all-devs make 20
		fmt.Fprintf(&ldif, "dn: cn=team-%02d,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\nmember: uid=alice,ou=people,dc=example,dc=org\n\n", i)
	}
	slapd.AddLDIF(b, ldif.String())
	api := startBenchAPIServer(b)
	s := newServer(b, slapd, options{tokens: "{idTokenLifetime: 2h}"})
	s.binary = benchBinary(b)
	s.write("proxy-token", "account")
	webhook := "  webhook: {callers: [{tokenFile: tabard-webhook-token}]}\n"
	s.reconfigure(webhook, webhook+fmt.Sprintf("  apiServer: {url: %s, caFile: %s, tokenFile: proxy-token}\n  proxy:\n    limits: {rate: 100000, burst: 100000, inFlight: 1000, streams: 10000, timeout: 10m}\n", api.URL, api.caFile)+benchPolicy)
	s.start()
	c := &contender{benchServer: &benchServer{server: s, b: b, pid: s.Pid(), http: s.client(), workers: proxyWorkers}, url: s.issuer + "/k8s/clusters/prod", api: api}
	c.token = s.login("kubernetes", "alice", "pw-alice").IDToken
	if method != "tabard" {
		c.rival(method)
	}
	if err := c.list(); err != nil {
		b.Fatal(err)
	}
	return c
}

// rival starts another proxy, which c is from now on.
func (c *contender) rival(method string) {
	certFile, keyFile := c.ca.Issue(c.b, "localhost")
	var claims struct {
		Sub, Jti, Sid string
		Groups        []string
	}
	if err := decodePart(c.token, 1, &claims); err != nil {
		c.b.Fatal(err)
	}
	r := rival{
		Method: method, Listen: fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(c.b)), CertFile: certFile, KeyFile: keyFile,
		Upstream: c.api.URL, CAFile: c.api.caFile, Issuer: c.issuer, IssuerCA: c.caFile,
		User: transport.ImpersonationConfig{UserName: "alice", UID: claims.Sub, Groups: claims.Groups, Extra: map[string][]string{
			"authentication.kubernetes.io/credential-id": {"JTI=" + claims.Jti}, "tabard.dev/sid": {claims.Sid}, "tabard.dev/address": {"127.0.0.1"}}},
	}
	said, err := json.Marshal(r)
	if err != nil {
		c.b.Fatal(err)
	}
	c.url = "https://" + strings.Replace(r.Listen, "127.0.0.1", "localhost", 1)
	p := testenv.Start(c.b, testenv.Command{
		Name: "rival-" + method, Path: os.Args[0], Env: []string{rivalEnv + "=" + string(said)},
		Ready: func(context.Context) error { return c.list() },
	})
	c.pid = p.Pid()
}

func (c *contender) request(path string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	return c.http.Do(req)
}

// list is one proxied GET, whose answer is looked at.
func (c *contender) list() error {
	res, err := c.request(podsPath)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || len(body) != len(c.api.pods)) {
		err = fmt.Errorf("%s: %.200s", res.Status, body)
	}
	return err
}

func eachContender(b *testing.B, f func(b *testing.B, c *contender)) {
	for _, method := range []string{"tabard", "bare", "oidc"} {
		b.Run(method, func(b *testing.B) { f(b, startContender(b, method)) })
	}
}

// BenchmarkProxyGet is a small list by 16 connections.
func BenchmarkProxyGet(b *testing.B) {
	eachContender(b, func(_ *testing.B, c *contender) {
		c.run(func(int) error { return c.list() })
	})
}

// BenchmarkProxyLatency is the same at 100 requests a second, 1,000 of them.
func BenchmarkProxyLatency(b *testing.B) {
	eachContender(b, func(b *testing.B, c *contender) {
		for range b.N {
			took := make([]time.Duration, 1000)
			var wg sync.WaitGroup
			tick := time.NewTicker(10 * time.Millisecond)
			for i := range took {
				<-tick.C
				wg.Go(func() {
					start := time.Now()
					if err := c.list(); err != nil {
						b.Error(err)
					}
					took[i] = time.Since(start)
				})
			}
			tick.Stop()
			wg.Wait()
			slices.Sort(took)
			b.ReportMetric(took[500].Seconds()*1000, "p50-ms")
			b.ReportMetric(took[990].Seconds()*1000, "p99-ms")
		}
	})
}

// BenchmarkProxyBody is a body of 1 GiB.
func BenchmarkProxyBody(b *testing.B) {
	eachContender(b, func(b *testing.B, c *contender) {
		b.SetBytes(bigBody)
		before := c.cpu()
		for b.Loop() {
			res, err := c.request(bigPath)
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, res.Body)
			if res.Body.Close(); n != bigBody || err != nil {
				b.Fatalf("%d bytes, %v", n, err)
			}
		}
		b.ReportMetric((c.cpu()-before).Seconds()/float64(b.N), "server-cpu-s/op")
		b.ReportMetric(c.memory("VmHWM"), "peak-MiB")
	})
}

// BenchmarkProxyWatches holds 5,000 watches and delivers 1,000 events a second. What a
// watch costs is what the process has grown by, with the garbage that opening them left;
// over HTTP/1.1 each has a TLS connection of its own. With TABARD_BENCH_SETTLE=3m it is
// looked at again when that has been collected, which Go does every two minutes.
func BenchmarkProxyWatches(b *testing.B) {
	for _, one := range [][2]string{{"tabard", "h2"}, {"tabard", "http/1.1"}, {"bare", "h2"}, {"bare", "http/1.1"}} {
		b.Run(one[0]+"/"+one[1], func(b *testing.B) {
			c, protocol := startContender(b, one[0]), one[1]
			config := c.tls()
			config.NextProtos = []string{protocol}
			c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "h2", DialContext: (&net.Dialer{Timeout: time.Minute}).DialContext}}
			before := c.memory("VmRSS")
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			var got atomic.Int64
			var done sync.WaitGroup
			c.openWatches(ctx, &got, &done)
			time.Sleep(5 * time.Second)
			b.ReportMetric((c.memory("VmRSS")-before)*1024/watches, "KiB/watch")
			cpu := c.cpu()
			time.Sleep(5 * time.Second)
			b.ReportMetric((c.cpu()-cpu).Seconds()/5*100, "idle-cpu-%")
			if settle, err := time.ParseDuration(os.Getenv("TABARD_BENCH_SETTLE")); err == nil {
				time.Sleep(settle)
				b.ReportMetric((c.memory("VmRSS")-before)*1024/watches, "settled-KiB/watch")
			}
			sent := int64(0)
			for range b.N {
				sent += c.deliver()
			}
			for deadline := time.Now().Add(10 * time.Second); got.Load() < sent && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if got.Load() != sent {
				b.Errorf("%d of %d events were delivered", got.Load(), sent)
			}
			b.ReportMetric(float64(sent), "events")
			cancel()
			done.Wait()
		})
	}
}

// openWatches opens 5,000 and counts what they tell.
func (c *contender) openWatches(ctx context.Context, got *atomic.Int64, done *sync.WaitGroup) {
	opened, slots := make(chan error), make(chan struct{}, 32)
	for range watches {
		done.Go(func() {
			slots <- struct{}{}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+podsPath+"?watch=true", nil)
			if err != nil {
				opened <- err
				return
			}
			req.Header.Set("Authorization", "Bearer "+c.token)
			res, err := c.http.Do(req)
			if err == nil && res.StatusCode != http.StatusOK {
				err = errors.New(res.Status)
			}
			<-slots
			if opened <- err; err != nil {
				return
			}
			defer res.Body.Close()
			for lines := bufio.NewReaderSize(res.Body, 512); ; got.Add(1) {
				if _, err := lines.ReadSlice('\n'); err != nil {
					return
				}
			}
		})
	}
	for range watches {
		if err := <-opened; err != nil {
			c.b.Fatal(err)
		}
	}
}

// deliver sends an event to one watch after the other, 1,000 a second for ten seconds.
func (c *contender) deliver() (sent int64) {
	event := []byte(`{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"name":"web"}}}` + "\n")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	c.api.mu.Lock()
	all := slices.Clone(c.api.watchers)
	c.api.mu.Unlock()
	for range 1000 {
		<-tick.C
		for range 10 {
			all[int(sent)%len(all)] <- event
			sent++
		}
	}
	return sent
}
