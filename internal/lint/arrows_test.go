package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/tabard-id/tabard/"
	root   = "../.."
)

// rooms lists what each room's own packages may import of the others. A package
// belongs to the room with the longest path that it lies in. Arrows point one
// way: cmd → web, idp/provider, proxy → idp → groups, directory →
// internal/store, internal/audit.
func rooms() map[string][]string {
	base := []string{"internal/store", "internal/audit"}
	beneathIDP := slices.Concat([]string{"groups", "directory"}, base)
	beneathFront := append([]string{"idp"}, beneathIDP...)
	anything := slices.Concat([]string{"cmd/tabard", "web", "idp/provider", "proxy", "internal/api", "internal/demoldap",
		"internal/parts", "internal/testenv", "internal/store/storetest"}, beneathFront)
	return map[string][]string{
		"cmd/tabard":               slices.Concat([]string{"web", "idp/provider", "proxy", "internal/api", "internal/demoldap", "internal/parts"}, beneathFront),
		"cmd/kubectl-tabard":       {"internal/api"},
		"web":                      append([]string{"internal/api"}, beneathFront...),
		"idp/provider":             beneathFront,
		"proxy":                    beneathFront,
		"idp":                      beneathIDP,
		"groups":                   base,
		"directory":                base,
		"internal/store":           {},
		"internal/audit":           {},
		"internal/api":             {},
		"internal/demoldap":        {},
		"internal/parts":           {},
		"internal/lint":            {},
		"internal/store/storetest": {"internal/store"},
		"internal/testenv":         {"internal/parts"},
		"internal/e2e":             anything,
		"deploy":                   {},
	}
}

// owners names the one package tree that may import each library.
func owners() map[string]string {
	return map[string]string{
		"github.com/zitadel/oidc":    "idp/provider",
		"github.com/go-ldap/ldap":    "directory",
		"github.com/labstack/echo":   "web",
		"go.etcd.io/bbolt":           "internal/store/bolt",
		"go.etcd.io/etcd/client":     "internal/store/etcd",
		"github.com/jimlambrt/gldap": "internal/demoldap",
		"github.com/google/cel-go":   "proxy",
		"k8s.io/apiserver":           "proxy",
	}
}

// testRooms serve tests alone: no other room's own files import them, and they
// may use any library.
func testRooms() []string {
	return []string{"internal/testenv", "internal/store/storetest", "internal/e2e", "internal/lint"}
}

// pkg is what is checked of a package: its path below the module, and what its
// files other than tests import.
type pkg struct {
	ImportPath string
	Imports    []string
}

// badImports returns a sentence for each import that breaks a rule.
func badImports(pkgs []pkg) []string {
	var bad []string
	for _, p := range pkgs {
		path := strings.TrimPrefix(p.ImportPath, module)
		from := roomOf(path)
		if from == "" {
			bad = append(bad, fmt.Sprintf("%s is in no room: give it a place in rooms()", path))
			continue
		}
		for _, imported := range p.Imports {
			if why := whyNot(from, path, imported); why != "" {
				bad = append(bad, fmt.Sprintf("%s may not import %s: %s", path, imported, why))
			}
		}
	}
	return bad
}

// whyNot says why the package at path, in room from, may not import imported;
// it is "" when it may.
func whyNot(from, path, imported string) string {
	if ours, ok := strings.CutPrefix(imported, module); ok {
		to := roomOf(ours)
		if to == from || slices.Contains(rooms()[from], to) {
			return ""
		}
		return "the arrow points the other way, or there is none"
	}
	if slices.Contains(testRooms(), from) {
		return ""
	}
	if from == "idp" && within(imported, "net/http") {
		return "idp takes parsed data and knows no HTTP"
	}
	for library, owner := range owners() {
		if within(imported, library) && !within(path, owner) {
			return "only " + owner + " does"
		}
	}
	return ""
}

// roomOf returns the room with the longest path that holds path, or "".
func roomOf(path string) string {
	longest := ""
	for room := range rooms() {
		if within(path, room) && len(room) > len(longest) {
			longest = room
		}
	}
	return longest
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func TestImportArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("read the answer of go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	for _, b := range badImports(pkgs) {
		t.Error(b)
	}
}

func TestBadImportsAreFound(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"cmd/tabard", module + "web", true},
		{"cmd/tabard", module + "internal/store/bolt", true},
		{"web", module + "idp", true},
		{"web", module + "internal/api", true},
		{"web", "github.com/labstack/echo/v4/middleware", true},
		{"idp/provider", module + "idp", true},
		{"idp/provider", "github.com/zitadel/oidc/v3/pkg/op", true},
		{"idp", module + "groups", true},
		{"groups", module + "internal/audit", true},
		{"directory", "github.com/go-ldap/ldap/v3", true},
		{"internal/store/bolt", module + "internal/store", true},
		{"internal/store/bolt", "go.etcd.io/bbolt", true},
		{"internal/store/storetest", module + "internal/store", true},
		{"internal/testenv/cmd/parts", module + "internal/parts", true},
		{"cmd/tabard", module + "internal/parts", true},
		{"internal/testenv", "github.com/go-ldap/ldap/v3", true},
		{"cmd/kubectl-tabard", module + "internal/api", true},

		{"web", module + "proxy", false},
		{"web", module + "idp/provider", false},
		{"proxy", module + "web", false},
		{"idp", module + "idp/provider", false},
		{"idp", module + "web", false},
		{"idp", "net/http", false},
		{"idp", "github.com/zitadel/oidc/v3/pkg/oidc", false},
		{"idp/provider", "github.com/go-ldap/ldap/v3", false},
		{"groups", module + "directory", false},
		{"directory", module + "groups", false},
		{"directory", module + "idp", false},
		{"internal/store", module + "internal/audit", false},
		{"internal/audit", module + "internal/store", false},
		{"internal/store/etcd", "go.etcd.io/bbolt", false},
		{"groups", "go.etcd.io/bbolt", false},
		{"proxy", "github.com/labstack/echo/v4", false},
		{"cmd/tabard", "github.com/labstack/echo/v4", false},
		{"cmd/kubectl-tabard", module + "idp", false},
		{"internal/api", module + "groups", false},
		{"web", module + "internal/testenv", false},
		{"internal/parts", module + "internal/testenv", false},
		{"web", module + "internal/parts", false},
		{"internal/store/bolt", module + "internal/store/storetest", false},
		{"internal/helpers", "fmt", false},
	} {
		bad := badImports([]pkg{{ImportPath: module + c.from, Imports: []string{"context", c.to}}})
		if got := len(bad) == 0; got != c.ok {
			t.Errorf("%s → %s: allowed %v, want %v %v", c.from, c.to, got, c.ok, bad)
		}
	}
}
