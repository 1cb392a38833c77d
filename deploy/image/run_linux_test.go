package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/testenv"
)

// TestImageServes runs the image as an engine would: its file system as the root,
// its user and its command, with a configuration mounted into /etc/tabard.
func TestImageServes(t *testing.T) {
	binary, err := build("linux", runtime.GOARCH, "v1-test")
	if err != nil {
		t.Fatal(err)
	}
	img := sample()
	img.platforms = []platform{{"linux", runtime.GOARCH, binary}}
	l, _ := written(t, img)
	manifests, _ := l.platforms()
	config, files := l.rootFS(manifests[0])
	root := t.TempDir()
	unpack(t, root, files)

	if out, err := inside(t, root, config.Config.Entrypoint[0], "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "tabard v1-test") {
		t.Fatalf("%v: %s", err, out)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	client := configure(t, root, addr)
	var log bytes.Buffer
	server := inside(t, root, append(config.Config.Entrypoint, config.Config.Cmd...)...)
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ready := waitReady(client, "https://"+addr+"/readyz")
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := server.Wait(); err != nil || ready != nil {
		t.Errorf("ready: %v; end: %v\n%s", ready, err, log.String())
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/tabard/tabard.db")); err != nil {
		t.Error(err)
	}
}

// unpack writes the files as the account in the image, where the test may.
func unpack(t *testing.T, root string, files map[string]entry) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, e := range files {
		path := filepath.Join(root, name)
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, e.content, os.FileMode(e.Mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	for name, e := range files {
		if err := os.Chown(filepath.Join(root, name), e.Uid, e.Gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, name), os.FileMode(e.Mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// inside is a command whose root is the image and whose user is the image's. An
// account other than root gets there by a user namespace.
func inside(t *testing.T, root string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
		return cmd
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getgid(), Size: 1}}
	if err := exec.Command("unshare", "--user", "true").Run(); err != nil {
		testenv.Skip(t, "the image is run by root or in a user namespace, and this account may make none: run the test as root")
	}
	return cmd
}

// configure writes what is mounted into /etc/tabard. The directory it names does
// not answer, which does not stop a start.
func configure(t *testing.T, root, addr string) *http.Client {
	t.Helper()
	ca := testenv.NewCA(t, t.TempDir())
	cert, key := ca.Issue(t)
	config := fmt.Sprintf(`issuer: https://%s
listen: %s
tls: {certFile: tls.crt, keyFile: tls.key}
store: {bolt: {path: /var/lib/tabard/tabard.db}}
admins: ["corp:admins"]
directories:
- {name: corp, type: ldap, urls: ["ldaps://127.0.0.1:1"], caFile: ca.pem, bindDN: "cn=reader", bindPassword: secret}
clusters:
- {name: prod, clientID: kubernetes}
`, addr, addr)
	for name, from := range map[string]string{"tls.crt": cert, "tls.key": key, "ca.pem": ca.File, "tabard.yaml": ""} {
		b := []byte(config)
		if from != "" {
			var err error
			if b, err = os.ReadFile(from); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "etc/tabard", name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// waitReady tries for a minute.
func waitReady(client *http.Client, url string) (err error) {
	for range 240 {
		var resp *http.Response
		if resp, err = client.Get(url); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s answers %s", url, resp.Status)
		}
		time.Sleep(250 * time.Millisecond)
	}
	return err
}
