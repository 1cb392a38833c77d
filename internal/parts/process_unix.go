//go:build unix

package parts

import (
	"os"
	"syscall"
)

// signalGroup ignores errors: the group may be gone already, which is the aim.
func signalGroup(p *os.Process, sig syscall.Signal) { _ = syscall.Kill(-p.Pid, sig) }
