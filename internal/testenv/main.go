package testenv

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main is the tests of a package for goleak.VerifyTestMain. They are over when their
// goroutines are, or a minute later: on a busy machine a connection that was closed may
// take longer to end than goleak waits by itself, which is half a second.
type Main struct{ *testing.M }

// Run implements goleak.TestingM.
func (m Main) Run() int {
	code := m.M.Run()
	for end := time.Now().Add(time.Minute); code == 0 && time.Now().Before(end) && goleak.Find() != nil; {
	}
	return code
}
