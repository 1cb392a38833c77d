package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// What client-go, and so kubectl, makes of our answers.
func TestStatusToClientGo(t *testing.T) {
	pod := &request.RequestInfo{IsResourceRequest: true, Verb: "get", Resource: "pods", Namespace: "a", Name: "x"}
	for _, c := range []struct {
		name string
		a    *answer
		is   func(error) bool
		want string
	}{
		{"a rule", forbidden(pod, Decision{Rule: "office-hours", Reason: "prod is closed at night", Hint: "ask for group oncall"}), apierrors.IsForbidden,
			`pods "x" is forbidden: rule "office-hours" of Tabard's policy: prod is closed at night. What to do: ask for group oncall (request r1)`},
		{"a rule without words", forbidden(pod, Decision{Rule: "r"}), apierrors.IsForbidden, `pods "x" is forbidden: rule "r" of Tabard's policy (request r1)`},
		{"no rule that allows", forbidden(pod, Decision{Reason: "no rule allows it"}), apierrors.IsForbidden, `pods "x" is forbidden: Tabard's policy: no rule allows it (request r1)`},
		{"a list of another group", forbidden(&request.RequestInfo{IsResourceRequest: true, Resource: "deployments", APIGroup: "apps"}, Decision{Rule: "r"}), apierrors.IsForbidden,
			`deployments.apps is forbidden: rule "r" of Tabard's policy (request r1)`},
		{"a subresource", forbidden(&request.RequestInfo{IsResourceRequest: true, Resource: "pods", Subresource: "exec", Name: "x"}, Decision{Rule: "no-exec"}), apierrors.IsForbidden,
			`pods/exec "x" is forbidden: rule "no-exec" of Tabard's policy (request r1)`},
		{"a path", forbidden(&request.RequestInfo{Path: "/metrics"}, Decision{Rule: "r"}), apierrors.IsForbidden, `path "/metrics" is forbidden: rule "r" of Tabard's policy (request r1)`},
		{"a sentence", forbiddenFor(pod, "you may not."), apierrors.IsForbidden, `pods "x" is forbidden: you may not (request r1)`},
		{"no token", unauthorized(), apierrors.IsUnauthorized, "the token is missing, expired or not for this cluster: sign in again with kubectl tabard login (request r1)"},
		{"a bad request", badRequest("no %s", "way"), apierrors.IsBadRequest, "no way (request r1)"},
		{"no cluster", notFound("there is no such cluster here"), apierrors.IsNotFound, "there is no such cluster here (request r1)"},
		{"a body", tooLarge(10), apierrors.IsRequestEntityTooLargeError, "the body is larger than 10 bytes (request r1)"},
		{"headers", headersTooLarge(), apierrors.IsBadRequest, "the request's headers are too large (request r1)"},
		{"a path that is too long", uriTooLong(), apierrors.IsBadRequest, "the request's path and query are too long (request r1)"},
		{"no answer", badGateway("cannot be reached"), apierrors.IsInternalError, "cannot be reached (request r1)"},
		{"unavailable", unavailable(0, "not now"), apierrors.IsServiceUnavailable, "not now (request r1)"},
		{"too late", gatewayTimeout("too late"), apierrors.IsTimeout, "too late (request r1)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeStatus(w, "r1", c.a) }))
			defer srv.Close()
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			client, err := rest.RESTClientFor(&rest.Config{Host: srv.URL, APIPath: "/api", Transport: transport, ContentConfig: rest.ContentConfig{
				GroupVersion: &schema.GroupVersion{Version: "v1"}, NegotiatedSerializer: scheme.Codecs.WithoutConversion(),
			}})
			if err != nil {
				t.Fatal(err)
			}
			err = client.Get().Resource("pods").Do(t.Context()).Error()
			if !c.is(err) || err.Error() != c.want {
				t.Errorf("%T\ngot  %v\nwant %s", err, err, c.want)
			}
			var status apierrors.APIStatus
			if !errors.As(err, &status) || int(status.Status().Code) != c.a.code {
				t.Errorf("code of %v", err)
			}
		})
	}
}

func TestStatusHeaders(t *testing.T) {
	for _, c := range []struct {
		a      *answer
		header string
		want   string
	}{
		{unauthorized(), "WWW-Authenticate", "Bearer"},
		{badRequest("x"), "WWW-Authenticate", ""},
		{badRequest("x"), "Content-Type", "application/json"},
		{badRequest("x"), "X-Content-Type-Options", "nosniff"},
		{badRequest("x"), "Cache-Control", "no-store"},
		{badRequest("x"), "Retry-After", ""},
		{tooMany(1500*time.Millisecond, "x"), "Retry-After", "2"},
		{tooMany(time.Millisecond, "x"), "Retry-After", "1"},
		{unavailable(time.Second, "x"), "Retry-After", "1"},
		{unavailable(0, "x"), "Retry-After", ""},
	} {
		w := httptest.NewRecorder()
		writeStatus(w, "", c.a)
		if got := w.Header().Get(c.header); got != c.want || w.Code != c.a.code {
			t.Errorf("%d: %s is %q, want %q", w.Code, c.header, got, c.want)
		}
	}
	a := forbidden(&request.RequestInfo{IsResourceRequest: true, Resource: "deployments", APIGroup: "apps", Name: "web"}, Decision{})
	w := httptest.NewRecorder()
	writeStatus(w, "", a)
	var s metav1.Status
	want := &metav1.StatusDetails{Name: "web", Group: "apps", Kind: "deployments"}
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || !reflect.DeepEqual(s.Details, want) {
		t.Errorf("%v: %s", err, w.Body)
	}
}

// Whatever is asked for, the answer is one JSON object that says it, and never HTML.
func FuzzStatus(f *testing.F) {
	f.Add("prod is closed", "ask", "pods", "web-0", "/healthz", "r1", true)
	f.Add("<script>", "\x00\x1b[2J", "\xff", "a\nb\"", "//", "", false)
	f.Fuzz(func(t *testing.T, reason, hint, resource, name, path, id string, is bool) {
		info := &request.RequestInfo{IsResourceRequest: is, Resource: resource, Name: name, Path: path}
		w := httptest.NewRecorder()
		writeStatus(w, id, forbidden(info, Decision{Rule: "r", Reason: reason, Hint: hint}))
		body := w.Body.String()
		var s metav1.Status
		d := json.NewDecoder(strings.NewReader(body))
		if err := d.Decode(&s); err != nil || d.More() {
			t.Fatalf("%v: %q", err, body)
		}
		if s.Code != 403 || s.Kind != "Status" || strings.ContainsAny(body, "<>\x00\x1b") || strings.Count(body, "\n") != 1 || !utf8.ValidString(body) {
			t.Errorf("%q", body)
		}
		if !strings.Contains(s.Message, `rule "r" of Tabard's policy`) {
			t.Errorf("%q", s.Message)
		}
	})
}
