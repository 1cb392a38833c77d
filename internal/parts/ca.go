package parts

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CA is a throw-away certificate authority: ECDSA P-256. Its key is in memory
// alone, so when this process ends nobody can issue more.
type CA struct {
	// File is the CA's certificate in PEM.
	File string
	// Cert is the CA's certificate.
	Cert *x509.Certificate

	dir string
	key crypto.Signer
}

// CAOptions say what a CA is good for.
type CAOptions struct {
	// Name is its common name.
	Name string
	// Lifetime is that of the CA and all it issues.
	Lifetime time.Duration
	// Loopback makes it good for localhost and loopback addresses alone (RFC 5280
	// section 4.2.1.10), so that trusting it risks nothing else.
	Loopback bool
}

// NewCA makes a CA and writes its certificate to ca.pem in dir.
func NewCA(dir string, o CAOptions) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	template, err := certTemplate(o.Name, time.Now().Add(o.Lifetime))
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	if o.Loopback {
		template.PermittedDNSDomainsCritical = true
		template.PermittedDNSDomains = []string{"localhost"}
		template.PermittedIPRanges = []*net.IPNet{{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, {IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA: %w", err)
	}
	ca := &CA{File: filepath.Join(dir, "ca.pem"), dir: dir, key: key}
	if ca.Cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse the CA: %w", err)
	}
	return ca, writePEM(ca.File, "CERTIFICATE", der)
}

// Issue makes a server certificate for names, each a host name or an IP address.
// It writes base.pem and base.key to the CA's folder and returns their paths; the
// key is PKCS #8.
func (ca *CA) Issue(base string, names ...string) (certFile, keyFile string, err error) {
	template, err := certTemplate(names[0], ca.Cert.NotAfter)
	if err != nil {
		return "", "", err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	return ca.sign(base, template)
}

// IssueClient makes a client certificate, as Issue does. Kubernetes takes user
// for the username and groups for the groups.
func (ca *CA) IssueClient(base, user string, groups ...string) (certFile, keyFile string, err error) {
	template, err := certTemplate(user, ca.Cert.NotAfter)
	if err != nil {
		return "", "", err
	}
	template.Subject.Organization = groups
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return ca.sign(base, template)
}

// Pool holds this CA alone, for an http.Client that trusts it.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return pool
}

func (ca *CA) sign(base string, template *x509.Certificate) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.key)
	if err != nil {
		return "", "", fmt.Errorf("sign a certificate for %s: %w", template.Subject.CommonName, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", fmt.Errorf("encode a key: %w", err)
	}
	certFile, keyFile = filepath.Join(ca.dir, base+".pem"), filepath.Join(ca.dir, base+".key")
	if err := writePEM(certFile, "CERTIFICATE", der); err != nil {
		return "", "", err
	}
	return certFile, keyFile, writePEM(keyFile, "PRIVATE KEY", pkcs8)
}

// certTemplate is what all certificates share. It begins an hour ago so that a
// part with a slightly slow clock accepts it.
func certTemplate(commonName string, end time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     end,
	}, nil
}

// writePEM writes a file only its owner reads.
func writePEM(path, kind string, der []byte) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
