package testenv

import (
	"path/filepath"
	"testing"

	"github.com/tabard-id/tabard/internal/parts"
)

// tailBytes is how much of a log a failed test shows.
const tailBytes = 6 << 10

// Command describes a program to start for a test. Its LogFile may be left out.
type Command = parts.Command

// Process is a program running for a test. It ends with the test, with its
// whole process group, and dies with the test binary on Linux.
type Process = parts.Process

// Start runs c, waits until it is ready and stops it when the test ends. A
// test that fails logs the end of what the program wrote.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	if c.LogFile == "" {
		c.LogFile = filepath.Join(t.TempDir(), c.Name+".log")
	}
	p, err := parts.Start(t.Context(), c)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(c.LogFile, tailBytes))
	}
	endWith(t, p)
	return p
}

// endWith stops p when the test ends.
func endWith(t testing.TB, p *Process) {
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("the end of %s:\n%s", p.LogFile, tail(p.LogFile, tailBytes))
		}
	})
}
