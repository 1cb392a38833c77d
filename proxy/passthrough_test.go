package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/tabard-id/tabard/idp"
)

// tokenReviewer answers TokenReviews.
type tokenReviewer struct {
	mu    sync.Mutex
	asked map[string]int // by Authorization and token
	code  int
	say   authenticationv1.TokenReviewStatus
}

func (v *tokenReviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/"+tokenReviews {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var review authenticationv1.TokenReview
	if json.NewDecoder(r.Body).Decode(&review) != nil || r.Header["Impersonate-User"] != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	v.asked[r.Header.Get("Authorization")+" "+review.Spec.Token]++
	review.Status = v.say
	w.WriteHeader(v.code)
	_ = json.NewEncoder(w).Encode(review)
}

func (v *tokenReviewer) answer(code int, say authenticationv1.TokenReviewStatus) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.code, v.say = code, say
}

func startTokenReviewer(t testing.TB) (*tokenReviewer, *passthrough, string) {
	t.Helper()
	v := &tokenReviewer{asked: map[string]int{}}
	url, ca := startAPI(t, "HTTP/2.0", v)
	file := fileWith(t, "second")
	u := upstreamOf(t, APIServerConfig{URL: url, CA: ca, TokenFile: fileWith(t, "first")})
	return v, newPassthrough(PassthroughConfig{TokenFile: file}, u), file
}

var robot = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
	Username: "system:serviceaccount:a:robot", UID: "u-1", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{idp.ExtraCredentialID: {"JTI=j"}},
}}

// jwt is one that nobody has signed.
func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".e30"
}

// TestReviewIsRemembered: a yes and a no are, each by its own time, and trouble is not.
func TestReviewIsRemembered(t *testing.T) {
	v, p, file := startTokenReviewer(t)
	now := time.Now()
	p.now = func() time.Time { return now }
	v.answer(500, robot)
	for range 2 {
		if _, err := p.review(t.Context(), "robot"); err == nil || errors.Is(err, idp.ErrRefused) {
			t.Errorf("in trouble: %v", err)
		}
	}
	v.answer(201, robot)
	for range 3 {
		who, err := p.review(t.Context(), "robot")
		if err != nil || who.Username != "system:serviceaccount:a:robot" || who.Sub != "u-1" || who.JTI != "j" || who.Cluster != "prod" || who.Session != "" || who.Ends.IsZero() {
			t.Errorf("%+v, %v", who, err)
		}
	}
	replaceFile(t, file, "third")
	v.answer(201, authenticationv1.TokenReviewStatus{Error: "unknown signer"})
	for range 3 {
		if _, err := p.review(t.Context(), "nobody"); !errors.Is(err, idp.ErrRefused) || !strings.Contains(err.Error(), "unknown signer") {
			t.Errorf("nobody: %v", err)
		}
		if _, err := p.review(t.Context(), "robot"); err != nil {
			t.Error(err)
		}
	}
	for _, later := range []time.Duration{refusedFor - 1, 1, reviewedFor - refusedFor - 1, 1} { // the no ends, then the yes
		now = now.Add(later)
		_, _ = p.review(t.Context(), "nobody")
		_, _ = p.review(t.Context(), "robot")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if want := map[string]int{"Bearer second robot": 3, "Bearer third nobody": 3, "Bearer third robot": 1}; fmt.Sprint(v.asked) != fmt.Sprint(want) {
		t.Errorf("asked %v, want %v", v.asked, want)
	}
}

// TestVerdicts has each answer judged.
func TestVerdicts(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	other := robot
	other.Audiences = []string{"other"}
	vault := robot
	vault.Audiences = []string{"other", "vault"}
	nameless, contradiction := robot, robot
	nameless.User.Username = ""
	contradiction.Error = "x"
	for name, c := range map[string]struct {
		audiences []string
		say       authenticationv1.TokenReviewStatus
		token     string
		refused   bool
		failed    bool
		ends      time.Duration // of the verdict
	}{
		"yes":                       {nil, robot, "opaque", false, false, reviewedFor},
		"ends later":                {nil, robot, jwt(`{"exp":1000900}`), false, false, reviewedFor},
		"ends sooner":               {nil, robot, jwt(`{"exp":1000003}`), false, false, 3 * time.Second},
		"no":                        {nil, authenticationv1.TokenReviewStatus{}, "x", true, false, refusedFor},
		"no, with a user":           {nil, authenticationv1.TokenReviewStatus{User: robot.User}, "x", true, false, refusedFor},
		"contradiction":             {nil, contradiction, "x", false, true, 0},
		"without a name":            {nil, nameless, "x", false, true, 0},
		"its audience":              {[]string{"vault"}, vault, "x", false, false, reviewedFor},
		"another audience":          {[]string{"vault"}, other, "x", true, false, refusedFor},
		"no audience in the answer": {[]string{"vault"}, robot, "x", true, false, refusedFor},
	} {
		p := newPassthrough(PassthroughConfig{Audiences: c.audiences}, &upstream{name: "prod"})
		v, err := p.judge(c.say, c.token, now)
		if (err != nil) != c.failed || (v.refused != "") != c.refused || !c.failed && !v.until.Equal(now.Add(c.ends)) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if (c.refused || c.failed) && v.who.Username != "" {
			t.Errorf("%s: somebody: %+v", name, v.who)
		}
	}
}

func TestRememberedTokensAreBounded(t *testing.T) {
	p := newPassthrough(PassthroughConfig{}, nil)
	now := time.Unix(1000, 0)
	for i := range 3 * maxRemembered {
		p.remember(sha256.Sum256([]byte(fmt.Sprint(i))), verdict{until: now.Add(time.Duration(i%2) * time.Second)}, now)
		if len(p.remembered) > maxRemembered {
			t.Fatalf("%d tokens", len(p.remembered))
		}
	}
	last := sha256.Sum256([]byte(fmt.Sprint(3*maxRemembered - 1)))
	if _, ok := p.remembered[last]; !ok {
		t.Error("the last one is forgotten")
	}
}

func TestIssuerOf(t *testing.T) {
	for token, want := range map[string]string{
		jwt(`{"iss":"https://a"}`): "https://a", jwt(`{"iss":1}`): "", jwt(`{`): "", "": "", "a.b": "", "a.b.c.d": "", "a.!.c": "",
		"e30." + base64.URLEncoding.EncodeToString([]byte(`{"iss":"https://a"}`)) + ".e30": "",
	} {
		if got := issuerOf(token); got != want {
			t.Errorf("%s: %q", token, got)
		}
	}
}

// FuzzIssuerOf holds it to what reads our own tokens.
func FuzzIssuerOf(f *testing.F) {
	const signed = "eyJhbGciOiJSUzI1NiJ9."
	body := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for _, text := range []string{`{"iss":"https://a","exp":1}`, `{"iss":"https://a","ISS":"https://b"}`, `{"iss":"\ud800"}`, `{"iss":"a"} `, `{"exp":1e9,"iss":"a"}`} {
		f.Add(signed + body(text) + ".e30")
	}
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
		if err != nil {
			return
		}
		var c struct {
			Issuer  string `json:"iss"`
			Expires int64  `json:"exp"`
		}
		if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c); err == nil && issuerOf(token) != c.Issuer {
			t.Errorf("%q, want %q", issuerOf(token), c.Issuer)
		}
	})
}

// TestReviewWaits: where made-up tokens keep the API server busy, nobody waits for long.
func TestReviewWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPassthrough(PassthroughConfig{}, nil)
		for range cap(p.busy) {
			p.busy <- struct{}{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if _, err := p.review(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, idp.ErrRefused) || time.Since(begun) != reviewTimeout {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}
