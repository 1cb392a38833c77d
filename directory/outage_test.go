package directory

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestHosts(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	closed := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	for name, first := range map[string]string{"nobody listens": closed, "never answers": silent(t)} {
		for kind, cfg := range map[string]Config{
			"LDAPS":     with(slapdConfig(s), func(c *Config) { c.URLs = []string{"ldaps://" + first, s.TLSURL} }),
			"StartTLS":  with(slapdConfig(s), func(c *Config) { c.URLs, c.StartTLS = []string{"ldap://" + first, s.URL}, true }),
			"plaintext": with(slapdConfig(s), func(c *Config) { c.URLs, c.InsecurePlaintext = []string{"ldap://" + first, s.URL}, true }),
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				d := open(t, cfg)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				p, err := d.Find(ctx, "alice") // from here on there is a pooled connection
				if err != nil {
					t.Fatal(err)
				}
				wantGroups(t, d, "alice", "corp:all-devs", "corp:devs")
				if kind == "plaintext" && name == "never answers" {
					return // there the bind itself is what is never answered
				}
				bindCtx, cancelBind := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancelBind()
				if err := d.Bind(bindCtx, p.DN, "pw-alice"); err != nil {
					t.Error(err)
				}
			})
			t.Run(name+", alone, "+kind, func(t *testing.T) {
				cfg.URLs = cfg.URLs[:1]
				d := open(t, cfg)
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				_, err := d.Find(ctx, "alice")
				wantErr(t, "Find", err, ErrUnavailable)
				if !strings.Contains(fmt.Sprint(err), first) {
					t.Errorf("%v does not name the host", err)
				}
				wantErr(t, "Bind", d.Bind(ctx, "uid=alice,ou=people,dc=example,dc=org", "pw-alice"), ErrUnavailable)
			})
		}
	}
}

func TestCancelledCall(t *testing.T) {
	d := open(t, Config{Name: "corp", Type: TypeLDAP, URLs: []string{"ldap://" + silent(t)}, InsecurePlaintext: true, BindDN: "cn=x", BindPassword: "x"})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := d.Find(ctx, "alice")
	wantErr(t, "Find", err, ErrUnavailable)
	wantErr(t, "Find", err, context.Canceled)
}

func TestRestart(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	s.Stop()
	d := open(t, slapdConfig(s))
	_, err := d.Find(t.Context(), "alice")
	wantErr(t, "before the server runs", err, ErrUnavailable)
	s.Start(t)
	for range 3 {
		p := mustFind(t, d, "alice") // over a connection that the last round broke
		s.Kill()
		_, err = d.Lookup(t.Context(), p.ID)
		wantErr(t, "while the server is away", err, ErrUnavailable)
		wantErr(t, "while the server is away", d.Bind(t.Context(), p.DN, "pw-alice"), ErrUnavailable)
		wantErr(t, "while the server is away", d.Ping(t.Context()), ErrUnavailable)
		s.Start(t)
	}
}

func TestPoolIsBoundedAndShared(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	d := open(t, slapdConfig(s))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			p, err := d.Find(t.Context(), "alice")
			if err != nil {
				t.Error(err)
				return
			}
			if groups, err := d.Groups(t.Context(), p); err != nil || len(groups) != 2 {
				t.Errorf("%v, %v", groups, err)
			}
			if err := d.Bind(t.Context(), p.DN, "pw-alice"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(d.idle); n == 0 || n > maxSearches {
		t.Errorf("%d pooled connections", n)
	}
	d.Close()
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("a call after Close still works, without a pool: %v", err)
	}
	if n := len(d.idle); n != 0 {
		t.Errorf("%d pooled connections after Close", n)
	}
}
