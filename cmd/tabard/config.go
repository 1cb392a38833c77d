package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/proxy"
	"github.com/tabard-id/tabard/web"
)

// Config is the configuration file. Each room's part is that room's own struct.
type Config struct {
	Issuer         string             `yaml:"issuer"`         // https URL without a slash at its end
	Brand          string             `yaml:"brand"`          // name shown on pages
	Listen         string             `yaml:"listen"`         // host:port; :8443 when empty
	Metrics        MetricsConfig      `yaml:"metrics"`        //
	TrustedProxies []string           `yaml:"trustedProxies"` // CIDRs whose X-Forwarded-For counts
	TLS            TLSConfig          `yaml:"tls"`            //
	Store          StoreConfig        `yaml:"store"`          //
	Audit          audit.Config       `yaml:"audit"`          //
	Admins         []string           `yaml:"admins"`         // groups that administer everything
	Directories    []directory.Config `yaml:"directories"`    //
	Clusters       []ClusterConfig    `yaml:"clusters"`       //
	Clients        []idp.ClientConfig `yaml:"clients"`        //
	Tokens         idp.TokenConfig    `yaml:"tokens"`         //
	Sessions       idp.SessionConfig  `yaml:"sessions"`       //
	Throttle       idp.ThrottleConfig `yaml:"throttle"`       // of wrong passwords
	Keys           idp.KeyConfig      `yaml:"keys"`           //

	idp      idp.Config
	proxy    *proxy.Table
	proxies  []netip.Prefix
	cert     *tls.Certificate // nil without TLS
	warnings []string
	files    map[string][sha256.Size]byte // what was read, for reload
}

// MetricsConfig says where /metrics and pprof are; nowhere when Listen is empty.
type MetricsConfig struct {
	Listen string `yaml:"listen"` // host:port
}

// TLSConfig names the server's certificate chain and key, PEM files.
type TLSConfig struct {
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

const (
	maxConfig = 256 << 10 // bytes of a configuration file
	maxSecret = 64 << 10  // bytes of a file that it names
)

// loader is a configuration being read.
type loader struct {
	*decoder
	cfg       *Config
	path, dir string // of the file, and what relative paths are relative to
}

// loadConfig reads, checks and completes the configuration at path, with the
// secrets it names. The error is a *configError with every mistake that was
// found; the Config then holds which files were read, and no more is to be used.
func loadConfig(path string) (*Config, error) {
	cfg := &Config{files: map[string][sha256.Size]byte{}}
	b, err := cfg.read(path, maxConfig)
	if err != nil {
		return cfg, &configError{path, []mistake{{msg: err.Error()}}}
	}
	l := &loader{decoder: decode(b, cfg), cfg: cfg, path: path, dir: filepath.Dir(path)}
	if len(l.mistakes) == 0 {
		l.check()
		l.readFiles()
		l.rooms()
	}
	if len(l.mistakes) > 0 {
		slices.SortStableFunc(l.mistakes, func(a, b mistake) int { return cmp.Or(a.line-b.line, a.column-b.column) })
		return cfg, &configError{path, l.mistakes}
	}
	return cfg, nil
}

// read returns a file of at most limit bytes and remembers what was in it.
func (c *Config) read(path string, limit int64) ([]byte, error) {
	c.files[path] = [sha256.Size]byte{}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, errors.New("is not a regular file") // opening a pipe would wait for its writer
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.New(fileTrouble(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	c.files[path] = sha256.Sum256(b)
	switch {
	case err != nil:
		return nil, errors.New(fileTrouble(err))
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("is larger than %d KiB: is it the right file?", limit>>10)
	}
	return b, nil
}

// fileTrouble says why a file cannot be read, and what to do.
func fileTrouble(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "does not exist: create it or correct the path"
	case errors.Is(err, os.ErrPermission):
		return "may not be read: give the account that Tabard runs as the right to"
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return "cannot be read: " + err.Error()
}

// wrongAt notes a mistake at the line of key, or of the nearest key above it.
func (l *loader) wrongAt(key, format string, args ...any) {
	m := mistake{key: key, msg: fmt.Sprintf(format, args...)}
	for at := key; at != ""; at = at[:max(strings.LastIndexAny(at, ".["), 0)] {
		if pos, ok := l.at[at]; ok {
			m.position = pos
			break
		}
	}
	l.mistakes = append(l.mistakes, m)
}

func (l *loader) warn(format string, args ...any) {
	l.cfg.warnings = append(l.cfg.warnings, fmt.Sprintf(format, args...))
}

// check looks at the keys that belong to no room.
func (l *loader) check() {
	c := l.cfg
	l.checkIssuer()
	c.Listen = cmp.Or(c.Listen, ":8443")
	local := l.checkListen("listen", c.Listen)
	if c.Metrics.Listen != "" && !l.checkListen("metrics.listen", c.Metrics.Listen) {
		l.warn("metrics.listen is not on loopback: whoever reaches %s can read metrics and profiles", c.Metrics.Listen)
	}
	switch {
	case (c.TLS.CertFile == "") != (c.TLS.KeyFile == ""):
		l.wrongAt("tls", "needs both certFile and keyFile")
	case c.TLS.CertFile == "" && !local:
		l.wrongAt("tls", "is missing: set certFile and keyFile, or listen on 127.0.0.1 behind a proxy that has TLS")
	}
	for i, s := range c.TrustedProxies {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			l.wrongAt(fmt.Sprintf("trustedProxies[%d]", i), "is not a network such as 10.0.0.0/8")
		}
		c.proxies = append(c.proxies, p.Masked())
	}
	l.checkStore()
	if len(c.Admins) == 0 {
		l.warn("admins is empty: nobody can change groups but with --config while the server is stopped")
	}
	if len(c.Directories) == 0 {
		l.wrongAt("directories", "is missing: name at least one, or nobody can sign in")
	}
	for i := range c.Directories {
		if strings.HasPrefix(strings.ToLower(c.Directories[i].Users.UsernamePrefix), idp.ClientPrefix) {
			l.wrongAt(fmt.Sprintf("directories[%d].users.usernamePrefix", i), "may not begin with %s, which is for clients' own tokens", idp.ClientPrefix)
		}
	}
}

func (l *loader) checkIssuer() {
	raw := l.cfg.Issuer
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		l.wrongAt("issuer", "is missing: write the https URL that API servers and people reach Tabard at")
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "":
		l.wrongAt("issuer", "must be an https URL such as https://id.corp.example, because API servers accept no other")
	case strings.ContainsAny(raw, "?#"):
		l.wrongAt("issuer", "must have no query and no fragment")
	case strings.HasSuffix(raw, "/"):
		l.wrongAt("issuer", "must not end in a slash: API servers compare it letter by letter")
	}
}

// checkListen says whether addr is on loopback alone.
func (l *loader) checkListen(key, addr string) (local bool) {
	host, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		l.wrongAt(key, "must be HOST:PORT or :PORT")
		return true
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// resolve makes a path relative to the configuration file's folder.
func (l *loader) resolve(path *string) {
	if *path != "" && !filepath.IsAbs(*path) {
		*path = filepath.Join(l.dir, *path)
	}
}

// readFiles reads every file that the configuration names.
func (l *loader) readFiles() {
	c := l.cfg
	cert, key := l.file("tls.certFile", &c.TLS.CertFile), l.secretFile("tls.keyFile", &c.TLS.KeyFile)
	l.certificate(cert, key)
	l.etcdFiles()
	l.auditFiles()
	for i := range c.Directories {
		d := &c.Directories[i]
		path := fmt.Sprintf("directories[%d]", i)
		l.caFile(path+".caFile", &d.CAFile)
		l.secret(path+".bindPassword", &d.BindPassword, &d.BindPasswordFile)
	}
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		l.apiServerFiles(fmt.Sprintf("clusters[%d]", i), cl)
		if cl.Webhook == nil {
			continue
		}
		for j := range cl.Webhook.Callers {
			caller := &cl.Webhook.Callers[j]
			l.secret(fmt.Sprintf("clusters[%d].webhook.callers[%d].token", i, j), &caller.Token, &caller.TokenFile)
		}
	}
	l.secret("keys.encryptionKey", &c.Keys.EncryptionKey, &c.Keys.EncryptionKeyFile)
	for i := range c.Clients {
		cl, path := &c.Clients[i], fmt.Sprintf("clients[%d]", i)
		l.secret(path+".secret", &cl.Secret, &cl.SecretFile)
		cl.JWKS = string(l.file(path+".jwksFile", &cl.JWKSFile))
		cl.ServiceAccount.JWKS = string(l.file(path+".serviceAccount.jwksFile", &cl.ServiceAccount.JWKSFile))
	}
}

// caFile reads the certificates at *path, if any.
func (l *loader) caFile(key string, path *string) string {
	pem := l.file(key, path)
	if len(pem) > 0 && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		l.wrongAt(key, "%s holds no certificate in PEM form", *path)
	}
	return string(pem)
}

// file reads the file at *path, if any, and makes the path absolute to the file.
func (l *loader) file(key string, path *string) []byte {
	if *path == "" {
		return nil
	}
	l.resolve(path)
	b, err := l.cfg.read(*path, maxSecret)
	switch {
	case err != nil:
		l.wrongAt(key, "%s %s", *path, err)
	case len(bytes.TrimSpace(b)) == 0:
		l.wrongAt(key, "%s is empty", *path)
	}
	return b
}

func (l *loader) secretFile(key string, path *string) []byte {
	b := l.file(key, path)
	l.warnOpen(key, *path)
	return b
}

// warnOpen warns of a secret that everybody can read.
func (l *loader) warnOpen(key, path string) {
	if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o007 != 0 {
		l.warn("%s: every account of this machine can read %s: run chmod o-rwx on it", key, path)
	}
}

// keyPair joins a chain and its key; nil where one is missing, or they do not fit.
func (l *loader) keyPair(at string, cert, key []byte) *tls.Certificate {
	if len(cert) == 0 || len(key) == 0 {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		l.wrongAt(at, "certFile and keyFile do not fit together (%s): both must be PEM, and the key the certificate's own", strings.TrimPrefix(err.Error(), "tls: "))
		return nil
	}
	return &pair
}

// certificate takes the server's chain and key.
func (l *loader) certificate(cert, key []byte) {
	l.cfg.cert = l.keyPair("tls", cert, key)
	if l.cfg.cert == nil {
		return
	}
	for _, w := range certTrouble(l.cfg.cert.Leaf, l.cfg.Issuer, time.Now()) {
		l.warn("tls.certFile: %s", w)
	}
}

// certTrouble says why API servers and people would not accept the certificate
// for the issuer.
func certTrouble(leaf *x509.Certificate, issuer string, now time.Time) []string {
	var out []string
	if u, err := url.Parse(issuer); err == nil && leaf.VerifyHostname(u.Hostname()) != nil {
		out = append(out, fmt.Sprintf("the certificate is for %s and not for the issuer's host %s: get one that names it, unless a proxy in front has its own", certNames(leaf), u.Hostname()))
	}
	switch {
	case now.Before(leaf.NotBefore):
		out = append(out, fmt.Sprintf("the certificate begins at %s, which is in the future: is this machine's clock right?", leaf.NotBefore.Format(time.RFC3339)))
	case now.After(leaf.NotAfter):
		out = append(out, fmt.Sprintf("the certificate ended at %s: renew it", leaf.NotAfter.Format(time.RFC3339)))
	}
	return out
}

// certNames is what a certificate is for, for a person.
func certNames(leaf *x509.Certificate) string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no host (it has no subject alternative names)"
	}
	return strings.Join(names, ", ")
}

// secret fills *value from *path without the newline at its end.
func (l *loader) secret(key string, value, path *string) {
	if *value != "" && *path != "" {
		l.wrongAt(key, "contradicts %sFile: leave one out", key[strings.LastIndexByte(key, '.')+1:])
		return
	}
	if *value != "" {
		l.warnOpen(key, l.path)
	}
	if *path == "" {
		return
	}
	b := l.secretFile(key+"File", path)
	*value = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if *value != "" {
		*path = ""
	}
}

// rooms lets each room check its part.
func (l *loader) rooms() {
	c := l.cfg
	if c.Store.Etcd != nil {
		l.fromRoom(c.Store.Etcd.Validate())
	}
	l.fromRoom(c.Audit.Validate())
	l.fromRoom(directory.ValidateAll(c.Directories))
	c.idp = idp.Config{Issuer: c.Issuer, Tokens: c.Tokens, Sessions: c.Sessions, Throttle: c.Throttle, Clients: c.Clients}
	l.proxies()
	for i := range c.Directories {
		if c.Directories[i].Outage.LastKnown > 0 {
			if c.idp.Outage == nil {
				c.idp.Outage = map[string]time.Duration{}
			}
			c.idp.Outage[c.Directories[i].Name] = c.Directories[i].Outage.LastKnown
		}
		c.idp.DirectoryPrefixes = append(c.idp.DirectoryPrefixes, c.Directories[i].GroupPrefix())
	}
	vault, err := idp.ParseVault(c.Keys.EncryptionKey)
	if err != nil {
		l.wrongAt("keys.encryptionKey", "%s", err)
	}
	c.Keys.Vault, c.idp.Vault = vault, vault
	c.idp.SetDefaults()
	l.fromRoom(c.idp.Validate())
	c.Keys.Algorithms, c.Keys.Retain = c.idp.KeyAlgorithms(), c.idp.LongestToken()
	l.fromRoom(c.Keys.Validate())
	if err := (web.Config{Brand: c.Brand}).Validate(); err != nil {
		l.wrongAt("brand", "%s", strings.TrimPrefix(err.Error(), "brand "))
	}
}

// fromRoom notes a room's mistakes: a tree of errors, each "path: what is wrong".
func (l *loader) fromRoom(err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			l.fromRoom(e)
		}
		return
	}
	key, msg := "", err.Error()
	if m := roomError.FindStringSubmatch(msg); m != nil {
		key, msg = l.byIndex(m[1]), m[2]
	}
	for _, m := range l.mistakes {
		if m.key == key {
			return // said already
		}
	}
	l.wrongAt(key, "%s", strings.ReplaceAll(msg, "\n", " "))
}

var roomError = regexp.MustCompile(`(?s)^([A-Za-z]+(?:\[[^\]]*\])?(?:\.[A-Za-z]+(?:\[\d+\])?)*): (.*)$`)

// byIndex turns directories[corp].urls into directories[0].urls.
func (l *loader) byIndex(key string) string {
	rest, ok := strings.CutPrefix(key, "directories[")
	name, rest, cut := strings.Cut(rest, "]")
	if !ok || !cut {
		return key
	}
	for i := len(l.cfg.Directories) - 1; i >= 0; i-- {
		if l.cfg.Directories[i].Name == name {
			return fmt.Sprintf("directories[%d]%s", i, rest)
		}
	}
	return key
}
