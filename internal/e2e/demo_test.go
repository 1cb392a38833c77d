package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// demo is a folder and ports for `tabard demo`.
type demo struct {
	t      *testing.T
	dir    string
	port   int
	issuer string
	log    string // of the last start
}

func newDemo(t *testing.T) *demo {
	t.Helper()
	d := &demo{t: t, dir: filepath.Join(t.TempDir(), "a person's demo"), port: testenv.FreePort(t)}
	d.issuer = fmt.Sprintf("https://127.0.0.1:%d", d.port)
	return d
}

func listenable(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func (d *demo) args(more ...string) []string {
	return append([]string{"demo", "--dir", d.dir, "--port", fmt.Sprint(d.port)}, more...)
}

// start runs the demo until it has said words, a regular expression.
func (d *demo) start(words string, env []string, more ...string) *testenv.Process {
	d.t.Helper()
	d.log = filepath.Join(d.t.TempDir(), "demo.log")
	until := regexp.MustCompile(words)
	return testenv.Start(d.t, testenv.Command{
		Path: tabard, Args: d.args(more...), Env: append(env, "GORACE=halt_on_error=1 exitcode=66"), LogFile: d.log, ReadyTimeout: 10 * time.Minute,
		Ready: func(context.Context) error {
			if !until.MatchString(d.said()) {
				return fmt.Errorf("it has not said %q", words)
			}
			return nil
		},
	})
}

// said is what the demo has printed so far.
func (d *demo) said() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

// children are the processes that pid started.
func children(t *testing.T, pid int) []int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, f := range files {
		b, _ := os.ReadFile(f) // a thread that has ended has none
		for _, word := range strings.Fields(string(b)) {
			var child int
			if _, err := fmt.Sscan(word, &child); err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	return all
}

// mustEnd returns when none of pids is there any more, or only unreaped.
func mustEnd(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		eventually(t, 2*time.Minute, fmt.Sprintf("process %d ends", pid), func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || strings.Contains(string(stat), ") Z ") {
				return nil
			}
			return fmt.Errorf("it is %s", stat)
		})
	}
}

// end stops the demo as signal does and checks that nothing is left.
func (d *demo) end(p *testenv.Process, signal syscall.Signal) {
	d.t.Helper()
	started := children(d.t, p.Pid())
	if err := p.Signal(signal); err != nil {
		d.t.Fatal(err)
	}
	if err := p.Wait(); (err == nil) == (signal == syscall.SIGKILL) {
		d.t.Errorf("after %v it ended with %v: %s", signal, err, p.Log())
	}
	mustEnd(d.t, started)
	for i := range 3 {
		eventually(d.t, time.Minute, fmt.Sprintf("port %d is free after %v", d.port+i, signal), func() error { // a killed one may still be closing it
			if !listenable(d.port + i) {
				return errors.New("somebody listens on it")
			}
			return nil
		})
	}
	unfinished, err := filepath.Glob(filepath.Join(d.dir, "*.new"))
	if err != nil || len(unfinished) > 0 && signal != syscall.SIGKILL {
		d.t.Errorf("half-written files: %v %v", unfinished, err)
	}
}

// shell runs one line that the demo told to type, after the line that sets PATH.
func (d *demo) shell(story []string, line int) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", story[0]+"\n"+story[line])
	cmd.Env = append(os.Environ(), "HOME="+d.t.TempDir(), "KUBECONFIG=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// atTerminal runs a line as shell does, at a terminal, where the person is asked for
// the password of user.
func (d *demo) atTerminal(story []string, line int, user string) string {
	p := &person{server: &server{t: d.t}, home: d.t.TempDir()}
	p.env = append(os.Environ(), "HOME="+p.home, "KUBECONFIG=")
	return p.script(story[0]+"; "+story[line], map[string]string{"Password: ": user + "\n"})
}

var typed = regexp.MustCompile(`(?m)^ +((?:D=|KUBECONFIG=).*)$`)

// TestDemo does what the demo tells a person to type, at the real API server it has
// started, three times over: anew, after Ctrl-C, and after it was killed.
func TestDemo(t *testing.T) {
	t.Parallel()
	testenv.Binary(t, "kube-apiserver")
	d := newDemo(t)
	p := d.start("Ctrl-C ends everything", nil)
	if n := len(children(t, p.Pid())); n != 2 {
		t.Errorf("%d processes beside it, want etcd and kube-apiserver", n)
	}
	story := d.story()
	if out := d.atTerminal(story, 1, "alice"); !strings.Contains(out, "shop") || !strings.Contains(out, "Pending") || !strings.HasSuffix(out, "exit 0") {
		t.Fatalf("alice: %s", out)
	}
	if out := d.atTerminal(story, 2, "bob"); !strings.Contains(out, `Forbidden): pods is forbidden: User "bob" cannot list`) {
		t.Fatalf("bob before: %s", out)
	}
	d.addOnPage("bob")
	bobMay := func() error {
		out, err := d.shell(story, 3)
		if err != nil || !strings.Contains(out, "shop") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	eventually(t, 3*time.Minute, "bob's next token has the group", bobMay)
	if out := d.atTerminal(story, 4, "carol"); !strings.Contains(out, `Forbidden): pods "shop" is forbidden: rule "pods-stay" of Tabard's policy`) {
		t.Errorf("carol by the proxy: %s", out)
	}
	d.end(p, syscall.SIGINT)

	p = d.start("Ctrl-C ends everything", nil)
	if got := d.story(); !slices.Equal(got, story) {
		t.Errorf("the second time it says %q", got)
	}
	if err := bobMay(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	d.end(p, syscall.SIGKILL)

	p = d.start("Ctrl-C ends everything", nil)
	if err := bobMay(); err != nil {
		t.Errorf("after a crash: %v", err)
	}
	d.end(p, syscall.SIGHUP)
}

// story are the lines to type: the one that sets PATH, alice, bob, bob, carol.
func (d *demo) story() []string {
	d.t.Helper()
	var lines []string
	for _, m := range typed.FindAllStringSubmatch(d.said(), -1) {
		lines = append(lines, m[1])
	}
	if len(lines) != 5 || !strings.Contains(d.said(), d.issuer+"/groups/pod-readers") {
		d.t.Fatalf("the story is\n%s", d.said())
	}
	return lines
}

// addOnPage adds user to pod-readers as carol does it, in a real browser.
func (d *demo) addOnPage(user string) {
	d.t.Helper()
	b := testenv.Chromium(d.t)
	b.Navigate(d.issuer + "/groups/pod-readers")
	b.WaitFor(`document.querySelector('input[name=password]')`)
	b.Type("input[name=username]", "carol")
	b.Type("input[name=password]", "carol")
	b.Press("Enter")
	b.WaitFor(`location.pathname == '/groups/pod-readers'`)
	b.Type("input[name=who]", user)
	b.Press("Enter")
	b.WaitFor(`document.querySelector('tbody th a')?.innerText == '` + user + `'`)
}

// TestDemoWithoutCluster needs no Go and no checkout, signs people in by the form,
// and is the same provider when it is started again.
func TestDemoWithoutCluster(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	env := []string{"PATH=/nowhere"}
	p := d.start("Ctrl-C ends it", env, "--no-cluster")
	ca, err := os.ReadFile(filepath.Join(d.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: d.dir, issuer: d.issuer, caFile: filepath.Join(d.dir, "ca.pem")}
	alice := s.login("tabard", "alice", "alice")
	if got := groupsOf(t, alice.IDToken); !slices.Equal(got, []string{"corp:all-devs", "corp:devs"}) {
		t.Errorf("alice's groups are %q", got)
	}
	f, _ := s.openSignIn(s.browser(), authRequest("tabard"))
	if a := s.submit(s.browser(), f, "alice", "bob"); a.status == http.StatusSeeOther {
		t.Errorf("a wrong password: %d", a.status)
	}
	second := exec.Command(tabard, d.args("--no-cluster")...)
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another demo runs in "+d.dir) {
		t.Errorf("a second demo in the folder: %v\n%s", err, out)
	}
	if words := d.said(); !strings.Contains(words, "carol") || strings.Contains(words, "\x1b") {
		t.Errorf("it says %q", words)
	}
	d.end(p, syscall.SIGTERM)

	if err := os.Remove(filepath.Join(d.dir, "server.pem")); err != nil { // as if the first start had been cut short
		t.Fatal(err)
	}
	p = d.start("Ctrl-C ends it", env, "--no-cluster")
	if again, err := os.ReadFile(filepath.Join(d.dir, "ca.pem")); err != nil || string(again) == string(ca) {
		t.Errorf("the CA is %v though a certificate of it was lost", err)
	}
	ca, err = os.ReadFile(filepath.Join(d.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.mustRefresh("tabard", alice.RefreshToken)
	d.end(p, syscall.SIGKILL)
	p = d.start("Ctrl-C ends it", env, "--no-cluster")
	if again, err := os.ReadFile(filepath.Join(d.dir, "ca.pem")); err != nil || string(again) != string(ca) {
		t.Errorf("the CA is another after a restart (%v)", err)
	}
	d.end(p, syscall.SIGINT)
}

// fails runs the demo, in the working folder dir, where it cannot go on and returns
// its words.
func (d *demo) fails(dir string, env []string, more ...string) (string, int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tabard, d.args(more...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		d.t.Fatalf("tabard %q: %v\n%s", cmd.Args, err, out)
	}
	return string(out), exit.ExitCode()
}

// goCommand makes a folder for PATH whose go does what script says, and a cache
// without any built part.
func goCommand(t *testing.T, script string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"PATH=" + dir + ":/usr/bin:/bin", "TABARD_CACHE=" + filepath.Join(dir, "cache")}
}

// TestDemoSaysWhatIsWrong before anything is built; only the lack of a checkout
// comes up later, when the pages are there.
func TestDemoSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	nothing := goCommand(t, "exit 1")
	if out, code := d.fails(t.TempDir(), nothing); code != 1 || !strings.Contains(out, "run `make demo` in a clone, or leave the cluster out with --no-cluster") || !strings.Contains(out, "Sign-in page") {
		t.Errorf("outside of a checkout: %d\n%s", code, out)
	}
	for i, what := range []string{"the provider", "the directory", "kube-apiserver"} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", d.port+i))
		if err != nil {
			t.Fatal(err)
		}
		if out, code := d.fails(t.TempDir(), nothing); code != 1 || !strings.Contains(out, fmt.Sprintf("port %d, for %s, is taken by another process", d.port+i, what)) || strings.Contains(out, "Sign-in") {
			t.Errorf("port %d taken: %d\n%s", i, code, out)
		}
		l.Close()
	}
	if out, code := d.fails(t.TempDir(), nothing, "--port=65534"); code != 2 || !strings.Contains(out, "65533") {
		t.Errorf("a port too high: %d\n%s", code, out)
	}
	alone := filepath.Join(t.TempDir(), "tabard")
	if err := os.Link(tabard, alone); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(alone, d.args()...)
	cmd.Env = append(os.Environ(), nothing...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "make build") {
		t.Errorf("without the plugin: %v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := d.fails(t.TempDir(), nothing, "--dir", file); code != 1 || !strings.Contains(out, "--dir") {
		t.Errorf("a file for a folder: %d\n%s", code, out)
	}
}

// TestDemoBuilds looks at what a person sees while it builds, and when that fails.
func TestDemoBuilds(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	p := d.start(`Building etcd \(1 of 3, once; takes minutes\)  0:[1-5]\d  compiling package 2`, goCommand(t, `printf 'a.example/x\na.example/y\n' >&2; sleep 300`))
	d.end(p, syscall.SIGINT)
	if out := d.said(); !strings.Contains(out, "Everything has ended") || strings.Contains(out, "tabard: ") {
		t.Errorf("Ctrl-C while it builds:\n%s", out)
	}
	for words, want := range map[string]string{
		"go: go.mod requires go >= 1.26.0 (running go 1.23.4; GOTOOLCHAIN=local)": "this Go is too old",
		"write /x: no space left on device":                                       "the disk is full",
		"proxyconnect tcp: dial tcp: lookup proxy.corp.example: no such host":     "HTTPS_PROXY",
	} {
		if out, code := d.fails("", goCommand(t, "echo '"+words+"' >&2; exit 1")); code != 1 || !strings.Contains(out, "\ntabard: ") || !strings.Contains(out, want) {
			t.Errorf("%s: %d\n%s", words, code, out)
		}
	}
	if out, code := d.fails("", []string{"PATH=/nowhere", "TABARD_CACHE=" + t.TempDir()}); code != 1 || !strings.Contains(out, "install Go 1.26 or newer") {
		t.Errorf("without Go: %d\n%s", code, out)
	}
}
