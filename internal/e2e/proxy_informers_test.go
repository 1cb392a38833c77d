package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// ledger is what an informer has told: each object's resource version, by name.
type ledger struct {
	name string

	mu       sync.Mutex
	have     map[string]string
	events   int
	troubles []string
}

func (l *ledger) OnAdd(obj any, _ bool) { l.enter("", obj.(*corev1.ConfigMap)) }
func (l *ledger) OnUpdate(old, now any) {
	l.enter(old.(*corev1.ConfigMap).ResourceVersion, now.(*corev1.ConfigMap))
}

// enter notes an object that was at the version was, "" when it is new.
func (l *ledger) enter(was string, o *corev1.ConfigMap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if was == o.ResourceVersion {
		return // only listed again
	}
	from, _ := strconv.Atoi(was)
	to, err := strconv.Atoi(o.ResourceVersion)
	if l.have[o.Name] != was || to <= from || err != nil {
		l.troubles = append(l.troubles, fmt.Sprintf("%s from %q to %q, and it was at %q", o.Name, was, o.ResourceVersion, l.have[o.Name]))
	}
	l.have[o.Name] = o.ResourceVersion
	l.events++
}

func (l *ledger) OnDelete(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := obj.(*corev1.ConfigMap).Name
	if _, ok := l.have[name]; !ok {
		l.troubles = append(l.troubles, name+" deleted, and it was not there")
	}
	delete(l.have, name)
	l.events++
}

// is compares with what there is.
func (l *ledger) is(truth map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !maps.Equal(l.have, truth) {
		return fmt.Errorf("%s: %d objects in place of %d, or older ones", l.name, len(l.have), len(truth))
	}
	return nil
}

// inform runs an informer with a client of its own until ctx ends.
func inform(ctx context.Context, t *testing.T, done *sync.WaitGroup, name string, config *rest.Config) *ledger {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{name: name, have: map[string]string{}}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace("team"))
	informer := factory.Core().V1().ConfigMaps().Informer()
	if _, err := informer.AddEventHandler(l); err != nil {
		t.Fatal(err)
	}
	done.Go(func() { informer.RunWithContext(ctx) })
	return l
}

// informersOf are alice's clients: by host and by path, HTTP/2 and HTTP/1.1, protobuf and
// JSON.
func informersOf(ctx context.Context, t *testing.T, done *sync.WaitGroup, alice *member) (all []*ledger) {
	t.Helper()
	for _, byHost := range []bool{true, false} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			config := alice.rest()
			if !byHost {
				config.Host, config.Dial = alice.url, nil
			}
			config.NextProtos = []string{protocol}
			if byHost == (protocol == "h2") {
				config.ContentType = "application/vnd.kubernetes.protobuf"
			}
			all = append(all, inform(ctx, t, done, fmt.Sprintf("%s %s %s", config.Host, protocol, config.ContentType), config))
		}
	}
	return all
}

// change creates, changes and deletes objects past the proxy until ctx ends. What fails
// while the API server is away may have been done or not.
func change(ctx context.Context, client kubernetes.Interface, r *rand.Rand, changed *atomic.Int64) {
	maps, tick := client.CoreV1().ConfigMaps("team"), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		once, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("o-%02d", r.IntN(60))}, Data: map[string]string{"n": strconv.Itoa(i)}}
		var err error
		switch r.IntN(4) {
		case 0:
			err = maps.Delete(once, o.Name, metav1.DeleteOptions{})
		case 1:
			_, err = maps.Create(once, o, metav1.CreateOptions{})
		default:
			_, err = maps.Update(once, o, metav1.UpdateOptions{})
		}
		cancel()
		if err == nil {
			changed.Add(1)
		}
	}
}

// trouble restarts the API server, Tabard or its configuration, in turns, in one of
// several ways.
func (p *proxied) trouble(t *testing.T, turn int, r *rand.Rand) string {
	t.Helper()
	kill := r.IntN(2) == 0
	switch {
	case turn%3 == 0 && kill:
		p.k.Kill()
	case turn%3 == 0:
		p.k.Stop()
	case turn%3 == 1 && kill:
		p.Kill()
	case turn%3 == 1:
		p.Stop()
	}
	switch turn % 3 {
	case 0:
		p.k.Start(t)
		return "API server"
	case 1:
		p.start()
		return "tabard"
	}
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	return "reload"
}

// TestProxyInformers has client-go's informers follow objects through the proxy while
// everything is started again, for a minute, or for TABARD_SOAK_PROXY. Nothing is told
// twice, and in the end each knows exactly what there is.
func TestProxyInformers(t *testing.T) {
	t.Parallel()
	lasts, long := soak(t, "TABARD_SOAK_PROXY", time.Minute)
	seed := uint64(7)
	if long {
		seed = uint64(time.Now().UnixNano())
	}
	p := startProxied(t, options{tokens: "{idTokenLifetime: 2h}"})
	config := p.k.RESTConfig()
	config.QPS = -1 // no limit
	admin, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var done, writing sync.WaitGroup
	defer func() { stop(); done.Wait() }()
	all := informersOf(ctx, t, &done, p.member("alice"))
	write, written := context.WithCancel(ctx)
	defer written()
	var changed atomic.Int64
	writing.Go(func() { change(write, admin, rand.New(rand.NewPCG(seed, 1)), &changed) })
	r, troubles, began := rand.New(rand.NewPCG(seed, 2)), map[string]int{}, time.Now()
	enough := func() bool { return changed.Load() >= 50 && troubles["API server"] > 0 && troubles["tabard"] > 0 }
	for turn := 0; time.Since(began) < lasts || !enough() && time.Since(began) < lasts+5*time.Minute; turn++ {
		time.Sleep(time.Duration(1000+r.IntN(3000)) * time.Millisecond)
		troubles[p.trouble(t, turn, r)]++
	}
	written()
	writing.Wait()
	t.Logf("seed %d: %d changes, restarts: %v", seed, changed.Load(), troubles)
	if !enough() {
		t.Error("too little happened")
	}
	for _, l := range all {
		eventually(t, 3*time.Minute, "an informer knows what there is", func() error { // it may wait for a minute after a failure
			list, err := admin.CoreV1().ConfigMaps("team").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			truth := map[string]string{}
			for _, o := range list.Items {
				truth[o.Name] = o.ResourceVersion
			}
			return l.is(truth)
		})
		l.report(t)
	}
}

// report fails the test for what an informer told that cannot be.
func (l *ledger) report(t *testing.T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.Logf("%s: %d events", l.name, l.events); len(l.troubles) > 0 {
		t.Errorf("%s: %d troubles, the first: %s", l.name, len(l.troubles), l.troubles[:min(3, len(l.troubles))])
	}
}
