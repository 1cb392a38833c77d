package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zalando/go-keyring"
)

// never fails the test when somebody is asked to sign in.
func never(t *testing.T) func(context.Context, Account, string) (Login, error) {
	return func(context.Context, Account, string) (Login, error) {
		t.Error("asked to sign in")
		return Login{}, errors.New("nobody is here")
	}
}

func TestClusterToken(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	for range 2 {
		got, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t))
		if err != nil || !lives(got, 4*time.Minute, 5*time.Minute) {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := readToken(got.Raw, f.URL, "kubernetes", ""); err != nil {
			t.Errorf("not for the audience of the cluster: %v", err)
		}
	}
	if f.refreshes.Load() != 1 || f.exchanges.Load() != 1 {
		t.Errorf("%d refreshes, %d exchanges", f.refreshes.Load(), f.exchanges.Load())
	}
	for _, cluster := range []string{"closed", "nowhere", "kubernetes"} {
		if _, err := c.ClusterToken(t.Context(), f.account(), cluster, never(t)); !errors.Is(err, ErrNoAccess) {
			t.Errorf("%s: %v", cluster, err)
		}
	}
}

// A refused id_token, or a login that is over, leads to one refresh or one sign-in.
func TestClusterTokenSignsInOnce(t *testing.T) {
	f := newFake(t)
	over := true
	f.token = func(w http.ResponseWriter, r *http.Request) {
		if over {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		f.answerToken(w, r)
	}
	c := cached(t, f)
	asked := 0
	signIn := func(_ context.Context, _ Account, ca string) (Login, error) {
		asked++
		if ca != f.ca() {
			t.Errorf("the CA is not known any more")
		}
		return f.login(), nil
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", signIn); !errors.Is(err, ErrSignInAgain) || asked != 1 {
		t.Fatalf("asked %d times, %v", asked, err)
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", nil); !errors.Is(err, ErrSignInAgain) {
		t.Fatalf("nobody to ask: %v", err)
	}
	over = false
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", signIn); err != nil || asked != 2 {
		t.Fatalf("asked %d times, %v", asked, err)
	}
	l := f.login()
	l.Token = Token{Raw: "refused", Expiry: time.Now().Add(time.Hour), Renew: time.Now().Add(time.Hour)}
	if err := c.Add(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err != nil {
		t.Errorf("the id_token alone was refused: %v", err)
	}
}

func TestClusterTokenInAnOutage(t *testing.T) {
	f := newFake(t)
	f.token = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	c := cached(t, f)
	var temporary *TemporaryError
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); !errors.As(err, &temporary) {
		t.Fatal(err)
	}
	l, _ := c.Load(f.account())
	if l.RefreshToken != "refresh-0" {
		t.Fatalf("the login is gone: %+v", l)
	}
	l.Token = Token{Raw: f.idToken(clientID), Expiry: time.Now().Add(time.Hour), Renew: time.Now().Add(time.Hour)}
	l.Clusters = map[string]Token{"prod": {Raw: "lives", Expiry: time.Now().Add(time.Hour), Renew: time.Now().Add(-time.Second)}}
	if err := c.Add(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err != nil || got.Raw != "lives" {
		t.Errorf("the last token has not expired: %+v, %v", got, err)
	}
	f.CloseClientConnections()
	f.Config.Handler = http.NotFoundHandler() // a proxy that lost its way is no reason to sign in
	if _, err := c.Token(t.Context(), f.account()); err != nil {
		t.Error(err)
	}
}

func TestBrokenCache(t *testing.T) {
	for name, breakIt := range map[string]func(path string) error{
		"truncated": func(p string) error { return os.Truncate(p, 40) },
		"no JSON":   func(p string) error { return os.WriteFile(p, []byte("\x00\x01"), 0o600) },
		"another's": func(p string) error { return os.WriteFile(p, []byte(`{"server":"https://evil.example"}`), 0o600) },
		"readable":  func(p string) error { return os.Chmod(p, 0o644) },
		"a folder": func(p string) error {
			return errors.Join(os.Remove(p), os.MkdirAll(filepath.Join(p, "in"), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			c := cached(t, f)
			path := c.path(f.account(), ".json")
			if err := breakIt(path); err != nil {
				t.Fatal(err)
			}
			var said []string
			c, err := OpenCache(c.dir, func(m string) { said = append(said, m) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", nil); !errors.Is(err, ErrNoLogin) {
				t.Errorf("read as %v", err)
			}
			if len(said) != 1 || !strings.Contains(said[0], path) {
				t.Errorf("warned of %q", said)
			}
			signIn := func(context.Context, Account, string) (Login, error) { return f.login(), nil }
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", signIn); err != nil {
				t.Fatal(err)
			}
			if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 {
				t.Errorf("it was not replaced: %v %v", fi.Mode(), err)
			}
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoPlaceForTheCache(t *testing.T) {
	f := newFake(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() (*Cache, error){
		"no HOME": func() (*Cache, error) {
			t.Setenv("HOME", "")
			t.Setenv("XDG_CACHE_HOME", "")
			return OpenCache("", nil)
		},
		"a file": func() (*Cache, error) { return OpenCache(filepath.Join(file, "cache"), nil) },
	} {
		c, err := open()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := c.ClusterToken(t.Context(), f.account(), "prod", nil); !errors.Is(err, ErrNoLogin) {
			t.Errorf("%s: %v", name, err)
		}
		asked := 0
		for range 2 {
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", func(context.Context, Account, string) (Login, error) { asked++; return f.login(), nil }); err != nil || asked != 1 {
				t.Errorf("%s: asked %d times, %v", name, asked, err)
			}
		}
		if err := c.Add(t.Context(), f.login()); err == nil {
			t.Errorf("%s: a login that cannot be kept was added", name)
		}
	}
}

// A folder that can be read alone: the login in it works, its refresh is not kept.
func TestReadOnlyCache(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	if err := os.Remove(c.path(f.account(), ".lock")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(c.dir, 0o700)
	if os.WriteFile(filepath.Join(c.dir, "x"), nil, 0o600) == nil {
		defer os.Remove(filepath.Join(c.dir, "x")) // root may write everywhere
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", nil); err != nil {
		t.Error(err)
	}
}

func TestLockedCache(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	unlock, err := c.lock(t.Context(), f.account())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	other, err := OpenCache(c.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.Wait = 100 * time.Millisecond
	for what, do := range map[string]func() error{
		"ClusterToken": func() error {
			_, err := other.ClusterToken(t.Context(), f.account(), "prod", never(t))
			return err
		},
		"Add":    func() error { return other.Add(t.Context(), f.login()) },
		"Logout": func() error { return other.Logout(t.Context(), f.account()) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), c.path(f.account(), ".lock")) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := other.Token(ctx, f.account()); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// Of many who have no login, one is asked and serves all.
func TestOneIsAsked(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			c, err := OpenCache(dir, nil)
			if err != nil {
				t.Error(err)
			}
			if _, err = c.ClusterToken(t.Context(), f.account(), "prod", func(context.Context, Account, string) (Login, error) {
				asked.Add(1)
				return f.login(), nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if asked.Load() != 1 {
		t.Errorf("%d were asked", asked.Load())
	}
}

func TestAccounts(t *testing.T) {
	f := newFake(t)
	c := cached(t, f)
	for _, user := range []string{"alice", "Bob"} {
		l := f.login()
		l.User, l.RefreshToken = user, "of "+user
		if err := c.Add(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for user, want := range map[string]string{"alice": "of alice", "ALICE": "of alice", "bob": "of Bob", "": "of Bob"} {
		if l, err := c.Load(Account{f.URL, user}); err != nil || l.RefreshToken != want {
			t.Errorf("%q: %q, %v", user, l.RefreshToken, err)
		}
	}
	if _, err := c.Load(Account{f.URL, "carol"}); !errors.Is(err, ErrNoLogin) {
		t.Error(err)
	}
	whom := func() (user string) {
		_, _ = c.ClusterToken(t.Context(), Account{Server: f.URL}, "prod", func(_ context.Context, a Account, _ string) (Login, error) {
			user = a.User
			return Login{}, errors.New("no")
		})
		return user
	}
	c.forget(Login{Server: f.URL, User: "Bob"})
	if got := whom(); got != "Bob" {
		t.Errorf("Bob's session is over, asked for %q", got)
	}
	if err := c.Logout(t.Context(), Account{Server: f.URL}); err != nil {
		t.Fatal(err)
	}
	if got := whom(); got != "" {
		t.Errorf("Bob is gone, asked for %q", got)
	}
}

// stored reads what is in the file of the login.
func stored(t *testing.T, c *Cache, f *fake) string {
	b, err := os.ReadFile(c.path(f.account(), ".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestKeyring(t *testing.T) {
	keyring.MockInit()
	f := newFake(t)
	c := cached(t, f)
	c.ring.use = true
	if err := c.Add(t.Context(), f.login()); err != nil {
		t.Fatal(err)
	}
	key := c.ringKey(f.account())
	if got, _ := keyring.Get(ringService, key); got != "refresh-0" || strings.Contains(stored(t, c, f), "refresh-0") {
		t.Fatalf("the keyring has %q, the file %s", got, stored(t, c, f))
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err != nil {
		t.Fatal(err)
	}
	if got, _ := keyring.Get(ringService, key); got != "refresh-1" || strings.Contains(stored(t, c, f), "refresh-1") {
		t.Fatalf("after a refresh the keyring has %q, the file %s", got, stored(t, c, f))
	}
	if err := c.Logout(t.Context(), f.account()); err == nil { // refresh-1 is not known to the fake
		t.Error("revoked what is not there")
	}
	if _, err := keyring.Get(ringService, key); !errors.Is(err, keyring.ErrNotFound) {
		t.Errorf("after the logout: %v", err)
	}
	if err := c.Add(t.Context(), f.login()); err != nil {
		t.Fatal(err)
	}
	c.NoKeyring()
	if err := c.Add(t.Context(), f.login()); err != nil || !strings.Contains(stored(t, c, f), "refresh-0") {
		t.Fatalf("%v, the file has %s", err, stored(t, c, f))
	}
	if _, err := keyring.Get(ringService, key); !errors.Is(err, keyring.ErrNotFound) {
		t.Errorf("the refresh token is in both places: %v", err)
	}
	c.ring.use = true
	if err := c.Add(t.Context(), f.login()); err != nil {
		t.Fatal(err)
	}
	if err := keyring.Delete(ringService, key); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ClusterToken(t.Context(), f.account(), "prod", nil); !errors.Is(err, ErrSignInAgain) {
		t.Errorf("somebody emptied the keyring: %v", err)
	}
}

func TestKeyringThatFails(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	for name, fail := range map[string]func() error{
		"error": func() error { return errors.New("no such bus") },
		"locked": func() error {
			<-end
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			c := cached(t, f)
			var broken atomic.Bool
			broken.Store(true)
			secrets := map[string]string{}
			c.ring = ring{
				use: true, timeout: 50 * time.Millisecond,
				set: func(_, key, s string) error {
					if broken.Load() {
						return fail()
					}
					secrets[key] = s
					return nil
				},
				get: func(_, key string) (string, error) {
					if broken.Load() {
						return "", fail()
					}
					return secrets[key], nil
				},
				delete: func(_, _ string) error { return fail() },
			}
			if err := c.Add(t.Context(), f.login()); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(stored(t, c, f), "refresh-0") {
				t.Error("the refresh token is nowhere")
			}
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err != nil {
				t.Errorf("with the token in the file: %v", err)
			}
			broken.Store(false)
			hurried := c.ring.timeout
			c.ring.timeout = time.Minute
			if err := c.Add(t.Context(), f.login()); err != nil {
				t.Fatal(err)
			}
			c.ring.timeout = hurried
			broken.Store(true) // it is in the keyring now, which locks
			if _, err := c.ClusterToken(t.Context(), f.account(), "prod", never(t)); err == nil || !strings.Contains(err.Error(), "the keyring does not give") {
				t.Errorf("with the token in the keyring: %v", err)
			}
			if l, err := c.Load(f.account()); err != nil || !l.Keyring {
				t.Errorf("the login is gone: %+v, %v", l, err)
			}
		})
	}
}

func TestDevice(t *testing.T) {
	for name, tc := range map[string]struct {
		answers []string
		err     string
	}{
		"good":    {[]string{"authorization_pending", ""}, ""},
		"refused": {[]string{"access_denied"}, "the sign-in was refused"},
		"too old": {[]string{"expired_token"}, "the code ran out"},
		"broken":  {[]string{"invalid_client"}, "invalid_client"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.token = func(w http.ResponseWriter, r *http.Request) {
				now := tc.answers[0]
				tc.answers = tc.answers[1:]
				if now == "" {
					f.answerToken(w, r)
					return
				}
				w.WriteHeader(http.StatusBadRequest)
				io.WriteString(w, `{"error":"`+now+`"}`)
			}
			s, err := NewSignIn(t.Context(), f.URL, f.ca())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var shown DeviceCode
			l, err := s.Device(t.Context(), func(d DeviceCode) { shown = d })
			if tc.err == "" && (err != nil || l.RefreshToken != "refresh-1") || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("%+v, %v", l, err)
			}
			if shown.Code != "ABCD-EFGH" || shown.URL != f.URL+"/device" {
				t.Errorf("shown %+v", shown)
			}
		})
	}
}

func TestWaysNeedSomebody(t *testing.T) {
	var out strings.Builder
	w := Ways{In: strings.NewReader("secret"), Out: &out}
	for _, w.Prompt = range []bool{false, true} {
		if _, err := w.SignIn(t.Context(), "https://id.corp.example", ""); err == nil || !strings.Contains(err.Error(), "no terminal") || out.Len() > 0 {
			t.Errorf("%v %s", err, &out)
		}
	}
	for _, w := range []Ways{{Browser: true, Device: true}, {PasswordStdin: true}, {PasswordStdin: true, Prompt: true, Username: "a"}} {
		if w.Check() == nil {
			t.Errorf("accepted %+v", w)
		}
	}
}
