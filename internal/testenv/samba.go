package testenv

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

// Samba is an Active Directory domain controller of the domain corp.example
// (NetBIOS name CORP), on an own address of 127.0.0.0/8. It holds what
// provisioning makes and the read account BindDN. Its certificate names the address and
// dc1.corp.example.
type Samba struct{ LDAPServer }

// tdbNoSync leaves out syncs to disk, of which there are some for each write.
const tdbNoSync = "TDB_NO_FSYNC=1"

// StartSamba provisions a domain (some 5 s) and starts its controller, which
// ends with the test. It needs the right to use ports below 1024.
func StartSamba(t testing.TB) *Samba {
	t.Helper()
	Need(t, "samba", "samba-tool", "ldapmodify", "ldapsearch")
	ip := loopbackAddress(t)
	// Not t.TempDir: its length would not leave enough for a socket's path.
	dir, err := os.MkdirTemp("", "samba")
	if err != nil {
		t.Fatalf("create a folder for Samba: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca := NewCA(t, t.TempDir())
	s := &Samba{LDAPServer{
		URL: "ldap://" + ip, TLSURL: "ldaps://" + ip, CAFile: ca.File, BaseDN: "DC=corp,DC=example",
		AdminDN: "CN=Administrator,CN=Users,DC=corp,DC=example", AdminPassword: "Passw0rd-Admin1",
		BindDN: "CN=tabard,CN=Users,DC=corp,DC=example", BindPassword: "Passw0rd-Tabard1",
	}}
	s.provision(t, ca, dir, ip)
	s.command = Command{
		Path: Path(t, "samba"), Args: []string{"-i", "--no-process-group", "-M", "single", "-s", filepath.Join(dir, "etc", "smb.conf"), "--debuglevel=1"},
		Env:   []string{tdbNoSync},
		Ready: s.ready,
	}
	s.Start(t)
	s.AddLDIF(t, UserLDIF(s.BindDN, "tabard", s.BindPassword))
	return s
}

// provision makes the domain's database and configuration in dir.
func (s *Samba) provision(t testing.TB, ca *CA, dir, ip string) {
	t.Helper()
	certFile, keyFile := ca.Issue(t, "dc1.corp.example", ip)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Path(t, "samba-tool"), "domain", "provision",
		"--realm=CORP.EXAMPLE", "--domain=CORP", "--server-role=dc", "--dns-backend=NONE", "--use-rfc2307",
		"--adminpass="+s.AdminPassword, "--host-name=dc1", "--host-ip="+ip, "--targetdir="+dir)
	cmd.Env = append(os.Environ(), tdbNoSync)
	for _, option := range []string{
		"interfaces=" + ip + "/8", "bind interfaces only=yes", "server services=ldap, kdc", "dcerpc endpoint servers=-winreg -srvsvc",
		"posix:eadb=" + dir + "/private/eadb.tdb", "pid directory=" + dir + "/run", "ncalrpc dir=" + dir + "/ncalrpc", "log file=" + dir + "/log.%m",
		"tls certfile=" + certFile, "tls keyfile=" + keyFile, "tls cafile=" + s.CAFile,
	} {
		cmd.Args = append(cmd.Args, "--option="+option)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatalf("create a folder for Samba: %v", err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("provision a Samba domain: %v\n%s", err, out)
	}
}

func (s *Samba) ready(ctx context.Context) error {
	return ldapTool(exec.CommandContext(ctx, "ldapsearch", "-x", "-H", s.TLSURL, "-b", "", "-s", "base", "defaultNamingContext"), s.CAFile)
}

// UserLDIF is the entry of an enabled Active Directory user, for
// Samba.AddLDIF. Extra holds further lines, such as "mail: x@corp.example".
func UserLDIF(dn, sAMAccountName, password string, extra ...string) string {
	quoted := utf16.Encode([]rune(`"` + password + `"`))
	bytes := make([]byte, 0, 2*len(quoted))
	for _, u := range quoted {
		bytes = binary.LittleEndian.AppendUint16(bytes, u)
	}
	lines := append([]string{
		"dn: " + dn, "objectClass: user", "sAMAccountName: " + sAMAccountName, "userAccountControl: 512",
		"unicodePwd:: " + base64.StdEncoding.EncodeToString(bytes),
	}, extra...)
	return strings.Join(lines, "\n") + "\n\n"
}

// loopbackAddress returns an address of 127.0.0.0/8 where the ports of LDAP
// are free.
func loopbackAddress(t testing.TB) string {
	t.Helper()
	var err error
	for range 20 {
		ip := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
		if err = listenable(ip, "88", "389", "636"); err == nil {
			return ip
		}
		if errors.Is(err, os.ErrPermission) {
			Skip(t, "Samba listens on ports 88, 389 and 636: run the test as root, or with CAP_NET_BIND_SERVICE")
		}
	}
	t.Fatalf("find a loopback address for Samba: %v", err)
	return ""
}

func listenable(ip string, ports ...string) error {
	for _, port := range ports {
		l, err := net.Listen("tcp4", net.JoinHostPort(ip, port))
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}
