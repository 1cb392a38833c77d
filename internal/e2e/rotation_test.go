package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestRotation has people at work at a real API server while the signing keys rotate,
// every 5 s, and in a soak of TABARD_SOAK_ROTATION every 20 s. Nobody is ever refused,
// also not by a rotation that an administrator begins, until one in an emergency.
func TestRotation(t *testing.T) {
	t.Parallel()
	lasts, long := soak(t, "TABARD_SOAK_ROTATION", 28*time.Second) // longer than what the API server caches hides a mistake
	every := 5 * time.Second
	if long {
		every = 20 * time.Second
	}
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	s := newServer(t, slapd, options{
		tokens: "{idTokenLifetime: 60s, minLifetime: 2s}",
		extra:  fmt.Sprintf("keys: {rotateEvery: %s, publishAhead: %s}", every, every/2),
	})
	s.start()
	k := startCluster(t, s, "kubernetes")
	carol := s.signIn("carol", "pw-carol")
	eventually(t, 2*time.Minute, "the API server knows the issuer", func() error { return pods(t, k, s.login("kubernetes", "alice", "pw-alice").IDToken) })

	w := newWorkload(s, k)
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	w.start(ctx)
	time.Sleep(lasts / 2)
	before := get(t, s.client(), s.issuer+"/keys").body
	carol.must("keys", "rotate")
	if after := kidsOf(t, get(t, s.client(), s.issuer+"/keys").body); !slices.Equal(after[:len(kidsOf(t, before))], kidsOf(t, before)) {
		t.Errorf("a planned rotation took keys away: %s, then %s", kidsOf(t, before), after)
	}
	w.done.Wait()
	w.report(t)
	if len(w.kids) < 3 {
		t.Errorf("only %d keys have signed", len(w.kids))
	}
	testEmergency(t, w, carol)
}

// workload are people who send requests to an API server with what they hold.
type workload struct {
	s      *server
	k      *testenv.KubeAPIServer
	client *http.Client
	people []*worker
	done   sync.WaitGroup

	mu       sync.Mutex
	answers  map[int]int
	kids     map[string]int // how many tokens each key signed
	troubles []string
}

// worker is one of them.
type worker struct {
	name string
	want int // the status of their requests: 200, or RBAC's 403
	tk   tokens
	// early is how long before the end of their token they fetch another.
	early time.Duration
}

func newWorkload(s *server, k *testenv.KubeAPIServer) *workload {
	pem, err := os.ReadFile(k.CAFile)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		s.t.Fatalf("read %s: %v", k.CAFile, err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16}
	s.t.Cleanup(transport.CloseIdleConnections)
	w := &workload{s: s, k: k, client: &http.Client{Transport: transport, Timeout: 2 * time.Minute}, answers: map[int]int{}, kids: map[string]int{}}
	for i, name := range []string{"alice", "bob", "carol", "dave", "alice"} {
		one := &worker{name: name, want: http.StatusForbidden, tk: s.login("kubernetes", name, "pw-"+name), early: time.Duration(56-4*i) * time.Second}
		if name == "alice" {
			one.want = http.StatusOK
		}
		if err := w.count(one.tk.IDToken); err != nil {
			s.t.Fatal(err)
		}
		w.people = append(w.people, one)
	}
	return w
}

// start lets everybody send ten requests a second until ctx ends.
func (w *workload) start(ctx context.Context) {
	for _, one := range w.people {
		w.done.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			client := w.s.client()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					w.request(client, one)
				}
			}
		})
	}
}

// request fetches another token when one is due, as kubectl would, and sends a request.
func (w *workload) request(client *http.Client, one *worker) {
	end, err := expiry(one.tk.IDToken)
	if err == nil && time.Until(end) < one.early {
		err = w.refresh(client, one)
	}
	status := 0
	if err == nil {
		status, err = w.ask(one.tk.IDToken)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[status]++
	if err != nil || status != one.want {
		w.troubles = append(w.troubles, fmt.Sprintf("%s: %d, %v", one.name, status, err))
	}
}

func (w *workload) refresh(client *http.Client, one *worker) error {
	tk, err := w.s.try(client, refresh("kubernetes", one.tk.RefreshToken))
	if err != nil || tk.status != http.StatusOK {
		return fmt.Errorf("refresh: %d %s, %w", tk.status, tk.Error, err)
	}
	one.tk = tk
	return w.count(tk.IDToken)
}

// count notes which key signed a token.
func (w *workload) count(token string) error {
	k, err := kid(token)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kids[k]++
	return err
}

// ask lists pods and returns the API server's status.
func (w *workload) ask(token string) (int, error) {
	req, err := http.NewRequest(http.MethodGet, w.k.URL+"/api/v1/namespaces/default/pods?limit=1", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// report fails the test if anybody got anything else than RBAC's answer.
func (w *workload) report(t *testing.T) {
	t.Helper()
	t.Logf("answers %v; tokens by key %v", w.answers, w.kids)
	if len(w.troubles) > 0 {
		t.Errorf("%d troubles, the first: %s", len(w.troubles), w.troubles[:min(5, len(w.troubles))])
	}
	if w.answers[http.StatusOK] == 0 || w.answers[http.StatusForbidden] == 0 {
		t.Errorf("nobody was at work: %v", w.answers)
	}
}

// testEmergency holds `tabard keys rotate --emergency` to what it says: tokens given out
// before are refused once the API server has met a new one, and nobody is signed out.
func testEmergency(t *testing.T, w *workload, carol admin) {
	alice := w.people[0]
	alice.tk = w.s.mustRefresh("kubernetes", alice.tk.RefreshToken)
	seen := alice.tk.IDToken // the API server's cache of tokens holds it for 10 s
	alice.tk = w.s.mustRefresh("kubernetes", alice.tk.RefreshToken)
	unseen := alice.tk.IDToken
	if status, err := w.ask(seen); status != http.StatusOK {
		t.Fatalf("before the emergency: %d, %v", status, err)
	}
	before := kidsOf(t, get(t, w.s.client(), w.s.issuer+"/keys").body)

	carol.must("keys", "rotate", "--emergency", "--yes")
	carol.must("groups", "list") // the token that it holds is dead, the login is not
	for _, k := range kidsOf(t, get(t, w.s.client(), w.s.issuer+"/keys").body) {
		if slices.Contains(before, k) {
			t.Errorf("key %s is still published", k)
		}
	}
	for _, one := range w.people {
		one.tk = w.s.mustRefresh("kubernetes", one.tk.RefreshToken)
		if status, err := w.ask(one.tk.IDToken); status != one.want {
			t.Errorf("%s after the emergency: %d, %v", one.name, status, err)
		}
	}
	w.mustRefuse(t, unseen, 0)
	w.mustRefuse(t, seen, 30*time.Second)
}

// mustRefuse wants 401 for a token that has not ended, within some time.
func (w *workload) mustRefuse(t *testing.T, token string, within time.Duration) {
	t.Helper()
	end, err := expiry(token)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(within); ; time.Sleep(250 * time.Millisecond) {
		status, err := w.ask(token)
		if !time.Now().Before(end) {
			t.Fatalf("the token ended before it was refused, last with %d, %v", status, err)
		}
		if status == http.StatusUnauthorized {
			return
		}
		if !time.Now().Before(deadline) {
			t.Fatalf("a token of a key that is gone: %d, %v", status, err)
		}
	}
}
