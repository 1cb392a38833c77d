package web

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
)

//go:embed openapi.json
var openAPI []byte

const apiCSP = "default-src 'none'; frame-ancestors 'none'"

// caller is who calls the API.
type caller struct {
	actor    groups.Actor
	me       api.Me
	clusters func() ([]idp.ClusterConfig, error) // that give the caller a token
	session  string                              // sid; "" for the operator
}

// apiServer is the JSON API over the group rules of one Tabard.
type apiServer struct {
	groups *groups.Service
	idp    *idp.Service
	now    func() time.Time
	who    func(*http.Request) (caller, error)
	fail   func(http.ResponseWriter, *http.Request, error)

	backups *Backups // nil: none are given
	audit   *Auditor // nil: the trail cannot be searched
	log     logrus.FieldLogger

	applying chan struct{} // holds one while files are applied
}

// API serves the JSON API to one caller who is not asked to sign in: for the
// commands that open the store themselves while the server is stopped.
func API(local *groups.Service, svc *idp.Service, actor groups.Actor, log logrus.FieldLogger) http.Handler {
	s := &Site{log: log, groups: local, idp: svc, cfg: Config{Now: time.Now}}
	me := api.Me{Sub: actor.Sub, Username: actor.Name, Name: actor.Name, Groups: sorted(actor.Groups), Admin: local.IsAdmin(actor)}
	return s.serveAPI(func(*http.Request) (caller, error) {
		return caller{actor, me, func() ([]idp.ClusterConfig, error) { return nil, nil }, ""}, nil
	})
}

// api is the JSON API to whoever shows a token of the audience "tabard", or the
// session of a browser.
func (s *Site) api() http.Handler { return s.serveAPI(s.caller) }

func (s *Site) serveAPI(who func(*http.Request) (caller, error)) http.Handler {
	a := &apiServer{groups: s.groups, idp: s.idp, now: s.cfg.Now, who: who, fail: s.problem, log: s.log, backups: s.cfg.Backups, audit: s.cfg.Auditor, applying: make(chan struct{}, 1)}
	router := newRouter(a.routes(), func(w http.ResponseWriter, r *http.Request, status int) {
		s.problem(w, r, &fault{Status: status, Title: http.StatusText(status), Detail: "The API has no " + r.Method + " at this address; /api/openapi.json lists what it has."})
	})
	return s.recovered(s.problem, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w, apiCSP)
		limit := int64(maxJSON)
		if r.URL.Path == applyPath {
			limit = maxApply
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		router.ServeHTTP(w, r)
	}))
}

// routes is every operation; openapi.json describes the same.
func (a *apiServer) routes() []route {
	return []route{
		{"GET", "/api/openapi.json", http.HandlerFunc(serveOpenAPI)},
		{"GET", BackupPath, http.HandlerFunc(a.getBackup)},
		{"GET", "/api/v1/me", a.op(func(_ *http.Request, c caller) (int, any, error) { return http.StatusOK, c.me, nil })},
		{"GET", "/api/v1/clusters", a.op(listClusters)},
		{"GET", "/api/v1/audit", a.op(a.searchAudit)},
		{"GET", "/api/v1/explain", a.op(a.getExplanation)},
		{"GET", "/api/v1/sessions", a.op(a.listSessions)},
		{"DELETE", "/api/v1/sessions", a.op(a.endSessions)},
		{"DELETE", "/api/v1/sessions/{id}", a.op(a.endSession)},
		{"GET", "/api/v1/keys", a.op(a.listKeys)},
		{"POST", "/api/v1/keys/rotate", a.op(a.rotateKeys)},
		{"GET", "/api/v1/people", a.op(a.searchPeople)},
		{"GET", "/api/v1/groups", a.op(a.listGroups)},
		{"POST", "/api/v1/groups", a.op(a.createGroup)},
		{"GET", "/api/v1/groups/{name}", a.op(a.getGroup)},
		{"PATCH", "/api/v1/groups/{name}", a.op(a.editGroup)},
		{"DELETE", "/api/v1/groups/{name}", a.op(a.deleteGroup)},
		{"GET", "/api/v1/groups/{name}/containing", a.op(a.listContaining)},
		{"GET", "/api/v1/groups/{name}/everyone", a.op(a.listEveryone)},
		{"GET", "/api/v1/groups/{name}/members", a.op(a.listMembers)},
		{"POST", "/api/v1/groups/{name}/members", a.op(a.addMember)},
		{"GET", "/api/v1/groups/{name}/members/{kind}/{id}", a.op(a.getMember)},
		{"DELETE", "/api/v1/groups/{name}/members/{kind}/{id}", a.op(a.removeMember)},
		{"POST", applyPath, a.called(a.apply)},
		{"GET", exportPath, a.called(a.export)},
	}
}

// called serves one operation to who calls it.
func (a *apiServer) called(h func(http.ResponseWriter, *http.Request, caller) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := a.who(r)
		if err == nil {
			err = h(w, r, c)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

// op serves one operation whose answer is a JSON document.
func (a *apiServer) op(h func(*http.Request, caller) (int, any, error)) http.Handler {
	return a.called(func(w http.ResponseWriter, r *http.Request, c caller) error {
		status, body, err := h(r, c)
		if err == nil {
			writeJSON(w, status, "application/json", body)
		}
		return err
	})
}

// caller finds out who sent r. A token that was sent decides, also when it is not
// good; only a browser's cookie can be sent by another site's doing.
func (s *Site) caller(r *http.Request) (caller, error) {
	var sess *idp.Session
	var err error
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, token, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return caller{}, idp.ErrNoSession
		}
		sess, err = s.idp.Authenticate(r.Context(), strings.TrimSpace(token))
	} else {
		if err := s.csrf.Check(r); err != nil {
			return caller{}, errCrossSite
		}
		sess, err = s.browser(r)
	}
	if err != nil {
		return caller{}, err
	}
	actor, err := s.idp.Actor(sess)
	if err != nil {
		return caller{}, err
	}
	return caller{actor, api.Me{
		Sub: sess.Sub, Username: sess.Username, Name: sess.Name, Email: sess.Email,
		Groups: sorted(actor.Groups), Admin: s.groups.IsAdmin(actor),
	}, func() ([]idp.ClusterConfig, error) { return s.idp.ClustersOf(sess) }, sess.ID}, nil
}

// listClusters tells where the caller can go, so that a kubeconfig can be made.
func listClusters(_ *http.Request, c caller) (int, any, error) {
	open, err := c.clusters()
	return http.StatusOK, api.ClusterList{Clusters: each(open, wireCluster)}, err
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// sorted is a sorted copy of names, never nil, so that JSON has an array.
func sorted(names []string) []string {
	names = append([]string{}, names...)
	slices.Sort(names)
	return names
}

// decode reads the one JSON document of r's body into v; a field that v does not
// have is refused, since a mistyped "end" would make a membership last for ever.
func decode(r *http.Request, v any, types ...string) error {
	types = append(types, "application/json")
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || !slices.Contains(types, kind) {
		return &fault{Status: 415, Title: "Not JSON", Code: "not-json", Detail: "Send the body with Content-Type: " + strings.Join(types, " or ") + "."}
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("something follows the JSON document")
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return errTooLarge
	}
	return badJSON(strings.TrimPrefix(err.Error(), "json: "))
}

func badJSON(detail string) error {
	return &fault{Status: 400, Title: "The JSON could not be read", Detail: detail, Code: "bad-json"}
}

// query returns r's query if it has no other parameters than these: a filter with a
// mistake in its name would let everything through.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badQuery("The query has a mistake in it: a percent sign or a semicolon is not escaped.")
	}
	for name := range q {
		if !slices.Contains(known, name) {
			return nil, badQuery("The query has a parameter that is not known here. Known: " + strings.Join(known, ", ") + ".")
		}
	}
	return q, nil
}

func badQuery(detail string) error {
	return &fault{Status: 400, Title: "The query could not be read", Detail: detail, Code: "bad-query"}
}

// problem answers with err as RFC 9457 has it.
func (s *Site) problem(w http.ResponseWriter, r *http.Request, err error) {
	f := s.explainLogged(r, err)
	retryAfter(w, f)
	if f.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="tabard"`)
		f.Detail = "Send a token of the audience tabard as Authorization: Bearer; tabard login gets one."
	}
	p := api.Problem{Code: f.Code, Title: f.Title, Status: f.Status, Detail: f.Detail, RequestID: audit.OriginOf(r.Context()).RequestID}
	if f.Code != "" {
		p.Type = "urn:tabard:problem:" + f.Code
	}
	var mismatch *groups.MismatchError
	if errors.As(err, &mismatch) {
		g := wireGroup(mismatch.Current)
		p.Current = &g
		w.Header().Set("ETag", g.ETag)
	}
	var asked *askedError
	if errors.As(err, &asked) {
		p.Sent, _ = json.Marshal(asked.sent) // it came as JSON
	}
	var contained *groups.ContainedError
	if errors.As(err, &contained) {
		p.In = contained.In
	}
	writeJSON(w, f.Status, "application/problem+json", p)
}

func serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI)
}

// writeJSON answers with body, and with its ETag if it is a group.
func writeJSON(w http.ResponseWriter, status int, contentType string, body any) {
	if g, ok := body.(api.Group); ok {
		w.Header().Set("ETag", g.ETag)
	}
	if body == nil || status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a caller that went away is nobody to tell
}
