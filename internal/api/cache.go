package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// ErrNoLogin: nobody has signed in to that server on this account.
var ErrNoLogin = errors.New("not signed in: sign in with `tabard login` or `kubectl tabard login`")

// Account names a login in the cache.
type Account struct {
	Server string // as ServerURL returns it
	User   string // as given with --username; "" is the last one who signed in there
}

// Login is what the cache keeps of one account.
type Login struct {
	Server       string           `json:"server"`
	User         string           `json:"user,omitempty"`
	CA           string           `json:"ca,omitempty"` // PEM, trusted besides the system's roots
	Token        Token            `json:"token"`
	RefreshToken string           `json:"refreshToken,omitempty"`
	Keyring      bool             `json:"keyring,omitempty"` // the refresh token is there, not here
	Clusters     map[string]Token `json:"clusters,omitempty"`

	moreCA string // PEM, of Cache.MoreCA
}

// roots are the certificates that are trusted besides the system's.
func (l Login) roots() string { return strings.TrimSpace(l.CA + "\n" + l.moreCA) }

func (l Login) account() Account { return Account{l.Server, l.User} }

// Token is an id_token as the cache keeps it.
type Token struct {
	Raw    string    `json:"raw,omitempty"`
	Expiry time.Time `json:"expiry,omitzero"` // by this machine's clock
	Renew  time.Time `json:"renew,omitzero"`  // from when on a new one is asked for
}

func (t Token) fresh() bool { return t.Raw != "" && time.Now().Before(t.Renew) }
func (t Token) alive() bool { return t.Raw != "" && time.Now().Before(t.Expiry) }

// Cache keeps logins in files of their own, which only the person can read, and
// refresh tokens in the keyring where there is one. It is shared by all processes
// of the person: a lock is held across each refresh. What cannot be kept on disk
// is kept as long as the process lives.
type Cache struct {
	// Wait bounds how long the lock is waited for, and how long a refresh with its
	// exchange may take.
	Wait time.Duration
	// MoreCA, PEM, is trusted besides what was trusted at the sign-in: the server may
	// have a new CA since.
	MoreCA string

	dir  string // "": there is none
	warn func(string)
	ring ring

	mu   sync.Mutex
	kept map[string]Login // by path: what could not be written
	told map[string]bool  // warnings that were given
}

// OpenCache returns the cache in dir, or in the person's cache folder when dir is
// empty. When there can be no such folder, the error says why and the Cache is in
// memory alone. warn is told, once each, of broken files and the like; it may be nil.
func OpenCache(dir string, warn func(string)) (*Cache, error) {
	c := &Cache{Wait: 30 * time.Second, warn: warn, ring: systemKeyring(), kept: map[string]Login{}, told: map[string]bool{}}
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return c, fmt.Errorf("find the cache folder: %w: set HOME or XDG_CACHE_HOME, or use --cache-dir", err)
		}
		dir = filepath.Join(base, "tabard")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return c, fmt.Errorf("make the token cache: %w: use --cache-dir with a folder that can be written", err)
	}
	c.dir = dir
	return c, nil
}

func (c *Cache) tell(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	c.mu.Lock()
	told := c.told[msg]
	c.told[msg] = true
	c.mu.Unlock()
	if c.warn != nil && !told {
		c.warn(msg)
	}
}

func (c *Cache) path(a Account, ext string) string {
	sum := sha256.Sum256([]byte(a.Server + "\n" + strings.ToLower(a.User)))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:8])+ext)
}

// whose is a with the name of the last one who signed in, where it has none.
func (c *Cache) whose(a Account) Account {
	if a.User == "" && c.dir != "" {
		b, _ := os.ReadFile(c.path(a, ".user")) // absent: the one without a name
		a.User = string(b)
	}
	return a
}

// Load returns the login of a, or ErrNoLogin. A file that is broken, or that
// others could read, is none.
func (c *Cache) Load(a Account) (Login, error) {
	a = c.whose(a)
	path := c.path(a, ".json")
	c.mu.Lock()
	l, ok := c.kept[path]
	c.mu.Unlock()
	l.moreCA = c.MoreCA
	if ok {
		return l, nil
	}
	if c.dir == "" {
		return Login{}, ErrNoLogin
	}
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Login{}, ErrNoLogin
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	switch {
	case err != nil:
		c.tell("the token cache %s cannot be read and counts as signed out: %v", path, err)
	case runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0:
		c.tell("other accounts could read the token cache %s, so it counts as signed out: sign in again, and end your sessions if it was read", path)
	case json.Unmarshal(b, &l) != nil || l.Server != a.Server || !strings.EqualFold(l.User, a.User):
		c.tell("the token cache %s is damaged and counts as signed out", path)
	default:
		return l, nil
	}
	return Login{}, ErrNoLogin
}

// CA returns the certificates, PEM, that the server of a was last reached with.
func (c *Cache) CA(a Account) string {
	for _, who := range []Account{a, {Server: a.Server}} {
		if l, err := c.Load(who); err == nil && l.CA != "" {
			return l.CA
		}
	}
	return ""
}

// Add stores a new login and makes it the one that is used when nobody is named.
func (c *Cache) Add(ctx context.Context, l Login) error {
	unlock, err := c.lock(ctx, l.account())
	if err != nil {
		return err
	}
	defer unlock()
	return c.add(&l)
}

// add is Add under the lock.
func (c *Cache) add(l *Login) error {
	l.Keyring = c.ring.use
	if old, err := c.Load(l.account()); err == nil && !l.Keyring {
		c.dropSecret(old)
	}
	err := c.save(l)
	if err == nil {
		err = c.write(c.path(Account{Server: l.Server}, ".user"), []byte(l.User))
	}
	if err == nil {
		err = c.write(filepath.Join(c.dir, "last"), []byte(l.Server))
	}
	return err
}

// save writes l, its refresh token into the keyring if l says so and that works;
// l is then as it was written.
func (c *Cache) save(l *Login) error {
	if l.Keyring && l.RefreshToken != "" {
		if err := c.ring.put(c.ringKey(l.account()), l.RefreshToken); err == nil {
			l.RefreshToken = ""
		} else {
			c.tell("the keyring does not take the login, so it is kept in a file: %v", err)
			l.Keyring = false
		}
	}
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode the login: %w", err)
	}
	return c.write(c.path(l.account(), ".json"), b)
}

// keep is save, or memory where nothing can be written.
func (c *Cache) keep(l *Login, save func(*Login) error) {
	if err := save(l); err != nil {
		c.tell("the login cannot be kept: %v", err)
		c.mu.Lock()
		c.kept[c.path(l.account(), ".json")] = *l
		c.mu.Unlock()
	}
}

// write replaces a file in one step, so that a reader sees the old or the new.
func (c *Cache) write(path string, b []byte) error {
	if c.dir == "" {
		return errors.New("there is no folder for the token cache")
	}
	f, err := os.CreateTemp(c.dir, ".new-") // mode 0600
	if err != nil {
		return fmt.Errorf("write the token cache: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if fi, no := os.Lstat(path); err == nil && no == nil && fi.IsDir() {
		err = os.Rename(path, f.Name()+".folder") // something put it where a file belongs
	}
	if err == nil {
		err = rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the token cache: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// rename is os.Rename, tried again on Windows, where a file that somebody reads at
// this moment cannot be replaced.
func rename(from, to string) error {
	err := os.Rename(from, to)
	for try := 0; err != nil && runtime.GOOS == "windows" && try < 50; try++ {
		time.Sleep(10 * time.Millisecond)
		err = os.Rename(from, to)
	}
	return err
}

// remove forgets the login l, in the keyring too.
func (c *Cache) remove(l Login) error {
	c.dropSecret(l)
	path := c.path(l.account(), ".json")
	c.mu.Lock()
	delete(c.kept, path)
	c.mu.Unlock()
	if c.dir == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the login: %w", err)
	}
	return nil
}

// Last returns the server of the last sign-in, or "".
func (c *Cache) Last() string {
	if c.dir == "" {
		return ""
	}
	b, _ := os.ReadFile(filepath.Join(c.dir, "last"))
	return string(b)
}

// lock takes the lock of one account, waiting until c.Wait is over or ctx ends.
// Where no lock file can be made it goes without.
func (c *Cache) lock(ctx context.Context, a Account) (unlock func(), err error) {
	if c.dir == "" {
		return func() {}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	path := c.path(a, ".lock")
	l := flock.New(path, flock.SetPermissions(0o600))
	_, err = l.TryLockContext(ctx, 20*time.Millisecond)
	switch {
	case err == nil:
		return func() { l.Close() }, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("another command, which may wait for somebody to sign in, holds the lock %s: let it finish or end it, then try again", path)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	c.tell("the token cache cannot be locked, so two commands may refresh at once: %v", err)
	return func() {}, nil
}
