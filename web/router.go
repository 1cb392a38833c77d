package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/labstack/echo/v4"
)

const (
	maxForm = 64 << 10 // bytes of a page's post
	maxJSON = 1 << 20  // bytes of an API body

	pageCSP = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'%s; frame-ancestors 'none'; base-uri 'none'"
)

// route is one method on one path; {x} is a path segment, read by r.PathValue.
type route struct {
	method, path string
	handler      http.Handler
}

// newRouter serves routes, GET ones for HEAD too. What has no route goes to
// noRoute with status 404 or 405; of a 405, the Allow header is set already.
func newRouter(routes []route, noRoute func(http.ResponseWriter, *http.Request, int)) http.Handler {
	e := echo.New()
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		status := http.StatusInternalServerError
		var he *echo.HTTPError
		if errors.As(err, &he) {
			status = he.Code
		}
		noRoute(c.Response(), c.Request(), status)
	}
	for _, rt := range routes {
		path := strings.NewReplacer("{", ":", "}", "").Replace(rt.path)
		e.Add(rt.method, path, plain(rt.handler))
		if rt.method == http.MethodGet {
			e.Add(http.MethodHead, path, plain(rt.handler))
		}
	}
	return e
}

// plain makes an echo handler of h, with the path's values where net/http has them.
func plain(h http.Handler) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		for _, name := range c.ParamNames() {
			value := c.Param(name)
			if r.URL.RawPath != "" { // echo matched the escaped path
				var err error
				if value, err = url.PathUnescape(value); err != nil {
					return echo.ErrNotFound
				}
			}
			r.SetPathValue(name, value)
		}
		h.ServeHTTP(c.Response(), r)
		return nil
	}
}

// guard is what every page passes through: headers, body limit, and the
// refusal of posts that another site made the browser send.
func (s *Site) guard(next http.Handler) http.Handler {
	return s.recovered(s.fail, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w, formCSP("")+"; connect-src 'self'") // pick lists ask the API
		if err := s.csrf.Check(r); err != nil {
			s.fail(w, r, errCrossSite)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	}))
}

// setHeaders sets what every answer carries. The Referrer-Policy is not
// no-referrer, which would make Chromium send "Origin: null" with our own forms.
func setHeaders(w http.ResponseWriter, csp string) {
	h := w.Header()
	h.Set("Content-Security-Policy", csp)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Cache-Control", "no-store")
}

// recovered answers a panic of next through fail, and keeps the server alive.
func (s *Site) recovered(fail func(http.ResponseWriter, *http.Request, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				fail(w, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// formCSP is the Content-Security-Policy of a page whose form ends, by way of a
// redirect, at target: Chromium holds form-action against every hop that follows,
// and clients redirect on from their callback, so any https is let through.
func formCSP(target string) string {
	source := formSource(target)
	if source != "" {
		source = " https: " + source
	}
	return fmt.Sprintf(pageCSP, source)
}

// formSource is the CSP source that covers uri, "" for none. What the grammar of
// CSP (Level 3, section 2.3.1) cannot name, like [::1] or com.example.app:/, is
// covered by its scheme.
func formSource(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" {
		return ""
	}
	if (u.Scheme == "https" || u.Scheme == "http") && isHostSource(u.Host) {
		return u.Scheme + "://" + u.Host
	}
	return u.Scheme + ":"
}

// isHostSource says whether host is letters, digits, dots and dashes with an
// optional port: nothing that could end a directive.
func isHostSource(host string) bool {
	name, port, _ := strings.Cut(host, ":")
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return name != "" && strings.Trim(name, letters+"0123456789.-") == "" && strings.Trim(port, "0123456789") == ""
}
