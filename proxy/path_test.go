package proxy

import (
	"bufio"
	"net/http"
	"net/url"
	pathpkg "path"
	"strings"
	"testing"
)

func TestHostOf(t *testing.T) {
	for in, want := range map[string]string{
		"prod.example": "prod.example", "PROD.example:443": "prod.example", "prod.example.": "prod.example", "prod.example.:8443": "prod.example",
		"prod.example:": "prod.example", "[::1]:443": "::1", "prod.example:x": "", "prod.example:1:2": "", "": "", "prod.example@evil": "prod.example@evil",
		"evil:443@prod.example": "", "prod.example..": "prod.example.",
	} {
		if got := hostOf(in); got != want {
			t.Errorf("%q is the host %q, want %q", in, got, want)
		}
	}
}

func TestHandles(t *testing.T) {
	for _, c := range []struct {
		prefix, host, uri string
		want              bool
	}{
		{"/k8s/clusters/", "id.example", "/k8s/clusters/prod/api", true},
		{"/k8s/clusters/", "id.example", "/k8s/clusters/prod", true},
		{"/k8s/clusters/", "id.example", "/k8s/clusters", true},
		{"/k8s/clusters/", "id.example", "/k8s/clusters?a", true},
		{"/k8s/clusters/", "id.example", "/k8s/clusters/../../keys", true},
		{"/k8s/clusters/", "id.example", "/k8s/clustersx", false},
		{"/k8s/clusters/", "id.example", "/keys?x=/k8s/clusters/", false},
		{"/k8s/clusters/", "id.example", "http://id.example/k8s/clusters/prod", true},
		{"/k8s/clusters/", "id.example", "http://id.example/keys", false},
		{"/k8s/clusters/", "prod.k8s.example:8443", "/keys", true},
		{"/k8s/clusters/", "prod.k8s.example", "*", true},
		{"/idp/k8s/clusters/", "id.example", "/idp/k8s/clusters/prod", true},
		{"/idp/k8s/clusters/", "id.example", "/k8s/clusters/prod", false},
		{"", "id.example", "/k8s/clusters/prod", false},
	} {
		p := &Proxy{}
		p.routes.Store(&routes{prefix: c.prefix, byHost: map[string]*cluster{"prod.k8s.example": {}}})
		u, err := url.Parse(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Handles(&http.Request{Host: c.host, RequestURI: c.uri, URL: u}); got != c.want {
			t.Errorf("%s %s: %v", c.host, c.uri, got)
		}
	}
}

// What is taken is read by everybody in one way, and goes on byte for byte.
func FuzzPath(f *testing.F) {
	for _, h := range hostilePaths("") {
		f.Add(strings.Fields(h.raw)[1])
	}
	f.Add("/api/v1/namespaces/a/pods/b/proxy/%2e%2e%2f..//x[1]")
	base := &url.URL{Scheme: "https", Host: "api"}
	f.Fuzz(func(t *testing.T, raw string) {
		if !strings.HasPrefix(raw, "/") || strings.Contains(raw, "?") {
			return // find lets none of them come this far
		}
		decoded, err := decodePath(raw)
		if err != nil {
			return
		}
		u := target{path: decoded, raw: raw}.at(base)
		if got := u.RequestURI(); got != raw {
			t.Errorf("%q goes on as %q", raw, got)
		}
		theirs, err := url.ParseRequestURI(raw)
		if err != nil || theirs.Path != decoded {
			t.Errorf("%q is %q here and %q there: %v", raw, decoded, theirs.Path, err)
		}
		for _, reading := range []string{decoded, strings.ReplaceAll(decoded, `\`, "/")} {
			for segment := range strings.SplitSeq(reading, "/") {
				if segment == "." || segment == ".." {
					t.Errorf("%q has a dot segment", raw)
				}
			}
		}
		if _, tail := splitTail(raw); tail == "" && pathpkg.Clean(decoded) != strings.TrimSuffix(decoded, "/") && decoded != "/" {
			t.Errorf("%q is not clean", decoded)
		}
		if _, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + u.RequestURI() + " HTTP/1.1\r\nHost: h\r\n\r\n"))); err != nil {
			t.Errorf("an API server cannot read %q: %v", raw, err)
		}
		c := &call{}
		if err := describe(c, "GET", &url.URL{Path: decoded}); err == nil && c.info.IsResourceRequest && strings.ContainsAny(c.info.Namespace+c.info.Resource, "/%") {
			t.Errorf("%q is about %+v", raw, c.info)
		}
	})
}
