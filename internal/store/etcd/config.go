package etcd

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
)

const (
	defaultPrefix = "/tabard/"
	defaultPort   = "2379"
	maxPrefix     = 200 // bytes; keys have up to store.MaxKey more
)

// Config says where the store is.
type Config struct {
	// Endpoints are the client URLs of the members, such as
	// https://etcd1.corp.example:2379. All are https, or all are http.
	Endpoints []string `yaml:"endpoints"`
	// Prefix is what all keys begin with; it ends in a slash. Several Tabards may
	// share an etcd, each with a prefix of its own. /tabard/ when empty.
	Prefix string `yaml:"prefix"`
	// CAFile holds the certificates that sign the members'; the system's roots when
	// empty.
	CAFile string `yaml:"caFile"`
	// CertFile and KeyFile are what this node shows to etcd. They are read again for
	// every connection, so that they can be renewed.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	// Username and Password are for etcd's own authentication; none when empty.
	Username     string `yaml:"username"`
	Password     string `yaml:"password"`
	PasswordFile string `yaml:"passwordFile"`
	// InsecurePlaintext allows http beyond loopback.
	InsecurePlaintext bool `yaml:"insecurePlaintext"`

	// SweepInterval is how often expired entries are looked for; 0: one minute. A
	// large store is looked through less often, so that it takes a hundredth of the
	// time at most.
	SweepInterval time.Duration `yaml:"-"`
	// RetainEvents and RetainBytes bound what waits for the reader of one Watch; 0:
	// 16,384 and 8 MiB.
	RetainEvents, RetainBytes int `yaml:"-"`
	// Now is the clock that entries expire by; nil: time.Now.
	Now func() time.Time `yaml:"-"`

	stale time.Duration // a watch that is behind for longer is closed; staleAfter but in tests
}

// SetDefaults fills in what may be left out.
func (c *Config) SetDefaults() {
	c.Prefix = cmp.Or(c.Prefix, defaultPrefix)
	for i, raw := range c.Endpoints {
		if u, err := url.Parse(raw); err == nil && u.Hostname() != "" && u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), defaultPort)
			c.Endpoints[i] = strings.TrimSuffix(u.String(), "/")
		}
	}
	c.SweepInterval = cmp.Or(max(c.SweepInterval, 0), time.Minute)
	c.RetainEvents = cmp.Or(max(c.RetainEvents, 0), 16_384)
	c.RetainBytes = cmp.Or(max(c.RetainBytes, 0), 8<<20)
	c.stale = cmp.Or(c.stale, staleAfter)
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate reports what contradicts itself, each as "key: what is wrong", where
// key is as in the configuration file. It
// reads no file.
func (c *Config) Validate() error {
	errs := []error{c.checkPrefix()}
	when := func(bad bool, key, what string) {
		if bad {
			errs = append(errs, errors.New("store.etcd."+key+": "+what))
		}
	}
	when(len(c.Endpoints) == 0, "endpoints", "is missing: name the client URLs of etcd's members, such as https://etcd1.corp.example:2379")
	for i := range c.Endpoints {
		if err := c.checkEndpoint(i); err != nil {
			errs = append(errs, fmt.Errorf("store.etcd.endpoints[%d]: %w", i, err))
		}
	}
	when((c.CertFile == "") != (c.KeyFile == ""), "certFile", "certFile and keyFile come together")
	when(!c.secure() && (c.CAFile != "" || c.CertFile != ""), "endpoints", "caFile and certFile are for https endpoints: write https")
	when(c.Username == "" && (c.Password != "" || c.PasswordFile != ""), "username", "is missing beside the password")
	when(c.Username != "" && c.Password == "" && c.PasswordFile == "", "passwordFile", "is missing beside username")
	return errors.Join(errs...)
}

// Same says whether c and other are the same store, used in the same way.
func (c *Config) Same(other Config) bool {
	return slices.Equal(c.Endpoints, other.Endpoints) && c.Prefix == other.Prefix &&
		c.CAFile == other.CAFile && c.CertFile == other.CertFile && c.KeyFile == other.KeyFile &&
		c.Username == other.Username && c.Password == other.Password
}

func (c *Config) checkPrefix() error {
	switch {
	case len(c.Prefix) < 2 || !strings.HasSuffix(c.Prefix, "/"):
		return errors.New("store.etcd.prefix: must end in a slash, such as /tabard/")
	case len(c.Prefix) > maxPrefix:
		return fmt.Errorf("store.etcd.prefix: must have at most %d bytes", maxPrefix)
	case strings.ContainsFunc(c.Prefix, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' ' }):
		return errors.New("store.etcd.prefix: must be printable ASCII without spaces, such as /tabard/")
	}
	return nil
}

func (c *Config) checkEndpoint(i int) error {
	u, err := url.Parse(c.Endpoints[i])
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Opaque != "":
		return errors.New("must be a URL such as https://etcd1.corp.example:2379")
	case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("must be scheme, host and port alone; a password goes to passwordFile")
	case strings.HasPrefix(c.Endpoints[i], "https:") != c.secure():
		return errors.New("must be https like the others, or all http")
	case !c.secure() && !c.InsecurePlaintext && !loopback(u.Hostname()):
		return errors.New("must be https: groups, sessions and signing keys would cross the network in the clear (insecurePlaintext: true allows it)")
	}
	return nil
}

// secure says whether endpoints are reached by TLS.
func (c *Config) secure() bool {
	return len(c.Endpoints) > 0 && strings.HasPrefix(c.Endpoints[0], "https:")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// tlsConfig reads the certificates; nil for http.
func (c *Config) tlsConfig() (*tls.Config, error) {
	if !c.secure() {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile: %s holds no certificate in PEM form", c.CAFile)
		}
	}
	if c.CertFile == "" {
		return config, nil
	}
	certificate := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate for etcd: %w", err)
		}
		return &pair, nil
	}
	if _, err := certificate(nil); err != nil { // now rather than at the first connection
		return nil, fmt.Errorf("certFile: %w", err)
	}
	config.GetClientCertificate = certificate
	return config, nil
}
