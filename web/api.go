package web

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
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
	a := &apiServer{groups: s.groups, idp: s.idp, now: s.cfg.Now, who: who, fail: s.problem, backups: s.cfg.Backups, audit: s.cfg.Auditor}
	router := newRouter(a.routes(), func(w http.ResponseWriter, r *http.Request, status int) {
		s.problem(w, r, &fault{Status: status, Title: http.StatusText(status), Detail: "The API has no " + r.Method + " at this address; /api/openapi.json lists what it has."})
	})
	return s.recovered(s.problem, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w, apiCSP)
		r.Body = http.MaxBytesReader(w, r.Body, maxJSON)
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
		{"GET", "/api/v1/groups", a.op(a.listGroups)},
		{"POST", "/api/v1/groups", a.op(a.createGroup)},
		{"GET", "/api/v1/groups/{name}", a.op(a.getGroup)},
		{"DELETE", "/api/v1/groups/{name}", a.op(a.deleteGroup)},
		{"POST", "/api/v1/groups/{name}/members", a.op(a.addMember)},
		{"DELETE", "/api/v1/groups/{name}/members/{kind}/{id}", a.op(a.removeMember)},
	}
}

// op serves one operation: who calls, what they get.
func (a *apiServer) op(h func(*http.Request, caller) (int, any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := a.who(r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		status, body, err := h(r, c)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		writeJSON(w, status, "application/json", body)
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
	list := api.ClusterList{Clusters: make([]api.Cluster, 0, len(open))}
	for _, cl := range open {
		list.Clusters = append(list.Clusters, api.Cluster{Name: cl.Name, ClientID: cl.ClientID, APIServer: cl.APIServer.URL, CA: cl.APIServer.CA})
	}
	return http.StatusOK, list, err
}

func (a *apiServer) listGroups(r *http.Request, c caller) (int, any, error) {
	all, err := a.groups.List(r.Context(), c.actor)
	if err != nil {
		return 0, nil, err
	}
	list := api.GroupList{Groups: make([]api.Group, 0, len(all))}
	for _, g := range all {
		wire := a.wire(g)
		wire.Members = nil
		list.Groups = append(list.Groups, wire)
	}
	return http.StatusOK, list, nil
}

func (a *apiServer) createGroup(r *http.Request, c caller) (int, any, error) {
	var in struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	g, err := a.groups.Create(r.Context(), c.actor, in.Name, in.Description)
	return http.StatusCreated, a.wire(g), err
}

func (a *apiServer) getGroup(r *http.Request, c caller) (int, any, error) {
	g, err := a.groups.Get(r.Context(), c.actor, r.PathValue("name"))
	return http.StatusOK, a.wire(g), err
}

func (a *apiServer) deleteGroup(r *http.Request, c caller) (int, any, error) {
	return http.StatusNoContent, nil, a.groups.Delete(r.Context(), c.actor, r.PathValue("name"))
}

func (a *apiServer) addMember(r *http.Request, c caller) (int, any, error) {
	var in api.AddMember
	if err := decode(r, &in); err != nil {
		return 0, nil, err
	}
	m := groups.Member{Reason: in.Reason}
	if in.End != nil {
		m.End = in.End.UTC()
	}
	name := r.PathValue("name")
	if err := addMember(r.Context(), a.groups, a.idp.FindPerson, c.actor, name, in.Person, in.DirectoryGroup, m); err != nil {
		return 0, nil, err
	}
	g, err := a.groups.Get(r.Context(), c.actor, name)
	return http.StatusOK, a.wire(g), err
}

func (a *apiServer) removeMember(r *http.Request, c caller) (int, any, error) {
	return http.StatusNoContent, nil, a.groups.Remove(r.Context(), c.actor, r.PathValue("name"), groups.Kind(r.PathValue("kind")), r.PathValue("id"))
}

// wire is g as the API tells it.
func (a *apiServer) wire(g groups.Group) api.Group {
	out := api.Group{Name: g.Name, Description: g.Description, Created: when(g.Created), MemberCount: len(g.Members)}
	for _, m := range g.Members {
		out.Members = append(out.Members, wireMember(m, a.now()))
	}
	return out
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
func decode(r *http.Request, v any) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return &fault{Status: 415, Title: "Not JSON", Detail: "Send the body with Content-Type: application/json."}
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
	return &fault{Status: 400, Title: "The JSON could not be read", Detail: strings.TrimPrefix(err.Error(), "json: ")}
}

// problem answers with err as RFC 9457 has it.
func (s *Site) problem(w http.ResponseWriter, r *http.Request, err error) {
	f := s.explainLogged(r, err)
	retryAfter(w, f)
	if f.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="tabard"`)
		f.Detail = "Send a token of the audience tabard as Authorization: Bearer; tabard login gets one."
	}
	writeJSON(w, f.Status, "application/problem+json", api.Problem{
		Title: f.Title, Status: f.Status, Detail: f.Detail, RequestID: audit.OriginOf(r.Context()).RequestID,
	})
}

func serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a caller that went away is nobody to tell
}
