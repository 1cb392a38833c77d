package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// person is somebody with kubectl and the plugin in PATH, and a home of their own.
type person struct {
	*server
	home, kubeconfig string
	env              []string
}

func (s *server) person() *person {
	s.t.Helper()
	p := &person{server: s, home: s.t.TempDir()}
	p.kubeconfig = filepath.Join(p.home, "kubeconfig")
	bin := filepath.Join(p.home, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o700), os.Symlink(plugin, filepath.Join(bin, "kubectl-tabard")), os.Symlink(testenv.Binary(s.t, "kubectl"), filepath.Join(bin, "kubectl"))); err != nil {
		s.t.Fatal(err)
	}
	p.env = append(os.Environ(), "HOME="+p.home, "XDG_CACHE_HOME="+p.home+"/cache", "XDG_CONFIG_HOME="+p.home+"/config", "PATH="+bin+":"+os.Getenv("PATH"),
		"KUBECONFIG="+p.kubeconfig, "KUBERC=off", "DISPLAY=", "WAYLAND_DISPLAY=", "GORACE=halt_on_error=1 exitcode=66")
	return p
}

func (p *person) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.home, "bin", args[0]), args[1:]...)
	cmd.Env, cmd.Dir, cmd.WaitDelay = p.env, p.home, time.Minute
	return cmd
}

// do runs a command without a terminal. The error holds its exit code and stderr.
func (p *person) do(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := p.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (p *person) mustDo(stdin string, args ...string) string {
	p.t.Helper()
	out, err := p.do(stdin, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *person) login(user string) {
	p.t.Helper()
	out := p.mustDo("pw-"+user+"\n", "kubectl", "tabard", "login", "--server", p.issuer, "--ca-file", p.caFile, "--username", user, "--password-stdin")
	if !strings.Contains(out, "Username  "+user+"\n") || holdsPassword(out) {
		p.t.Fatalf("login printed %s", out)
	}
}

func (p *person) pods(context string) error {
	_, err := p.do("", "kubectl", "--context", context, "get", "pods", "-n", "default")
	return err
}

// cached changes the plugin's record of the last login.
func (p *person) cached(change func(map[string]any)) {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.home, "cache", "tabard", "*.json"))
	if err != nil || len(files) != 1 {
		p.t.Fatalf("cache files %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	record := map[string]any{}
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	if err == nil && holdsPassword(string(b)) {
		p.t.Errorf("the cache holds a password: %s", b)
	}
	change(record)
	if b, err = json.Marshal(record); err == nil {
		err = os.WriteFile(files[0], b, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// expire makes the tokens of the cache old, and returns the refresh token.
func (p *person) expire() (refresh string) {
	p.t.Helper()
	p.cached(func(record map[string]any) {
		delete(record, "token")
		delete(record, "clusters")
		refresh, _ = record["refreshToken"].(string)
	})
	return refresh
}

// trail is the whole audit trail.
func (s *server) trail() string {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "audit", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// issued counts the id_tokens that a client got, by the audit trail.
func (s *server) issued(client string) int {
	s.t.Helper()
	n := 0
	for line := range strings.Lines(s.trail()) {
		if strings.Contains(line, `"token.issue"`) && strings.Contains(line, `"client":"`+client+`"`) && strings.Contains(line, `"done"`) {
			n++
		}
	}
	return n
}

// tellAPIServers puts the API servers into the running server's configuration.
func (s *server) tellAPIServers(clusters map[string]*testenv.KubeAPIServer) {
	s.t.Helper()
	b, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	text := string(b)
	for id, k := range clusters {
		text = strings.Replace(text, "clientID: "+id+"\n", fmt.Sprintf("clientID: %s\n  apiServer: {url: %q, caFile: %q}\n", id, k.URL, k.CAFile), 1)
	}
	s.write("tabard.yaml", text)
}

// pluginTokens is how long tokens of TestPlugin live: longer than many kubectl at once
// take.
const pluginTokens = 90 * time.Second

// TestPlugin is a person's day with the plugin at two real clusters.
func TestPlugin(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{tokens: fmt.Sprintf("{idTokenLifetime: %s, minLifetime: 2s}", pluginTokens)})
	prod, staging := startCluster(t, s, "kubernetes"), startCluster(t, s, "staging")
	s.tellAPIServers(map[string]*testenv.KubeAPIServer{"kubernetes": prod, "staging": staging})
	p := s.person()
	p.login("alice")
	eventually(t, 2*time.Minute, "the server tells of its clusters", func() error {
		_, err := p.do("", "kubectl", "tabard", "kubeconfig", "-o", p.kubeconfig)
		return err
	})
	if contexts := strings.Fields(p.mustDo("", "kubectl", "config", "get-contexts", "-o", "name")); strings.Join(contexts, " ") != "prod staging" {
		t.Errorf("contexts %v", contexts)
	}
	for _, name := range []string{"prod", "staging"} {
		eventually(t, 2*time.Minute, "alice at "+name, func() error { return p.pods(name) })
	}
	who := p.mustDo("", "kubectl", "--context", "staging", "auth", "whoami", "-o", "json")
	if !strings.Contains(who, `"alice"`) || strings.Contains(who, `"corp:all-devs"`) {
		t.Errorf("staging has groups of its own: %s", who)
	}
	if _, err := p.do("", "kubectl", "tabard", "get-token", "--cluster", "closed"); err == nil || !strings.Contains(err.Error(), "no access to cluster closed") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a cluster that is closed to alice: %v", err)
	}
	beta := prod.Kubeconfig(t, map[string]any{"exec": map[string]any{"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "kubectl-tabard", "args": []string{"get-token", "--server=" + s.issuer, "--cluster=prod"}}})
	p.mustDo("", "kubectl", "--kubeconfig", beta, "get", "pods", "-n", "default")

	testManyAtOnce(t, p, signInWithKubelogin(t, p, prod))
	testEndOfSession(t, p)
	testLogout(t, p)
}

// testManyAtOnce lets every token expire. Then twenty kubectl run with our plugin, and
// five with kubelogin, as k9s and a shell do.
func testManyAtOnce(t *testing.T, p *person, other string) {
	t.Helper()
	time.Sleep(pluginTokens + time.Second)
	before := p.issued("tabard")
	var wg sync.WaitGroup
	for i := range 25 {
		file := p.kubeconfig
		if i%5 == 4 {
			file = other
		}
		wg.Go(func() {
			if _, err := p.do("", "kubectl", "--kubeconfig", file, "get", "pods", "-n", "default"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.issued("tabard") - before; n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// signInWithKubelogin returns a kubeconfig that uses kubelogin, where alice has signed in.
func signInWithKubelogin(t *testing.T, p *person, k *testenv.KubeAPIServer) string {
	t.Helper()
	cache := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	first := exec.CommandContext(ctx, testenv.Binary(t, "kubelogin"), kubeloginArgs(p.server, cache)...)
	stderr, err := first.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	c := p.browser()
	a := get(t, c, waitForURL(t, p.server, stderr))
	at, err := url.Parse(a.header.Get("Location"))
	if err != nil || at.Path != "/authorize" {
		t.Fatalf("kubelogin leads to %q: %v", a.header.Get("Location"), err)
	}
	f, _ := p.openSignIn(c, at.Query())
	if a = p.submit(c, f, "alice", "pw-alice"); a.status != http.StatusSeeOther {
		t.Fatalf("sign-in: %d %s", a.status, a.body)
	}
	get(t, c, a.header.Get("Location"))
	if err := first.Wait(); err != nil {
		t.Fatalf("kubelogin: %v", err)
	}
	return k.Kubeconfig(t, kubeloginUser(t, p.server, cache))
}

// testEndOfSession ends the session at the server: kubectl without a terminal says
// what to do, and a new sign-in is all it takes.
func testEndOfSession(t *testing.T, p *person) {
	t.Helper()
	old := p.expire()
	if a := post(t, p.client(), p.issuer+"/revoke", url.Values{"token": {old}, "client_id": {"tabard"}}); a.status != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.status, a.body)
	}
	for range 2 {
		if err := p.pods("prod"); err == nil || !strings.Contains(err.Error(), "run kubectl tabard login --server "+p.issuer+" --ca-file ") || strings.Contains(err.Error(), "Password") {
			t.Errorf("the session is over: %v", err)
		}
	}
	p.login("alice")
	if err := p.pods("prod"); err != nil {
		t.Error(err)
	}
}

func testLogout(t *testing.T, p *person) {
	t.Helper()
	if out := p.mustDo("", "kubectl", "tabard", "whoami"); !strings.Contains(out, "corp:all-devs") {
		t.Errorf("whoami: %s", out)
	}
	if out, err := p.run(filepath.Join(p.home, "cache"), "", "whoami"); err != nil || !strings.Contains(out, "alice") {
		t.Errorf("tabard has the same cache: %s %v", out, err)
	}
	refreshToken := p.expire()
	p.mustDo("", "kubectl", "tabard", "logout")
	if _, err := p.do("", "kubectl", "tabard", "whoami"); err == nil || !strings.Contains(err.Error(), "not signed in") {
		t.Errorf("after the logout: %v", err)
	}
	if got := p.token(refresh("tabard", refreshToken)); got.Error != "invalid_grant" {
		t.Errorf("the session goes on at the server: %+v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(p.home, "cache", "tabard", "*.json")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPluginOutages shows what the plugin says of a directory that is down, a
// server that is gone, and that the login outlives both.
func TestPluginOutages(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	p := s.person()
	p.login("alice")
	p.expire()
	s.slapd.Stop()
	_, err := p.do("", "kubectl", "tabard", "get-token", "--cluster", "prod")
	if err == nil || !strings.Contains(err.Error(), "you are still signed in") {
		t.Errorf("directory down: %v", err)
	}
	s.Stop()
	if _, err = p.do("", "kubectl", "tabard", "get-token", "--cluster", "prod"); err == nil || !strings.Contains(err.Error(), "gives no answer") || !strings.Contains(err.Error(), "you are still signed in") {
		t.Errorf("server gone: %v", err)
	}
	if p.expire() == "" {
		t.Error("the login is gone")
	}
}

// TestPluginWays signs in by another device and by a browser.
func TestPluginWays(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	for way, visit := range map[string]func(p *person, said string){
		"--device": func(p *person, said string) {
			p.decide(p.browser(), regexp.MustCompile(`(?m)code\n  (\S+)$`).FindStringSubmatch(said)[1], "kubectl-tabard on ", "alice", "allow")
		},
		"--browser": func(p *person, said string) {
			at, err := url.Parse(regexp.MustCompile(`https://\S+`).FindString(said))
			if err != nil {
				t.Fatal(err)
			}
			b := testenv.Chromium(p.t)
			b.Navigate(at.String())
			b.WaitFor(`document.querySelector('input[name=password]')`)
			b.Type("input[name=username]", "alice")
			b.Type("input[name=password]", "pw-alice")
			b.Press("Enter")
			b.WaitFor(`location.pathname == '/callback' && document.querySelector('h1')`)
			if title := b.Text("h1"); title != "Signed in" || len(b.ConsoleErrors()) > 0 {
				p.t.Errorf("the browser shows %q, %v", title, b.ConsoleErrors())
			}
		},
	} {
		t.Run(way, func(t *testing.T) {
			s := *s
			s.t = t
			p := s.person()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := p.command(ctx, "kubectl", "tabard", "login", way, "--server", s.issuer, "--ca-file", s.caFile)
			var out bytes.Buffer
			cmd.Stdout = &out
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := untilAsked(t, stderr)
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			visit(p, said)
			if err := cmd.Wait(); err != nil || !strings.HasPrefix(out.String(), "Server    "+s.issuer) || !strings.Contains(out.String(), "alice") {
				t.Errorf("%v: %s", err, &out)
			}
		})
	}
}

// untilAsked reads what the plugin says until it has named the page and the code.
func untilAsked(t *testing.T, r io.Reader) string {
	t.Helper()
	var said strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "/authorize?") || strings.Contains(said.String(), "same code") {
			return said.String()
		}
	}
	t.Fatalf("it said only %s", &said)
	return ""
}

// TestPluginTerminal asks in a terminal: kubectl that has no login yet, and Ctrl-C
// at the password.
func TestPluginTerminal(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "script")
	s := startTabard(t, options{})
	p := s.person()
	login := "kubectl-tabard get-token --prompt --cluster prod --server " + s.issuer + " --ca-file " + s.caFile
	out := p.script(login, map[string]string{"Username: ": "alice\n", "Password: ": "wrong\n"}, map[string]string{"Username: ": "alice\n", "Password: ": "pw-alice\n"})
	if !strings.Contains(out, `"kind":"ExecCredential"`) || strings.Contains(out, "pw-alice") || !strings.HasSuffix(out, "exit 0") {
		t.Errorf("the terminal shows %s", out)
	}
	p = s.person()
	out = p.script(login, map[string]string{"Username: ": "alice\n", "Password: ": "\x03"})
	if !strings.Contains(out, "tabard: interrupted") || !strings.HasSuffix(out, "exit 130") || strings.Contains(out, "-echo ") {
		t.Errorf("the terminal shows %s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(p.home, "cache", "tabard", "*[^k]")); len(left) > 0 { // all but .lock
		t.Errorf("left: %v", left)
	}
}

// TestPluginWithoutHome has no place for a cache: it says so and works all the same.
func TestPluginWithoutHome(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "script")
	s := startTabard(t, options{})
	for _, home := range []string{"", "/proc/nowhere"} {
		p := s.person()
		p.env = append(p.env, "HOME="+home, "XDG_CACHE_HOME=", "XDG_CONFIG_HOME=")
		out := p.script("kubectl-tabard get-token --cluster prod --username alice --server "+s.issuer+" --ca-file "+s.caFile, map[string]string{"Password: ": "pw-alice\n"})
		if !strings.Contains(out, "logins are not kept") || !strings.Contains(out, `"kind":"ExecCredential"`) || !strings.HasSuffix(out, "exit 0") {
			t.Errorf("HOME=%s: the terminal shows %s", home, out)
		}
		if _, err := p.do("", "kubectl-tabard", "login", "--server", s.issuer); err == nil || !strings.Contains(err.Error(), "--cache-dir") {
			t.Errorf("HOME=%s: login: %v", home, err)
		}
	}
}

// TestPluginInterrupted sends SIGINT while the plugin waits for another device and
// for a browser.
func TestPluginInterrupted(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	for _, way := range []string{"--device", "--browser"} {
		p := s.person()
		cmd := p.command(t.Context(), "kubectl", "tabard", "login", way, "--server", s.issuer, "--ca-file", s.caFile)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		untilAsked(t, stderr)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(stderr)
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 || !strings.Contains(string(rest), "interrupted") {
			t.Errorf("%s: %v: %s", way, err, rest)
		}
		if left, _ := filepath.Glob(filepath.Join(p.home, "cache", "tabard", "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// script runs a command line in a terminal and answers its prompts, in rounds. What
// the terminal shows ends in its settings and the exit code.
func (p *person) script(line string, rounds ...map[string]string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Minute)
	defer cancel()
	// The shell gets a Ctrl-C too; without the trap it may end before it says anything.
	cmd := exec.CommandContext(ctx, "script", "-qc", "trap : INT; "+line+`; code=$?; stty -a; echo "exit $code"`, "/dev/null")
	cmd.Env, cmd.Dir, cmd.WaitDelay = p.env, p.home, time.Minute
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	var shown strings.Builder
	since := 0
	for b := make([]byte, 1024); ; {
		n, err := out.Read(b)
		shown.Write(b[:n])
		for prompt, answer := range first(rounds) {
			if strings.HasSuffix(shown.String()[since:], prompt) {
				delete(rounds[0], prompt)
				since = shown.Len()
				_, _ = io.WriteString(in, answer)
			}
		}
		if len(rounds) > 0 && len(rounds[0]) == 0 {
			rounds = rounds[1:]
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()
	return strings.TrimSpace(shown.String())
}

func first(rounds []map[string]string) map[string]string {
	if len(rounds) == 0 {
		return nil
	}
	return rounds[0]
}
