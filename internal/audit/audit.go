// Package audit is the one trail that Tabard leaves: who did what, on what, from
// where, and what came of it. Each record is hashed onto the last, so that a
// change, a removal or a reorder shows.
package audit

import (
	"context"
	"time"
)

// Outcomes of an act.
const (
	Intended = "intended" // about to be done; a record with the outcome follows
	Done     = "done"
	Denied   = "denied" // refused by a rule
	Failed   = "failed" // something broke
)

// Event is one record of the trail. It never holds a secret: no password, code,
// token or key.
type Event struct {
	Seq       uint64            `json:"seq"`            // set by Append
	Time      time.Time         `json:"time"`           // set by Append, UTC
	Node      string            `json:"node,omitempty"` // set by Append: whose chain it is, see Config
	Act       string            `json:"act"`            // e.g. "login", "token.issue", "group.member.add"
	Who       string            `json:"who,omitempty"`  // sub of the person, "operator" for the offline commands, "" when unknown
	Name      string            `json:"name,omitempty"` // username at the time
	On        string            `json:"on,omitempty"`   // what it was done to: a group, a client, a session
	Outcome   string            `json:"outcome"`
	Reason    string            `json:"reason,omitempty"` // why it was refused or failed, or what the person gave as reason
	Address   string            `json:"address,omitempty"`
	UserAgent string            `json:"userAgent,omitempty"`
	RequestID string            `json:"requestID,omitempty"`
	Session   string            `json:"session,omitempty"` // sid
	JTI       string            `json:"jti,omitempty"`
	Client    string            `json:"client,omitempty"`
	Cluster   string            `json:"cluster,omitempty"`
	Detail    map[string]string `json:"detail,omitempty"`

	// Soon lets Append return when the event is in the file, and syncs it within a
	// second: for what happens too often to wait for the disk each time. It survives
	// the process, but not the machine.
	Soon bool `json:"-"`
}

// Origin is where a request came from.
type Origin struct {
	Address   string // of the client, after trusted proxies; no port
	UserAgent string // at most 256 bytes
	RequestID string // made here for each request, and shown with errors
}

type originKey struct{}

// WithOrigin returns a context that carries o; Append copies it into each event.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf returns the origin that ctx carries, or the zero Origin.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}
