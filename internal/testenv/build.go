package testenv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// Parts lists the programs that Binary and Build know.
func Parts() []string {
	return []string{"kube-apiserver", "kubectl", "etcd", "kubelogin", "staticcheck"}
}

// part says where a program comes from: the nested module that pins its
// version, in internal/testenv/modules, and its package.
type part struct{ module, pkg string }

func partNamed(name string) (part, error) {
	switch name {
	case "kube-apiserver", "kubectl":
		return part{"kubernetes", "k8s.io/kubernetes/cmd/" + name}, nil
	case "etcd":
		return part{"etcd", "go.etcd.io/etcd/server/v3"}, nil
	case "kubelogin":
		return part{"kubelogin", "github.com/int128/kubelogin"}, nil
	case "staticcheck":
		return part{"staticcheck", "honnef.co/go/tools/cmd/staticcheck"}, nil
	}
	return part{}, fmt.Errorf("no part is named %q; there are %s", name, strings.Join(Parts(), ", "))
}

// Binary returns the path of a part built from its nested module: one of
// Parts. The first call for a version builds it, which takes minutes for
// kube-apiserver; `make tools` does that ahead of the tests.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		Skip(t, "the go command is not in PATH: it builds "+name)
	}
	path, err := Build(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Build returns the path of the part name, one of Parts, and builds it when
// this version is not in the cache yet. The cache is $TABARD_CACHE, or
// tabard/parts in the user's cache folder. Packages tested in parallel wait
// for one build.
func Build(ctx context.Context, name string) (string, error) {
	p, err := partNamed(name)
	if err != nil {
		return "", err
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	moduleDir := filepath.Join(root, "internal", "testenv", "modules", p.module)
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
	lock := flock.New(filepath.Join(cache, "build.lock"))
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for another build in %s: %w", cache, err)
	}
	defer lock.Unlock()
	return binary, compile(ctx, moduleDir, p.pkg, ldflags, binary)
}

// compile builds pkg to binary, which appears whole or not at all. The caller
// holds the lock.
func compile(ctx context.Context, moduleDir, pkg, ldflags, binary string) error {
	if _, err := os.Stat(binary); err == nil {
		return nil // built by the one we waited for
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return fmt.Errorf("create the cache for test parts: %w", err)
	}
	unfinished := binary + ".new"
	cmd := exec.CommandContext(ctx, "go", "build", "-C", moduleDir, "-ldflags", ldflags, "-o", unfinished, pkg)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s, pinned in %s: %w\n%s", pkg, moduleDir, err, out)
	}
	if err := os.Rename(unfinished, binary); err != nil {
		return fmt.Errorf("put %s into the cache: %w", filepath.Base(binary), err)
	}
	return nil
}

// pinned returns the linker flags of p and a short hash of all that decides
// what is built.
func pinned(moduleDir string, p part) (ldflags, version string, err error) {
	sum := sha256.New()
	mod, err := os.ReadFile(filepath.Join(moduleDir, "go.mod"))
	if err != nil {
		return "", "", fmt.Errorf("read the pinned version of %s: %w", p.pkg, err)
	}
	goSum, err := os.ReadFile(filepath.Join(moduleDir, "go.sum"))
	if err != nil {
		return "", "", fmt.Errorf("read the pinned version of %s: %w", p.pkg, err)
	}
	ldflags = "-s -w"
	if p.module == "kubernetes" {
		if ldflags, err = kubernetesLDFlags(mod); err != nil {
			return "", "", err
		}
	}
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

// moduleRoot is the folder of Tabard's go.mod, above the working folder.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module's root: %w", err)
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module github.com/tabard-id/tabard\n") {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the module's root: %w", err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("the working folder is not inside a checkout of Tabard")
		}
		dir = parent
	}
}

func cacheDir() (string, error) {
	dir := os.Getenv("TABARD_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache for test parts (or set TABARD_CACHE): %w", err)
		}
		dir = filepath.Join(user, "tabard", "parts")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the cache for test parts (or set TABARD_CACHE): %w", err)
	}
	return dir, nil
}
