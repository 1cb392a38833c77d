//go:build unix && !linux

package parts

import "syscall"

// processAttributes give the program a group of its own.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
