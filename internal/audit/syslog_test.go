package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// header is RFC 5424's HEADER, and sd its STRUCTURED-DATA with what may be in a value.
var (
	header = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) `)
	sd     = regexp.MustCompile(`(?s)^\[([!-~]{1,32})((?: [a-zA-Z]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] `)
)

// split takes a message apart as a strict server would.
func split(t testing.TB, message []byte) (params, text string) {
	t.Helper()
	h := header.FindSubmatch(message)
	if h == nil || !utf8.Valid(message) || bytes.ContainsAny(message, "\n\r\x00") {
		t.Fatalf("not RFC 5424: %q", message)
	}
	rest := message[len(h[0]):]
	s := sd.FindSubmatch(rest)
	if s == nil {
		t.Fatalf("no structured data: %q", message)
	}
	return string(s[2]), string(rest[len(s[0]):])
}

func FuzzSyslog(f *testing.F) {
	f.Add("login", "al\"ice]\\", "a\nb\u2028", "host", "done")
	f.Add("ä ö", "\xff\x00", "", "", "failed")
	f.Add(strings.Repeat("x", 99), "]", "\x7f\u0085", strings.Repeat("h", 300), "denied")
	f.Fuzz(func(t *testing.T, act, name, reason, host, outcome string) {
		l := &Log{}
		body, err := l.encode(t.Context(), Event{Act: act, Name: name, Reason: reason, Outcome: outcome})
		if err != nil {
			return
		}
		line, _ := appendLine(nil, tail{}, searchDay, body)
		s := &syslogCarrier{host: host}
		message, err := s.message(line)
		if err != nil {
			t.Fatal(err)
		}
		params, text := split(t, message)
		if text+"\n" != string(line) {
			t.Fatalf("text %q of %q", text, line)
		}
		// A value that needs nothing replaced comes back.
		_, after, _ := strings.Cut(params, ` name="`)
		if plain := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(cutString(name)); utf8.ValidString(name) && name != "" &&
			!strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f || r == '\u2028' || r == '\u2029' }) && !strings.HasPrefix(after, plain+`"`) {
			t.Fatalf("name %q in %q", name, params)
		}
	})
}

// syslogServer takes octet-counted messages, and closes each connection after some.
func syslogServer(t *testing.T, l net.Listener, got *received, most int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serveSyslog(t, conn, got, most)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func serveSyslog(t *testing.T, conn net.Conn, got *received, most int) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range most {
		count, err := in.ReadString(' ')
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				t.Log(err)
			}
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(count, " "))
		if err != nil {
			t.Errorf("count %q", count)
			return
		}
		message := make([]byte, n)
		if _, err := io.ReadFull(in, message); err != nil {
			return
		}
		_, text := split(t, message)
		got.add([]byte(text))
	}
}

func runSyslog(t *testing.T, cfg Config, got *received) {
	t.Helper()
	for range 2 {
		l := openSigned(t, cfg)
		for range 40 {
			mustAppend(t, l, "x")
		}
		until(t, "all delivered", func() bool { return l.sinks[0].position.Load() == l.durable.Load() })
		mustClose(t, l)
	}
	l := openSigned(t, cfg)
	until(t, "all delivered", func() bool { return l.sinks[0].position.Load() == l.durable.Load() })
	mustClose(t, l)
	got.arrived(t, cfg.Dir)
}

// TestSyslogTCP has a server that goes away again and again without a word, with
// messages in its buffers that it never read.
func TestSyslogTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &received{}
	syslogServer(t, ln, got, 50)
	cfg := sinkConfig(t, SinkConfig{Name: "siem", Syslog: &SyslogConfig{Address: "tcp://" + ln.Addr().String()}})
	cfg.pauses.settle = 4 * time.Second // until the server has read that much and is gone
	runSyslog(t, cfg, got)
	t.Logf("%d records came more than once", got.check(t, cfg.Dir))
}

func TestSyslogTLS(t *testing.T) {
	cert, ca := certificate(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	got := &received{}
	syslogServer(t, ln, got, 1_000)
	cfg := sinkConfig(t, SinkConfig{Name: "siem", Syslog: &SyslogConfig{Address: "tls://" + ln.Addr().String(), CA: ca}})
	runSyslog(t, cfg, got)
	got.check(t, cfg.Dir)
	strange, err := newSyslog(SyslogConfig{Address: cfg.Sinks[0].Syslog.Address}, "", time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := strange.deliver(ctx, [][]byte{got.lines[0]}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Fatalf("a stranger's certificate: %v", err)
	}
}

func TestSyslogUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &received{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, text := split(t, b[:n])
			got.add([]byte(text))
		}
	}()
	cfg := sinkConfig(t, SinkConfig{Name: "siem", Syslog: &SyslogConfig{Address: "udp://" + conn.LocalAddr().String()}})
	runSyslog(t, cfg, got)
	conn.Close()
	<-done
	got.check(t, cfg.Dir)
	// Where nobody listens, a machine that says so is heard.
	s, err := newSyslog(*cfg.Sinks[0].Syslog, "", 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.deliver(ctx, [][]byte{got.lines[0]}); err == nil {
		t.Fatal("delivered to nobody")
	}
}

// TestSyslogClosesUnread: a server that closes at once took nothing, though every write
// to it succeeded.
func TestSyslogClosesUnread(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			conn.Close()
		}
	}()
	defer func() { ln.Close(); <-done }()
	cfg := sinkConfig(t, SinkConfig{Name: "siem", Syslog: &SyslogConfig{Address: "tcp://" + ln.Addr().String()}})
	cfg.pauses.settle = 5 * time.Second // it answers sooner
	l := openSigned(t, cfg)
	mustAppend(t, l, "x")
	until(t, "several connections", func() bool { return count.Load() > 5 })
	if at := l.sinks[0].position.Load(); at != 0 {
		t.Fatalf("position %d", at)
	}
	mustClose(t, l)
}

// certificate is one for 127.0.0.1, signed by itself.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "siem"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
