package testenv

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// LDAPServer is a running directory, as Slapd, Samba and DS389 each have one.
type LDAPServer struct {
	*Process
	// URL begins with ldap://, with StartTLS; TLSURL begins with ldaps://.
	URL, TLSURL string
	// CAFile signed its certificate.
	CAFile string
	// BaseDN is the suffix, or the domain.
	BaseDN string
	// AdminDN and AdminPassword may do everything.
	AdminDN, AdminPassword string
	// BindDN and BindPassword are a read account, as Tabard has one.
	BindDN, BindPassword string

	command Command
	toolURL string // where ldapmodify reaches it; "": TLSURL
}

// Start starts the server again after Stop or Kill, at the same addresses and
// with the same data.
func (s *LDAPServer) Start(t testing.TB) {
	t.Helper()
	s.Process = Start(t, s.command)
}

// AddLDIF adds the entries of ldif, and obeys its changetype lines, as the
// administrator.
func (s *LDAPServer) AddLDIF(t testing.TB, ldif string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ldapmodify", "-a", "-x", "-H", cmp.Or(s.toolURL, s.TLSURL), "-D", s.AdminDN, "-w", s.AdminPassword)
	cmd.Stdin = strings.NewReader(ldif)
	if err := ldapTool(cmd, s.CAFile); err != nil {
		t.Fatalf("add LDIF to %s: %v", s.URL, err)
	}
}

// ldapTool runs one of OpenLDAP's tools, trusting the CA in caFile.
func ldapTool(cmd *exec.Cmd, caFile string) error {
	cmd.Env = append(os.Environ(), "LDAPTLS_CACERT="+caFile)
	var stderr strings.Builder // stdout only tells what went well
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, &stderr)
	}
	return nil
}
