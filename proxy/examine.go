package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tabard-id/tabard/idp"
)

// Finding is one thing that Examine saw.
type Finding struct {
	Result string // "ok", "warn" or "fail"
	Detail string // what was seen, and what to do
}

const (
	examineTimeout = 30 * time.Second
	soonOver       = 7 * 24 * time.Hour // what is left of a certificate that ends soon
	selfReviews    = "apis/authentication.k8s.io/v1/selfsubjectreviews"
	rulesReviews   = "apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
)

// examination is what Examine knows so far.
type examination struct {
	u        *upstream
	account  http.RoundTripper
	findings []Finding
}

// Examine tries a cluster's API server and the accounts that the proxy has there. It
// changes nothing in the cluster.
func Examine(ctx context.Context, c ClusterConfig) []Finding {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	u, err := prepareUpstream(c.Name, c.APIServer, silent)
	if err != nil {
		return []Finding{{"fail", err.Error()}}
	}
	e := &examination{u: u, account: &wire{u: u, plain: true}}
	u.refresh(ctx, false)
	close(u.tried)
	if l := u.link.Load(); l != nil {
		defer l.closeIdle()
	}
	if e.reaches(ctx) && e.isKnown(ctx) {
		e.impersonates(ctx)
		e.nothingElse(ctx)
	}
	if c.Proxy != nil && c.Proxy.Passthrough != nil {
		e.reviews(ctx, newPassthrough(*c.Proxy.Passthrough, u))
	}
	return e.findings
}

func (e *examination) say(result, format string, args ...any) {
	e.findings = append(e.findings, Finding{result, fmt.Sprintf(format, args...)})
}

// reaches looks at the way to the API server.
func (e *examination) reaches(ctx context.Context) bool {
	var handshake atomic.Pointer[tls.ConnectionState]
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(s tls.ConnectionState, err error) {
		if err == nil {
			handshake.Store(&s)
		}
	}})
	err := e.u.probe(ctx)
	var ends time.Time
	if s := handshake.Load(); s != nil {
		ends = s.PeerCertificates[0].NotAfter
	}
	switch {
	case err != nil && ends.IsZero():
		e.say("fail", "%s cannot be reached: %s", e.u.base, err)
		return false
	case err != nil:
		e.say("fail", "%s: %s", e.u.base, err)
	case time.Until(ends) < soonOver:
		e.say("warn", "%s answers; its certificate ends at %s: renew it", e.u.base, ends.Format(time.RFC3339))
	default:
		e.say("ok", "%s answers", e.u.base)
	}
	return err == nil
}

// isKnown asks the API server who the account is.
func (e *examination) isKnown(ctx context.Context) bool {
	who, err := e.whoAmI(ctx, e.account, http.Header{})
	if err != nil {
		e.say("fail", "the API server does not say who the proxy's account is: %s", explain(err))
		return false
	}
	if slices.Contains(who.Groups, "system:masters") {
		e.say("fail", "the proxy's account %s is in system:masters, so that a request which lost its headers may do everything: give it an account that may impersonate and nothing else (`tabard cluster rbac %s --for proxy`)", who.Username, e.u.name)
		return false
	}
	e.say("ok", "the proxy acts as %s", who.Username)
	return true
}

func (e *examination) whoAmI(ctx context.Context, rt http.RoundTripper, h http.Header) (authenticationv1.UserInfo, error) {
	r := authenticationv1.SelfSubjectReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}}
	err := e.u.ask(ctx, rt, selfReviews, h, r, &r)
	return r.Status.UserInfo, err
}

// impersonates makes one request for somebody who does not exist, with everything that
// one for a person has on it.
func (e *examination) impersonates(ctx context.Context) {
	nobody := impersonation{User: "tabard-doctor", UID: "tabard-doctor", Groups: []string{"tabard-doctor"}, Extra: map[string][]string{}}
	for _, key := range ExtraKeys() {
		nobody.Extra[key] = []string{"tabard-doctor"}
	}
	h := http.Header{}
	nobody.set(h)
	seen, err := e.whoAmI(ctx, e.u.transport(), h)
	if err != nil {
		e.say("fail", "the proxy's account may not impersonate: %s: apply `tabard cluster rbac %s --for proxy`", explain(err), e.u.name)
		return
	}
	lost := seen.Username != nobody.User || seen.UID != nobody.UID || !slices.Contains(seen.Groups, nobody.Groups[0])
	for key := range nobody.Extra {
		lost = lost || len(seen.Extra[key]) != 1
	}
	if lost {
		e.say("fail", "the API server saw %s instead of who was impersonated: what is between it and Tabard changes headers", seen.Username)
		return
	}
	e.say("ok", "the proxy's account may impersonate users, groups, uids and each extra that is sent")
}

// ExtraKeys are the keys of the extra attributes that the proxy impersonates people with.
func ExtraKeys() []string {
	return []string{idp.ExtraCredentialID, idp.ExtraSession, extraAddress, extraImpersonator, extraImpersonatorUID}
}

// nothingElse looks for what the account may do without impersonating.
func (e *examination) nothingElse(ctx context.Context) {
	may, err := e.rights(ctx)
	switch {
	case err != nil:
		e.say("warn", "the API server does not say what the proxy's account may do: %s", explain(err))
	case len(may) > 0:
		e.say("fail", "the proxy's account may do more than impersonate: %s: take it away, so that a request which lost its headers may do nothing", strings.Join(may[:min(len(may), 5)], "; "))
	default:
		e.say("ok", "the proxy's account may do nothing but impersonate")
	}
}

// rights are what the account may do that it has no use for.
func (e *examination) rights(ctx context.Context) ([]string, error) {
	var may []string
	for _, about := range []authorizationv1.ResourceAttributes{
		{Verb: "list", Resource: "secrets"}, {Verb: "list", Resource: "pods"}, {Verb: "create", Resource: "pods", Subresource: "exec"},
	} {
		status, err := e.u.mayDo(ctx, e.account, http.Header{}, about)
		if err != nil {
			return nil, err
		}
		if status.Allowed {
			may = append(may, strings.TrimSuffix(about.Verb+" "+about.Resource+"/"+about.Subresource, "/"))
		}
	}
	r := authorizationv1.SelfSubjectRulesReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"},
		Spec:     authorizationv1.SelfSubjectRulesReviewSpec{Namespace: metav1.NamespaceSystem},
	}
	if err := e.u.ask(ctx, e.account, rulesReviews, http.Header{}, r, &r); err != nil {
		return nil, err
	}
	for _, rule := range r.Status.ResourceRules {
		if !harmless(rule) {
			may = append(may, strings.Join(rule.Verbs, ",")+" "+strings.Join(rule.Resources, ","))
		}
	}
	for _, rule := range r.Status.NonResourceRules {
		if !onlyImpersonates(rule.Verbs) && slices.ContainsFunc(rule.Verbs, func(v string) bool { return v != "get" && v != "head" }) {
			may = append(may, strings.Join(rule.Verbs, ",")+" "+strings.Join(rule.NonResourceURLs, ","))
		}
	}
	return may, nil
}

// harmless says whether a rule is about impersonation, or one that everybody has: to ask
// about oneself.
func harmless(rule authorizationv1.ResourceRule) bool {
	self := !slices.ContainsFunc(rule.Resources, func(r string) bool { return !strings.HasPrefix(r, "selfsubject") })
	return onlyImpersonates(rule.Verbs) || self && len(rule.Resources) > 0
}

func onlyImpersonates(verbs []string) bool {
	return !slices.ContainsFunc(verbs, func(v string) bool {
		return v != "impersonate" && !strings.HasPrefix(v, "impersonate:") && !strings.HasPrefix(v, "impersonate-on:")
	})
}

// reviews has a token reviewed that nobody has.
func (e *examination) reviews(ctx context.Context, p *passthrough) {
	_, err := p.review(ctx, "tabard-doctor")
	if errors.Is(err, idp.ErrRefused) {
		e.say("ok", "the account of passthrough may review tokens")
		return
	}
	e.say("fail", "the account of passthrough cannot review tokens: %s: apply `tabard cluster rbac %s --for passthrough`", explain(err), e.u.name)
}
