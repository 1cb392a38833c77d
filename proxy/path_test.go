package proxy

import (
	"bufio"
	"net/http"
	"net/url"
	pathpkg "path"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
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
		if err := describe(c, "GET", target{path: decoded}); err == nil && c.info.IsResourceRequest && strings.ContainsAny(c.info.Namespace+c.info.Resource, "/%") {
			t.Errorf("%q is about %+v", raw, c.info)
		}
	})
}

// TestDescribesAsTheAPIServer: what is said of a request is what the API server's own
// factory says, but for what opens a connection into a pod.
func TestDescribesAsTheAPIServer(t *testing.T) {
	factory := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	for _, uri := range []string{
		"/", "/api", "/apis/apps/v1", "/version", "/openapi/v3/apis/apps/v1", "/api/v1/pods", "/api/v1/pods?watch", "/api/v1/pods?watch=0", "/api/v1/pods?watch=true&limit=2",
		"/api/v1/pods?%77atch=1", "/api/v1/pods?watch=&watch=false", "/api/v1/pods?fieldSelector=metadata.name%3Da", "/api/v1/watch/pods?fieldSelector=metadata.name%3Da",
		"/api/v1/pods?watch=1&fieldSelector=metadata.name%3Da,spec.x%3D1", "/api/v1/pods?fieldSelector=metadata.name%21%3Da", "/api/v1/pods?fieldSelector=metadata.name%3Da/b",
		"/api/v1/watch/namespaces/a/pods/b", "/apis/apps/v1/watch/deployments?fieldSelector=metadata.name%3Da&watch=1", "/apis/watch/v1/deployments?fieldSelector=metadata.name%3Da&watch=1", "/api/v1/namespaces/a", "/api/v1/namespaces/a/status", "/api/v1/namespaces/a/pods/b/log?follow=1",
		"/api/v1/proxy/nodes/a", "/apis/apps/v1/namespaces/a/deployments/b/scale", "/api/v1/namespaces/a/pods/b?fieldSelector=metadata.name%3Dc", "/api/v1/pods/?watch=2;x",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
			u, err := url.Parse(uri)
			if err != nil {
				t.Fatal(err)
			}
			want, err := factory.NewRequestInfo(&http.Request{Method: method, URL: u})
			if err != nil {
				t.Fatal(err)
			}
			c := &call{}
			if err := describe(c, method, target{path: u.Path, query: u.RawQuery}); err != nil {
				t.Errorf("%s %s: %v", method, uri, err)
				continue
			}
			c.info.FieldSelector, c.info.LabelSelector = want.FieldSelector, want.LabelSelector // not looked at
			if !reflect.DeepEqual(c.info, want) {
				t.Errorf("%s %s: %+v, want %+v", method, uri, c.info, want)
			}
		}
	}
	for _, verb := range []string{"exec", "attach", "portforward"} {
		c := &call{}
		if err := describe(c, "GET", target{path: "/api/v1/namespaces/a/pods/b/" + verb}); err != nil || c.info.Verb != "create" || !c.stream {
			t.Errorf("%s by GET is %+v %v", verb, c.info, err)
		}
	}
}
