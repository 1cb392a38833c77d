package proxy

import "context"

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

// mayBe asks the API server, as who, whether who may be want. It returns nil, an
// *asDenied, or what kept it from finding out.
func (u *upstream) mayBe(ctx context.Context, who, want impersonation) error { panic("not yet") }
