package web

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// signInForm is the sign-in page. The password has no place in it.
type signInForm struct {
	Request, Next string // hidden: one of them, or none
	Client        string // what the person signs in to, "" for our own pages
	Returns       string // where the browser goes afterwards
	Username      string
	Directories   []string // to choose from, once the login was found in several
	Directory     string
	Error, Detail string
	RequestID     string
	target        string // the redirect URI, for the policy of the form
}

// Choose says that a directory has to be chosen before anything else.
func (f signInForm) Choose() bool { return len(f.Directories) > 0 && f.Directory == "" }

// readSignIn takes the form from a query or a post, and opens the request in it.
func (s *Site) readSignIn(r *http.Request, values url.Values) (signInForm, *idp.AuthRequest, error) {
	f := signInForm{Request: values.Get("request"), Next: safeNext(values.Get("next"))}
	if f.Request == "" {
		return f, nil, nil
	}
	binding := ""
	if c, err := r.Cookie(idp.SignInCookie); err == nil {
		binding = c.Value
	}
	req, err := s.idp.OpenRequest(f.Request, binding)
	if err != nil {
		return f, nil, err
	}
	f.Client, f.Returns, f.target = req.ClientName, returnsTo(req.RedirectURI), req.RedirectURI
	f.Username = req.LoginHint
	return f, req, nil
}

func (s *Site) showSignIn(w http.ResponseWriter, r *http.Request) error {
	f, req, err := s.readSignIn(r, r.URL.Query())
	if err != nil {
		return err
	}
	if req == nil {
		if _, err := s.browser(r); err == nil {
			return s.see(w, r, cmp.Or(f.Next, "/"))
		}
	}
	return s.renderSignIn(w, http.StatusOK, f)
}

// signIn answers 303 when the person is in. Any other status brings the form or an
// error page, so that a script can tell without reading it: 422 for wrong
// credentials and for a directory to be chosen (not 401, which promises a
// WWW-Authenticate challenge that browsers and scripts cannot meet here), 403 for
// an account or a client that is closed, 429, 503.
func (s *Site) signIn(w http.ResponseWriter, r *http.Request) error {
	if err := parseForm(r); err != nil {
		return err
	}
	f, req, err := s.readSignIn(r, r.PostForm)
	if err != nil {
		return err
	}
	f.Username, f.Directory = r.PostForm.Get("username"), r.PostForm.Get("directory")
	if offered := r.PostForm["directories"]; len(offered) <= 32 {
		f.Directories = offered
	}
	in, err := s.idp.SignIn(r.Context(), idp.Credentials{Login: f.Username, Password: r.PostForm.Get("password"), Directory: f.Directory}, req)
	if err != nil {
		return s.refuseSignIn(w, r, f, err)
	}
	setSession(w, in.Cookie)
	if in.Redirect != "" {
		http.Redirect(w, r, in.Redirect, http.StatusSeeOther)
		return nil
	}
	return s.see(w, r, cmp.Or(f.Next, "/"))
}

// refuseSignIn shows the form again with what to do. Wrong credentials carry no
// request id: unknown, disabled and mistyped have to give the same bytes.
func (s *Site) refuseSignIn(w http.ResponseWriter, r *http.Request, f signInForm, err error) error {
	var choose *idp.ChooseDirectoryError
	if errors.As(err, &choose) {
		f.Directories = choose.Names
		f.Error, f.Detail = "Choose your directory", "This user name is in more than one. Choose yours, and type the password again."
		return s.renderSignIn(w, http.StatusUnprocessableEntity, f)
	}
	said := s.explainLogged(r, err)
	if !errors.Is(err, idp.ErrCredentials) {
		f.RequestID = audit.OriginOf(r.Context()).RequestID
	}
	f.Error, f.Detail = said.Title, said.Detail
	retryAfter(w, said)
	return s.renderSignIn(w, said.Status, f)
}

func (s *Site) renderSignIn(w http.ResponseWriter, status int, f signInForm) error {
	w.Header().Set("Content-Security-Policy", formCSP(f.target))
	title := "Sign in"
	if f.Client != "" {
		title += " to use " + f.Client
	}
	return s.render(w, status, "signin", s.newPage(title, f))
}

func (s *Site) showSignOut(w http.ResponseWriter, r *http.Request) error {
	sealed := r.URL.Query().Get("request")
	out, err := s.openLogout(sealed)
	if err != nil {
		return err
	}
	sess, err := s.browser(r)
	if errors.Is(err, idp.ErrNoSession) && sealed == "" {
		return s.see(w, r, "/signed-out")
	}
	if err != nil && !errors.Is(err, idp.ErrNoSession) && !errors.Is(err, idp.ErrUnavailable) && !errors.Is(err, idp.ErrNoAccess) {
		return err // but signing out needs neither a directory nor a right
	}
	effect := "This browser forgets you, and the tokens it was given are not renewed."
	if out.ClientName != "" {
		effect = out.ClientName + " asks to sign you out. " + effect
	}
	if sess != nil {
		effect = "You are signed in as " + sess.Username + ". " + effect
	}
	c := confirmation{
		Heading: "Sign out?", Action: s.url("/sign-out"), Button: "Sign out", Cancel: "Stay signed in", CancelURL: s.url("/"),
		Effects: []string{effect},
	}
	if sealed != "" {
		c.Hidden = url.Values{"request": {sealed}}
	}
	w.Header().Set("Content-Security-Policy", formCSP(out.RedirectURI))
	return s.render(w, http.StatusOK, "confirm", s.newPage("Sign out", c))
}

func (s *Site) signOut(w http.ResponseWriter, r *http.Request) error {
	if err := parseForm(r); err != nil {
		return err
	}
	out, err := s.openLogout(r.PostForm.Get("request"))
	if err != nil {
		return err
	}
	if c, err := r.Cookie(idp.SessionCookie); err == nil {
		if err := s.idp.EndBrowser(r.Context(), c.Value); err != nil {
			return err
		}
	}
	setSession(w, "")
	if out.RedirectURI != "" {
		http.Redirect(w, r, out.RedirectURI, http.StatusSeeOther)
		return nil
	}
	return s.see(w, r, "/signed-out")
}

// openLogout opens what the provider sealed; nothing sealed is a plain sign-out.
func (s *Site) openLogout(sealed string) (*idp.LogoutRequest, error) {
	if sealed == "" {
		return &idp.LogoutRequest{}, nil
	}
	return s.idp.OpenLogout(sealed)
}

func (s *Site) signedOut(w http.ResponseWriter, _ *http.Request) error {
	return s.render(w, http.StatusOK, "message", s.newPage("Signed out", message{
		Heading: "You are signed out", Text: "This browser holds nothing of your session any more. Tokens already given out end by themselves within minutes.",
	}))
}

// parseForm reads a posted form into r.PostForm.
func parseForm(r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return errTooLarge
		}
		return errBadForm
	}
	return nil
}

// nextOf is where somebody who has to sign in first wanted to go, for a query. A
// post is not repeated: they come back to the section it belongs to.
func nextOf(r *http.Request) string {
	next := r.URL.RequestURI()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		section, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		next = "/" + section
	}
	return url.QueryEscape(safeNext(next))
}

// safeNext returns raw when it is the address of one of our pages that sign-in may
// lead to, else "". Nothing it returns leaves this origin.
func safeNext(raw string) string {
	if len(raw) > 512 || !strings.HasPrefix(raw, "/") || strings.HasPrefix(raw, "//") || strings.Contains(raw, `\`) {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Fragment != "" || path.Clean(u.Path) != u.Path {
		return ""
	}
	section, _, _ := strings.Cut(u.Path[1:], "/")
	if u.Path != "/" && section != "groups" && section != "device" && section != "audit" {
		return ""
	}
	return u.String()
}

// returnsTo names the place of a redirect URI for a person.
func returnsTo(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		scheme, _, _ := strings.Cut(uri, ":")
		return "the application " + scheme
	}
	return u.Host
}
