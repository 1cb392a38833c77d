package testenv

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// LDAPFault is what an LDAPProxy does to its connections. The zero value does
// nothing.
type LDAPFault struct {
	Kind LDAPFaultKind
	// After is how many messages a connection passes first, counted in both
	// directions.
	After int
	// Delay is how long Slow holds each answer back.
	Delay time.Duration
}

// LDAPFaultKind is a way for a server to fail.
type LDAPFaultKind string

// The ways an LDAPProxy can fail.
const (
	Cut       LDAPFaultKind = "cut"        // the connection is closed
	Reset     LDAPFaultKind = "reset"      // the connection is reset
	HalfClose LDAPFaultKind = "half-close" // no more is sent, but all is read
	Garbage   LDAPFaultKind = "garbage"    // bytes that are no LDAP, then nothing
	Endless   LDAPFaultKind = "endless"    // the head of a very long message, and no more
	BlackHole LDAPFaultKind = "black hole" // nothing passes, in silence
	Slow      LDAPFaultKind = "slow"       // answers come late
)

// LDAPProxy stands before an LDAP server, counts what is asked of it and fails
// as it is told.
type LDAPProxy struct {
	// Address is host:port. It speaks TLS, or plain LDAP.
	Address string

	upstream func() (net.Conn, error)
	listener net.Listener
	config   atomic.Pointer[tls.Config]
	fault    atomic.Pointer[LDAPFault]
	accepted atomic.Int64
	running  sync.WaitGroup

	mu       sync.Mutex
	open     map[net.Conn]bool
	requests map[string]int
}

// StartLDAPProxy starts a proxy that ends with the test. It stands before the
// server at url, whose certificate the CA in caFile signed. The proxy's own
// certificate is config's; without config it speaks plain LDAP.
func StartLDAPProxy(t testing.TB, url, caFile string, config *tls.Config) *LDAPProxy {
	t.Helper()
	p := &LDAPProxy{open: map[net.Conn]bool{}, requests: map[string]int{}, upstream: dialer(t, url, caFile)}
	p.config.Store(config)
	p.Fail(LDAPFault{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start an LDAP proxy: %v", err)
	}
	p.listener, p.Address = l, l.Addr().String()
	p.running.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.CloseAll()
		p.running.Wait()
	})
	return p
}

// dialer connects to the server behind the proxy.
func dialer(t testing.TB, url, caFile string) func() (net.Conn, error) {
	t.Helper()
	address, secure := strings.CutPrefix(url, "ldaps://")
	address = strings.TrimPrefix(address, "ldap://")
	if !secure {
		return func() (net.Conn, error) { return net.Dial("tcp", withPort(address, "389")) }
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatalf("start an LDAP proxy: %v", err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AppendCertsFromPEM(pem)
	return func() (net.Conn, error) { return tls.Dial("tcp", withPort(address, "636"), config) }
}

func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return net.JoinHostPort(address, port)
	}
	return address
}

// ServerTLS is a TLS configuration with a certificate of ca for 127.0.0.1 and names.
func (ca *CA) ServerTLS(t testing.TB, names ...string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(ca.Issue(t, names...))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
}

// Fail makes all connections fail as f says, those that stand included, from
// their next message on.
func (p *LDAPProxy) Fail(f LDAPFault) { p.fault.Store(&f) }

// Certify changes the certificate of connections to come.
func (p *LDAPProxy) Certify(config *tls.Config) { p.config.Store(config) }

// CloseAll closes the connections that stand.
func (p *LDAPProxy) CloseAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

// Accepted is how many connections clients have made.
func (p *LDAPProxy) Accepted() int { return int(p.accepted.Load()) }

// Open is how many connections of clients stand.
func (p *LDAPProxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open)
}

// Requests counts what was asked of the server, by the names of RFC 4511 such
// as "searchRequest"; extended requests as "extendedReq <OID>".
func (p *LDAPProxy) Requests() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.requests)
}

func (p *LDAPProxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		p.mu.Lock()
		p.open[c] = true
		p.mu.Unlock()
		p.running.Go(func() {
			p.serve(c.(*net.TCPConn))
			c.Close()
			p.mu.Lock()
			delete(p.open, c)
			p.mu.Unlock()
		})
	}
}

// serve passes messages on between a client and the server until one of them
// ends the connection.
func (p *LDAPProxy) serve(tcp *net.TCPConn) {
	s := &ldapSession{proxy: p, tcp: tcp, client: tcp}
	if s.strikes() { // before the first message
		io.Copy(io.Discard, tcp)
		return
	}
	if config := p.config.Load(); config != nil {
		s.client = tls.Server(tcp, config)
	}
	server, err := p.upstream()
	if err != nil {
		return
	}
	defer server.Close()
	s.running.Go(func() {
		s.pass(server, s.client, p.note)
		server.Close()
	})
	s.pass(s.client, server, nil)
	if !s.struck.Load() {
		tcp.Close()
	}
	s.running.Wait()
}

// ldapSession is one client's connection.
type ldapSession struct {
	proxy   *LDAPProxy
	tcp     *net.TCPConn
	client  net.Conn
	passed  atomic.Int64
	struck  atomic.Bool
	running sync.WaitGroup
}

// strikes says whether the fault has come, and lets the client feel it.
func (s *ldapSession) strikes() bool {
	f := s.proxy.fault.Load()
	if f.Kind == "" || f.Kind == Slow || int(s.passed.Load()) < f.After {
		return s.struck.Load()
	}
	if s.struck.Swap(true) {
		return true
	}
	switch f.Kind {
	case Cut:
		s.tcp.Close()
	case Reset:
		s.tcp.SetLinger(0)
		s.tcp.Close()
	case HalfClose:
		s.tcp.CloseWrite()
	case Garbage:
		io.WriteString(s.client, "HTTP/1.1 400 Bad Request\r\n\r\n")
	case Endless:
		s.client.Write([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 0x02, 0x01, 0x01})
	}
	return true
}

// pass copies messages from src to dst. Once the fault has struck it only reads.
func (s *ldapSession) pass(dst io.Writer, src io.Reader, note func([]byte)) {
	in := bufio.NewReader(src)
	for {
		m, err := readMessage(in)
		if err != nil {
			return
		}
		if s.strikes() {
			io.Copy(io.Discard, src)
			return
		}
		if note != nil {
			note(m)
		} else if f := s.proxy.fault.Load(); f.Kind == Slow {
			time.Sleep(f.Delay)
		}
		if _, err := dst.Write(m); err != nil {
			return
		}
		if s.passed.Add(1); s.strikes() {
			io.Copy(io.Discard, src)
			return
		}
	}
}

// ldapRequests names the requests of RFC 4511 by the tag of their protocolOp.
var ldapRequests = map[byte]string{
	0x60: "bindRequest", 0x42: "unbindRequest", 0x63: "searchRequest", 0x66: "modifyRequest", 0x68: "addRequest",
	0x4a: "delRequest", 0x6c: "modDNRequest", 0x6e: "compareRequest", 0x50: "abandonRequest", 0x77: "extendedReq",
}

// note counts a request.
func (p *LDAPProxy) note(m []byte) {
	name := "no LDAPMessage"
	if _, body, _, ok := berElement(m); ok { // the sequence
		if _, _, op, ok := berElement(body); ok && len(op) > 0 { // after the message's number
			tag, content, _, _ := berElement(op)
			if name = ldapRequests[tag]; name == "" {
				name = fmt.Sprintf("request with tag %#x", tag)
			}
			if tag == 0x77 {
				_, oid, _, _ := berElement(content)
				name += " " + string(oid)
			}
		}
	}
	p.mu.Lock()
	p.requests[name]++
	p.mu.Unlock()
}

// berElement takes the first BER element of b apart.
func berElement(b []byte) (tag byte, content, rest []byte, ok bool) {
	in := bufio.NewReader(bytes.NewReader(b))
	m, err := readMessage(in)
	if err != nil {
		return 0, nil, nil, false
	}
	head := 2
	if m[1] >= 0x80 {
		head += int(m[1] & 0x7f)
	}
	return m[0], m[head:], b[len(m):], true
}

// readMessage reads one BER element of definite length, head included.
func readMessage(in *bufio.Reader) ([]byte, error) {
	head := make([]byte, 2, 10)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, err
	}
	length := uint64(head[1])
	if more := int(head[1] & 0x7f); head[1] >= 0x80 {
		if more > 4 {
			return nil, fmt.Errorf("a length of %d bytes", more)
		}
		var long [8]byte
		if _, err := io.ReadFull(in, long[8-more:]); err != nil {
			return nil, err
		}
		head, length = append(head, long[8-more:]...), binary.BigEndian.Uint64(long[:])
	}
	m := bytes.NewBuffer(head)
	_, err := io.CopyN(m, in, int64(length))
	return m.Bytes(), err
}
