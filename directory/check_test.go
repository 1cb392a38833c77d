package directory

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/tabard-id/tabard/internal/parts"
	"github.com/tabard-id/tabard/internal/testenv"
)

// checked is what Check says, a line each.
func checked(t *testing.T, d *Directory) string {
	t.Helper()
	var b strings.Builder
	checks, usable := d.Check(t.Context())
	for _, c := range checks {
		fmt.Fprintf(&b, "%s: %s\n", c.Grade, c.Detail)
	}
	if usable != strings.Contains(b.String(), "people: ") {
		t.Errorf("usable: %t\n%s", usable, &b)
	}
	if strings.Contains(b.String(), d.bindPassword) {
		t.Errorf("the password is told: %s", &b)
	}
	return b.String()
}

// broken takes connections and does with them what it is told, and nothing else.
func broken(t *testing.T, with func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			with(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// untilClosed reads until the other side has had enough.
func untilClosed(c net.Conn) {
	buf := make([]byte, 512)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// shows is a server with a certificate of ca.
func shows(t *testing.T, ca *parts.CA, name string) (address string) {
	t.Helper()
	certFile, keyFile, err := ca.Issue("cert", name)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return broken(t, func(c net.Conn) {
		c.SetDeadline(time.Now().Add(time.Minute))
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
	})
}

func newCA(t *testing.T, lifetime time.Duration) *parts.CA {
	t.Helper()
	ca, err := parts.NewCA(t.TempDir(), parts.CAOptions{Name: "check", Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestCheckFindsWhatIsBroken(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	closed := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	hole, plain := broken(t, untilClosed), strings.TrimPrefix(s.URL, "ldap://")
	old, good := newCA(t, -time.Minute), newCA(t, time.Hour)
	other := testenv.NewCA(t, t.TempDir())
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"nobody listens", func(c *Config) { c.URLs = []string{"ldaps://" + closed} }, "fail: ldaps://" + closed + ": no connection: check the port"},
		{"no such name", func(c *Config) { c.URLs = []string{"ldaps://dc1.invalid"} }, "fail: ldaps://dc1.invalid: its name is not known to DNS"},
		{"black hole", func(c *Config) { c.URLs = []string{"ldaps://" + hole} }, "fail: ldaps://" + hole + ": TLS: it takes the connection but does not answer within 3s"},
		{"black hole, StartTLS", func(c *Config) { c.URLs, c.StartTLS = []string{"ldap://" + hole}, true }, "fail: ldap://" + hole + ": StartTLS: it takes the connection but does not answer within 3s"},
		{"black hole before a good host", func(c *Config) { c.URLs, c.StartTLS = []string{"ldap://" + hole, s.URL}, true }, "ok: " + s.URL + ": bindDN is let in"},
		{"black hole, in the clear", func(c *Config) { c.URLs, c.InsecurePlaintext = []string{"ldap://" + hole}, true }, "fail: ldap://" + hole + ": bind: no answer within 3s"},
		{"LDAPS where LDAP is", func(c *Config) { c.URLs = []string{"ldaps://" + plain} }, "fail: ldaps://" + plain + ": TLS: "},
		{"other CA", func(c *Config) { c.CAFile = other.File }, "TLS: its certificate is not signed by what caFile holds"},
		{"other CA, StartTLS", func(c *Config) { c.URLs, c.StartTLS, c.CAFile = []string{s.URL}, true, other.File }, "StartTLS: its certificate is not signed by what caFile holds"},
		{"no CA", func(c *Config) { c.CAFile = "" }, "TLS: this machine does not know who signed its certificate: set caFile"},
		{"expired", func(c *Config) { c.URLs, c.CAFile = []string{"ldaps://" + shows(t, old, "127.0.0.1")}, old.File }, "TLS: its certificate is not valid now: renew it"},
		{"other name", func(c *Config) {
			c.URLs, c.CAFile = []string{"ldaps://" + shows(t, good, "dc1.corp.example")}, good.File
		}, "TLS: its certificate is for another name"},
		{"wrong password", func(c *Config) { c.BindPassword = "wrong-4711" }, "bindDN (cn=tabard,dc=example,dc=org) and its password were refused"},
		{"no users there", func(c *Config) { c.Users.BaseDN = "ou=none,dc=example,dc=org" }, "users.baseDN (ou=none,dc=example,dc=org) cannot be read: "},
		{"no SRV record", func(c *Config) { c.URLs, c.SRV = nil, "corp.invalid" }, "fail: find the hosts: "},
		{"nobody matches", func(c *Config) { c.Users.Filter = "(objectClass=dNSDomain)" }, "warn: people: none below dc=example,dc=org match (objectClass=dNSDomain): check users.baseDN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // three of them wait
			d := open(t, with(slapdConfig(s), tc.change))
			if strings.HasPrefix(tc.name, "black hole") {
				d.hostTime = hostTime
			}
			got := checked(t, d)
			if !strings.Contains(got, tc.want) {
				t.Errorf("no %q in\n%s", tc.want, got)
			}
			if strings.HasPrefix(tc.want, "fail") && strings.Contains(got, "people: ") {
				t.Errorf("people are counted through a broken host:\n%s", got)
			}
		})
	}
}

// What works is told as well, in each of the three ways to connect.
func TestCheckOfWhatWorks(t *testing.T) {
	s := testenv.StartSlapd(t)
	s.AddLDIF(t, testenv.SampleLDIF())
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(*Config) {}, "warn: " + s.TLSURL + ": the certificate for localhost, "}, // good for a day
		{func(c *Config) { c.URLs, c.StartTLS = []string{s.URL}, true }, "warn: " + s.URL + ": the certificate for localhost, "},
		{func(c *Config) { c.URLs, c.InsecurePlaintext = []string{s.URL}, true }, "warn: " + s.URL + ": connected in the clear"},
	} {
		got := checked(t, open(t, with(slapdConfig(s), tc.change)))
		for _, want := range []string{tc.want, ": bindDN is let in and reads the base DNs, in ", "ok: people: 5\n", "ok: groups: 4\n", "ok: find a person: ", "ok: find groups: "} {
			if !strings.Contains(got, want) || strings.Contains(got, "fail") {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
	}
}

func checkOfAD(t *testing.T, s *testenv.Samba) {
	got := checked(t, open(t, sambaConfig(s)))
	for _, want := range []string{
		"warn: " + s.TLSURL + ": the certificate for dc1.corp.example", "ok: " + s.TLSURL + ": bindDN is let in", "ok: " + s.TLSURL + ": its clock and this machine's agree",
		"ok: people: ", "ok: groups: ", "ok: find a person: ", "ok: find groups: ",
	} {
		if !strings.Contains(got, want) || strings.Contains(got, "fail") {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// A refused password goes to no second host: two tries there may be one too many.
func TestCheckAsksForThePasswordOnce(t *testing.T) {
	s := testenv.StartSlapd(t)
	got := checked(t, open(t, with(slapdConfig(s), func(c *Config) {
		c.URLs, c.BindPassword = []string{s.TLSURL, strings.Replace(s.TLSURL, "127.0.0.1", "localhost", 1)}, "wrong-4711"
	})))
	if strings.Count(got, "were refused") != 1 || strings.Count(got, "bindDN was not tried") != 1 || strings.Contains(got, "people") {
		t.Error(got)
	}
}

func TestCheckGrades(t *testing.T) {
	for took, want := range map[time.Duration]Check{
		time.Millisecond: {GradeOK, "find a person: 1ms"},
		time.Second:      {GradeWarn, "find a person: 1s with (uid=x): slow; perhaps the server has no equality index for each of uid, mail"},
	} {
		if got := (&Directory{slowSearch: slowSearch}).graded("find a person", "(uid=x)", []string{"uid", "mail"}, took); got != want {
			t.Errorf("%s: %+v", took, got)
		}
	}
	for told, want := range map[string]string{
		time.Now().UTC().Format("20060102150405.0Z"):                      "agree",
		time.Now().Add(-10 * time.Minute).UTC().Format("20060102150405Z"): "apart: set both by NTP",
		"": "", "soon": "",
	} {
		p := &probe{d: &Directory{}, url: mustURL(t, "ldaps://dc1")}
		p.clock(told)
		if got := fmt.Sprint(p.checks); !strings.Contains(got, want) || (want == "") != (len(p.checks) == 0) {
			t.Errorf("%q: %s", told, got)
		}
	}
	if got := answerTrouble(ldap.NewError(ldap.LDAPResultBusy, fmt.Errorf("busy"))); !strings.Contains(got, "busy") {
		t.Error(got)
	}
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
