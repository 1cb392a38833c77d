package proxy

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
	"k8s.io/client-go/transport"

	"github.com/tabard-id/tabard/idp"
)

// TestSetAsClientGo: the headers are those that client-go sends for the same person.
func TestSetAsClientGo(t *testing.T) {
	for _, i := range []impersonation{
		{User: "alice"},
		{User: "jörg", UID: "corp.1", Groups: []string{"a", "b, c", "d"}},
		{User: "a", Groups: []string{"g"}, Extra: map[string][]string{
			idp.ExtraCredentialID: {"JTI=1"}, idp.ExtraSession: {"s"}, extraAddress: {"::1"}, extraImpersonator: {"bob"}, extraImpersonatorUID: {"corp.2"},
			"scopes": {"x", "y"}, "a%b/ü é~": {"z"},
		}},
	} {
		want := http.Header{}
		rt := transport.NewImpersonatingRoundTripper(transport.ImpersonationConfig{UserName: i.User, UID: i.UID, Groups: i.Groups, Extra: i.Extra},
			roundTripper(func(r *http.Request) (*http.Response, error) { want = r.Header; return nil, errTest }))
		_, _ = rt.RoundTrip(httptest.NewRequest("GET", "/", nil))
		got := http.Header{}
		i.set(got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v:\n%q\nclient-go sends\n%q", i, got, want)
		}
		back, err := requested(withoutNames(got, "tabard.dev", "credential"))
		if err != nil || back.User != i.User || back.UID != i.UID || !slices.Equal(back.Groups, i.Groups) {
			t.Errorf("read back: %v %v", back, err)
		}
		for key, values := range back.Extra {
			if !slices.Equal(i.Extra[key], values) {
				t.Errorf("the extra %q came back as %q", key, values)
			}
		}
	}
}

// withoutNames removes the headers whose names hold one of parts.
func withoutNames(h http.Header, parts ...string) http.Header {
	maps.DeleteFunc(h, func(name string, _ []string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(strings.ToLower(name), p) })
	})
	return h
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestHeadersThatGoOn(t *testing.T) {
	h := http.Header{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Content-Type", "Content-Length", "User-Agent", "If-Match", "If-None-Match", "Range", "Origin", "Expect",
		"X-Stream-Protocol-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Key", "Traceparent", "Kubectl-Command", "X-Requested-With",
		"Access-Control-Request-Method", "Priority", "Cache-Control", "X-Csrf-Token", "Impersonation", "Teapot", "Auth", "Proxyless",
	} {
		h.Set(name, "x")
	}
	n := len(h)
	if strip(h); len(h) != n {
		t.Errorf("only %d of %d headers are left: %v", len(h), n, h)
	}
}

// Whatever the client sends, what goes on says of who asks what we say, in every reading.
func FuzzHeaders(f *testing.F) {
	for _, name := range []string{"Impersonate-User", "IMPERSONATE_group", "impersonate-extra-%54abard.dev%2fsid", "Authorization", "Connection", "x-remote-user", "Upgrade", "Audit_ID", "Cookie"} {
		f.Add(name, "admin", "Connection", "Impersonate-User")
	}
	ours := impersonation{User: "alice", UID: "1", Groups: []string{"g"}, Extra: map[string][]string{idp.ExtraSession: {"s"}}}
	want := http.Header{}
	ours.set(want)
	f.Fuzz(func(t *testing.T, name, value, name2, value2 string) {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldName(name2) {
			return // net/http lets none of them in
		}
		h := http.Header{}
		h.Add(name, value)
		h.Add(name2, value2)
		h[name] = []string{value} // HTTP/2 and our own code could spell it otherwise
		as, err := requested(h)
		if err == nil && as != nil && (as.User == "" || as.check() != nil || as.Extra[idp.ExtraSession] != nil) {
			t.Errorf("impersonates %v", as)
		}
		if up, err := upgradeOf(h); up && (err != nil || len(h["Upgrade"]) != 1 || !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") ||
			!slices.Contains([]string{"websocket", "spdy/3.1"}, strings.ToLower(h.Get("Upgrade")))) {
			t.Errorf("upgrades to %q by %q: %v", h["Upgrade"], h["Connection"], err)
		}
		if token, err := bearer(h); err == nil && !strings.EqualFold(h.Get("Authorization"), "bearer "+token) {
			t.Errorf("the token of %q is %q", h.Get("Authorization"), token)
		}
		strip(h)
		ours.set(h)
		got := http.Header{}
		for name, values := range h {
			switch plain := textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-")); {
			case strings.HasPrefix(plain, "Impersonate-"):
				got[plain] = append(got[plain], values...)
			case slices.Contains([]string{"Authorization", "Cookie", "Connection", "Upgrade", "Audit-Id", "X-Forwarded-For", "X-Remote-User"}, plain):
				t.Errorf("%s: %q goes on", name, values)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("goes on as %q", got)
		}
	})
}

func FuzzExtraKey(f *testing.F) {
	for _, s := range []string{"a", "a/b", "%", "ü", "a b\n", "scopes.example.com/x_y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		escaped := escapeKey(key)
		if escaped != "" && !httpguts.ValidHeaderFieldName(escaped) {
			t.Errorf("%q is no header's name", escaped)
		}
		if back, err := url.PathUnescape(escaped); back != key || err != nil {
			t.Errorf("%q becomes %q: %v", key, back, err)
		}
	})
}
