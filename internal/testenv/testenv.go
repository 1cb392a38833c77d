// Package testenv starts the real parts that tests talk to: directories, etcd,
// kube-apiserver and Chromium. Everything listens on loopback, writes to the
// test's own temporary folder and ends with the test. A part that is not
// installed skips the test with a sentence that says how to get it; where
// CI=true is set it fails the test instead.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tabard-id/tabard/internal/parts"
)

// sbinDirs hold daemons and are often missing from a person's PATH.
const sbinDirs = "/usr/local/sbin:/usr/sbin:/sbin"

// Skip ends the test as skipped for the reason why, a sentence that says what
// to do. Where CI=true is set nothing may skip, so the test fails instead.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("may not skip while CI=true: %s", why)
	}
	t.Skip(why)
}

// Need skips the test (see Skip) unless each of binaries is installed.
func Need(t testing.TB, binaries ...string) {
	t.Helper()
	for _, b := range binaries {
		Path(t, b)
	}
}

// Path returns where binary is installed: in PATH or in one of the sbin
// folders. It skips the test (see Skip) when it is nowhere.
func Path(t testing.TB, binary string) string {
	t.Helper()
	if p, err := exec.LookPath(binary); err == nil {
		return p
	}
	for _, dir := range filepath.SplitList(sbinDirs) {
		if p, err := exec.LookPath(filepath.Join(dir, binary)); err == nil {
			return p
		}
	}
	Skip(t, howToGet(binary))
	return ""
}

// howToGet is the sentence for a missing binary.
func howToGet(binary string) string {
	pkg := ""
	switch binary {
	case "slapd", "slapadd", "slappasswd":
		pkg = "slapd"
	case "ldapsearch", "ldapadd", "ldapmodify", "ldapwhoami", "ldapdelete", "ldappasswd":
		pkg = "ldap-utils"
	case "ns-slapd", "dscreate":
		pkg = "389-ds-base"
	case "samba":
		pkg = "samba-ad-dc"
	case "samba-tool":
		pkg = "samba-ad-provision, samba-dsdb-modules and python3-samba"
	case "ldbadd", "ldbsearch", "ldbmodify":
		pkg = "ldb-tools"
	case "chromium":
		pkg = "chromium"
	case "kube-apiserver", "kubectl", "etcd", "kubelogin", "helm", "k9s", "staticcheck":
		return fmt.Sprintf("%s is not built: run `make tools`", binary)
	default:
		return fmt.Sprintf("%s is not installed: put it into PATH", binary)
	}
	return fmt.Sprintf("%s is not installed: run `make deps` as root, or install the Debian package %s", binary, pkg)
}

// FreePort returns a TCP port on 127.0.0.1 that nobody listens on; see
// parts.FreePort. On Linux nobody else gets it before the test ends, however long its
// server takes to start or is down.
func FreePort(t testing.TB) int {
	t.Helper()
	var err error
	for range 10 { // a program that another test starts at this moment may have the port's listener still
		var port int
		if port, err = parts.FreePort(); err == nil {
			err = hold(t, port)
		}
		if err == nil {
			return port
		}
	}
	t.Fatal(err)
	return 0
}

// writeFile writes a file only its owner reads, or ends the test.
func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
}

// tail returns the last n bytes of the file at path, from a line's start.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(b) <= n {
		return string(b)
	}
	_, rest, _ := strings.Cut(string(b[len(b)-n:]), "\n")
	return "…\n" + rest
}
