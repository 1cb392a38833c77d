package main

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// position is a place in the configuration file, counted from 1; 0 is not known.
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

// Error is one line a mistake: FILE:LINE:COLUMN: key: what is wrong. The parser
// knows no column of what is no YAML.
func (e *configError) Error() string {
	var b strings.Builder
	for i, m := range e.mistakes {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.file)
		if m.line > 0 {
			fmt.Fprintf(&b, ":%d", m.line)
		}
		if m.column > 0 {
			fmt.Fprintf(&b, ":%d", m.column)
		}
		if m.key != "" {
			b.WriteString(": " + m.key)
		}
		b.WriteString(": " + m.msg)
	}
	return b.String()
}

// decoder reads YAML documents into structs. It goes on after a mistake, so that all
// are found at once, and remembers where each key stands.
type decoder struct {
	at       map[string]position
	mistakes []mistake
	// checked, if not nil, is told of each struct once it is read, with the keys that
	// it was given.
	checked func(n *yaml.Node, path string, into any, keys map[string]bool)
}

// decode reads b, one document, into into, a pointer to a struct with yaml tags. Every
// key must be a field, occur once and have a value of the field's type. Anchors,
// aliases and tags are refused.
func decode(b []byte, into any) *decoder {
	d := &decoder{at: map[string]position{}}
	var body *yaml.Node
	whole := d.documents(b, func(n *yaml.Node) {
		if body != nil {
			d.wrong(n, "", "a second document begins here: a configuration is one document")
			return
		}
		body = n
	})
	switch {
	case !whole:
	case body == nil:
		d.mistakes = append(d.mistakes, mistake{msg: "is empty: begin with `tabard config example`"})
	default:
		d.value(body, reflect.ValueOf(into).Elem(), "")
	}
	return d
}

// documents calls each for the documents of b that hold anything; false if b is not
// whole.
func (d *decoder) documents(b []byte, each func(*yaml.Node)) bool {
	if !utf8.Valid(b) {
		d.mistakes = append(d.mistakes, mistake{msg: "is not UTF-8 text"})
		return false
	}
	for docs := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc yaml.Node
		err := docs.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			d.mistakes = append(d.mistakes, syntaxMistake(err))
			return false
		}
		if n := doc.Content[0]; n.ShortTag() != "!!null" || n.Value != "" {
			each(n)
		}
	}
}

var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxMistake is the parser's complaint, unless it quotes the file.
func syntaxMistake(err error) mistake {
	m := mistake{msg: "is not YAML"}
	if parts := syntaxLine.FindStringSubmatch(err.Error()); parts != nil {
		m.line, _ = strconv.Atoi(parts[1]) // 0: the parser does not say
		if words := strings.ReplaceAll(parts[2], "':'", "colon"); !strings.ContainsAny(words, "\"`'\n") {
			m.msg += ": " + words
		}
	}
	return m
}

func (d *decoder) wrong(n *yaml.Node, path, format string, args ...any) {
	d.mistakes = append(d.mistakes, mistake{where(n), path, fmt.Sprintf(format, args...)})
}

func where(n *yaml.Node) position { return position{n.Line, n.Column} }

// value decodes n into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.ShortTag() == "!!null":
		d.wrong(n, path, "has no value: give it one or leave the key out")
		return
	case n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0:
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
	case reflect.Map:
		d.texts(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "must be a mapping of keys to values")
		return
	}
	fields, seen := fieldsOf(v.Type()), map[string]bool{}
	for pair := range slices.Chunk(n.Content, 2) {
		keyNode, name := pair[0], keyName(pair[0])
		key := join(path, name)
		i, known := fields[name]
		switch {
		case seen[name]:
			d.wrong(keyNode, key, "is there twice: keep one")
		case notYet(key):
			d.wrong(keyNode, key, "is not in this version yet: leave it out")
		case !known && plainKey.MatchString(name):
			d.wrong(keyNode, key, "is not a key: %s", didYouMean(name, fields))
		case !known:
			d.wrong(keyNode, path, "has a key that cannot be one")
		default:
			d.at[key] = where(keyNode)
			d.value(pair[1], v.FieldByIndex(i), key)
		}
		seen[name] = true
	}
	if d.checked != nil {
		d.checked(n, path, v.Addr().Interface(), seen)
	}
}

// texts decodes a mapping of text to text. Its mistakes are those of the whole.
func (d *decoder) texts(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "must be a mapping of keys to values")
		return
	}
	all := map[string]string{}
	for pair := range slices.Chunk(n.Content, 2) {
		var key, value string
		d.value(pair[0], reflect.ValueOf(&key).Elem(), path)
		d.value(pair[1], reflect.ValueOf(&value).Elem(), path)
		if _, twice := all[key]; twice {
			d.wrong(pair[0], path, "has a label twice: keep one")
		}
		all[key] = value
	}
	v.Set(reflect.ValueOf(all))
}

// plainKey is what a key may look like to be shown in an error: a secret in the
// wrong place seldom looks like that.
var plainKey = regexp.MustCompile(`^[A-Za-z]{1,40}$`)

// keyName is the text of a key, "" for what is no plain scalar.
func keyName(k *yaml.Node) string {
	if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!str" {
		return k.Value
	}
	return ""
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, path, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		key := fmt.Sprintf("%s[%d]", path, i)
		d.at[key] = where(item)
		d.value(item, v.Index(i), key)
	}
}

// scalar decodes text, a number or a truth value. Its messages hold no value.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.wrong(n, path, "must be a single value; put text that holds a colon in quotes")
		return
	}
	text := n.Value
	var err error
	if t, isText := v.Addr().Interface().(encoding.TextUnmarshaler); isText {
		want := "is not a size such as 16KiB"
		if v.Type() == reflect.TypeFor[time.Time]() {
			want = "must be a time with its zone, such as 2027-01-31T18:00:00Z"
		}
		if t.UnmarshalText([]byte(text)) != nil {
			d.wrong(n, path, "%s", want)
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
		if want = "text: put it in quotes"; n.ShortTag() != "!!str" {
			err = errors.ErrUnsupported
		}
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		want = "true or false"
		if n.ShortTag() != "!!bool" {
			err = errors.ErrUnsupported
		}
		v.SetBool(strings.EqualFold(text, "true"))
	case v.Kind() == reflect.Float64:
		var f float64
		want = "a number"
		if f, err = strconv.ParseFloat(text, 64); math.IsNaN(f) || math.IsInf(f, 0) {
			err = errors.ErrUnsupported
		}
		v.SetFloat(f)
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

// fieldsOf maps the yaml keys of a struct to its fields, as FieldByIndex has them.
func fieldsOf(t reflect.Type) map[string][]int {
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = f.Index
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
	return listIndex.ReplaceAllString(path, "[]") == "clusters[].requireSecondFactor"
}

var listIndex = regexp.MustCompile(`\[\d+\]`)

// didYouMean names the key that differs from name in case alone, or all keys.
func didYouMean(name string, fields map[string][]int) string {
	for f := range fields {
		if strings.EqualFold(f, name) {
			return "write " + f
		}
	}
	return "use " + strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}
