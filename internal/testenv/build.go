package testenv

import (
	"os/exec"
	"testing"

	"github.com/tabard-id/tabard/internal/parts"
)

// Binary returns the path of a part built from its nested module: one of
// parts.Names. The first call for a version builds it, which takes minutes for
// kube-apiserver; `make tools` does that ahead of the tests.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		Skip(t, "the go command is not in PATH: it builds "+name)
	}
	path, err := parts.Build(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
