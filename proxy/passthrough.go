package proxy

import (
	"context"

	"github.com/tabard-id/tabard/idp"
)

// passthrough asks the API server about tokens that are not ours.
type passthrough struct{}

// newPassthrough returns what asks u, by the second credential of cfg.
func newPassthrough(cfg PassthroughConfig, u *upstream) *passthrough { return &passthrough{} }

// review says who the bearer of a token is by the API server's own word, at most ten
// seconds old. idp.ErrRefused; any other error means that nothing is known.
func (p *passthrough) review(ctx context.Context, token string) (idp.Identity, error) {
	panic("not yet")
}

// issuerOf returns the iss of a JWT without verifying anything, or "".
func issuerOf(token string) string { return "" }
