package directory

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestHosts(t *testing.T) {
	t.Parallel()
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
				ctx, cancel := context.WithTimeout(t.Context(), loginTime)
				defer cancel()
				p, err := d.Find(ctx, "alice") // from here on there is a pooled connection
				if err != nil {
					t.Fatal(err)
				}
				wantGroups(t, d, "alice", "corp:all-devs", "corp:devs")
				if kind == "plaintext" && name == "never answers" {
					return // there the bind itself is what is never answered
				}
				bindCtx, cancelBind := context.WithTimeout(t.Context(), loginTime)
				defer cancelBind()
				if err := d.Bind(bindCtx, p.DN, "pw-alice"); err != nil {
					t.Error(err)
				}
			})
			t.Run(name+", alone, "+kind, func(t *testing.T) {
				cfg.URLs = cfg.URLs[:1]
				d := open(t, cfg)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
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

// relay passes connections on to a server.
type relay struct {
	address string
	accepts atomic.Int32 // how many connections it took
	cuts    atomic.Int32 // how many of the next requests it answers by closing
}

func startRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{}
	r.address = listen(t, func(client net.Conn) {
		r.accepts.Add(1)
		server, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer server.Close()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { io.Copy(client, server) })
		defer server.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := client.Read(buf)
			if err != nil || r.cuts.Add(-1) >= 0 {
				return
			}
			server.Write(buf[:n])
		}
	})
	return r
}

func TestBrokenConnectionIsReplacedOnce(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	r := startRelay(t, strings.TrimPrefix(s.URL, "ldap://"))
	d := open(t, with(slapdConfig(s), func(c *Config) { c.URLs, c.InsecurePlaintext = []string{"ldap://" + r.address}, true }))
	d.stop() // a check would be cut, and make connections of its own
	d.watching.Wait()
	p := mustFind(t, d, "alice")
	r.cuts.Store(1)
	if _, err := d.Lookup(t.Context(), p.ID); err != nil {
		t.Errorf("after one cut: %v", err)
	}
	if n := r.accepts.Load(); n != 2 {
		t.Errorf("%d connections, want a second one", n)
	}
	r.cuts.Store(1000)
	_, err := d.Lookup(t.Context(), p.ID)
	wantErr(t, "after many cuts", err, ErrUnavailable)
	r.cuts.Store(1)
	before := r.accepts.Load()
	wantErr(t, "bind that is cut", d.Bind(t.Context(), p.DN, "pw-alice"), ErrUnavailable)
	if n := r.accepts.Load() - before; n != 1 {
		t.Errorf("the password was sent %d times", n)
	}
}

// TestRefusedPasswordIsFinal: trying it again elsewhere would double the
// failures that a directory counts before it locks the account.
func TestRefusedPasswordIsFinal(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	second := startRelay(t, strings.TrimPrefix(s.TLSURL, "ldaps://"))
	cfg := with(slapdConfig(s), func(c *Config) { c.URLs = append(c.URLs, "ldaps://"+second.address) })
	d := open(t, cfg)
	d.patience = time.Minute
	wantErr(t, "a person's", d.Bind(t.Context(), mustFind(t, d, "alice").DN, "wrong"), ErrInvalidCredentials)
	cfg.BindPassword = "wrong"
	d = open(t, cfg)
	d.patience = time.Minute
	wantErr(t, "the service account's", d.Ping(t.Context()), ErrUnavailable)
	if n := second.accepts.Load(); n != 0 {
		t.Errorf("the second host was asked %d times", n)
	}
}

// TestNothingOnTheWire asks what is answered without a server.
func TestNothingOnTheWire(t *testing.T) {
	d := open(t, with(validConfig(), func(c *Config) { c.URLs = []string{fmt.Sprintf("ldaps://127.0.0.1:%d", testenv.FreePort(t))} }))
	for _, login := range []string{"", " ", "\x00", "\xff", strings.Repeat("x", 257), `other\alice`, `\alice`, `corp\`} {
		_, err := d.Find(t.Context(), login)
		wantErr(t, fmt.Sprintf("Find(%q)", login), err, ErrNotFound)
	}
	_, err := d.Find(t.Context(), strings.Repeat("x", 256))
	wantErr(t, "a login that is just short enough", err, ErrUnavailable)
	_, err = d.Lookup(t.Context(), "no id")
	wantErr(t, "Lookup", err, ErrNotFound)
	wantErr(t, "Bind without a password", d.Bind(t.Context(), "cn=x", ""), ErrInvalidCredentials)
	wantErr(t, "Bind without a DN", d.Bind(t.Context(), "", "x"), ErrInvalidCredentials)
	if d.Name() != "corp" || d.Prefix() != "corp:" || !strings.HasSuffix(d.DummyDN(), ",dc=invalid") {
		t.Errorf("%s, %s, %s", d.Name(), d.Prefix(), d.DummyDN())
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
	t.Parallel()
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
	if n := len(d.searches.free); n == 0 || n > maxSearches {
		t.Errorf("%d pooled connections", n)
	}
	d.Close()
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("a call after Close still works, without a pool: %v", err)
	}
	if n := len(d.searches.free) + len(d.binds.free); n != 0 {
		t.Errorf("%d pooled connections after Close", n)
	}
}

// silent is a server that takes connections and never says a word.
func silent(t *testing.T) string {
	t.Helper()
	return listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
}

// listen runs serve for each connection to the address it returns.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}
