package audit

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// Config says where the trail is kept, for how long, and who else gets it.
type Config struct {
	// Dir is the folder of the trail. It is created with mode 0700 in an existing
	// folder.
	Dir string `yaml:"dir"`
	// Node names this server among those that share a store. Its chain is then in a
	// folder of that name in Dir, so that Dir can be shared; without a name the chain
	// is in Dir itself. A folder of a chain is for one process at a time.
	Node string `yaml:"node"`
	// KeyFile is the Ed25519 key that signs checkpoints, PKCS #8 in PEM; "": Dir with
	// "-key.pem" behind. It is made with mode 0600 when it is not there, and its public
	// half beside it, ending in ".pub".
	KeyFile string `yaml:"keyFile"`
	// CheckpointEvery is how long records go without a checkpoint, where there are
	// not 1,000 of them sooner; 0: 5 minutes.
	CheckpointEvery time.Duration `yaml:"checkpointEvery"`
	// FileSize is the size from which the next file is begun; 0: 16 MiB.
	FileSize Size         `yaml:"fileSize"`
	Retain   RetainConfig `yaml:"retain"`
	Sinks    []SinkConfig `yaml:"sinks"`

	// Serve is set by the server: it sends to the sinks and removes what Retain says.
	// Commands beside it only append.
	Serve bool `yaml:"-"`
	// Log is told of sinks that fail and files that cannot be removed; nil: nobody is.
	Log logrus.FieldLogger `yaml:"-"`
	// Now is the clock; nil: time.Now.
	Now func() time.Time `yaml:"-"`

	unsigned bool // for tests: no checkpoints
	pauses   pauses
}

// RetainConfig says when files of the trail are removed, oldest first, never the one
// that is written to. A file that a sink has not taken stays.
type RetainConfig struct {
	Age  time.Duration `yaml:"age"`  // of a file's last record; 0: for ever
	Size Size          `yaml:"size"` // of the files of this node together; 0: no limit
	// HardSize is the size from which files go that a sink has not taken; the trail
	// says then what it missed. 0: twice Size.
	HardSize Size `yaml:"hardSize"`
}

// SinkConfig is one place that gets a copy of every record: exactly one of the kinds.
type SinkConfig struct {
	Name    string         `yaml:"name"` // the position in the trail is kept under it
	File    *FileConfig    `yaml:"file"`
	Stdout  *StdoutConfig  `yaml:"stdout"`
	Syslog  *SyslogConfig  `yaml:"syslog"`
	Webhook *WebhookConfig `yaml:"webhook"`
}

// FileConfig is a file that lines are appended to. It is opened anew for each batch, so
// that it may be moved away.
type FileConfig struct {
	Path string `yaml:"path"`
}

// StdoutConfig is the standard output of the server.
type StdoutConfig struct{}

// SyslogConfig is a syslog server (RFC 5424).
type SyslogConfig struct {
	// Address is udp://, tcp:// or tls:// with host and port: RFC 5426, RFC 6587 with
	// octet counting, RFC 5425.
	Address string `yaml:"address"`
	CAFile  string `yaml:"caFile"` // of tls; "": the system's roots
	CA      string `yaml:"-"`      // what is in CAFile
}

// WebhookConfig is a URL that JSON lines are posted to.
type WebhookConfig struct {
	URL        string `yaml:"url"`        // https, or http on loopback
	Header     string `yaml:"header"`     // that Secret is sent in; "": Authorization
	Secret     string `yaml:"secret"`     // the header's whole value; "": no header
	SecretFile string `yaml:"secretFile"` // holds it instead
	CAFile     string `yaml:"caFile"`     // "": the system's roots
	CA         string `yaml:"-"`          // what is in CAFile
}

// Size is a number of bytes, written as "16MiB", "10GiB" or a plain number.
type Size int64

// UnmarshalText reads a Size.
func (s *Size) UnmarshalText(b []byte) error {
	text, unit := string(b), int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if t, ok := strings.CutSuffix(text, suffix); ok {
			text, unit = t, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < 0 || n > (1<<50)/unit {
		return fmt.Errorf("%q is not a size: write 16MiB, 10GiB or a number of bytes", b)
	}
	*s = Size(n * unit)
	return nil
}

// String is s as UnmarshalText reads it.
func (s Size) String() string {
	n, units := int64(s), []string{"", "KiB", "MiB", "GiB", "TiB"}
	for len(units) > 1 && n > 0 && n%1024 == 0 {
		n, units = n/1024, units[1:]
	}
	return strconv.FormatInt(n, 10) + units[0]
}

// setDefaults fills in what was left out.
func (c *Config) setDefaults() {
	c.Dir = filepath.Clean(c.Dir)
	c.KeyFile = c.keyFile()
	c.FileSize = cmp.Or(c.FileSize, 16<<20)
	c.CheckpointEvery = cmp.Or(c.CheckpointEvery, 5*time.Minute)
	c.Retain.HardSize = cmp.Or(c.Retain.HardSize, 2*c.Retain.Size)
	c.pauses.setDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		silent := logrus.New()
		silent.SetLevel(logrus.PanicLevel)
		c.Log = silent
	}
}

func (c *Config) keyFile() string {
	return cmp.Or(c.KeyFile, filepath.Clean(c.Dir)+"-key.pem")
}

// PublicKeyFile is the file with the public half of the audit key.
func (c *Config) PublicKeyFile() string { return PublicKeyFile(c.keyFile()) }

func (c *Config) chainDir() string {
	if c.Node == "" {
		return c.Dir
	}
	return filepath.Join(c.Dir, c.Node)
}

// HostNode is the name of this machine as a Node, for servers that share a store and
// were given none; "" where it has no name that can be one.
func HostNode() string {
	name, err := os.Hostname()
	if err != nil || !nodeName.MatchString(name) {
		return ""
	}
	return name
}

var (
	nodeName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	sinkName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)
	headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// whenBad notes what is wrong at a key if it is.
type whenBad func(bad bool, key, format string, args ...any)

// Validate says everything that is wrong with c: errors that begin with "audit." and
// the path of the key.
func (c *Config) Validate() error {
	var errs []error
	when := func(bad bool, key, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf("audit.%s: %s", key, fmt.Sprintf(format, args...)))
		}
	}
	when(c.Node != "" && !nodeName.MatchString(c.Node), "node", "must be letters, digits, dots, - and _, and begin with a letter or digit: it names a folder")
	when(strings.HasPrefix(filepath.Clean(c.keyFile()), filepath.Clean(c.Dir)+string(filepath.Separator)), "keyFile", "is in audit.dir: whoever can change the trail would hold the key that proves it")
	when(c.FileSize != 0 && (c.FileSize < 1<<20 || c.FileSize > 1<<30), "fileSize", "must be between 1MiB and 1GiB")
	when(c.CheckpointEvery != 0 && (c.CheckpointEvery < time.Second || c.CheckpointEvery > 24*time.Hour), "checkpointEvery", "must be between 1s and 24h")
	c.Retain.validate(cmp.Or(c.FileSize, 16<<20), when)
	names := map[string]bool{}
	for i, s := range c.Sinks {
		at := fmt.Sprintf("sinks[%d]", i)
		when(names[s.Name], at+".name", "is the name of another sink")
		names[s.Name] = true
		s.validate(at, when)
	}
	return errors.Join(errs...)
}

func (r RetainConfig) validate(file Size, when whenBad) {
	when(r.Age < 0 || r.Age > 0 && r.Age < time.Hour, "retain.age", "must be at least 1h, or 0s for no limit")
	when(r.Size > 0 && r.Size < 2*file, "retain.size", "must be at least twice audit.fileSize, which is %s: whole files are removed", file)
	when(r.HardSize > 0 && r.HardSize < max(r.Size, 2*file), "retain.hardSize", "must not be less than audit.retain.size or twice audit.fileSize")
}

func (s SinkConfig) validate(at string, when whenBad) {
	when(!sinkName.MatchString(s.Name), at+".name", "must be 1 to 40 of a-z, 0-9 and -: what was sent is remembered under it")
	kinds := 0
	for _, is := range []bool{s.File != nil, s.Stdout != nil, s.Syslog != nil, s.Webhook != nil} {
		if is {
			kinds++
		}
	}
	when(kinds != 1, at, "needs exactly one of file, stdout, syslog and webhook")
	when(s.File != nil && s.File.Path == "", at+".file.path", "is missing: name the file that lines are appended to")
	if s.Syslog != nil {
		s.Syslog.validate(at+".syslog", when)
	}
	if s.Webhook != nil {
		s.Webhook.validate(at+".webhook", when)
	}
}

func (s *SyslogConfig) validate(at string, when whenBad) {
	_, _, err := s.target()
	when(err != nil, at+".address", "%s", err)
	when(s.CAFile != "" && !strings.HasPrefix(s.Address, "tls://"), at+".caFile", "is for an address that begins with tls://")
}

// target splits Address.
func (s *SyslogConfig) target() (scheme, hostPort string, err error) {
	u, err := url.Parse(s.Address)
	if err == nil && (u.Scheme == "udp" || u.Scheme == "tcp" || u.Scheme == "tls") && u.Hostname() != "" && u.Port() != "" &&
		u.User == nil && strings.TrimSuffix(s.Address, "/") == u.Scheme+"://"+u.Host {
		return u.Scheme, u.Host, nil
	}
	return "", "", errors.New("must be udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
}

func (w *WebhookConfig) validate(at string, when whenBad) {
	u, err := url.Parse(w.URL)
	bad := err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != ""
	when(bad || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())), at+".url", "must be an https URL, or http on 127.0.0.1, without user and password")
	when(w.Header != "" && !headerName.MatchString(w.Header), at+".header", "is not the name of a header")
	when(w.Header != "" && w.Secret == "", at+".header", "has no value: set secretFile")
	when(strings.ContainsFunc(w.Secret, func(r rune) bool { return r < ' ' || r > '~' }), at+".secret", "must be one line of ASCII: it is sent as a header's value")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
