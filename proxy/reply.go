package proxy

import (
	"bufio"
	"net"
	"net/http"
	"sync/atomic"
)

// reply is the client's side of an answer: it counts, and drops what may not reach the
// client.
type reply struct {
	http.ResponseWriter
	call   *call
	own    bool    // given under the issuer's own host
	stream *stream // nil for what ends by itself
	begun  bool
}

// Unwrap lets http.ResponseController reach the connection.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *reply) WriteHeader(code int) {
	if code == http.StatusSwitchingProtocols {
		return // an upgrade takes the connection over instead: over HTTP/2 it is no answer, and nobody asked for it
	}
	h := w.Header()
	stripAnswer(h, w.own)
	if code >= 200 {
		w.call.status, w.begun = code, true
		if _, ok := h["Content-Type"]; !ok {
			h["Content-Type"] = nil // or net/http would guess one
		}
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *reply) Write(b []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(b)
	w.call.bytes += int64(n)
	return n, err
}

// pass writes what is not to wait for more.
func (w *reply) pass(rc *http.ResponseController, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return err
	}
	return rc.Flush()
}

// Hijack implements http.Hijacker, for upgrades.
func (w *reply) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.begun = true
	w.call.status = http.StatusSwitchingProtocols
	up := &upgraded{Conn: conn, early: rw.Reader, n: &w.call.upgraded}
	if err := w.stream.upgraded(conn); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return up, rw, nil
}

// upgraded is the client's side of an upgraded connection.
type upgraded struct {
	net.Conn
	early *bufio.Reader // what came before the answer
	n     *atomic.Int64 // bytes, both ways
}

func (u *upgraded) Read(p []byte) (n int, err error) {
	if left := u.early.Buffered(); left > 0 {
		n, err = u.early.Read(p[:min(len(p), left)])
	} else {
		n, err = u.Conn.Read(p)
	}
	u.n.Add(int64(n))
	return n, err
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.Conn.Write(p)
	u.n.Add(int64(n))
	return n, err
}

// CloseWrite ends what is sent, and leaves open what is received.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported
}
