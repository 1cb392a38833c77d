package directory

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

const boundaries = 10 // of messages, at which a fault strikes

// operations is how often people sign in for each fault.
func operations(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("TABARD_SOAK_LOGINS"), "200"))
	if err != nil {
		t.Fatalf("TABARD_SOAK_LOGINS: %v", err)
	}
	return n
}

// twoHosts is a slapd behind two proxies that speak TLS, and what reads it
// through them.
type twoHosts struct {
	slapd         *testenv.Slapd
	ca            *testenv.CA
	tls           *tls.Config
	first, second *testenv.LDAPProxy
	d             *Directory
}

func behindProxies(t testing.TB) *twoHosts {
	t.Helper()
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	h := &twoHosts{slapd: s, ca: testenv.NewCA(t, t.TempDir())}
	h.tls = h.ca.ServerTLS(t)
	h.first = testenv.StartLDAPProxy(t, s.URL, "", h.tls)
	h.second = testenv.StartLDAPProxy(t, s.URL, "", h.tls)
	h.d = h.open(t, h.first, h.second)
	return h
}

// open reads the directory through proxies that speak TLS.
func (h *twoHosts) open(t testing.TB, proxies ...*testenv.LDAPProxy) *Directory {
	t.Helper()
	cfg := slapdConfig(h.slapd)
	cfg.CAFile, cfg.URLs = h.ca.File, nil
	for _, p := range proxies {
		cfg.URLs = append(cfg.URLs, "ldaps://"+p.Address)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// loginTime is a budget of more than people have: a good host may stand on a slow machine.
const loginTime = 4 * defaultBudget

// signIn does what a login does, within one budget.
func signIn(ctx context.Context, d *Directory, password string) (Person, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	p, err := d.Find(ctx, "alice")
	if err != nil {
		return p, err
	}
	if err := d.Bind(ctx, p.DN, password); err != nil {
		return p, err
	}
	groups, err := d.Groups(ctx, p)
	if err == nil && (len(groups) != 2 || groups[0].Name != "corp:all-devs") {
		err = fmt.Errorf("groups are %v", groups)
	}
	return p, err
}

// wantClean accepts a right answer and ErrUnavailable.
func wantClean(t *testing.T, what string, err, right error) (ok bool) {
	t.Helper()
	if errors.Is(err, right) || right == nil && err == nil {
		return true
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%s: %v", what, err)
	}
	return false
}

var hostFaults = []testenv.LDAPFault{
	{Kind: testenv.Cut}, {Kind: testenv.Reset}, {Kind: testenv.HalfClose}, {Kind: testenv.Garbage},
	{Kind: testenv.Endless}, {Kind: testenv.BlackHole}, {Kind: testenv.Slow, Delay: 2 * time.Second},
}

// TestOneHostFails: while one good host is left, at most the one bind whose
// answer was lost is lost; whatever the first does, and after however many
// messages.
func TestOneHostFails(t *testing.T) {
	t.Parallel()
	h := behindProxies(t)
	for _, fault := range faultsOf() {
		t.Run(fmt.Sprintf("%s after %d", fault.Kind, fault.After), func(t *testing.T) {
			t.Parallel()
			first := testenv.StartLDAPProxy(t, h.slapd.URL, "", h.tls)
			d := h.open(t, first, h.second)
			if fault.After == 0 { // strikes connections of both pools
				if _, err := signIn(t.Context(), d, "pw-alice"); err != nil {
					t.Fatal(err)
				}
			}
			d.stop() // a check would find the host well again, and the next bind would be lost too
			first.Fail(fault)
			lost := 0
			for i := range operations(t) / boundaries {
				began := time.Now()
				_, err := signIn(t.Context(), d, "pw-alice")
				if !wantClean(t, "sign in", err, nil) {
					if lost++; !errors.Is(err, ErrLost) {
						t.Errorf("sign-in %d: %v", i, err)
					}
				}
				if took := time.Since(began); took > loginTime+time.Minute {
					t.Errorf("took %s", took)
				}
			}
			if lost > 1 {
				t.Errorf("%d sign-ins failed", lost)
			}
			d.Close()
			wantClosed(t, first)
		})
	}
}

// faultsOf are all faults at each of the first message boundaries.
func faultsOf() []testenv.LDAPFault {
	var all []testenv.LDAPFault
	for _, f := range hostFaults {
		for after := range boundaries {
			f.After = after
			all = append(all, f)
			if f.Kind == testenv.Slow {
				break
			}
		}
	}
	return all
}

// wantClosed waits until no connection to p is left.
func wantClosed(t *testing.T, p *testenv.LDAPProxy) {
	t.Helper()
	for end := time.Now().Add(time.Minute); p.Open() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are left", p.Open())
		}
	}
}

// TestOnlyHostFails: the answer is right or a clean ErrUnavailable, within the
// budget, and no connection is left over.
func TestOnlyHostFails(t *testing.T) {
	h := behindProxies(t)
	h.d.Close()
	before := sockets(t)
	t.Run("faults", func(t *testing.T) {
		for _, fault := range hostFaults {
			t.Run(string(fault.Kind), func(t *testing.T) {
				t.Parallel()
				p := testenv.StartLDAPProxy(t, h.slapd.URL, "", h.tls)
				right := 0
				for round := range 2 * boundaries {
					fault.After, fault.Delay = round, 10*time.Millisecond
					p.Fail(fault)
					d := h.open(t, p)
					within := 300 * time.Millisecond
					if fault.Kind == testenv.Slow && round == boundaries { // with that much time all get in
						within = time.Minute
					}
					right += signInsAtOnce(t, d, operations(t)/(2*boundaries), within)
					p.Fail(testenv.LDAPFault{})
					p.CloseAll()
					if round == boundaries {
						recovered(t, d)
					}
					d.Close()
					wantClosed(t, p)
				}
				t.Logf("%d of %d had the right answer", right, operations(t))
				if fault.Kind == testenv.Slow && right == 0 {
					t.Error("nobody got in")
				}
			})
		}
	})
	for end := time.Now().Add(time.Minute); sockets(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sockets, %d before", sockets(t), before)
		}
	}
}

// signInsAtOnce signs in n times at once, half of them with a wrong password,
// within some time.
func signInsAtOnce(t *testing.T, d *Directory, n int, within time.Duration) (right int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	began := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		wg.Go(func() {
			password, want := "pw-alice", error(nil)
			if i%2 == 1 {
				password, want = "wrong", ErrInvalidCredentials
			}
			_, err := signIn(ctx, d, password)
			if wantClean(t, "sign in", err, want) {
				mu.Lock()
				right++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > within+time.Minute {
		t.Errorf("took %s of %s", took, within)
	}
	return right
}

// recovered waits until d answers again.
func recovered(t *testing.T, d *Directory) {
	t.Helper()
	for end := time.Now().Add(2 * maxBackoff); ; time.Sleep(50 * time.Millisecond) {
		_, err := signIn(t.Context(), d, "pw-alice")
		if err == nil {
			return
		}
		if !errors.Is(err, ErrUnavailable) || time.Now().After(end) {
			t.Fatalf("after the fault: %v", err)
		}
	}
}

// sockets counts those of this process.
func sockets(t *testing.T) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(links) == 0 {
		testenv.Skip(t, "counting sockets needs /proc: run the test on Linux")
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// TestOpenBreaker: calls do not wait for a host that is known to be silent, and
// it is found again without one.
func TestOpenBreaker(t *testing.T) {
	t.Parallel()
	h := behindProxies(t)
	d := h.open(t, h.first)
	mustFind(t, d, "alice")
	h.first.Fail(testenv.LDAPFault{Kind: testenv.BlackHole})
	var err error
	for tries := 0; !errors.Is(err, errLeftAlone); tries++ { // a late call, or the trial that is due, counts for nothing
		if tries == 3*openAfter {
			t.Fatalf("it does not open: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		_, err = d.Find(ctx, "alice")
		cancel()
		wantErr(t, "whether the breaker is closed or open", err, ErrUnavailable)
	}
	h.first.Fail(testenv.LDAPFault{})
	waitFor(t, "a health check to find the host", d.known[0].healthy)
	mustFind(t, d, "alice")
}

// TestLateCall: one that comes with little time left says nothing of the host.
func TestLateCall(t *testing.T) {
	h := behindProxies(t)
	mustFind(t, h.d, "alice")
	h.first.Fail(testenv.LDAPFault{Kind: testenv.BlackHole})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	d := h.open(t, h.first)
	d.patience = time.Minute // a call that took so long would say something
	_, err := d.Find(ctx, "alice")
	wantErr(t, "Find", err, ErrUnavailable)
	if !d.known[0].healthy() {
		t.Error("the host is blamed")
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	h := behindProxies(t)
	d := h.open(t, h.first)
	d.searches.idle, d.binds.idle = 50*time.Millisecond, 50*time.Millisecond
	if _, err := signIn(t.Context(), d, "pw-alice"); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, h.first)
	if _, err := signIn(t.Context(), d, "pw-alice"); err != nil {
		t.Error(err)
	}
}

func TestWrongCertificateOfOneHost(t *testing.T) {
	t.Parallel()
	h := behindProxies(t)
	h.first.Certify(testenv.NewCA(t, t.TempDir()).ServerTLS(t))
	for range 20 {
		if _, err := signIn(t.Context(), h.d, "pw-alice"); err != nil {
			t.Fatal(err)
		}
	}
	if n := h.first.Requests()["bindRequest"]; n != 0 {
		t.Errorf("%d passwords went to the wrong host", n)
	}
	h.first.Certify(h.tls)
	waitFor(t, "the first host to be used again", func() bool {
		if _, err := signIn(t.Context(), h.d, "pw-alice"); err != nil {
			t.Fatal(err)
		}
		return h.first.Requests()["bindRequest"] > 1
	})
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestBindConnections: a connection serves one login after another, and one
// that the server closed in the meantime is replaced.
func TestBindConnections(t *testing.T) {
	h := behindProxies(t)
	h.d.stop()
	h.d.watching.Wait() // it reads patience, which changes below
	patient(h.d).patience = time.Minute
	p := mustFind(t, h.d, "alice")
	before := h.first.Accepted()
	for i := range 10 {
		if err := h.d.Bind(t.Context(), p.DN, "pw-alice"); err != nil {
			t.Fatalf("login %d: %v", i, err)
		}
		wantErr(t, "wrong password", h.d.Bind(t.Context(), p.DN, "no"), ErrInvalidCredentials)
	}
	if n := h.first.Accepted() - before; n != 1 {
		t.Errorf("%d connections for 20 binds", n)
	}
	h.first.CloseAll()
	waitFor(t, "the pool to see it", func() bool {
		return !slices.ContainsFunc(h.d.binds.free, func(c *conn) bool { return !c.IsClosing() })
	})
	if err := h.d.Bind(t.Context(), p.DN, "pw-alice"); err != nil {
		t.Errorf("after the server closed the connection: %v", err)
	}

	// One that is silent when it has waited is not trusted with a password.
	sent := h.first.Requests()["bindRequest"]
	c := h.d.binds.take(h.d.known[0])
	c.used = c.used.Add(-2 * trustIdle)
	h.d.binds.free = append(h.d.binds.free, c)
	h.first.Fail(testenv.LDAPFault{Kind: testenv.BlackHole})
	h.d.patience = patience
	if err := h.d.Bind(t.Context(), p.DN, "pw-alice"); err != nil {
		t.Errorf("a silent connection that waited: %v", err)
	}
	if n := h.first.Requests()["bindRequest"] - sent; n != 0 {
		t.Errorf("the password was sent to the silent host %d times", n)
	}
}

// TestServiceRefusalIsRemembered: asking on would lock the account.
func TestServiceRefusalIsRemembered(t *testing.T) {
	h := behindProxies(t)
	cfg := h.d.cfg
	cfg.BindPassword = "wrong"
	d := open(t, cfg)
	d.patience = time.Minute
	began := time.Now()
	for i := range 20 {
		err := d.Ping(t.Context())
		wantErr(t, "Ping", err, ErrUnavailable)
		wantErr(t, "Ping", err, errServiceBind)
		if i > 0 {
			continue
		}
		d.mu.Lock()
		if until := d.refusedUntil; until.Before(began.Add(firstRefusal)) || until.After(time.Now().Add(firstRefusal)) {
			t.Errorf("asked at %s, remembered until %s", began, until)
		}
		d.refusedUntil = began.Add(time.Hour) // however long the others take
		d.mu.Unlock()
	}
	if first, second := h.first.Requests()["bindRequest"], h.second.Requests()["bindRequest"]; first != 1 || second != 0 {
		t.Errorf("the password was sent %d and %d times", first, second)
	}
	d.mu.Lock()
	d.refusedUntil = time.Now() // the time is over
	d.mu.Unlock()
	wantErr(t, "Ping", d.Ping(t.Context()), errServiceBind)
	if n := h.first.Requests()["bindRequest"]; n != 2 || d.refusalTime != 2*firstRefusal {
		t.Errorf("sent %d times, remembered for %s", n, d.refusalTime)
	}
}

func TestBreaker(t *testing.T) {
	now := time.Now()
	h := &host{heard: now}
	if !h.healthy() || !h.admit(now) || h.due(now) || !h.due(now.Add(checkEvery)) {
		t.Error("a host that nothing is known of")
	}
	h.answered(now)
	for range openAfter + 5 { // at once, by many calls
		h.failed(now, true)
	}
	if h.healthy() || h.admit(now) || h.due(now) || h.backoff != firstBackoff {
		t.Errorf("it is not open: %+v", h)
	}
	later := now.Add(firstBackoff)
	if !h.admit(later) || h.admit(later) || h.due(later) {
		t.Error("half open it lets one call through")
	}
	for range 20 {
		later = later.Add(maxBackoff)
		h.failed(later, true)
	}
	if h.backoff != maxBackoff {
		t.Errorf("back-off %s", h.backoff)
	}
	h.answered(later)
	if !h.healthy() || !h.admit(later) || h.due(later) {
		t.Error("it is not closed")
	}
	h.failed(later.Add(maxBackoff), false)
	if h.backoff != maxBackoff || !h.admit(later.Add(maxBackoff)) {
		t.Error("one that comes and goes, but fails at once, may be tried")
	}
	h.failed(later.Add(5*maxBackoff), false)
	if h.backoff != firstBackoff {
		t.Error("long ago is forgiven")
	}
}

func TestSRV(t *testing.T) {
	t.Parallel()
	h := behindProxies(t)
	// The names of DNS are resolved by none here: only what is made of the answer counts.
	var asked []string
	records := []*net.SRV{{Target: "DC1.corp.example.", Port: 636}, {Target: "evil.example.", Port: 636}, {Target: "dc2.Corp.example.", Port: 1636}, {Target: "notcorp.example.", Port: 1}, {Target: ".", Port: 0}}
	var fails error
	cfg := h.d.cfg
	cfg.URLs, cfg.SRV = nil, "corp.example"
	newSRV := func(cfg Config) *Directory {
		d := open(t, cfg)
		d.stop() // else its checks ask DNS as well
		d.watching.Wait()
		d.lookupSRV = func(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
			asked = append(asked, "_"+service+"._"+proto+"."+name)
			return "", records, fails
		}
		return d
	}
	urls := func(d *Directory) (all []string) {
		hosts, err := d.resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			all = append(all, h.url)
		}
		return all
	}
	d := newSRV(cfg)
	want := []string{"ldaps://dc1.corp.example:636", "ldaps://dc2.corp.example:1636"}
	if got := urls(d); !slices.Equal(got, want) {
		t.Errorf("hosts %q", got)
	}
	urls(d)
	if !slices.Equal(asked, []string{"_ldaps._tcp.corp.example"}) {
		t.Errorf("asked for %q", asked)
	}
	broken := d.known[1]
	broken.failed(time.Now(), true)
	if hosts, _ := d.hosts(t.Context()); hosts[1] != broken {
		t.Error("a host that failed comes last")
	}
	records = []*net.SRV{records[2], records[0], {Target: "dc3.corp.example.", Port: 636}}
	d.resolved = time.Now().Add(-resolveEvery)
	if got := urls(d); !slices.Equal(got, []string{want[1], want[0], "ldaps://dc3.corp.example:636"}) || d.known[0] != broken {
		t.Errorf("hosts %q", got)
	}
	fails = errors.New("DNS is down")
	d.resolved = time.Now().Add(-resolveEvery)
	if got := urls(d); len(got) != 3 {
		t.Errorf("while DNS is down: %q", got)
	}
	wantErr(t, "Ping", newSRV(cfg).Ping(t.Context()), ErrUnavailable)

	records, fails = []*net.SRV{{Target: "localhost.", Port: uint16(testenv.FreePort(t))}, {Target: "localhost.", Port: port(t, h.second.Address)}}, nil
	cfg.SRV = "localhost"
	if _, err := signIn(t.Context(), newSRV(cfg), "pw-alice"); err != nil {
		t.Errorf("by SRV, the first host dead: %v", err)
	}
	records, cfg.SRV = []*net.SRV{{Target: "DC2.corp.example."}}, "corp.example"
	asked = nil
	cfg.StartTLS = true
	if got := urls(newSRV(cfg)); asked[0] != "_ldap._tcp.corp.example" || got[0] != "ldap://dc2.corp.example:0" {
		t.Errorf("%q, %q", asked, got)
	}
}

func port(t *testing.T, address string) uint16 {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(a.Port)
}
