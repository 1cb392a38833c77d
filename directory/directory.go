// Package directory reads people and their groups from LDAP and Active Directory.
// It never writes. It is the only package that knows LDAP.
package directory

import (
	"errors"
	"fmt"
	"time"
)

// Errors that Directory's methods return, wrapped with what was being done.
var (
	// ErrNotFound: no entry, or none with this id.
	ErrNotFound = errors.New("no such person")
	// ErrAmbiguous: a login or username matches two entries; nobody is signed in.
	ErrAmbiguous = errors.New("more than one entry matches")
	// ErrInvalidCredentials: the directory refused the password. It is an answer,
	// never a reason to try another host.
	ErrInvalidCredentials = errors.New("invalid credentials")
	// ErrUnavailable: no host of the directory gave an answer in time.
	ErrUnavailable = errors.New("directory unavailable")
)

// State is what a directory says of an account.
type State string

// The states an account can be in. All but Active stop a login and a refresh.
const (
	Active          State = "active"
	Disabled        State = "disabled"
	Locked          State = "locked"
	Expired         State = "expired"          // the account
	PasswordExpired State = "password-expired" // the password
	MustChange      State = "must-change"      // the password, before anything else
)

// AccountError says that an account exists but may not be used. It is told to a
// person only after their password was right.
type AccountError struct{ State State }

func (e *AccountError) Error() string { return fmt.Sprintf("account is %s", e.State) }

// Person is one entry of a directory.
type Person struct {
	Directory string // its name in the configuration
	ID        string // canonical lower-case UUID of the immutable id
	DN        string
	Username  string // as it goes into tokens: NFC, trimmed, prefix and suffix added
	Name      string // display name; Username when the directory has none
	Email     string
	State     State
	// PasswordChanged is when the password was last set; zero when not known.
	PasswordChanged time.Time

	primaryGroup string   // AD: the primary group's SID
	memberOf     []string // DNs, when the entry carries them
}

// Sub is the person's subject identifier: "<directory>.<id>".
func (p Person) Sub() string { return p.Directory + "." + p.ID }

// Group is a directory group that a person is in.
type Group struct {
	Name string // with the directory's prefix, e.g. "corp:devs"
	DN   string
	Path []string // DNs from the first group the person is in to this one, both included
}
