package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// vault is an API with a store of 50 records; the token says who calls.
type vault struct {
	*httptest.Server
	store *storetest.Faulty
	trail *strictTrail
}

// strictTrail refuses once broken is set.
type strictTrail struct {
	memory
	broken error
}

func (s *strictTrail) Append(ctx context.Context, e audit.Event) error {
	if s.broken != nil {
		return s.broken
	}
	return s.memory.Append(ctx, e)
}

func (s *strictTrail) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, e := range s.events {
		fmt.Fprintln(&b, e.Act, e.Who, e.Outcome, len(e.Detail))
	}
	return b.String()
}

func newVault(t *testing.T, adjust func(*httptest.Server)) *vault {
	t.Helper()
	st, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	for i := range 50 {
		_, err := st.Txn(t.Context(), nil, []store.Op{{Key: fmt.Sprintf("a/%02d", i), Value: bytes.Repeat([]byte("x"), 4_000)}})
		must(t, err)
	}
	v := &vault{store: storetest.NewFaulty(st), trail: &strictTrail{}}
	log := logrus.New()
	log.SetOutput(t.Output())
	site := &Site{log: log, cfg: Config{Now: time.Now, Backups: NewBackups(v.store, v.trail, log)}}
	v.Server = httptest.NewUnstartedServer(site.serveAPI(func(r *http.Request) (caller, error) {
		switch r.Header.Get("Authorization") {
		case "Bearer admin":
			return caller{actor: groups.Actor{Sub: "corp.carol", Name: "carol"}, me: api.Me{Admin: true}}, nil
		case "Bearer alice":
			return caller{actor: groups.Actor{Sub: "corp.alice", Name: "alice"}}, nil
		}
		return caller{}, idp.ErrNoSession
	}))
	if adjust != nil {
		adjust(v.Server)
	}
	v.StartTLS()
	t.Cleanup(v.Close)
	return v
}

func (v *vault) backup(ctx context.Context, token string) (backup.Summary, error) {
	body, err := api.NewClient(v.URL, v.Client(), func(context.Context) (string, error) { return token, nil }).Backup(ctx)
	if err != nil {
		return backup.Summary{}, err
	}
	defer body.Close()
	return backup.Verify(body)
}

func TestBackup(t *testing.T) {
	v := newVault(t, nil)
	sum, err := v.backup(t.Context(), "admin")
	if err != nil || sum.Records != 50 || sum.Revision != 50 {
		t.Fatalf("%+v, %v", sum, err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), "GET", v.URL+BackupPath, nil)
	r.Header.Set("Authorization", "Bearer admin")
	resp, err := v.Client().Do(r)
	must(t, err)
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	must(t, err)
	for name, want := range map[string]string{"Cache-Control": "no-store", "Content-Type": "application/octet-stream", "Content-Disposition": `attachment; filename="tabard.backup"`} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got, want := v.trail.told(), strings.Repeat("store.backup corp.carol intended 0\nstore.backup corp.carol done 2\n", 2); got != want {
		t.Errorf("the trail says\n%swant\n%s", got, want)
	}
}

func TestBackupRefused(t *testing.T) {
	none := httptest.NewTLSServer((&Site{log: logrus.New(), cfg: Config{Now: time.Now}}).serveAPI(func(*http.Request) (caller, error) { return caller{}, nil }))
	defer none.Close()
	for _, c := range []struct {
		name, method, token, cookie string
		status                      int
		words, trail                string
	}{
		{"nobody", "GET", "", "", 401, "You are not signed in", ""},
		{"unknown token", "GET", "Bearer x", "", 401, "You are not signed in", ""},
		{"browser", "GET", "", "x", 403, "A browser gets no backup", ""},
		{"not an administrator", "GET", "Bearer alice", "", 403, "You may not do this", "store.backup corp.alice denied 0\n"},
		{"HEAD", "HEAD", "Bearer admin", "", 405, "", ""},
		{"POST", "POST", "Bearer admin", "", 405, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVault(t, nil)
			r, _ := http.NewRequestWithContext(t.Context(), c.method, v.URL+BackupPath, nil)
			if c.token != "" {
				r.Header.Set("Authorization", c.token)
			}
			if c.cookie != "" {
				r.AddCookie(&http.Cookie{Name: idp.SessionCookie, Value: c.cookie})
			}
			resp, err := v.Client().Do(r)
			must(t, err)
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			must(t, err)
			if resp.StatusCode != c.status || !strings.Contains(string(b), c.words) || v.trail.told() != c.trail {
				t.Errorf("%d %s, trail %q", resp.StatusCode, b, v.trail.told())
			}
		})
	}
	t.Run("no trail", func(t *testing.T) {
		v := newVault(t, nil)
		v.trail.broken = errors.New("disk full")
		var p *api.Problem
		for _, token := range []string{"admin", "alice"} {
			if _, err := v.backup(t.Context(), token); !errors.As(err, &p) || p.Status != 500 {
				t.Errorf("%s: %v", token, err)
			}
		}
	})
	t.Run("no store", func(t *testing.T) {
		var p *api.Problem
		_, err := (&vault{Server: none}).backup(t.Context(), "admin")
		if !errors.As(err, &p) || p.Status != 404 {
			t.Error(err)
		}
	})
}

// TestBackupOneAtATime holds one backup and asks for another.
func TestBackupOneAtATime(t *testing.T) {
	v := newVault(t, nil)
	arrived, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	v.store.Read(func(keys []string) error {
		if keys[0] == "a/30" {
			once.Do(func() { close(arrived); <-let })
		}
		return nil
	})
	first := make(chan error, 1)
	go func() {
		_, err := v.backup(context.Background(), "admin")
		first <- err
	}()
	<-arrived
	var p *api.Problem
	if _, err := v.backup(t.Context(), "admin"); !errors.As(err, &p) || p.Status != 429 {
		t.Error(err)
	}
	close(let)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := v.backup(t.Context(), "admin"); err != nil {
		t.Fatal("after the first:", err)
	}
}

// TestBackupBrokenOff fails before the first byte, which is an answer, and behind it,
// which the client must not take for a backup.
func TestBackupBrokenOff(t *testing.T) {
	for _, c := range []struct {
		key    string // where the store fails; "" before anything is read
		answer bool
	}{{"", true}, {"a/02", true}, {"a/45", false}} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("at %q, HTTP/2 %v", c.key, h2), func(t *testing.T) {
				v := newVault(t, func(s *httptest.Server) { s.EnableHTTP2 = h2 })
				v.store.Read(func(keys []string) error {
					if keys[0] == c.key {
						return errors.New("broken")
					}
					return nil
				})
				sum, err := v.backup(t.Context(), "admin")
				var p *api.Problem
				if err == nil || errors.As(err, &p) != c.answer || strings.Contains(err.Error(), "broken") && !strings.Contains(err.Error(), "broke off") {
					t.Fatalf("%+v, %v", sum, err)
				}
				v.Close() // waits for the handler
				if got := v.trail.told(); got != "store.backup corp.carol intended 0\nstore.backup corp.carol failed 0\n" {
					t.Error(got)
				}
			})
		}
	}
}

// TestBackupOutlivesTimeouts takes longer than the server allows for a request and an
// answer: every piece has its own time.
func TestBackupOutlivesTimeouts(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", h2), func(t *testing.T) {
			t.Parallel()
			v := newVault(t, func(s *httptest.Server) {
				s.EnableHTTP2 = h2
				s.Config.ReadTimeout, s.Config.WriteTimeout = 5*time.Second, 5*time.Second // a slow machine needs some of it to connect
			})
			v.store.Read(func(keys []string) error {
				if strings.HasPrefix(keys[0], "a/") {
					time.Sleep(130 * time.Millisecond) // more than six seconds in all
				}
				return nil
			})
			if sum, err := v.backup(t.Context(), "admin"); err != nil || sum.Records != 50 {
				t.Fatalf("%+v, %v", sum, err)
			}
		})
	}
}

// TestBackupClientGoes lets the client hang up; the next one gets a backup.
func TestBackupClientGoes(t *testing.T) {
	v := newVault(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	v.store.Read(func(keys []string) error {
		if keys[0] == "a/30" {
			cancel()
		}
		return nil
	})
	if _, err := v.backup(ctx, "admin"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	v.store.Read(nil)
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := v.backup(t.Context(), "admin")
		if err == nil {
			return
		}
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != 429 || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // the server has yet to notice
	}
}
