//go:build !linux

package testenv

import "syscall"

// processAttributes give the program a group of its own.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
