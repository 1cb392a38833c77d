package web

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed assets/*
var assetFiles embed.FS

// asset is one static file. Its name holds a hash of its content, so that it can
// be cached for good and a new release is never shown with an old style.
type asset struct {
	url, contentType string
	body             []byte
}

// loadAssets returns the static files by their names in the source.
func loadAssets() (map[string]asset, error) {
	files, err := fs.ReadDir(assetFiles, "assets")
	if err != nil {
		return nil, fmt.Errorf("assets: %w", err)
	}
	all := make(map[string]asset, len(files))
	for _, f := range files {
		body, err := assetFiles.ReadFile("assets/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("asset %s: %w", f.Name(), err)
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(f.Name())
		hashed := strings.TrimSuffix(f.Name(), ext) + "." + hex.EncodeToString(sum[:6]) + ext
		all[f.Name()] = asset{"/assets/" + hashed, mime.TypeByExtension(ext), body}
	}
	return all, nil
}

func (s *Site) serveAsset(w http.ResponseWriter, r *http.Request) {
	for _, a := range s.assets {
		if a.url == "/assets/"+r.PathValue("file") {
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			w.Header().Set("Content-Type", a.contentType)
			_, _ = w.Write(a.body)
			return
		}
	}
	s.noRoute(w, r, http.StatusNotFound)
}

// page is what every template gets.
type page struct {
	Title, Brand string
	Section      string // the entry of the navigation that is current
	Who          string // display name; "" when nobody is signed in
	Admin        bool
	Crumbs       []crumb
	Did          string   // what was just done, in words
	Scripts      []string // assets besides the one that every page has
	Data         any
}

// crumb is one step of the way to a page.
type crumb struct{ Name, URL string }

// message is a page that only says something.
type message struct {
	Heading, Text, RequestID string
	Home                     bool // offer the way to "My access"
}

// confirmation asks once more, and names the effect.
type confirmation struct {
	Heading           string
	Notice            string   // why it is asked again; "" the first time
	Effects           []string // a paragraph each
	Hidden            url.Values
	Action, Button    string
	Cancel, CancelURL string
	Danger            bool
}

func (s *Site) newPage(title string, data any) page {
	return page{Title: title, Brand: s.cfg.Brand, Data: data}
}

// pageFor is a page with the navigation of somebody signed in.
func (s *Site) pageFor(v visitor, section, title string, data any) page {
	return page{Title: title, Brand: s.cfg.Brand, Section: section, Who: cmp.Or(v.sess.Name, v.sess.Username), Admin: v.admin, Data: data}
}

// parseTemplates returns one set for each page: the layout, the shared pieces and
// the page's own "content".
func (s *Site) parseTemplates() (map[string]*template.Template, error) {
	shared, err := template.New("layout.html").Funcs(template.FuncMap{
		"url":          s.url,
		"asset":        func(name string) string { return s.url(s.assets[name].url) },
		"groupURL":     func(name string) string { return s.url(groupPath(name)) },
		"device":       deviceInWords,
		"milliseconds": func(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) },
		"moment":       func(t time.Time) moment { return momentOf(t, s.cfg.Now()) },
	}).ParseFS(templateFiles, "templates/layout.html", "templates/pieces.html")
	if err != nil {
		return nil, err
	}
	sets := map[string]*template.Template{}
	for _, name := range []string{"signin", "message", "confirm", "device", "deviceconfirm", "home", "groups", "group", "groupedit", "everyone", "explain", "audit", "sessions"} {
		set, err := shared.Clone()
		if err != nil {
			return nil, err
		}
		if sets[name], err = set.ParseFS(templateFiles, "templates/"+name+".html"); err != nil {
			return nil, err
		}
	}
	return sets, nil
}

// render writes the page whole or not at all.
func (s *Site) render(w http.ResponseWriter, status int, name string, p page) error {
	var b bytes.Buffer
	if err := s.pages[name].Execute(&b, p); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // a browser that went away is nobody to tell
	return nil
}

// groupPath is the page of a group.
func groupPath(name string) string { return "/groups/" + url.PathEscape(name) }

// moment is an instant as pages show it: relative, with the exact one behind.
type moment struct {
	Set, Past, Soon      bool // Soon: within a day
	Machine, Exact, Text string
}

func momentOf(t, now time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	t = t.UTC()
	left := t.Sub(now)
	return moment{
		Set: true, Past: left <= 0, Soon: left > 0 && left < 24*time.Hour,
		Machine: t.Format(time.RFC3339), Exact: t.Format("2006-01-02 15:04:05 UTC"), Text: relative(left, t),
	}
}

// relative says how far t is away; beyond 60 days it gives the day.
func relative(left time.Duration, t time.Time) string {
	n, unit := math.Abs(left.Seconds()), ""
	switch {
	case n < 45:
		if left > 0 {
			return "in a moment"
		}
		return "just now"
	case n < 3570:
		n, unit = n/60, "min"
	case n < 36*3600:
		n, unit = n/3600, "h"
	case n < 60*86400:
		n, unit = n/86400, "days"
	default:
		return t.Format("2 January 2006")
	}
	if left > 0 {
		return fmt.Sprintf("in %.0f %s", n, unit)
	}
	return fmt.Sprintf("%.0f %s ago", n, unit)
}
