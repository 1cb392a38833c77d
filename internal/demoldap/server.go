// Package demoldap is the sample directory of `tabard demo`: an LDAP server in
// this process, on loopback, over TLS, with a handful of people and groups that
// nobody can change.
package demoldap

import (
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jimlambrt/gldap"
)

const (
	handshakeTime = 5 * time.Second
	startTime     = 5 * time.Second
)

// Config says how a Server is started.
type Config struct {
	// Port on 127.0.0.1 for LDAPS.
	Port int
	// Certificate is the server's.
	Certificate tls.Certificate
	// BindPassword is that of BindDN.
	BindPassword string
}

// Server is a running directory.
type Server struct {
	// URL is ldaps://127.0.0.1:port.
	URL string

	ldap    *gldap.Server
	root    *entry
	entries []*entry
	ended   chan error

	mu      sync.Mutex
	bound   map[int]bool // by connection: whether somebody's password was given
	conns   []net.Conn
	stopped bool
}

// Start listens and answers until Stop. A port that is taken is an error that
// wraps syscall.EADDRINUSE.
func Start(c Config) (*Server, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", c.Port)
	l, err := net.Listen("tcp", addr) // the library's own error is only text
	if err != nil {
		return nil, fmt.Errorf("listen for LDAP: %w", err)
	}
	l.Close()
	s := &Server{URL: "ldaps://" + addr, root: rootDSE(), entries: sampleEntries(c.BindPassword), ended: make(chan error, 1), bound: map[int]bool{}}
	s.ldap, err = gldap.NewServer(gldap.WithLogger(hclog.NewNullLogger()), gldap.WithReadTimeout(handshakeTime), gldap.WithOnClose(s.forget))
	if err != nil {
		return nil, fmt.Errorf("make the LDAP server: %w", err)
	}
	mux, err := gldap.NewMux()
	if err == nil {
		err = errors.Join(mux.Bind(s.bind), mux.Search(s.search),
			mux.Modify(refuse(gldap.ApplicationModifyResponse)), mux.Add(refuse(gldap.ApplicationAddResponse)), mux.Delete(refuse(gldap.ApplicationDelResponse)),
			mux.DefaultRoute(refuse(gldap.ApplicationExtendedResponse)), s.ldap.Router(mux))
	}
	if err != nil {
		return nil, fmt.Errorf("make the LDAP server: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c.Certificate}, GetConfigForClient: s.admit}
	go func() { s.ended <- s.ldap.Run(addr, gldap.WithTLSConfig(config)) }()
	return s, s.awaitStart(addr)
}

// awaitStart returns once the server takes connections.
func (s *Server) awaitStart(addr string) error {
	deadline := time.Now().Add(startTime)
	for {
		conn, err := net.DialTimeout("tcp", addr, time.Until(deadline))
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("start the LDAP server: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("start the LDAP server: %w", err)
		}
	}
}

// admit notes a connection when its TLS handshake begins, so that Stop can close
// it: the library waits for clients to hang up. It also ends the time-out of the
// handshake.
func (s *Server) admit(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errors.New("the server stops")
	}
	s.conns = slices.DeleteFunc(s.conns, func(c net.Conn) bool {
		return errors.Is(c.SetReadDeadline(time.Time{}), net.ErrClosed)
	})
	s.conns = append(s.conns, hello.Conn)
	return nil, hello.Conn.SetReadDeadline(time.Time{})
}

// Stop closes every connection and returns when nothing runs any more.
func (s *Server) Stop() error {
	s.mu.Lock()
	s.stopped = true
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	err := errors.Join(s.ldap.Stop(), <-s.ended)
	s.ended <- nil // for a second Stop
	if err != nil {
		return fmt.Errorf("stop the LDAP server: %w", err)
	}
	return nil
}

func (s *Server) forget(conn int) { s.setBound(conn, false) }

func (s *Server) setBound(conn int, bound bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bound {
		s.bound[conn] = true
	} else {
		delete(s.bound, conn)
	}
}

func (s *Server) isBound(conn int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound[conn]
}

// answer is one response; writing fails only when the client is gone.
func answer(w *gldap.ResponseWriter, r gldap.Response) { _ = w.Write(r) }

// refuse answers what would change something, with the operation's own response.
func refuse(response int) gldap.HandlerFunc {
	return func(w *gldap.ResponseWriter, r *gldap.Request) {
		answer(w, r.NewResponse(gldap.WithApplicationCode(response), gldap.WithResponseCode(gldap.ResultUnwillingToPerform),
			gldap.WithDiagnosticMessage("this directory is read only")))
	}
}

func (s *Server) bind(w *gldap.ResponseWriter, r *gldap.Request) {
	code := gldap.ResultInvalidCredentials
	if m, err := r.GetSimpleBindMessage(); err != nil {
		code = gldap.ResultProtocolError
	} else {
		code = s.checkBind(m.UserName, string(m.Password))
		s.setBound(r.ConnectionID(), code == gldap.ResultSuccess && m.UserName != "")
	}
	answer(w, r.NewBindResponse(gldap.WithResponseCode(code)))
}

// checkBind is the result of a simple bind. A name without a password is refused
// rather than taken for nobody (RFC 4513 section 5.1.2).
func (s *Server) checkBind(dn, password string) int {
	switch {
	case dn == "" && password == "":
		return gldap.ResultSuccess
	case password == "":
		return gldap.ResultUnwillingToPerform
	}
	for _, e := range s.entries {
		if foldDN(e.dn) == foldDN(dn) && e.password != "" && subtle.ConstantTimeCompare([]byte(e.password), []byte(password)) == 1 {
			return gldap.ResultSuccess
		}
	}
	return gldap.ResultInvalidCredentials
}

func (s *Server) search(w *gldap.ResponseWriter, r *gldap.Request) {
	done := r.NewSearchDoneResponse()
	m, err := r.GetSearchMessage()
	if err != nil {
		done.SetResultCode(gldap.ResultProtocolError)
		answer(w, done)
		return
	}
	found, code := s.find(m, s.isBound(r.ConnectionID()))
	for _, e := range found {
		res := r.NewSearchResponseEntry(e.dn)
		for _, a := range e.chosen(m.Attributes) {
			res.AddAttribute(a.name, a.values)
		}
		answer(w, res)
	}
	done.SetResultCode(code)
	for _, c := range m.Controls {
		if c.GetControlType() == gldap.ControlTypePaging { // all fits one page
			done.SetControls(&gldap.ControlPaging{})
		}
	}
	answer(w, done)
}

// find returns what a search finds, at most its size limit, and its result code.
// Who is not bound finds the root DSE alone.
func (s *Server) find(m *gldap.SearchMessage, bound bool) ([]*entry, int) {
	match, err := parseFilter(m.Filter)
	if err != nil {
		return nil, gldap.ResultInappropriateMatching
	}
	if m.BaseDN == "" && m.Scope == gldap.BaseObject {
		if match(s.root) {
			return []*entry{s.root}, gldap.ResultSuccess
		}
		return nil, gldap.ResultSuccess
	}
	if !bound {
		return nil, gldap.ResultInsufficientAccessRights
	}
	base, exists := foldDN(m.BaseDN), m.BaseDN == ""
	var found []*entry
	for _, e := range s.entries {
		dn := foldDN(e.dn)
		exists = exists || dn == base
		if !within(dn, base, m.Scope) || !match(e) {
			continue
		}
		if m.SizeLimit > 0 && int64(len(found)) == m.SizeLimit {
			return found, gldap.ResultSizeLimitExceeded
		}
		found = append(found, e)
	}
	if !exists {
		return nil, gldap.ResultNoSuchObject
	}
	return found, gldap.ResultSuccess
}

// within says whether dn lies in the scope of base; both are folded.
func within(dn, base string, scope gldap.Scope) bool {
	_, parent, _ := strings.Cut(dn, ",")
	switch scope {
	case gldap.BaseObject:
		return dn == base
	case gldap.SingleLevel:
		return parent == base
	}
	return dn == base || base == "" || strings.HasSuffix(dn, ","+base)
}

// chosen are the attributes that were asked for (RFC 4511 section 4.5.1.8): those
// named, all but operational ones by * or by naming none, operational ones by +.
func (e *entry) chosen(names []string) []attribute {
	asked := func(a attribute, group string) bool {
		return slices.Contains(names, group) || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, a.name) })
	}
	var out []attribute
	for _, a := range e.attributes {
		if len(names) == 0 || asked(a, "*") {
			out = append(out, a)
		}
	}
	for _, a := range e.operational {
		if asked(a, "+") {
			out = append(out, a)
		}
	}
	return out
}
