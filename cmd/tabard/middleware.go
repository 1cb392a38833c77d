package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/idp/provider"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/web"
)

// requestDeadline bounds the work for one request.
const requestDeadline = 30 * time.Second

// ServeHTTP is what every request passes first. A watch has its frame on the stack for
// hours, so it is a small one: Go makes a stack of 16 KiB one of 8 only where less than a
// quarter of it is used.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.proxy.Handles(r) {
		s.serveProxied(w, r)
		return
	}
	s.serveOwn(w, r)
}

// serveOwn answers what is not for the proxy: an id, its origin for the audit trail, a
// deadline, the access log and metrics, and an answer after a panic.
func (s *server) serveOwn(w http.ResponseWriter, r *http.Request) {
	origin := s.originOf(r)
	a := s.acquire()
	defer s.release(a)
	w.Header().Set("X-Request-Id", origin.RequestID)
	path := r.URL.Path // as it came: handlers may change r
	limit := cmp.Or(web.TimeFor(strings.TrimPrefix(path, a.base)), requestDeadline)
	ctx, cancel := context.WithTimeout(audit.WithOrigin(r.Context(), origin), limit)
	defer cancel()
	rec, start := &recorder{ResponseWriter: w}, time.Now()
	defer func() {
		s.finish(rec, routeClass(strings.TrimPrefix(path, a.base)), recover(), func() logrus.Fields { return requestFields(r, path, origin, start) })
	}()
	a.handler.ServeHTTP(rec, r.WithContext(ctx))
}

// originOf says where a request comes from, and gives it an id.
func (s *server) originOf(r *http.Request) audit.Origin {
	a := s.acquire()
	trusted := a.cfg.proxies
	s.release(a)
	return audit.Origin{Address: clientAddress(r, trusted), UserAgent: clipBytes(r.UserAgent(), 256), RequestID: requestID()}
}

// requestFields are what the log has of a request. Query strings hold codes, so they are
// not among it.
func requestFields(r *http.Request, path string, origin audit.Origin, start time.Time) logrus.Fields {
	return logrus.Fields{
		"request": origin.RequestID, "address": origin.Address, "method": clipBytes(r.Method, 16),
		"path": clipBytes(path, 256), "ms": time.Since(start).Milliseconds(),
	}
}

// finish logs and counts an answer; panicked is what the handler panicked with. What
// machines ask for all the time is logged at debug.
func (s *server) finish(w *recorder, class string, panicked any, fields func() logrus.Fields) {
	if panicked != nil && panicked != http.ErrAbortHandler {
		s.log.WithFields(fields()).Errorf("panic: %v\n%s", panicked, debug.Stack())
		if w.status == 0 {
			http.Error(w, "Something went wrong here. The cause is in the server's log.", http.StatusInternalServerError)
		}
	}
	s.metrics.requests.WithLabelValues(class, strconv.Itoa(w.code())).Inc()
	level := logrus.InfoLevel
	switch class {
	case "health", "keys", "discovery", "assets", "tokenreview", "proxy":
		level = logrus.DebugLevel
	}
	if s.log.IsLevelEnabled(level) {
		s.log.WithFields(fields()).WithField("status", w.code()).Log(level, "request")
	}
	if panicked == http.ErrAbortHandler {
		panic(panicked)
	}
}

// routeClass groups paths for the metrics, so that nobody can make new series.
func routeClass(path string) string {
	if strings.HasPrefix(path, provider.ReviewPath) {
		return "tokenreview"
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "healthz", "readyz":
		return "health"
	case ".well-known":
		return "discovery"
	case "keys", "authorize", "token", "userinfo", "device_authorization", "revoke", "introspect", "logout", "api", "assets":
		return first
	}
	return "pages"
}

// requestID is 64 random bits.
func requestID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// clipBytes cuts s to at most n bytes of valid UTF-8.
func clipBytes(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// clientAddress is where a request came from: the peer, or, when that is a
// trusted proxy, the rightmost address of X-Forwarded-For that is not one. What
// cannot be read ends the walk, since everything to its left could be made up.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	client, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(client, trusted); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		client = hop
	}
	return client.Unmap().WithZone("").String()
}

func isTrusted(a netip.Addr, trusted []netip.Prefix) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Hijack implements http.Hijacker: what is taken over has switched to another protocol.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buf, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}
