package idp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// Credentials is what a person typed.
type Credentials struct {
	Login, Password string
	Directory       string // chosen by the person; "" when they were not asked
}

// SignedIn is a finished sign-in.
type SignedIn struct {
	Cookie   string // value of the browser's session cookie
	Redirect string // to the client with a code; "" without a request
}

// loginBudget bounds what directories do to find a person, and again what one does
// to let them in or to tell about them for a refresh.
const loginBudget = 5 * time.Second

// SignIn checks c and starts a session; with req it also issues a code for its
// client. Errors: ErrCredentials, *ChooseDirectoryError, ErrUnavailable,
// *TooManyError, *directory.AccountError, ErrNoAccess; all others are faults of ours.
func (s *Service) SignIn(ctx context.Context, c Credentials, req *AuthRequest) (SignedIn, error) {
	p, dirGroups, try, err := s.authenticate(ctx, c)
	var choose *ChooseDirectoryError
	if errors.As(err, &choose) {
		return SignedIn{}, err // not a try yet
	}
	if err != nil {
		return SignedIn{}, cmp.Or(s.recordFailure(ctx, p, err), err) // no trail, no answer about a password
	}
	sess := s.startSession(ctx, p, dirGroups, s.Now())
	sess.try = try
	defer func() {
		if sess.try != nil { // no session was started, but the password was right
			sess.try.end(ctx, false)
		}
	}()
	done := SignedIn{Cookie: sess.giveCookie()}
	event := audit.Event{Act: "login", Outcome: audit.Done, Detail: map[string]string{"directory": p.Directory}}
	if req == nil {
		if err := s.record(ctx, event, sess); err != nil {
			return SignedIn{}, err
		}
		return done, s.putSession(ctx, sess)
	}
	client, err := s.Client(req.ClientID)
	if err != nil {
		return SignedIn{}, err
	}
	event.Client, event.Cluster = client.ID, client.Cluster
	if err := s.record(ctx, event, sess); err != nil {
		return SignedIn{}, err
	}
	done.Redirect, err = s.issueCode(ctx, sess, client, req)
	return done, err
}

// putSession keeps sess, unless it has been written since it was read. The first write
// of a session also ends the try of the password that started it.
func (s *Service) putSession(ctx context.Context, sess *Session) error {
	op, err := s.op(sess)
	if err != nil {
		return err
	}
	write := s.txn
	if sess.try != nil {
		write = sess.try.commit
	}
	revision, err := write(ctx, []store.Cond{sess.cond()}, []store.Op{op})
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	sess.revision, sess.try = revision, nil
	return nil
}

// recordFailure leaves the failed sign-in in the trail. What was typed as login
// may be a password in the wrong field, so it stands there only if a person of
// that name was found. The reason is in fixed words: the directory's own may hold
// what was typed.
func (s *Service) recordFailure(ctx context.Context, p directory.Person, cause error) error {
	e := audit.Event{Act: "login", Outcome: audit.Denied, Reason: ErrCredentials.Error(), Name: p.Username}
	if p.ID != "" {
		e.Who = p.Sub()
	}
	var account *directory.AccountError
	switch {
	case errors.Is(cause, ErrTooMany):
		e.Reason = "throttled"
	case errors.Is(cause, ErrUnavailable):
		e.Outcome, e.Reason = audit.Failed, ErrUnavailable.Error()
	case errors.As(cause, &account):
		e.Reason = account.Error()
	}
	return s.record(ctx, e, nil)
}

// authenticate finds the person, binds as them, and reads their groups. The
// directory does the same work for an unknown login as for a wrong password. The
// try stays reserved until the session is written.
func (s *Service) authenticate(ctx context.Context, c Credentials) (directory.Person, []string, *attempt, error) {
	if strings.TrimSpace(c.Login) == "" || c.Password == "" || len(c.Login) > 256 || len(c.Password) > 1024 {
		return directory.Person{}, nil, nil, ErrCredentials
	}
	leave, err := s.admit(ctx, audit.OriginOf(ctx).Address)
	if err != nil {
		return directory.Person{}, nil, nil, err
	}
	defer leave()
	d, p, err := s.find(ctx, c)
	if err != nil {
		return p, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	try, err := s.try(ctx, d, p, c)
	if errors.Is(err, directory.ErrLost) { // counted; another host may hear a second one
		if again, second := s.try(ctx, d, p, c); !errors.Is(second, ErrTooMany) {
			try, err = again, second
		}
	}
	if err != nil {
		return p, nil, nil, err
	}
	if !try.reserved {
		try.leave()
	}
	names, err := s.activeGroups(ctx, d, p)
	if err != nil {
		try.end(ctx, false)
		return p, nil, nil, err
	}
	return p, names, try, nil
}

// try binds with the password as one reserved try. One that comes without an answer
// counts, because the directory may have counted it.
func (s *Service) try(ctx context.Context, d Directory, p directory.Person, c Credentials) (*attempt, error) {
	try, err := s.reserve(ctx, d, s.accountKey(p, c.Login))
	if err != nil {
		return nil, err
	}
	if err := checkPassword(ctx, d, p, c.Password); err != nil {
		var account *directory.AccountError
		try.end(ctx, !errors.As(err, &account))
		return nil, err
	}
	return try, nil
}

// checkPassword binds as p, or as nobody where p was not found.
func checkPassword(ctx context.Context, d Directory, p directory.Person, password string) error {
	if p.ID != "" {
		return signInError(d.Bind(ctx, p.DN, password))
	}
	err := d.Bind(ctx, d.DummyDN(), password)
	if err == nil || errors.Is(err, directory.ErrInvalidCredentials) {
		return ErrCredentials
	}
	return signInError(err)
}

// activeGroups reads the directory groups of a person who showed their password.
func (s *Service) activeGroups(ctx context.Context, d Directory, p directory.Person) ([]string, error) {
	if p.State == directory.Locked {
		// OpenLDAP takes a lock that has run out away at the bind, so what was
		// read before is old.
		var err error
		if p, err = d.Lookup(ctx, p.ID); err != nil {
			return nil, signInError(err)
		}
	}
	if p.State != directory.Active {
		return nil, &directory.AccountError{State: p.State}
	}
	return s.directoryGroups(ctx, d, p)
}

// find returns the one directory that knows the login, and the person. A person
// without ID means that nobody was found; the directory is then the one to do the
// work of a bind in.
//
// While a directory does not answer, people found in another one still get in:
// usernames of different directories cannot collide. Each has its share of the time.
func (s *Service) find(ctx context.Context, c Credentials) (Directory, directory.Person, error) {
	var in []Directory
	var found directory.Person
	var down error
	for _, d := range s.Directories {
		if c.Directory != "" && c.Directory != d.Name() {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, loginBudget/time.Duration(len(s.Directories)))
		p, err := d.Find(ctx, c.Login)
		cancel()
		switch {
		case err == nil:
			in, found = append(in, d), p
		case errors.Is(err, directory.ErrNotFound):
		case errors.Is(err, directory.ErrAmbiguous), errors.Is(err, directory.ErrUnusable):
			// To whoever types, as good as unknown: they have not shown a password.
			s.Log.WithError(err).WithField("directory", d.Name()).Warn("sign-in refused: put the person's entry right")
		default:
			down = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	switch {
	case len(in) == 1:
		return in[0], found, nil
	case len(in) > 1:
		choose := &ChooseDirectoryError{}
		for _, d := range in {
			choose.Names = append(choose.Names, d.Name())
		}
		return nil, directory.Person{}, choose
	case down != nil:
		return nil, directory.Person{}, down
	}
	if d := s.directoryNamed(c.Directory); d != nil {
		return d, directory.Person{}, nil
	}
	return s.Directories[0], directory.Person{}, nil
}

// directoryGroups reads the names of p's directory groups. Whatever goes wrong is
// an outage: a shortened list would be a wrong answer.
func (s *Service) directoryGroups(ctx context.Context, d Directory, p directory.Person) ([]string, error) {
	gs, err := d.Groups(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("%w: groups: %w", ErrUnavailable, err)
	}
	return groupNames(gs), nil
}

func groupNames(gs []directory.Group) []string {
	names := make([]string, len(gs))
	for i, g := range gs {
		names[i] = g.Name
	}
	return names
}

// signInError turns the directory's answer to a bind into ours.
func signInError(err error) error {
	var account *directory.AccountError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, directory.ErrInvalidCredentials):
		return ErrCredentials
	case errors.As(err, &account):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// FindPerson looks up someone by what they type at sign-in, or by sub.
// directory.ErrNotFound, directory.ErrAmbiguous (also when found in several
// directories), ErrUnavailable.
func (s *Service) FindPerson(ctx context.Context, loginOrSub string) (directory.Person, error) {
	ctx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	if name, id, ok := strings.Cut(loginOrSub, "."); ok {
		if d := s.directoryNamed(name); d != nil {
			if p, err := d.Lookup(ctx, id); err == nil || !errors.Is(err, directory.ErrNotFound) {
				return p, outage(err)
			}
		}
	}
	var found []directory.Person
	for _, d := range s.Directories {
		p, err := d.Find(ctx, loginOrSub)
		switch {
		case err == nil:
			found = append(found, p)
		case !errors.Is(err, directory.ErrNotFound):
			return directory.Person{}, outage(err)
		}
	}
	switch len(found) {
	case 0:
		return directory.Person{}, directory.ErrNotFound
	case 1:
		return found[0], nil
	}
	return directory.Person{}, fmt.Errorf("%w: found in several directories", directory.ErrAmbiguous)
}

// outage marks as ErrUnavailable what is no answer about a person.
func outage(err error) error {
	if err == nil || errors.Is(err, directory.ErrNotFound) || errors.Is(err, directory.ErrAmbiguous) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// reread asks the directory about the session's person and returns what to put
// into the session (which may have to be read again after a conflict).
// ErrNoSession says that the session was ended: the person is gone, may not sign in
// any more, or has a new password. ErrNoAccess and ErrUnavailable leave it as it is,
// but for an outage whose policy lets it go on from what was last known.
func (s *Service) reread(ctx context.Context, sess *Session) (func(*Session), error) {
	dirCtx, cancel := context.WithTimeout(ctx, loginBudget)
	defer cancel()
	d := s.directoryNamed(sess.Directory)
	p, err := d.Lookup(dirCtx, sess.PersonID)
	switch {
	case errors.Is(err, directory.ErrNotFound):
		return nil, s.endAs(ctx, sess, "no longer in the directory")
	case errors.Is(err, directory.ErrUnusable), errors.Is(err, directory.ErrAmbiguous):
		return nil, fmt.Errorf("%w: %w", ErrNoAccess, err)
	}
	var dirGroups []string
	if err == nil {
		if why := refusal(sess, p); why != "" {
			return nil, s.endAs(ctx, sess, why)
		}
		dirGroups, err = s.directoryGroups(dirCtx, d, p)
	}
	now := s.Now()
	if err == nil {
		return func(sess *Session) { sess.take(p, dirGroups, now) }, nil
	}
	silent := errors.Is(err, directory.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
	if known := s.cfg.Outage[sess.Directory]; silent && known > 0 && now.Sub(sess.ReadAt) <= known {
		s.Log.WithError(err).WithField("sid", sess.ID).Warn("directory does not answer: the session goes on from what was last known")
		return func(sess *Session) { sess.stale = true }, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// refusal says why the person of a session may not go on, or "".
func refusal(sess *Session, p directory.Person) string {
	if p.State != directory.Active {
		return (&directory.AccountError{State: p.State}).Error()
	}
	if !sess.PasswordChanged.IsZero() && p.PasswordChanged.After(sess.PasswordChanged) {
		return "password changed since sign-in"
	}
	return ""
}

func (s *Service) endAs(ctx context.Context, sess *Session, why string) error {
	if sess.recalled {
		if _, err := s.session(ctx, sess.ID); err != nil {
			return err
		}
	}
	if err := s.endSession(ctx, sess, why); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrNoSession, why)
}
