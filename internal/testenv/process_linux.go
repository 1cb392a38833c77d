package testenv

import "syscall"

// processAttributes give the program a group of its own, and let the kernel
// kill it when the test binary is killed and no cleanup can run.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
