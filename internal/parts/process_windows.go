package parts

import (
	"os"
	"syscall"
)

// processAttributes give the program a console group of its own, so that Ctrl-C
// reaches this process alone.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// signalGroup kills the program: there are no signals here.
func signalGroup(p *os.Process, _ syscall.Signal) { _ = p.Kill() }
