package testenv

import (
	"net"
	"syscall"
	"testing"
)

// TestPortIsHeld: servers can listen on a port that is held, one after another, and
// between their times FreePort, which shares with nobody, does not get it.
func TestPortIsHeld(t *testing.T) {
	var address string
	for held := false; !held; { // a connection may take it first
		free, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address = free.Addr().String()
		free.Close()
		held = hold(t, free.Addr().(*net.TCPAddr).Port) == nil
	}
	alone := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 0) })
	}}
	for range 2 {
		if l, err := alone.Listen(t.Context(), "tcp4", address); err == nil {
			l.Close()
			t.Fatalf("%s is given away", address)
		}
		server, err := net.Listen("tcp4", address)
		if err != nil {
			t.Fatalf("a server cannot listen: %v", err)
		}
		server.Close()
	}
}
