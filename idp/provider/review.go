package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	authentication "k8s.io/api/authentication/v1"
	authenticationbeta "k8s.io/api/authentication/v1beta1"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
)

// ReviewPath begins the paths of the webhook, relative to the issuer's path; the
// cluster's name ends them.
const ReviewPath = "/k8s/tokenreview/"

// ReviewConfig is what the webhook needs beside the Service.
type ReviewConfig struct {
	Log logrus.FieldLogger
	// Count is told each answer to an API server: "good", "refused" or "failed".
	Count func(cluster, result string)
}

// Reviews returns the handler under ReviewPath. It answers TokenReview in the version
// it is asked in (authentication.k8s.io/v1 or v1beta1, which look alike). A token that
// is not good is a 200 that says so; where nothing is known it is 5xx, since an API
// server keeps a no for as long as a yes.
func Reviews(svc *idp.Service, cfg ReviewConfig) http.Handler {
	return &reviews{svc: svc, cfg: cfg}
}

type reviews struct {
	svc *idp.Service
	cfg ReviewConfig
}

// refusedWord is all that an API server, and so whoever asks it, learns of a token that
// is not good.
const refusedWord = "token refused"

// ServeHTTP implements http.Handler.
func (h *reviews) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, r, http.StatusMethodNotAllowed, errors.New("method is not POST"), "use POST")
		return
	}
	cluster := strings.TrimPrefix(r.URL.Path, ReviewPath)
	reviewer, err := h.svc.Reviewer(cluster, bearer(r))
	switch {
	case errors.Is(err, idp.ErrNoCluster):
		h.fail(w, r, http.StatusNotFound, err, "there is no such webhook")
		return
	case err != nil:
		w.Header().Set("WWW-Authenticate", `Bearer realm="tabard"`)
		h.fail(w, r, http.StatusUnauthorized, err, "the API server is not known by its token")
		return
	}
	asked, status, err := readReview(w, r)
	if err != nil {
		h.fail(w, r, status, err, err.Error())
		return
	}
	id, audiences, err := reviewer.Review(r.Context(), asked.Spec.Token, asked.Spec.Audiences)
	if err == nil {
		h.cfg.Count(cluster, "good")
		h.answer(w, asked, yes(id, audiences))
		return
	}
	if errors.Is(err, idp.ErrRefused) {
		h.cfg.Count(cluster, "refused")
		h.log(r, err).WithField("cluster", cluster).Info("token review refused")
		h.answer(w, asked, authentication.TokenReviewStatus{Error: refusedWord})
		return
	}
	h.cfg.Count(cluster, "failed")
	// No Retry-After: client-go would wait for it, and kubectl with it.
	h.fail(w, r, max(kindOf(err).status, http.StatusInternalServerError), err, "the token could not be checked")
}

// bearer returns the token of the Authorization header (RFC 6750 section 2.1), or "".
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

var reviewVersions = []string{authentication.SchemeGroupVersion.String(), authenticationbeta.SchemeGroupVersion.String()}

// readReview reads a TokenReview. The error is in words for the client.
func readReview(w http.ResponseWriter, r *http.Request) (asked authentication.TokenReview, status int, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, idp.MaxReview))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return asked, http.StatusRequestEntityTooLarge, fmt.Errorf("a TokenReview has at most %d bytes", idp.MaxReview)
	case err != nil:
		return asked, http.StatusBadRequest, errors.New("the request could not be read")
	case json.Unmarshal(body, &asked) != nil || asked.Kind != "TokenReview" || !slices.Contains(reviewVersions, asked.APIVersion):
		return asked, http.StatusBadRequest, fmt.Errorf("the request is not a TokenReview of %s", strings.Join(reviewVersions, " or "))
	case asked.Spec.Token == "":
		return asked, http.StatusBadRequest, errors.New("the TokenReview has no token")
	}
	return asked, 0, nil
}

// yes is the answer of a token that is good.
func yes(id idp.Identity, audiences []string) authentication.TokenReviewStatus {
	extra := map[string]authentication.ExtraValue{}
	for k, v := range id.Extra() {
		extra[k] = v
	}
	return authentication.TokenReviewStatus{
		Authenticated: true, Audiences: audiences,
		User: authentication.UserInfo{Username: id.Username, UID: id.Sub, Groups: id.Groups, Extra: extra},
	}
}

// answer sends a status in the version that was asked in; the token does not go back.
func (h *reviews) answer(w http.ResponseWriter, asked authentication.TokenReview, status authentication.TokenReviewStatus) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(authentication.TokenReview{TypeMeta: asked.TypeMeta, Status: status}) // the client may have gone
}

func (h *reviews) log(r *http.Request, err error) *logrus.Entry {
	return h.cfg.Log.WithError(err).WithField("request", audit.OriginOf(r.Context()).RequestID)
}

// fail logs the cause and answers in fixed words with the request's id.
func (h *reviews) fail(w http.ResponseWriter, r *http.Request, status int, err error, words string) {
	level := logrus.InfoLevel
	if status >= http.StatusInternalServerError {
		level = logrus.ErrorLevel
	}
	h.log(r, err).WithField("status", status).Log(level, "token review failed")
	http.Error(w, withID(r.Context(), words), status)
}
