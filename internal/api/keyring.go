package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/zalando/go-keyring"
)

// ring is the keyring of the operating system. It holds refresh tokens alone:
// Windows takes no more than 2,560 bytes.
type ring struct {
	use     bool // for new logins
	timeout time.Duration
	set     func(service, user, secret string) error
	get     func(service, user string) (string, error)
	delete  func(service, user string) error
}

const ringService = "tabard"

// systemKeyring is used for new logins unless TABARD_KEYRING is off, or it could
// not work: on Linux and the BSDs without a session bus.
func systemKeyring() ring {
	r := ring{timeout: 3 * time.Second, set: keyring.Set, get: keyring.Get, delete: keyring.Delete}
	r.use = os.Getenv("TABARD_KEYRING") != "off" && (runtime.GOOS == "darwin" || runtime.GOOS == "windows" || hasSessionBus())
	return r
}

func hasSessionBus() bool {
	if bus := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); bus != "" {
		return !strings.HasPrefix(bus, "autolaunch:")
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	_, err := os.Stat(filepath.Join(dir, "bus"))
	return dir != "" && err == nil
}

// NoKeyring keeps the refresh tokens of new logins in the cache's files.
func (c *Cache) NoKeyring() { c.ring.use = false }

func (c *Cache) ringKey(a Account) string { return a.Server + " " + a.User + " " + c.dir }

// put stores a secret; when that fails it leaves none behind.
func (r ring) put(key, secret string) error {
	_, err := r.within(func() (string, error) {
		err := r.set(ringService, key, secret)
		if err != nil {
			_ = r.delete(ringService, key) // an older one; it may not be there
		}
		return "", err
	})
	return err
}

// secret returns what put stored. ErrSignInAgain: it is gone.
func (r ring) secret(key string) (string, error) {
	s, err := r.within(func() (string, error) { return r.get(ringService, key) })
	switch {
	case errors.Is(err, keyring.ErrNotFound) || err == nil && s == "":
		return "", ErrSignInAgain
	case err != nil:
		return "", fmt.Errorf("the keyring does not give the login: unlock it, or sign in again with --no-keyring: %w", err)
	}
	return s, nil
}

func (r ring) drop(key string) error {
	_, err := r.within(func() (string, error) { return "", r.delete(ringService, key) })
	if errors.Is(err, keyring.ErrNotFound) {
		return nil
	}
	return err
}

// dropSecret takes the refresh token of l out of the keyring.
func (c *Cache) dropSecret(l Login) {
	if !l.Keyring {
		return
	}
	if err := c.ring.drop(c.ringKey(l.account())); err != nil {
		c.tell("the refresh token could not be taken out of the keyring: %v", err)
	}
}

// within calls do and gives up after the time-out: a locked keyring waits for
// somebody to unlock it. The call itself cannot be ended; it ends with the process.
func (r ring) within(do func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	s, answered, err := await(ctx, do)
	if !answered {
		err = fmt.Errorf("no answer within %s", r.timeout)
	}
	return s, err
}
