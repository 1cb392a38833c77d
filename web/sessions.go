package web

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
)

// listSessions answers GET /api/v1/sessions: of the caller, of ?person=, or of
// everybody for ?person=*.
func (a *apiServer) listSessions(r *http.Request, c caller) (int, any, error) {
	f, err := a.sessionFilter(r, c)
	if err != nil {
		return 0, nil, err
	}
	page, next, err := a.idp.ListSessions(c.actor, c.me.Admin, f)
	list := api.SessionList{Sessions: make([]api.Session, 0, len(page)), Next: next}
	for _, s := range page {
		list.Sessions = append(list.Sessions, api.Session{
			ID: s.ID, Sub: s.Sub, Username: s.Username, Name: s.Name, Clients: sorted(s.Clients), Browser: s.Browser,
			Address: s.Address, UserAgent: s.UserAgent, Device: deviceInWords(s.UserAgent), Created: s.Created, LastUsed: s.LastUsed, Ends: s.Ends, Current: s.ID == c.session,
		})
	}
	return http.StatusOK, list, err
}

func (a *apiServer) sessionFilter(r *http.Request, c caller) (idp.SessionFilter, error) {
	q := r.URL.Query()
	f := idp.SessionFilter{Query: q.Get("q"), After: q.Get("cursor")}
	if raw := q.Get("limit"); raw != "" {
		n, err := strconv.Atoi(raw)
		if err != nil || n < 1 || n > 1000 {
			return f, &fault{Status: 400, Title: "limit is not a number from 1 to 1000"}
		}
		f.Limit = n
	}
	var err error
	if q.Get("person") != "*" {
		f.Sub, err = a.subject(r, c, q.Get("person"))
	}
	return f, err
}

// subject is the sub of a person named by username or sub; the caller's for "". Nobody
// learns whether others exist by asking about them.
func (a *apiServer) subject(r *http.Request, c caller, person string) (string, error) {
	if person == "" || person == c.actor.Sub || strings.EqualFold(person, c.actor.Name) {
		return c.actor.Sub, nil
	}
	if !c.me.Admin {
		return person, nil // which is refused by whom it is given to
	}
	if sub, ok := a.idp.SubjectOfSession(person); ok { // also of those who left the directory
		return sub, nil
	}
	p, err := a.idp.FindPerson(r.Context(), person)
	if err != nil {
		return "", fmt.Errorf("find %q: %w", person, err)
	}
	return p.Sub(), nil
}

// endSession answers DELETE /api/v1/sessions/{id}.
func (a *apiServer) endSession(r *http.Request, c caller) (int, any, error) {
	return http.StatusNoContent, nil, sessionGone(a.idp.EndSession(r.Context(), c.actor, c.me.Admin, r.PathValue("id")))
}

// sessionGone tells a session that is not there from a caller who is not signed in.
func sessionGone(err error) error {
	if f := explain(err); err != nil && f.Status == http.StatusUnauthorized {
		return &fault{Status: 404, Title: "No such session", Detail: "It has ended, or it is another person's."}
	}
	return err
}

// endSessions answers DELETE /api/v1/sessions?person=: every session of a person; of
// the caller all but this one.
func (a *apiServer) endSessions(r *http.Request, c caller) (int, any, error) {
	q := r.URL.Query()
	if !q.Has("person") {
		return 0, nil, &fault{Status: 400, Title: "Whose sessions is missing", Detail: "Name a person with ?person=; empty stands for yourself."}
	}
	sub, err := a.subject(r, c, q.Get("person"))
	if err != nil {
		return 0, nil, err
	}
	n, err := a.idp.EndSessions(r.Context(), c.actor, c.me.Admin, sub, c.session)
	return http.StatusOK, api.Ended{Ended: n}, err
}

// listKeys answers GET /api/v1/keys.
func (a *apiServer) listKeys(_ *http.Request, c caller) (int, any, error) {
	keys, err := a.idp.SigningKeys(c.me.Admin)
	return http.StatusOK, wireKeys(keys), err
}

// rotateKeys answers POST /api/v1/keys/rotate.
func (a *apiServer) rotateKeys(r *http.Request, c caller) (int, any, error) {
	var in api.RotateKeys
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	keys, err := a.idp.RotateKeys(r.Context(), c.actor, c.me.Admin, in.Emergency)
	return http.StatusOK, wireKeys(keys), err
}

func wireKeys(keys []idp.KeyInfo) api.KeyList {
	return api.KeyList{Keys: each(keys, func(k idp.KeyInfo) api.Key { return api.Key(k) })}
}

// sessionsPage is a person's sessions, for administrators anybody's.
type sessionsPage struct {
	Sessions []idp.SessionInfo
	Current  string // id of the one that looks
	Everyone bool
	Query    string
	Next     string
}

func (s *Site) listSessions(w http.ResponseWriter, r *http.Request, v visitor) error {
	q := r.URL.Query()
	data := sessionsPage{Current: v.sess.ID, Everyone: v.admin && q.Has("everyone"), Query: strings.TrimSpace(q.Get("q"))}
	f := idp.SessionFilter{Sub: v.sess.Sub, Query: data.Query, After: q.Get("cursor")}
	if data.Everyone {
		f.Sub = ""
	}
	var err error
	if data.Sessions, data.Next, err = s.idp.ListSessions(v.actor, v.admin, f); err != nil {
		return err
	}
	p := s.pageFor(v, "sessions", "Sessions", data)
	p.Did = done[q.Get("did")]
	return s.render(w, http.StatusOK, "sessions", p)
}

func (s *Site) endSession(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := sessionGone(s.idp.EndSession(r.Context(), v.actor, v.admin, r.PostForm.Get("id"))); err != nil {
		return err
	}
	back := "/sessions?did=session-ended"
	if r.PostForm.Get("everyone") != "" {
		back += "&everyone"
	}
	return s.see(w, r, back)
}

func (s *Site) endOtherSessions(w http.ResponseWriter, r *http.Request, v visitor) error {
	if _, err := s.idp.EndSessions(r.Context(), v.actor, v.admin, v.sess.Sub, v.sess.ID); err != nil {
		return err
	}
	return s.see(w, r, "/sessions?did=sessions-ended")
}

// deviceInWords is what a user agent says of a device, in two words.
func deviceInWords(userAgent string) string {
	first := func(names ...[2]string) string {
		for _, n := range names {
			if strings.Contains(userAgent, n[0]) {
				return n[1]
			}
		}
		return ""
	}
	browser := first([2]string{"Edg/", "Edge"}, [2]string{"Firefox/", "Firefox"}, [2]string{"Chrome/", "Chrome"}, [2]string{"Safari/", "Safari"})
	system := first([2]string{"Android", "Android"}, [2]string{"iPhone", "iPhone"}, [2]string{"iPad", "iPad"}, [2]string{"Windows", "Windows"},
		[2]string{"Mac OS X", "macOS"}, [2]string{"Linux", "Linux"})
	switch {
	case browser != "" && system != "":
		return browser + " on " + system
	case userAgent == "":
		return "unknown"
	}
	return userAgent
}
