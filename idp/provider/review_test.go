package provider

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	authentication "k8s.io/api/authentication/v1"
	authenticationbeta "k8s.io/api/authentication/v1beta1"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

const (
	v1      = "authentication.k8s.io/v1"
	v1beta1 = "authentication.k8s.io/v1beta1"
)

// review asks as an API server does.
func (h *house) review(version, token string, audiences ...string) answer {
	h.t.Helper()
	body, err := json.Marshal(map[string]any{"apiVersion": version, "kind": "TokenReview", "metadata": map[string]any{"creationTimestamp": nil},
		"spec": map[string]any{"token": token, "audiences": audiences}, "status": map[string]any{"user": map[string]any{}}})
	h.must(err)
	return h.do(http.MethodPost, ReviewPath+"prod?timeout=30s", string(body), http.Header{"Authorization": {"Bearer " + caller}})
}

// idToken signs alice in at a client and returns the token and her cookie.
func (h *house) idToken() (token, cookie string) {
	h.t.Helper()
	t, cookie := h.tokens()
	return t["id_token"].(string), cookie
}

// refuses waits until a token is refused, which what is in memory has to hear first.
func (h *house) refuses(token string) {
	h.t.Helper()
	for range 6000 {
		if a := h.review(v1, token); a.status == http.StatusOK && strings.Contains(a.body, refusedWord) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatal("the token is not refused within a minute")
}

func TestReviewAnswersInItsVersion(t *testing.T) {
	h := newHouse(t)
	token, _ := h.idToken()
	a := h.review(v1, token, "https://kubernetes.default.svc", "other")
	var one authentication.TokenReview
	h.must(json.Unmarshal([]byte(a.body), &one))
	if a.status != http.StatusOK || one.APIVersion != v1 || one.Kind != "TokenReview" || !one.Status.Authenticated || one.Status.Error != "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	u := one.Status.User
	if u.Username != "alice" || u.UID != alice.Sub() || !slices.Equal(u.Groups, []string{"corp:devs"}) || !slices.Equal(one.Status.Audiences, []string{"https://kubernetes.default.svc"}) {
		t.Errorf("%+v", one.Status)
	}
	if id := u.Extra[idp.ExtraCredentialID]; len(id) != 1 || !strings.HasPrefix(id[0], "JTI=") || len(u.Extra[idp.ExtraSession]) != 1 {
		t.Errorf("extra %v", u.Extra)
	}
	if strings.Contains(a.body, token) || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v %s", a.header, a.body)
	}
	b := h.review(v1beta1, token)
	var beta authenticationbeta.TokenReview
	h.must(json.Unmarshal([]byte(b.body), &beta))
	if beta.APIVersion != v1beta1 || !beta.Status.Authenticated || beta.Status.User.Username != "alice" || beta.Status.Audiences != nil {
		t.Errorf("%d %s", b.status, b.body)
	}
	if n := h.counts.of("prod", "good"); n != 2 {
		t.Errorf("counted %d", n)
	}
}

// TestRefusedReviewsLookAlike: what an API server tells of them says nothing.
func TestRefusedReviewsLookAlike(t *testing.T) {
	h := newHouse(t)
	token, cookie := h.idToken()
	_, ended, _ := strings.Cut(cookie, "=")
	h.must(h.svc.EndBrowser(t.Context(), ended))
	h.refuses(token)
	want := h.review(v1, "garbage")
	for name, a := range map[string]answer{
		"ended session":       h.review(v1, token),
		"other audience":      h.review(v1, token, "vault"),
		"a service account's": h.review(v1, "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.e30.AAAA"),
	} {
		if a.status != http.StatusOK || a.body != want.body || fmt.Sprint(a.header["Content-Type"]) != fmt.Sprint(want.header["Content-Type"]) {
			t.Errorf("%s: %d %s, want %s", name, a.status, a.body, want.body)
		}
	}
	var one authentication.TokenReview
	h.must(json.Unmarshal([]byte(want.body), &one))
	if one.Status.Authenticated || one.Status.Error != refusedWord || one.Status.User.Username != "" {
		t.Errorf("%s", want.body)
	}
	for _, cause := range []string{"no session", "parse token", "token is signed by no key of ours", requestID} {
		if !strings.Contains(h.log.text(), cause) {
			t.Errorf("the log does not tell %q", cause)
		}
	}
	if strings.Contains(h.log.text(), token) || strings.Contains(h.log.text(), caller) {
		t.Error("a secret is in the log")
	}
}

func TestReviewRequestTable(t *testing.T) {
	h := newHouse(t)
	good := `{"apiVersion":"` + v1 + `","kind":"TokenReview","spec":{"token":"x"}}`
	bearer := "Bearer " + caller
	for _, c := range []struct {
		name, method, path, auth, body string
		want                           int
	}{
		{"as it should be", "POST", "prod", bearer, good, 200},
		{"scheme in lower case", "POST", "prod", "bearer " + caller, good, 200},
		{"GET", "GET", "prod", bearer, "", 405},
		{"no caller", "POST", "prod", "", good, 401},
		{"another caller", "POST", "prod", bearer + "x", good, 401},
		{"basic", "POST", "prod", "Basic " + caller, good, 401},
		{"a person's token is no caller", "POST", "prod", "Bearer x.y.z", good, 401},
		{"cluster without webhook", "POST", "vault", bearer, good, 404},
		{"no such cluster", "POST", "nowhere", bearer, good, 404},
		{"deeper path", "POST", "prod/x", bearer, good, 404},
		{"no body", "POST", "prod", bearer, "", 400},
		{"no JSON", "POST", "prod", bearer, "token=x", 400},
		{"two values", "POST", "prod", bearer, good + good, 400},
		{"other kind", "POST", "prod", bearer, strings.Replace(good, "TokenReview", "SubjectAccessReview", 1), 400},
		{"other version", "POST", "prod", bearer, strings.Replace(good, "/v1", "/v2", 1), 400},
		{"no token", "POST", "prod", bearer, strings.Replace(good, `"x"`, `""`, 1), 400},
		{"token is a number", "POST", "prod", bearer, strings.Replace(good, `"x"`, `1`, 1), 400},
		{"largest", "POST", "prod", bearer, good + strings.Repeat(" ", idp.MaxReview-len(good)), 200},
		{"too large", "POST", "prod", bearer, good + strings.Repeat(" ", idp.MaxReview-len(good)+1), 413},
	} {
		header := http.Header{}
		if c.auth != "" {
			header.Set("Authorization", c.auth)
		}
		a := h.do(c.method, ReviewPath+c.path, c.body, header)
		if a.status != c.want || a.status == 401 && a.header.Get("WWW-Authenticate") == "" || a.status == 405 && a.header.Get("Allow") != "POST" {
			t.Errorf("%s: %d %s %v, want %d", c.name, a.status, a.body, a.header, c.want)
		}
		if a.status >= 400 && !strings.HasSuffix(strings.TrimSpace(a.body), "(request "+requestID+")") {
			t.Errorf("%s: %q does not tell the request's id", c.name, a.body)
		}
	}
}

// TestReviewInTrouble: an API server keeps a no, so trouble is not one. Of a session that
// memory does not know the store is asked.
func TestReviewInTrouble(t *testing.T) {
	h := newHouse(t)
	token, cookie := h.idToken()
	_, ended, _ := strings.Cut(cookie, "=")
	h.must(h.svc.EndBrowser(t.Context(), ended))
	h.refuses(token)
	h.store.Read(func([]string) error { return fmt.Errorf("%w: disk on fire", store.ErrUnknown) })
	a := h.review(v1, token)
	if a.status != http.StatusServiceUnavailable || strings.Contains(a.body, "fire") || a.header.Get("Retry-After") != "" || h.counts.of("prod", "failed") != 1 {
		t.Errorf("%d %v %s, counted %d", a.status, a.header, a.body, h.counts.of("prod", "failed"))
	}
	h.store.Read(func([]string) error { return fmt.Errorf("disk on fire") })
	if a := h.review(v1, token); a.status != http.StatusInternalServerError || !strings.Contains(h.log.text(), "disk on fire") {
		t.Errorf("%d %s", a.status, a.body)
	}
	h.store.Read(nil)
	h.refuses(token)
}

func FuzzTokenReview(f *testing.F) {
	h := newHouse(f)
	token, _ := h.idToken()
	for _, body := range []string{
		`{"apiVersion":"` + v1 + `","kind":"TokenReview","spec":{"token":"` + token + `","audiences":["kubernetes"]}}`,
		`{"apiVersion":"` + v1beta1 + `","kind":"TokenReview","spec":{"token":"a.b.c"}}`,
		`{"apiVersion":"` + v1 + `","kind":"TokenReview","spec":null}`, `[]`, `{"spec":{"audiences":[null]}}`, "\xff",
	} {
		f.Add(body)
	}
	reviews := Reviews(h.svc, ReviewConfig{Log: h.quiet(), Count: h.counts.add})
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequestWithContext(audit.WithOrigin(t.Context(), audit.Origin{RequestID: requestID}), http.MethodPost, ReviewPath+"prod", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+caller)
		w := httptest.NewRecorder()
		reviews.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		var asked authentication.TokenReview
		if err := json.Unmarshal([]byte(body), &asked); strings.Contains(w.Body.String(), `"authenticated":true`) && (err != nil || asked.Spec.Token != token) {
			t.Fatalf("%q is let through", body)
		}
	})
}

// BenchmarkTokenReview is one review over TLS, by API servers that keep their
// connections. Both ends are in the figure.
func BenchmarkTokenReview(b *testing.B) {
	h := newHouse(b)
	h.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	token, _ := h.idToken()
	body := `{"apiVersion":"` + v1 + `","kind":"TokenReview","spec":{"token":"` + token + `","audiences":["kubernetes"]}}`
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a := h.do(http.MethodPost, ReviewPath+"prod", body, http.Header{"Authorization": {"Bearer " + caller}, "Accept": {"application/json"}})
			if a.status != http.StatusOK || !strings.Contains(a.body, `"authenticated":true`) {
				b.Errorf("%d %s", a.status, a.body)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reviews/s")
}

// quiet is a log that keeps nothing.
func (h *house) quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}
