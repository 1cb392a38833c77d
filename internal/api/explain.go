package api

import "time"

// Explanation answers GET /api/v1/explain: which groups a person's token would hold
// now, and why. No token is made.
type Explanation struct {
	Person   ExplainedPerson  `json:"person"`
	Strategy string           `json:"strategy"` // how groups in groups were found, e.g. "walk"
	Queries  []ExplainedQuery `json:"queries"`  // to the directory, in the order sent; never null
	Groups   []ExplainedGroup `json:"groups"`   // in the token, by name; never null
	LeftOut  []LeftOut        `json:"leftOut"`  // found, and kept out by a rule; never null
	Token    ExplainedToken   `json:"token"`
}

// ExplainedPerson is the entry that was found.
type ExplainedPerson struct {
	Directory       string     `json:"directory"`
	DN              string     `json:"dn"`
	Sub             string     `json:"sub"`
	Username        string     `json:"username"`
	Name            string     `json:"name"`
	Email           string     `json:"email,omitempty"`
	State           string     `json:"state"`   // "active", or what stops a sign-in
	Account         string     `json:"account"` // State in words
	PasswordChanged *time.Time `json:"passwordChanged,omitempty"`
}

// ExplainedQuery is one search that was sent to the directory.
type ExplainedQuery struct {
	Doing        string  `json:"doing"`
	Base         string  `json:"base"`
	Filter       string  `json:"filter"`
	Entries      int     `json:"entries"`
	Milliseconds float64 `json:"milliseconds"`
	Error        string  `json:"error,omitempty"`
}

// ExplainedGroup is a group in the token, and where it comes from: Path, Paths or
// both.
type ExplainedGroup struct {
	Name string `json:"name"`
	// Path of a directory group holds DNs, from the first group that the person is in
	// to this one.
	Path  []string `json:"path,omitempty"`
	Paths []Path   `json:"paths,omitempty"` // to a local group that count; one of them is enough
}

// LeftOut is a group, or one path to a local group, that does not count.
type LeftOut struct {
	Name string `json:"name"`
	DN   string `json:"dn,omitempty"`   // of a directory group
	Path *Path  `json:"path,omitempty"` // to a local group
	Rule string `json:"rule"`           // what kept it out
}

// ExplainedToken is what the token would be.
type ExplainedToken struct {
	Cluster       string         `json:"cluster,omitempty"`       // absent: a token of Tabard itself
	RequireGroups []string       `json:"requireGroups,omitempty"` // of which the cluster wants one
	Refused       string         `json:"refused,omitempty"`       // why there would be none
	Claims        map[string]any `json:"claims,omitempty"`        // without jti and sid
	Size          int            `json:"size"`                    // about, in bytes, signed
	MaxSize       int            `json:"maxSize"`                 // tokens.maxSize, in bytes
	SizeAdvice    string         `json:"sizeAdvice,omitempty"`    // of a large one: what makes it large, and what to do
}

// Path leads from a person or directory group, the Member of its first step, through
// local groups to the Group of its last.
type Path struct {
	Steps    []Step     `json:"steps"`              // never empty
	Clusters []string   `json:"clusters,omitempty"` // that the group counts on; absent: all
	Begin    *time.Time `json:"begin,omitempty"`    // the latest of its steps
	End      *time.Time `json:"end,omitempty"`      // the earliest of its steps; absent: none ends
	Counts   bool       `json:"counts"`             // now: it has begun and has not ended
}

// Step is one membership on a path: Member is in Group.
type Step struct {
	Group  string `json:"group"`
	Member Member `json:"member"`
}
