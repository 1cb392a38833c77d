package idp

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
)

func TestSignInTable(t *testing.T) {
	h := newHouse(t)
	h.hire(h.corp, "off", "00000000-0000-4000-8000-000000000010")
	h.corp.entries["off"].State = directory.Disabled
	h.hire(h.corp, "mustchange", "00000000-0000-4000-8000-000000000011")
	h.corp.entries["mustchange"].bindErr = &directory.AccountError{State: directory.MustChange}
	for i, login := range []string{"locked", "was locked"} {
		h.hire(h.corp, login, fmt.Sprintf("00000000-0000-4000-8000-00000000003%d", i))
		h.corp.entries[login].State, h.corp.entries[login].unlocks = directory.Locked, login != "locked"
	}
	h.hire(h.corp, "two", "00000000-0000-4000-8000-000000000012")
	h.corp.entries["two"].findErr = directory.ErrAmbiguous
	h.hire(h.corp, "odd", "00000000-0000-4000-8000-000000000013")
	h.corp.entries["odd"].findErr = fmt.Errorf("cn=odd: %w", directory.ErrUnusable)
	h.hire(h.corp, "twin", "00000000-0000-4000-8000-000000000014")
	h.hire(h.lab, "twin", "00000000-0000-4000-8000-000000000015")
	var account *directory.AccountError
	var choose *ChooseDirectoryError
	for _, c := range []struct {
		name            string
		login, pw, from string
		want            error
		as              any
		outcome         string // in the trail; "" none
	}{
		{"right", "alice", password, "", nil, nil, "done"},
		{"right, in another case", " Alice ", password, "", nil, nil, "done"},
		{"unknown", unusualLogin, password, "", ErrCredentials, nil, "denied login or password wrong"},
		{"wrong password", "alice", "wrong", "", ErrCredentials, nil, "denied login or password wrong"},
		{"empty password", "alice", "", "", ErrCredentials, nil, "denied login or password wrong"},
		{"blank login", "  ", password, "", ErrCredentials, nil, "denied login or password wrong"},
		{"very long login", strings.Repeat("a", 257), password, "", ErrCredentials, nil, "denied login or password wrong"},
		{"very long password", "alice", strings.Repeat("a", 1025), "", ErrCredentials, nil, "denied login or password wrong"},
		{"disabled, wrong password", "off", "wrong", "", ErrCredentials, nil, "denied login or password wrong"},
		{"disabled, right password", "off", password, "", nil, &account, "denied account is disabled"},
		{"must change", "mustchange", password, "", nil, &account, "denied account is must-change"},
		{"locked", "locked", password, "", nil, &account, "denied account is locked"},
		{"lock that is over, wrong password", "was locked", "wrong", "", ErrCredentials, nil, "denied login or password wrong"},
		{"lock that is over", "was locked", password, "", nil, nil, "done"},
		{"ambiguous in one directory", "two", password, "", ErrCredentials, nil, "denied login or password wrong"},
		{"entry cannot be used", "odd", password, "", ErrCredentials, nil, "denied login or password wrong"},
		{"in two directories", "twin", password, "", nil, &choose, ""},
		{"in two directories, chosen", "twin", password, "lab", nil, nil, "done"},
		{"in the other directory", "alice", password, "lab", ErrCredentials, nil, "denied login or password wrong"},
		{"in no directory of that name", "alice", password, "nowhere", ErrCredentials, nil, "denied login or password wrong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.trail.events = nil
			in, err := h.SignIn(h.ctx, Credentials{Login: c.login, Password: c.pw, Directory: c.from}, nil)
			switch {
			case c.as != nil:
				if !errors.As(err, c.as) {
					t.Fatalf("error is %v, want a %T", err, c.as)
				}
			default:
				wantErr(t, err, c.want)
			}
			if (in.Cookie != "") != (err == nil) {
				t.Errorf("cookie %q beside error %v", in.Cookie, err)
			}
			said := strings.Join(h.trail.said("login"), ";")
			if said != c.outcome {
				t.Errorf("the trail says %q, want %q", said, c.outcome)
			}
			assertNoSecrets(t, h.trail.events)
		})
	}
	if !slices.Equal(choose.Names, []string{"corp", "lab"}) {
		t.Errorf("to choose from: %v", choose.Names)
	}
}

// assertNoSecrets: no event holds a password or what an unknown person typed.
func assertNoSecrets(t *testing.T, events []audit.Event) {
	t.Helper()
	all, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{password, unusualLogin, "wrong\"", "10.1.2.3"} {
		if strings.Contains(strings.ReplaceAll(string(all), ErrCredentials.Error(), ""), secret) {
			t.Errorf("the trail holds %q: %s", secret, all)
		}
	}
}

// Whoever does not know the password sees the same work done for every login.
func TestSignInDoesTheSameWork(t *testing.T) {
	h := newHouse(t)
	h.hire(h.corp, "off", "00000000-0000-4000-8000-000000000010")
	h.corp.entries["off"].State = directory.Disabled
	h.hire(h.corp, "odd", "00000000-0000-4000-8000-000000000011")
	h.corp.entries["odd"].findErr = directory.ErrUnusable
	for _, login := range []string{"nobody", "alice", "off", "odd", "*)(uid=*"} {
		_, err := h.SignIn(h.ctx, Credentials{Login: login, Password: "wrong"}, nil)
		wantErr(t, err, ErrCredentials)
		if got := strings.Join(h.corp.took(), " "); got != "find bind" {
			t.Errorf("%s: the directory was asked to %s", login, got)
		}
		if got := strings.Join(h.lab.took(), " "); got != "find" {
			t.Errorf("%s: the other directory was asked to %s", login, got)
		}
	}
	for _, c := range []Credentials{{Login: "alice"}, {Login: " ", Password: password}} {
		_, err := h.SignIn(h.ctx, c, nil)
		wantErr(t, err, ErrCredentials)
		if got := slices.Concat(h.corp.took(), h.lab.took()); len(got) != 0 {
			t.Errorf("blank credentials reached the directory: %v", got)
		}
	}
}

func TestSignInWhileADirectoryIsDown(t *testing.T) {
	h := newHouse(t)
	h.corp.fail(errUnreachable)
	_, err := h.SignIn(h.ctx, Credentials{Login: "lena", Password: password}, nil)
	wantErr(t, err, nil)
	h.trail.events = nil
	_, err = h.SignIn(h.ctx, Credentials{Login: unusualLogin, Password: password}, nil)
	wantErr(t, err, ErrUnavailable)
	if got := h.trail.said("login"); !slices.Equal(got, []string{"failed directory unavailable"}) {
		t.Errorf("the trail says %q", got)
	}
	assertNoSecrets(t, h.trail.events)
	h.corp.fail(nil)
	h.corp.noGroup = errUnreachable
	_, err = h.SignIn(h.ctx, Credentials{Login: "alice", Password: password}, nil)
	wantErr(t, err, ErrUnavailable) // rather than a token with fewer groups
}

// A directory that does not even refuse must not keep the people of another out.
func TestSignInWhileADirectoryHangs(t *testing.T) {
	h := newHouse(t)
	h.corp.hang = true
	_, err := h.SignIn(h.ctx, Credentials{Login: "lena", Password: password}, nil)
	wantErr(t, err, nil)
}

func TestSignInIsNotDoneWithoutTrail(t *testing.T) {
	h := newHouse(t)
	h.trail.down = errBroken
	in, err := h.SignIn(h.ctx, Credentials{Login: "alice", Password: password}, nil)
	wantErr(t, err, errBroken)
	if in.Cookie != "" {
		t.Error("a cookie was given without an event")
	}
	_, err = h.SignIn(h.ctx, Credentials{Login: "alice", Password: "wrong"}, nil)
	if wantErr(t, err, errBroken); errors.Is(err, ErrCredentials) {
		t.Error("a guess was answered without an event")
	}
}

func TestServiceNeedsADirectory(t *testing.T) {
	h := newHouse(t)
	parts := h.Parts
	parts.Directories = nil
	if _, err := New(h.ctx, h.cfg, parts); err == nil {
		t.Error("a service without directories started")
	}
}

func TestFindPerson(t *testing.T) {
	h := newHouse(t)
	h.hire(h.corp, "twin", "00000000-0000-4000-8000-000000000014")
	h.hire(h.lab, "twin", "00000000-0000-4000-8000-000000000015")
	p, err := h.FindPerson(h.ctx, "alice")
	wantErr(t, err, nil)
	if again, err := h.FindPerson(h.ctx, p.Sub()); err != nil || again.Username != "alice" {
		t.Errorf("by sub: %v, %v", again, err)
	}
	_, err = h.FindPerson(h.ctx, "nobody")
	wantErr(t, err, directory.ErrNotFound)
	_, err = h.FindPerson(h.ctx, "twin")
	wantErr(t, err, directory.ErrAmbiguous)
	h.lab.fail(errUnreachable)
	_, err = h.FindPerson(h.ctx, "alice")
	wantErr(t, err, ErrUnavailable)
}

// The browser's session follows the directory, so that pages for administrators
// close to who lost that right.
func TestBrowserFollowsTheDirectory(t *testing.T) {
	h := newHouse(t)
	_, cookie := h.login("alice", "kubernetes")
	isBoss := func() bool {
		sess, err := h.Browser(h.ctx, cookie)
		h.must(err)
		actor, err := h.Actor(sess)
		h.must(err)
		return slices.Contains(actor.Groups, boss)
	}
	if !isBoss() {
		t.Fatal("alice is no admin at first")
	}
	h.corp.change("alice", func(e *entry) { e.groups = nil })
	h.clock.pass(readEvery + time.Second)
	if isBoss() {
		t.Error("alice is still an admin")
	}
	h.corp.took()
	isBoss()
	if calls := h.corp.took(); len(calls) != 0 {
		t.Errorf("the directory is asked for each page: %v", calls)
	}
	h.corp.change("alice", func(e *entry) { e.State = directory.Disabled })
	h.clock.pass(readEvery + time.Second)
	_, err := h.Browser(h.ctx, cookie)
	wantErr(t, err, ErrNoSession)
}

func TestBrowserSessionEnds(t *testing.T) {
	h := newHouse(t)
	idle := func(login string) string {
		in, err := h.SignIn(h.ctx, Credentials{Login: login, Password: password}, nil)
		h.must(err)
		return in.Cookie
	}
	cookie := idle("alice")
	h.clock.pass(8*time.Hour - time.Second)
	_, err := h.Browser(h.ctx, cookie)
	wantErr(t, err, nil)
	h.clock.pass(4*time.Hour + 2*time.Second) // used meanwhile, but 12 h are over
	_, err = h.Browser(h.ctx, cookie)
	wantErr(t, err, ErrNoSession)

	cookie = idle("alice")
	h.clock.pass(8 * time.Hour)
	_, err = h.Browser(h.ctx, cookie)
	wantErr(t, err, ErrNoSession)

	cookie = idle("alice")
	h.corp.fail(errUnreachable) // signing out needs no directory
	h.clock.pass(time.Hour)
	h.must(h.EndBrowser(h.ctx, cookie))
	h.must(h.EndBrowser(h.ctx, cookie))
	h.corp.fail(nil)
	_, err = h.Browser(h.ctx, cookie)
	wantErr(t, err, ErrNoSession)
	for _, bad := range []string{"", "x", sidOf(cookie), sidOf(cookie) + ".", sidOf(cookie) + ".AAAA"} {
		_, err := h.Browser(h.ctx, bad)
		wantErr(t, err, ErrNoSession)
	}
}
