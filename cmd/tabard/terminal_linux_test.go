package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/tabard-id/tabard/internal/testenv"
)

// openTerminal returns both ends of a pseudo-terminal: the person's and the
// program's.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		testenv.Skip(t, "there are no pseudo-terminals: mount devpts")
	}
	var number, unlock int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, person.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close(); program.Close() })
	return person, program
}

// typist answers each prompt that the program writes with the next line.
type typist struct {
	terminal *os.File
	answers  map[string]string // what the output ends in, and what is typed then
	out      bytes.Buffer
}

// Write implements io.Writer for the program's output.
func (p *typist) Write(b []byte) (int, error) {
	p.out.Write(b)
	for prompt, answer := range p.answers {
		if strings.HasSuffix(p.out.String(), prompt) {
			delete(p.answers, prompt)
			go func() {
				for prompt == "Password: " && p.echoes() { // nobody types that fast
					time.Sleep(time.Millisecond)
				}
				_, _ = p.terminal.WriteString(answer + "\n")
			}()
		}
	}
	return len(b), nil
}

// echoes says whether the terminal shows what is typed.
func (p *typist) echoes() bool {
	var state syscall.Termios
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, p.terminal.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&state)))
	return errno == 0 && state.Lflag&syscall.ECHO != 0
}

func TestTerminalPrompt(t *testing.T) {
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	directories := "directories:\n"
	for _, name := range []string{"corp", "lab"} {
		directories += fmt.Sprintf("- {name: %s, type: ldap, urls: [%q], caFile: %q, bindDN: %q, bindPassword: %q, users: {usernamePrefix: %q}}\n",
			name, ldap.TLSURL, ldap.CAFile, ldap.BindDN, ldap.BindPassword, strings.TrimPrefix(name+"-", "corp-"))
	}
	s := start(t, served+directories)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("TABARD_SERVER", s.issuer)
	person, program := openTerminal(t)
	p := &typist{terminal: person, answers: map[string]string{
		"Username: ": "alice", "Password: ": "pw-alice", "(corp, lab). Which is yours? ": "lab",
	}}
	echoed := make(chan string, 1)
	go func() { // what the terminal itself shows
		var all []byte
		for b := make([]byte, 1024); ; {
			n, err := person.Read(b)
			all = append(all, b[:n]...)
			if err != nil || bytes.Contains(all, []byte("lab\r\n")) {
				echoed <- string(all)
				return
			}
		}
	}()
	var out bytes.Buffer
	code := run(t.Context(), []string{"login", "--prompt", "--ca-file", filepath.Join(s.dir, "ca.pem")}, program, &out, p)
	if code != exitDone || !strings.Contains(out.String(), "lab-alice") {
		t.Fatalf("exit %d: %s%s", code, &out, &p.out)
	}
	if shown := <-echoed; !strings.Contains(shown, "alice\r\n") || strings.Contains(shown, "pw-alice") {
		t.Errorf("the terminal shows %q", shown)
	}
}
