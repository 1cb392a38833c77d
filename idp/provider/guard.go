package provider

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/zitadel/oidc/v3/pkg/oidc"

	"github.com/tabard-id/tabard/internal/audit"
)

// route says how one endpoint may be used.
type route struct {
	methods []string
	page    bool // a person sees it: parameters are read here, errors become pages
	noStore bool
}

var (
	getOnly  = []string{http.MethodGet, http.MethodHead}
	postOnly = []string{http.MethodPost}
	both     = []string{http.MethodGet, http.MethodHead, http.MethodPost}
)

// MetadataPath is where RFC 8414 looks for the discovery document. Of an issuer with a
// path it stands before that path (section 3.1).
const MetadataPath = "/.well-known/oauth-authorization-server"

// routes are all paths that the provider serves, relative to the issuer's path.
var routes = map[string]route{
	oidc.DiscoveryEndpoint:  {methods: getOnly},
	MetadataPath:            {methods: getOnly},
	"/keys":                 {methods: getOnly},
	"/authorize":            {methods: both, page: true, noStore: true},
	"/logout":               {methods: both, page: true, noStore: true},
	"/token":                {methods: postOnly, noStore: true},
	"/userinfo":             {methods: both, noStore: true},
	"/device_authorization": {methods: postOnly, noStore: true},
	"/revoke":               {methods: postOnly, noStore: true},
	"/introspect":           {methods: postOnly, noStore: true},
}

// Paths returns the paths that the provider serves, relative to the issuer's path.
func Paths() []string {
	paths := make([]string, 0, len(routes))
	for p := range routes {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// maxBody bounds a request's form; an id_token_hint is the largest thing in one.
const maxBody = 1 << 20

// request is what the methods of op.Server need of the HTTP request and the
// library does not hand on.
type request struct {
	form    url.Values
	cookies []*http.Cookie
}

type requestKey struct{}

func formOf(ctx context.Context) url.Values { return ctx.Value(requestKey{}).(request).form }

func cookieOf(ctx context.Context, name string) string {
	for _, c := range ctx.Value(requestKey{}).(request).cookies {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// guard stands in front of the library: methods, sizes, parameters sent twice,
// headers, and panics.
func guard(next http.Handler, cfg Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rt, ok := routes[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if rt.noStore {
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Pragma", "no-cache")
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !slices.Contains(rt.methods, r.Method) {
			w.Header().Set("Allow", strings.Join(rt.methods, ", "))
			refuse(w, r, rt, cfg, http.StatusMethodNotAllowed, "invalid_request", mistake(rt, "use "+strings.Join(rt.methods, " or ")))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if !rt.page {
			r.URL.RawQuery = "" // secrets and tokens stand in the body or a header: URLs end up in logs
		}
		form, err := parse(r)
		if err != nil {
			refuse(w, r, rt, cfg, http.StatusBadRequest, "invalid_request", mistake(rt, err.Error()))
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, request{form, r.Cookies()}))
		if r.URL.Path == MetadataPath { // the same document, which the library knows by one name
			u := *r.URL
			u.Path, u.RawPath = oidc.DiscoveryEndpoint, ""
			r.URL = &u
		}
		serve(w, r, rt, next, cfg)
	})
}

// parse reads the form and refuses a parameter that comes twice (RFC 6749 section
// 3.1); audience and resource may (RFC 8693 section 2.1).
func parse(r *http.Request) (url.Values, error) {
	if err := r.ParseForm(); err != nil {
		return nil, errors.New("the parameters could not be read")
	}
	for name, values := range r.Form {
		if len(values) > 1 && name != "audience" && name != "resource" {
			return nil, errors.New("a parameter was sent twice")
		}
	}
	return r.Form, nil
}

// serve calls the library and completes what it leaves out: WWW-Authenticate,
// Retry-After, pages instead of JSON where a person looks.
func serve(w http.ResponseWriter, r *http.Request, rt route, next http.Handler, cfg Config) {
	out := &recorder{header: w.Header()}
	defer func() {
		if v := recover(); v != nil {
			cfg.Log.WithField("request", audit.OriginOf(r.Context()).RequestID).WithField("stack", string(debug.Stack())).Errorf("panic: %v", v)
			refuse(w, r, rt, cfg, http.StatusInternalServerError, "server_error", "something went wrong here")
		}
	}()
	if rt.page {
		// The library decodes into typed fields and refuses what it cannot; these
		// requests are read by our own methods alone.
		r.Form, r.PostForm = url.Values{}, url.Values{}
	}
	next.ServeHTTP(out, r)
	if out.status >= 400 {
		var e struct {
			Code  string `json:"error"`
			Words string `json:"error_description"`
		}
		if json.Unmarshal(out.body.Bytes(), &e) != nil { // the library's router, not one of its endpoints
			e.Code, e.Words = "invalid_request", "there is nothing here"
		}
		if e.Code == "invalid_client" { // the library's own refusals come as 400
			out.status = http.StatusUnauthorized
		}
		refuse(w, r, rt, cfg, out.status, e.Code, e.Words)
		return
	}
	w.WriteHeader(cmp.Or(out.status, http.StatusOK))
	_, _ = w.Write(out.body.Bytes()) // the client may have gone
}

// mistake is words for a fault of the client: a person did not send the request.
func mistake(rt route, words string) string {
	if rt.page {
		return "The program that sent you here made a mistake: " + words + "."
	}
	return words
}

// refuse answers in the way of the route: a page or an OAuth 2.0 error, with the
// request's id, by which the log tells the cause.
func refuse(w http.ResponseWriter, r *http.Request, rt route, cfg Config, status int, code, words string) {
	switch {
	case status == http.StatusUnauthorized && r.URL.Path == "/userinfo":
		challenge := `Bearer realm="tabard"`
		if code == "invalid_token" { // else there was no token to tell of (RFC 6750 section 3.1)
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	case status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="tabard"`)
	case status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "5")
	}
	if rt.page {
		cfg.ErrorPage(w, r, status, "This request cannot be answered", words)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": withID(r.Context(), words)})
}

// withID adds the request's id to what a client is told.
func withID(ctx context.Context, words string) string {
	if id := audit.OriginOf(ctx).RequestID; id != "" {
		return words + " (request " + id + ")"
	}
	return words
}

// recorder keeps the library's answer until it is complete. Its headers go straight
// through.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (o *recorder) Header() http.Header { return o.header }

// WriteHeader implements http.ResponseWriter.
func (o *recorder) WriteHeader(status int) {
	if o.status == 0 {
		o.status = status
	}
}

// Write implements http.ResponseWriter.
func (o *recorder) Write(b []byte) (int, error) {
	o.WriteHeader(http.StatusOK)
	return o.body.Write(b)
}
