package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// The benchmarks run the binary as it ships, over a real OpenLDAP on loopback, with
// state durable in bbolt and the audit trail on. 8 workers share two cores with the
// server and the directory, so the CPU of the server per operation is the figure to
// compare; operations per second say as much about the client.
const benchWorkers = 8

// benchPeople is how many people sign in in turn, as in the rush of a morning: so many
// that nobody signs in twice at once.
const benchPeople = 64

// benchServer is a Tabard whose CPU time is counted.
type benchServer struct {
	*server
	b       *testing.B
	pid     int
	http    *http.Client
	workers int
	next    atomic.Int64 // of the people

	profileFrom string // "": no profiles
}

// benchPerson is one of the people of the benchmarks.
func benchPerson(i int64) string { return fmt.Sprintf("person-%02d", i%benchPeople) }

// benchLDIF are the people, each with 20 groups of their own, one in another.
func benchLDIF() string {
	var b strings.Builder
	group := func(name, member string) {
		fmt.Fprintf(&b, "dn: cn=%s,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\nmember: %s,dc=example,dc=org\n\n", name, member)
	}
	for i := range int64(benchPeople) {
		uid := benchPerson(i)
		fmt.Fprintf(&b, "dn: uid=%[1]s,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: %[1]s\ncn: %[1]s\nsn: %[1]s\n"+
			"displayName: %[1]s\nmail: %[1]s@example.org\nuserPassword: pw-%[1]s\n\n", uid)
		for j := range 19 {
			group(fmt.Sprintf("%s-%02d", uid, j), "uid="+uid+",ou=people")
		}
		group(uid+"-all", "cn="+uid+"-00,ou=groups")
	}
	return b.String()
}

// startBench starts Tabard with the people of the benchmarks: over ldap or ldaps, on
// bbolt, or over ldap on etcd.
func startBench(b *testing.B, algorithm, kind string) *benchServer {
	b.Helper()
	slapd := testenv.StartSlapd(b)
	slapd.AddLDIF(b, testenv.SampleLDIF())
	slapd.AddLDIF(b, benchLDIF())
	o := options{tokens: "{signingAlgorithm: " + algorithm + "}"}
	if os.Getenv(benchProfile) != "" {
		o.extra = fmt.Sprintf("metrics: {listen: 127.0.0.1:%d}\n", testenv.FreePort(b))
	}
	s := newServer(b, slapd, o)
	if kind != "ldaps" {
		config, err := os.ReadFile(s.config)
		if err != nil {
			b.Fatal(err)
		}
		plain := strings.Replace(string(config), "urls: ["+slapd.TLSURL+"]", "urls: ["+slapd.URL+"]\n  insecurePlaintext: true", 1)
		s.write("tabard.yaml", strings.Replace(plain, "  caFile: "+slapd.CAFile+"\n", "", 1))
	}
	if kind == "etcd" {
		s.reconfigure(boltStore, etcdStore(b, s))
	}
	s.binary = benchBinary(b)
	s.start()
	bench := &benchServer{server: s, b: b, pid: s.Pid(), http: s.client(), workers: benchWorkers}
	if _, at, found := strings.Cut(o.extra, "listen: "); found {
		bench.profileFrom = "http://" + strings.TrimSuffix(at, "}\n")
	}
	return bench
}

// benchProfile names the environment variable of a folder that the server's CPU and
// allocation profiles under each benchmark are written to.
const benchProfile = "TABARD_BENCH_PROFILE"

// profile writes a profile of the server, if that is wanted, and returns when it is done.
func (s *benchServer) profile(kind string) {
	if s.profileFrom == "" {
		return
	}
	resp, err := http.Get(s.profileFrom + "/debug/pprof/" + kind)
	if err != nil {
		s.b.Error(err)
		return
	}
	defer resp.Body.Close()
	name, _, _ := strings.Cut(kind, "?")
	file := filepath.Join(os.Getenv(benchProfile), strings.ReplaceAll(s.b.Name(), "/", "-")+"-"+name)
	content, err := io.ReadAll(resp.Body)
	if err == nil {
		err = os.WriteFile(file, content, 0o600)
	}
	if err != nil {
		s.b.Error(err)
	}
}

var buildBench = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tabard-bench")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "tabard")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/tabard-id/tabard/cmd/tabard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, err
})

// benchBinary is the binary to measure: that of the tree, or the one that
// TABARD_BENCH_BINARY names, such as an older one to compare with.
func benchBinary(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("TABARD_BENCH_BINARY"); path != "" {
		return path
	}
	path, err := buildBench()
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// cpu is the CPU time that the server has used.
func (s *benchServer) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		s.b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.Atoi(f)
		if err != nil {
			s.b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory is a field of the server's /proc status, in MiB.
func (s *benchServer) memory(field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), field+":")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		s.b.Fatal(err)
	}
	return float64(kb) / 1024
}

// run does op b.N times, and reports what it took.
func (s *benchServer) run(op func(worker int) error) {
	before := s.cpu()
	start := time.Now()
	work := make(chan struct{})
	var wg sync.WaitGroup
	for i := range s.workers {
		wg.Go(func() {
			for range work {
				if err := op(i); err != nil {
					s.b.Error(err)
				}
			}
		})
	}
	var profiled sync.WaitGroup
	if s.b.N > 100 {
		profiled.Go(func() { s.profile("profile?seconds=8") })
	}
	s.b.ResetTimer()
	for range s.b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	s.b.StopTimer()
	n := float64(s.b.N)
	s.b.ReportMetric(n/time.Since(start).Seconds(), "op/s")
	s.b.ReportMetric(float64((s.cpu()-before).Microseconds())/1000/n, "server-cpu-ms/op")
	profiled.Wait()
	s.profile("allocs")
	s.b.ReportMetric(s.memory("VmHWM"), "peak-MiB")
}

// send is one request of a light client: cookies by hand, bodies as text.
func (s *benchServer) send(method, target, cookie string, form url.Values, want int) (*http.Response, string, error) {
	req, err := http.NewRequest(method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cookie != "" {
		req.Header.Set("Cookie", cookie)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: %d %s", method, req.URL.Path, resp.StatusCode, body)
	}
	return resp, string(body), err
}

// loginOnce does a whole login: authorize, page, form, code for tokens.
func (s *benchServer) loginOnce(uid string) (refreshToken string, err error) {
	params := authRequest("kubernetes")
	resp, _, err := s.send(http.MethodGet, s.issuer+"/authorize?"+params.Encode(), "", nil, http.StatusFound)
	if err != nil {
		return "", err
	}
	cookie, _, _ := strings.Cut(resp.Header.Get("Set-Cookie"), ";")
	page := resp.Header.Get("Location")
	if _, _, err = s.send(http.MethodGet, page, cookie, nil, http.StatusOK); err != nil {
		return "", err
	}
	u, err := url.Parse(page)
	if err != nil {
		return "", err
	}
	form := url.Values{"request": {u.Query().Get("request")}, "username": {uid}, "password": {"pw-" + uid}}
	resp, _, err = s.send(http.MethodPost, s.issuer+"/sign-in", cookie, form, http.StatusSeeOther)
	if err != nil {
		return "", err
	}
	to, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		return "", err
	}
	return s.tokenOnce(redemption("kubernetes", to.Query().Get("code")))
}

func (s *benchServer) tokenOnce(form url.Values) (refreshToken string, err error) {
	_, body, err := s.send(http.MethodPost, s.issuer+"/token", "", form, http.StatusOK)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(body, `"refresh_token":"`)
	refreshToken, _, _ = strings.Cut(rest, `"`)
	return refreshToken, nil
}

// benchKinds runs f for each algorithm and kind of server.
func benchKinds(b *testing.B, kinds []string, f func(b *testing.B, s *benchServer)) {
	for _, algorithm := range []string{"RS256", "ES256"} {
		for _, kind := range kinds {
			b.Run(algorithm+"/"+kind, func(b *testing.B) { f(b, startBench(b, algorithm, kind)) })
		}
	}
}

// BenchmarkLogin is a whole login: code with PKCE, LDAP bind, 20 groups.
func BenchmarkLogin(b *testing.B) {
	benchKinds(b, []string{"ldap", "ldaps", "etcd"}, func(_ *testing.B, s *benchServer) {
		s.run(func(int) error {
			_, err := s.loginOnce(benchPerson(s.next.Add(1)))
			return err
		})
	})
}

// BenchmarkLoginOfOne is the same with one person at all workers, whom the throttle
// lets through a few at a time.
func BenchmarkLoginOfOne(b *testing.B) {
	benchKinds(b, []string{"ldap", "etcd"}, func(_ *testing.B, s *benchServer) {
		s.run(func(int) error {
			_, err := s.loginOnce(benchPerson(0))
			return err
		})
	})
}

// BenchmarkRefresh is a refresh with the directory read anew.
func BenchmarkRefresh(b *testing.B) {
	benchKinds(b, []string{"ldap", "ldaps", "etcd"}, func(b *testing.B, s *benchServer) {
		var tokens [benchWorkers]string
		for i := range tokens {
			var err error
			if tokens[i], err = s.loginOnce(benchPerson(int64(i))); err != nil {
				b.Fatal(err)
			}
		}
		s.run(func(i int) (err error) {
			tokens[i], err = s.tokenOnce(refresh("kubernetes", tokens[i]))
			return err
		})
	})
}

// BenchmarkAddMember adds directory groups to one group by the API, each durable in the store and
// twice in the trail, by 16 writers.
func BenchmarkAddMember(b *testing.B) {
	for _, kind := range []string{"ldap", "etcd"} {
		b.Run(kind, func(b *testing.B) {
			s := startBench(b, "ES256", kind)
			s.workers = 16
			carol := s.login("tabard", "carol", "pw-carol").IDToken
			var n atomic.Int64
			call := func(path, body string) error {
				req, err := http.NewRequest(http.MethodPost, s.issuer+path, strings.NewReader(body))
				if err != nil {
					return err
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Authorization", "Bearer "+carol)
				resp, err := s.http.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				answer, err := io.ReadAll(resp.Body)
				if err == nil && resp.StatusCode > 299 {
					err = fmt.Errorf("%s: %d %s", path, resp.StatusCode, answer)
				}
				return err
			}
			if err := call("/api/v1/groups", `{"name":"many"}`); err != nil {
				b.Fatal(err)
			}
			s.run(func(int) error {
				return call("/api/v1/groups/many/members", fmt.Sprintf(`{"directoryGroup":"corp:team-%d"}`, n.Add(1)))
			})
		})
	}
}

// BenchmarkKeys is the JWKS.
func BenchmarkKeys(b *testing.B) {
	s := startBench(b, "RS256", "ldap")
	s.run(func(int) error {
		_, _, err := s.send(http.MethodGet, s.issuer+"/keys", "", nil, http.StatusOK)
		return err
	})
}

// BenchmarkStart is the time from the start of the process to its first accepted
// login, on a store that has its keys, and the memory at rest after it.
func BenchmarkStart(b *testing.B) {
	s := startBench(b, "RS256", "ldap")
	var spent time.Duration
	var rest float64
	for range b.N {
		s.Stop()
		start := time.Now()
		s.start()
		s.pid = s.Pid()
		if _, err := s.loginOnce(benchPerson(0)); err != nil {
			b.Fatal(err)
		}
		spent += time.Since(start)
		rest = s.memory("VmRSS")
	}
	b.ReportMetric(float64(spent.Milliseconds())/float64(b.N), "ms-to-first-login")
	b.ReportMetric(rest, "rest-MiB")
}
