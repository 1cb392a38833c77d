package parts

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// maxBuildOutput is how much of what the go command says is kept for an error.
const maxBuildOutput = 4 << 10

// Build returns the path of the program name, one of Names, and builds it when
// this version is not in the cache yet: minutes for kube-apiserver, and the
// network unless Go's module cache has it all. The cache is $TABARD_CACHE, or
// tabard/parts in the user's cache folder. Those who build at once wait for one.
// progress, unless nil, is told what is being done.
//
// The error says what to do about a missing or old Go, no network and a full
// disk; it is ErrNoCheckout where there is nothing to build from.
func Build(ctx context.Context, name string, progress func(doing string)) (string, error) {
	p, err := partNamed(name)
	if err != nil {
		return "", err
	}
	root, err := checkout()
	if err != nil {
		return "", err
	}
	moduleDir := filepath.Join(root, "internal", "parts", "modules", p.module)
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	ldflags, version, err := pinned(moduleDir, p)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(cache, name+"-"+version, name)
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", fmt.Errorf("the go command is not in PATH, and it builds %s: install Go 1.26 or newer from https://go.dev/dl", name)
	}
	if progress == nil {
		progress = func(string) {}
	}
	progress("waiting for another build")
	lock := flock.New(filepath.Join(cache, "build.lock"))
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for another build in %s: %w", cache, err)
	}
	defer lock.Unlock()
	return binary, compile(ctx, moduleDir, p.pkg, ldflags, binary, progress)
}

// compile builds pkg to binary, which appears whole or not at all. The caller
// holds the lock.
func compile(ctx context.Context, moduleDir, pkg, ldflags, binary string, progress func(string)) error {
	if _, err := os.Stat(binary); err == nil {
		return nil // built by the one we waited for
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return fmt.Errorf("create the cache for built parts: %w", err)
	}
	progress("looking at what there is to build")
	unfinished := binary + ".new"
	_ = os.Remove(unfinished)   // of a build that was killed: go overwrites no file it does not know
	defer os.Remove(unfinished) // gone when all went well
	cmd := exec.CommandContext(ctx, "go", "build", "-C", moduleDir, "-v", "-ldflags", ldflags, "-o", unfinished, pkg)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	cmd.SysProcAttr = processAttributes()
	cmd.Cancel = func() error { signalGroup(cmd.Process, syscall.SIGKILL); return nil }
	cmd.WaitDelay = stopGrace
	said := &buildOutput{progress: progress}
	cmd.Stdout, cmd.Stderr = said, said
	runtime.LockOSThread() // see Process.run
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("build %s: %w", pkg, context.Cause(ctx))
		}
		return fmt.Errorf("build %s: %s%w\n%s", pkg, buildTrouble(string(said.kept)), err, bytes.TrimSpace(said.kept))
	}
	if err := os.Rename(unfinished, binary); err != nil {
		return fmt.Errorf("put %s into the cache: %w", filepath.Base(binary), err)
	}
	return nil
}

// buildOutput takes what the go command writes: it passes on what is progress and
// keeps the end of the rest.
type buildOutput struct {
	progress func(string)
	packages int
	line     []byte // not ended yet
	kept     []byte
}

// Write implements io.Writer.
func (o *buildOutput) Write(b []byte) (int, error) {
	o.line = append(o.line, b...)
	for {
		line, rest, ended := bytes.Cut(o.line, []byte("\n"))
		if !ended {
			return len(b), nil
		}
		o.take(string(line))
		o.line = rest
	}
}

func (o *buildOutput) take(line string) {
	switch module, downloading := strings.CutPrefix(line, "go: downloading "); {
	case downloading:
		o.progress("downloading " + module)
	case line != "" && !strings.ContainsAny(line, " \t"): // go build -v names each package
		o.packages++
		o.progress(fmt.Sprintf("compiling package %d", o.packages))
	default:
		o.kept = append(append(o.kept, line...), '\n')
		if over := len(o.kept) - maxBuildOutput; over > 0 {
			o.kept = o.kept[over:]
		}
	}
}

// buildTrouble is what a person can do about a build that failed with this
// output, and "" where the output has to do.
func buildTrouble(output string) string {
	has := func(signs string) bool { return regexp.MustCompile(signs).MatchString(output) }
	switch {
	case has(`no space left on device|disk quota exceeded|not enough space on the disk`):
		return "the disk is full. It takes about 4 GB, in the folders that `go env GOCACHE GOMODCACHE` names, in $TMPDIR and in the cache of built parts (TABARD_CACHE moves that): "
	case has(`requires go >= |invalid go version|toolchain not available|unknown block type: tool`):
		return "this Go is too old: install 1.26 or newer from https://go.dev/dl, or let it fetch one with GOTOOLCHAIN=auto: "
	case has(`dial tcp|proxyconnect|connection refused|connection reset|i/o timeout|no such host|TLS handshake|x509: |Proxy Authentication|module lookup disabled|Bad Gateway|Gateway Time-?out|Service Unavailable|reading http\S+: (403|407)`):
		return fmt.Sprintf("Go's modules cannot be downloaded. Where a proxy is in the way, set HTTPS_PROXY (now %s) or GOPROXY (see `go env GOPROXY`); the module cache keeps what has come already: ", setOrNot("HTTPS_PROXY", "https_proxy"))
	case has(`signal: killed|cannot allocate memory`):
		return "the compiler was killed or got no memory: kube-apiserver needs 3 GB free: "
	}
	return ""
}

// setOrNot does not show the value, which may hold a password.
func setOrNot(names ...string) string {
	for _, n := range names {
		if os.Getenv(n) != "" {
			return "set"
		}
	}
	return "not set"
}

// pinned returns the linker flags of p and a short hash of all that decides
// what is built.
func pinned(moduleDir string, p part) (ldflags, version string, err error) {
	mod, err := os.ReadFile(filepath.Join(moduleDir, "go.mod"))
	goSum, errSum := os.ReadFile(filepath.Join(moduleDir, "go.sum"))
	if err := cmp.Or(err, errSum); err != nil {
		return "", "", fmt.Errorf("read the pinned version of %s: %w", p.pkg, err)
	}
	ldflags = "-s -w"
	if p.module == "kubernetes" {
		if ldflags, err = kubernetesLDFlags(mod); err != nil {
			return "", "", err
		}
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\x00%s\x00%s\x00%s %s %s", mod, goSum, ldflags, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return ldflags, fmt.Sprintf("%x", sum.Sum(nil)[:8]), nil
}

// kubernetesLDFlags tell Kubernetes its version, which its own release scripts
// do otherwise.
func kubernetesLDFlags(goMod []byte) (string, error) {
	m := regexp.MustCompile(`k8s\.io/kubernetes v(\d+)\.(\d+)\.(\S+)`).FindSubmatch(goMod)
	if m == nil {
		return "", errors.New("the kubernetes module does not require k8s.io/kubernetes")
	}
	const x = " -X k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w%[1]sgitVersion=v%[2]s.%[3]s.%[4]s%[1]sgitMajor=%[2]s%[1]sgitMinor=%[3]s%[1]sgitTreeState=clean", x, m[1], m[2], m[3])
	return flags, nil
}
