package main

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// position is a place in the configuration file, counted from 1.
type position struct{ line, column int }

// mistake is one thing wrong with the configuration.
type mistake struct {
	position
	key string // path such as clusters[0].clientID; "" for the file as a whole
	msg string
}

// configError is every mistake in a configuration file. It never holds text from
// the file other than keys: a value may be a secret.
type configError struct {
	file     string
	mistakes []mistake
}

// Error is one line a mistake: FILE:LINE:COLUMN: key: what is wrong.
func (e *configError) Error() string {
	var b strings.Builder
	for i, m := range e.mistakes {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.file)
		if m.line > 0 {
			fmt.Fprintf(&b, ":%d:%d", m.line, m.column)
		}
		if m.key != "" {
			b.WriteString(": " + m.key)
		}
		b.WriteString(": " + m.msg)
	}
	return b.String()
}

// decoder reads one YAML document into a struct. It goes on after a mistake, so
// that all are found at once, and remembers where each key stands.
type decoder struct {
	at       map[string]position
	mistakes []mistake
}

// decode reads b into into, a pointer to a struct with yaml tags. Every key must
// be a field, occur once and have a value of the field's type. Anchors, aliases
// and tags are refused.
func decode(b []byte, into any) *decoder {
	d := &decoder{at: map[string]position{}}
	if !utf8.Valid(b) {
		d.mistakes = []mistake{{msg: "is not UTF-8 text"}}
		return d
	}
	file, err := parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.mistakes = []mistake{syntaxMistake(err)}
		return d
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil || doc.Body.Type() == ast.CommentType:
		case body != nil:
			d.wrong(doc.Body, "", "a second document begins here: a configuration is one document")
		default:
			body = doc.Body
		}
	}
	if body == nil {
		d.mistakes = append(d.mistakes, mistake{msg: "is empty: begin with `tabard config example`"})
		return d
	}
	d.value(body, reflect.ValueOf(into).Elem(), "")
	return d
}

// syntaxMistake is the parser's complaint without what it quotes from the file.
func syntaxMistake(err error) mistake {
	m := mistake{msg: "is not YAML"}
	var e yaml.Error
	if errors.As(err, &e) {
		if t := e.GetToken(); t != nil && t.Position != nil {
			m.position = position{t.Position.Line, t.Position.Column}
		}
		if msg := e.GetMessage(); !strings.ContainsAny(msg, "\"`\n") {
			m.msg = "is not YAML: " + msg
		}
	}
	return m
}

func (d *decoder) wrong(n ast.Node, path, format string, args ...any) {
	d.mistakes = append(d.mistakes, mistake{where(n), path, fmt.Sprintf(format, args...)})
}

// where is the place of a node; a block mapping stands at its first key.
func where(n ast.Node) position {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return position{t.Position.Line, t.Position.Column}
	}
	return position{}
}

// value decodes n into v.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	switch n.Type() {
	case ast.NullType:
		d.wrong(n, path, "has no value: give it one or leave the key out")
		return
	case ast.AnchorType, ast.AliasType, ast.TagType:
		d.wrong(n, path, "anchors, aliases and tags are not read: write the value out")
		return
	}
	if _, isText := v.Addr().Interface().(encoding.TextUnmarshaler); isText || v.Type() == reflect.TypeFor[time.Duration]() {
		d.scalar(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.wrong(n, path, "must be a mapping of keys to values")
		return
	}
	fields, seen := fieldsOf(v.Type()), map[string]bool{}
	for it := m.MapRange(); it.Next(); {
		name := keyName(it.Key())
		key := join(path, name)
		i, known := fields[name]
		switch {
		case seen[name]:
			d.wrong(it.Key(), key, "is there twice: keep one")
		case notYet(key):
			d.wrong(it.Key(), key, "is not in this version yet: leave it out")
		case !known && plainKey.MatchString(name):
			d.wrong(it.Key(), key, "is not a key: %s", didYouMean(name, fields))
		case !known:
			d.wrong(it.Key(), path, "has a key that cannot be one")
		default:
			d.at[key] = where(it.Key())
			d.value(it.Value(), v.Field(i), key)
		}
		seen[name] = true
	}
}

// plainKey is what a key may look like to be shown in an error: a secret in the
// wrong place seldom looks like that.
var plainKey = regexp.MustCompile(`^[A-Za-z]{1,40}$`)

// keyName is the text of a key, "" for what is no plain scalar.
func keyName(k ast.Node) string {
	if s, ok := k.(*ast.StringNode); ok {
		return s.Value
	}
	return ""
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrong(n, path, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	for i, item := range s.Values {
		key := fmt.Sprintf("%s[%d]", path, i)
		d.at[key] = where(item)
		d.value(item, v.Index(i), key)
	}
}

// scalar decodes text, a number or a truth value. Its messages hold no value.
func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	text, quoted, ok := scalarText(n)
	if !ok {
		d.wrong(n, path, "must be a single value; put text that holds a colon in quotes")
		return
	}
	var err error
	if t, isText := v.Addr().Interface().(encoding.TextUnmarshaler); isText {
		if t.UnmarshalText([]byte(text)) != nil {
			d.wrong(n, path, "is not a size such as 16KiB")
		}
		return
	}
	want := "a duration such as 90s, 5m or 8h"
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		var dur time.Duration
		dur, err = time.ParseDuration(text)
		v.SetInt(int64(dur))
	case v.Kind() == reflect.String:
		if want = "text: put it in quotes"; !quoted {
			err = errors.ErrUnsupported
		}
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		want = "true or false"
		if n.Type() != ast.BoolType {
			err = errors.ErrUnsupported
		}
		v.SetBool(text == "true")
	default:
		var i int64
		want = "a whole number"
		i, err = strconv.ParseInt(text, 10, 32)
		v.SetInt(i)
	}
	if err != nil {
		d.wrong(n, path, "must be %s", want)
	}
}

// scalarText is the text of a scalar; isText tells text from numbers and the like.
func scalarText(n ast.Node) (text string, isText, ok bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true, true
	case *ast.LiteralNode:
		return n.Value.Value, true, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, false, true
	}
	return "", false, false
}

// fieldsOf maps the yaml keys of a struct to its fields.
func fieldsOf(t reflect.Type) map[string]int {
	fields := map[string]int{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

// join is the path of a key below path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// notYet says whether a key of the contract is for a later version.
func notYet(path string) bool {
	switch listIndex.ReplaceAllString(path, "[]") {
	case "store.etcd", "clusters[].apiServer.tokenFile", "clusters[].webhook", "clusters[].proxy", "clients[].jwksFile", "directories[].srv":
		return true
	}
	return false
}

var listIndex = regexp.MustCompile(`\[\d+\]`)

// didYouMean names the key that differs from name in case alone, or all keys.
func didYouMean(name string, fields map[string]int) string {
	for f := range fields {
		if strings.EqualFold(f, name) {
			return "write " + f
		}
	}
	return "use " + sortedKeys(fields)
}
