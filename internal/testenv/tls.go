package testenv

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/parts"
)

// CA is a certificate authority of one test: ECDSA P-256, good for a day.
type CA struct{ *parts.CA }

// NewCA makes a CA and writes its certificate to ca.pem in dir.
func NewCA(t testing.TB, dir string) *CA {
	t.Helper()
	ca, err := parts.NewCA(dir, parts.CAOptions{Name: "Tabard test CA", Lifetime: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return &CA{ca}
}

// Issue makes a server certificate for names, each a host name or an IP
// address, and for localhost, 127.0.0.1 and ::1. It writes PEM files to the
// CA's folder and returns their paths; the key is PKCS #8.
func (ca *CA) Issue(t testing.TB, names ...string) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile, err := ca.CA.Issue("cert-"+rand.Text(), append(names[:len(names):len(names)], "localhost", "127.0.0.1", "::1")...)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// IssueClient makes a client certificate. Kubernetes takes user for the
// username and groups for the groups.
func (ca *CA) IssueClient(t testing.TB, user string, groups ...string) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile, err := ca.CA.IssueClient("cert-"+rand.Text(), user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}
