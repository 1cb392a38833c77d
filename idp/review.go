package idp

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tabard-id/tabard/internal/audit"
)

// Keys of the extra attributes that an API server gets of a person, from the webhook
// and from the AuthenticationConfiguration that `tabard cluster` writes.
const (
	// ExtraCredentialID is Kubernetes' own: "JTI=" and the token's jti, as the native
	// authenticator gives it.
	ExtraCredentialID = "authentication.kubernetes.io/credential-id"
	// ExtraSession holds the sid.
	ExtraSession = "tabard.dev/sid"
)

// WebhookConfig lets a cluster's API servers ask about each token (TokenReview).
type WebhookConfig struct {
	// Callers are the secrets by which the API servers prove themselves; several, so
	// that one can be replaced.
	Callers []CallerConfig `yaml:"callers"`
	// Audiences are the API servers' --api-audiences; empty: what kubeadm and most
	// others set.
	Audiences []string `yaml:"audiences,omitempty"`
}

// CallerConfig is one secret of an API server.
type CallerConfig struct {
	Token     string `yaml:"token,omitempty"`
	TokenFile string `yaml:"tokenFile,omitempty"`
}

// defaultAudiences are the usual values of --service-account-issuer, which
// --api-audiences takes when it is not set.
var defaultAudiences = []string{"https://kubernetes.default.svc.cluster.local", "https://kubernetes.default.svc"}

const (
	minCaller   = 16       // bytes of a caller's token
	maxReviewed = 48 << 10 // bytes of a token that fits into MaxReview
)

// MaxReview bounds a TokenReview, in bytes.
const MaxReview = 64 << 10

func (w *WebhookConfig) validate(path string, cl ClusterConfig, taken map[string]string) error {
	if w == nil {
		return nil
	}
	var f Faults
	f.When(len(w.Callers) == 0, path+".callers", "is missing: name a file with a secret that the API server sends")
	for i, c := range w.Callers {
		at := fmt.Sprintf("%s.callers[%d]", path, i)
		switch {
		case c.Token == "" && c.TokenFile == "":
			f.Wrong(at+".tokenFile", "is missing")
		case c.Token == "": // the file could not be read, which is told
		case len(c.Token) < minCaller:
			f.Wrong(at, "the token has fewer than %d bytes: make one with `openssl rand -base64 32`", minCaller)
		case slices.ContainsFunc([]byte(c.Token), func(b byte) bool { return b <= ' ' || b > '~' }):
			f.Wrong(at, "the token has a character that no header may hold: make one with `openssl rand -base64 32`")
		case taken[c.Token] != "" && taken[c.Token] != cl.Name:
			f.Wrong(at, "cluster %s has the same token: each needs its own", taken[c.Token])
		}
		taken[c.Token] = cl.Name
	}
	f.When(slices.Contains(w.Audiences, ""), path+".audiences", "has an empty audience")
	f.When(cl.Tokens.MaxSize > maxReviewed, path, "takes tokens of at most 48KiB, and this cluster's tokens.maxSize is larger")
	return f.Err()
}

// Reviewer answers the API servers of one cluster.
type Reviewer struct {
	s         *Service
	client    *Client
	callers   [][]byte // hashes
	audiences []string
}

// reviewersOf returns the reviewer of each cluster that has a webhook.
func (s *Service) reviewersOf(clusters []ClusterConfig) map[string]*Reviewer {
	all := map[string]*Reviewer{}
	for _, cl := range clusters {
		if cl.Webhook == nil {
			continue
		}
		r := &Reviewer{s: s, client: s.clients[cl.ClientID], audiences: defaultAudiences}
		if len(cl.Webhook.Audiences) > 0 {
			r.audiences = cl.Webhook.Audiences
		}
		r.audiences = append(slices.Clone(r.audiences), cl.ClientID) // every token that is let through is for it
		for _, c := range cl.Webhook.Callers {
			r.callers = append(r.callers, hashSecret(c.Token))
		}
		all[cl.Name] = r
	}
	return all
}

// Reviewer returns what answers cluster's API server, which proves itself by the token
// caller. ErrNoCluster: there is no such webhook; ErrInvalidClient.
func (s *Service) Reviewer(cluster, caller string) (*Reviewer, error) {
	r := s.reviewers[cluster]
	if r == nil {
		return nil, fmt.Errorf("%w with a webhook: %q", ErrNoCluster, cluster)
	}
	hash, known := hashSecret(caller), 0
	for _, c := range r.callers {
		known |= subtle.ConstantTimeCompare(hash, c)
	}
	if known != 1 {
		return nil, fmt.Errorf("%w: not a caller of the webhook of cluster %s", ErrInvalidClient, cluster)
	}
	return r, nil
}

// Review says who the bearer of token is now. asked is what the API
// server wants the token to be good for, its --api-audiences; the audiences are those of
// them that it is good for, none when none were asked for. ErrRefused; any other error
// means that nothing is known, and must not be taken for a no.
func (r *Reviewer) Review(ctx context.Context, token string, asked []string) (id Identity, audiences []string, err error) {
	claims, err := r.s.claimsFor(r.client, token)
	if err != nil {
		return id, nil, err
	}
	audiences = intersect(asked, r.audiences)
	if len(asked) > 0 && len(audiences) == 0 {
		// Without an audience in the answer the API server would put in its own.
		return id, nil, fmt.Errorf("%w: none of the audiences %.200q is in webhook.audiences", ErrRefused, strings.Join(asked, " "))
	}
	id, err = r.s.identify(ctx, r.client, claims)
	if errors.Is(err, ErrRefused) {
		err = r.told(ctx, claims, err)
	}
	return id, audiences, err
}

// told leaves in the trail, once for each token, that a session or right has ended, and
// returns err.
func (r *Reviewer) told(ctx context.Context, c idClaims, err error) error {
	if !r.s.refusals.first(c.ID) {
		return err
	}
	e := audit.Event{Act: "token.review", Outcome: audit.Denied, Reason: err.Error(), Who: c.Subject, Session: c.SessionID,
		JTI: c.ID, Client: c.AuthorizedParty, Cluster: r.client.Cluster, Soon: true}
	if lost := r.s.record(ctx, e, nil); lost != nil {
		r.s.refusals.forget(c.ID)
		return lost
	}
	return err
}

// intersect returns what of a is in b, each once, in the order of a.
func intersect(a, b []string) []string {
	var both []string
	for _, v := range a {
		if slices.Contains(b, v) && !slices.Contains(both, v) {
			both = append(both, v)
		}
	}
	return both
}
