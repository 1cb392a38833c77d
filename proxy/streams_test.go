package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/idp"
)

// watchServer sends what comes from events, and tells ended when a watch has gone.
type watchServer struct {
	events chan string
	began  chan struct{}
	ended  chan struct{}
}

func newWatchServer() *watchServer {
	return &watchServer{events: make(chan string), began: make(chan struct{}, 100), ended: make(chan struct{}, 100)}
}

func (s *watchServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	_ = http.NewResponseController(w).Flush()
	s.began <- struct{}{}
	defer func() { s.ended <- struct{}{} }()
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				return
			}
			_, _ = io.WriteString(w, e)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

const watchPath = "/api/v1/namespaces/a/pods?watch=true"

// TestWatchIsFlushedAtOnce: each event comes before the next one is made, and the end is
// the API server's.
func TestWatchIsFlushedAtOnce(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		s := newWatchServer()
		url, ca := startAPI(t, api, s)
		w := newWorld(t, url, ca)
		res := do(t, w.client(t, client), w.request(t, "GET", watchPath, nil)) // the head, before any event
		in := bufio.NewReader(res.Body)
		for _, e := range []string{"{}\n", strings.Repeat("x", 100_000) + "\n", "{\"a\":1}\n"} {
			s.events <- e
			if got, err := in.ReadString('\n'); got != e || err != nil {
				t.Fatalf("an event of %d bytes came as %d: %v", len(e), len(got), err)
			}
		}
		close(s.events)
		if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
			t.Errorf("at the end: %q %v", rest, err)
		}
	})
}

// TestStreamsAreCut: when a right ends, what is open ends as if the API server had ended
// it, and the API server is told.
func TestStreamsAreCut(t *testing.T) {
	night := Rule{Name: "no-lists", Effect: "deny", When: "verb == 'watch'"}
	for what, c := range map[string]struct {
		change func(*world)
		reason string
		stays  bool
	}{
		"the session ended":        {change: func(w *world) { w.people.end("s1", idp.ErrRefused) }, reason: "session"},
		"nothing is known":         {change: func(w *world) { w.people.end("s1", errTest) }, reason: "session"},
		"one look has no time":     {change: func(w *world) { w.people.stick(1, nil) }, stays: true},
		"refused, though late":     {change: func(w *world) { w.people.stick(1, idp.ErrRefused) }, reason: "session"},
		"two looks have no time":   {change: func(w *world) { w.people.stick(2, nil) }, reason: "session"},
		"a group was taken away":   {change: func(w *world) { w.people.regroup("s1", "corp:dev", "team ü") }, reason: "oncall, with comma"},
		"a group was added":        {change: func(w *world) { w.people.regroup("s1", append(alice().Groups, "more")...) }, stays: true},
		"a group that is denied":   {change: func(w *world) { w.people.regroup("s1", append(alice().Groups, "banned")...) }, reason: "no-banned"},
		"the person was renamed":   {change: func(w *world) { w.people.rename("s1", "alicia") }, reason: "username"},
		"another session ended":    {change: func(w *world) { w.people.end("s2", idp.ErrRefused) }, stays: true},
		"the cluster was removed":  {change: func(w *world) { w.use(t, w.clusters()[1:]...) }, reason: "removed"},
		"another API server":       {change: func(w *world) { w.url += "/"; w.use(t, w.clusters()...) }, reason: "anew"},
		"another cluster went":     {change: func(w *world) { w.use(t, w.clusters(banned)[:1]...) }, stays: true},
		"the same once more":       {change: func(w *world) { w.use(t, w.clusters(banned)...) }, stays: true},
		"a policy that refuses it": {change: func(w *world) { w.use(t, w.clusters(func(c *ClusterConfig) { c.Proxy.Policy = []Rule{night} })...) }, reason: "no-lists"},
		"draining":                 {change: func(w *world) { go w.proxy.Drain(t.Context()) }, reason: "stops"},
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(what+" "+protocol, func(t *testing.T) {
				t.Parallel()
				s := newWatchServer()
				url, ca := startAPI(t, "HTTP/2.0", s)
				w := newWorld(t, url, ca, banned)
				res := do(t, w.client(t, protocol), w.request(t, "GET", watchPath, nil))
				s.events <- "{}\n"
				in := bufio.NewReader(res.Body)
				if _, err := in.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				c.change(w)
				if !c.stays {
					if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
						t.Errorf("the end was not clean: %q %v", rest, err)
					}
					<-s.ended
					return
				}
				w.looked()
				go func() { s.events <- "{\"still\":\"open\"}\n" }()
				if got, err := in.ReadString('\n'); err != nil || got != "{\"still\":\"open\"}\n" {
					t.Errorf("%q %v", got, err)
				}
			})
		}
	}
}

// banned is a policy with a rule that one group alone meets.
func banned(c *ClusterConfig) {
	c.Proxy.Policy = []Rule{{Name: "no-banned", Effect: "deny", When: "'banned' in groups"}}
}

// looked waits until every stream was looked at twice since.
func (w *world) looked() {
	for n := w.people.checked(); w.people.checked() < n+2; {
		time.Sleep(20 * time.Millisecond)
	}
}

// TestCutIsInTheTrail: it says why.
func TestCutIsInTheTrail(t *testing.T) {
	s := newWatchServer()
	url, ca := startAPI(t, "HTTP/2.0", s)
	w := newWorld(t, url, ca)
	res := do(t, w.client(t, "HTTP/2.0"), w.request(t, "GET", watchPath, nil))
	<-s.began
	if n := w.proxy.Health()[0].Streams; n != 1 {
		t.Errorf("%d streams are open", n)
	}
	w.people.end("s1", idp.ErrRefused)
	read(t, res)
	w.quiet()
	w.proxy.Close()
	if events := w.trail.all(); len(events) != 1 || !strings.Contains(events[0].Reason, "session") {
		t.Errorf("the trail: %+v", events)
	}
}

// TestCutBeforeTheAnswer: a stream whose right ends while the API server has not answered
// yet is refused.
func TestCutBeforeTheAnswer(t *testing.T) {
	began := make(chan struct{})
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	}))
	w := newWorld(t, url, ca)
	go func() { <-began; w.people.end("s1", errTest) }()
	s := status(t, do(t, w.client(t, "HTTP/1.1"), w.request(t, "GET", watchPath, nil)), 503)
	if !strings.Contains(s.Message, "ended") || strings.Contains(s.Message, errTest.Error()) {
		t.Errorf("says %q, want that it ended and not the cause, which may be the store's", s.Message)
	}
}

// TestCutOfWhoReadsNothing: a client that does not read cannot hold a stream open.
func TestCutOfWhoReadsNothing(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			gone := make(chan struct{})
			url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(gone)
				b := make([]byte, 1<<16)
				for r.Context().Err() == nil {
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			}))
			w := newWorld(t, url, ca)
			do(t, w.client(t, protocol), w.request(t, "GET", "/api/v1/namespaces/a/pods/b/log?follow=true", nil))
			w.people.end("s1", idp.ErrRefused)
			<-gone
			for w.proxy.streams.len() > 0 {
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

func TestDrain(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "whole")
	}))
	w := newWorld(t, url, ca)
	c := w.client(t, "HTTP/2.0")
	drained, answered := make(chan struct{}), make(chan *http.Response)
	r := w.request(t, "GET", "/api/v1/nodes", nil)
	go func() {
		res, err := c.Do(r)
		if err != nil {
			t.Error(err)
		}
		answered <- res
	}()
	<-entered
	go func() { w.proxy.Drain(t.Context()); close(drained) }()
	for draining := false; !draining; time.Sleep(time.Millisecond) {
		w.proxy.streams.mu.Lock()
		draining = w.proxy.streams.draining
		w.proxy.streams.mu.Unlock()
	}
	status(t, do(t, c, w.request(t, "GET", watchPath, nil)), 503)
	select {
	case <-drained:
		t.Fatal("drained, with a request under way")
	default:
	}
	close(leave)
	if got := read(t, <-answered); got != "whole" {
		t.Errorf("a request under way got %q", got)
	}
	<-drained
}

// echoUpgrade switches to the protocol that it is asked for, says the early bytes at
// once, and then sends back what it gets until there is no more.
func echoUpgrade(early string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+
			"\r\nSet-Cookie: a=b\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"+early)
		_, _ = io.Copy(conn, rw)
		_, _ = io.WriteString(conn, "bye")
		_ = conn.(*tls.Conn).CloseWrite()
	}
}

// upgrade opens an upgraded connection as alice.
func (w *world) upgrade(t *testing.T, protocol, early string) (*tls.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn := w.dial(t)
	_, _ = io.WriteString(conn, "POST /k8s/clusters/prod/api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true HTTP/1.1\r\nHost: h\r\n"+
		"Authorization: Bearer alice-token\r\nContent-Length: 0\r\nConnection: keep-alive, Upgrade\r\nUpgrade: "+protocol+
		"\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"+early)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, in, res
}

func TestUpgradedBothWays(t *testing.T) {
	for _, protocol := range []string{"websocket", "SPDY/3.1", "WebSocket"} {
		t.Run(protocol, func(t *testing.T) {
			url, ca := startAPI(t, "HTTP/2.0", echoUpgrade("hello"))
			w := newWorld(t, url, ca)
			conn, in, res := w.upgrade(t, protocol, "early ")
			if res.StatusCode != 101 || res.Header.Get("Upgrade") != protocol || res.Header.Get("X-Stream-Protocol-Version") == "" || res.Header["Set-Cookie"] != nil {
				t.Fatalf("answer %d %v", res.StatusCode, res.Header)
			}
			data := strings.Repeat("0123456789", 100_000)
			go func() {
				_, _ = io.WriteString(conn, data)
				_ = conn.CloseWrite() // there is an answer after it
			}()
			if got, err := io.ReadAll(in); string(got) != "helloearly "+data+"bye" || err != nil {
				t.Errorf("%d bytes came back, the last %q: %v", len(got), got[max(0, len(got)-10):], err)
			}
			_ = conn.Close()
			w.quiet()
			w.proxy.Close()
			events := w.trail.all()
			for _, e := range events {
				if e.Outcome == "done" && e.Detail["bytes"] != "2000020" {
					t.Errorf("the trail says %s bytes", e.Detail["bytes"])
				}
			}
			if len(events) != 2 {
				t.Errorf("%d events in the trail, want one before and one after", len(events))
			}
		})
	}
}

func TestUpgradeRefusedByTheAPIServer(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no shells", http.StatusForbidden)
	}))
	w := newWorld(t, url, ca)
	_, in, res := w.upgrade(t, "SPDY/3.1", "GET /api HTTP/1.1\r\nHost: h\r\n\r\n") // which is a request of its own, without a token
	if got := read(t, res); res.StatusCode != 403 || got != "no shells\n" {
		t.Errorf("%d %q", res.StatusCode, got)
	}
	if res, err := http.ReadResponse(in, nil); err == nil && res.StatusCode != 404 && res.StatusCode != 418 {
		t.Errorf("what followed was answered %d", res.StatusCode)
	}
}

func TestUpgradedAreCut(t *testing.T) {
	for what, cut := range map[string]func(*world){
		"the session ended": func(w *world) { w.people.end("s1", idp.ErrRefused) },
		"drained": func(w *world) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			w.proxy.Drain(ctx)
		},
		"closed": func(w *world) { w.proxy.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				echoUpgrade("")(w, r)
				close(gone)
			}))
			w := newWorld(t, url, ca)
			_, in, _ := w.upgrade(t, "websocket", "x")
			if b, err := in.ReadByte(); b != 'x' || err != nil {
				t.Fatal(err)
			}
			cut(w)
			if rest, _ := io.ReadAll(in); len(rest) > 0 {
				t.Errorf("%q came after it", rest)
			}
			<-gone
			for w.proxy.streams.len() > 0 {
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

// TestUpgradedServerEnds: when the API server ends the connection, the client sees it.
func TestUpgradedServerEnds(t *testing.T) {
	url, ca := startAPI(t, "HTTP/2.0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nlast words")
		_ = conn.Close()
	}))
	w := newWorld(t, url, ca)
	_, in, _ := w.upgrade(t, "websocket", "")
	if got, err := io.ReadAll(in); string(got) != "last words" || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q %v", got, err)
	}
}

// TestBrokenWatchIsNoEnd: what the API server did not end properly does not look to the
// client as if it had.
func TestBrokenWatchIsNoEnd(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client, api string) {
		url, ca := startAPI(t, api, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "{}\n")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}))
		w := newWorld(t, url, ca)
		res := do(t, w.client(t, client), w.request(t, "GET", watchPath, nil))
		if got, err := io.ReadAll(res.Body); string(got) != "{}\n" || err == nil {
			t.Errorf("%q %v", got, err)
		}
	})
}
