package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/tabard-id/tabard/internal/testenv"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("TABARD_AUDIT_CHILD"); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(testenv.Main{M: m})
}

func openTest(t testing.TB, cfg Config) *Log {
	t.Helper()
	cfg.unsigned = true // the tests of the chain count records
	return openSigned(t, cfg)
}

func openSigned(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "audit")
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustAppend(t testing.TB, l *Log, acts ...string) {
	t.Helper()
	for _, act := range acts {
		if err := l.Append(t.Context(), Event{Act: act, Outcome: Done}); err != nil {
			t.Fatal(err)
		}
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t testing.TB, dir string, first, last uint64) {
	t.Helper()
	if sum, err := Verify(dir); err != nil || sum.First != first || sum.Last != last {
		t.Fatalf("%+v, %v; want records %d to %d", sum, err, first, last)
	}
}

// paths are the files of the trail, oldest first.
func paths(t testing.TB, dir string) []string {
	t.Helper()
	files, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.path)
	}
	return names
}

// events reads back the whole trail.
func events(t testing.TB, dir string) []Event {
	t.Helper()
	var all []Event
	for _, p := range paths(t, dir) {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			var e Event
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			all = append(all, e)
		}
	}
	return all
}

func TestAppend(t *testing.T) {
	now := time.Date(2026, 11, 22, 23, 59, 0, 7, time.FixedZone("x", 3600))
	l := openTest(t, Config{Now: func() time.Time { return now }})
	ctx := WithOrigin(t.Context(), Origin{Address: "192.0.2.1", UserAgent: "curl", RequestID: "r1"})
	detail := map[string]string{"b": "2", "a": "1\n2\x00\u2028\"}"}
	in := Event{
		Seq: 99, Time: now.Add(time.Hour), Act: "login", Who: "corp.1", Name: "jörg", On: "c", Outcome: Denied, Reason: "x\r\ny",
		RequestID: "own", Session: "s", JTI: "j", Client: "k", Cluster: "p", Detail: detail,
	}
	if err := l.Append(ctx, in); err != nil {
		t.Fatal(err)
	}
	got := events(t, l.cfg.Dir)
	want := in
	want.Seq, want.Time, want.Address, want.UserAgent = 1, now.UTC(), "192.0.2.1", "curl"
	if fmt.Sprint(got) != fmt.Sprint([]Event{want}) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	mustVerify(t, l.cfg.Dir, 1, 1)
	for _, p := range paths(t, l.cfg.Dir) {
		if filepath.Base(p) != "audit-20261122-000000000001.jsonl" {
			t.Error(p)
		}
		if info, _ := os.Stat(p); info.Mode().Perm() != 0o600 {
			t.Error(info.Mode())
		}
	}
	if info, _ := os.Stat(l.cfg.Dir); info.Mode().Perm() != 0o700 {
		t.Error(info.Mode())
	}
}

// TestAppendAll has writers of batches and of single events: each batch is whole and
// in one piece.
func TestAppendAll(t *testing.T) {
	l := openTest(t, Config{FileSize: 20_000})
	ctx := WithOrigin(t.Context(), Origin{RequestID: "r"})
	const writers, each, batch = 8, 6, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				events := make([]Event, batch)
				for n := range events {
					events[n] = Event{Act: "batch", Who: fmt.Sprint(w), On: fmt.Sprint(i*batch + n), Outcome: Done, Soon: w == 0}
				}
				if err := errors.Join(l.AppendAll(ctx, events), l.Append(ctx, Event{Act: "one", Outcome: Done})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustVerify(t, l.cfg.Dir, 1, writers*each*(batch+1))
	next := map[string]int{}
	left, who := 0, ""
	for _, e := range events(t, l.cfg.Dir) {
		if e.RequestID != "r" || left > 0 && e.Who != who || left == 0 && e.Act == "batch" && next[e.Who]%batch != 0 {
			t.Fatalf("record %d: %+v inside a batch of %s", e.Seq, e, who)
		}
		if e.Act == "one" {
			continue
		}
		if left == 0 {
			left, who = batch, e.Who
		}
		if left--; e.On != fmt.Sprint(next[who]) {
			t.Fatalf("record %d of writer %s is %s, want %d", e.Seq, who, e.On, next[who])
		}
		next[who]++
	}
}

func TestAppendAllRefuses(t *testing.T) {
	l := openTest(t, Config{})
	one := Event{Act: "a", Outcome: Done}
	for _, events := range [][]Event{slices.Repeat([]Event{one}, maxEvents+1), {one, {}}} {
		if err := l.AppendAll(t.Context(), events); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	}
	if err := l.AppendAll(t.Context(), nil); err != nil {
		t.Error(err)
	}
	mustVerify(t, l.cfg.Dir, 0, 0)
	if err := l.AppendAll(t.Context(), slices.Repeat([]Event{one}, maxEvents)); err != nil {
		t.Error(err)
	}
	mustVerify(t, l.cfg.Dir, 1, maxEvents)
}

// TestSoon: a record that nobody waits for is in the file and the chain like any
// other, across files, and the log's own timer syncs it.
func TestSoon(t *testing.T) {
	l := openTest(t, Config{FileSize: 500})
	for i := range 20 {
		e := Event{Act: "token.issue", Outcome: Done, Soon: i%3 != 0}
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if n := len(events(t, l.cfg.Dir)); n != i+1 {
			t.Fatalf("%d records in the files after %d", n, i+1)
		}
	}
	mustVerify(t, l.cfg.Dir, 1, 20)
	if err := l.Close(); err != nil || l.late.Load() {
		t.Errorf("closed with late records: %v, %v", l.late.Load(), err)
	}
}

// TestSoonIsSynced waits for the timer, by a clock of the test's own.
func TestSoonIsSynced(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Dir: filepath.Join(dir, "audit")})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Append(t.Context(), Event{Act: "token.issue", Outcome: Done, Soon: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !l.late.Load() {
			t.Error("synced at once")
		}
		time.Sleep(soon)
		synctest.Wait()
		if l.late.Load() {
			t.Error("not synced in time")
		}
	})
}

func TestAppendRefuses(t *testing.T) {
	l := openTest(t, Config{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		e    Event
		want error
	}{
		{t.Context(), Event{Outcome: Done}, ErrInvalid},
		{t.Context(), Event{Act: "login"}, ErrInvalid},
		{t.Context(), Event{Act: "login", Outcome: "perhaps"}, ErrInvalid},
		{ended, Event{Act: "login", Outcome: Done}, context.Canceled},
	} {
		if err := l.Append(c.ctx, c.e); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.e, err, c.want)
		}
	}
	mustVerify(t, l.cfg.Dir, 0, 0)
	mustClose(t, l)
	mustClose(t, l)
	if err := l.Append(t.Context(), Event{Act: "login", Outcome: Done}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// TestBounds makes every string too long, of runes that take 3 bytes and of bytes
// that take 6 in JSON, and checks that none is cut inside a rune.
func TestBounds(t *testing.T) {
	for _, s := range []string{strings.Repeat("€", 9_000), strings.Repeat("\x01", 9_000), "a" + strings.Repeat("€", 9_000), strings.Repeat("\xff", 9_000)} {
		l := openTest(t, Config{})
		e := Event{Act: s, Who: s, Name: s, On: s, Outcome: Done, Reason: s, Address: s, UserAgent: s, RequestID: s, Session: s, JTI: s, Client: s, Cluster: s, Detail: map[string]string{}}
		for i := range 1_000 {
			e.Detail[fmt.Sprintf("%04d%s", i, s)] = s
		}
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if len(e.Detail) != 1_000 || len(e.Act) != len(s) {
			t.Fatal("the caller's event was changed")
		}
		got := events(t, l.cfg.Dir)[0]
		if len(got.Detail) != maxDetails || got.Detail["cut"] != "969 more details" {
			t.Fatalf("%d details, cut %q", len(got.Detail), got.Detail["cut"])
		}
		all := []string{got.Act, got.Who, got.Name, got.On, got.Reason, got.Address, got.UserAgent, got.RequestID, got.Session, got.JTI, got.Client, got.Cluster}
		for k, v := range got.Detail {
			if k != "cut" {
				all = append(all, k, v)
			}
		}
		valid := utf8.ValidString(s)
		for _, f := range all {
			if !strings.HasSuffix(f, "…") || valid && (len(f) > maxField || len(f) < maxField-3 || strings.ContainsRune(f, utf8.RuneError)) {
				t.Fatalf("%d bytes: %q", len(f), f)
			}
		}
		if info, _ := os.Stat(paths(t, l.cfg.Dir)[0]); info.Size() > maxGroupBytes {
			t.Fatalf("a record of %d bytes", info.Size())
		}
		mustVerify(t, l.cfg.Dir, 1, 1)
	}
	for _, s := range []string{"", "x", strings.Repeat("x", maxField)} {
		if cutString(s) != s {
			t.Errorf("%d bytes were cut", len(s))
		}
	}
}

func TestConcurrent(t *testing.T) {
	l := openTest(t, Config{FileSize: 20_000})
	const writers, each = 32, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				mine := fmt.Sprintf("%d.%d", w, i)
				if err := l.Append(t.Context(), Event{Act: "test", On: mine, Outcome: Done}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustVerify(t, l.cfg.Dir, 1, writers*each)
	next := make([]int, writers)
	for i, e := range events(t, l.cfg.Dir) {
		var w, n int
		_, _ = fmt.Sscanf(e.On, "%d.%d", &w, &n)
		if e.Seq != uint64(i+1) || n != next[w] {
			t.Fatalf("record %d is %d of writer %d, want %d", e.Seq, n, w, next[w])
		}
		next[w]++
	}
	if n := len(paths(t, l.cfg.Dir)); n < 5 {
		t.Fatalf("%d files", n)
	}
}

func TestReopen(t *testing.T) {
	day := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	cfg := Config{Dir: filepath.Join(t.TempDir(), "audit"), FileSize: 1_000}
	for i := range 10 {
		// The clock goes back: files are in order all the same.
		cfg.Now = func() time.Time { return day.AddDate(0, 0, -i) }
		l := openTest(t, cfg)
		mustAppend(t, l, "one", "two", "three")
		mustClose(t, l)
		mustVerify(t, cfg.Dir, 1, uint64(3*i+3))
	}
	files := paths(t, cfg.Dir)
	if len(files) < 5 {
		t.Fatalf("%d files", len(files))
	}
	// Open goes on without the oldest files, but nobody may take them away like that.
	if err := errors.Join(os.Remove(files[0]), os.Remove(files[1])); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, openTest(t, cfg), "more")
	var broken *BrokenError
	if sum, err := Verify(cfg.Dir); !errors.As(err, &broken) || broken.File != files[2] || !strings.Contains(broken.Why, "retention") {
		t.Fatal(sum, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	l := openTest(t, Config{})
	if _, err := Open(l.cfg); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "stop the other tabard") {
		t.Fatal(err)
	}
	if _, err := Open(Config{}); err == nil {
		t.Fatal("opened no folder")
	}
	if _, err := Open(Config{Dir: filepath.Join(t.TempDir(), "no", "audit")}); err == nil || !strings.Contains(err.Error(), "create it") {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: plain}); err == nil {
		t.Fatal("opened a file")
	}
}

// TestTornTail leaves what a crash may leave at the end of the last file.
func TestTornTail(t *testing.T) {
	whole := func(l *Log) string {
		lines, _ := appendLine(nil, l.tail, time.Now(), []byte(`{"act":"torn","outcome":"done"}`))
		return string(lines)
	}
	for _, c := range []struct {
		name string
		tail func(l *Log) string
	}{
		{"one byte", func(*Log) string { return "{" }},
		{"half a record", func(l *Log) string { return whole(l)[:100] }},
		{"all but the line feed", func(l *Log) string { w := whole(l); return w[:len(w)-1] }},
		{"zeros", func(*Log) string { return strings.Repeat("\x00", 5_000) }},
		{"zeros inside", func(l *Log) string { w := whole(l); return w[:50] + strings.Repeat("\x00", 50) + w[100:] }},
		{"garbage lines", func(*Log) string { return "a\n\nb\n{}\n" }},
	} {
		for _, records := range []int{0, 3} {
			t.Run(fmt.Sprintf("%s after %d", c.name, records), func(t *testing.T) {
				l := openTest(t, Config{})
				mustAppend(t, l, "x", "y", "z")
				if records == 0 { // the tear is all there is in a new file
					l.cfg.FileSize = 1
					if err := l.ready(time.Now()); err != nil {
						t.Fatal(err)
					}
				}
				mustClose(t, l)
				tail := c.tail(l)
				files := paths(t, l.cfg.Dir)
				addTo(t, files[len(files)-1], tail)
				if _, err := Verify(l.cfg.Dir); err == nil {
					t.Fatal("Verify did not see it")
				}
				checkRepaired(t, l.cfg.Dir, tail)
			})
		}
	}
}

func addTo(t *testing.T, path, tail string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(tail); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// checkRepaired opens a trail of x, y, z and a tear.
func checkRepaired(t *testing.T, dir, tail string) {
	t.Helper()
	mustAppend(t, openTest(t, Config{Dir: dir}), "after")
	mustVerify(t, dir, 1, 5)
	var acts []string
	for _, e := range events(t, dir) {
		acts = append(acts, e.Act)
	}
	if fmt.Sprint(acts) != "[x y z audit.repair after]" {
		t.Fatal(acts)
	}
	repair := events(t, dir)[3].Detail
	kept, err := os.ReadFile(filepath.Join(dir, repair["movedTo"]))
	if err != nil || string(kept) != tail || repair["bytes"] != fmt.Sprint(len(tail)) {
		t.Fatalf("%v: kept %d bytes of %d, %v", repair, len(kept), len(tail), err)
	}
}

// TestDiskFull lets a write end in the middle of a line, with the file size limit
// of this process in the disk's place.
func TestDiskFull(t *testing.T) {
	l := openTest(t, Config{})
	mustAppend(t, l, "x")
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(l.size) + 50
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	var errs []error
	for range 3 {
		errs = append(errs, l.Append(t.Context(), Event{Act: "lost", Outcome: Done}))
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	for _, err := range errs {
		if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), "check the disk") {
			t.Fatal(err)
		}
	}
	mustAppend(t, l, "y")
	mustVerify(t, l.cfg.Dir, 1, 2)
}

// TestRepairFails has a file that takes neither a record nor the repair: each
// Append fails, and none passes over the gap, until the repair succeeds.
func TestRepairFails(t *testing.T) {
	l := openTest(t, Config{})
	mustAppend(t, l, "x")
	good := l.f
	readOnly, err := os.Open(good.Name())
	if err != nil {
		t.Fatal(err)
	}
	l.f = readOnly
	for range 3 {
		if err := l.Append(t.Context(), Event{Act: "lost", Outcome: Done}); err == nil {
			t.Fatal("written to a file that cannot be")
		}
		if !l.torn {
			t.Fatal("taken for repaired")
		}
	}
	addTo(t, good.Name(), `{"seq":2,"time":`)
	l.f = good
	_ = readOnly.Close()
	mustAppend(t, l, "y")
	mustVerify(t, l.cfg.Dir, 1, 2)
}

// childConfig is what child opens: with a sink beside the folder.
func childConfig(dir string) Config {
	return Config{Dir: dir, FileSize: 30_000, Serve: true, pauses: pauses{save: time.Millisecond},
		Sinks: []SinkConfig{{Name: "copy", File: &FileConfig{dir + ".copy"}}}}
}

// child appends from several goroutines until it is killed, and says each record
// that was acknowledged.
func child(dir string) {
	l, err := Open(childConfig(dir))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 1_000_000 {
				id := fmt.Sprintf("%d.%d.%d", os.Getpid(), w, i)
				if err := l.Append(context.Background(), Event{Act: "test", On: id, Outcome: Done}); err != nil {
					fmt.Println("error", err)
					return
				}
				fmt.Println(id)
			}
		})
	}
	wg.Wait()
}

// killChild runs child, kills it after so many records, and returns what was
// acknowledged.
func killChild(t *testing.T, dir string, records int) (told []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TABARD_AUDIT_CHILD="+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "error") {
			t.Fatal(lines.Text())
		}
		if told = append(told, lines.Text()); len(told) == records {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	return told
}

// TestKill kills an appending process 10 times: the trail verifies after a new
// Open, and every record that was acknowledged is in it.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	told := map[string]bool{}
	for round := range 10 {
		for _, id := range killChild(t, dir, 11+37*round) {
			told[id] = true
		}
		mustClose(t, openTest(t, Config{Dir: dir}))
		if _, err := Verify(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range events(t, dir) {
		delete(told, e.On)
	}
	if len(told) > 0 {
		t.Fatalf("%d acknowledged records are lost", len(told))
	}
}
