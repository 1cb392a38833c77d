// Package idp is the heart of Tabard: it signs people in against their directory,
// keeps their sessions, and makes the tokens that API servers believe. It gets
// parsed data and knows neither HTTP nor LDAP.
package idp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Errors that the Service returns. Causes are wrapped for the log; what a client
// or person is told is decided at the edge, in fixed words.
var (
	// ErrCredentials: the login or the password is wrong, or the account may not
	// be told about; all look the same.
	ErrCredentials = errors.New("login or password wrong")
	// ErrUnavailable: the directory gave no answer. Sessions are kept.
	ErrUnavailable = errors.New("directory unavailable")
	// ErrInvalidClient: unknown client, or its authentication failed.
	ErrInvalidClient = errors.New("invalid client")
	// ErrInvalidGrant: code, refresh token, device code or subject token is not
	// good (RFC 6749 section 5.2).
	ErrInvalidGrant = errors.New("invalid grant")
	// ErrInvalidTarget: the audience asked for is not one the caller may have
	// (RFC 8693 section 2.2.2).
	ErrInvalidTarget = errors.New("invalid target")
	// ErrNoAccess: the person is who they say, but a rule of the cluster gives
	// them no token.
	ErrNoAccess = errors.New("no access")
	// ErrNoSession: there is no such session, or it has ended.
	ErrNoSession = errors.New("no session")
	// ErrExpired: a sealed request, or a device code, is too old.
	ErrExpired = errors.New("expired")
	// ErrPending and ErrSlowDown: RFC 8628 section 3.5.
	ErrPending  = errors.New("authorization pending")
	ErrSlowDown = errors.New("slow down")
	// ErrDenied: the person said no.
	ErrDenied = errors.New("denied")
	// ErrAdministrators is groups.ErrForbidden where no owner of a group may either.
	ErrAdministrators = fmt.Errorf("for administrators: %w", groups.ErrForbidden)
	// ErrTooMany: too many tries of this account or from this address; later. Of a
	// password it is a *TooManyError.
	ErrTooMany = errors.New("too many attempts")
)

// ChooseDirectoryError says that a login was found in several directories and the
// person has to choose one of Names.
type ChooseDirectoryError struct{ Names []string }

func (e *ChooseDirectoryError) Error() string {
	return "login found in several directories: " + strings.Join(e.Names, ", ")
}

// Directory is what the Service needs of a directory.
type Directory interface {
	Name() string
	Prefix() string // of its groups' names
	Find(ctx context.Context, login string) (directory.Person, error)
	Bind(ctx context.Context, dn, password string) error
	Lookup(ctx context.Context, id string) (directory.Person, error)
	Groups(ctx context.Context, p directory.Person) ([]directory.Group, error)
	Explain(ctx context.Context, loginOrID string) (directory.Explanation, error)
	// Search and Members have deadlines of their own.
	Search(ctx context.Context, typed string, limit int) ([]directory.Person, error)
	Members(ctx context.Context, group string, limit int) (directory.Members, error)
	Lockout(ctx context.Context) (directory.Lockout, error)
	DummyDN() string
}

// LocalGroups is what the Service needs of the local groups.
type LocalGroups interface {
	Of(sub string, directoryGroups []string, now time.Time) ([]groups.Effective, error)
	Why(ctx context.Context, sub string, directoryGroups []string) ([]groups.Path, error)
}

// Trail is where the Service leaves its events.
type Trail interface {
	Append(ctx context.Context, e audit.Event) error
}

// Parts is what a Service is made of.
type Parts struct {
	Store       store.Store
	Trail       Trail
	Groups      LocalGroups
	Directories []Directory
	Keys        *Keys
	Sessions    *Sessions
	Alone       bool // no other node shares Store
	Log         logrus.FieldLogger
	Now         func() time.Time // nil: time.Now
}

// Service signs people in and makes tokens. It is safe for concurrent use.
type Service struct {
	Parts
	cfg     Config
	clients map[string]*Client
	seals   *sealer
	pace    *pacer
	turns   *turns
	recents recents

	verified  *verifiedTokens
	reviewers map[string]*Reviewer // by cluster
	refusals  *onceSet             // jti of tokens whose refusal is in the trail
	large     *onceSet             // sessions and clients whose large token is in the log

	mustReserve atomic.Bool // see attempt.mayForget
}

// New returns a Service. cfg must have passed Validate, and there must be a
// directory. The first call on a store makes the secret that seals and derives (one
// record, shared by all nodes).
func New(ctx context.Context, cfg Config, p Parts) (*Service, error) {
	if p.Now == nil {
		p.Now = time.Now
	}
	if len(p.Directories) == 0 {
		return nil, errors.New("no directory: nobody could sign in")
	}
	key, err := serverSecret(ctx, p.Store, cfg.Vault)
	if err != nil {
		return nil, fmt.Errorf("server secret: %w", err)
	}
	seals, err := newSealer(key)
	if err != nil {
		return nil, err
	}
	s := &Service{
		Parts: p, cfg: cfg, clients: cfg.clients(), seals: seals, pace: newPacer(p.Now), turns: &turns{lanes: map[string]*lane{}},
		verified: &verifiedTokens{by: map[[32]byte]idClaims{}}, refusals: &onceSet{}, large: &onceSet{},
	}
	s.reviewers = s.reviewersOf(cfg.Clusters)
	return s, nil
}

// Issuer is the issuer identifier, without a trailing slash.
func (s *Service) Issuer() string { return s.cfg.Issuer }

// Algorithms returns the algorithms that id_tokens are signed with.
func (s *Service) Algorithms() []string { return s.cfg.KeyAlgorithms() }

// ClaimNames returns the names of the claims that id_tokens can hold.
func (s *Service) ClaimNames() []string { return s.cfg.ClaimNames() }

// record appends e, filling in what the session knows.
func (s *Service) record(ctx context.Context, e audit.Event, sess *Session) error {
	if sess != nil {
		e.Who, e.Name, e.Session = sess.Sub, sess.Username, sess.ID
	}
	if err := s.Trail.Append(ctx, e); err != nil {
		return fmt.Errorf("audit %s: %w", e.Act, err)
	}
	return nil
}

// directoryNamed returns the configured directory of that name, or nil.
func (s *Service) directoryNamed(name string) Directory {
	for _, d := range s.Directories {
		if d.Name() == name {
			return d
		}
	}
	return nil
}
