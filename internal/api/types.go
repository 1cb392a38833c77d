// Package api holds the wire types of the JSON API under /api/v1, and the client
// that the commands use: sign-in, token cache and requests.
package api

import "time"

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
}

// GroupList answers GET /api/v1/groups.
type GroupList struct {
	Groups []Group `json:"groups"` // sorted by name; Members left out
}

// Group is a local group: the answer of GET and POST, and the body of POST
// (name and description alone).
type Group struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Created     *time.Time `json:"created,omitempty"`
	MemberCount int        `json:"memberCount"`
	Members     []Member   `json:"members,omitempty"` // in GET of one group
}

// Kinds of member.
const (
	KindPerson         = "person"
	KindDirectoryGroup = "directoryGroup"
	KindGroup          = "group"
)

// Member is a membership of a local group.
type Member struct {
	Kind          string     `json:"kind"` // KindPerson or KindDirectoryGroup
	ID            string     `json:"id"`   // sub of a person, prefixed name of a directory group
	Name          string     `json:"name,omitempty"`
	Begin         *time.Time `json:"begin,omitempty"` // absent: at once
	End           *time.Time `json:"end,omitempty"`   // absent: until removed
	Ended         bool       `json:"ended,omitempty"`
	Reason        string     `json:"reason,omitempty"`
	GrantedBy     string     `json:"grantedBy,omitempty"`
	GrantedByName string     `json:"grantedByName,omitempty"`
	GrantedAt     *time.Time `json:"grantedAt,omitempty"`
}

// AddMember is the body of POST /api/v1/groups/{name}/members. Exactly one of
// Person and DirectoryGroup is set. Adding a member that is there already
// replaces its end and reason.
type AddMember struct {
	Person         string     `json:"person,omitempty"` // a login as typed at sign-in, or a sub
	DirectoryGroup string     `json:"directoryGroup,omitempty"`
	End            *time.Time `json:"end,omitempty"`
	Reason         string     `json:"reason,omitempty"`
}

// Problem is an error of the API, RFC 9457 (application/problem+json).
type Problem struct {
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`    // what happened and what to do, fit for a person
	RequestID string `json:"requestID,omitempty"` // quoted in the server's log
}

// Error makes a Problem an error.
func (p *Problem) Error() string {
	s := p.Title
	if p.Detail != "" {
		s = p.Detail
	}
	if p.RequestID != "" {
		s += " (request " + p.RequestID + ")"
	}
	return s
}
