package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/testenv"
)

// told runs a command, which must end with that code, and returns all it prints.
func told(t *testing.T, stdin string, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), args, strings.NewReader(stdin), &out, &out); code != want {
		t.Fatalf("%q: exit %d, want %d: %s", args, code, want, &out)
	}
	return out.String()
}

// TestBackupOfServer backs up a running server as an administrator, against a real
// OpenLDAP, and restores the copy into an empty store.
func TestBackupOfServer(t *testing.T) {
	ldap := testenv.StartSlapd(t)
	ldap.AddLDIF(t, testenv.SampleLDIF())
	s := start(t, served+fmt.Sprintf("directories:\n- {name: corp, type: ldap, urls: [%q], caFile: %q, bindDN: %q, bindPassword: %q}\n",
		ldap.TLSURL, ldap.CAFile, ldap.BindDN, ldap.BindPassword))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("TABARD_SERVER", "")
	s.log.wait(t, "directory works", 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "tabard.backup")
	told(t, "pw-carol\n", exitDone, "login", "--server", s.issuer, "--ca-file", filepath.Join(s.dir, "ca.pem"), "--username", "carol", "--password-stdin")
	told(t, "", exitDone, "groups", "create", "platform")
	told(t, "", exitDone, "groups", "add", "platform", "bob", "--reason", "on call")
	says(t, told(t, "", exitDone, "backup", file), file+": ", " records, ", "guard it")
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Fatal(fi, err)
	}
	says(t, told(t, "", exitFailed, "backup", file), "exists already", "--force")
	says(t, told(t, "", exitDone, "backup", file, "--force"), " records, ")
	says(t, told(t, "", exitDone, "restore", "--check", file), "is whole: ", " records, ")
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"backup", "-"}, nil, &out, &errs); code != exitDone {
		t.Fatal(code, errs.String())
	}
	if sum, err := backup.Verify(&out); err != nil || !strings.Contains(errs.String(), fmt.Sprint(sum.Records)+" records") {
		t.Fatal(sum, err, errs.String())
	}
	told(t, "pw-bob\n", exitDone, "login", "--username", "bob", "--password-stdin")
	says(t, told(t, "", exitFailed, "backup", filepath.Join(dir, "bob")), "administrators")
	says(t, told(t, "", exitFailed, "backup", filepath.Join(dir, "no", "folder")), "no such file or directory")
	says(t, told(t, "", exitFailed, "backup", "--config", s.path, filepath.Join(dir, "x")), "stop it")
	says(t, told(t, "", exitFailed, "restore", "--config", s.path, file), "stop it")
	s.end(t)
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}

	says(t, told(t, "", exitFailed, "restore", "--config", s.path, file), "the store is not empty", "move the bolt file away")
	if err := os.Rename(filepath.Join(s.dir, "tabard.db"), filepath.Join(s.dir, "old.db")); err != nil {
		t.Fatal(err)
	}
	says(t, told(t, "", exitDone, "restore", "--config", s.path, file), "restored and compared: ", "Start the server")
	s.run(t)
	s.end(t)
	says(t, told(t, "", exitDone, "groups", "show", "platform", "--config", s.path), "bob", "on call")
	says(t, trailOf(t, s.dir), `"act":"store.backup"`, `"act":"store.restore"`, `"outcome":"denied"`, `"who":"operator"`)
}

// trailOf is all that the trail in dir says.
func trailOf(t *testing.T, dir string) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "audit", "*"))
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// offlineStore is a configuration whose store holds one record, and the store's path.
func offlineStore(t *testing.T) (config, path string) {
	t.Helper()
	config = writeConfig(t, minimal)
	path = filepath.Join(filepath.Dir(config), "tabard.db")
	fill(t, path, store.Op{Key: "a/1", Value: []byte("x")})
	return config, path
}

func fill(t *testing.T, path string, ops ...store.Op) {
	t.Helper()
	st, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Txn(t.Context(), nil, ops)
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestBackupOffline(t *testing.T) {
	config, path := offlineStore(t)
	file := filepath.Join(t.TempDir(), "b")
	says(t, told(t, "", exitDone, "backup", "--config", config, file), "1 record, ", "format 1")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file  []byte
		words string
	}{
		"cut":     {whole[:len(whole)-10], "cut short"},
		"changed": {bytes.Replace(whole, []byte("eA=="), []byte("eQ=="), 1), "changed or damaged"},
		"other":   {[]byte("hello\n"), "not a backup of Tabard"},
		"newer":   {bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":9`), 1), "newer version"},
	} {
		bad := filepath.Join(t.TempDir(), name)
		writeFile(t, bad, string(c.file), 0o600)
		says(t, told(t, "", exitFailed, "restore", "--check", bad), "tabard: "+bad+": ", c.words)
		says(t, told(t, "", exitFailed, "restore", "--config", config, bad), c.words)
	}
	// A damaged store is refused with the way out, which works.
	if err := os.Truncate(path, 5_000); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"serve"}, {"groups", "list"}, {"backup", filepath.Join(t.TempDir(), "b")}} {
		says(t, told(t, "", exitFailed, append(args, "--config", config)...), "move it away", "tabard restore")
	}
	if err := os.Rename(path, path+".bad"); err != nil {
		t.Fatal(err)
	}
	says(t, told(t, "", exitDone, "restore", "--config", config, file), "restored and compared: 1 record, ")
}

func TestWrongUseOfBackups(t *testing.T) {
	config, _ := offlineStore(t)
	for _, args := range [][]string{{"backup"}, {"restore"}, {"restore", "x"}, {"restore", "x", "--check", "--config", config}} {
		if code, _, stderr := command(t, args...); code != exitUsage || !strings.HasPrefix(stderr, "tabard: ") {
			t.Errorf("%q: exit %d: %s", args, code, stderr)
		}
	}
	says(t, told(t, "", exitFailed, "restore", "--config", config, "nowhere"), "nowhere does not exist")
}

// TestHalfRestored has the marker of a restore that was cut off: nobody may work on
// that store.
func TestHalfRestored(t *testing.T) {
	config, path := offlineStore(t)
	fill(t, path, store.Op{Key: store.RestoreKey, Value: []byte("{}")})
	for _, args := range [][]string{{"serve"}, {"groups", "list"}, {"backup", filepath.Join(t.TempDir(), "b")}} {
		says(t, told(t, "", exitFailed, append(args, "--config", config)...), "run tabard restore with the same file again")
	}
}

func TestNewerStore(t *testing.T) {
	config, path := offlineStore(t)
	fill(t, path, store.Op{Key: store.FormatKey, Value: []byte(`{"format":99}`)})
	for _, args := range [][]string{{"serve"}, {"groups", "list"}} {
		says(t, told(t, "", exitFailed, append(args, "--config", config)...), "the records have format 99", "run that version")
	}
	file := filepath.Join(t.TempDir(), "b")
	says(t, told(t, "", exitDone, "backup", "--config", config, file), "format 99")
	says(t, told(t, "", exitFailed, "restore", "--check", file), "its records have format 99")
}

// TestMoveByCommand moves a store from bbolt to a real etcd by the commands alone, and
// finds that a server runs on it by the trail.
func TestMoveByCommand(t *testing.T) {
	e := testenv.StartEtcd(t)
	config, _ := offlineStore(t)
	told(t, "", exitDone, "groups", "create", "platform", "--config", config)
	file := filepath.Join(t.TempDir(), "b")
	told(t, "", exitDone, "backup", "--config", config, file)
	s := start(t, strings.Replace(served, "store: {bolt: {path: tabard.db}}", "store: {etcd: {endpoints: ['"+e.Endpoint+"'], prefix: /other/}}\naudit: {dir: audit}", 1)+deadDirectory)
	says(t, told(t, "", exitFailed, "restore", "--config", s.path, file), "stop it")
	s.end(t)
	says(t, told(t, "", exitFailed, "restore", "--config", s.path, file), "the store is not empty")
	s.configure(t, strings.Replace(served, "store: {bolt: {path: tabard.db}}", "store: {etcd: {endpoints: ['"+e.Endpoint+"']}}\naudit: {dir: audit}", 1)+deadDirectory)
	says(t, told(t, "", exitDone, "restore", "--config", s.path, file), "restored and compared")
	says(t, told(t, "", exitDone, "groups", "list", "--config", s.path), "platform")
}

// TestKeepCopy checks the copy that is made before a migration.
func TestKeepCopy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tabard.db")
	st, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: "a/1"}}); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	if err := keepCopy(t.Context(), path, st, log); err != nil {
		t.Fatal(err)
	}
	copies, _ := filepath.Glob(path + ".format1-*.backup")
	if len(copies) != 1 {
		t.Fatal(copies)
	}
	f, err := os.Open(copies[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if sum, err := backup.Verify(f); err != nil || sum.Records != 1 {
		t.Fatal(sum, err)
	}
	if fi, _ := f.Stat(); fi.Mode() != 0o600 {
		t.Fatal(fi.Mode())
	}
}

func TestNewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		force bool
		write func(io.Writer) error
		want  error
		there string
	}{
		{"fails", false, func(io.Writer) error { return broken }, broken, ""},
		{"new", false, text("one"), nil, "one"},
		{"exists", false, text("two"), os.ErrExist, "one"},
		{"replaces", true, text("three"), nil, "three"},
		{"fails to replace", true, func(w io.Writer) error { return errors.Join(text("half")(w), broken) }, broken, "three"},
	} {
		err := newFile(path, c.force, c.write)
		if c.want == nil && err != nil || c.want == broken && !errors.Is(err, broken) || c.want == os.ErrExist && (err == nil || !strings.Contains(err.Error(), "exists already")) {
			t.Errorf("%s: %v", c.name, err)
		}
		if b, _ := os.ReadFile(path); string(b) != c.there {
			t.Errorf("%s: there is %q", c.name, b)
		}
	}
	// Somebody makes the file meanwhile.
	other := filepath.Join(dir, "other")
	err := newFile(other, false, func(io.Writer) error { return os.WriteFile(other, []byte("theirs"), 0o600) })
	if b, _ := os.ReadFile(other); err == nil || string(b) != "theirs" {
		t.Errorf("%q, %v", b, err)
	}
	names, _ := os.ReadDir(dir)
	if !slices.EqualFunc(names, []string{"file", "other"}, func(e os.DirEntry, name string) bool { return e.Name() == name }) {
		t.Errorf("left behind: %v", names)
	}
}
