// Package api holds the wire types of the JSON API under /api/v1, and the client
// that the commands use: sign-in, token cache and requests.
package api

import "encoding/json"

// Me answers GET /api/v1/me: the caller.
type Me struct {
	Sub      string   `json:"sub"`
	Username string   `json:"username"`
	Name     string   `json:"name"`
	Email    string   `json:"email,omitempty"`
	Groups   []string `json:"groups"` // directory and local, sorted; never null
	Admin    bool     `json:"admin"`
}

// ClusterList answers GET /api/v1/clusters: those whose rules give the caller a
// token.
type ClusterList struct {
	Clusters []Cluster `json:"clusters"` // in the order of the configuration
}

// Cluster is a Kubernetes cluster.
type Cluster struct {
	Name      string `json:"name"`
	ClientID  string `json:"clientID"`            // the audience of its tokens
	APIServer string `json:"apiServer,omitempty"` // URL; absent when the server was not told
	CA        string `json:"ca,omitempty"`        // PEM of the API server's CA
	Proxied   bool   `json:"proxied,omitempty"`   // APIServer is the server's own proxy, with its own certificate
}

// Problem is an error of the API, RFC 9457 (application/problem+json).
type Problem struct {
	Type      string `json:"type,omitempty"` // urn:tabard:problem:<code>, which stays the same
	Code      string `json:"code,omitempty"` // the last part of Type
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`    // what happened and what to do, fit for a person
	RequestID string `json:"requestID,omitempty"` // quoted in the server's log

	// Of CodeMismatch: the group as it is now, with its ETag, and what was asked.
	Current *Group          `json:"current,omitempty"`
	Sent    json.RawMessage `json:"sent,omitempty"`
	// Of CodeContained: the groups that the group is a member of.
	In []string `json:"in,omitempty"`
}

// Codes of problems that programs tell apart.
const (
	CodeExists    = "exists"
	CodeMismatch  = "mismatch"  // If-Match names another version: 412
	CodeContained = "contained" // other groups contain the group to delete: 409
	CodeUncertain = "uncertain" // it may have been done: 503
)

// Error makes a Problem an error.
func (p *Problem) Error() string {
	s := p.Title
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	if p.RequestID != "" {
		s += " (request " + p.RequestID + ")"
	}
	return s
}
