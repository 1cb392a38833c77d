package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"strings"
	"time"

	"github.com/pkg/browser"
	"golang.org/x/term"
)

// signInTime is how long a person has to sign in.
const signInTime = 5 * time.Minute

// Ways say how a person at a command signs in: in the way that is set, else in a
// browser where there likely is one, else in the terminal.
type Ways struct {
	Browser, Device, Prompt, PasswordStdin bool

	Username string    // put into the form, or not asked for
	In       io.Reader // a terminal, or where PasswordStdin reads
	Out      io.Writer // where the person is asked and told; not where results go
}

// Check refuses ways that contradict each other.
func (w Ways) Check() error {
	n := 0
	for _, set := range []bool{w.Browser, w.Device, w.Prompt, w.PasswordStdin} {
		if set {
			n++
		}
	}
	if n > 1 || w.PasswordStdin && w.Username == "" {
		return errors.New("use one of --browser, --device, --prompt, and --password-stdin with --username")
	}
	return nil
}

// Terminal is w.In if somebody can be asked there, or nil.
func (w Ways) Terminal() *os.File {
	if f, ok := w.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// SignIn signs in at a server. It asks nobody and opens nothing where there is no
// terminal and no way was set.
func (w Ways) SignIn(ctx context.Context, server, caPEM string) (Login, error) {
	ctx, cancel := context.WithTimeout(ctx, signInTime)
	defer cancel()
	tty := w.Terminal()
	if tty == nil && !w.Browser && !w.Device && !w.PasswordStdin {
		return Login{}, errors.New("there is no terminal to ask in: use --browser, --device, or --username with --password-stdin")
	}
	s, err := NewSignIn(ctx, server, caPEM)
	if err != nil {
		return Login{}, err
	}
	defer s.Close()
	s.login.User = w.Username
	switch {
	case w.PasswordStdin:
		return s.Prompt(ctx, w.piped())
	case w.Device:
		return s.Device(ctx, w.showCode)
	case w.Browser || !w.Prompt && hasDisplay():
		return s.Browser(ctx, w.Username, w.open)
	}
	return s.Prompt(ctx, w.terminal(ctx, tty))
}

// hasDisplay guesses whether a browser can be shown here.
func hasDisplay() bool {
	if runtime.GOOS == "darwin" || runtime.GOOS == "windows" {
		return os.Getenv("SSH_CONNECTION") == ""
	}
	return os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
}

func (w Ways) open(url string) error {
	fmt.Fprintf(w.Out, "Sign in in the browser. If none opens, visit:\n%s\n", url)
	browser.Stdout, browser.Stderr = io.Discard, io.Discard // ours has one meaning
	_ = browser.OpenURL(url)                                // the line above is the other way
	return nil
}

func (w Ways) showCode(d DeviceCode) {
	fmt.Fprintf(w.Out, "On any device, open\n  %s\nand enter the code\n  %s\n", d.URL, d.Code)
	if d.Complete != "" {
		fmt.Fprintf(w.Out, "or open\n  %s\nwhich shows the same code.\n", d.Complete)
	}
}

// terminal asks in the terminal, the password without echo.
func (w Ways) terminal(ctx context.Context, tty *os.File) Asker {
	lines := bufio.NewReader(tty)
	line := func(prompt string) (string, error) {
		fmt.Fprint(w.Out, prompt)
		return ask(ctx, func() (string, error) {
			s, err := lines.ReadString('\n')
			if s != "" {
				err = nil
			}
			return strings.TrimSpace(s), err
		})
	}
	return Asker{
		Username: func() (string, error) {
			if w.Username != "" {
				return w.Username, nil
			}
			return line("Username: ")
		},
		Password: func() (string, error) {
			return w.password(ctx, int(tty.Fd()))
		},
		Directory: func(names []string) (string, error) {
			return line("This username is in several directories (" + clip(strings.Join(names, ", "), 500) + "). Which is yours? ")
		},
		Tell:  func(m string) { fmt.Fprintln(w.Out, m) },
		Tries: 3,
	}
}

// password reads without echo, and gives the echo back also when ctx ends first. It
// asks once the echo is off: what is typed or interrupted before that would be shown,
// or would leave the terminal without echo.
func (w Ways) password(ctx context.Context, fd int) (string, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	asked := make(chan struct{})
	b, err := ask(ctx, func() ([]byte, error) {
		go func() {
			defer close(asked)
			untilChanged(fd, before)
			fmt.Fprint(w.Out, "Password: ")
		}()
		return term.ReadPassword(fd)
	})
	<-asked
	fmt.Fprintln(w.Out)
	if ctx.Err() != nil {
		return "", errors.Join(err, term.Restore(fd, before))
	}
	return string(b), err
}

// untilChanged waits until the terminal's settings differ, for a second at most: they
// may have been the wanted ones before.
func untilChanged(fd int, before *term.State) {
	for range 1000 {
		if now, err := term.GetState(fd); err != nil || !reflect.DeepEqual(before, now) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// ask waits for read, but no longer than ctx.
func ask[T any](ctx context.Context, read func() (T, error)) (T, error) {
	value, answered, err := await(ctx, read)
	switch {
	case !answered:
		err = tooLate(ctx, "nobody answered in time: run the command again")
	case err != nil:
		err = fmt.Errorf("read the answer: %w", err)
	}
	return value, err
}

// await waits for do, but no longer than ctx. One that does not answer ends with the
// process.
func await[T any](ctx context.Context, do func() (T, error)) (value T, answered bool, err error) {
	done := make(chan struct{})
	var v T
	var failed error
	go func() {
		defer close(done)
		v, failed = do()
	}()
	select {
	case <-done:
		return v, true, failed
	case <-ctx.Done():
		return value, false, nil
	}
}

// maxPassword bounds what is read of a password, in bytes.
const maxPassword = 64 << 10

// piped takes the password from In, once.
func (w Ways) piped() Asker {
	return Asker{
		Username: func() (string, error) { return w.Username, nil },
		Password: func() (string, error) {
			b, err := io.ReadAll(io.LimitReader(w.In, maxPassword))
			if err != nil {
				return "", fmt.Errorf("read the password: %w", err)
			}
			return strings.TrimRight(string(b), "\r\n"), nil
		},
		Directory: func(names []string) (string, error) {
			return "", fmt.Errorf("%s is in several directories (%s): write the username with its directory's suffix", w.Username, clip(strings.Join(names, ", "), 500))
		},
	}
}
