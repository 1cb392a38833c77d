package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tabard-id/tabard/internal/testenv"
)

const (
	screenRows, screenColumns = 40, 160
	screenTime                = 3 * time.Minute // for what is waited for: it is there at once, mostly
)

// screen is what somebody sees of a program on a terminal: text where the program put it,
// without colours.
type screen struct {
	t      *testing.T
	person *os.File
	ended  chan struct{} // the program has, and all that it wrote is drawn
	err    error         // how; read after ended is closed

	mu          sync.Mutex
	cells       [screenRows][screenColumns]rune
	row, column int
	rest        []byte // the begin of a sequence
}

// onScreen starts cmd on a terminal of its own. It ends with the test.
func onScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	person, program := testenv.OpenTerminal(t, screenRows, screenColumns)
	s := &screen{t: t, person: person, ended: make(chan struct{})}
	cmd.Env = append(cmd.Env, "TERM=xterm", "LANG=C.UTF-8")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	program.Close() // the program has it: once that has ended, reading does
	go func() {
		defer close(s.ended)
		for b := make([]byte, 4096); ; {
			n, err := person.Read(b)
			s.draw(b[:n])
			if err != nil {
				break
			}
		}
		s.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-s.ended
	})
	return s
}

// sequence is an escape sequence: the first group holds numbers and the second a letter,
// where it has those.
var sequence = regexp.MustCompile(`^\x1b(?:\[([?>=]?[\d;:]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()]?[0-9A-Zc=>])`)

// draw takes more of what the program writes.
func (s *screen) draw(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, b...)
	for len(s.rest) > 0 {
		if s.rest[0] == '\x1b' {
			m := sequence.FindSubmatch(s.rest)
			if m == nil {
				return // half of one
			}
			s.rest = s.rest[len(m[0]):]
			s.obey(string(m[1]), string(m[2]))
			continue
		}
		if !utf8.FullRune(s.rest) {
			return
		}
		r, n := utf8.DecodeRune(s.rest)
		s.rest = s.rest[n:]
		s.put(r)
	}
}

// obey moves the cursor or clears.
func (s *screen) obey(numbers, letter string) {
	switch letter {
	case "H":
		row, column, _ := strings.Cut(numbers, ";")
		r, _ := strconv.Atoi(row)
		c, _ := strconv.Atoi(column)
		s.row, s.column = max(r, 1)-1, max(c, 1)-1
	case "J":
		s.cells = [screenRows][screenColumns]rune{}
	case "K":
		if s.row < screenRows && s.column < screenColumns {
			clear(s.cells[s.row][s.column:])
		}
	}
}

func (s *screen) put(r rune) {
	switch {
	case r == '\r':
		s.column = 0
	case r == '\n':
		s.row++
	case r == '\b':
		s.column = max(s.column-1, 0)
	case r >= ' ':
		for _, cell := range []rune{r, ' '}[:columnsOf(r)] {
			if s.row < screenRows && s.column < screenColumns {
				s.cells[s.row][s.column] = cell
			}
			s.column++
		}
	}
}

// columnsOf is how wide a terminal shows a character: an emoji takes two columns.
func columnsOf(r rune) int {
	if r >= 0x1f000 {
		return 2
	}
	return 1
}

// String is what stands there, without empty lines.
func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var text bytes.Buffer
	for _, row := range s.cells {
		line := strings.Map(func(r rune) rune {
			if r == 0 {
				return ' '
			}
			return r
		}, string(row[:]))
		if line = strings.TrimRight(line, " "); line != "" {
			text.WriteString(line + "\n")
		}
	}
	return text.String()
}

// types types.
func (s *screen) types(keys string) {
	s.t.Helper()
	if _, err := s.person.WriteString(keys); err != nil {
		s.t.Fatalf("type %q: %v", keys, err)
	}
}

// shows waits until the screen matches a pattern.
func (s *screen) shows(pattern string) { s.t.Helper(); s.wait(pattern, true) }

// hides waits until the screen matches a pattern no longer.
func (s *screen) hides(pattern string) { s.t.Helper(); s.wait(pattern, false) }

func (s *screen) wait(pattern string, there bool) {
	s.t.Helper()
	wanted := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(screenTime); wanted.MatchString(s.String()) != there; time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			if wanted.MatchString(s.String()) != there {
				s.t.Fatalf("it ended (%v), and %q is to be there: %v. The screen:\n%s", s.err, pattern, there, s)
			}
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("after %s, %q is to be there: %v. The screen:\n%s", screenTime, pattern, there, s)
		}
	}
}

// ends waits until the program has ended by itself, and wants it to say that all is well.
func (s *screen) ends() {
	s.t.Helper()
	select {
	case <-s.ended:
		if s.err != nil {
			s.t.Errorf("it ended with %v:\n%s", s.err, s)
		}
	case <-time.After(screenTime):
		s.t.Fatalf("it does not end:\n%s", s)
	}
}
