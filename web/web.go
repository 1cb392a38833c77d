// Package web serves what people and scripts see: the sign-in, device and group
// pages, the JSON API, and their static files. It is the only package that knows
// echo, and uses it to route; every handler is a plain http.Handler.
package web

import (
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
)

// Config is what the pages are told by the configuration file.
type Config struct {
	// BasePath is the path of the issuer, "" or like "/id", for links and
	// redirects. The handler itself is given paths without it (http.StripPrefix).
	BasePath string
	Brand    string           // name of the company, shown on every page; "": Tabard
	Now      func() time.Time // nil: time.Now
	Backups  *Backups         // nil: none are given
	Auditor  *Auditor         // nil: the trail cannot be searched
}

// Validate says what is wrong with c, and how to put it right.
func (c Config) Validate() error {
	if c.BasePath != "" && (!strings.HasPrefix(c.BasePath, "/") || strings.HasSuffix(c.BasePath, "/")) {
		return fmt.Errorf("base path %q: write it with a slash at its beginning and none at its end", c.BasePath)
	}
	if len(c.Brand) > 60 {
		return errors.New("brand is longer than 60 bytes: it has to fit the head of a page on a phone")
	}
	return nil
}

// Site serves the pages and the JSON API.
type Site struct {
	cfg     Config
	idp     *idp.Service
	groups  *groups.Service
	log     logrus.FieldLogger
	pages   map[string]*template.Template
	assets  map[string]asset
	csrf    *http.CrossOriginProtection
	handler http.Handler
}

// New returns the Site. Its errors are faults of cfg.
func New(cfg Config, svc *idp.Service, local *groups.Service, log logrus.FieldLogger) (*Site, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Brand = cmp.Or(cfg.Brand, "Tabard")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Site{cfg: cfg, idp: svc, groups: local, log: log, csrf: http.NewCrossOriginProtection()}
	var err error
	if s.assets, err = loadAssets(); err != nil {
		return nil, err
	}
	if s.pages, err = s.parseTemplates(); err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	pages := newRouter(s.routes(), s.noRoute)
	api := s.api()
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/") {
			api.ServeHTTP(w, r)
			return
		}
		s.guard(pages).ServeHTTP(w, r)
	})
	return s, nil
}

// ServeHTTP serves every path that is not the provider's own.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// routes is every page. Group names are one path segment, escaped.
func (s *Site) routes() []route {
	return []route{
		{"GET", "/", s.member(s.home)},
		{"GET", "/sign-in", s.page(s.showSignIn)},
		{"POST", "/sign-in", s.page(s.signIn)},
		{"GET", "/sign-out", s.page(s.showSignOut)},
		{"POST", "/sign-out", s.page(s.signOut)},
		{"GET", "/signed-out", s.page(s.signedOut)},
		{"GET", "/device", s.member(s.showDevice)},
		{"POST", "/device", s.member(s.enterCode)},
		{"GET", "/device/confirm", s.member(s.unconfirmed)},
		{"POST", "/device/confirm", s.member(s.decideDevice)},
		{"GET", "/device/done", s.member(s.deviceDone)},
		{"GET", "/audit", s.member(s.showAudit)},
		{"GET", "/explain", s.member(s.showExplanation)},
		{"GET", "/sessions", s.member(s.listSessions)},
		{"POST", "/sessions/end", s.member(s.endSession)},
		{"POST", "/sessions/end-others", s.member(s.endOtherSessions)},
		{"GET", "/groups", s.member(s.listGroups)},
		{"POST", "/groups", s.member(s.createGroup)},
		{"GET", "/groups/{name}", s.member(s.showGroup)},
		{"POST", "/groups/{name}/members", s.member(s.addMember)},
		{"GET", "/groups/{name}/everyone", s.member(s.showEveryone)},
		{"GET", "/groups/{name}/edit", s.member(s.showSettings)},
		{"POST", "/groups/{name}/edit", s.member(s.saveSettings)},
		{"GET", "/groups/{name}/remove", s.member(s.confirmRemove)},
		{"POST", "/groups/{name}/remove", s.member(s.removeMember)},
		{"GET", "/groups/{name}/delete", s.member(s.confirmDelete)},
		{"POST", "/groups/{name}/delete", s.member(s.deleteGroup)},
		{"GET", "/assets/{file}", http.HandlerFunc(s.serveAsset)},
	}
}

// page turns a handler that returns an error into one that shows it.
func (s *Site) page(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// visitor is who looks at a page.
type visitor struct {
	sess  *idp.Session
	actor groups.Actor
	admin bool
}

// member lets in only who is signed in; others go by the sign-in page, also those
// whose session ends meanwhile. What they post is in r.PostForm.
func (s *Site) member(h func(http.ResponseWriter, *http.Request, visitor) error) http.Handler {
	return s.page(func(w http.ResponseWriter, r *http.Request) error {
		v, err := s.visitor(r)
		if err == nil && r.Method == http.MethodPost {
			err = parseForm(r)
		}
		if err == nil {
			err = h(w, r, v)
		}
		if errors.Is(err, idp.ErrNoSession) {
			return s.see(w, r, "/sign-in?next="+nextOf(r))
		}
		return err
	})
}

func (s *Site) visitor(r *http.Request) (visitor, error) {
	sess, err := s.browser(r)
	if err != nil {
		return visitor{}, err
	}
	actor, err := s.idp.Actor(sess)
	if err != nil {
		return visitor{}, fmt.Errorf("groups of %s: %w", sess.Sub, err)
	}
	return visitor{sess, actor, s.groups.IsAdmin(actor)}, nil
}

// browser returns the session of the browser that sent r, or idp.ErrNoSession.
func (s *Site) browser(r *http.Request) (*idp.Session, error) {
	c, err := r.Cookie(idp.SessionCookie)
	if err != nil || c.Value == "" {
		return nil, idp.ErrNoSession
	}
	return s.idp.Browser(r.Context(), c.Value)
}

// setSession gives the browser its session cookie; "" takes it away. It lasts as
// long as the browser runs; the session itself ends by the clock of the server.
func setSession(w http.ResponseWriter, value string) {
	c := &http.Cookie{Name: idp.SessionCookie, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// url puts the issuer's path before p.
func (s *Site) url(p string) string { return s.cfg.BasePath + p }

// see sends the browser to p after something was done, so that a reload does not
// do it again.
func (s *Site) see(w http.ResponseWriter, r *http.Request, p string) error {
	http.Redirect(w, r, s.url(p), http.StatusSeeOther)
	return nil
}
