package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
)

// contract is openapi.json, which every request and answer of a checked browser is held
// against. It knows the keywords of JSON Schema that the document uses, and no other.
type contract struct {
	doc  map[string]any
	mu   sync.Mutex
	seen map[string]bool // "METHOD /path status" of what was answered
}

func newContract(t *testing.T) *contract {
	t.Helper()
	c := &contract{seen: map[string]bool{}}
	must(t, json.Unmarshal(openAPI, &c.doc))
	return c
}

// at follows a reference or a way of keys.
func (c *contract) at(keys ...string) map[string]any {
	var v any = c.doc
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	m, _ := v.(map[string]any)
	return c.deref(m)
}

func (c *contract) deref(m map[string]any) map[string]any {
	if ref, ok := m["$ref"].(string); ok {
		return c.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	return m
}

// route is the path of the document that matches, "" for none.
func (c *contract) route(escaped string) string {
	got := strings.Split(escaped, "/")
	best := ""
	for path := range c.at("paths") {
		want := strings.Split(path, "/")
		if len(want) != len(got) {
			continue
		}
		fits := true
		for i := range want {
			fits = fits && (want[i] == got[i] || strings.HasPrefix(want[i], "{"))
		}
		if fits && (best == "" || !strings.Contains(path, "{")) {
			best = path
		}
	}
	return best
}

// valid holds v against a schema. Answers are held against closed schemas, so that a
// field that is not described is found; the document leaves them open for more.
func (c *contract) valid(schema map[string]any, v any, where string, closed bool) error {
	schema = c.deref(schema)
	for keyword := range schema {
		if !slices.Contains([]string{"type", "enum", "properties", "required", "additionalProperties", "items", "minItems", "format", "minimum", "maximum", "default", "description"}, keyword) {
			return fmt.Errorf("%s: the test knows no keyword %s", where, keyword)
		}
	}
	if err := validType(schema["type"], v); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%s: %v is none of %v", where, v, enum)
	}
	switch v := v.(type) {
	case map[string]any:
		return c.validObject(schema, v, where, closed)
	case []any:
		if least, ok := schema["minItems"].(float64); ok && len(v) < int(least) {
			return fmt.Errorf("%s: too few items", where)
		}
		items, _ := schema["items"].(map[string]any)
		for i, one := range v {
			if err := c.valid(items, one, fmt.Sprintf("%s[%d]", where, i), closed); err != nil {
				return err
			}
		}
	case string:
		if schema["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
		}
	case float64:
		least, has := schema["minimum"].(float64)
		most, hasMost := schema["maximum"].(float64)
		if has && v < least || hasMost && v > most {
			return fmt.Errorf("%s: %v is out of range", where, v)
		}
	}
	return nil
}

func (c *contract) validObject(schema, v map[string]any, where string, closed bool) error {
	props, _ := schema["properties"].(map[string]any)
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := v[name.(string)]; !ok {
			return fmt.Errorf("%s: %s is missing", where, name)
		}
	}
	for name, one := range v {
		prop, known := props[name].(map[string]any)
		if !known {
			more := schema["additionalProperties"]
			if open, ok := more.(map[string]any); ok {
				prop = open
			} else if more == false || closed && props != nil {
				return fmt.Errorf("%s: %s is not described", where, name)
			}
		}
		if err := c.valid(prop, one, where+"."+name, closed); err != nil {
			return err
		}
	}
	return nil
}

// validType knows one type and lists of them.
func validType(want, v any) error {
	types, _ := want.([]any)
	if one, ok := want.(string); ok {
		types = []any{one}
	}
	is := map[string]bool{}
	switch v := v.(type) {
	case nil:
		is["null"] = true
	case bool:
		is["boolean"] = true
	case string:
		is["string"] = true
	case float64:
		is["number"], is["integer"] = true, v == math.Trunc(v)
	case []any:
		is["array"] = true
	case map[string]any:
		is["object"] = true
	}
	if len(types) == 0 || slices.ContainsFunc(types, func(t any) bool { return is[t.(string)] }) {
		return nil
	}
	return fmt.Errorf("%T is no %v", v, want)
}

// request says what is wrong with a request, of which the server has to answer an error.
func (c *contract) request(op map[string]any, item map[string]any, r *http.Request, body []byte) error {
	known := map[string]map[string]any{}
	for _, list := range []any{item["parameters"], op["parameters"]} {
		all, _ := list.([]any)
		for _, p := range all {
			param := c.deref(p.(map[string]any))
			known[param["in"].(string)+" "+param["name"].(string)] = param["schema"].(map[string]any)
		}
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	for name, values := range q {
		schema, ok := known["query "+name]
		if !ok {
			return fmt.Errorf("parameter %s is not described", name)
		}
		if err := c.valid(schema, parameter(c.deref(schema), values), name, false); err != nil {
			return err
		}
	}
	for _, name := range []string{"If-Match", "If-None-Match"} {
		if _, ok := known["header "+name]; r.Header.Get(name) != "" && !ok {
			return fmt.Errorf("header %s is not described", name)
		}
	}
	content := c.deref(op)["requestBody"]
	if content == nil {
		return nil
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	media, ok := content.(map[string]any)["content"].(map[string]any)[kind].(map[string]any)
	if !ok {
		return fmt.Errorf("a body of type %q is not described", kind)
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	return c.valid(media["schema"].(map[string]any), v, "body", false)
}

// parameter is a parameter's value as JSON has it.
func parameter(schema map[string]any, values []string) any {
	switch schema["type"] {
	case "array":
		var all []any
		for _, v := range values {
			all = append(all, v)
		}
		return all
	case "integer":
		if n, err := strconv.ParseFloat(values[0], 64); err == nil {
			return n
		}
	case "boolean":
		if b, err := strconv.ParseBool(values[0]); err == nil {
			return b
		}
	}
	return values[0]
}

// answer says what is wrong with an answer.
func (c *contract) answer(op map[string]any, resp *http.Response, body []byte) error {
	responses := op["responses"].(map[string]any)
	described, ok := responses[strconv.Itoa(resp.StatusCode)].(map[string]any)
	if !ok && resp.StatusCode >= 400 {
		described, ok = responses["default"].(map[string]any)
	}
	if !ok {
		return fmt.Errorf("status %d is not described", resp.StatusCode)
	}
	described = c.deref(described)
	if headers, _ := described["headers"].(map[string]any); headers["ETag"] != nil && resp.Header.Get("ETag") == "" {
		return errors.New("the ETag is missing")
	}
	content, _ := described["content"].(map[string]any)
	if content == nil {
		if len(body) > 0 {
			return fmt.Errorf("a body is not described: %s", body)
		}
		return nil
	}
	media, ok := content[resp.Header.Get("Content-Type")].(map[string]any)
	if !ok {
		return fmt.Errorf("type %q is not described", resp.Header.Get("Content-Type"))
	}
	schema, ok := media["schema"].(map[string]any)
	if !ok {
		return nil
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	return c.valid(schema, v, "answer", true)
}

// checked holds everything that b sends and gets against the contract.
type checked struct {
	t    *testing.T
	c    *contract
	next http.RoundTripper
}

func (c *contract) check(b *browser) *browser {
	b.Transport = &checked{b.h.t, c, b.Transport}
	return b
}

// RoundTrip implements http.RoundTripper.
func (x *checked) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(r.URL.Path, "/api/") {
		return x.next.RoundTrip(r)
	}
	var sent []byte
	if r.Body != nil {
		sent, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(sent))
	}
	resp, err := x.next.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	path := x.c.route(r.URL.EscapedPath())
	item := x.c.at("paths", path)
	op, _ := item[strings.ToLower(r.Method)].(map[string]any)
	what := fmt.Sprintf("%s %s %d", r.Method, path, resp.StatusCode)
	x.c.mu.Lock()
	x.c.seen[what] = true
	x.c.mu.Unlock()
	if op == nil {
		if resp.StatusCode != 404 && resp.StatusCode != 405 {
			x.t.Errorf("%s %s is served and not described", r.Method, r.URL)
		}
		return resp, err
	}
	if bad := x.c.answer(op, resp, body); bad != nil {
		x.t.Errorf("%s: %v\n%s", what, bad, body)
	}
	if bad := x.c.request(op, item, r, sent); bad != nil && resp.StatusCode < 400 {
		x.t.Errorf("%s was taken, but %v\n%s", what, bad, sent)
	}
	return resp, err
}

// The document has every operation and no other, and every field of the wire types.
func TestOpenAPI(t *testing.T) {
	c := newContract(t)
	var described, served []string
	for path, item := range c.at("paths") {
		for method := range item.(map[string]any) {
			if method != "parameters" {
				described = append(described, strings.ToUpper(method)+" "+path)
			}
		}
	}
	for _, rt := range (&apiServer{}).routes() {
		served = append(served, rt.method+" "+rt.path)
	}
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("described %q\nserved %q", described, served)
	}
	types := map[string]any{}
	for _, wire := range []any{
		api.Explanation{}, api.ExplainedPerson{}, api.ExplainedQuery{}, api.ExplainedGroup{}, api.LeftOut{}, api.ExplainedToken{},
		api.Me{}, api.ClusterList{}, api.Cluster{}, api.GroupList{}, api.Group{}, api.Settings{}, api.Ref{}, api.FormerName{}, api.GroupNames{},
		api.Member{}, api.MemberList{}, api.AddMember{}, api.Path{}, api.Step{}, api.Everyone{}, api.Reach{}, api.Person{}, api.GroupPerson{}, api.PeopleList{},
		api.Who{}, api.FileMember{}, api.File{}, api.Apply{}, api.Applied{}, api.AppliedChange{}, api.Problem{},
	} {
		kind := reflect.TypeOf(wire)
		types[kind.Name()] = true
		props := maps.Clone(c.at("components", "schemas", kind.Name(), "properties"))
		for _, name := range jsonFields(kind) {
			if _, ok := props[name]; !ok {
				t.Errorf("%s.%s is not described", kind.Name(), name)
			}
			delete(props, name)
		}
		if len(props) > 0 {
			t.Errorf("%s has not: %v", kind.Name(), props)
		}
	}
	for name := range c.at("components", "schemas") {
		if types[name] == nil && name != "Kind" && name != "GroupPatch" {
			t.Errorf("schema %s is of no type that is checked", name)
		}
	}
}

// jsonFields are the names of a struct's fields, with those of embedded ones.
func jsonFields(kind reflect.Type) []string {
	var names []string
	for i := range kind.NumField() {
		if f := kind.Field(i); f.Anonymous {
			names = append(names, jsonFields(f.Type)...)
		} else {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names = append(names, name)
		}
	}
	return names
}

// The check finds what it is for.
func TestContractFindsMistakes(t *testing.T) {
	c := newContract(t)
	for _, tc := range []struct{ schema, doc, want string }{
		{"Group", `{"id":"a","name":"a","memberCount":1,"etag":"\"1\""}`, ""},
		{"Group", `{"id":"a","name":"a","memberCount":1}`, "etag is missing"},
		{"Group", `{"id":"a","name":"a","memberCount":1.5,"etag":""}`, "no integer"},
		{"Group", `{"id":"a","name":"a","memberCount":1,"etag":"","odd":1}`, "odd is not described"},
		{"Member", `{"kind":"odd","id":"a"}`, "none of"},
		{"Member", `{"kind":"person","id":"a","end":"tomorrow"}`, "parsing time"},
		{"AddMember", `{"ned":"x"}`, "ned is not described"},
		{"GroupPatch", `{"labels":{"a":null,"b":"c"},"owners":null}`, ""},
		{"GroupPatch", `{"labels":{"a":1}}`, "is no [string null]"},
		{"Path", `{"steps":[],"counts":true}`, "too few"},
	} {
		var v any
		must(t, json.Unmarshal([]byte(tc.doc), &v))
		err := c.valid(c.at("components", "schemas", tc.schema), v, "x", true)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.doc, err, tc.want)
		}
	}
	if got := c.route("/api/v1/groups/a%2Fb/members/person/x"); got != "/api/v1/groups/{name}/members/{kind}/{id}" {
		t.Errorf("route %q", got)
	}
}
