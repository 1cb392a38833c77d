package testenv

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// TCPProxy passes connections on and fails as it is told.
type TCPProxy struct {
	// Address is host:port.
	Address string

	listener net.Listener
	target   func(net.Conn) (name, address string)
	running  sync.WaitGroup

	mu      sync.Mutex
	open    map[*proxied]bool
	blocked map[string]bool
	delay   time.Duration
}

// proxied is one connection.
type proxied struct {
	to             string
	client, server net.Conn
	lost           bool // bytes of it; guarded by TCPProxy.mu
}

// StartTCPProxy starts a proxy before address. It ends with the test.
func StartTCPProxy(t testing.TB, address string) *TCPProxy {
	return startTCPProxy(t, func(net.Conn) (string, string) { return address, address })
}

// startConnectProxy starts an HTTP proxy for the CONNECT of RFC 9110 section 9.3.6. It
// knows the addresses of names alone, each host:port.
func startConnectProxy(t testing.TB, names map[string]string) *TCPProxy {
	return startTCPProxy(t, func(c net.Conn) (string, string) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || r.Method != http.MethodConnect || names[r.Host] == "" {
			return "", ""
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		return r.Host, names[r.Host]
	})
}

func startTCPProxy(t testing.TB, target func(net.Conn) (string, string)) *TCPProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a proxy: %v", err)
	}
	p := &TCPProxy{Address: l.Addr().String(), listener: l, target: target, open: map[*proxied]bool{}, blocked: map[string]bool{}}
	p.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Block lets nothing pass any more, in silence, on connections to the named targets;
// without names, on all.
func (p *TCPProxy) Block(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(names) == 0 {
		names = []string{""}
	}
	for _, n := range names {
		p.blocked[n] = true
	}
}

// Unblock lets everything pass again. Connections that have lost something are closed.
func (p *TCPProxy) Unblock() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.blocked)
	for c := range p.open {
		if c.lost {
			c.close()
		}
	}
}

// Delay makes everything arrive later by d.
func (p *TCPProxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Cut closes the connections that stand.
func (p *TCPProxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range slices.Collect(maps.Keys(p.open)) {
		c.close()
	}
}

func (c *proxied) close() {
	c.client.Close()
	if c.server != nil {
		c.server.Close()
	}
}

func (p *TCPProxy) serve(client net.Conn) {
	c := &proxied{client: client}
	p.mu.Lock()
	p.open[c] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.open, c)
		c.close()
		p.mu.Unlock()
	}()
	name, address := p.target(client)
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	p.mu.Lock()
	c.to, c.server = name, server
	p.mu.Unlock()
	p.running.Go(func() { p.pass(c, server, client) })
	p.pass(c, client, server)
}

// pass copies from src to dst what is not lost on the way.
func (p *TCPProxy) pass(c *proxied, dst, src net.Conn) {
	defer dst.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := src.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		c.lost = c.lost || p.blocked[""] || p.blocked[c.to]
		lost, delay := c.lost, p.delay
		p.mu.Unlock()
		if lost {
			continue
		}
		time.Sleep(delay)
		if _, err := dst.Write(b[:n]); err != nil {
			return
		}
	}
}
