package proxy

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// answer is what we say ourselves instead of the API server: a metav1.Status, which
// kubectl shows as it does the API server's own. It is an error, so that each step of a
// request can return it and the edge alone writes it.
type answer struct {
	code    int
	reason  metav1.StatusReason
	message string
	details *metav1.StatusDetails
	retry   time.Duration // after which the same request may do better, or 0
}

func (a *answer) Error() string { return a.message }

func badRequest(format string, args ...any) *answer {
	return &answer{code: http.StatusBadRequest, reason: metav1.StatusReasonBadRequest, message: fmt.Sprintf(format, args...)}
}

// unauthorized has fixed words: the cause is for the log.
func unauthorized() *answer {
	return &answer{code: http.StatusUnauthorized, reason: metav1.StatusReasonUnauthorized,
		message: "the token is missing, expired or not for this cluster: sign in again with kubectl tabard login"}
}

// forbidden is what the policy refused: which rule, why, and what to do.
func forbidden(info *request.RequestInfo, d Decision) *answer {
	why := "Tabard's policy"
	if d.Rule != "" {
		why = fmt.Sprintf("rule %q of Tabard's policy", d.Rule)
	}
	if d.Reason != "" {
		why += ": " + d.Reason
	}
	if d.Hint != "" {
		why += ". What to do: " + d.Hint
	}
	return forbiddenFor(info, why)
}

// forbiddenFor names what was asked for as the API server does, and says why not.
func forbiddenFor(info *request.RequestInfo, why string) *answer {
	a := &answer{code: http.StatusForbidden, reason: metav1.StatusReasonForbidden}
	if !info.IsResourceRequest {
		a.message = fmt.Sprintf("path %q is forbidden: %s", oneLine(info.Path), why)
		return a
	}
	a.details = &metav1.StatusDetails{Group: info.APIGroup, Kind: info.Resource, Name: info.Name}
	what := info.Resource
	if info.APIGroup != "" {
		what += "." + info.APIGroup
	}
	if info.Subresource != "" {
		what += "/" + info.Subresource
	}
	if info.Name != "" {
		what += fmt.Sprintf(" %q", info.Name)
	}
	a.message = fmt.Sprintf("%s is forbidden: %s", oneLine(what), why)
	return a
}

func notFound(message string) *answer {
	return &answer{code: http.StatusNotFound, reason: metav1.StatusReasonNotFound, message: message}
}

func tooLarge(limit int64) *answer {
	return &answer{code: http.StatusRequestEntityTooLarge, reason: metav1.StatusReasonRequestEntityTooLarge, message: fmt.Sprintf("the body is larger than %d bytes", limit)}
}

// uriTooLong is 414, which has no reason of its own in Kubernetes either.
func uriTooLong() *answer {
	return &answer{code: http.StatusRequestURITooLong, reason: metav1.StatusReasonBadRequest, message: "the request's path and query are too long"}
}

// headersTooLarge is 431, which has no reason of its own in Kubernetes.
func headersTooLarge() *answer {
	return &answer{code: http.StatusRequestHeaderFieldsTooLarge, reason: metav1.StatusReasonBadRequest, message: "the request's headers are too large"}
}

func tooMany(retry time.Duration, message string) *answer {
	return &answer{code: http.StatusTooManyRequests, reason: metav1.StatusReasonTooManyRequests, message: message, retry: retry}
}

func badGateway(message string) *answer {
	return &answer{code: http.StatusBadGateway, reason: metav1.StatusReasonInternalError, message: message}
}

// unavailable is for what may work again in retry.
func unavailable(retry time.Duration, message string) *answer {
	return &answer{code: http.StatusServiceUnavailable, reason: metav1.StatusReasonServiceUnavailable, message: message, retry: retry}
}

func gatewayTimeout(message string) *answer {
	return &answer{code: http.StatusGatewayTimeout, reason: metav1.StatusReasonTimeout, message: message}
}

// writeStatus answers with a. requestID is shown with it, if there is one, so that the log
// and the trail can be asked for the cause.
func writeStatus(w http.ResponseWriter, requestID string, a *answer) {
	s := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(a.code), Reason: a.reason, Message: a.message,
	}
	if a.details != nil {
		details := *a.details
		s.Details = &details
	}
	h := w.Header()
	if requestID != "" {
		s.Message = strings.TrimRight(s.Message, ".") + " (request " + requestID + ")"
	}
	if a.retry > 0 {
		seconds := max(1, int32(math.Ceil(a.retry.Seconds())))
		if s.Details == nil {
			s.Details = &metav1.StatusDetails{}
		}
		s.Details.RetryAfterSeconds = seconds
		h.Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	b, err := json.Marshal(s)
	if err != nil { // of plain strings and numbers, so never
		b = []byte(`{"kind":"Status","apiVersion":"v1","status":"Failure"}`)
	}
	if a.code == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.code)
	_, _ = w.Write(append(b, '\n'))
}
