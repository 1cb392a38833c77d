package api

import (
	"time"
)

// Kinds of member and owner.
const (
	KindPerson         = "person"
	KindDirectoryGroup = "directoryGroup"
	KindGroup          = "group"
)

// Ref names a person, a directory group or a local group. In a request either ID or
// Name is enough; ID decides.
type Ref struct {
	Kind string `json:"kind"` // KindPerson, KindDirectoryGroup or KindGroup
	// ID is the sub of a person, the prefixed name of a directory group, or the id of a
	// local group. In a request it may be what a person types to sign in.
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"` // username; name of a local group
}

// Settings are what a group is, besides its members: the body of POST /api/v1/groups.
type Settings struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Owners      []Ref             `json:"owners,omitempty"`   // may change its members
	Clusters    []string          `json:"clusters,omitempty"` // that it counts on; absent: all
	Labels      map[string]string `json:"labels,omitempty"`
	Requestable bool              `json:"requestable,omitempty"`
}

// Group is a local group without its members.
type Group struct {
	Settings
	ID            string       `json:"id"` // stays the same when it is renamed
	Created       *time.Time   `json:"created,omitempty"`
	CreatedBy     string       `json:"createdBy,omitempty"`
	CreatedByName string       `json:"createdByName,omitempty"`
	Formerly      []FormerName `json:"formerly,omitempty"` // newest first
	MemberCount   int          `json:"memberCount"`        // also those that have ended
	ETag          string       `json:"etag"`               // its version, quoted as If-Match wants it
	Warnings      []string     `json:"warnings,omitempty"` // of a create or a rename, in words
}

// FormerName is a name that a group had.
type FormerName struct {
	Name   string    `json:"name"`
	Until  time.Time `json:"until"`
	By     string    `json:"by"` // sub of who renamed it
	ByName string    `json:"byName"`
}

// GroupList answers GET /api/v1/groups.
type GroupList struct {
	Groups []Group `json:"groups"`         // sorted by name
	Next   string  `json:"next,omitempty"` // cursor of the next page; absent on the last
}

// GroupNames answers GET /api/v1/groups/{name}/containing.
type GroupNames struct {
	Groups []string `json:"groups"` // sorted
}

// Member is a membership of a local group.
type Member struct {
	Ref
	Begin         *time.Time `json:"begin,omitempty"` // absent: at once
	End           *time.Time `json:"end,omitempty"`   // absent: until removed
	Ended         bool       `json:"ended,omitempty"`
	Pending       bool       `json:"pending,omitempty"` // has not begun
	Reason        string     `json:"reason,omitempty"`
	GrantedBy     string     `json:"grantedBy,omitempty"`
	GrantedByName string     `json:"grantedByName,omitempty"`
	GrantedAt     *time.Time `json:"grantedAt,omitempty"`
}

// MemberList answers GET /api/v1/groups/{name}/members.
type MemberList struct {
	Members []Member `json:"members"`
	Next    string   `json:"next,omitempty"` // cursor of the next page; absent on the last
}

// AddMember is the body of POST /api/v1/groups/{name}/members. Exactly one of Person,
// DirectoryGroup and Group is set. Adding a member that is there already replaces its
// begin, end and reason.
type AddMember struct {
	Person         string     `json:"person,omitempty"` // a login as typed at sign-in, or a sub
	DirectoryGroup string     `json:"directoryGroup,omitempty"`
	Group          string     `json:"group,omitempty"` // name of a local group
	Begin          *time.Time `json:"begin,omitempty"`
	End            *time.Time `json:"end,omitempty"`
	Reason         string     `json:"reason,omitempty"`
}

// Everyone answers GET /api/v1/groups/{name}/everyone: who gets a group, nested, and how.
type Everyone struct {
	Everyone []Reach `json:"everyone"`
	Cut      bool    `json:"cut,omitempty"` // there are more
}

// Reach is who gets a group, and how.
type Reach struct {
	Ref          // a person or a directory group
	Paths []Path `json:"paths"` // never empty; those that count first
	// Of a directory group, when they were asked for: the people in it, nested, as its
	// directory has them now.
	People     []GroupPerson `json:"people,omitempty"`
	PeopleCut  bool          `json:"peopleCut,omitempty"`  // there are more
	Unreadable int           `json:"unreadable,omitempty"` // members of it that are nobody here
	Problem    string        `json:"problem,omitempty"`    // why People could not be read
}

// GroupPerson is somebody in a directory group.
type GroupPerson struct {
	Person
	// Path holds DNs, from the group that was asked for to the one that names them.
	Path []string `json:"path,omitempty"`
}

// Person is somebody in a directory.
type Person struct {
	Sub      string `json:"sub"`
	Username string `json:"username"`
	Name     string `json:"name"`
	Email    string `json:"email,omitempty"`
}

// PeopleList answers GET /api/v1/people.
type PeopleList struct {
	People []Person `json:"people"`        // by name
	Cut    bool     `json:"cut,omitempty"` // there may be more
}

// Who names an owner or a member in a file. Exactly one of Person, DirectoryGroup and
// Group is set.
type Who struct {
	Person         string `json:"person,omitempty" yaml:"person,omitempty"` // sub or login
	DirectoryGroup string `json:"directoryGroup,omitempty" yaml:"directoryGroup,omitempty"`
	Group          string `json:"group,omitempty" yaml:"group,omitempty"` // by name
	Name           string `json:"name,omitempty" yaml:"name,omitempty"`   // username of a person, for readers
}

// FileMember is a membership as a file has it.
type FileMember struct {
	Who    `yaml:",inline"`
	Begin  *time.Time `json:"begin,omitempty" yaml:"begin,omitempty"`
	End    *time.Time `json:"end,omitempty" yaml:"end,omitempty"`
	Reason string     `json:"reason,omitempty" yaml:"reason,omitempty"`
}

// File is one group as a file has it. Members nil (absent) leaves the memberships as
// they are; otherwise they become exactly these.
type File struct {
	Name        string            `json:"name" yaml:"name"`
	Description string            `json:"description,omitempty" yaml:"description,omitempty"`
	Owners      []Who             `json:"owners,omitempty" yaml:"owners,omitempty"`
	Clusters    []string          `json:"clusters,omitempty" yaml:"clusters,omitempty"`
	Labels      map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Requestable bool              `json:"requestable,omitempty" yaml:"requestable,omitempty"`
	Members     FileMembers       `json:"members,omitzero" yaml:"members,omitempty"`
}

// FileMembers are the members that a file names. None at all (nil) is not the same as an
// empty list.
type FileMembers []FileMember

// IsZero reports whether the file says nothing of members, for encoders.
func (m FileMembers) IsZero() bool { return m == nil }

// Apply is the body of POST /api/v1/apply.
type Apply struct {
	Groups []File `json:"groups"`
}

// Applied answers POST /api/v1/apply.
type Applied struct {
	DryRun  bool            `json:"dryRun,omitempty"` // nothing was changed
	Changes []AppliedChange `json:"changes"`          // in the order made
}

// AppliedChange is one change that applying files makes, or would make.
type AppliedChange struct {
	Act    string            `json:"act"` // create, edit, delete, add, change or remove
	Group  string            `json:"group"`
	Member *Ref              `json:"member,omitempty"` // of add, change and remove
	Diff   map[string]string `json:"diff,omitempty"`   // field → "old → new", of edit and change
}
