package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

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

// readGroups reads the documents of b. Every key has to be known, occur once and have a
// value of its type; anchors, aliases and tags are refused, as in the configuration.
func readGroups(b []byte) *groupFile {
	f := &groupFile{decoder: decoder{at: map[string]position{}}}
	if !utf8.Valid(b) {
		f.mistakes = []mistake{{msg: "is not UTF-8 text"}}
		return f
	}
	for docs := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc yaml.Node
		err := docs.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return f
		}
		if err != nil {
			f.mistakes = append(f.mistakes, syntaxMistake(err))
			return f
		}
		if n := doc.Content[0]; n.ShortTag() != "!!null" || n.Value != "" {
			f.group(n)
		}
	}
}

// reading is how the value of a key is read.
type reading func(n *yaml.Node, path string)

// keys reads a mapping and returns the keys that it has; nil for what is no mapping.
func (f *groupFile) keys(n *yaml.Node, path string, known map[string]reading) (found map[string]*yaml.Node) {
	if !f.plain(n, path) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		f.wrong(n, path, "must be a mapping of keys to values")
		return nil
	}
	found = map[string]*yaml.Node{}
	for pair := range slices.Chunk(n.Content, 2) {
		name := keyName(pair[0])
		key := join(path, name)
		read, ok := known[name]
		switch {
		case found[name] != nil:
			f.wrong(pair[0], key, "is there twice: keep one")
		case !ok && plainKey.MatchString(name):
			f.wrong(pair[0], key, "is not a key: use %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case !ok:
			f.wrong(pair[0], path, "has a key that cannot be one")
		case pair[1].ShortTag() == "!!null":
			f.wrong(pair[1], key, "has no value: give it one or leave the key out")
		default:
			read(pair[1], key)
		}
		found[name] = pair[1]
	}
	return found
}

// plain refuses what stands for something else.
func (f *groupFile) plain(n *yaml.Node, path string) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 {
		f.wrong(n, path, "anchors, aliases and tags are not read: write the value out")
		return false
	}
	return true
}

func (f *groupFile) group(n *yaml.Node) {
	g := api.File{}
	found := f.keys(n, "", map[string]reading{
		"name": f.text(&g.Name), "description": f.text(&g.Description), "requestable": f.truth(&g.Requestable), "labels": f.labels(&g.Labels),
		"clusters": f.list(func(n *yaml.Node, path string) {
			g.Clusters = append(g.Clusters, "")
			f.text(&g.Clusters[len(g.Clusters)-1])(n, path)
		}),
		"owners": f.list(func(n *yaml.Node, path string) {
			var w api.Who
			f.who(n, path, &w, map[string]reading{})
			g.Owners = append(g.Owners, w)
		}),
		"members": func(n *yaml.Node, path string) {
			g.Members = []api.FileMember{}
			f.list(func(n *yaml.Node, path string) { g.Members = append(g.Members, f.member(n, path)) })(n, path)
		},
	})
	if found != nil && found["name"] == nil {
		f.wrong(n, "", "has no name: a document is one group")
	}
	f.groups, f.lines = append(f.groups, g), append(f.lines, where(n))
}

func (f *groupFile) member(n *yaml.Node, path string) api.FileMember {
	var m api.FileMember
	f.who(n, path, &m.Who, map[string]reading{"begin": f.moment(&m.Begin), "end": f.moment(&m.End), "reason": f.text(&m.Reason)})
	if m.Begin != nil && m.End != nil && !m.End.After(*m.Begin) {
		f.wrong(n, path, "ends before it begins")
	}
	return m
}

// who reads a mapping that names one person or group, with more keys.
func (f *groupFile) who(n *yaml.Node, path string, w *api.Who, more map[string]reading) {
	more["person"], more["directoryGroup"], more["group"], more["name"] = f.text(&w.Person), f.text(&w.DirectoryGroup), f.text(&w.Group), f.text(&w.Name)
	found := f.keys(n, path, more)
	if found == nil {
		return
	}
	named := 0
	for _, key := range []string{"person", "directoryGroup", "group"} {
		if found[key] != nil {
			named++
		}
	}
	if named != 1 {
		f.wrong(n, path, "must name one person, one directoryGroup or one group")
	}
}

// text reads text; a number or a date wants quotes.
func (f *groupFile) text(into *string) reading {
	return func(n *yaml.Node, path string) {
		if !f.plain(n, path) {
			return
		}
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			f.wrong(n, path, "must be text: put it in quotes")
			return
		}
		*into = n.Value
	}
}

func (f *groupFile) truth(into *bool) reading {
	return func(n *yaml.Node, path string) {
		if !f.plain(n, path) {
			return
		}
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			f.wrong(n, path, "must be true or false")
			return
		}
		*into = strings.EqualFold(n.Value, "true")
	}
}

// moment reads an instant. A day alone is refused: it would have no time zone.
func (f *groupFile) moment(into **time.Time) reading {
	return func(n *yaml.Node, path string) {
		if !f.plain(n, path) {
			return
		}
		t, err := time.Parse(time.RFC3339, n.Value)
		if n.Kind != yaml.ScalarNode || err != nil {
			f.wrong(n, path, "must be a time with its zone, such as 2027-01-31T18:00:00Z")
			return
		}
		*into = &t
	}
}

func (f *groupFile) list(item reading) reading {
	return func(n *yaml.Node, path string) {
		if !f.plain(n, path) {
			return
		}
		if n.Kind != yaml.SequenceNode {
			f.wrong(n, path, "must be a list")
			return
		}
		for i, one := range n.Content {
			item(one, fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

func (f *groupFile) labels(into *map[string]string) reading {
	return func(n *yaml.Node, path string) {
		if !f.plain(n, path) {
			return
		}
		if n.Kind != yaml.MappingNode {
			f.wrong(n, path, "must be a mapping of keys to values")
			return
		}
		labels := map[string]string{}
		for pair := range slices.Chunk(n.Content, 2) {
			var k, v string
			f.text(&k)(pair[0], path)
			f.text(&v)(pair[1], path)
			if _, twice := labels[k]; twice {
				f.wrong(pair[0], path, "has a label twice: keep one")
			}
			labels[k] = v
		}
		*into = labels
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
