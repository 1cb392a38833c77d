package idp

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/store"
)

// listed returns the ids that ListSessions shows, and fails unless it allows it.
func (h *house) listed(a groups.Actor, admin bool, f SessionFilter) []string {
	h.t.Helper()
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	page, _, err := h.ListSessions(a, admin, f)
	h.must(err)
	ids := []string{}
	for _, s := range page {
		ids = append(ids, s.ID)
	}
	return ids
}

func TestSessionsAreListedAndEnded(t *testing.T) {
	h := newHouse(t)
	tokens, cookie := h.login("bob", "kubernetes")
	h.clock.pass(time.Minute)
	other, _ := h.login("bob", "dev")
	h.clock.pass(time.Minute)
	alices, _ := h.login("alice", "kubernetes")
	bob, alice := groups.Actor{Sub: "corp." + bobID, Name: "bob"}, groups.Actor{Sub: "corp." + aliceID, Name: "alice"}
	first, second, third := sidOf(tokens.RefreshToken), sidOf(other.RefreshToken), sidOf(alices.RefreshToken)

	if got := h.listed(bob, false, SessionFilter{Sub: bob.Sub}); !slices.Equal(got, []string{second, first}) {
		t.Errorf("bob sees %v, want %v and %v", got, second, first)
	}
	if got := h.listed(alice, true, SessionFilter{}); !slices.Equal(got, []string{third, second, first}) {
		t.Errorf("an administrator sees %v", got)
	}
	if got := h.listed(alice, true, SessionFilter{Query: "DEV"}); !slices.Equal(got, []string{second}) {
		t.Errorf("of client dev: %v", got)
	}
	_, _, err := h.ListSessions(bob, false, SessionFilter{})
	wantErr(t, err, groups.ErrForbidden)
	info, _, err := h.ListSessions(bob, false, SessionFilter{Sub: bob.Sub, Limit: 1})
	h.must(err)
	if s := info[0]; s.Username != "bob" || s.Address != "192.0.2.7" || s.UserAgent != "test" || !s.Browser || !slices.Equal(s.Clients, []string{"dev"}) || !s.Ends.Equal(s.Created.Add(8*time.Hour)) {
		t.Errorf("session %+v", s)
	}

	wantErr(t, h.EndSession(h.ctx, bob, false, third), ErrNoSession)
	if !h.alive(alices.RefreshToken) {
		t.Error("bob ended alice's session")
	}
	h.must(h.EndSession(h.ctx, bob, false, first))
	if h.alive(tokens.RefreshToken) {
		t.Error("the session goes on")
	}
	if _, err := h.Browser(h.ctx, cookie); err == nil {
		t.Error("its browser is still signed in")
	}
	wantErr(t, h.EndSession(h.ctx, bob, false, first), ErrNoSession)
	_, err = h.EndSessions(h.ctx, bob, false, alice.Sub, "")
	wantErr(t, err, groups.ErrForbidden)
	again, _ := h.login("bob", "kubernetes")
	if n, err := h.EndSessions(h.ctx, bob, false, bob.Sub, sidOf(again.RefreshToken)); n != 1 || err != nil || h.alive(other.RefreshToken) || !h.alive(again.RefreshToken) {
		t.Errorf("ended %d others, %v", n, err)
	}
	if n, err := h.EndSessions(h.ctx, alice, true, bob.Sub, ""); n != 1 || err != nil || h.alive(again.RefreshToken) {
		t.Errorf("an administrator ended %d, %v", n, err)
	}
	if got := h.listed(alice, true, SessionFilter{}); !slices.Equal(got, []string{third}) {
		t.Errorf("left: %v", got)
	}
}

// TestSessionPages goes through many sessions by cursor while some end.
func TestSessionPages(t *testing.T) {
	h := newHouse(t)
	var want []string
	for range 7 {
		tokens, _ := h.login("bob", "kubernetes")
		want = append(want, sidOf(tokens.RefreshToken))
		h.clock.pass(time.Second)
	}
	slices.Reverse(want)
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	bob := groups.Actor{Sub: "corp." + bobID, Name: "bob"}
	var got []string
	for f := (SessionFilter{Sub: bob.Sub, Limit: 2}); ; {
		page, next, err := h.ListSessions(bob, false, f)
		h.must(err)
		for _, s := range page {
			got = append(got, s.ID)
		}
		if len(got) == 2 { // the cursor's own session goes
			h.must(h.EndSession(h.ctx, bob, false, got[1]))
			h.must(h.Sessions.catchUp(h.ctx, h.disk))
		}
		if f.After = next; next == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages give %v, want %v", got, want)
	}
}

// TestSessionsInMemory has a damaged record, which is none.
func TestSessionsInMemory(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("bob", "kubernetes")
	_, err := h.disk.Txn(h.ctx, nil, []store.Op{{Key: sessionKey(randomID()), Value: []byte("{")}})
	h.must(err)
	h.must(h.Sessions.catchUp(h.ctx, h.disk))
	all := h.Sessions.of("")
	if len(all) != 1 || all[0].ID != sidOf(tokens.RefreshToken) || !all[0].Browser {
		t.Fatalf("sessions %+v", all)
	}
	fresh, err := OpenSessions(h.ctx, h.disk, quiet())
	h.must(err)
	defer fresh.Close()
	if got := fresh.of(all[0].Sub); len(got) != 1 || got[0].Username != "bob" {
		t.Errorf("loaded: %v", got)
	}
}

// BenchmarkSessionsLoad fills memory with sessions of 20 groups each.
func BenchmarkSessionsLoad(b *testing.B) {
	const n = 100_000
	c := &clock{at: time.Now()}
	st := openDisk(b, b.TempDir(), c)
	groupsOf := make([]string, 20)
	for i := range groupsOf {
		groupsOf[i] = fmt.Sprintf("corp:some-team-of-people-%02d", i)
	}
	s := &Service{cfg: Config{Sessions: defaultSessions}}
	for i := 0; i < n; {
		var ops []store.Op
		for ; len(ops) < 100; i++ {
			sess := &Session{ID: randomID(), Sub: fmt.Sprintf("corp.%036d", i/3), Username: fmt.Sprint("user", i/3), Name: "Some Body", Groups: groupsOf,
				AuthTime: c.Now(), Created: c.Now(), LastUsed: c.Now(), Address: "192.0.2.1", UserAgent: strings.Repeat("x", 80),
				Families: map[string]family{"abcdefgh": {Client: "kubernetes", Refresh: true, Hash: randomBytes(32), Created: c.Now(), LastUsed: c.Now()}}}
			op, err := s.op(sess)
			if err != nil {
				b.Fatal(err)
			}
			ops = append(ops, op)
		}
		if _, err := st.Txn(b.Context(), nil, ops); err != nil {
			b.Fatal(err)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for b.Loop() {
		l, err := OpenSessions(b.Context(), st, quiet())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		runtime.KeepAlive(l)
		l.Close()
	}
}

// TestIDsAreNoFlags: commands take ids as arguments.
func TestIDsAreNoFlags(t *testing.T) {
	for range 2000 {
		if id := randomID(); !isID(id) || id[0] == '-' {
			t.Fatalf("id %q", id)
		}
	}
}
