package testenv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// DS389 is a 389 Directory Server on loopback with the suffix dc=example,dc=org.
// It holds the suffix's own entry and the read account BindDN. As after an
// installation, the plug-in MemberOf is off and uid takes ASCII alone. Its certificate
// names localhost alone.
type DS389 struct{ LDAPServer }

// systemctl389 stands in for systemctl, which dscreate insists on: %[1]d is the
// port, %[2]d that of LDAPS. It lets the server listen on loopback alone before
// it starts for the first time.
const systemctl389 = `#!/bin/sh
i=${2#dirsrv@} p=/run/dirsrv/slapd-${2#dirsrv@}.pid c=/etc/dirsrv/slapd-${2#dirsrv@}/dse.ldif
case $1 in
start)
	grep -qi '^nsslapd-listenhost:' $c || sed -i '/^dn: cn=config$/a nsslapd-listenhost: 127.0.0.1\nnsslapd-securelistenhost: 127.0.0.1\nnsslapd-secureport: %[2]d' $c
	[ -s $p ] && kill -0 $(cat $p) 2>/dev/null && exit 0
	ns-slapd -D /etc/dirsrv/slapd-$i -i $p || exit 1
	for n in $(seq 1200); do ldapsearch -x -H ldap://127.0.0.1:%[1]d -b '' -s base 1.1 >/dev/null 2>&1 && exit 0; sleep 0.05; done
	exit 1;;
stop)
	[ -s $p ] || exit 0
	q=$(cat $p); kill $q
	for n in $(seq 1200); do kill -0 $q 2>/dev/null || exit 0; sleep 0.05; done
	exit 1;;
is-active|status) [ -s $p ] && kill -0 $(cat $p);;
esac
`

const inf389 = `[general]
config_version = 2
full_machine_name = localhost
start = True
strict_host_checking = False
[slapd]
instance_name = %[1]s
port = %[2]d
secure_port = %[3]d
root_password = %[4]s
self_sign_cert = True
[backend-userroot]
suffix = %[5]s
sample_entries = no
`

const base389 = `dn: %[1]s
objectClass: domain
dc: example
aci: (targetattr != "userPassword")(version 3.0; acl "read"; allow (read, search, compare) userdn = "ldap:///all";)

dn: %[2]s
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: %[3]s

`

// StartDS389 makes an instance of 389 Directory Server (some 6 s) and starts it.
// It ends with the test, and so do its files. The server keeps those at fixed
// places, such as /etc/dirsrv/slapd-NAME, so it needs root.
func StartDS389(t testing.TB) *DS389 {
	t.Helper()
	Need(t, "ns-slapd", "dscreate", "ldapmodify", "ldapsearch")
	if os.Geteuid() != 0 {
		Skip(t, "389 Directory Server writes to /etc/dirsrv: run the test as root")
	}
	port, tlsPort := FreePort(t), FreePort(t)
	name := fmt.Sprintf("tabard%d", rand.Uint32())
	config := "/etc/dirsrv/slapd-" + name
	s := &DS389{LDAPServer{
		URL: fmt.Sprintf("ldap://localhost:%d", port), TLSURL: fmt.Sprintf("ldaps://localhost:%d", tlsPort),
		CAFile: filepath.Join(config, "ca.crt"), BaseDN: "dc=example,dc=org",
		AdminDN: "cn=Directory Manager", AdminPassword: "pw-admin-389",
		BindDN: "cn=tabard,dc=example,dc=org", BindPassword: "pw-tabard",
	}}
	t.Cleanup(func() { remove389(t, name) })
	s.create(t, name, port, tlsPort)
	s.toolURL = s.URL // libldap takes localhost for the machine's own name, which the certificate does not hold
	s.command = Command{
		Path: Path(t, "ns-slapd"), Args: []string{"-D", config, "-i", pidFile389(name), "-d", "0"},
		Ready: s.ready,
	}
	s.Start(t)
	s.AddLDIF(t, fmt.Sprintf(base389, s.BaseDN, s.BindDN, s.BindPassword))
	return s
}

// create makes the instance's files, for which dscreate starts the server.
func (s *DS389) create(t testing.TB, name string, port, tlsPort int) {
	t.Helper()
	for _, dir := range []string{"/run/dirsrv", "/run/lock/dirsrv"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("create a folder for 389 Directory Server: %v", err)
		}
	}
	dir := t.TempDir()
	shim, inf := filepath.Join(dir, "systemctl"), filepath.Join(dir, "instance.inf")
	writeFile(t, shim, fmt.Sprintf(systemctl389, port, tlsPort))
	writeFile(t, inf, fmt.Sprintf(inf389, name, port, tlsPort, s.AdminPassword, s.BaseDN))
	if err := os.Chmod(shim, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Path(t, "dscreate"), "from-file", inf)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH")+":"+sbinDirs)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("create an instance of 389 Directory Server: %v\n%s", err, out)
	}
	stop := exec.CommandContext(ctx, shim, "stop", "dirsrv@"+name)
	if out, err := stop.CombinedOutput(); err != nil {
		t.Fatalf("stop 389 Directory Server: %v\n%s", err, out)
	}
}

func pidFile389(name string) string { return "/run/dirsrv/slapd-" + name + ".pid" }

// remove389 removes all of an instance, and ends the server that a failed
// dscreate left.
func remove389(t testing.TB, name string) {
	if b, err := os.ReadFile(pidFile389(name)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && isServer389(pid, name) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, pattern := range []string{
		"/etc/dirsrv/slapd-%s", "/var/lib/dirsrv/slapd-%s", "/var/log/dirsrv/slapd-%s", "/run/lock/dirsrv/slapd-%s",
		"/run/dirsrv/slapd-%s.*", "/etc/tmpfiles.d/dirsrv-%s.conf", "/dev/shm/slapd-%s*",
	} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, name))
		for _, path := range found {
			if err == nil {
				err = os.RemoveAll(path)
			}
		}
		if err != nil {
			t.Errorf("remove an instance of 389 Directory Server: %v", err)
		}
	}
}

// isServer389 says whether a process is the instance's server: the number in
// an old file may be another's by now.
func isServer389(pid int, name string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), "slapd-"+name)
}

func (s *DS389) ready(ctx context.Context) error {
	return ldapTool(exec.CommandContext(ctx, "ldapsearch", "-x", "-H", s.toolURL, "-b", "", "-s", "base", "1.1"), s.CAFile)
}
