// Package directory reads people and their groups from LDAP and Active Directory.
// It never writes. It is the only package that knows LDAP.
package directory

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Errors that Directory's methods return, wrapped with what was being done.
// Any other error means that the directory answered, but not in a way that may
// be relied on: nobody is signed in and no session is ended because of it.
var (
	// ErrNotFound: no entry, or none with this id; of Members, no such group.
	ErrNotFound = errors.New("no such person")
	// ErrAmbiguous: a login or username matches two entries; nobody is signed in.
	ErrAmbiguous = errors.New("more than one entry matches")
	// ErrInvalidCredentials: the directory refused the password. It is an answer,
	// never a reason to try another host.
	ErrInvalidCredentials = errors.New("invalid credentials")
	// ErrUnavailable: no host of the directory gave an answer in time.
	ErrUnavailable = errors.New("directory unavailable")
	// ErrLost: a password was sent and no answer came. Bind does not send it again,
	// because the directory may count a wrong one twice; who calls Bind again reaches
	// another host, where there is one. It comes with ErrUnavailable.
	ErrLost = errors.New("the answer to a bind was lost")
	// ErrBusy: too many look around in the directory at once (Search, Members); a
	// moment later it may go. It comes with ErrUnavailable.
	ErrBusy = errors.New("too many searches at once: try again in a moment")
	// ErrUnusable: the person's entry lacks what a token needs, or holds what no
	// token may hold.
	ErrUnusable = errors.New("entry cannot be used")
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
	Username  string // as it goes into tokens: NFC, trimmed, usernamePrefix added
	Name      string // display name; Username when the directory has none
	Email     string
	State     State
	// PasswordChanged is when the password was last set; zero when not known.
	PasswordChanged time.Time

	uids         []string // what a posixGroup's memberUid names
	primaryGroup string   // AD: the primary group's SID
	memberOf     []string // DNs of the groups that name the person; where the server keeps it
	// OpenLDAP: since when it is locked (zero: until somebody unlocks it), by
	// which policy, and its state without that.
	lockedSince time.Time
	policyDN    string
	unlocked    State
}

// Sub is the person's subject identifier: "<directory>.<id>".
func (p Person) Sub() string { return p.Directory + "." + p.ID }

// Group is a directory group that a person is in.
type Group struct {
	Name string // with the directory's prefix, e.g. "corp:devs"
	DN   string
	// Path holds DNs from the first group the person is in to this one, both
	// included; this one alone where the directory does not show the way. Only
	// Explain fills it.
	Path []string

	own string // its name before groups.prefix and groups.rename
}

// Directory reads one configured directory. Its methods may be called from
// many goroutines. A call whose context has no deadline gets 5 s.
type Directory struct {
	cfg          Config
	bindPassword string
	tls          *tls.Config
	foreign      []string // username prefixes of other directories, refused here
	nobody       string   // a name that no entry has
	policy       lockoutMemory

	learned  atomic.Pointer[schema] // nil until the first connection
	members  memberAttributes
	sids     sidCache
	used     atomic.Bool
	searches *pool // bound as the service account
	finds    *pool // so as well, for Search; see browse
	lists    *pool // and for Members
	binds    *pool // bound as whoever signed in last; nothing is searched on them

	// See the constants; tests of other things than these have more.
	patience, callTime, searchTime, membersTime, hostTime, slowSearch time.Duration

	lookupSRV func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	stop      context.CancelFunc // of watching
	watching  sync.WaitGroup

	mu           sync.Mutex
	known        []*host // as configured, or as DNS orders them; replaced, never changed
	resolved     time.Time
	refusal      error // of bindDN's password; not asked again until refusedUntil
	refusedUntil time.Time
	refusalTime  time.Duration
}

// New makes a Directory from cfg and reads its CA and password files. It asks
// no server, so it works while the directory is down; Close ends what it starts.
// All are the directories of the whole configuration: where another has a
// usernamePrefix and this one has none, a username here that begins with that
// prefix is refused.
func New(cfg Config, all ...Config) (*Directory, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Directory{
		cfg: cfg, bindPassword: cfg.BindPassword, nobody: "tabard-nobody-" + uuid.NewString(),
		searches: newPool(maxSearches, maxSearches, idleTimeout), finds: newPool(maxBrowsers, maxBrowsers, idleTimeout),
		lists: newPool(maxBrowsers, maxBrowsers, idleTimeout), binds: newPool(maxBinds, maxIdleBinds, bindIdle),
		lookupSRV: net.DefaultResolver.LookupSRV,
		patience:  patience, callTime: defaultBudget, searchTime: searchTime, membersTime: membersTime, hostTime: hostTime, slowSearch: slowSearch,
		tls: &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(0)},
	}
	for i := range all {
		u := &all[i].Users
		if all[i].Name != cfg.Name && u.UsernamePrefix != "" && cfg.Users.UsernamePrefix == "" && !apartBySuffix(u, &cfg.Users) {
			d.foreign = append(d.foreign, strings.ToLower(u.UsernamePrefix))
		}
	}
	path := "directories[" + cfg.Name + "]"
	if cfg.BindPasswordFile != "" {
		b, err := os.ReadFile(cfg.BindPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("%s.bindPasswordFile: %w", path, err)
		}
		if d.bindPassword = string(bytes.TrimRight(b, "\r\n")); d.bindPassword == "" {
			return nil, fmt.Errorf("%s.bindPasswordFile: %s is empty", path, cfg.BindPasswordFile)
		}
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%s.caFile: %w", path, err)
		}
		d.tls.RootCAs = x509.NewCertPool()
		if !d.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s.caFile: %s holds no certificate in PEM form", path, cfg.CAFile)
		}
	}
	for _, raw := range cfg.URLs {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("%s.urls: %w", path, err)
		}
		d.known = append(d.known, newHost(u))
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.watching.Go(func() { d.watch(ctx) })
	return d, nil
}

// Name is the directory's name in the configuration.
func (d *Directory) Name() string { return d.cfg.Name }

// Prefix is what every group name of the directory begins with.
func (d *Directory) Prefix() string { return d.cfg.GroupPrefix() }

// Close ends the health checks and closes the pooled connections. Calls that
// still run end by themselves.
func (d *Directory) Close() {
	d.stop()
	d.watching.Wait()
	for _, p := range d.pools() {
		p.close()
	}
}

func (d *Directory) pools() []*pool { return []*pool{d.searches, d.finds, d.lists, d.binds} }

// Ping says whether a host answers, lets the service account in and shows it
// the base DNs of users and groups.
func (d *Directory) Ping(ctx context.Context) error {
	ctx, cancel := d.budget(ctx)
	defer cancel()
	s, err := d.schema(ctx)
	if err != nil {
		return d.failed("connect", err)
	}
	for _, base := range []struct{ key, dn string }{{"users", s.users.BaseDN}, {"groups", s.groups.BaseDN}} {
		found, err := d.search(ctx, entryQuery(base.dn, "1.1"))
		if err == nil && len(found) == 0 {
			err = errors.New("it does not exist or bindDN may not read it")
		}
		if err != nil {
			return d.failed(fmt.Sprintf("read directories[%s].%s.baseDN (%s)", d.cfg.Name, base.key, base.dn), err)
		}
	}
	return nil
}

// schema returns what is known of the server, and connects when that is
// nothing yet.
func (d *Directory) schema(ctx context.Context) (*schema, error) {
	if s := d.learned.Load(); s != nil {
		return s, nil
	}
	err := d.do(ctx, func(*conn) error { return nil })
	return d.learned.Load(), err
}

// budget gives ctx a deadline when it has none.
func (d *Directory) budget(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d.callTime)
}

// failed wraps err with the directory and what was being done.
func (d *Directory) failed(doing string, err error) error {
	return fmt.Errorf("directory %s: %s: %w", d.cfg.Name, doing, err)
}
