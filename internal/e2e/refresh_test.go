package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/testenv"
)

// racers share a session, as kubectl, k9s and two more that read one file would.
const racers = 4

// held is one session, and what its racers hold.
type held struct {
	mu     sync.Mutex // one round at a time
	sid    string
	person string
	lines  [racers]string // refresh tokens
	last   string         // id_token
	rounds int
}

// TestRacingRefreshes has four clients of each session refresh it at once, over and
// over, while the server stops in good order and, later, dies. No session is lost, none
// splits in two, and the directory's groups are those of now. TABARD_SOAK_REFRESH makes
// it longer, with 1,000 sessions.
func TestRacingRefreshes(t *testing.T) {
	t.Parallel()
	lasts, long := soak(t, "TABARD_SOAK_REFRESH", 15*time.Second)
	n := 100
	if long {
		n = 1000
	}
	const people = 20
	seed := uint64(20261122)
	slapd := testenv.StartSlapd(t)
	slapd.AddLDIF(t, testenv.SampleLDIF())
	slapd.AddLDIF(t, crowdLDIF(people))
	s := newServer(t, slapd, options{extra: "sessions: {refreshGrace: 2m}"}) // a round may take as long as a restart
	s.start()
	all := s.signInCrowd(n, people)

	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var workers sync.WaitGroup
	var failed atomic.Bool
	client := s.client()
	for i := range 12 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		workers.Go(func() {
			for ctx.Err() == nil && !failed.Load() {
				if err := all[r.IntN(n)].round(s, client, r); err != nil {
					t.Error(err)
					failed.Store(true)
				}
			}
		})
	}
	time.Sleep(lasts / 3)
	s.Stop()
	s.start()
	slapd.AddLDIF(t, moveCrowd(people))
	time.Sleep(lasts / 3)
	s.Kill()
	s.start()
	workers.Wait()
	if !failed.Load() {
		checkCrowd(t, s, all)
	}
}

// crowdLDIF are n people who are all in the group early.
func crowdLDIF(n int) string {
	var b, members strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "dn: uid=c%[1]d,ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: c%[1]d\ncn: c%[1]d\nsn: c%[1]d\nuserPassword: pw-c%[1]d\n\n", i)
		fmt.Fprintf(&members, "member: uid=c%d,ou=people,dc=example,dc=org\n", i)
	}
	return b.String() + "dn: cn=early,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\n" + members.String() + "\n"
}

// moveCrowd puts them into the group late in its stead.
func moveCrowd(n int) string {
	var members strings.Builder
	for i := range n {
		fmt.Fprintf(&members, "member: uid=c%d,ou=people,dc=example,dc=org\n", i)
	}
	return "dn: cn=early,ou=groups,dc=example,dc=org\nchangetype: delete\n\ndn: cn=late,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\n" + members.String() + "\n"
}

// signInCrowd begins n sessions, four at a time.
func (s *server) signInCrowd(n, people int) []*held {
	all := make([]*held, n)
	var workers sync.WaitGroup
	for i := range 4 {
		workers.Go(func() {
			for j := i; j < n; j += 4 {
				who := "c" + strconv.Itoa(j%people)
				tk := s.login("kubernetes", who, "pw-"+who)
				h := &held{person: who, last: tk.IDToken, sid: sidOf(tk.IDToken)}
				for k := range h.lines {
					h.lines[k] = tk.RefreshToken
				}
				all[j] = h
			}
		})
	}
	workers.Wait()
	if s.t.Failed() { // in a goroutine that is gone
		s.t.FailNow()
	}
	return all
}

// round lets some or all racers refresh at once, each with the line it holds. One that
// sits out is a generation behind, and catches up next time. All who held the same line
// must get the same next one, also where an answer was lost and the client asked again.
func (h *held) round(s *server, client *http.Client, r *rand.Rand) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := -1
	if behind := h.behind(); behind >= 0 {
		if err := h.refresh(s, client, behind); err != nil {
			return err
		}
	} else if r.IntN(4) == 0 {
		out = r.IntN(racers)
	}
	errs := make([]error, racers)
	var racing sync.WaitGroup
	for i := range racers {
		if i != out {
			racing.Go(func() { errs[i] = h.refresh(s, client, i) })
		}
	}
	racing.Wait()
	h.rounds++
	for i, err := range errs {
		if err != nil {
			return err
		}
		if i != out && h.lines[i] != h.lines[(out+1)%racers] {
			return fmt.Errorf("session of %s after %d rounds: two lines", h.person, h.rounds)
		}
	}
	return nil
}

// behind is the racer whose line is older than the others', or -1.
func (h *held) behind() int {
	for i := range racers {
		if h.lines[i] != h.lines[(i+1)%racers] && h.lines[i] != h.lines[(i+2)%racers] {
			return i
		}
	}
	return -1
}

func (h *held) refresh(s *server, client *http.Client, racer int) error {
	tk, err := s.tryUntil(client, refresh("kubernetes", h.lines[racer]), 3*time.Minute)
	if err != nil {
		return fmt.Errorf("session of %s, racer %d, after %d rounds: %w", h.person, racer, h.rounds, err)
	}
	h.lines[racer] = tk.RefreshToken
	if racer == 0 {
		h.last = tk.IDToken
	}
	return nil
}

func sidOf(token string) string {
	var c struct{ Sid string }
	if err := decodePart(token, 1, &c); err != nil {
		return err.Error()
	}
	return c.Sid
}

// checkCrowd wants every line of every racer to work, and what stands in the store and
// in the trail to agree.
func checkCrowd(t *testing.T, s *server, all []*held) {
	t.Helper()
	rounds, client, quiet := 0, s.client(), rand.New(rand.NewPCG(1, 1))
	sids := map[string]bool{}
	for _, h := range all {
		for again := true; again; again = h.behind() >= 0 { // until nobody sits out
			if err := h.round(s, client, quiet); err != nil {
				t.Fatal(err)
			}
		}
		rounds += h.rounds
		sids[h.sid] = true
		if sid := sidOf(h.last); sid != h.sid {
			t.Errorf("a session of %s has another id", h.person)
		}
		if got := groupsOf(t, h.last); !slices.Equal(got, []string{"corp:late"}) {
			t.Errorf("%s has the groups %v", h.person, got)
		}
	}
	if len(sids) != len(all) {
		t.Errorf("%d sessions of %d", len(sids), len(all))
	}
	for _, act := range []string{`"token.reuse"`, `"session.end"`} {
		if n := s.auditSays(act); n > 0 {
			t.Errorf("%d records of %s", n, act)
		}
	}
	var list api.SessionList
	got := s.api(s.login("tabard", "carol", "pw-carol").IDToken, "GET", "/api/v1/sessions?limit=1000&person=*", "")
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || got.status != http.StatusOK {
		t.Fatalf("list of sessions: %d %s", got.status, got.body)
	}
	crowd := 0
	for _, one := range list.Sessions {
		if sids[one.ID] {
			crowd++
			if !slices.Equal(one.Clients, []string{"kubernetes"}) {
				t.Errorf("session of %s is held by %v", one.Username, one.Clients)
			}
		} else if one.Username != "carol" {
			t.Errorf("a session of %s that nobody began", one.Username)
		}
	}
	if crowd < min(len(all), 999) {
		t.Errorf("%d of %d sessions are listed", crowd, len(all))
	}
	t.Logf("%d sessions, %d rounds", len(all), rounds)
}
