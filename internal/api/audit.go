package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// AuditPage answers GET /api/v1/audit.
type AuditPage struct {
	Events []AuditEvent `json:"events"` // newest first; never null
	// Next goes on with what is older, as cursor; absent when there is nothing.
	Next string `json:"next,omitempty"`
	// Incomplete: the time for a search ran out before the page was full; go on with
	// Next.
	Incomplete bool `json:"incomplete,omitempty"`
}

// AuditEvent is a record of the audit trail, without the hashes that chain it.
type AuditEvent struct {
	Seq       uint64            `json:"seq"` // number in the chain of its node
	Time      time.Time         `json:"time"`
	Node      string            `json:"node,omitempty"`
	Act       string            `json:"act"`
	Who       string            `json:"who,omitempty"`
	Name      string            `json:"name,omitempty"`
	On        string            `json:"on,omitempty"`
	Outcome   string            `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	Address   string            `json:"address,omitempty"`
	UserAgent string            `json:"userAgent,omitempty"`
	RequestID string            `json:"requestID,omitempty"`
	Session   string            `json:"session,omitempty"`
	JTI       string            `json:"jti,omitempty"`
	Client    string            `json:"client,omitempty"`
	Cluster   string            `json:"cluster,omitempty"`
	Detail    map[string]string `json:"detail,omitempty"`
}

// Audit searches the audit trail. The parameters are those of GET /api/v1/audit.
func (c *Client) Audit(ctx context.Context, q url.Values) (AuditPage, error) {
	return answer[AuditPage](ctx, c, http.MethodGet, "/api/v1/audit?"+q.Encode(), nil)
}
