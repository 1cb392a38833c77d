package main

import (
	"fmt"
	"io"
	"reflect"

	"go.yaml.in/yaml/v3"

	"github.com/tabard-id/tabard/internal/api"
)

// groupFile reads groups from a file, one a document. It goes on after a mistake, so that
// all are found at once.
type groupFile struct {
	decoder
	groups []api.File
	lines  []position // where each group begins
}

// readGroups reads the documents of b as strictly as the configuration is read.
func readGroups(b []byte) *groupFile {
	f := &groupFile{decoder: decoder{at: map[string]position{}}}
	f.checked = f.check
	f.documents(b, func(n *yaml.Node) {
		var g api.File
		f.value(n, reflect.ValueOf(&g).Elem(), "")
		f.groups, f.lines = append(f.groups, g), append(f.lines, where(n))
	})
	return f
}

// check looks for what a group, an owner or a member must have.
func (f *groupFile) check(n *yaml.Node, path string, into any, keys map[string]bool) {
	if _, ok := into.(*api.File); ok {
		if !keys["name"] {
			f.wrong(n, "", "has no name: a document is one group")
		}
		return
	}
	named := 0
	for _, key := range []string{"person", "directoryGroup", "group"} {
		if keys[key] {
			named++
		}
	}
	if named != 1 {
		f.wrong(n, path, "must name one person, one directoryGroup or one group")
	}
	if m, ok := into.(*api.FileMember); ok && m.Begin != nil && m.End != nil && !m.End.After(*m.Begin) {
		f.wrong(n, path, "ends before it begins")
	}
}

// writeGroup writes g as a document that readGroups reads.
func writeGroup(w io.Writer, g api.File) error {
	if _, err := io.WriteString(w, "---\n"); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(g); err != nil {
		return fmt.Errorf("write group %q: %w", g.Name, err)
	}
	return enc.Close()
}
