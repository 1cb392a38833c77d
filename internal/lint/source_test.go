package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const maxFunctionLines = 80

// eachFile parses our Go files that are not tests. It leaves out the nested
// modules, which are other people's code.
func eachFile(t *testing.T, check func(fset *token.FileSet, f *ast.File)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (d.Name()[0] == '.' || d.Name() == "testdata" || d.Name() == "modules") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		n++
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		check(fset, f)
		return nil
	})
	if err != nil {
		t.Fatalf("read our sources: %v", err)
	}
	if n < 10 {
		t.Fatalf("found only %d files", n)
	}
}

// undocumented returns the exported names of f that have no comment. Methods
// of the standard interfaces need none: error and fmt.Stringer say it all.
func undocumented(fset *token.FileSet, f *ast.File) []string {
	var bad []string
	note := func(pos token.Pos, name string) {
		if ast.IsExported(name) {
			bad = append(bad, fmt.Sprintf("%s: %s has no comment", fset.Position(pos), name))
		}
	}
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			wellKnown := d.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "String"}, d.Name.Name)
			if d.Doc == nil && !wellKnown && (d.Recv == nil || ast.IsExported(receiver(d.Recv.List[0].Type))) {
				note(d.Pos(), d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					if d.Doc == nil && s.Doc == nil && s.Comment == nil {
						note(s.Pos(), s.Name.Name)
					}
				case *ast.ValueSpec:
					if d.Doc == nil && s.Doc == nil && s.Comment == nil {
						note(s.Pos(), s.Names[0].Name)
					}
				}
			}
		}
	}
	return bad
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// long returns the functions of f with more than limit lines.
func long(fset *token.FileSet, f *ast.File, limit int) []string {
	var bad []string
	for _, decl := range f.Decls {
		d, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		from, to := fset.Position(d.Pos()), fset.Position(d.End())
		if lines := to.Line - from.Line + 1; lines > limit {
			bad = append(bad, fmt.Sprintf("%s: %s has %d lines, the limit is %d", from, d.Name.Name, lines, limit))
		}
	}
	return bad
}

// strangers returns the names that do not belong at the top level. What
// .gitignore names may lie there too.
func strangers(names []string) []string {
	agreed := strings.Fields("cmd idp directory groups proxy web deploy internal docs go.mod go.sum Makefile README.md LICENSE bin tabard")
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return name[0] == '.' || slices.Contains(agreed, name) || strings.HasSuffix(name, ".test") || strings.HasSuffix(name, ".out")
	})
}

func TestExportedNamesAreDocumented(t *testing.T) {
	packages := map[string]bool{}
	eachFile(t, func(fset *token.FileSet, f *ast.File) {
		for _, b := range undocumented(fset, f) {
			t.Error(b)
		}
		dir := filepath.Dir(fset.Position(f.Pos()).Filename)
		packages[dir] = packages[dir] || f.Doc != nil
	})
	for dir, documented := range packages {
		if !documented {
			t.Errorf("%s: the package has no comment", dir)
		}
	}
}

func TestFunctionsReadOnOneScreen(t *testing.T) {
	eachFile(t, func(fset *token.FileSet, f *ast.File) {
		for _, b := range long(fset, f, maxFunctionLines) {
			t.Error(b)
		}
	})
}

func TestTopLevelEntries(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if bad := strangers(names); len(bad) > 0 {
		t.Errorf("these do not belong at the top level: %v", bad)
	}
}

func TestBadSourceIsFound(t *testing.T) {
	const source = `package p
type A struct{}
func (a *A) M() {}
func (a A) Error() string { return "" }
func (b *b[T]) M() {}
// C is documented.
type C int
const (
	D = 1 // is documented
	E = 2
)
var F, g = 1, 2
func h() {
	_ = 1
}
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"p.go:2:6: A has no comment", "p.go:3:1: M has no comment",
		"p.go:10:2: E has no comment", "p.go:12:5: F has no comment",
	}
	if got := undocumented(fset, f); !slices.Equal(got, want) {
		t.Errorf("undocumented: %q", got)
	}
	if got := long(fset, f, 2); len(got) != 1 || !strings.Contains(got[0], "h has 3 lines") {
		t.Errorf("long: %q", got)
	}
	if got := strangers([]string{"cmd", ".ci", "x.test", "util", "main.go"}); !slices.Equal(got, []string{"util", "main.go"}) {
		t.Errorf("strangers: %q", got)
	}
}
