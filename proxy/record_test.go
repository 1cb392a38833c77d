package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apiserver/pkg/endpoints/request"
	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// faulty is a trail that works, or fails in one of the ways that a trail can.
type faulty struct {
	mu     sync.Mutex
	mode   string // "", before, after, hang or starts: then only what is intended fails, the rest takes a second
	events []audit.Event
}

var errDisk = errors.New("no space left on device")

func (f *faulty) AppendAll(ctx context.Context, events []audit.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mode == "starts" {
		if events[0].Outcome == audit.Intended {
			return errDisk
		}
		f.mu.Unlock()
		time.Sleep(time.Second)
		f.mu.Lock()
		f.mode = ""
	}
	if f.mode == "" || f.mode == "after" {
		f.events = append(f.events, slices.Clone(events)...)
	}
	switch f.mode {
	case "hang":
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return ctx.Err()
	case "":
		return nil
	}
	return errDisk
}

func (f *faulty) become(mode string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode = mode
}

// times is how often an event with that outcome and audit id was written.
func (f *faulty) times(outcome, auditID string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if e.Outcome == outcome && e.Detail["auditID"] == auditID {
			n++
		}
	}
	return n
}

func (f *faulty) acts() (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		list = append(list, e.Act+" "+e.Outcome)
	}
	return list
}

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// aCall is one that was allowed and answered.
func aCall(verb, id string) *call {
	return &call{
		cluster: &cluster{entry: entry{cfg: ClusterConfig{Name: "prod"}}}, who: idp.Identity{Sub: "corp.1", Username: "alice", Session: "s1", JTI: "j1"},
		info:     &request.RequestInfo{IsResourceRequest: true, Verb: verb, APIGroup: "apps", Resource: "deployments", Subresource: "scale", Namespace: "a", Name: "web"},
		decision: Decision{Allowed: true}, auditID: id, started: time.Now(), status: 200,
	}
}

func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		name         string
		change       func(*call)
		outcome, why string
	}{
		{"answered", func(*call) {}, audit.Done, ""},
		{"refused by a rule", func(c *call) {
			c.status, c.refused, c.decision = 403, "the whole message", Decision{Rule: "r", Reason: "at night"}
		}, audit.Denied, "at night"},
		{"refused by a rule without a reason", func(c *call) { c.status, c.refused, c.decision = 403, "the whole message", Decision{Rule: "r"} }, audit.Denied, "the whole message"},
		{"refused before the policy", func(c *call) { c.status, c.refused, c.decision = 400, "groups without a user", Decision{} }, audit.Denied, "groups without a user"},
		{"refused by RBAC", func(c *call) { c.status = 403 }, audit.Denied, "the API server answered 403"},
		{"not found", func(c *call) { c.status = 404 }, audit.Failed, "the API server answered 404"},
		{"no API server", func(c *call) { c.status, c.refused = 502, "cannot be reached" }, audit.Failed, "cannot be reached"},
		{"no trail", func(c *call) { c.status, c.refused = 503, "cannot be recorded" }, audit.Failed, "cannot be recorded"},
		{"a client that went away", func(c *call) { c.status = 0 }, audit.Failed, "there was no answer"},
		{"a stream that was cut", func(c *call) { c.cut = "the session ended" }, audit.Done, "the session ended"},
		{"an exec that ended", func(c *call) { c.status = 101 }, audit.Done, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := aCall("get", "1")
			c.change(call)
			if e := call.event(context.Background(), call.outcome()); e.Outcome != c.outcome || e.Reason != c.why {
				t.Errorf("%s: %q", e.Outcome, e.Reason)
			}
		})
	}
}

// What is recorded, and when, by verb, level and what came of it.
func TestWhatIsRecorded(t *testing.T) {
	for _, c := range []struct {
		name       string
		verb       string
		change     func(*call)
		start, end bool
	}{
		{"get", "get", nil, false, true},
		{"list", "list", nil, false, true},
		{"watch", "watch", nil, false, true},
		{"create", "create", nil, true, true},
		{"delete", "delete", nil, true, true},
		{"deletecollection", "deletecollection", nil, true, true},
		{"a verb that nobody knows", "frobnicate", nil, true, true},
		{"proxy", "proxy", nil, true, true},
		{"an upgrade", "get", func(c *call) { c.upgrade = true }, true, true},
		{"as somebody else", "get", func(c *call) { c.as = &impersonation{User: "bob"} }, true, true},
		{"a get at full", "get", func(c *call) { c.level = auditFull }, true, true},
		{"a get at none", "get", func(c *call) { c.level = auditNone }, false, false},
		{"a create at none", "create", func(c *call) { c.level = auditNone }, false, false},
		{"an upgrade at none", "get", func(c *call) { c.level, c.upgrade = auditNone, true }, false, false},
		{"as somebody else at none", "get", func(c *call) { c.level, c.as = auditNone, &impersonation{User: "bob"} }, true, true},
		{"refused at none", "get", func(c *call) { c.level, c.decision = auditNone, Decision{Rule: "r"} }, false, true},
		{"failed here at none", "get", func(c *call) { c.level, c.refused = auditNone, "no" }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := aCall(c.verb, "1")
			if c.change != nil {
				c.change(call)
			}
			if call.recordedAtStart() != c.start || call.recordedAtEnd() != c.end {
				t.Errorf("at start %v, at end %v", call.recordedAtStart(), call.recordedAtEnd())
			}
		})
	}
}

func TestEvent(t *testing.T) {
	ctx := audit.WithOrigin(context.Background(), audit.Origin{Address: "192.0.2.1", UserAgent: "kubectl", RequestID: "r1"})
	c := aCall("update", "a1")
	c.bytes, c.as = 17, &impersonation{User: "bob", UID: "u", Groups: []string{"a", "b"}}
	c.decision = Decision{Allowed: true, Rule: "teams", DryRun: []string{"x", "y"}}
	got := c.event(ctx, audit.Done)
	want := audit.Event{
		Act: "k8s.request", Who: "corp.1", Name: "alice", On: "update deployments.apps/scale a/web", Outcome: "done", Address: "192.0.2.1", UserAgent: "kubectl",
		RequestID: "r1", Session: "s1", JTI: "j1", Cluster: "prod", Soon: true,
		Detail: map[string]string{
			"auditID": "a1", "rule": "teams", "dryRun": "x y", "as": "bob", "asUID": "u", "asGroups": "a b", "verb": "update", "apiGroup": "apps", "resource": "deployments",
			"subresource": "scale", "namespace": "a", "name": "web", "status": "200", "bytes": "17", "ms": got.Detail["ms"],
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if start := c.event(ctx, audit.Intended); start.Detail["status"] != "" || start.Reason != "" || start.Outcome != audit.Intended {
		t.Errorf("at the start: %+v", start)
	}
}

func TestObject(t *testing.T) {
	for want, i := range map[string]*request.RequestInfo{
		"":                             nil,
		"get /healthz":                 {Verb: "get", Path: "/healthz"},
		"list pods":                    {IsResourceRequest: true, Verb: "list", Resource: "pods"},
		"list pods a/":                 {IsResourceRequest: true, Verb: "list", Resource: "pods", Namespace: "a"},
		"get nodes n1":                 {IsResourceRequest: true, Verb: "get", Resource: "nodes", Name: "n1"},
		"create pods/exec a/web":       {IsResourceRequest: true, Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "a", Name: "web"},
		"patch deployments.apps a/web": {IsResourceRequest: true, Verb: "patch", Resource: "deployments", APIGroup: "apps", Namespace: "a", Name: "web"},
	} {
		if got := object(i); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// While the trail cannot be written nothing begins, and what ended is written later.
func TestBrokenTrail(t *testing.T) {
	for _, mode := range []string{"before", "after", "hang"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				trail := &faulty{}
				r := newRecorder(trail, quiet())
				ctx, gone := context.WithCancel(t.Context())
				gone() // a client that went away changes nothing
				if err := r.begin(ctx, aCall("create", "1")); err != nil || trail.times(audit.Intended, "1") != 1 {
					t.Fatal(err, trail.acts())
				}
				trail.become(mode)
				if err := r.begin(ctx, aCall("get", "2")); err != nil {
					t.Fatal("a read did not have to wait for the trail: ", err)
				}
				r.end(ctx, aCall("get", "2"))
				time.Sleep(2 * writeTimeout)
				for _, verb := range []string{"get", "watch", "create"} {
					if err := r.begin(ctx, aCall(verb, "3")); !errors.Is(err, errTrail) {
						t.Errorf("%s: %v", verb, err)
					}
				}
				trail.become("")
				time.Sleep(writeTimeout + 2*retryEvery)
				if err := r.begin(ctx, aCall("create", "4")); err != nil {
					t.Error(err)
				}
				r.Close()
				if n := trail.times(audit.Done, "2"); n < 1 || n > 1 && mode != "after" {
					t.Errorf("written %d times: %v", n, trail.acts())
				}
				if !slices.Contains(trail.acts(), "k8s.trail done") {
					t.Errorf("the trail does not say that it was broken: %v", trail.acts())
				}
			})
		})
	}
}

// A mutation that could not be recorded closes the door for all, until a probe is written.
func TestBeginFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail := &faulty{mode: "before"}
		r := newRecorder(trail, quiet())
		defer r.Close()
		if err := r.begin(t.Context(), aCall("create", "1")); !errors.Is(err, errTrail) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := r.begin(t.Context(), aCall("get", "2")); !errors.Is(err, errTrail) {
			t.Fatal(err)
		}
		trail.become("")
		time.Sleep(2 * retryEvery)
		if err := r.begin(t.Context(), aCall("get", "3")); err != nil {
			t.Fatal(err)
		}
		if got := trail.acts(); !reflect.DeepEqual(got, []string{"k8s.trail done"}) {
			t.Error(got)
		}
	})
}

// What was written is not written again because something else failed at the same time.
func TestWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail := &faulty{mode: "starts"}
		r := newRecorder(trail, quiet())
		r.end(t.Context(), aCall("get", "1"))
		time.Sleep(2 * gather) // it is being written
		if err := r.begin(t.Context(), aCall("create", "2")); !errors.Is(err, errTrail) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		r.Close()
		if got := trail.acts(); !reflect.DeepEqual(got, []string{"k8s.request done", "k8s.trail done"}) {
			t.Error(got)
		}
	})
}

// Requests that end while the queue is full wait, and nothing is dropped.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail := &faulty{mode: "before"}
		r := newRecorder(trail, quiet())
		var wg sync.WaitGroup
		const n = maxQueued + 3*maxTogether
		var done int
		var mu sync.Mutex
		for i := range n {
			wg.Go(func() {
				c := aCall("get", fmt.Sprint(i))
				c.begun = true
				r.end(t.Context(), c)
				mu.Lock()
				done++
				mu.Unlock()
			})
		}
		synctest.Wait()
		time.Sleep(time.Minute)
		mu.Lock()
		if done < maxQueued || done > maxQueued+2*maxTogether {
			t.Errorf("%d of %d did not wait", done, n)
		}
		mu.Unlock()
		trail.become("")
		wg.Wait()
		r.Close()
		seen := map[string]int{}
		for _, e := range trail.events {
			seen[e.Detail["auditID"]]++
		}
		if delete(seen, ""); len(seen) != n || len(trail.events) != n+1 {
			t.Errorf("%d calls in %d events", len(seen), len(trail.events))
		}
	})
}

// TestRefusedDoNotWait: while the trail is broken every request is refused, for hours
// maybe: those that wait to say so would pile up without end.
func TestRefusedDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail := &faulty{mode: "before"}
		r := newRecorder(trail, quiet())
		var wg sync.WaitGroup
		var ended atomic.Int64
		for i := range maxQueued + 3*maxTogether {
			c := aCall("delete", fmt.Sprint(i))
			if r.begin(t.Context(), c) == nil {
				t.Fatal("let on while the trail is broken")
			}
			c.refused, c.status = "not now", 503
			wg.Go(func() {
				r.end(t.Context(), c)
				ended.Add(1)
			})
		}
		synctest.Wait()
		if n := ended.Load(); n != maxQueued+3*maxTogether {
			t.Errorf("only %d did not wait", n)
		}
		trail.become("")
		wg.Wait()
		time.Sleep(time.Minute)
		r.Close()
		written, missed := 0, 0
		for _, e := range trail.events {
			if e.Act != "k8s.trail" {
				written++
			} else if n, err := strconv.Atoi(e.Detail["missed"]); err == nil {
				missed += n
			}
		}
		if written < maxQueued || written+missed != maxQueued+3*maxTogether {
			t.Errorf("%d written, %d counted, of %d", written, missed, maxQueued+3*maxTogether)
		}
	})
}

// Close ends though the trail never answers, and lets go of who waits for room.
func TestCloseWithBrokenTrail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(&faulty{mode: "hang"}, quiet())
		var wg sync.WaitGroup
		for i := range maxQueued + 3*maxTogether {
			wg.Go(func() { r.end(t.Context(), aCall("get", fmt.Sprint(i))) })
		}
		synctest.Wait()
		start := time.Now()
		r.Close()
		wg.Wait()
		r.Close()
		if took := time.Since(start); took > closeTimeout+writeTimeout {
			t.Errorf("took %s", took)
		}
	})
}

// What ends after Close is written all the same, as long as there is a trail.
func TestEndAfterClose(t *testing.T) {
	trail := &faulty{}
	r := newRecorder(trail, quiet())
	r.Close()
	r.end(t.Context(), aCall("get", "1"))
	if trail.times(audit.Done, "1") != 1 {
		t.Error(trail.acts())
	}
}

// step is one of a random story.
type step struct {
	What string
	Wait time.Duration
}

// Whatever the trail does: nothing that changes something goes on without a record, and
// everything that ended is in the trail, once it works again.
func TestRecorderStories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		story := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				rapid.SampledFrom([]string{"get", "create", "get", "create", "works", "before", "after", "hang"}).Draw(rt, "what"),
				rapid.SampledFrom([]time.Duration{0, time.Millisecond, gather, retryEvery, writeTimeout, 20 * time.Second}).Draw(rt, "wait"),
			}
		}), 1, 40).Draw(rt, "story")
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = tell(t, story) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// tell plays a story and says what was wrong.
func tell(t *testing.T, story []step) string {
	trail := &faulty{}
	r := newRecorder(trail, quiet())
	var ended []string
	twice := false // an event may be
	for i, s := range story {
		time.Sleep(s.Wait)
		id := fmt.Sprint(i)
		switch s.What {
		case "works":
			trail.become("")
		case "before", "after", "hang":
			trail.become(s.What)
			twice = twice || s.What == "after"
		default:
			c := aCall(s.What, id)
			err := r.begin(t.Context(), c)
			if err == nil && s.What == "create" && trail.times(audit.Intended, id) != 1 {
				r.Close()
				return "a create was let through without a record"
			}
			if err != nil {
				c.status, c.refused = 503, err.Error()
			}
			r.end(t.Context(), c)
			ended = append(ended, id+" "+c.outcome())
		}
	}
	trail.become("")
	time.Sleep(writeTimeout + 3*retryEvery)
	err := r.begin(t.Context(), aCall("create", "last"))
	r.Close()
	if err != nil {
		return "does not get well again"
	}
	for _, e := range ended {
		id, outcome, _ := strings.Cut(e, " ")
		if n := trail.times(outcome, id); n < 1 || n > 1 && !twice {
			return fmt.Sprintf("%s was written %d times", e, n)
		}
	}
	return ""
}

// The real trail takes what the recorder makes.
func TestRealTrail(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	log, err := audit.Open(audit.Config{Dir: dir, KeyFile: filepath.Join(t.TempDir(), "audit.key")})
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(log, quiet())
	for i := range 300 {
		c := aCall("create", fmt.Sprint(i))
		if err := r.begin(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		r.end(t.Context(), c)
	}
	r.Close()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	if _, err := audit.Search(t.Context(), []string{dir}, audit.Query{}, func(e audit.Event) error { seen[e.Act+" "+e.Outcome]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if seen["k8s.request intended"] != 300 || seen["k8s.request done"] != 300 {
		t.Error(seen)
	}
}

// BenchmarkRecord is what a request pays for the trail, on disk.
func BenchmarkRecord(b *testing.B) {
	for _, verb := range []string{"get", "update"} {
		b.Run(verb, func(b *testing.B) {
			log, err := audit.Open(audit.Config{Dir: filepath.Join(b.TempDir(), "audit"), KeyFile: filepath.Join(b.TempDir(), "audit.key")})
			if err != nil {
				b.Fatal(err)
			}
			r := newRecorder(log, quiet())
			ctx := audit.WithOrigin(context.Background(), audit.Origin{Address: "192.0.2.1", UserAgent: "kubectl/v1.36.3 (linux/amd64) kubernetes/8e1b5f0", RequestID: "0f8e7d6c5b4a39281706f5e4"})
			c := aCall(verb, "5f3a8e4e-7a0b-4a46-8d1e-6d2f4b0c9a11")
			b.ReportAllocs()
			cpu := cpuTime()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := r.begin(ctx, c); err != nil {
						b.Error(err)
					}
					r.end(ctx, c)
				}
			})
			r.Close()
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
			if err := log.Close(); err != nil {
				b.Error(err)
			}
		})
	}
}
