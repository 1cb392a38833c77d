// Package groups keeps the local groups: who is in them, since when, until when,
// granted by whom and why, and decides who may see and change them.
package groups

import (
	"context"
	"errors"
	"fmt"
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

// MismatchError says that a group is not at the revision that a change was made for.
type MismatchError struct{ Current Group }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("group %q was changed meanwhile: it is at revision %d", e.Current.Name, e.Current.Revision)
}

// ContainedError says that a group is a member of others, which would lose it.
type ContainedError struct {
	Group string
	In    []string // names, sorted
}

func (e *ContainedError) Error() string {
	return fmt.Sprintf("group %q is a member of other groups: %q", e.Group, e.In)
}

// Kind says what a member or an owner is.
type Kind string

// The kinds of member.
const (
	KindPerson         Kind = "person"         // ID is a sub: "<directory>.<uuid>"
	KindDirectoryGroup Kind = "directoryGroup" // ID is the prefixed name: "corp:devs"
	KindGroup          Kind = "group"          // ID is the id of a local group
)

// Ref names a person, a directory group or a local group.
type Ref struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name"` // of a person: username as of when it was written; of a local group: its name now
}

// Member is one membership of a local group.
type Member struct {
	Ref
	Begin         time.Time `json:"begin,omitzero"` // zero: at once
	End           time.Time `json:"end,omitzero"`   // zero: until removed
	Reason        string    `json:"reason,omitempty"`
	GrantedBy     string    `json:"grantedBy"` // sub, or "operator"
	GrantedByName string    `json:"grantedByName"`
	GrantedAt     time.Time `json:"grantedAt"`
}

// CountsAt reports whether the membership has begun and has not ended at now.
func (m Member) CountsAt(now time.Time) bool {
	return !m.Begin.After(now) && (m.End.IsZero() || m.End.After(now))
}

// Settings is what those who may change a group say of it.
type Settings struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Owners      []Ref             `json:"owners,omitempty"`   // who may change its members, besides administrators
	Clusters    []string          `json:"clusters,omitempty"` // names of the clusters it counts on; empty: all
	Labels      map[string]string `json:"labels,omitempty"`   // keys and values as Kubernetes has them
	Requestable bool              `json:"requestable,omitempty"`
}

// FormerName is a name that a group had.
type FormerName struct {
	Name   string    `json:"name"`
	Until  time.Time `json:"until"`
	By     string    `json:"by"` // sub of who renamed it
	ByName string    `json:"byName"`
}

// Group is a local group without its memberships.
type Group struct {
	ID string // stays the same when it is renamed
	Settings
	Created       time.Time
	CreatedBy     string
	CreatedByName string
	Formerly      []FormerName // newest first, at most 20
	Revision      int64        // grows with every change to the group or its members
	Members       int          // memberships, also those that have ended
}

// Effective is a local group that a person is in.
type Effective struct {
	ID       string
	Group    string
	Clusters []string  // that it counts on; empty: all
	End      time.Time // when the last path to it ends; zero: no end
}

// Step is one membership on a path: Member is in Group.
type Step struct {
	Group  string
	Member Member
}

// Path leads from a person or directory group, the Member of its first step, through
// local groups to the Group of its last.
type Path struct {
	Clusters []string // of the group that it leads to
	Steps    []Step
	Begin    time.Time // the latest of its steps
	End      time.Time // the earliest of its steps; zero: none ends
}

// Group is what the path leads to.
func (p Path) Group() string { return p.Steps[len(p.Steps)-1].Group }

// From is the person or directory group that the path begins with.
func (p Path) From() Ref { return p.Steps[0].Member.Ref }

// Reach is who gets a group, and how.
type Reach struct {
	Ref          // a person or a directory group
	Paths []Path // never empty; those that count first
}

// Filter narrows a listing of groups. Empty fields let all through.
type Filter struct {
	Query   string            // in the name or description, whatever the case
	Labels  map[string]string // all of them; an empty value stands for any
	Cluster string            // that it counts on
	Owner   string            // sub of a person who owns it, directly
	Member  *Ref              // a direct member; of groups whose members the actor may see, unless it is themself
	Mine    bool              // those that the actor owns, directly or through a group
}

// MemberFilter narrows a listing of members.
type MemberFilter struct {
	Kind  Kind
	Query string // in the name, id or reason, whatever the case
}

// Page asks for a part of a listing.
type Page struct {
	Cursor string // as the listing before returned it; "" for the first
	Limit  int    // 1 to 1,000; 0: 100
}

// Change is what is to become of a group's settings; nil leaves a field as it is.
type Change struct {
	Name        *string
	Description *string
	Owners      *[]Ref
	Clusters    *[]string
	Labels      *map[string]string
	Requestable *bool
}

// Rights is what an actor may do with a group.
type Rights struct {
	See     bool // that it is there, its settings, and their own way into it
	Members bool // see, add and remove all members, and change the description
	Admin   bool // everything else: rename, delete, owners, clusters, labels
}

// File is one group as a file has it. Members nil leaves the memberships as they are;
// otherwise they become exactly these. Of a member Kind, ID (of a local group: Name),
// Begin, End and Reason are read.
type File struct {
	Settings
	Members []Member
}

// ApplyOptions say how files are applied.
type ApplyOptions struct {
	DryRun bool
	// Prune deletes groups with all of these labels that no file names; empty: none.
	Prune map[string]string
}

// Applied is one change that applying files makes, or would make.
type Applied struct {
	Act    string // "create", "edit", "delete", "add", "change" or "remove"
	Group  string
	Member *Ref              // of add, change and remove
	Diff   map[string]string // of edit and change: field → "old → new"
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
	AppendAll(ctx context.Context, events []audit.Event) error
}

// Config says who administers and which names are taken.
type Config struct {
	Admins   []string // groups that administer everything
	Reserved []string // prefixes that no local group may begin with: the directories'
	Clusters []string // names that Settings.Clusters may hold
}
