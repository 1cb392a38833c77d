package provider

import (
	"context"
	"errors"
	"net/http"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// faultKind is what a client is told of an error: a code of its RFC, a status, and
// fixed words. The cause goes to the log.
type faultKind struct {
	is     error
	code   string
	status int
	words  string
}

// faults is the one table from what went wrong to what clients hear. Order matters:
// an outage that ended nothing comes before everything it may be wrapped with.
var faults = []faultKind{
	{idp.ErrUnavailable, "temporarily_unavailable", http.StatusServiceUnavailable, "the directory does not answer; try again"},
	{groups.ErrStale, "temporarily_unavailable", http.StatusServiceUnavailable, "the group store does not answer; try again"},
	{idp.ErrInvalidClient, "invalid_client", http.StatusUnauthorized, "client authentication failed"},
	{idp.ErrInvalidGrant, "invalid_grant", http.StatusBadRequest, "the code or token is not valid, was used, or its session has ended; sign in again"},
	{idp.ErrInvalidTarget, "invalid_target", http.StatusBadRequest, "this client may not ask for that audience"},
	{idp.ErrNoAccess, "access_denied", http.StatusBadRequest, "your groups give you no access to this cluster"},
	{idp.ErrPending, "authorization_pending", http.StatusBadRequest, "the person has not answered yet"},
	{idp.ErrSlowDown, "slow_down", http.StatusBadRequest, "poll less often"},
	{idp.ErrDenied, "access_denied", http.StatusBadRequest, "the person said no"},
	{idp.ErrExpired, "expired_token", http.StatusBadRequest, "the device code is too old; start again"},
	{idp.ErrTooMany, "slow_down", http.StatusTooManyRequests, "too many requests from this address; try later"},
	{idp.ErrTooLarge, "invalid_request", http.StatusBadRequest, "your groups make the token too large for this cluster; an administrator has to narrow them: `tabard explain` shows which"},
	{idp.ErrNoSession, "login_required", http.StatusBadRequest, "the session has ended; sign in again"},
	{store.ErrConflict, "temporarily_unavailable", http.StatusServiceUnavailable, "too much at once; try again"},
	{store.ErrUnknown, "temporarily_unavailable", http.StatusServiceUnavailable, "the store does not answer; try again"},
	{context.DeadlineExceeded, "temporarily_unavailable", http.StatusServiceUnavailable, "that took too long; try again"},
	{context.Canceled, "temporarily_unavailable", http.StatusServiceUnavailable, "the request was given up"},
}

func kindOf(err error) faultKind {
	var account *directory.AccountError
	if errors.As(err, &account) {
		return faultKind{code: "access_denied", status: http.StatusBadRequest, words: "the account may not be used"}
	}
	for _, k := range faults {
		if errors.Is(err, k.is) {
			return k
		}
	}
	return faultKind{code: "server_error", status: http.StatusInternalServerError, words: "something went wrong here"}
}

// classify logs the cause and returns what the client is told.
func (s *server) classify(ctx context.Context, err error) faultKind {
	k := kindOf(err)
	id := audit.OriginOf(ctx).RequestID
	log := s.log.WithError(err).WithField("request", id).WithField("code", k.code)
	if k.status >= 500 {
		log.Error("request failed")
	} else {
		log.Info("request refused")
	}
	return k
}

// fault is classify as the error that the library writes.
func (s *server) fault(ctx context.Context, err error) error {
	k := s.classify(ctx, err)
	return statusError(k.code, k.words, k.status)
}

// statusError is an OAuth 2.0 error with its status.
func statusError(code, words string, status int) error {
	e := &oidc.Error{Description: words}
	setType(&e.ErrorType, code)
	return op.NewStatusError(e, status)
}

// setType sets the field whose type the library does not export.
func setType[T ~string](field *T, code string) { *field = T(code) }

// bearerFault is fault for endpoints that take a bearer token (RFC 6750 section 3.1).
func (s *server) bearerFault(ctx context.Context, err error) error {
	if errors.Is(err, idp.ErrNoSession) {
		return statusError("invalid_token", "the access token is not valid or its session has ended", http.StatusUnauthorized)
	}
	return s.fault(ctx, err)
}
