package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	facilityAudit = 13 // RFC 5424 calls it "log audit"

	// sdID names the structured data. 32473 is the enterprise number for examples
	// (RFC 5612): Tabard has none of its own.
	sdID = "tabard@32473"

	maxDatagram = 60 << 10 // bytes of a message by UDP
)

// syslogCarrier sends each record as a message of RFC 5424, the record itself as its
// text.
type syslogCarrier struct {
	scheme, address string
	tls             *tls.Config // of tls
	host            string
	settle          time.Duration
	conn            net.Conn // nil: not connected
}

func newSyslog(c SyslogConfig, node string, settle time.Duration) (*syslogCarrier, error) {
	s := &syslogCarrier{host: node, settle: settle}
	var err error
	if s.scheme, s.address, err = c.target(); err != nil {
		return nil, err
	}
	if s.host == "" {
		s.host, _ = os.Hostname()
	}
	s.tls, err = clientTLS(c.CA)
	return s, err
}

// clientTLS trusts the system's roots and the certificates in caPEM.
func clientTLS(caPEM string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caPEM == "" {
		return cfg, nil
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM([]byte(caPEM)) {
		return nil, errors.New("caFile holds no certificate in PEM form")
	}
	return cfg, nil
}

// deliver writes the messages, and then waits a little for the server to go away:
// syslog knows no acknowledgement, and what is written to a connection that the
// server has closed is lost without an error.
func (s *syslogCarrier) deliver(ctx context.Context, lines [][]byte) error {
	err := s.send(ctx, lines)
	if err == nil {
		err = s.alive()
	}
	if err != nil {
		s.close()
	}
	return err
}

func (s *syslogCarrier) send(ctx context.Context, lines [][]byte) error {
	if s.conn == nil {
		var err error
		if s.conn, err = s.dial(ctx); err != nil {
			return err
		}
	}
	deadline, _ := ctx.Deadline()
	if err := s.conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var stream []byte
	for _, line := range lines {
		message, err := s.message(line)
		switch {
		case err != nil:
			return err
		case s.scheme != "udp":
			stream = strconv.AppendInt(stream, int64(len(message)), 10)
			stream = append(append(stream, ' '), message...)
		default:
			if _, err := s.conn.Write(message[:min(len(message), maxDatagram)]); err != nil {
				return err
			}
		}
	}
	if len(stream) == 0 {
		return nil
	}
	_, err := s.conn.Write(stream)
	return err
}

func (s *syslogCarrier) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if s.scheme == "tls" {
		return (&tls.Dialer{NetDialer: &d, Config: s.tls}).DialContext(ctx, "tcp", s.address)
	}
	return d.DialContext(ctx, s.scheme, s.address)
}

// alive reads, for as long as an end of the connection takes to be heard of.
func (s *syslogCarrier) alive() error {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.settle)); err != nil {
		return err
	}
	var b [256]byte
	for {
		_, err := s.conn.Read(b[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("the server closed the connection")
		case err != nil:
			return err
		}
	}
}

func (s *syslogCarrier) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// message is the record in line as RFC 5424 has it.
func (s *syslogCarrier) message(line []byte) ([]byte, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, fmt.Errorf("read the record: %w", err)
	}
	severity := 5 // notice
	switch e.Outcome {
	case Denied:
		severity = 4 // warning
	case Failed:
		severity = 3 // error
	}
	b := fmt.Appendf(nil, "<%d>1 %s %s tabard - %s [%s", facilityAudit*8+severity,
		e.Time.UTC().Format("2006-01-02T15:04:05.000000Z07:00"), syslogName(s.host, 255), syslogName(e.Act, 32), sdID)
	for _, p := range [...]struct{ name, value string }{
		{"seq", strconv.FormatUint(e.Seq, 10)}, {"act", e.Act}, {"outcome", e.Outcome}, {"who", e.Who}, {"name", e.Name}, {"on", e.On},
		{"reason", e.Reason}, {"address", e.Address}, {"session", e.Session}, {"jti", e.JTI}, {"client", e.Client}, {"cluster", e.Cluster}, {"requestID", e.RequestID},
	} {
		if p.value != "" {
			b = append(append(append(append(b, ' '), p.name...), `="`...), syslogValue(p.value)...)
			b = append(b, '"')
		}
	}
	return append(append(b, "] "...), line...), nil
}

// syslogName is s as a header field: printable ASCII without spaces, "-" for nothing.
func syslogName(s string, most int) string {
	name := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if name == "" {
		return "-"
	}
	return name[:min(len(name), most)]
}

// syslogValue escapes s as a PARAM-VALUE. What could end a line becomes a space: many
// servers look for line ends first.
func syslogValue(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\' || r == ']':
			b.WriteByte('\\')
		case r < ' ' || r == 0x7f || r >= 0x80 && r <= 0x9f || r == '\u2028' || r == '\u2029':
			r = ' '
		case !utf8.ValidRune(r):
			r = utf8.RuneError
		}
		b.WriteRune(r)
	}
	return b.String()
}
