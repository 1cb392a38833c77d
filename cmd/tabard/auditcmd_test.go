package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
)

// someTrail writes some records where the configuration at path has its trail.
func someTrail(t *testing.T, path string) *Config {
	t.Helper()
	cfg, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		log, err := audit.Open(cfg.Audit)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []audit.Event{
			{Act: "login", Name: "alice", Who: "corp.1", Outcome: audit.Done, Address: "192.0.2.1"},
			{Act: "group.create", Name: "bob", Who: "corp.2", On: "platform", Outcome: audit.Denied, Reason: "not an administrator"},
		} {
			if err := log.Append(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func TestAuditCommands(t *testing.T) {
	path := writeConfig(t, minimal)
	if code, _, stderr := command(t, "audit", "key", "--config", path); code != exitFailed || !strings.Contains(stderr, "makes it when it first starts") {
		t.Errorf("no key yet: %d %s", code, stderr)
	}
	cfg := someTrail(t, path)
	elsewhere := t.TempDir()
	kept, key := filepath.Join(elsewhere, "kept"), filepath.Join(elsewhere, "key")
	files, err := filepath.Glob(filepath.Join(cfg.Audit.Dir, "*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, kept, "noise\n"+string(text), 0o600)
	_, pem, _ := command(t, "audit", "key", "--config", path)
	writeFile(t, key, pem, 0o600)
	last := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	for _, c := range []struct {
		name, file string // what the file of the trail holds
		args       []string
		code       int
		out        string
	}{
		{"whole", string(text), []string{"--config", path}, exitDone, "records 1 to 6 in 1 file, 2 checkpoints; signed to the end"},
		{"whole, all proofs", string(text), []string{"--dir", cfg.Audit.Dir, "--key", key, "--checkpoint", kept}, exitDone, "signed to the end; 2 checkpoints kept elsewhere fit"},
		{"whole, no proof", string(text), []string{"--dir", cfg.Audit.Dir}, exitDone, "signatures not checked: give --key"},
		{"cut", string(text[:last]), []string{"--config", path}, exitDone, "signed up to record 3"},
		{"cut, but kept elsewhere", string(text[:last]), []string{"--config", path, "--checkpoint", kept}, exitFailed, "BROKEN " + files[0] + ":6: the end was cut off"},
		{"changed", strings.Replace(string(text), "bob", "eve", 1), []string{"--config", path}, exitFailed, "BROKEN " + files[0] + ":2: the record was changed"},
	} {
		writeFile(t, files[0], c.file, 0o600)
		code, stdout, stderr := command(t, append([]string{"audit", "verify"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout, c.out) {
			t.Errorf("%s: exit %d: %s%s", c.name, code, stdout, stderr)
		}
	}
	if code, _, stderr := command(t, "audit", "verify", "--config", path, "--key", kept); code != exitFailed || !strings.Contains(stderr, ".pub") {
		t.Errorf("no key: %d %s", code, stderr)
	}
	if code, _, stderr := command(t, "audit", "verify"); code != exitUsage || !strings.Contains(stderr, "--dir") {
		t.Errorf("nothing to verify: %d %s", code, stderr)
	}
}

func TestAuditSearchFiles(t *testing.T) {
	path := writeConfig(t, minimal)
	cfg := someTrail(t, path)
	code, stdout, stderr := command(t, "audit", "search", "--config", path, "--person", "ALICE")
	if code != exitDone || strings.Count(stdout, "\n") != 3 || !strings.Contains(stdout, "192.0.2.1") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
	q := []string{"audit", "search", "--dir", cfg.Audit.Dir, "--act", "group.", "--limit", "1", "-o", "json"}
	var page api.AuditPage
	_, stdout, _ = command(t, q...)
	if err := json.Unmarshal([]byte(stdout), &page); err != nil || len(page.Events) != 1 || page.Events[0].Seq != 5 || page.Next == "" {
		t.Fatalf("%s %v", stdout, err)
	}
	_, stdout, _ = command(t, append(q, "--cursor", page.Next)...)
	if err := json.Unmarshal([]byte(stdout), &page); err != nil || len(page.Events) != 1 || page.Events[0].Seq != 2 {
		t.Fatalf("%s %v", stdout, err)
	}
	for _, wrong := range [][]string{{"--limit", "0"}, {"-o", "xml"}, {"--from", "x"}, {"--to", "yesterday"}, {"--outcome", "nope"}, {"x"}} {
		for _, where := range [][]string{{"--config", path}, {"--server", "https://127.0.0.1:1"}} {
			code, _, stderr := command(t, append(append([]string{"audit", "search"}, where...), wrong...)...)
			if code != exitUsage || !strings.HasSuffix(stderr, "\nSee `tabard audit search --help`.\n") {
				t.Errorf("%q: exit %d %s", wrong, code, stderr)
			}
		}
	}
	if _, _, stderr := command(t, "audit", "search", "--config", path, "--outcome", "nope"); !strings.Contains(stderr, "--outcome nope: use intended, done, denied, failed") {
		t.Error(stderr)
	}
	if code, stdout, stderr := command(t, "audit", "search", "--config", path, "--outcome", "DENIED"); code != exitDone || strings.Count(stdout, "\n") != 3 {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
}

func TestDoctorTrail(t *testing.T) {
	path := writeConfig(t, strings.Replace(minimal, "admins:", "audit: {dir: trail, sinks: [{name: copy, file: {path: copy}}, {name: late, file: {path: no/copy}}]}\nadmins:", 1))
	cfg := someTrail(t, path)
	examine := func() string {
		d := &doctor{cfg: cfg}
		d.trail()
		return check(d.findings, "audit")
	}
	if got := examine(); !strings.HasPrefix(got, "ok: ") {
		t.Errorf("got %s", got) // the records are seconds old
	}
	old := cfg.Audit
	old.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	old.Dir = filepath.Join(t.TempDir(), "trail")
	log, err := audit.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	log, err = audit.Open(old)
	if err == nil {
		err = log.Append(t.Context(), audit.Event{Act: "x", Outcome: audit.Done})
	}
	if err == nil {
		err = log.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg.Audit.Dir = old.Dir
	if got := examine(); !strings.Contains(got, "warn: sink copy lacks 2 records") || !strings.Contains(got, "sink late lacks 2 records") {
		t.Errorf("got %s", got)
	}
	cfg.Audit.Dir = filepath.Join(t.TempDir(), "none")
	if got := examine(); !strings.Contains(got, "does not exist yet") {
		t.Errorf("got %s", got)
	}
}
