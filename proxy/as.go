package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
)

const (
	maxReviews      = 128 // of one request
	parallelReviews = 8
	reviewTimeout   = 10 * time.Second // for all of one request

	authenticationGroup = "authentication.k8s.io"
	accessReviews       = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
)

// asDenied says that a person may not be who they ask to be (--as).
type asDenied struct {
	what   string // e.g. user "bob", in words that the person may read
	reason string // the API server's
}

func (e *asDenied) Error() string {
	text := "may not impersonate " + e.what
	if e.reason != "" {
		text += ": " + e.reason
	}
	return text
}

// mayBe asks the API server, as who, whether who may be want: each question that
// kube-apiserver asks itself where somebody impersonates without a proxy. It returns
// nil, an *asDenied, or what kept it from finding out.
func (u *upstream) mayBe(ctx context.Context, who, want impersonation) error {
	asked := questions(want)
	if len(asked) > maxReviews {
		return &asDenied{"so much at once", fmt.Sprintf("a request may name at most %d groups and extras", maxReviews-2)}
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	var next atomic.Int64
	var all sync.WaitGroup
	answers := make([]error, min(len(asked), parallelReviews))
	for i := range answers {
		all.Go(func() {
			for answers[i] == nil {
				at := int(next.Add(1)) - 1
				if at >= len(asked) {
					return
				}
				answers[i] = u.mayImpersonate(ctx, who, asked[at])
			}
			cancel() // one no is enough
		})
	}
	all.Wait()
	var denied *asDenied
	switch err := errors.Join(answers...); {
	case err == nil:
		return nil
	case errors.As(err, &denied):
		return denied
	}
	for _, err := range answers { // the one that ended the others
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return context.Cause(ctx)
}

// questions are what has to be allowed for want, by the rules of kube-apiserver's
// impersonation filter. The groups that it adds by itself need no leave.
func questions(want impersonation) []authorizationv1.ResourceAttributes {
	asked := []authorizationv1.ResourceAttributes{{Resource: "users", Name: want.User}}
	if namespace, name, err := serviceaccount.SplitUsername(want.User); err == nil {
		asked[0] = authorizationv1.ResourceAttributes{Resource: "serviceaccounts", Namespace: namespace, Name: name}
	}
	for _, g := range want.Groups {
		asked = append(asked, authorizationv1.ResourceAttributes{Resource: "groups", Name: g})
	}
	if want.UID != "" {
		asked = append(asked, authorizationv1.ResourceAttributes{Group: authenticationGroup, Resource: "uids", Name: want.UID})
	}
	for key, values := range want.Extra {
		for _, v := range values {
			asked = append(asked, authorizationv1.ResourceAttributes{Group: authenticationGroup, Resource: "userextras", Subresource: key, Name: v})
		}
	}
	for i := range asked {
		asked[i].Verb, asked[i].Version = "impersonate", "v1"
	}
	return asked
}

// mayImpersonate asks one question as who.
func (u *upstream) mayImpersonate(ctx context.Context, who impersonation, about authorizationv1.ResourceAttributes) error {
	h := http.Header{}
	who.set(h)
	status, err := u.mayDo(ctx, u.transport(), h, about)
	var answered *statusError
	switch {
	case errors.As(err, &answered) && answered.code == http.StatusForbidden:
		return &asDenied{told(about), answered.message}
	case err != nil:
		return fmt.Errorf("ask whether %s may impersonate %s: %w", who.User, told(about), err)
	case !status.Allowed || status.Denied || status.EvaluationError != "":
		return &asDenied{told(about), fmt.Sprintf("%.300s", status.Reason)}
	}
	return nil
}

// mayDo asks the API server whether whoever the headers and rt speak for may do that.
func (u *upstream) mayDo(ctx context.Context, rt http.RoundTripper, h http.Header, about authorizationv1.ResourceAttributes) (authorizationv1.SubjectAccessReviewStatus, error) {
	review := authorizationv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
		Spec:     authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &about},
	}
	err := u.ask(ctx, rt, accessReviews, h, review, &review)
	return review.Status, err
}

// told is what a question is about, in words.
func told(about authorizationv1.ResourceAttributes) string {
	switch about.Resource {
	case "serviceaccounts":
		return fmt.Sprintf("service account %q in namespace %q", about.Name, about.Namespace)
	case "userextras":
		return fmt.Sprintf("extra %q with value %.100q", about.Subresource, about.Name)
	}
	return fmt.Sprintf("%s %.300q", map[string]string{"users": "user", "groups": "group", "uids": "uid"}[about.Resource], about.Name)
}
