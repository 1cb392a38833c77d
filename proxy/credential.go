package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthenticationv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"
)

const (
	maxCredential = 1 << 20          // bytes of a file, or of a plugin's answer
	pluginTimeout = 30 * time.Second // of one run
	pluginLeeway  = 30 * time.Second // a plugin's credential is renewed so long before its end

	serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// credential is by what the proxy proves itself to an API server, and by what it knows
// that it is the one.
type credential struct {
	authorization string            // "Bearer …", or ""
	cert          *tls.Certificate  // or nil
	roots         *x509.CertPool    // nil: the system's
	expires       time.Time         // of a plugin's; zero: it did not say
	tls           [sha256.Size]byte // of what cert and roots were made from
}

// stale says whether a plugin has to be asked again.
func (c *credential) stale(now time.Time) bool {
	return !c.expires.IsZero() && now.Add(pluginLeeway).After(c.expires)
}

// inCluster completes the configuration of a pod, by what its cluster puts into it.
func (c APIServerConfig) inCluster(dir string) (APIServerConfig, error) {
	if !c.InCluster {
		return c, nil
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if c.URL == "" && (host == "" || port == "") {
		return c, errors.New("inCluster is set, but this is no pod: KUBERNETES_SERVICE_HOST is missing")
	}
	c.URL = cmp.Or(c.URL, "https://"+net.JoinHostPort(host, port))
	c.TokenFile = filepath.Join(dir, "token")
	if c.CA == "" && c.CAFile == "" {
		c.CAFile = filepath.Join(dir, "ca.crt")
	}
	return c, nil
}

// credential reads the files, or runs the plugin. held is the credential so far, or nil:
// of a plugin it is kept while it is good, unless the API server has refused it.
func (c APIServerConfig) credential(ctx context.Context, held *credential, refused bool) (*credential, error) {
	next := &credential{}
	ca := []byte(c.CA)
	var cert, key []byte
	var err error
	if len(ca) == 0 && c.CAFile != "" {
		ca, err = readSmall(c.CAFile)
	}
	switch {
	case err != nil:
	case c.TokenFile != "":
		next.authorization, err = readBearer(c.TokenFile)
	case c.CertFile != "":
		if cert, err = readSmall(c.CertFile); err == nil {
			key, err = readSmall(c.KeyFile)
		}
	case c.Exec != nil && held != nil && !refused && !held.stale(time.Now()):
		return held, nil
	case c.Exec != nil:
		var s *clientauthenticationv1.ExecCredentialStatus
		if s, err = c.Exec.run(ctx, c.URL, ca); err == nil {
			cert, key = []byte(s.ClientCertificateData), []byte(s.ClientKeyData)
			next.authorization, err = bearerHeader(s.Token)
			if s.ExpirationTimestamp != nil {
				next.expires = s.ExpirationTimestamp.Time
			}
		}
	}
	if err == nil {
		err = next.trust(ca, cert, key)
	}
	if err == nil && next.authorization == "" && next.cert == nil {
		err = errors.New("there is no credential: set tokenFile, certFile, exec or inCluster")
	}
	return next, err
}

// trust takes the certificates in, all in PEM form.
func (c *credential) trust(ca, cert, key []byte) error {
	if len(ca) > 0 {
		c.roots = x509.NewCertPool()
		if !c.roots.AppendCertsFromPEM(ca) {
			return errors.New("the CA is no certificate in PEM form")
		}
	}
	if len(cert) > 0 || len(key) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("the client certificate: %w", err)
		}
		c.cert = &pair
	}
	c.tls = sha256.Sum256(bytes.Join([][]byte{ca, cert, key}, []byte{0}))
	return nil
}

// tlsConfig is for connections by this credential, or for such as prove nothing.
func (c *credential) tlsConfig(prove bool) *tls.Config {
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots}
	if prove && c.cert != nil {
		// Without asking which authorities the API server likes: some do not say.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	return t
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err == nil && len(b) > maxCredential {
		err = errors.New("is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// readBearer returns the Authorization header for the token in a file.
func readBearer(path string) (string, error) {
	b, err := readSmall(path)
	if err != nil {
		return "", err
	}
	header, err := bearerHeader(strings.TrimSpace(string(b)))
	if err == nil && header == "" {
		err = errors.New("is empty")
	}
	if err != nil {
		return "", fmt.Errorf("the token in %s: %w", path, err)
	}
	return header, nil
}

// bearerHeader is the Authorization header for a token; "" for none.
func bearerHeader(token string) (string, error) {
	if token == "" {
		return "", nil
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("has a character that no header may hold")
	}
	return "Bearer " + token, nil
}

// run runs the plugin as client-go does, but never longer than pluginTimeout.
func (e *ExecConfig) run(ctx context.Context, server string, ca []byte) (*clientauthenticationv1.ExecCredentialStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	version := clientauthenticationv1.SchemeGroupVersion.String()
	info, err := json.Marshal(clientauthenticationv1.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ExecCredential"},
		Spec:     clientauthenticationv1.ExecCredentialSpec{Cluster: &clientauthenticationv1.Cluster{Server: server, CertificateAuthorityData: ca}},
	})
	if err != nil {
		return nil, fmt.Errorf("exec plugin: %w", err)
	}
	cmd := exec.CommandContext(ctx, e.Command, e.Args...)
	cmd.Env = append(os.Environ(), "KUBERNETES_EXEC_INFO="+string(info))
	for _, name := range slices.Sorted(maps.Keys(e.Env)) {
		cmd.Env = append(cmd.Env, name+"="+e.Env[name])
	}
	cmd.Stderr, cmd.WaitDelay = os.Stderr, time.Second
	out := &capped{}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("exec plugin %s: %w", e.Command, cmp.Or(ctx.Err(), err))
	}
	var got clientauthenticationv1.ExecCredential
	if err := json.Unmarshal(out.b, &got); err != nil || got.APIVersion != version || got.Kind != "ExecCredential" || got.Status == nil {
		return nil, fmt.Errorf("exec plugin %s: what it printed is no ExecCredential of %s with a status", e.Command, version)
	}
	return got.Status, nil
}

// capped is a buffer that refuses what is more than a credential.
type capped struct{ b []byte } // not a bytes.Buffer, which reads by itself without a bound

func (c *capped) Write(b []byte) (int, error) {
	if len(c.b)+len(b) > maxCredential {
		return 0, errors.New("too much output")
	}
	c.b = append(c.b, b...)
	return len(b), nil
}
