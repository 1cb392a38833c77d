package testenv

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// hold binds a socket to the port until the test ends, so that FreePort gives it to
// nobody else. It does not listen and shares its address: a server can listen there.
func hold(t testing.TB, port int) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold port %d: %w", port, err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("hold port %d: %w", port, err)
	}
	address := &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	return os.NewSyscallError("bind", syscall.Bind(fd, address))
}
