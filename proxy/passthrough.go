package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tabard-id/tabard/idp"
)

const (
	reviewedFor    = 10 * time.Second // a yes is remembered
	refusedFor     = 2 * time.Second  // a no
	maxRemembered  = 4096             // tokens
	reviewsAtATime = 16
	tokenReviews   = "apis/authentication.k8s.io/v1/tokenreviews"
)

// passthrough asks the API server about tokens that are not ours.
type passthrough struct {
	cfg  PassthroughConfig
	u    *upstream
	busy chan struct{} // holds one for each review under way
	now  func() time.Time

	mu         sync.Mutex
	remembered map[[sha256.Size]byte]verdict
}

// verdict is what the API server said of a token; good until then.
type verdict struct {
	who     idp.Identity
	refused string // why, or ""
	until   time.Time
}

// newPassthrough returns what asks u, by the second credential of cfg.
func newPassthrough(cfg PassthroughConfig, u *upstream) *passthrough {
	return &passthrough{cfg: cfg, u: u, busy: make(chan struct{}, reviewsAtATime), now: time.Now, remembered: map[[sha256.Size]byte]verdict{}}
}

// review says who the bearer of a token is by the API server's own word, at most ten
// seconds old. idp.ErrRefused; any other error means that nothing is known.
func (p *passthrough) review(ctx context.Context, token string) (idp.Identity, error) {
	hash, now := sha256.Sum256([]byte(token)), p.now()
	p.mu.Lock()
	v, ok := p.remembered[hash]
	p.mu.Unlock()
	if !ok || !now.Before(v.until) {
		ctx, cancel := context.WithTimeout(ctx, reviewTimeout) // with the wait, which anybody's made-up tokens may cause
		defer cancel()
		select {
		case p.busy <- struct{}{}:
		case <-ctx.Done():
			return idp.Identity{}, ctx.Err()
		}
		var err error
		v, err = p.ask(ctx, token, now)
		<-p.busy
		if err != nil {
			return idp.Identity{}, fmt.Errorf("ask the API server about a token: %w", err)
		}
		p.remember(hash, v, now)
	}
	if v.refused != "" {
		return idp.Identity{}, fmt.Errorf("%w by the API server: %s", idp.ErrRefused, v.refused)
	}
	return v.who, nil
}

// ask has the API server review a token.
func (p *passthrough) ask(ctx context.Context, token string, now time.Time) (verdict, error) {
	own, err := readBearer(p.cfg.TokenFile)
	if err != nil {
		return verdict{}, err
	}
	r := authenticationv1.TokenReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"},
		Spec:     authenticationv1.TokenReviewSpec{Token: token, Audiences: p.cfg.Audiences},
	}
	if err := p.u.ask(ctx, p.u.foreign(), tokenReviews, http.Header{"Authorization": {own}}, r, &r); err != nil {
		return verdict{}, err
	}
	return p.judge(r.Status, token, now)
}

// judge reads a review's outcome.
func (p *passthrough) judge(s authenticationv1.TokenReviewStatus, token string, now time.Time) (verdict, error) {
	no := func(why string) (verdict, error) { return verdict{refused: why, until: now.Add(refusedFor)}, nil }
	switch {
	case !s.Authenticated && s.Error != "":
		return no(fmt.Sprintf("%.300s", s.Error))
	case !s.Authenticated:
		return no("not authenticated")
	case s.Error != "" || s.User.Username == "":
		return verdict{}, errors.New("the API server's answer contradicts itself")
	case len(p.cfg.Audiences) > 0 && !slices.ContainsFunc(s.Audiences, func(a string) bool { return slices.Contains(p.cfg.Audiences, a) }):
		return no("it is for none of passthrough.audiences") // or the API server knows no audiences
	}
	v := verdict{until: now.Add(reviewedFor), who: idp.Identity{
		Cluster: p.u.name, Sub: s.User.UID, Username: s.User.Username, Groups: s.User.Groups, Ends: now.Add(reviewedFor),
	}}
	if id := s.User.Extra[idp.ExtraCredentialID]; len(id) == 1 {
		v.who.JTI = strings.TrimPrefix(id[0], "JTI=")
	}
	if end := unverified(token).Expires; end > 0 { // verified by now
		v.who.Ends = time.Unix(end, 0)
		if v.who.Ends.Before(v.until) {
			v.until = v.who.Ends
		}
	}
	return v, nil
}

// remember keeps a verdict, and forgets others where there are too many.
func (p *passthrough) remember(hash [sha256.Size]byte, v verdict, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.remembered) >= maxRemembered {
		for h, old := range p.remembered {
			if !now.Before(old.until) {
				delete(p.remembered, h)
			}
		}
		for h := range p.remembered {
			if len(p.remembered) < maxRemembered*3/4 {
				break
			}
			delete(p.remembered, h)
		}
	}
	p.remembered[hash] = v
}

// said is what a JWT says of itself.
type said struct {
	Issuer  string `json:"iss"`
	Expires int64  `json:"exp"`
}

// unverified reads a JWT without verifying anything; what is none says nothing.
func unverified(token string) (s said) {
	if strings.Count(token, ".") != 2 {
		return s
	}
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	if b, err := base64.RawURLEncoding.DecodeString(payload); err != nil || json.Unmarshal(b, &s) != nil {
		return said{}
	}
	return s
}

// issuerOf returns the iss of a JWT without verifying anything, or "".
func issuerOf(token string) string { return unverified(token).Issuer }
