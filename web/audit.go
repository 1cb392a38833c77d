package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
)

const (
	searchTime   = 10 * time.Second // of one search; then it can be gone on with
	auditPerPage = 50
	maxAuditPage = 1000
	maxAuditSize = 1 << 20 // bytes of a page, but for its last record
)

// errPageFull ends a search whose page is as large as it may be.
var errPageFull = errors.New("the page is full")

var (
	errNotAuditor error = &fault{Status: 403, Title: "You may not do this", Code: "forbidden", Detail: "Only administrators may look at the trail. Ask one of them."}

	errAuditBusy = &fault{Status: 429, Code: "busy", Title: "You are searching already", Detail: "One search at a time. Wait until the other one is done.", RetryAfter: int(searchTime / time.Second)}
	errNoAudit   = &fault{Status: 404, Title: "The trail is not searched here", Detail: "Use tabard audit search."}
)

// Auditor lets administrators search the trail, each one search at a time.
type Auditor struct {
	trail *audit.Log
	busy  sync.Map // subs
}

// NewAuditor returns the Auditor of trail. Every search is in the trail before it
// begins, with what was looked for.
func NewAuditor(trail *audit.Log) *Auditor {
	return &Auditor{trail: trail}
}

// auditParams are the parameters of a search, in the order of the page.
func auditParams() []string {
	return []string{"person", "group", "act", "cluster", "outcome", "text", "session", "jti", "request", "from", "to"}
}

// AuditQuery reads a search from the parameters of GET /api/v1/audit. Times are RFC 3339,
// a day, or a duration back from now.
func AuditQuery(v url.Values, now time.Time) (audit.Query, error) {
	q := audit.Query{
		Person: get(v, "person"), Group: get(v, "group"), Act: get(v, "act"), Cluster: get(v, "cluster"), Outcome: get(v, "outcome"), Text: get(v, "text"),
		Session: get(v, "session"), JTI: get(v, "jti"), RequestID: get(v, "request"), Cursor: v.Get("cursor"), Limit: auditPerPage,
	}
	for _, name := range auditParams() {
		if len(v.Get(name)) > 256 {
			return q, badParam(name, "is longer than 256 bytes")
		}
	}
	if len(q.Cursor) > 16<<10 {
		return q, badParam("cursor", "is not one that a search gave")
	}
	var err error
	if q.From, err = auditTime(get(v, "from"), now); err != nil {
		return q, badParam("from", err.Error())
	}
	if q.To, err = auditTime(get(v, "to"), now); err != nil {
		return q, badParam("to", err.Error())
	}
	if raw := v.Get("limit"); raw != "" {
		if q.Limit, err = strconv.Atoi(raw); err != nil || q.Limit < 1 || q.Limit > maxAuditPage {
			return q, badParam("limit", fmt.Sprintf("must be a number from 1 to %d", maxAuditPage))
		}
	}
	return q, nil
}

func get(v url.Values, name string) string { return strings.TrimSpace(v.Get(name)) }

func badParam(name, why string) error {
	return &fault{Status: 422, Title: "That cannot be searched for", Detail: name + " " + why + "."}
}

// auditTime reads a time in one of the forms that AuditQuery takes.
func auditTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d).UTC(), nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, errors.New("must be a time such as 2027-01-31T18:00:00Z, a day such as 2027-01-31, or how long ago, such as 24h")
}

// search notes who looks for what, and finds it. more is the cursor to go on with.
func (a *Auditor) search(ctx context.Context, who groups.Actor, admin bool, v url.Values, now time.Time) (page api.AuditPage, err error) {
	if a == nil {
		return page, errNoAudit
	}
	q, err := AuditQuery(v, now)
	if err != nil && admin {
		return page, err
	}
	e := audit.Event{Act: audit.SearchAct, Who: who.Sub, Name: who.Name, Outcome: audit.Done, Detail: map[string]string{}}
	for _, name := range auditParams() {
		if s := get(v, name); s != "" && admin {
			e.Detail[name] = s
		}
	}
	if q.Cursor != "" {
		e.Detail["older"] = "true"
	}
	if !admin {
		e.Outcome, e.Reason = audit.Denied, groups.ErrForbidden.Error()
		return page, cmp.Or(a.trail.Append(ctx, e), errNotAuditor)
	}
	if !a.begin(who.Sub) {
		return page, errAuditBusy
	}
	defer a.end(who.Sub)
	if err := a.trail.Append(ctx, e); err != nil {
		return page, err
	}
	return a.find(ctx, q)
}

func (a *Auditor) find(ctx context.Context, q audit.Query) (api.AuditPage, error) {
	searching, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	page := api.AuditPage{Events: []api.AuditEvent{}}
	size := 0
	next, err := a.trail.Search(searching, q, func(e audit.Event) error {
		page.Events = append(page.Events, AuditEvent(e))
		if size += sizeOf(e); size > maxAuditSize {
			return errPageFull
		}
		return nil
	})
	page.Next = next
	if errors.Is(err, errPageFull) {
		err = nil
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && next != "" {
		page.Incomplete, err = true, nil
	}
	if errors.Is(err, audit.ErrCursor) {
		err = badParam("cursor", "is not one that a search gave")
	}
	return page, err
}

// sizeOf is about how many bytes e takes in JSON.
func sizeOf(e audit.Event) int {
	n := 300 + len(e.On) + len(e.Reason) + len(e.UserAgent) + len(e.Name)
	for k, v := range e.Detail {
		n += len(k) + len(v)
	}
	return n
}

func (a *Auditor) begin(who string) bool {
	_, busy := a.busy.LoadOrStore(who, true)
	return !busy
}

func (a *Auditor) end(who string) { a.busy.Delete(who) }

// AuditEvent is e as the API tells it.
func AuditEvent(e audit.Event) api.AuditEvent {
	return api.AuditEvent{
		Seq: e.Seq, Time: e.Time, Node: e.Node, Act: e.Act, Who: e.Who, Name: e.Name, On: e.On, Outcome: e.Outcome, Reason: e.Reason,
		Address: e.Address, UserAgent: e.UserAgent, RequestID: e.RequestID, Session: e.Session, JTI: e.JTI, Client: e.Client, Cluster: e.Cluster, Detail: e.Detail,
	}
}

// searchAudit answers GET /api/v1/audit.
func (a *apiServer) searchAudit(r *http.Request, c caller) (int, any, error) {
	page, err := a.audit.search(r.Context(), c.actor, c.me.Admin, r.URL.Query(), a.now())
	return http.StatusOK, page, err
}

// auditPage is the form, and what was found.
type auditPage struct {
	api.AuditPage
	Query         map[string]string // as asked, by parameter
	Chips         []auditChip
	IDs           []string // parameters that come from links alone
	Clusters      []string
	Outcomes      []string
	Rows          []auditRow
	Error, Detail string
	Older, Newest string // URLs
}

// auditChip is a filter that is on, and the page without it.
type auditChip struct{ Name, Value, URL string }

// auditRow is an event with what can be done from it.
type auditRow struct {
	api.AuditEvent
	PersonURL string // all of whom it was by
	Group     string // that it was done to
	OnURL     string // all that was done to it
	Details   []auditDetail
}

// auditDetail is one of the finer points of an event.
type auditDetail struct{ Name, Value, URL string }

// showAudit is the page /audit.
func (s *Site) showAudit(w http.ResponseWriter, r *http.Request, v visitor) error {
	asked := r.URL.Query()
	data := auditPage{Query: map[string]string{}, IDs: []string{"session", "jti", "request"}, Clusters: s.idp.ClusterNames(), Outcomes: []string{audit.Done, audit.Denied, audit.Failed, audit.Intended}}
	for _, name := range auditParams() {
		if value := get(asked, name); value != "" {
			data.Query[name] = value
			data.Chips = append(data.Chips, auditChip{name, value, s.auditURL(without(asked, name, "cursor"))})
		}
	}
	page, err := s.cfg.Auditor.search(r.Context(), v.actor, v.admin, asked, s.cfg.Now())
	status := http.StatusOK
	if f := explain(err); err != nil && correctable(f) {
		status, data.Error, data.Detail = f.Status, f.Title, f.Detail
	} else if err != nil {
		return err
	}
	data.AuditPage = page
	data.Rows = each(page.Events, s.auditRow)
	if page.Next != "" {
		older := without(asked, "cursor")
		older.Set("cursor", page.Next)
		data.Older = s.auditURL(older)
	}
	if asked.Get("cursor") != "" {
		data.Newest = s.auditURL(without(asked, "cursor"))
	}
	return s.render(w, status, "audit", s.pageFor(v, "audit", "Audit trail", data))
}

// auditURL is the page of a search.
func (s *Site) auditURL(v url.Values) string {
	if q := v.Encode(); q != "" {
		return s.url("/audit?" + q)
	}
	return s.url("/audit")
}

// without is what a search asks for but for some parameters and those left empty.
func without(v url.Values, names ...string) url.Values {
	rest := url.Values{}
	for _, name := range append(auditParams(), "limit", "cursor") {
		if value := v.Get(name); value != "" && !slices.Contains(names, name) {
			rest.Set(name, value)
		}
	}
	return rest
}

func (s *Site) auditRow(e api.AuditEvent) auditRow {
	row := auditRow{AuditEvent: e}
	by := func(name, value string) string { return s.auditURL(url.Values{name: {value}}) }
	if person := cmp.Or(e.Who, e.Name); person != "" {
		row.PersonURL = by("person", person)
	}
	if strings.HasPrefix(e.Act, "group.") {
		row.Group = e.On
	} else if e.On != "" {
		row.OnURL = by("text", e.On)
	}
	add := func(name, value, link string) {
		if value != "" {
			row.Details = append(row.Details, auditDetail{name, value, link})
		}
	}
	add("subject", e.Who, "")
	add("session", e.Session, by("session", e.Session))
	add("token", e.JTI, by("jti", e.JTI))
	add("request", e.RequestID, by("request", e.RequestID))
	add("client", e.Client, "")
	add("program", e.UserAgent, "")
	for _, name := range slices.Sorted(maps.Keys(e.Detail)) {
		add(name, e.Detail[name], "")
	}
	add("record", strings.TrimSpace(fmt.Sprintf("%d %s", e.Seq, e.Node)), "")
	return row
}
