package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/tabard-id/tabard/internal/demoldap"
	"github.com/tabard-id/tabard/proxy"
)

// How often a step that takes long is told of: by one line that changes on a
// terminal, by a line each elsewhere.
const (
	tickTerminal = time.Second
	tickPlain    = 10 * time.Second
)

// screen is where the demo talks to the person.
type screen struct {
	out      io.Writer
	terminal *os.File // nil when out is none
	colour   bool
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = f
		s.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return s
}

// say prints a line.
func (s *screen) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// strong marks what one types or clicks.
func (s *screen) strong(text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[1;36m" + text + "\x1b[0m"
}

// during runs step and tells how long it takes so far and what step says it does.
// A step that is done at once prints nothing.
func (s *screen) during(what string, step func(doing func(string)) error) error {
	var mu sync.Mutex
	now, told, began := "", false, time.Now()
	tick := tickPlain
	if s.terminal != nil {
		tick = tickTerminal
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			mu.Lock()
			doing := now
			mu.Unlock()
			told = true
			s.progress(what, time.Since(began), doing)
		}
	})
	err := step(func(doing string) {
		mu.Lock()
		defer mu.Unlock()
		now = doing
	})
	close(done)
	wg.Wait()
	if told && err == nil {
		s.progress(what, time.Since(began), "done")
	}
	if told && s.terminal != nil {
		s.say("")
	}
	return err
}

// progress prints one state of a step; on a terminal over the one before.
func (s *screen) progress(what string, took time.Duration, doing string) {
	took = took.Truncate(time.Second)
	line := fmt.Sprintf("%s  %d:%02d  %s", what, int(took.Minutes()), int(took.Seconds())%60, doing)
	if s.terminal == nil {
		s.say("%s", line)
		return
	}
	if width, _, err := term.GetSize(int(s.terminal.Fd())); err == nil && width > 1 && len(line) >= width {
		line = line[:width-1]
	}
	fmt.Fprintf(s.out, "\r\x1b[K%s", line)
}

// welcome tells what is there as soon as the pages are.
func (s *screen) welcome(d *demoRun) {
	s.say("\nTabard demo, all on 127.0.0.1 and in %s\n", d.dir)
	s.say("  Sign-in page   %s", s.strong(d.issuer+"/"))
	s.say("  Groups         %s   (carol may change them)", s.strong(d.issuer+"/groups"))
	s.say("\nThe browser warns about the certificate: go on, or trust %s", d.path("ca.pem"))
	s.say("(good for this machine's loopback alone; the key that signed is gone).\n")
	s.say("  %-9s %-9s %s", "user", "password", "groups in the directory")
	for _, p := range demoldap.People() {
		s.say("  %-9s %-9s %s", p.UID, p.Password, groupNames(p))
	}
	s.say("\nConfiguration: %s   Log: %s\n", d.path("tabard.yaml"), d.path("tabard.log"))
}

// story tells what to type, once the cluster is there.
func (s *screen) story(d *demoRun) {
	kubectl := func(uid string) string { return s.strong("KUBECONFIG=$D/" + uid + ".kubeconfig kubectl get pods") }
	for _, line := range []string{
		"",
		"The cluster is ready: a kube-apiserver that trusts Tabard by its --oidc-* flags.",
		"In another terminal:",
		"",
		"  " + s.strong("D="+quote(d.dir)+"; export PATH=\"$D/bin:$PATH\""),
		"",
		"1. alice is in corp:devs, so in corp:all-devs, which may see pods. Password: alice",
		"   " + kubectl("alice"),
		"2. bob may not: Forbidden. Password: bob",
		"   " + kubectl("bob"),
		"3. As carol (password: carol), add bob to the local group " + demoGroup + ":",
		"   " + s.strong(d.issuer+"/groups/"+demoGroup),
		"4. bob may, with his next token: tokens live for one minute here.",
		"   " + kubectl("bob"),
		"5. carol may do everything, but not through the proxy, which has a rule of its own:",
		"   " + s.strong("KUBECONFIG=$D/carol.kubeconfig kubectl --server="+d.issuer+proxy.Path+demoCluster+" delete pod shop"),
		"",
		"The pods stay Pending: this cluster has no nodes. Ctrl-C ends everything here.",
	} {
		s.say("%s", line)
	}
}

// quote makes path one word of a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
