package idp

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
)

// KeyConfig says which signing keys there are and when they rotate.
type KeyConfig struct {
	Algorithms   []string      `yaml:"-"`                      // those in use: RS256, ES256
	RotateEvery  time.Duration `yaml:"rotateEvery,omitempty"`  // 30 days
	PublishAhead time.Duration `yaml:"publishAhead,omitempty"` // 24h: how long the next key is in the JWKS before it signs
	Retain       time.Duration `yaml:"-"`                      // how long a key stays published after it signed last: the longest id_token

	// EncryptionKey encrypts the private keys and the server's secret in the store; see
	// ParseVault. Without one they are kept in clear.
	EncryptionKey     string `yaml:"encryptionKey,omitempty"`
	EncryptionKeyFile string `yaml:"encryptionKeyFile,omitempty"`
	Vault             *Vault `yaml:"-"` // parsed from it
}

// Keys holds the signing keys, kept in the store: per algorithm one that signs,
// the next one published ahead, and retired ones until their last token is dead.
// An API server that caches the JWKS therefore never meets an unknown key.
type Keys struct {
	store store.Store
	cfg   KeyConfig
	log   logrus.FieldLogger
	now   func() time.Time

	rewriting  sync.Mutex // what was read first is put to use first
	mu         sync.RWMutex
	keys       map[string][]signingKey // by algorithm, oldest first
	past       map[string][]string     // by algorithm, the IDs of keys that have retired while we ran
	generation atomic.Uint64           // grows with every change of keys

	follower *store.Follower
	changed  chan struct{} // holds one
	stop     context.CancelFunc
	done     chan struct{}
}

// signingKey signs from NotBefore until the NotBefore of the one after it.
type signingKey struct {
	ID        string    `json:"kid"`
	NotBefore time.Time `json:"notBefore"`
	PKCS8     []byte    `json:"pkcs8,omitempty"`  // the private key in clear, or
	Sealed    *box      `json:"sealed,omitempty"` // encrypted by a Vault

	signer jose.Signer
	public jose.JSONWebKey
}

// OpenKeys loads the signing keys, makes missing ones, and rotates until Close.
// now may be nil.
func OpenKeys(ctx context.Context, st store.Store, cfg KeyConfig, log logrus.FieldLogger, now func() time.Time) (*Keys, error) {
	cfg.RotateEvery = cmp.Or(cfg.RotateEvery, 30*24*time.Hour)
	cfg.PublishAhead = cmp.Or(cfg.PublishAhead, 24*time.Hour)
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	k := &Keys{store: st, cfg: cfg, log: log, now: now, keys: map[string][]signingKey{}, past: map[string][]string{}, changed: make(chan struct{}, 1), done: make(chan struct{})}
	for _, alg := range cfg.Algorithms {
		if err := k.refresh(ctx, alg); err != nil {
			return nil, err
		}
	}
	var err error
	if k.follower, err = store.Follow(ctx, st, keysPrefix, k, log); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	k.stop = stop
	go k.run(run)
	return k, nil
}

// Validate reports times that would publish a key too late, or never use it.
// Zero fields stand for their defaults.
func (c KeyConfig) Validate() error {
	every, ahead := cmp.Or(c.RotateEvery, 30*24*time.Hour), cmp.Or(c.PublishAhead, 24*time.Hour)
	switch {
	case every < 0 || ahead < 0:
		return errors.New("keys: rotateEvery and publishAhead must be positive")
	case ahead >= every:
		return fmt.Errorf("keys: publishAhead (%s) must be shorter than rotateEvery (%s)", ahead, every)
	}
	return nil
}

// Close ends rotation and waits for it.
func (k *Keys) Close() {
	k.follower.Close()
	k.stop()
	<-k.done
}

// run rotates when it is due, and takes at once what another node has written.
func (k *Keys) run(ctx context.Context) {
	defer close(k.done)
	tick := time.NewTicker(max(min(k.cfg.PublishAhead/4, time.Minute), 100*time.Millisecond))
	defer tick.Stop()
	for {
		for _, alg := range k.cfg.Algorithms {
			if err := k.refresh(ctx, alg); err != nil && ctx.Err() == nil {
				k.log.WithError(err).Error("signing keys could not be read or rotated; the present ones go on")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-k.changed:
		}
	}
}

// Replace implements store.Target: run reads the keys themselves.
func (k *Keys) Replace(iter.Seq2[store.Entry, error]) error {
	k.Apply(nil)
	return nil
}

// Apply implements store.Target.
func (k *Keys) Apply([]store.Event) {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

const keysPrefix = "keys/"

// refresh reads the keys of alg, writes the next one, encrypts what is not, or drops
// dead ones where that is due, and puts the result to use.
func (k *Keys) refresh(ctx context.Context, alg string) error {
	return k.rewrite(ctx, alg, func(ring []signingKey) ([]signingKey, bool, error) { return k.due(ring, alg) })
}

// rewrite makes the ring of alg what change returns, and puts it to use. Nodes that
// race meet in ErrConflict, and the later one changes what the other has written.
func (k *Keys) rewrite(ctx context.Context, alg string, change func([]signingKey) ([]signingKey, bool, error)) error {
	k.rewriting.Lock()
	defer k.rewriting.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key := keysPrefix + alg
	for {
		var ring []signingKey
		e, err := k.store.Get(ctx, key)
		if err == nil {
			err = json.Unmarshal(e.Value, &ring)
		} else if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("signing keys %s: %w", alg, err)
		}
		next, changed, err := change(ring)
		if err != nil {
			return err
		}
		for i := range next {
			resealed, err := next[i].reseal(k.cfg.Vault)
			if err != nil {
				return err
			}
			changed = changed || resealed
		}
		if changed {
			value, err := json.Marshal(next)
			if err != nil {
				return fmt.Errorf("signing keys %s: %w", alg, err)
			}
			_, err = k.store.Txn(ctx, []store.Cond{{Key: key, Revision: e.Revision}}, []store.Op{{Key: key, Value: value}})
			if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknown) {
				continue
			}
			if err != nil {
				return fmt.Errorf("write signing keys %s: %w", alg, err)
			}
		}
		return k.use(alg, next)
	}
}

// due returns the ring as it should be now: a first key at once, the next key
// PublishAhead before it signs, without keys whose last token is dead.
func (k *Keys) due(ring []signingKey, alg string) (next []signingKey, changed bool, err error) {
	now, n := k.now(), len(ring)
	for i, key := range ring {
		if i+1 < n && ring[i+1].NotBefore.Add(k.cfg.Retain+retireMargin).Before(now) {
			changed = true
			continue
		}
		next = append(next, key)
	}
	from := now
	if n > 0 {
		from = ring[n-1].NotBefore.Add(k.cfg.RotateEvery)
		if now.Before(from.Add(-k.cfg.PublishAhead)) {
			return next, changed, nil
		}
		if ahead := now.Add(k.cfg.PublishAhead); from.Before(ahead) {
			from = ahead // the server was down when it was due
		}
	}
	key, err := newSigningKey(alg, from)
	return append(next, key), true, err
}

// retireMargin covers clocks that differ and tokens under way.
const retireMargin = 10 * time.Minute

func newSigningKey(alg string, from time.Time) (signingKey, error) {
	var priv any
	var err error
	switch alg {
	case string(jose.RS256):
		priv, err = rsa.GenerateKey(rand.Reader, 2048)
	case string(jose.ES256):
		priv, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		err = fmt.Errorf("signing algorithm %q is not RS256 or ES256", alg)
	}
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	return signingKey{ID: randomID(), NotBefore: from.UTC(), PKCS8: der}, nil
}

// use makes ring the keys of alg, keeping what was parsed before.
func (k *Keys) use(alg string, ring []signingKey) error {
	k.mu.RLock()
	old := k.keys[alg]
	k.mu.RUnlock()
	for i := range ring {
		at := slices.IndexFunc(old, func(o signingKey) bool { return o.ID == ring[i].ID })
		if at >= 0 {
			ring[i].signer, ring[i].public = old[at].signer, old[at].public
			continue
		}
		if err := ring[i].parse(alg, k.cfg.Vault); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.EqualFunc(old, ring, func(a, b signingKey) bool { return a.ID == b.ID }) {
		k.generation.Add(1)
		k.past[alg] = pastOf(k.past[alg], old, ring)
	}
	k.keys[alg] = ring
	return nil
}

// pastOf adds to past the IDs of keys that are in old and not in ring: a key that retires
// leaves its successor behind, and an emergency none of the keys there were.
func pastOf(past []string, old, ring []signingKey) []string {
	var gone []string
	for _, key := range old {
		if !slices.ContainsFunc(ring, func(o signingKey) bool { return o.ID == key.ID }) {
			gone = append(gone, key.ID)
		}
	}
	if len(gone) == len(old) {
		return nil
	}
	past = append(past, gone...)
	return past[max(0, len(past)-maxPast):]
}

// maxPast is more keys than retire within the longest session.
const maxPast = 16

// private returns the PKCS #8 form of the private key.
func (s *signingKey) private(v *Vault) ([]byte, error) {
	if s.Sealed == nil {
		return s.PKCS8, nil
	}
	return v.open("signing key "+s.ID, *s.Sealed)
}

// reseal sees that the private key is kept as v wants it.
func (s *signingKey) reseal(v *Vault) (changed bool, err error) {
	if v == nil || v.current(s.Sealed) { // what is encrypted is not decrypted again
		return false, nil
	}
	der, err := s.private(v)
	if err != nil {
		return false, err
	}
	sealed, err := v.seal("signing key "+s.ID, der)
	s.Sealed, s.PKCS8 = &sealed, nil
	return true, err
}

func (s *signingKey) parse(alg string, v *Vault) error {
	der, err := s.private(v)
	if err != nil {
		return err
	}
	priv, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fmt.Errorf("signing key %s is damaged: %w", s.ID, err)
	}
	signer, ok := priv.(crypto.Signer)
	if !ok {
		return fmt.Errorf("signing key %s cannot sign", s.ID)
	}
	s.public = jose.JSONWebKey{Key: signer.Public(), KeyID: s.ID, Algorithm: alg, Use: "sig"}
	s.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: jose.JSONWebKey{Key: priv, KeyID: s.ID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("signing key %s: %w", s.ID, err)
	}
	return nil
}

// KeyInfo is what may be told of a signing key.
type KeyInfo struct {
	ID        string
	Algorithm string
	State     string    // "current", "next" or "retired"
	Signs     time.Time // from when on it signs
	Encrypted bool      // in the store
}

// List returns the keys that are published, by algorithm, oldest first.
func (k *Keys) List() []KeyInfo {
	var out []KeyInfo
	for _, alg := range k.cfg.Algorithms {
		current := k.current(alg)
		state := "retired"
		k.mu.RLock()
		for _, key := range k.keys[alg] {
			info := KeyInfo{key.ID, alg, state, key.NotBefore, key.Sealed != nil}
			if current != nil && key.ID == current.ID {
				info.State, state = "current", "next"
			}
			out = append(out, info)
		}
		k.mu.RUnlock()
	}
	return out
}

// Rotate begins a rotation before it is due: the next key of each algorithm is
// published now and signs after PublishAhead; one that is published already keeps its
// time. In an emergency a new key signs at once and every other one is gone, so that
// no token of theirs is good any more.
func (k *Keys) Rotate(ctx context.Context, emergency bool) error {
	for _, alg := range k.cfg.Algorithms {
		err := k.rewrite(ctx, alg, func(ring []signingKey) ([]signingKey, bool, error) {
			now := k.now()
			if !emergency && len(ring) > 0 && ring[len(ring)-1].NotBefore.After(now) {
				return ring, false, nil
			}
			from := now
			if emergency {
				ring = nil
			} else {
				from = now.Add(k.cfg.PublishAhead)
			}
			key, err := newSigningKey(alg, from)
			return append(ring, key), true, err
		})
		if err != nil {
			return err
		}
	}
	if emergency {
		return k.dropUnused(ctx)
	}
	return nil
}

// dropUnused deletes the keys of algorithms that are not in use: they would sign again
// when their algorithm is.
func (k *Keys) dropUnused(ctx context.Context) error {
	rings, _, err := k.store.List(ctx, keysPrefix, "", store.MaxOps)
	if err != nil {
		return fmt.Errorf("list signing keys: %w", err)
	}
	var ops []store.Op
	for _, e := range rings {
		if !slices.Contains(k.cfg.Algorithms, strings.TrimPrefix(e.Key, keysPrefix)) {
			ops = append(ops, store.Op{Key: e.Key, Delete: true})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	if _, err := k.store.Txn(ctx, nil, ops); err != nil {
		return fmt.Errorf("delete signing keys that are not in use: %w", err)
	}
	return nil
}

// SigningKeys lists the signing keys to administrators. groups.ErrForbidden.
func (s *Service) SigningKeys(admin bool) ([]KeyInfo, error) {
	if !admin {
		return nil, fmt.Errorf("list keys: %w", ErrAdministrators)
	}
	return s.Keys.List(), nil
}

// RotateKeys is Keys.Rotate for an administrator, and returns the keys as they are
// then. groups.ErrForbidden.
func (s *Service) RotateKeys(ctx context.Context, a groups.Actor, admin, emergency bool) ([]KeyInfo, error) {
	e := audit.Event{Act: "keys.rotate", Who: a.Sub, Name: a.Name, Outcome: audit.Intended, Detail: map[string]string{"emergency": strconv.FormatBool(emergency)}}
	if !admin {
		e.Outcome, e.Reason = audit.Denied, "not an administrator"
		return nil, cmp.Or(s.record(ctx, e, nil), fmt.Errorf("rotate keys: %w", ErrAdministrators))
	}
	if err := s.record(ctx, e, nil); err != nil {
		return nil, err
	}
	err := s.Keys.Rotate(ctx, emergency)
	e.Outcome = audit.Done
	if err != nil {
		e.Outcome, e.Reason = audit.Failed, "the keys could not be written"
	}
	return s.Keys.List(), errors.Join(err, s.record(context.WithoutCancel(ctx), e, nil))
}

// Sign returns payload as a compact JWS by the key of alg that signs now.
func (k *Keys) Sign(alg string, payload []byte) (string, error) {
	key := k.current(alg)
	if key == nil {
		return "", fmt.Errorf("no signing key for %s", alg)
	}
	jws, err := key.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return jws.CompactSerialize()
}

func (k *Keys) current(alg string) *signingKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	now := k.now()
	for i, key := range slices.Backward(k.keys[alg]) {
		if !key.NotBefore.After(now) || i == 0 {
			return &k.keys[alg][i]
		}
	}
	return nil
}

// Verify returns the payload of a compact JWS that one of our keys signed, and that
// key's ID.
func (k *Keys) Verify(token string) (payload []byte, kid string, err error) {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil {
		return nil, "", fmt.Errorf("parse token: %.200s", err) // it can quote the token's header
	}
	header := jws.Signatures[0].Header
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, key := range k.keys[header.Algorithm] {
		if key.ID == header.KeyID {
			payload, err = jws.Verify(key.public)
			return payload, key.ID, err
		}
	}
	return nil, "", errors.New("token is signed by no key of ours")
}

// trusted reports whether what a key signed once is to be believed still, whatever its
// age: no emergency has taken the key away, and its algorithm is in use.
func (k *Keys) trusted(kid string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for alg, ring := range k.keys {
		if slices.ContainsFunc(ring, func(key signingKey) bool { return key.ID == kid }) || slices.Contains(k.past[alg], kid) {
			return true
		}
	}
	return false
}

// Public returns the JWKS: every key that signs, will sign, or has signed tokens
// that may still live.
func (k *Keys) Public() jose.JSONWebKeySet {
	k.mu.RLock()
	defer k.mu.RUnlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, alg := range k.cfg.Algorithms {
		for _, key := range k.keys[alg] {
			set.Keys = append(set.Keys, key.public)
		}
	}
	return set
}
