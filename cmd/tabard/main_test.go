package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestMain is the command itself in a process that a test starts with
// TEST_COMMAND set.
func TestMain(m *testing.M) {
	os.Setenv("TABARD_KEYRING", "off") // the developer's own
	if os.Getenv("TEST_COMMAND") != "" {
		main()
	}
	goleak.VerifyTestMain(testenv.Main{M: m})
}

func parseCert(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
