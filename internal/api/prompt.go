package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// Asker asks the person at a terminal.
type Asker struct {
	Username func() (string, error)
	Password func() (string, error)
	// Directory lets the person choose one of names when a login is found in
	// several directories.
	Directory func(names []string) (string, error)
	// Tell shows why a try failed before the next one.
	Tell func(message string)
	// Tries is how often username and password are asked for; 0 means once.
	Tries int
}

// promptRedirect is a redirect URI of the built-in client at which nothing
// listens: the prompt reads the code from the redirect itself.
const promptRedirect = "http://127.0.0.1/callback"

// maxHops bounds the redirects and forms of one sign-in.
const maxHops = 10

// Prompt signs in without a browser, by fetching the sign-in page, filling in its
// form and posting it.
func (s *SignIn) Prompt(ctx context.Context, ask Asker) (Login, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return Login{}, fmt.Errorf("make a cookie jar: %w", err)
	}
	s.http.Jar = jar
	at, err := s.follow(ctx, http.MethodGet, s.authorizeURL(promptRedirect, ""), nil)
	if err != nil {
		return Login{}, err
	}
	for try := 1; at.answer == nil; try++ {
		if at.form == nil {
			return Login{}, errors.New("the sign-in page has no form: " + at.said())
		}
		user, password, err := askBoth(ask)
		if err != nil {
			return Login{}, err
		}
		if at, err = s.submit(ctx, at, user, password, ask); err != nil {
			return Login{}, err
		}
		if at.answer == nil {
			if at.form == nil || at.status >= 500 || at.status == http.StatusTooManyRequests || try >= ask.Tries {
				return Login{}, errors.New(at.said())
			}
			ask.Tell(at.said())
		}
	}
	return s.finish(ctx, at.answer, promptRedirect)
}

func askBoth(ask Asker) (user, password string, err error) {
	if user, err = ask.Username(); err != nil {
		return "", "", err
	}
	if password, err = ask.Password(); err != nil {
		return "", "", err
	}
	if strings.TrimSpace(user) == "" || password == "" {
		return "", "", errors.New("username and password may not be empty")
	}
	return user, password, nil
}

// submit posts the form at; when the page comes back asking for a directory it
// posts again with the person's choice.
func (s *SignIn) submit(ctx context.Context, at page, user, password string, ask Asker) (page, error) {
	asked := len(at.directories) > 0
	for {
		form := at.form
		form.Set("username", user)
		form.Set("password", password)
		if len(at.directories) > 0 {
			name, err := ask.Directory(at.directories)
			if err != nil {
				return page{}, err
			}
			form.Set("directory", name)
		}
		next, err := s.follow(ctx, http.MethodPost, at.action, form)
		if err != nil || asked || next.form == nil || len(next.directories) == 0 {
			return next, err
		}
		asked, at = true, next
	}
}

// page is where the sign-in stands: at a form, at an error, or done.
type page struct {
	answer      url.Values // of the redirect to promptRedirect
	status      int
	form        url.Values // hidden fields; nil without a password form
	action      string
	directories []string // options of the select named directory
	alert       string   // text with role=alert
	heading     string
}

// said is what the page tells the person.
func (p page) said() string {
	for _, s := range []string{p.alert, p.heading} {
		if s != "" {
			return s
		}
	}
	return fmt.Sprintf("the server answered %d", p.status)
}

// follow sends a request and goes after redirects on the server itself until it
// arrives at a page or at promptRedirect.
func (s *SignIn) follow(ctx context.Context, method, target string, form url.Values) (page, error) {
	for range maxHops {
		if !s.sameOrigin(target) {
			return page{}, errors.New("the sign-in page leads to another server: sign in with --browser")
		}
		resp, err := s.send(ctx, method, target, form)
		if err != nil {
			return page{}, unreachable(s.login.Server, err)
		}
		location, err := resp.Location()
		if resp.StatusCode < 300 || resp.StatusCode > 399 || err != nil {
			defer resp.Body.Close()
			return readPage(resp)
		}
		resp.Body.Close()
		if q := location.Query(); strings.HasPrefix(location.String(), promptRedirect+"?") {
			return page{answer: q}, nil
		}
		method, target, form = http.MethodGet, location.String(), nil
	}
	return page{}, errors.New("the sign-in page redirects in circles: sign in with --browser")
}

func (s *SignIn) send(ctx context.Context, method, target string, form url.Values) (*http.Response, error) {
	if method == http.MethodPost {
		return postForm(ctx, s.http, target, form)
	}
	return s.get(ctx, target)
}

func (s *SignIn) sameOrigin(target string) bool {
	a, errA := url.Parse(s.login.Server)
	b, errB := url.Parse(target)
	return errA == nil && errB == nil && a.Scheme == b.Scheme && a.Host == b.Host
}

// readPage finds the sign-in form and what the page has to say.
func readPage(resp *http.Response) (page, error) {
	doc, err := html.Parse(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return page{}, fmt.Errorf("read the sign-in page: %w", err)
	}
	p := page{status: resp.StatusCode}
	for n := range doc.Descendants() {
		switch {
		case n.Type != html.ElementNode:
		case attr(n, "role") == "alert" && p.alert == "":
			p.alert = clip(text(n), 300)
		case n.Data == "h1" && p.heading == "":
			p.heading = clip(text(n), 300)
		case n.Data == "form" && p.form == nil:
			p.readForm(n, resp.Request.URL)
		}
	}
	return p, nil
}

// readForm takes the form at n if it asks for a password.
func (p *page) readForm(n *html.Node, base *url.URL) {
	hidden, password := url.Values{}, false
	var directories []string
	for e := range n.Descendants() {
		switch {
		case e.Type != html.ElementNode:
		case e.Data == "input" && attr(e, "name") == "password":
			password = true
		case e.Data == "input" && attr(e, "type") == "hidden":
			hidden.Add(attr(e, "name"), attr(e, "value"))
		case e.Data == "option" && attr(e.Parent, "name") == "directory" && optionValue(e) != "":
			directories = append(directories, optionValue(e))
		}
	}
	action, err := base.Parse(attr(n, "action"))
	if password && err == nil {
		p.form, p.action, p.directories = hidden, action.String(), directories
	}
}

// optionValue is what the form sends for an option: its value, or its text when
// it has none.
func optionValue(n *html.Node) string {
	for _, a := range n.Attr {
		if a.Key == "value" {
			return a.Val
		}
	}
	return strings.TrimSpace(text(n))
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// text is what n says, with a full stop between blocks.
func text(n *html.Node) string {
	var b strings.Builder
	for c := range n.Descendants() {
		said := strings.TrimSpace(b.String())
		switch {
		case c.Type == html.TextNode:
			b.WriteString(c.Data)
		case c.DataAtom == atom.Br || c.DataAtom == atom.P || c.DataAtom == atom.Div || c.DataAtom == atom.Li:
			if said != "" && !strings.ContainsAny(said[len(said)-1:], ".:?!") {
				b.WriteString(".")
			}
			b.WriteString(" ")
		}
	}
	return b.String()
}
