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
	"time"

	"github.com/gofrs/flock"
)

// ErrNoLogin: nobody has signed in to that server on this account.
var ErrNoLogin = errors.New("not signed in: sign in with `tabard login`")

// Login is what the cache keeps of one server.
type Login struct {
	Server       string    `json:"server"`       // issuer URL, see ServerURL
	CA           string    `json:"ca,omitempty"` // PEM, trusted besides the system's roots
	IDToken      string    `json:"idToken,omitempty"`
	RefreshToken string    `json:"refreshToken,omitempty"`
	Expiry       time.Time `json:"expiry,omitzero"` // of IDToken, by this machine's clock
}

// lifetimeMargin is how much life an id_token must have left to be used without
// a refresh.
const lifetimeMargin = 30 * time.Second

func (l Login) usable(margin time.Duration) bool {
	return l.IDToken != "" && time.Until(l.Expiry) > margin
}

// Cache keeps logins in files of their own, which only the person can read. It
// is shared by all processes of the person; a lock is held across each refresh.
type Cache struct{ dir string }

// OpenCache returns the cache in dir, or in the person's cache folder when dir is
// empty.
func OpenCache(dir string) (*Cache, error) {
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find the cache folder: %w: set HOME or XDG_CACHE_HOME", err)
		}
		dir = filepath.Join(base, "tabard")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the token cache: %w", err)
	}
	return &Cache{dir: dir}, nil
}

func (c *Cache) path(server, ext string) string {
	sum := sha256.Sum256([]byte(server))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:8])+ext)
}

// Load returns the login at server, or ErrNoLogin.
func (c *Cache) Load(server string) (Login, error) {
	b, err := os.ReadFile(c.path(server, ".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Login{}, ErrNoLogin
	}
	if err != nil {
		return Login{}, fmt.Errorf("read the token cache: %w", err)
	}
	var l Login
	if json.Unmarshal(b, &l) != nil || l.Server != server {
		return Login{}, ErrNoLogin
	}
	return l, nil
}

// Save stores l and remembers its server as the last one.
func (c *Cache) Save(l Login) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode the login: %w", err)
	}
	if err := c.write(c.path(l.Server, ".json"), b); err != nil {
		return err
	}
	return c.write(filepath.Join(c.dir, "last"), []byte(l.Server))
}

// write replaces a file in one step, so that a reader sees the old or the new.
func (c *Cache) write(path string, b []byte) error {
	f, err := os.CreateTemp(c.dir, ".new-") // mode 0600
	if err != nil {
		return fmt.Errorf("write the token cache: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the token cache: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// Remove forgets the login at server. Forgetting none is no error.
func (c *Cache) Remove(server string) error {
	if err := os.Remove(c.path(server, ".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the login: %w", err)
	}
	return nil
}

// Last returns the server of the last sign-in, or "".
func (c *Cache) Last() string {
	b, _ := os.ReadFile(filepath.Join(c.dir, "last"))
	return string(b)
}

// lock takes the lock of one server, waiting until ctx ends.
func (c *Cache) lock(ctx context.Context, server string) (unlock func(), err error) {
	l := flock.New(c.path(server, ".lock"), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("another command holds the token cache: wait for it or end it: %w", err)
	}
	return func() { l.Close() }, nil
}

// Token returns an id_token of server that lives for a while yet, refreshing it
// first when needed. Of many callers at once, in any process, one refreshes.
// Errors: ErrNoLogin, ErrSignInAgain, *TemporaryError.
func (c *Cache) Token(ctx context.Context, server string) (string, error) {
	if l, err := c.Load(server); err != nil || l.usable(lifetimeMargin) {
		return l.IDToken, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	unlock, err := c.lock(ctx, server)
	if err != nil {
		return "", err
	}
	defer unlock()
	l, err := c.Load(server) // again: whoever held the lock may have refreshed
	if err != nil || l.usable(lifetimeMargin) {
		return l.IDToken, err
	}
	return c.refresh(ctx, l)
}

// refresh is called under the lock.
func (c *Cache) refresh(ctx context.Context, l Login) (string, error) {
	if l.RefreshToken == "" {
		return "", ErrSignInAgain
	}
	next, err := Refresh(ctx, l)
	var temporary *TemporaryError
	switch {
	case err == nil:
		return next.IDToken, c.Save(next)
	case errors.As(err, &temporary) && l.usable(0):
		return l.IDToken, nil
	case errors.Is(err, ErrSignInAgain):
		l.IDToken, l.RefreshToken = "", "" // the CA stays for the next sign-in
		return "", errors.Join(err, c.Save(l))
	}
	return "", err
}

// Client returns a Client that acts as the person signed in to server.
func (c *Cache) Client(server string) (*Client, error) {
	l, err := c.Load(server)
	if err != nil {
		return nil, err
	}
	hc, err := HTTPClient(l.CA)
	if err != nil {
		return nil, err
	}
	return NewClient(server, hc, func(ctx context.Context) (string, error) { return c.Token(ctx, server) }), nil
}

// Logout revokes the login at server and forgets it. What could not be revoked is
// forgotten all the same, and the error says so.
func (c *Cache) Logout(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	unlock, err := c.lock(ctx, server)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := c.Load(server)
	if err != nil {
		return err
	}
	if l.RefreshToken != "" {
		if err = revoke(ctx, l); err != nil {
			err = fmt.Errorf("signed out here, but the server could not be told, so the session lasts until it times out: %w", err)
		}
	}
	return errors.Join(err, c.Remove(server))
}
