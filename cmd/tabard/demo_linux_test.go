package main

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"unsafe"
)

// TestDemoProgress: on a terminal a step is one line that changes in place and is
// never wider than the terminal.
func TestDemoProgress(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	person, program := openTerminal(t)
	size := [4]uint16{24, 40}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, person.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size))); errno != 0 {
		t.Fatal(errno)
	}
	var shown strings.Builder
	until := func(words string) {
		for b := make([]byte, 1024); !strings.Contains(shown.String(), words); {
			n, err := person.Read(b)
			if err != nil {
				t.Fatalf("%q: %v", shown.String(), err)
			}
			shown.Write(b[:n])
		}
	}
	s := newScreen(program)
	err := s.during("Building it", func(doing func(string)) error {
		doing("compiling package 1 with a name that is far too long")
		until("compiling package")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	until("done\r\n")
	for _, line := range strings.Split(strings.TrimSuffix(shown.String(), "\r\n"), "\r\x1b[K") {
		if len(line) >= 40 || strings.Contains(line, "\n") {
			t.Errorf("the line %q is too long", line)
		}
	}
	synctest.Test(t, func(t *testing.T) { // where it takes no time at all
		if failed := errors.New("no"); !errors.Is(s.during("Quick", func(func(string)) error { return failed }), failed) {
			t.Error("the error of a step is lost")
		}
	})
	s.say("%s", s.strong("kubectl"))
	until("\x1b[1;36mkubectl\x1b[0m")
	if strings.Contains(shown.String(), "Quick") {
		t.Errorf("a quick step is told of: %q", shown.String())
	}
	t.Setenv("NO_COLOR", "1")
	if got := newScreen(program).strong("kubectl"); got != "kubectl" {
		t.Errorf("with NO_COLOR: %q", got)
	}
}

func TestQuote(t *testing.T) {
	for _, path := range []string{"/home/a/.demo", "/a b/c", `/it's $HOME "x"`, "/ü", "/a;b"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(path)).CombinedOutput()
		if err != nil || string(out) != path {
			t.Errorf("%s: %v %s", path, err, out)
		}
	}
	if got := quote("/home/a/.demo"); got != "/home/a/.demo" {
		t.Errorf("a plain path is quoted: %s", got)
	}
}
