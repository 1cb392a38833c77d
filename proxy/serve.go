package proxy

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// ServeHTTP answers one request. What the proxy refuses itself is a metav1.Status.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.calls.Add(1)
	defer p.calls.Add(-1) // last: the trail has its end by then
	c := &call{started: p.Now(), origin: audit.OriginOf(r.Context())}
	out := &reply{ResponseWriter: w, call: c}
	defer p.finish(r.Context(), c)
	f, err := p.admit(c, out, r)
	if err == nil {
		defer f.release()
		err = f.forward(out, r)
	}
	if err != nil {
		p.refuse(c, out, err)
	}
}

// finish tells the metrics and the trail, whatever became of the request.
func (p *Proxy) finish(ctx context.Context, c *call) {
	o := Observation{Status: c.status, Duration: p.Now().Sub(c.started)}
	if c.cluster != nil {
		o.Cluster = c.cluster.cfg.Name
	}
	if c.info != nil {
		o.Verb = c.info.Verb
	}
	c.bytes += c.upgraded.Load()
	if c.judged {
		p.recorder.end(ctx, c)
	}
	p.Observe(o)
}

// refuse answers in place of the API server.
func (p *Proxy) refuse(c *call, w *reply, err error) {
	var a *answer
	if !errors.As(err, &a) {
		p.log(c).WithError(err).Error("a proxied request failed here")
		a = &answer{code: http.StatusInternalServerError, reason: metav1.StatusReasonInternalError, message: "something went wrong here: the cause is in the server's log"}
	}
	if w.begun {
		return // an upgraded connection, which is closed by now
	}
	c.refused = a.message
	writeStatus(w, c.origin.RequestID, a)
}

func (p *Proxy) log(c *call) logrus.FieldLogger {
	fields := logrus.Fields{"request": c.origin.RequestID, "address": c.origin.Address, "auditID": c.auditID}
	if c.cluster != nil {
		fields["cluster"] = c.cluster.cfg.Name
	}
	if c.who.Username != "" {
		fields["user"] = c.who.Username
	}
	return p.Log.WithFields(fields)
}

// admit takes a request through every step. The error is mostly an *answer.
func (p *Proxy) admit(c *call, w *reply, r *http.Request) (*forwarding, error) {
	t, token, err := p.read(c, w, r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), c.cluster.cfg.Proxy.Limits.Timeout)
	defer cancel()
	if err := p.identify(ctx, c, token); err != nil {
		return nil, err
	}
	if err := describe(c, r.Method, t); err != nil {
		return nil, err
	}
	f := &forwarding{p: p, call: c, target: t, token: token, decided: c.cluster.policy}
	if f.release, err = c.cluster.limits.enter(c.person(), c.stream, c.started); err != nil {
		return nil, err
	}
	if f.who, err = p.judge(ctx, c, r.Header); err != nil {
		f.release()
		return nil, err
	}
	return f, nil
}

// read is everything that is known from the request alone.
func (p *Proxy) read(c *call, w *reply, r *http.Request) (t target, token string, err error) {
	if err := checkHeaders(r.Header); err != nil {
		return t, "", err
	}
	routes := p.routes.Load()
	if t, err = routes.find(r); err != nil {
		return t, "", err
	}
	c.cluster, w.own = t.cluster, t.base != ""
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		return t, "", &answer{code: http.StatusMethodNotAllowed, reason: metav1.StatusReasonMethodNotAllowed, message: "there is no such method in the Kubernetes API"}
	}
	if c.upgrade, err = upgradeOf(r.Header); err != nil {
		return t, "", err
	}
	if c.upgrade && r.ContentLength != 0 { // two would read the connection at once: what sends the body, and what copies after a 101
		return t, "", badRequest("a request with Upgrade has no body")
	}
	if limit := int64(c.cluster.cfg.Proxy.Limits.MaxBody); r.ContentLength > limit {
		return t, "", tooLarge(limit)
	}
	token, err = bearer(r.Header)
	return t, token, err
}

// describe says what is asked for, as the API server itself reads it.
func describe(c *call, method string, t target) error {
	u := &url.URL{Path: t.path}
	var query url.Values
	if t.query != "" {
		query = (&url.URL{RawQuery: t.query}).Query()
		if watch, ok := query["watch"]; ok {
			u.RawQuery = url.Values{"watch": watch}.Encode() // of the rest the factory logs what it cannot read
		}
	}
	factory := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	info, err := factory.NewRequestInfo(&http.Request{Method: method, URL: u})
	if err != nil || info.IsResourceRequest && info.Verb == "" {
		return badRequest("what is asked for cannot be told from the path")
	}
	if selector := query.Get("fieldSelector"); selector != "" && info.Name == "" && (info.Verb == "list" || info.Verb == "watch" && !watchByPath(info)) {
		info.Name = selectedName(selector)
	}
	c.describe(info)
	return nil
}

// watchByPath says whether a watch is one of the old kind, such as /api/v1/watch/pods.
func watchByPath(info *request.RequestInfo) bool {
	before, _, _ := strings.Cut(info.Path, "/watch/")
	return before == "/api/"+info.APIVersion || before == "/apis/"+info.APIGroup+"/"+info.APIVersion
}

// selectedName is the one name that a field selector lets through, or "". The API server
// takes a list of one object as a request for that object.
func selectedName(selector string) string {
	fs, err := fields.ParseSelector(selector)
	if err != nil {
		return "" // the API server refuses it
	}
	name, ok := fs.RequiresExactMatch("metadata.name")
	if !ok || len(content.IsPathSegmentName(name)) > 0 {
		return ""
	}
	return name
}

// identify says who asks.
func (p *Proxy) identify(ctx context.Context, c *call, token string) error {
	who, err := idp.Identity{}, error(nil)
	if pt := c.cluster.passthrough; pt != nil && issuerOf(token) != p.routes.Load().issuer {
		c.foreign = true
		who, err = pt.review(ctx, token)
	} else {
		who, err = p.Authority.Identify(ctx, c.cluster.cfg.Name, token)
	}
	switch {
	case err == nil && who.Username == "":
		err = errors.New("an identity without a username")
	case err == nil && !c.foreign:
		err = ours(who)
	}
	c.who = who
	switch {
	case err == nil:
		return nil
	case errors.Is(err, idp.ErrRefused):
		p.log(c).WithError(err).Info("a token was refused")
		return unauthorized()
	case errors.Is(err, idp.ErrNoCluster):
		return notFound("there is no such cluster here")
	}
	c.who = idp.Identity{}
	if ctx.Err() == nil { // else the client went away, mostly
		p.log(c).WithError(err).Error("cannot say who bears a token: requests are refused")
	}
	return unavailable(time.Second, "who you are cannot be told now: try again")
}

// ours checks once more what could make somebody an administrator of the cluster, though
// no such name is ever given.
func ours(who idp.Identity) error {
	if who.Sub == "" || strings.HasPrefix(who.Username, "system:") {
		return errors.New("an identity without sub, or of the API server's own")
	}
	for _, g := range who.Groups {
		if strings.HasPrefix(g, "system:") {
			return errors.New("an identity with a group of the API server's own")
		}
	}
	return nil
}

// judge says whether a request goes on, and as whom.
func (p *Proxy) judge(ctx context.Context, c *call, h http.Header) (who impersonation, err error) {
	c.auditID, c.judged = uuid.NewString(), true
	in := c.inputFor(c.who, c.started)
	c.level = c.cluster.audit.level(in)
	if c.as, err = requested(h); err != nil {
		return who, err
	}
	if c.decision = c.cluster.policy.decide(in); !c.decision.Allowed {
		return who, forbidden(c.info, c.decision)
	}
	if !c.foreign || c.as != nil {
		if who, err = p.become(ctx, c); err != nil {
			return who, err
		}
	}
	if err := p.recorder.begin(ctx, c); err != nil {
		p.log(c).WithError(err).Error("the trail cannot be written: requests are refused")
		return who, unavailable(time.Second, "this cannot be recorded now, so it is not done: try again")
	}
	return who, nil
}

// become is who the API server is told to act for: the person, or whom they may be.
func (p *Proxy) become(ctx context.Context, c *call) (impersonation, error) {
	who := impersonation{User: c.who.Username, UID: c.who.Sub, Groups: c.who.Groups, Extra: c.who.Extra()}
	if c.origin.Address != "" {
		who.Extra[extraAddress] = []string{c.origin.Address}
	}
	if err := who.check(); err != nil {
		p.log(c).WithError(err).Error("somebody cannot be impersonated: rename them or the group")
		return who, forbiddenFor(c.info, "your username or a group of yours cannot be sent to the cluster: "+err.Error())
	}
	if c.as == nil {
		return who, nil
	}
	if c.foreign {
		c.decision = Decision{Reason: "a token that is not ours may not impersonate"}
		return who, forbiddenFor(c.info, "with a token that is not Tabard's nobody else can be impersonated here")
	}
	var denied *asDenied
	switch err := c.cluster.up.mayBe(ctx, who, *c.as); {
	case errors.As(err, &denied):
		c.decision = Decision{Reason: denied.Error()}
		return who, forbiddenFor(c.info, "you "+denied.Error())
	case err != nil:
		p.log(c).WithError(err).Warn("cannot ask the API server who may impersonate whom")
		return who, unavailable(time.Second, "the API server does not say whether you may impersonate: try again")
	}
	return c.as.of(who), nil
}

// of is i with what says who is behind it.
func (i *impersonation) of(real impersonation) impersonation {
	as := impersonation{User: i.User, UID: i.UID, Groups: i.Groups, Extra: maps.Clone(real.Extra)}
	maps.Copy(as.Extra, i.Extra) // which holds none of ours, see requested
	as.Extra[extraImpersonator] = []string{real.User}
	as.Extra[extraImpersonatorUID] = []string{real.UID}
	return as
}

// person is by what a caller's limits are kept.
func (c *call) person() string {
	if c.foreign {
		return "foreign " + c.who.Username // no sub holds a space
	}
	return cmp.Or(c.who.Sub, c.who.Username)
}
