package parts

import "syscall"

// processAttributes give the program a group of its own, and let the kernel
// kill it when this process is killed and cannot stop it.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
