package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// reviewer answers access reviews as a test says.
type reviewer struct {
	mu    sync.Mutex
	asked []authorizationv1.ResourceAttributes
	who   map[string]bool // the impersonation headers of what was asked
	busy  int
	most  int // at a time
	say   func(authorizationv1.ResourceAttributes) (code int, status authorizationv1.SubjectAccessReviewStatus)
}

func (v *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		return
	}
	var review authorizationv1.SelfSubjectAccessReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || r.URL.Path != "/"+accessReviews || r.Method != http.MethodPost {
		http.Error(w, "not a review", http.StatusBadRequest)
		return
	}
	v.mu.Lock()
	v.asked = append(v.asked, *review.Spec.ResourceAttributes)
	v.who[fmt.Sprint(r.Header["Authorization"], r.Header["Impersonate-User"], r.Header["Impersonate-Group"], r.Header["Impersonate-Uid"])] = true
	v.busy++
	v.most = max(v.most, v.busy)
	v.mu.Unlock()
	code, status := v.say(*review.Spec.ResourceAttributes)
	review.Status = status
	v.mu.Lock()
	v.busy--
	v.mu.Unlock()
	w.WriteHeader(code)
	if code < 300 {
		_ = json.NewEncoder(w).Encode(review)
	} else {
		io.WriteString(w, `{"kind":"Status","message":"because"}`)
	}
}

func reviewed(t testing.TB, say func(authorizationv1.ResourceAttributes) (int, authorizationv1.SubjectAccessReviewStatus)) (*reviewer, *upstream) {
	t.Helper()
	v := &reviewer{say: say, who: map[string]bool{}}
	url, ca := startAPI(t, "HTTP/2.0", v)
	return v, upstreamOf(t, APIServerConfig{URL: url, CA: ca, TokenFile: fileWith(t, "own")})
}

func groupsNamed(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("g", i))
	}
	return names
}

// TestMayBeAsksAll: everything is asked, of the person, a few at a time.
func TestMayBeAsksAll(t *testing.T) {
	yes := authorizationv1.SubjectAccessReviewStatus{Allowed: true}
	v, u := reviewed(t, func(authorizationv1.ResourceAttributes) (int, authorizationv1.SubjectAccessReviewStatus) {
		return 201, yes
	})
	who := impersonation{User: "alice", UID: "corp.1", Groups: []string{"admins", "devs"}}
	want := impersonation{User: "bob", UID: "u", Groups: groupsNamed(maxReviews - 4), Extra: map[string][]string{"a": {"1", "2"}}}
	if err := u.mayBe(t.Context(), who, want); err != nil {
		t.Fatal(err)
	}
	if len(v.asked) != maxReviews || len(v.who) != 1 || !v.who["[Bearer own] [alice] [admins devs] [corp.1]"] || v.most > parallelReviews {
		t.Errorf("%d questions as %v, %d at a time", len(v.asked), v.who, v.most)
	}
	seen := map[authorizationv1.ResourceAttributes]bool{}
	for _, a := range v.asked {
		seen[a] = true
	}
	for _, a := range questions(want) {
		if !seen[a] || a.Verb != "impersonate" {
			t.Errorf("%+v was not asked", a)
		}
	}
	v.asked = nil
	want.Groups = groupsNamed(maxReviews)
	var denied *asDenied
	if err := u.mayBe(t.Context(), who, want); !errors.As(err, &denied) || len(v.asked) > 0 {
		t.Errorf("too much: %v after %d questions", err, len(v.asked))
	}
}

// TestMayBeInDoubt: whatever is not a plain yes to all is a no.
func TestMayBeInDoubt(t *testing.T) {
	yes := authorizationv1.SubjectAccessReviewStatus{Allowed: true}
	for name, c := range map[string]struct {
		code   int
		status authorizationv1.SubjectAccessReviewStatus
		denied bool
	}{
		"no":               {201, authorizationv1.SubjectAccessReviewStatus{Reason: "says RBAC"}, true},
		"yes and no":       {201, authorizationv1.SubjectAccessReviewStatus{Allowed: true, Denied: true}, true},
		"yes with trouble": {201, authorizationv1.SubjectAccessReviewStatus{Allowed: true, EvaluationError: "webhook is away"}, true},
		"may not ask":      {403, yes, true},
		"trouble":          {500, yes, false},
		"too many":         {429, yes, false},
		"account is gone":  {401, yes, false},
	} {
		_, u := reviewed(t, func(a authorizationv1.ResourceAttributes) (int, authorizationv1.SubjectAccessReviewStatus) {
			if a.Name == "g17" {
				return c.code, c.status
			}
			return 201, yes
		})
		err := u.mayBe(t.Context(), impersonation{User: "alice"}, impersonation{User: "bob", Groups: groupsNamed(20)})
		var denied *asDenied
		if err == nil || errors.As(err, &denied) != c.denied || c.denied && denied.what != `group "g17"` || !strings.Contains(err.Error(), "g17") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMayBeWithoutAnAnswer(t *testing.T) {
	_, u := reviewed(t, func(authorizationv1.ResourceAttributes) (int, authorizationv1.SubjectAccessReviewStatus) {
		panic(http.ErrAbortHandler)
	})
	var denied *asDenied
	if err := u.mayBe(t.Context(), impersonation{User: "alice"}, impersonation{User: "bob", Groups: groupsNamed(20)}); err == nil || errors.As(err, &denied) {
		t.Errorf("%v, want neither yes nor no", err)
	}
}

func TestToldInWords(t *testing.T) {
	want := impersonation{User: "system:serviceaccount:a:b", UID: "u\n", Groups: []string{"g"}, Extra: map[string][]string{"k": {"v"}}}
	var lines []string
	for _, q := range questions(want) {
		lines = append(lines, (&asDenied{what: told(q)}).Error())
	}
	const all = `may not impersonate service account "b" in namespace "a"; may not impersonate group "g"; may not impersonate uid "u\n"; may not impersonate extra "k" with value "v"`
	if got := strings.Join(lines, "; "); got != all {
		t.Errorf("got %s", got)
	}
}
