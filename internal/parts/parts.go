// Package parts builds and starts the real programs that Tabard is tested and
// shown with, kube-apiserver, kubectl and etcd, and for tests alone kubelogin, Helm
// and k9s, at the versions that nested modules pin. Everything listens on loopback;
// every program runs in a process group of its own and dies with the process that
// started it, on Linux even when that one is killed.
package parts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Names lists the programs that Build knows.
func Names() []string {
	return []string{"kube-apiserver", "kubectl", "etcd", "kubelogin", "helm", "k9s", "staticcheck"}
}

// part says where a program comes from: the nested module that pins its
// version, in internal/parts/modules, and its package.
type part struct{ module, pkg string }

func partNamed(name string) (part, error) {
	switch name {
	case "kube-apiserver", "kubectl":
		return part{"kubernetes", "k8s.io/kubernetes/cmd/" + name}, nil
	case "etcd":
		return part{"etcd", "go.etcd.io/etcd/server/v3"}, nil
	case "kubelogin":
		return part{"kubelogin", "github.com/int128/kubelogin"}, nil
	case "helm":
		return part{"helm", "helm.sh/helm/v4/cmd/helm"}, nil
	case "k9s":
		return part{"k9s", "github.com/derailed/k9s"}, nil
	case "staticcheck":
		return part{"staticcheck", "honnef.co/go/tools/cmd/staticcheck"}, nil
	}
	return part{}, fmt.Errorf("no part is named %q; there are %s", name, strings.Join(Names(), ", "))
}

// ErrNoCheckout: neither the working folder nor the program's own lies inside a
// checkout of Tabard, whose nested modules pin what is built.
var ErrNoCheckout = errors.New("not inside a checkout of Tabard")

// checkout is the folder of Tabard's go.mod, above the working folder or above
// the program that runs.
func checkout() (string, error) {
	var from []string
	if dir, err := os.Getwd(); err == nil {
		from = append(from, dir)
	}
	if exe, err := os.Executable(); err == nil {
		from = append(from, filepath.Dir(exe))
	}
	for _, dir := range from {
		for parent := ""; dir != parent; dir = filepath.Dir(dir) {
			mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(mod), "module github.com/tabard-id/tabard\n") {
				return dir, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("find the checkout: %w", err)
			}
			parent = dir
		}
	}
	return "", ErrNoCheckout
}

// cacheDir is where built programs are kept.
func cacheDir() (string, error) {
	dir := os.Getenv("TABARD_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache for built parts (or set TABARD_CACHE): %w", err)
		}
		dir = filepath.Join(user, "tabard", "parts")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the cache for built parts (or set TABARD_CACHE): %w", err)
	}
	return dir, nil
}

// Ports are given out from firstPort, above all that browsers refuse, to where the
// system's own choice begins, which is what outgoing connections use; blockSize apart.
const (
	firstPort = 11000
	blockSize = 4
)

// FreePort returns a TCP port on 127.0.0.1 that nobody listens on. The three ports after
// it are given to nobody either.
//
// No connection takes one of these ports by chance while a program that uses it is down.
// FreePort also leaves a connection in TIME_WAIT on it: while that lasts (60 s on Linux)
// no other call gets it, in this process or another, and a program that names it can
// still listen on it.
func FreePort() (port int, err error) {
	blocks := (firstOwnPort() - firstPort) / blockSize
	if blocks < 1000 {
		return reserve(0) // the best there is
	}
	for range 100 {
		if port, err = reserve(firstPort + blockSize*rand.IntN(blocks)); err == nil {
			return port, nil
		}
	}
	return 0, err
}

// firstOwnPort is the first port that the system gives out itself: Linux says which, and
// elsewhere it is none below 32768.
func firstOwnPort() (first int) {
	said, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(said), &first)
	}
	if err != nil {
		return 32768
	}
	return first
}

// reserve leaves a connection in TIME_WAIT on a port that has none; 0 is any port.
func reserve(port int) (int, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return shares(c, false) }}
	l, err := config.Listen(context.Background(), "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	own, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = shares(own, true) // with those who come, and name it
	}
	if err != nil {
		return 0, fmt.Errorf("reserve %s: %w", l.Addr(), err)
	}
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("reserve %s: %w", l.Addr(), err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		return 0, fmt.Errorf("reserve %s: %w", l.Addr(), err)
	}
	server.Close() // The side that closes first keeps TIME_WAIT: it must be this one.
	return l.Addr().(*net.TCPAddr).Port, nil
}
