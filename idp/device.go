package idp

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

const (
	deviceLife     = 10 * time.Minute
	deviceMemory   = 10 * time.Minute // how long an expired code is still called expired
	deviceInterval = 5 * time.Second
	deviceSlowest  = time.Minute // and no slower
	// userCodeAlphabet has no vowels and nothing that looks like something else
	// (RFC 8628 section 6.1); 8 of its 20 letters are 34 bits.
	userCodeAlphabet = "BCDFGHJKLMNPQRSTVWXZ"
)

// device is the record of a device authorization (RFC 8628).
type device struct {
	Hash      []byte        `json:"hash"`
	UserCode  string        `json:"userCode"`
	Client    string        `json:"client"`
	Offline   bool          `json:"offline,omitempty"`
	Issued    time.Time     `json:"issued"`
	Address   string        `json:"address,omitempty"`
	UserAgent string        `json:"userAgent,omitempty"`
	Interval  time.Duration `json:"interval"`
	NextPoll  time.Time     `json:"nextPoll"`
	Denied    bool          `json:"denied,omitempty"`
	Session   string        `json:"session,omitempty"` // once allowed
}

// DeviceAuthorization is what a device is told (RFC 8628 section 3.2).
type DeviceAuthorization struct {
	DeviceCode string
	UserCode   string // "BCDF-GHJK"
	Expires    time.Duration
	Interval   time.Duration
}

// DeviceRequest is a device flow that waits for its person.
type DeviceRequest struct {
	UserCode   string
	ClientName string
	Address    string // from where the device asked
	UserAgent  string
	Issued     time.Time
}

// StartDevice begins a device flow for c. ErrTooMany when the address began too
// many.
func (s *Service) StartDevice(ctx context.Context, c *Client, offline bool) (DeviceAuthorization, error) {
	from := audit.OriginOf(ctx)
	if !s.pace.allow("device", from.Address) {
		return DeviceAuthorization{}, ErrTooMany
	}
	id, secret := randomID(), encode(randomBytes(32))
	now := s.Now().UTC()
	rec := device{
		Hash: hashSecret(secret), UserCode: newUserCode(), Client: c.ID, Offline: offline, Issued: now,
		Address: from.Address, UserAgent: from.UserAgent, Interval: deviceInterval, NextPoll: now,
	}
	value, err := json.Marshal(rec)
	if err != nil {
		return DeviceAuthorization{}, fmt.Errorf("encode device code: %w", err)
	}
	expires := now.Add(deviceLife + deviceMemory)
	_, err = s.Store.Txn(ctx, []store.Cond{{Key: "usercode/" + rec.UserCode}}, []store.Op{
		{Key: "usercode/" + rec.UserCode, Value: []byte(id), Expires: expires},
		{Key: "device/" + id, Value: value, Expires: expires},
	})
	if err != nil {
		return DeviceAuthorization{}, fmt.Errorf("write device code: %w", err)
	}
	return DeviceAuthorization{id + "." + secret, showUserCode(rec.UserCode), deviceLife, deviceInterval}, nil
}

func newUserCode() string {
	var b strings.Builder
	for range 8 {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(userCodeAlphabet))))
		if err != nil {
			panic(err) // the system's generator does not fail
		}
		b.WriteByte(userCodeAlphabet[n.Int64()])
	}
	return b.String()
}

func showUserCode(c string) string { return c[:4] + "-" + c[4:] }

// foldUserCode reads a user code as people type it: case, spaces and dashes do not
// matter. "" if it can be none.
func foldUserCode(typed string) string {
	if len(typed) > 64 {
		return ""
	}
	code := strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, strings.ToUpper(typed))
	if len(code) != 8 || strings.Trim(code, userCodeAlphabet) != "" {
		return ""
	}
	return code
}

// Device returns the pending request of a user code as typed. ErrExpired for one
// that is unknown, used or too old; ErrTooMany when the address tries too many.
func (s *Service) Device(ctx context.Context, userCode string) (DeviceRequest, error) {
	_, rec, _, err := s.pendingDevice(ctx, userCode)
	if err != nil {
		return DeviceRequest{}, err
	}
	c, err := s.Client(rec.Client)
	if err != nil {
		return DeviceRequest{}, ErrExpired
	}
	return DeviceRequest{showUserCode(rec.UserCode), c.Name, rec.Address, rec.UserAgent, rec.Issued}, nil
}

func (s *Service) pendingDevice(ctx context.Context, userCode string) (id string, rec device, revision int64, err error) {
	if !s.pace.allow("usercode", audit.OriginOf(ctx).Address) {
		return "", rec, 0, ErrTooMany
	}
	code := foldUserCode(userCode)
	if code == "" {
		return "", rec, 0, ErrExpired
	}
	e, err := s.Store.Get(ctx, "usercode/"+code)
	if errors.Is(err, store.ErrNotFound) {
		return "", rec, 0, ErrExpired
	}
	if err != nil {
		return "", rec, 0, fmt.Errorf("read user code: %w", err)
	}
	id = string(e.Value)
	rec, revision, err = s.device(ctx, id)
	if errors.Is(err, ErrInvalidGrant) || err == nil && !s.waits(rec) {
		err = ErrExpired
	}
	return id, rec, revision, err
}

// waits reports whether a device still waits for its person.
func (s *Service) waits(rec device) bool {
	return !rec.Denied && rec.Session == "" && s.Now().Sub(rec.Issued) <= deviceLife
}

func (s *Service) device(ctx context.Context, id string) (device, int64, error) {
	var rec device
	e, err := s.Store.Get(ctx, "device/"+id)
	if errors.Is(err, store.ErrNotFound) {
		return rec, 0, fmt.Errorf("%w: no such device code", ErrInvalidGrant)
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &rec)
	}
	if err != nil {
		return rec, 0, fmt.Errorf("read device code: %w", err)
	}
	return rec, e.Revision, nil
}

// DecideDevice lets the device in as by's person, or turns it away. The device gets
// a session of its own. Errors as Device, and ErrNoAccess, ErrUnavailable,
// ErrNoSession.
func (s *Service) DecideDevice(ctx context.Context, by *Session, userCode string, allow bool) error {
	id, rec, revision, err := s.pendingDevice(ctx, userCode)
	if err != nil {
		return err
	}
	c, err := s.Client(rec.Client)
	if err != nil {
		return ErrExpired
	}
	e := audit.Event{Act: "device.deny", Outcome: audit.Done, Client: c.ID, Cluster: c.Cluster, Detail: map[string]string{"device": rec.Address}}
	if !allow {
		if err := s.record(ctx, e, by); err != nil {
			return err
		}
		return s.decide(ctx, nil, id, revision, rec)
	}
	sess, err := s.deviceSession(ctx, by, rec)
	if err != nil {
		return err
	}
	if s.tooOld(sess, c) {
		return fmt.Errorf("%w that is new enough: cluster %s wants a sign-in of the last %s", ErrNoSession, c.Cluster, c.sessions.MaxLifetime)
	}
	if _, err := s.entitle(sess, c); err != nil {
		return s.denied(ctx, by, c, err)
	}
	e.Act = "device.allow"
	if err := s.record(ctx, e, sess); err != nil {
		return err
	}
	return s.decide(ctx, sess, id, revision, rec)
}

// deviceSession returns a session for the device, of by's person as the directory
// knows them now.
func (s *Service) deviceSession(ctx context.Context, by *Session, rec device) (*Session, error) {
	take, err := s.reread(ctx, by)
	if err != nil {
		return nil, err
	}
	sess := *by
	take(&sess)
	now := s.Now().UTC()
	sess.ID, sess.revision, sess.Created, sess.LastUsed, sess.Address = randomID(), 0, now, now, rec.Address
	sess.CookieHash, sess.Families, sess.Codes = nil, nil, nil
	return &sess, nil
}

// decide writes what the person said: yes with the device's session, no without.
// The device polls meanwhile, so the record may have to be read again.
func (s *Service) decide(ctx context.Context, sess *Session, id string, revision int64, rec device) error {
	said := func(rec device) bool { return sess == nil && rec.Denied || sess != nil && rec.Session == sess.ID }
	for range maxTries {
		if said(rec) { // by a write whose outcome was unknown
			return nil
		}
		if !s.waits(rec) {
			return ErrExpired // somebody else decided
		}
		if rec.Denied = sess == nil; !rec.Denied {
			rec.Session = sess.ID
		}
		err := s.writeDevice(ctx, sess, id, revision, rec)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
			return err
		}
		if rec, revision, err = s.device(ctx, id); err != nil {
			return err
		}
	}
	return errBusy
}

// writeDevice writes the record, and with it a session that the device began.
func (s *Service) writeDevice(ctx context.Context, sess *Session, id string, revision int64, rec device) error {
	value, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode device code: %w", err)
	}
	conds := []store.Cond{{Key: "device/" + id, Revision: revision}}
	ops := []store.Op{{Key: "device/" + id, Value: value, Expires: rec.Issued.Add(deviceLife + deviceMemory)}}
	if sess != nil {
		op, err := s.op(sess)
		if err != nil {
			return err
		}
		conds, ops = append(conds, sess.cond()), append(ops, op)
	}
	if _, err := s.Store.Txn(ctx, conds, ops); err != nil {
		return fmt.Errorf("write device code: %w", err)
	}
	return nil
}

// PollDevice answers a device that asks for its tokens (RFC 8628 section 3.4).
// ErrPending, ErrSlowDown, ErrDenied, ErrExpired, ErrInvalidGrant, ErrNoAccess.
func (s *Service) PollDevice(ctx context.Context, c *Client, deviceCode string) (Tokens, error) {
	id, secret, ok := splitToken(deviceCode)
	if !ok {
		return Tokens{}, ErrInvalidGrant
	}
	rec, revision, err := s.device(ctx, id)
	if err != nil {
		return Tokens{}, err
	}
	now := s.Now()
	switch {
	case !isSecret(secret, rec.Hash) || rec.Client != c.ID:
		return Tokens{}, fmt.Errorf("%w: device code is not this client's", ErrInvalidGrant)
	case now.Sub(rec.Issued) > deviceLife:
		return Tokens{}, ErrExpired
	case rec.Denied:
		return Tokens{}, ErrDenied
	case rec.Session == "":
		return Tokens{}, s.pending(ctx, id, revision, rec, now)
	}
	sess, err := s.session(ctx, rec.Session)
	if err != nil {
		return Tokens{}, grantError(err)
	}
	t, err := s.prepare(sess, c, grant{azp: c.ID})
	if err != nil {
		return Tokens{}, s.denied(ctx, sess, c, err)
	}
	mine := newSeed()
	refresh := s.addFamily(sess, c, mine, rec.Offline)
	op, err := s.op(sess)
	if err != nil {
		return Tokens{}, err
	}
	_, err = s.Store.Txn(ctx, []store.Cond{sess.cond(), {Key: "device/" + id, Revision: revision}},
		[]store.Op{op, {Key: "device/" + id, Delete: true}, {Key: "usercode/" + rec.UserCode, Delete: true}})
	if errors.Is(err, store.ErrUnknown) {
		if again, readErr := s.session(ctx, rec.Session); readErr == nil && again.Families[mine.id].Client == c.ID {
			err = nil // it was written: the device must not be left without its tokens
		}
	}
	if errors.Is(err, store.ErrConflict) {
		return Tokens{}, fmt.Errorf("%w: device code used twice", ErrInvalidGrant)
	}
	if err != nil {
		return Tokens{}, fmt.Errorf("redeem device code: %w", err)
	}
	return s.finish(ctx, sess, c, t, mine.id, refresh)
}

// pending paces a device that polls: one that comes too early waits 5 s longer from
// then on (RFC 8628 section 3.5). One that never listens costs no more writes.
func (s *Service) pending(ctx context.Context, id string, revision int64, rec device, now time.Time) error {
	answer := ErrPending
	if now.Before(rec.NextPoll) {
		if rec.Interval >= deviceSlowest {
			return ErrSlowDown
		}
		answer = ErrSlowDown
		rec.Interval += deviceInterval
	}
	rec.NextPoll = now.Add(rec.Interval - time.Second).UTC() // a second for the way
	err := s.writeDevice(ctx, nil, id, revision, rec)
	if errors.Is(err, store.ErrConflict) {
		return ErrSlowDown // it polled twice at once, or was just decided
	}
	if err != nil {
		return err
	}
	return answer
}

// pacer limits how often an address may do what invites guessing. It is each
// node's own: the codes it protects live for minutes.
type pacer struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[string]*rate.Limiter
}

const (
	paceEvery = 3 * time.Second
	paceBurst = 30
	paceMax   = 10_000 // addresses remembered
)

func newPacer(now func() time.Time) *pacer { return &pacer{now: now, by: map[string]*rate.Limiter{}} }

// allow reports whether address may do what once more.
func (p *pacer) allow(what, address string) bool {
	who := what + " " + network(address)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	l := p.by[who]
	if l == nil {
		if len(p.by) >= paceMax {
			p.forget(now)
		}
		l = rate.NewLimiter(rate.Every(paceEvery), paceBurst)
		p.by[who] = l
	}
	return l.AllowN(now, 1)
}

// forget drops those that are at rest; if an attack from many addresses leaves
// none, everybody starts anew, which is still bounded by the code's length.
func (p *pacer) forget(now time.Time) {
	for who, l := range p.by {
		if l.TokensAt(now) >= paceBurst {
			delete(p.by, who)
		}
	}
	if len(p.by) >= paceMax {
		clear(p.by)
	}
}
