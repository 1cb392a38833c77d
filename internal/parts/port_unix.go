//go:build unix

package parts

import (
	"errors"
	"syscall"
)

// shares says whether a socket shares its port with connections in TIME_WAIT.
func shares(c syscall.RawConn, yes bool) error {
	value := 0
	if yes {
		value = 1
	}
	var set error
	err := c.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, value)
	})
	return errors.Join(err, set)
}
