package idp

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// line is the model of one family: what the contract says of each token of it.
type line struct {
	tokens   []string          // by generation; the last one is the newest
	used     map[int]time.Time // when a generation was first used
	auth     time.Time
	lastUsed time.Time
	ended    bool
}

// refresh says what comes of presenting generation i: the successor, or "" for
// invalid_grant.
func (l *line) refresh(i int, now time.Time, limits SessionConfig) (next string, ok bool) {
	newest := len(l.tokens) - 1
	switch {
	case l.ended || !now.Before(sessionEnd(limits, l.auth, l.lastUsed)):
		return "", false
	case i == newest:
		l.used[i], l.lastUsed = now, now
		return "", true // a new one, whatever it is
	case i == newest-1:
		return l.tokens[newest], true
	case now.Sub(l.used[i+1]) <= limits.RefreshGrace:
		return l.tokens[i+1], true
	}
	l.ended = true
	return "", false
}

// Cluster dev: an hour idle, three hours at most, 30 s of grace.
func TestRefreshModel(t *testing.T) {
	h := newHouse(t)
	dev := h.client("dev")
	rapid.Check(t, func(t *rapid.T) {
		tokens, _ := h.login("bob", "dev")
		m := line{tokens: []string{tokens.RefreshToken}, used: map[int]time.Time{}, auth: h.Now(), lastUsed: h.Now()}
		present := func(i int) {
			want, ok := m.refresh(i, h.Now(), dev.sessions)
			got, err := h.Refresh(h.ctx, dev, m.tokens[i])
			switch {
			case !ok && !errors.Is(err, ErrInvalidGrant):
				t.Fatalf("generation %d of %d: %v, want invalid grant", i, len(m.tokens)-1, err)
			case ok && err != nil:
				t.Fatalf("generation %d of %d: %v, want success", i, len(m.tokens)-1, err)
			case ok && want == "":
				m.tokens = append(m.tokens, got.RefreshToken)
			case ok && got.RefreshToken != want:
				t.Fatalf("generation %d: the successor is another one", i)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"newest":   func(*rapid.T) { present(len(m.tokens) - 1) },
			"previous": func(*rapid.T) { present(max(0, len(m.tokens)-2)) },
			"older":    func(t *rapid.T) { present(rapid.IntRange(0, len(m.tokens)-1).Draw(t, "generation")) },
			"wait": func(t *rapid.T) {
				h.clock.pass(rapid.SampledFrom([]time.Duration{time.Second, 29 * time.Second, 31 * time.Second, 20 * time.Minute, 59 * time.Minute}).Draw(t, "wait"))
			},
			"forge": func(t *rapid.T) {
				real, _ := parseRefreshToken(m.tokens[len(m.tokens)-1])
				real.secret = encode(randomBytes(32))
				real.generation = rapid.IntRange(0, len(m.tokens)+1).Draw(t, "generation")
				if _, err := h.Refresh(h.ctx, dev, real.String()); !errors.Is(err, ErrInvalidGrant) {
					t.Fatalf("forged: %v", err)
				}
			},
			"relabel": func(t *rapid.T) { // a genuine secret under another generation
				real, _ := parseRefreshToken(m.tokens[rapid.IntRange(0, len(m.tokens)-1).Draw(t, "from")])
				real.generation += rapid.SampledFrom([]int{-1, 1, 2}).Draw(t, "shift")
				if real.generation < 0 {
					return
				}
				if _, err := h.Refresh(h.ctx, dev, real.String()); !errors.Is(err, ErrInvalidGrant) {
					t.Fatalf("relabelled: %v", err)
				}
			},
			"otherClient": func(t *rapid.T) {
				if _, err := h.Refresh(h.ctx, h.client("kubernetes"), rapid.SampledFrom(m.tokens).Draw(t, "token")); !errors.Is(err, ErrInvalidGrant) {
					t.Fatalf("of another client: %v", err)
				}
			},
			"": func(t *rapid.T) {
				alive, over := h.alive(sidOf(m.tokens[0])+"."), !h.Now().Before(sessionEnd(dev.sessions, m.auth, m.lastUsed))
				if alive && m.ended || !alive && !m.ended && !over { // one that is over is swept at some time
					t.Fatalf("session alive: %v, ended by the model: %v, over: %v", alive, m.ended, over)
				}
			},
		})
	})
}

func TestRefreshFiftyAtOnce(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", "kubernetes")
	for round := range 3 { // the successor goes on as well
		n := h.writes("session")
		next := map[string]int{}
		var mu sync.Mutex
		all(50, func(int) {
			got, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			next[got.RefreshToken]++
		})
		if calls := len(h.corp.took()); round > 0 && calls != 100 { // whoever loses a race does not ask the directory again
			t.Errorf("round %d: %d calls to the directory", round, calls)
		}
		if len(next) != 1 || *n != 1 {
			t.Fatalf("round %d: %d successors, %d writes; want one of each", round, len(next), *n)
		}
		for token := range next {
			tokens.RefreshToken = token
		}
	}
}

func TestRefreshThroughStoreFaults(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", "kubernetes")
	for _, fault := range []struct {
		name string
		set  func()
		want error
	}{
		{"before the write", func() { h.store.Before(storetest.Times(1, errBroken)) }, errBroken},
		{"after the write", func() { h.store.After(storetest.Times(1, errBroken)) }, nil},
		{"before the write, unknown", func() { h.store.Before(storetest.Times(1, store.ErrUnknown)) }, nil},
		{"in reading, which this node need not", func() { h.store.Read(storetest.Times(1, errBroken)) }, nil},
		{"in reading", func() { h.recents.forget(sessionKey(sidOf(tokens.RefreshToken))) }, errBroken}, // the same
	} {
		fault.set()
		got, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
		wantErr(t, err, fault.want)
		if err == nil {
			tokens = got
		}
	}
	h.trail.down = errBroken // written, but not answered: the same token still does
	_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, errBroken)
	h.trail.down = nil
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
}

func TestRefreshReadsTheDirectory(t *testing.T) {
	h := newHouse(t)
	kube := h.client("kubernetes")
	refresh := func(tokens *Tokens) error {
		got, err := h.Refresh(h.ctx, kube, tokens.RefreshToken)
		if err == nil {
			*tokens = got
		}
		return err
	}
	tokens, _ := h.login("alice", "kubernetes")
	sub := h.claims(tokens.IDToken)["sub"]
	h.corp.change("alice", func(e *entry) { e.Username, e.DN, e.groups = "alicia", "cn=alicia,dc=corp", []string{"corp:k8s-new"} })
	h.must(refresh(&tokens))
	c := h.claims(tokens.IDToken)
	if c["sub"] != sub || c["preferred_username"] != "alicia" || strings.Join(h.groupsIn(tokens.IDToken), " ") != "corp:k8s-new" {
		t.Errorf("after the rename: %v", c)
	}
	h.corp.noGroup = errUnreachable
	wantErr(t, refresh(&tokens), ErrUnavailable)
	h.corp.noGroup = nil
	h.must(refresh(&tokens))
	h.corp.change("alice", func(e *entry) { e.findErr = directory.ErrUnusable })
	wantErr(t, refresh(&tokens), ErrNoAccess)
	h.corp.change("alice", func(e *entry) { e.findErr = nil })
	h.must(refresh(&tokens))
	// A replica that is behind shows the old time for a while.
	h.corp.change("alice", func(e *entry) { e.PasswordChanged = e.PasswordChanged.Add(-time.Hour) })
	h.must(refresh(&tokens))
	h.corp.change("alice", func(e *entry) { e.PasswordChanged = e.PasswordChanged.Add(time.Hour) })
	h.must(refresh(&tokens))
}

func TestRefreshEndsTheSession(t *testing.T) {
	for name, change := range map[string]func(*entry){
		"account is disabled":            func(e *entry) { e.State = directory.Disabled },
		"account is locked":              func(e *entry) { e.State = directory.Locked },
		"no longer in the directory":     func(e *entry) { e.ID = "00000000-0000-4000-8000-00000000ffff" },
		"password changed since sign-in": func(e *entry) { e.PasswordChanged = e.PasswordChanged.Add(time.Minute) },
		"account is password-expired":    func(e *entry) { e.State = directory.PasswordExpired },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			tokens, _ := h.login("alice", "kubernetes")
			h.corp.change("alice", change)
			_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
			wantErr(t, err, ErrInvalidGrant)
			if h.alive(tokens.RefreshToken) {
				t.Error("the session goes on")
			}
			if got := h.trail.said("session.end"); len(got) != 1 || got[0] != "done "+name {
				t.Errorf("the trail says %q", got)
			}
		})
	}
}

func TestRefreshInAnOutage(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Outage = map[string]time.Duration{"corp": 15 * time.Minute} })
	kube := h.client("kubernetes")
	alices, _ := h.login("alice", "kubernetes")
	lenas, _ := h.login("lena", "kubernetes")
	h.corp.fail(errUnreachable)
	h.lab.fail(errUnreachable)
	_, err := h.Refresh(h.ctx, kube, lenas.RefreshToken)
	wantErr(t, err, ErrUnavailable)
	if !h.alive(lenas.RefreshToken) {
		t.Error("the outage ended a session")
	}
	for range 3 {
		h.clock.pass(5 * time.Minute)
		alices, err = h.Refresh(h.ctx, kube, alices.RefreshToken)
		wantErr(t, err, nil)
		if c := h.claims(alices.IDToken); c["tabard_stale"] != true || strings.Join(h.groupsIn(alices.IDToken), " ") != boss {
			t.Fatalf("claims %v", c)
		}
	}
	marked := 0
	for _, e := range h.trail.events {
		if e.Act == "token.issue" && e.Detail["stale"] == "true" {
			marked++
		}
	}
	if marked != 3 {
		t.Errorf("%d of 3 tokens are marked in the trail", marked)
	}
	h.clock.pass(time.Second) // going on does not prolong itself
	_, err = h.Refresh(h.ctx, kube, alices.RefreshToken)
	wantErr(t, err, ErrUnavailable)
	h.corp.fail(errors.New("size limit exceeded")) // an answer, though no good one, is no outage
	_, err = h.Refresh(h.ctx, kube, alices.RefreshToken)
	wantErr(t, err, ErrUnavailable)
	h.corp.fail(nil)
	alices, err = h.Refresh(h.ctx, kube, alices.RefreshToken)
	wantErr(t, err, nil)
	if _, stale := h.claims(alices.IDToken)["tabard_stale"]; stale {
		t.Error("stale although the directory answers")
	}
	h.corp.fail(errors.New("size limit exceeded"))
	_, err = h.Refresh(h.ctx, kube, alices.RefreshToken)
	wantErr(t, err, ErrUnavailable)
	if !h.alive(alices.RefreshToken) {
		t.Error("the session ended")
	}
}

func TestRefreshWithoutAccess(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", "vault")
	h.corp.change("alice", func(e *entry) { e.groups = nil })
	_, err := h.Refresh(h.ctx, h.client("vault"), tokens.RefreshToken)
	wantErr(t, err, ErrNoAccess)
	if !h.alive(tokens.RefreshToken) {
		t.Error("a rule of one cluster ended the session")
	}
	h.corp.change("alice", func(e *entry) { e.groups = []string{boss} })
	_, err = h.Refresh(h.ctx, h.client("vault"), tokens.RefreshToken)
	wantErr(t, err, nil)
	got := h.trail.said("token.issue")
	if len(got) != 3 || !strings.HasPrefix(got[1], audit.Denied) {
		t.Errorf("the trail says %q", got)
	}
}

// A refresh token that is older than one can tell from a forged one is no reason to
// end anything, and costs little.
func TestAncestryIsBounded(t *testing.T) {
	h := newHouse(t)
	root := refreshToken{randomID(), "f", 0, "secret"}
	newest := root
	for range 200 {
		newest = h.successor(newest)
	}
	f := family{Refresh: true, Generation: newest.generation, Hash: hashSecret(newest.secret)}
	if got := h.standing(f, root, time.Minute); got != reused {
		t.Errorf("an old token is %v", got)
	}
	f.Generation = maxAncestry + 1
	if got := h.standing(f, root, time.Minute); got != forged {
		t.Errorf("one older than that is %v", got)
	}
}

func TestUsesAreBounded(t *testing.T) {
	f := family{Refresh: true}
	now := time.Now()
	for i := range 3 * maxUsed {
		f = f.rotate(refreshToken{generation: i + 1, secret: "x"}, now, time.Hour)
	}
	if len(f.Used) != maxUsed || f.Used[maxUsed-1].Generation != 3*maxUsed-1 {
		t.Errorf("%d uses, the last of generation %d", len(f.Used), f.Used[len(f.Used)-1].Generation)
	}
}

func FuzzParseRefreshToken(f *testing.F) {
	good := refreshToken{randomID(), "family", 7, "secret"}.String()
	for _, s := range []string{good, "", "...", "a.b.c.d", good + ".x", strings.Replace(good, ".7.", ".+7.", 1), strings.Replace(good, ".7.", ".-1.", 1), strings.Replace(good, ".7.", ".007.", 1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, ok := parseRefreshToken(s)
		if !ok {
			return
		}
		if token.String() != s || !isID(token.sid) || token.generation < 0 || token.secret == "" {
			t.Errorf("%q was read as %q", s, token.String())
		}
		if _, err := strconv.Atoi(strconv.Itoa(token.generation)); err != nil || strings.Contains(sessionKey(token.sid), "session//") {
			t.Errorf("key %q", sessionKey(token.sid))
		}
	})
}
