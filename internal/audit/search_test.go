package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var searchDay = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// writeChain writes events as the chain of a node, with their own times, into files of
// about fileSize bytes.
func writeChain(t testing.TB, dir, node string, fileSize Size, all []Event) {
	t.Helper()
	at := searchDay
	l := openTest(t, Config{Dir: dir, Node: node, FileSize: fileSize, Now: func() time.Time { return at }})
	for _, e := range all {
		at = e.Time
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
}

func searchAll(t testing.TB, dirs []string, q Query) []Event {
	t.Helper()
	var got []Event
	cursor, err := Search(t.Context(), dirs, q, func(e Event) error { got = append(got, e); return nil })
	if err != nil || q.Limit == 0 && cursor != "" {
		t.Fatal(cursor, err)
	}
	return got
}

func TestSearch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	minute := func(n int) time.Time { return searchDay.Add(time.Duration(n) * time.Minute) }
	writeChain(t, dir, "a", 700, []Event{
		{Time: minute(0), Act: "login", Who: "corp.1", Name: "Alice", Outcome: Done, Session: "s1", Address: "192.0.2.7"},
		{Time: minute(2), Act: "token.issue", Who: "corp.1", Name: "Alice", Outcome: Done, Session: "s1", JTI: "j1", Cluster: "prod"},
		{Time: minute(4), Act: "group.member.add", Who: "corp.2", Name: "jörg", On: "platform", Outcome: Done, Reason: `on call, "till" <Monday>`, Detail: map[string]string{"member": "corp.1", "name": "alice", "kind": "person"}},
		{Time: minute(6), Act: "group.create", Who: "corp.2", Name: "jörg", On: "alice", Outcome: Denied, Detail: map[string]string{"x": "ÄÖÜ"}},
	})
	writeChain(t, dir, "b", 700, []Event{
		{Time: minute(1), Act: "login", Who: "corp.2", Name: "jörg", Outcome: Failed, Reason: "no\nanswer", RequestID: "R1"},
		{Time: minute(3), Act: "explain", Who: "corp.2", Name: "jörg", On: "corp.1", Outcome: Done, Cluster: "prod"},
		{Time: minute(5), Act: "group.member.add", Who: "corp.2", Name: "jörg", On: "platform", Outcome: Done, Detail: map[string]string{"member": "corp:devs", "kind": "directoryGroup"}},
	})
	for _, c := range []struct {
		name string
		q    Query
		want []int // minutes
	}{
		{"all", Query{}, []int{6, 5, 4, 3, 2, 1, 0}},
		{"a person by name", Query{Person: "ALICE"}, []int{4, 2, 0}},
		{"a person by sub", Query{Person: "corp.1"}, []int{4, 3, 2, 0}},
		{"a name beyond ASCII", Query{Person: "JÖRG", Act: "login"}, []int{1}},
		{"a group", Query{Group: "platform"}, []int{5, 4}},
		{"a group with the name of a person", Query{Group: "alice", Outcome: Denied}, []int{6}},
		{"a directory group", Query{Group: "corp:devs"}, []int{5}},
		{"acts that begin alike", Query{Act: "group."}, []int{6, 5, 4}},
		{"an act", Query{Act: "group.create"}, []int{6}},
		{"a cluster", Query{Cluster: "prod"}, []int{3, 2}},
		{"an outcome", Query{Outcome: Failed}, []int{1}},
		{"a session", Query{Session: "s1"}, []int{2, 0}},
		{"a session in other letters", Query{Session: "S1"}, nil},
		{"a token", Query{JTI: "j1"}, []int{2}},
		{"a request", Query{RequestID: "R1"}, []int{1}},
		{"from", Query{From: minute(5)}, []int{6, 5}},
		{"to", Query{To: minute(2)}, []int{1, 0}},
		{"text", Query{Text: "ON CALL"}, []int{4}},
		{"text that JSON escapes", Query{Text: `"till" <mon`}, []int{4}},
		{"text over lines", Query{Text: "no\nanswer"}, []int{1}},
		{"text beyond ASCII", Query{Text: "äöü"}, []int{6}},
		{"text of one letter beyond ASCII", Query{Text: "ä"}, []int{6}},
		{"an address", Query{Text: "192.0.2."}, []int{0}},
		{"both", Query{Person: "corp.1", Cluster: "prod"}, []int{3, 2}},
		{"neither", Query{Person: "corp.1", Cluster: "test"}, nil},
		{"the newest two", Query{Limit: 2}, []int{6, 5}},
	} {
		var got []int
		for _, e := range searchAll(t, []string{dir}, c.q) {
			got = append(got, int(e.Time.Sub(searchDay)/time.Minute))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		got = nil
		for _, e := range searchAll(t, []string{filepath.Join(dir, "b"), filepath.Join(dir, "a")}, c.q) {
			got = append(got, int(e.Time.Sub(searchDay)/time.Minute))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s, in two folders: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestSearchFindsWhatReadingFinds compares pages of a search over chains of any shape
// with reading all of them.
func TestSearchFindsWhatReadingFinds(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", "A", "b", "aa", "ä", "Ä", "\u212a", "k", `"`, `a"b`, `\`, "<a>", "a b", "\x00", "\u2028", "login", "done", strings.Repeat("x", 900)})
	event := rapid.Custom(func(t *rapid.T) Event {
		return Event{
			Act: rapid.SampledFrom([]string{"login", "group.create", "group.list"}).Draw(t, "act"), Outcome: rapid.SampledFrom([]string{Done, Denied}).Draw(t, "outcome"),
			Who: word.Draw(t, "who"), Name: word.Draw(t, "name"), On: word.Draw(t, "on"), Cluster: word.Draw(t, "cluster"), Reason: word.Draw(t, "reason"),
			JTI: word.Draw(t, "jti"), Session: word.Draw(t, "session"), RequestID: word.Draw(t, "request"), Detail: map[string]string{word.Draw(t, "key"): word.Draw(t, "value")},
			Time: searchDay.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "minutes")) * time.Minute),
		}
	})
	root := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(root, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		var all []Event
		for node := range rapid.IntRange(0, 3).Draw(rt, "nodes") {
			chain := rapid.SliceOfN(event, 0, 30).Draw(rt, "events")
			slices.SortStableFunc(chain, func(a, b Event) int { return a.Time.Compare(b.Time) })
			writeChain(t, dir, fmt.Sprintf("n%d", node), Size(rapid.IntRange(300, 20_000).Draw(rt, "size")), chain)
			all = append(all, events(t, filepath.Join(dir, fmt.Sprintf("n%d", node)))...)
		}
		q := Query{Limit: rapid.IntRange(1, 20).Draw(rt, "limit")}
		for _, f := range []*string{&q.Person, &q.Group, &q.Cluster, &q.Session, &q.JTI, &q.RequestID, &q.Text} {
			if rapid.IntRange(0, 4).Draw(rt, "asked") == 0 {
				*f = word.Draw(rt, "value")
			}
		}
		q.Act = rapid.SampledFrom([]string{"", "", "group", "login", "GROUP.create"}).Draw(rt, "act")
		if rapid.Bool().Draw(rt, "times") {
			q.From, q.To = searchDay.Add(time.Hour), searchDay.Add(40*time.Hour)
		}
		checkPages(rt, dir, q, all)
	})
}

// checkPages reads page after page.
func checkPages(t *rapid.T, dir string, q Query, all []Event) {
	m := newMatcher(q)
	want := map[string]bool{}
	for _, e := range all {
		if m.matches(&e) {
			want[fmt.Sprint(e.Node, e.Seq)] = true
		}
	}
	last := searchDay.Add(1000 * time.Hour)
	for {
		count := 0
		next, err := Search(context.Background(), []string{dir}, q, func(e Event) error {
			count++
			id := fmt.Sprint(e.Node, e.Seq)
			if !want[id] || e.Time.After(last) {
				t.Fatalf("record %s of %v is not wanted here", id, e.Time)
			}
			delete(want, id)
			last = e.Time
			return nil
		})
		if err != nil || count > q.Limit {
			t.Fatal(count, err)
		}
		if next == "" {
			break
		}
		q.Cursor = next
	}
	if len(want) > 0 {
		t.Fatalf("not found: %v", want)
	}
}

// TestSearchBlocks has records much larger and much smaller than a block, and torn ones.
func TestSearchBlocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	big := map[string]string{}
	for i := range maxDetails {
		big[fmt.Sprintf("%02d%s", i, strings.Repeat("\x01", 1000))] = strings.Repeat("\x02", 1000)
	}
	var all []Event
	for i := range 2_000 {
		e := Event{Time: searchDay.Add(time.Duration(i) * time.Second), Act: "x", On: fmt.Sprint(i), Outcome: Done}
		if i%100 == 0 {
			e.Detail = big
		}
		all = append(all, e)
	}
	l := openTest(t, Config{Dir: dir})
	for part := range slices.Chunk(all, 500) {
		if err := l.AppendAll(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	addTo(t, paths(t, dir)[0], `{"seq":2001,"time":"2026`)
	got := searchAll(t, []string{dir}, Query{Act: "x"})
	for i, e := range got {
		if e.On != fmt.Sprint(1999-i) {
			t.Fatalf("record %d is %s", i, e.On)
		}
	}
	if len(got) != len(all) {
		t.Fatalf("%d records", len(got))
	}
}

// TestSearchEnds: it stops when told to, and time that runs out loses no place.
func TestSearchEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	all := slices.Repeat([]Event{{Act: "x", Outcome: Done, Reason: strings.Repeat("y", 1000)}}, 1_000)
	l := openTest(t, Config{Dir: dir})
	for range 3 {
		if err := l.AppendAll(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	mine := errors.New("enough")
	cursor, err := Search(t.Context(), []string{dir}, Query{}, func(Event) error { return mine })
	if !errors.Is(err, mine) {
		t.Fatal(err)
	}
	if next := searchAll(t, []string{dir}, Query{Cursor: cursor})[0]; next.Seq != 2_999 {
		t.Fatalf("it goes on with %d", next.Seq)
	}
	var seqs []uint64
	q := Query{}
	for rounds := 0; ; rounds++ {
		ctx, cancel := context.WithCancel(t.Context())
		cursor, err := Search(ctx, []string{dir}, q, func(e Event) error {
			if seqs = append(seqs, e.Seq); len(seqs)%400 == 0 {
				cancel()
			}
			return nil
		})
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) || cursor == "" || rounds > 20 {
			t.Fatal(cursor, err)
		}
		q.Cursor = cursor
	}
	for i, seq := range seqs {
		if seq != uint64(3_000-i) {
			t.Fatalf("record %d is %d", i, seq)
		}
	}
	if len(seqs) != 3_000 {
		t.Fatalf("%d records", len(seqs))
	}
	for _, bad := range []string{"x", "e30", "eyIwIjowfQ", "bnVsbA"} {
		if _, err := Search(t.Context(), []string{dir}, Query{Cursor: bad}, nil); !errors.Is(err, ErrCursor) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := Search(t.Context(), []string{filepath.Join(dir, "no")}, Query{}, nil); err == nil {
		t.Error("no folder is no trail")
	}
}

// FuzzBlocks cuts any file into blocks: each line is in one of them, whole.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte("{}\n{\"seq\":1}\n\nx\nyyyyyyyyyyyyyyyyyyyy\n"), 7)
	f.Add([]byte("no end"), 3)
	f.Add([]byte("\n\n\n"), 1)
	path := filepath.Join(f.TempDir(), "file")
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		if size < 1 || size > 1<<20 || len(text)/size > 100 {
			return
		}
		rewrite(t, path, text)
		var got []byte
		for begin := 0; begin < len(text); begin += size {
			part, err := block{path, int64(begin), int64(min(begin+size, len(text)))}.read()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, part...)
		}
		if want := text[:strings.LastIndexByte(string(text), '\n')+1]; string(got) != string(want) {
			t.Fatalf("got %q of %q", got, want)
		}
	})
}

func TestLower(t *testing.T) {
	for n := range 20 {
		for c := range 256 {
			b := slices.Repeat([]byte{byte(c)}, n)
			want := b
			if c < 0x80 {
				want = []byte(strings.ToLower(string(b)))
			}
			if got := lower(b); string(got) != string(want) {
				t.Fatalf("%q: %q", b, got)
			}
		}
	}
}

// FuzzMatcher: the bytes that are looked for first never hide what matches.
func FuzzMatcher(f *testing.F) {
	f.Add("alice", "ALICE", "ice")
	f.Add("a\"b", "\u212a", "k")
	f.Add("<>&", "\x00\xff", "\\")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		l := &Log{}
		e := Event{Act: "x" + a, Outcome: Done, Who: a, Name: b, Reason: c, Cluster: b, JTI: c, Detail: map[string]string{a: c}}
		body, err := l.encode(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		line, _ := appendLine(nil, tail{}, searchDay, body)
		var read Event
		if err := json.Unmarshal(line, &read); err != nil {
			t.Fatal(err)
		}
		for _, q := range []Query{{Person: a}, {Person: b}, {Group: c}, {Text: c}, {Text: a}, {Cluster: b, JTI: c}, {Act: "X" + a}} {
			m := newMatcher(q)
			found := false
			for range m.candidates(line) {
				found = true
			}
			if !found && m.matches(&read) {
				t.Fatalf("%+v hides %s", q, line)
			}
		}
	})
}
