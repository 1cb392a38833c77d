package idp

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/directory"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// browserOf signs a person in and returns their browser's session.
func (h *house) browserOf(login string) *Session {
	h.t.Helper()
	in, err := h.SignIn(h.ctx, Credentials{Login: login, Password: password}, nil)
	h.must(err)
	sess, err := h.Browser(h.ctx, in.Cookie)
	h.must(err)
	return sess
}

func (h *house) startDevice(id string) DeviceAuthorization {
	h.t.Helper()
	d, err := h.StartDevice(h.ctx, h.client(id), true)
	h.must(err)
	return d
}

func TestDeviceFlow(t *testing.T) {
	h := newHouse(t)
	alice := h.browserOf("alice")
	d := h.startDevice("kubernetes")
	poll := func() (Tokens, error) { return h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode) }
	_, err := poll()
	wantErr(t, err, ErrPending)
	waiting, err := h.Device(h.ctx, strings.ToLower(d.UserCode[:4]+" "+d.UserCode[5:]))
	wantErr(t, err, nil)
	if waiting.ClientName != "prod" || waiting.Address != "192.0.2.7" || waiting.UserCode != d.UserCode {
		t.Errorf("the person is shown %+v", waiting)
	}
	h.must(h.DecideDevice(h.ctx, alice, d.UserCode, true))
	wantErr(t, h.DecideDevice(h.ctx, alice, d.UserCode, true), ErrExpired)
	wantErr(t, h.DecideDevice(h.ctx, alice, d.UserCode, false), ErrExpired)
	_, err = h.PollDevice(h.ctx, h.client("dev"), d.DeviceCode)
	wantErr(t, err, ErrInvalidGrant)
	_, err = h.PollDevice(h.ctx, h.client("kubernetes"), sidOf(d.DeviceCode)+".AAAA")
	wantErr(t, err, ErrInvalidGrant)
	tokens, err := poll()
	wantErr(t, err, nil)
	if c := h.claims(tokens.IDToken); c["sub"] != "corp."+aliceID || c["sid"] == alice.ID {
		t.Errorf("claims %v", c)
	}
	_, err = poll()
	wantErr(t, err, ErrInvalidGrant)
	_, err = h.Device(h.ctx, d.UserCode)
	wantErr(t, err, ErrExpired)
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
}

func TestDeviceTurnedAway(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("kubernetes")
	h.must(h.DecideDevice(h.ctx, h.browserOf("alice"), d.UserCode, false))
	for range 2 {
		_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
		wantErr(t, err, ErrDenied)
	}
}

func TestDeviceExpires(t *testing.T) {
	h := newHouse(t)
	alice := h.browserOf("alice")
	unseen, allowed := h.startDevice("kubernetes"), h.startDevice("kubernetes")
	h.must(h.DecideDevice(h.ctx, alice, allowed.UserCode, true))
	h.clock.pass(deviceLife + time.Second)
	for _, d := range []DeviceAuthorization{unseen, allowed} {
		_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
		wantErr(t, err, ErrExpired)
		wantErr(t, h.DecideDevice(h.ctx, alice, d.UserCode, true), ErrExpired)
	}
	h.clock.pass(deviceMemory)
	_, err := h.PollDevice(h.ctx, h.client("kubernetes"), unseen.DeviceCode)
	wantErr(t, err, ErrInvalidGrant)
}

func TestDeviceThatPollsTooFast(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("kubernetes")
	for i, step := range []struct {
		after time.Duration
		want  error
	}{
		{0, ErrPending},
		{time.Second, ErrSlowDown},     // 10 s from now on
		{9 * time.Second, ErrPending},  // which it kept
		{5 * time.Second, ErrSlowDown}, // 15 s
		{9 * time.Second, ErrSlowDown}, // 20 s
		{20 * time.Second, ErrPending},
	} {
		h.clock.pass(step.after)
		if _, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode); !errors.Is(err, step.want) {
			t.Fatalf("poll %d: %v, want %v", i, err, step.want)
		}
	}
}

func TestDeviceThatNeverListens(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("kubernetes")
	n := h.writes("device")
	for i := range 200 {
		if _, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode); !errors.Is(err, ErrSlowDown) && i > 0 {
			t.Fatal(err)
		}
	}
	if *n > 15 {
		t.Errorf("200 polls made %d writes", *n)
	}
	h.clock.pass(deviceSlowest)
	_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
	wantErr(t, err, ErrPending)
}

func TestDeviceTwentyAtOnce(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("kubernetes")
	h.must(h.DecideDevice(h.ctx, h.browserOf("alice"), d.UserCode, true))
	var won atomic.Int32
	all(20, func(int) {
		_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
		if err == nil {
			won.Add(1)
		} else if !errors.Is(err, ErrInvalidGrant) {
			t.Error(err)
		}
	})
	if won.Load() != 1 {
		t.Errorf("%d of twenty got tokens", won.Load())
	}
}

// The device polls while its person decides: that must not undo the decision.
func TestDeviceDecidedWhileItPolls(t *testing.T) {
	h := newHouse(t)
	alice := h.browserOf("alice")
	for _, allow := range []bool{true, false} {
		d := h.startDevice("kubernetes")
		polls := 3
		h.store.Before(func(keys []string) error {
			if polls > 0 && strings.HasPrefix(keys[0], "device/") { // between the reading and the writing
				polls--
				h.store.Before(nil)
				_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
				if !errors.Is(err, ErrPending) && !errors.Is(err, ErrSlowDown) {
					t.Error(err)
				}
			}
			return nil
		})
		h.must(h.DecideDevice(h.ctx, alice, d.UserCode, allow))
		_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
		wantErr(t, err, map[bool]error{true: nil, false: ErrDenied}[allow])
	}
}

func TestDeviceThroughStoreFaults(t *testing.T) {
	h := newHouse(t)
	alice := h.browserOf("alice")
	d := h.startDevice("kubernetes")
	h.store.After(storetest.Times(1, errBroken))
	h.must(h.DecideDevice(h.ctx, alice, d.UserCode, true))
	h.store.Before(storetest.Times(1, errBroken))
	_, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
	wantErr(t, err, errBroken)
	h.store.After(storetest.Times(1, errBroken))
	tokens, err := h.PollDevice(h.ctx, h.client("kubernetes"), d.DeviceCode)
	wantErr(t, err, nil)
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
	wantErr(t, err, nil)
}

func TestDeviceNeedsARight(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("vault")
	wantErr(t, h.DecideDevice(h.ctx, h.browserOf("bob"), d.UserCode, true), ErrNoAccess)
	alice := h.browserOf("alice")
	h.corp.fail(errUnreachable)
	wantErr(t, h.DecideDevice(h.ctx, alice, d.UserCode, true), ErrUnavailable)
	h.corp.fail(nil)
	h.corp.change("alice", func(e *entry) { e.State = directory.Disabled })
	wantErr(t, h.DecideDevice(h.ctx, alice, d.UserCode, true), ErrNoSession)
	_, err := h.PollDevice(h.ctx, h.client("vault"), d.DeviceCode)
	wantErr(t, err, ErrPending)

	bob := h.browserOf("bob")
	h.clock.pass(3 * time.Hour) // older than cluster dev takes
	wantErr(t, h.DecideDevice(h.ctx, bob, h.startDevice("dev").UserCode, true), ErrNoSession)
}

func TestDeviceThrottle(t *testing.T) {
	h := newHouse(t)
	d := h.startDevice("kubernetes")
	from := func(address string) error {
		_, err := h.Device(audit.WithOrigin(t.Context(), audit.Origin{Address: address}), "BBBB-BBBB")
		return err
	}
	for i := range paceBurst {
		wantErr(t, from(fmt.Sprintf("2001:db8::%x", i)), ErrExpired) // one network, one limit
	}
	wantErr(t, from("2001:db8::ffff"), ErrTooMany)
	wantErr(t, from("2001:db8:0:1::1"), ErrExpired)
	wantErr(t, from("192.0.2.1"), ErrExpired)
	if _, err := h.Device(h.ctx, d.UserCode); err != nil {
		t.Errorf("someone else is throttled: %v", err)
	}
	h.clock.pass(paceEvery)
	wantErr(t, from("2001:db8::1"), ErrExpired)
	wantErr(t, from("2001:db8::1"), ErrTooMany)
	for range paceBurst { // the first one's share has come back
		h.startDevice("kubernetes")
	}
	_, err := h.StartDevice(h.ctx, h.client("kubernetes"), false)
	wantErr(t, err, ErrTooMany)
}

func TestPacerIsBounded(t *testing.T) {
	h := newHouse(t)
	for i := range 2*paceMax + 1 {
		h.pace.allow("x", fmt.Sprint(i))
	}
	if n := len(h.pace.by); n > paceMax {
		t.Errorf("%d addresses remembered", n)
	}
}

func FuzzFoldUserCode(f *testing.F) {
	for _, s := range []string{"BCDF-GHJK", "bcdf ghjk", "bcdfghjk", "", "BCDFGHJ", "BCDFGHJA", "ſſſſſſſſ", "BC/FGHJK", strings.Repeat("-", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		code := foldUserCode(typed)
		if code == "" {
			return
		}
		if len(code) != 8 || strings.Trim(code, userCodeAlphabet) != "" {
			t.Errorf("%q became %q", typed, code)
		}
		if foldUserCode(showUserCode(code)) != code || foldUserCode(strings.ToLower(code)) != code {
			t.Errorf("%q is not read as it is shown", code)
		}
	})
}
