package web

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
)

// fault is what a person or a script is told of an error.
type fault struct {
	Status        int
	Title, Detail string // what happened; what it means and what to do
	RetryAfter    int    // seconds, 0: not said
	Code          string // for programs; "" for what the status says already
}

func (f *fault) Error() string { return f.Title + ": " + f.Detail }

// Faults of requests that this package finds itself.
var (
	errCrossSite  = &fault{Status: 403, Title: "This came from another site", Code: "cross-site", Detail: "A page elsewhere tried to do this with your session, or your browser hides where a form comes from. Nothing was done. Open the page here and do it again."}
	errTooLarge   = &fault{Status: 413, Title: "That is too much", Code: "too-large", Detail: "The request is larger than this server reads. Nothing was done."}
	errBadForm    = &fault{Status: 400, Title: "The form could not be read", Detail: "What arrived is not a form as this server writes it. Nothing was done. Load the page again."}
	errStartAgain = &fault{Status: 400, Title: "Start again from where you came", Detail: "This was begun too long ago, or in another browser. Go back to the application or the command that sent you here, and begin again there."}
)

// faults says for each kind of error how it is answered, on pages and by the API.
// An empty detail is filled in with the error's own words, which groups writes
// for people.
var faults = []struct {
	is error
	fault
}{
	{idp.ErrCredentials, fault{422, "User name or password is wrong", "Check both. After several wrong passwords you have to wait.", 0, "credentials"}},
	{idp.ErrUnavailable, fault{503, "The directory does not answer just now", "Nobody's name or password can be checked until it does. Try again in a minute.", 30, "directory-unavailable"}},
	{idp.ErrNoAccess, fault{403, "You have no access here", "You are who you say, but none of your groups lets you in. Ask whoever runs it which group you need.", 0, "no-access"}},
	{idp.ErrTooMany, fault{429, "Too many tries", "Wait a minute, then try again.", 60, "too-many"}},
	{idp.ErrNoSession, fault{401, "You are not signed in", "Sign in, then do this again.", 0, "not-signed-in"}},
	{idp.ErrExpired, *errStartAgain},
	{directory.ErrNotFound, fault{422, "Nobody was found", "No directory has a person of that name. Write the name as the person types it to sign in.", 0, "nobody-found"}},
	{directory.ErrAmbiguous, fault{422, "Several people were found", "More than one person has that name. Write it with the directory's suffix, as in user@suffix.", 0, "several-found"}},
	{directory.ErrUnavailable, fault{503, "The directory does not answer just now", "Nobody can be looked up until it does. Try again in a minute.", 30, "directory-unavailable"}},
	{directory.ErrUnusable, fault{422, "The entry cannot be used", "", 0, "entry-unusable"}},
	{idp.ErrNoCluster, fault{422, "No such cluster", "The configuration has no cluster of that name.", 0, "no-cluster"}},
	{groups.ErrUnknown, fault{503, "It may have been done", "Look at the group before you repeat it.", 0, "uncertain"}},
	{groups.ErrNotFound, fault{404, "No such group or member", "It was deleted or removed, or you may not see it, or the address has a mistake in it.", 0, "not-found"}},
	{groups.ErrExists, fault{409, "That group exists already", "Choose another name, or use the group that is there.", 0, "exists"}},
	{groups.ErrConflict, fault{409, "Someone else changed this meanwhile", "Nothing was done. Look at it again, then repeat what is still needed.", 0, "conflict"}},
	{idp.ErrAdministrators, fault{403, "You may not do this", "Only administrators may. Ask one of them.", 0, "forbidden"}},
	{groups.ErrForbidden, fault{403, "You may not do this", "Only administrators may; owners of a group may change its members and description. Ask one of them.", 0, "forbidden"}},
	{groups.ErrInvalid, fault{422, "That cannot be saved", "", 0, "invalid"}},
	{groups.ErrStale, fault{503, "Groups are not up to date here", "This server has lost touch with its store, so it decides nothing. Try again in a minute.", 10, "stale"}},
	{context.DeadlineExceeded, fault{503, "That took too long", "Whether it was done is not known. Look first, then try again.", 10, "uncertain"}},
}

// accountWords says what keeps an account out. The password was right.
var accountWords = map[directory.State]string{
	directory.Disabled:        "Your account is disabled in the directory. Ask your service desk to enable it.",
	directory.Locked:          "Your account is locked in the directory. It unlocks by itself after a while, or your service desk unlocks it.",
	directory.Expired:         "Your account has passed its end date. Ask your service desk to extend it.",
	directory.PasswordExpired: "Your password has expired. Change it where you usually do, then sign in again.",
	directory.MustChange:      "You have to change your password before anything else. Change it where you usually do, then sign in again.",
}

// explain returns what to tell of err; what no table knows is a fault of ours.
func explain(err error) fault {
	var own *fault
	if errors.As(err, &own) {
		return *own
	}
	var account *directory.AccountError
	if errors.As(err, &account) {
		return fault{403, "Your account cannot be used", accountWords[account.State], 0, "account"}
	}
	var mismatch *groups.MismatchError
	if errors.As(err, &mismatch) {
		return fault{412, "Someone else changed this group meanwhile", "Nothing was done. Look at it as it is now, then repeat what is still needed.", 0, api.CodeMismatch}
	}
	var contained *groups.ContainedError
	if errors.As(err, &contained) {
		return fault{409, "Other groups contain this group", "Whoever is in it loses these with it: " + strings.Join(contained.In, ", ") + ". Remove it there first, or confirm that it leaves them.", 0, api.CodeContained}
	}
	var many *idp.TooManyError
	if errors.As(err, &many) {
		wait := many.Wait.Truncate(time.Second) + time.Second
		return fault{429, "Too many tries", "Passwords were wrong too often, for this user name or from where you are. Try again in " + inWords(wait) + ".", int(wait.Seconds()), "too-many"}
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return *errTooLarge
	}
	for _, f := range faults {
		if errors.Is(err, f.is) {
			if f.Detail == "" {
				f.Detail = sentence(err, f.is)
			}
			return f.fault
		}
	}
	return fault{500, "Something went wrong here", "It is not your doing, and the cause is in the server's log. Try again; if it stays, tell whoever runs this server.", 0, "internal"}
}

// inWords says a time that somebody has to wait, never shorter than it is.
func inWords(d time.Duration) string {
	n, unit := int(math.Ceil(d.Seconds())), "second"
	switch {
	case d > 2*time.Hour:
		n, unit = int(math.Ceil(d.Hours())), "hour"
	case d > 2*time.Minute:
		n, unit = int(math.Ceil(d.Minutes())), "minute"
	}
	if n != 1 {
		unit += "s"
	}
	return strconv.Itoa(n) + " " + unit
}

// sentence makes a sentence of what err says after the name of its kind.
func sentence(err, kind error) string {
	_, words, _ := strings.Cut(err.Error(), kind.Error()+": ")
	first, size := utf8.DecodeRuneInString(words)
	return string(unicode.ToUpper(first)) + words[size:] + "."
}

// explainLogged is explain, with our own faults and their causes in the log.
func (s *Site) explainLogged(r *http.Request, err error) fault {
	f := explain(err)
	if f.Status >= 500 {
		s.log.WithError(err).WithField("request", audit.OriginOf(r.Context()).RequestID).Errorf("%s %s", r.Method, r.URL.Path)
	}
	return f
}

// fail shows err as a page of its own.
func (s *Site) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := s.explainLogged(r, err)
	retryAfter(w, f)
	s.ErrorPage(w, r, f.Status, f.Title, f.Detail)
}

func retryAfter(w http.ResponseWriter, f fault) {
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.RetryAfter))
	}
}

// ErrorPage answers r with a page for a person: title says what happened, detail
// what it means and what to do. The provider uses it for what goes wrong before
// there is a client to tell.
func (s *Site) ErrorPage(w http.ResponseWriter, r *http.Request, status int, title, detail string) {
	setHeaders(w, formCSP(""))
	p := s.newPage(title, message{Heading: title, Text: detail, RequestID: audit.OriginOf(r.Context()).RequestID, Home: true})
	if err := s.render(w, status, "message", p); err != nil {
		s.log.WithError(err).Error("error page")
		http.Error(w, title+". "+detail, status)
	}
}

// noRoute answers what no page has.
func (s *Site) noRoute(w http.ResponseWriter, r *http.Request, status int) {
	if status == http.StatusMethodNotAllowed {
		s.ErrorPage(w, r, status, "That does not work here", "This address does not take a "+r.Method+" request. Go to the page and use its buttons.")
		return
	}
	s.ErrorPage(w, r, http.StatusNotFound, "There is no such page", "The address has a mistake in it, or the page is gone.")
}
