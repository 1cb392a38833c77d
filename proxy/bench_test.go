package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
)

// The API server and the clients of a benchmark are in a process of their own, this
// binary again, so that what is measured is the proxy alone.
const otherSide = "TABARD_PROXY_BENCH"

const benchConnections = 16

// order is what the other side is to do.
type order struct {
	URL      string
	Requests int    // GETs, on 16 connections
	Watches  int    // to open and leave open
	MiB      int    // of one list
	Protocol string // the clients'
}

// offer is where the other side's API server is.
type offer struct{ URL, CA string }

// runOtherSide obeys orders on standard input until it ends.
func runOtherSide() {
	pods := `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"b"},"spec":{"x":"` + strings.Repeat("y", 2000) + `"}}`
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if n, _ := strconv.Atoi(r.URL.Query().Get("MiB")); n > 0 {
			mib := make([]byte, 1<<20)
			for range n {
				_, _ = w.Write(mib)
			}
			return
		}
		if r.URL.Query().Get("watch") == "" {
			_, _ = io.WriteString(w, pods)
			return
		}
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(offer{s.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))})
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if in.Decode(&o) != nil {
			os.Exit(0)
		}
		if err := obey(o); err != nil {
			fmt.Fprintln(os.Stderr, "other side:", err)
			os.Exit(1)
		}
		_ = out.Encode(o)
	}
}

// obey returns when the requests are answered and the watches open.
func obey(o order) error {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: benchConnections, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(o.Protocol == "HTTP/1.1")
	tr.Protocols.SetHTTP2(o.Protocol == "HTTP/2.0")
	get := func(query string, wait bool) error {
		r, err := http.NewRequest("GET", o.URL+"/api/v1/namespaces/a/pods"+query, nil)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer alice-token")
		r.Header.Set("User-Agent", "kubectl/v1.36.3 (linux/amd64) kubernetes/0000000")
		r.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
		res, err := tr.RoundTrip(r)
		if err != nil {
			return err
		}
		if res.StatusCode != 200 {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		if wait {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		return err
	}
	for range o.Watches {
		if err := get("?watch=true", false); err != nil {
			return err
		}
	}
	if o.MiB > 0 {
		if err := get("?MiB="+strconv.Itoa(o.MiB), true); err != nil {
			return err
		}
	}
	var left atomic.Int64
	left.Store(int64(o.Requests))
	errs := make(chan error, benchConnections)
	var wg sync.WaitGroup
	for range benchConnections {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := get("/b", true); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// bench is the other side as a benchmark sees it.
type bench struct {
	b   *testing.B
	in  *json.Encoder
	out *json.Decoder
	offer
}

func startOtherSide(b *testing.B) *bench {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), otherSide+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	x := &bench{b: b, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	if err := x.out.Decode(&x.offer); err != nil {
		b.Fatal(err)
	}
	return x
}

func (x *bench) order(o order) {
	x.b.Helper()
	var done order
	if err := x.in.Encode(o); err != nil {
		x.b.Fatal(err)
	}
	if err := x.out.Decode(&done); err != nil {
		x.b.Fatal("the other side gave up: ", err)
	}
}

// measure runs b.N GETs and reports the CPU that this process used for each.
func (x *bench) measure(url, protocol string) {
	x.b.Helper()
	x.order(order{URL: url, Requests: 2_000, Protocol: protocol})
	x.b.ResetTimer()
	before := cpu(x.b)
	x.order(order{URL: url, Requests: x.b.N, Protocol: protocol})
	used := cpu(x.b) - before
	x.b.ReportMetric(float64(used.Nanoseconds())/1000/float64(x.b.N), "cpu-µs/op")
	x.b.ReportMetric(float64(x.b.N)/x.b.Elapsed().Seconds(), "req/s")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchGroups are a person's twenty.
func benchGroups() []string {
	var all []string
	for i := range 20 {
		all = append(all, "corp:k8s-team-number-"+strconv.Itoa(i))
	}
	return all
}

// benchRules look at everything that rules look at.
func benchRules() []Rule {
	whens := []string{
		"resource == 'secrets' && namespace == 'kube-system'", "verb == 'delete' && resource == 'namespaces'",
		"now.getHours('Europe/Berlin') < 0 && !('oncall' in groups)", "subresource == 'exec' && namespace.startsWith('prod-')",
		"session.age > duration('24h')", "!source.ip.startsWith('127.') && verb != 'get'", "user.endsWith('@contractor.example')",
		"apiGroup == 'rbac.authorization.k8s.io' && verb in ['create', 'update', 'patch', 'delete']", "path.startsWith('/debug')",
		"groups.exists(g, g == 'corp:banned')",
	}
	var all []Rule
	for i, when := range whens {
		all = append(all, Rule{Name: fmt.Sprintf("rule-%d", i), Effect: "deny", When: when})
	}
	return all
}

// newBenchWorld is newWorld with ten rules, a person of twenty groups and a trail on disk.
func newBenchWorld(b *testing.B, x *bench) *world {
	b.Helper()
	w := newWorld(b, x.URL, x.CA, func(c *ClusterConfig) { c.Proxy.Policy = benchRules() })
	id := alice()
	id.Groups = benchGroups()
	w.people.add("prod", "alice-token", id)
	trail, err := audit.Open(audit.Config{Dir: b.TempDir(), Serve: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { w.front.Close(); w.proxy.Close(); _ = trail.Close() })
	w.proxy.recorder.Close()
	w.proxy.recorder = newRecorder(trail, w.proxy.Log)
	return w
}

func BenchmarkProxiedGet(b *testing.B) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		b.Run(protocol, func(b *testing.B) {
			x := startOtherSide(b)
			x.measure(newBenchWorld(b, x).front.URL+"/k8s/clusters/prod", protocol)
		})
	}
}

// BenchmarkBareReverseProxy is what ours is held against: Go's own, which sends the same
// headers over the same kind of connections and checks nothing.
func BenchmarkBareReverseProxy(b *testing.B) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		b.Run(protocol, func(b *testing.B) {
			x := startOtherSide(b)
			front := bareProxy(b, x)
			x.measure(front.URL, protocol)
		})
	}
}

func bareProxy(b *testing.B, x *bench) *httptest.Server {
	b.Helper()
	to, err := url.Parse(x.URL)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(x.CA))
	tr := newTransport(&tls.Config{RootCAs: roots}, true)
	b.Cleanup(tr.CloseIdleConnections)
	who := impersonation{User: "alice", UID: "corp.1", Groups: benchGroups(), Extra: alice().Extra()}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Transport: tr, Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(to)
		who.set(pr.Out.Header)
		pr.Out.Header.Set("Authorization", "Bearer "+accountToken)
	}})
	front.EnableHTTP2 = true
	front.StartTLS()
	b.Cleanup(front.Close)
	b.Cleanup(front.CloseClientConnections)
	return front
}

// BenchmarkLargeBody is one list of 256 MiB through ours and through Go's own. What is
// resident grows by no more than buffers.
func BenchmarkLargeBody(b *testing.B) {
	const mib = 256
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for _, ours := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/ours=%v", protocol, ours), func(b *testing.B) {
				x := startOtherSide(b)
				var url string
				if ours {
					url = newBenchWorld(b, x).front.URL + "/k8s/clusters/prod"
				} else {
					url = bareProxy(b, x).URL
				}
				x.order(order{URL: url, MiB: 8, Protocol: protocol})
				rss, _ := memory(b)
				before := cpu(b)
				b.SetBytes(mib << 20)
				b.ResetTimer()
				for range b.N {
					x.order(order{URL: url, MiB: mib, Protocol: protocol})
				}
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
				rss2, _ := memory(b)
				b.ReportMetric(float64(rss2-rss)/1024, "KiB-RSS-grown")
			})
		}
	}
}

// BenchmarkIdleWatch reports the memory of this process for each open watch: all of it,
// with both connections' buffers, stacks and what the kernel gave the runtime.
func BenchmarkIdleWatch(b *testing.B) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		b.Run(protocol, func(b *testing.B) {
			x := startOtherSide(b)
			w := newBenchWorld(b, x)
			url := w.front.URL + "/k8s/clusters/prod"
			x.order(order{URL: url, Requests: 100, Watches: 10, Protocol: protocol})
			rss, heap := memory(b)
			n := max(b.N, 1_000)
			x.order(order{URL: url, Watches: n, Protocol: protocol})
			time.Sleep(3 * lookEvery) // with what looking after them takes
			rss2, heap2 := memory(b)
			b.ReportMetric(float64(rss2-rss)/1024/float64(n), "KiB-RSS/watch")
			b.ReportMetric(float64(heap2-heap)/1024/float64(n), "KiB-in-use/watch")
			if open := w.proxy.streams.len(); open < n {
				b.Errorf("%d watches are open, want %d", open, n)
			}
			w.proxy.Drain(context.Background())
		})
	}
}

// memory returns what is resident, and what heap and stacks use, in bytes.
func memory(b *testing.B) (rss, used int64) {
	b.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("there is no /proc here")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize()), int64(m.HeapInuse + m.StackInuse)
}
