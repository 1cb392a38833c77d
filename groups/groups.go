// Package groups keeps the local groups: who is in them, since when, until when,
// granted by whom and why, and decides who may change them.
package groups

import (
	"context"
	"errors"
	"time"

	"github.com/tabard-id/tabard/internal/audit"
)

// Errors of the package, wrapped with the group or member they are about.
var (
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("exists already")
	ErrForbidden = errors.New("not allowed")
	ErrInvalid   = errors.New("invalid")
	// ErrConflict: others kept changing the group meanwhile; nothing was done.
	ErrConflict = errors.New("changed by someone else meanwhile")
	// ErrUnknown: the change may have been made, or was made in part, or was made and
	// what comes after it failed. It may come with any of the others: ask for it first.
	ErrUnknown = errors.New("it may have been done: look again")
	// ErrStale: the index has not heard from the store for too long; deny.
	ErrStale = errors.New("groups are not current")
)

// Kind says what a member is.
type Kind string

// The kinds of member.
const (
	KindPerson         Kind = "person"         // ID is a sub: "<directory>.<uuid>"
	KindDirectoryGroup Kind = "directoryGroup" // ID is the prefixed name: "corp:devs"
)

// Member is one membership of a local group.
type Member struct {
	Kind          Kind      `json:"kind"`
	ID            string    `json:"id"`
	Name          string    `json:"name"`         // of a person: username as of when it was granted
	End           time.Time `json:"end,omitzero"` // zero: until removed
	Reason        string    `json:"reason,omitempty"`
	GrantedBy     string    `json:"grantedBy"` // sub, or "operator"
	GrantedByName string    `json:"grantedByName"`
	GrantedAt     time.Time `json:"grantedAt"`
}

// Group is a local group with its memberships.
type Group struct {
	Name        string
	Description string
	Created     time.Time
	Revision    int64 // grows with every change to the group or its members
	Members     []Member
}

// Membership says that a person is in a local group, and through what.
type Membership struct {
	Group string
	Via   Member    // the membership that put them there
	End   time.Time // zero: no end
}

// Actor is who asks for something to be done.
type Actor struct {
	Sub      string
	Name     string
	Groups   []string // every group the person is in now, directory and local
	Operator bool     // acts on the store itself, with the server stopped
}

// Trail is where the Service leaves its events.
type Trail interface {
	Append(ctx context.Context, e audit.Event) error
}

// Config says who administers and which names are taken.
type Config struct {
	Admins   []string // groups that administer everything
	Reserved []string // prefixes that no local group may begin with: the directories'
}
