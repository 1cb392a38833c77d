package idp

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/tabard-id/tabard/internal/store"
)

const serverSecretKey = "secret/server"

// serverSecret returns the secret that all nodes of a store share, making it on the
// first start. With a Vault it is kept as a box in JSON, else as its 32 bytes.
func serverSecret(ctx context.Context, st store.Store, v *Vault) ([]byte, error) {
	for {
		e, err := st.Get(ctx, serverSecretKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		secret, sealed := e.Value, (*box)(nil)
		if err != nil {
			secret = randomBytes(32)
		} else if len(secret) != 32 {
			sealed = new(box)
			if err := json.Unmarshal(e.Value, sealed); err != nil {
				return nil, fmt.Errorf("record %s is damaged: restore the store from a backup", serverSecretKey)
			}
			if secret, err = v.open(serverSecretKey, *sealed); err != nil {
				return nil, err
			}
		}
		if e.Revision != 0 && (v == nil || v.current(sealed)) {
			return secret, nil
		}
		value := secret
		if v != nil {
			kept, err := v.seal(serverSecretKey, secret)
			if err != nil {
				return nil, err
			}
			if value, err = json.Marshal(kept); err != nil {
				return nil, fmt.Errorf("encode %s: %w", serverSecretKey, err)
			}
		}
		_, err = st.Txn(ctx, []store.Cond{{Key: serverSecretKey, Revision: e.Revision}}, []store.Op{{Key: serverSecretKey, Value: value}})
		if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
			return nil, err
		}
	}
}

// sealer encrypts what is handed to browsers and clients instead of being stored,
// and derives refresh secrets. Each purpose has a key of its own (RFC 5869).
type sealer struct{ keys map[string][]byte }

func newSealer(secret []byte) (*sealer, error) {
	s := &sealer{map[string][]byte{}}
	for _, purpose := range []string{"authorize", "access", "logout", "refresh", "throttle"} {
		k, err := hkdf.Key(sha256.New, secret, nil, "tabard "+purpose, chacha20poly1305.KeySize)
		if err != nil {
			return nil, fmt.Errorf("derive key: %w", err)
		}
		s.keys[purpose] = k
	}
	return s, nil
}

// key is the key of a purpose. An unknown one would silently be no key at all.
func (s *sealer) key(purpose string) []byte {
	k, ok := s.keys[purpose]
	if !ok {
		panic("no key for " + purpose)
	}
	return k
}

// seal returns v as JSON, encrypted, in base64url without padding.
func (s *sealer) seal(purpose string, v any) (string, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("seal %s: %w", purpose, err)
	}
	sealed, err := encrypt(s.key(purpose), plain, nil)
	if err != nil {
		return "", fmt.Errorf("seal %s: %w", purpose, err)
	}
	return encode(sealed), nil
}

// open reads into v what seal made for the same purpose. Any failure is
// errSealed: nothing says which part was wrong.
func (s *sealer) open(purpose, sealed string, v any) error {
	if len(sealed) > maxSealed {
		return errSealed
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err == nil {
		b, err = decrypt(s.key(purpose), b, nil)
	}
	if err != nil || json.Unmarshal(b, v) != nil {
		return errSealed
	}
	return nil
}

// encrypt is XChaCha20-Poly1305, whose long nonce may be random without a limit that
// matters. The nonce is in front.
func encrypt(key, plain, additional []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	nonce := randomBytes(aead.NonceSize())
	return aead.Seal(nonce, nonce, plain, additional), nil
}

func decrypt(key, b, additional []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	if len(b) < aead.NonceSize() {
		return nil, errSealed
	}
	return aead.Open(nil, b[:aead.NonceSize()], b[aead.NonceSize():], additional)
}

// maxSealed bounds what is opened. The longest is an authorization request whose
// every character takes six in JSON.
const maxSealed = 64 << 10

var errSealed = errors.New("not sealed by this server")

// mac is HMAC-SHA256 over parts that are told apart by their lengths.
func (s *sealer) mac(purpose string, parts ...string) []byte {
	h := hmac.New(sha256.New, s.key(purpose))
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return h.Sum(nil)
}

// randomBytes returns n bytes from the system's generator, which does not fail.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// randomID returns 128 random bits, base64url. It begins with no hyphen: a command
// would take such an id for a flag.
func randomID() string {
	for {
		if id := encode(randomBytes(16)); id[0] != '-' {
			return id
		}
	}
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// hashSecret is what is stored of a secret with 128 random bits or more: nothing
// slower is needed than one SHA-256.
func hashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// isSecret compares in constant time a presented secret with a stored hash.
func isSecret(presented string, hash []byte) bool {
	return len(hash) > 0 && subtle.ConstantTimeCompare(hashSecret(presented), hash) == 1
}

// splitToken cuts "id.rest", where both are non-empty and the id may be a store key.
func splitToken(token string) (id, rest string, ok bool) {
	id, rest, ok = strings.Cut(token, ".")
	return id, rest, ok && isID(id) && rest != "" && len(token) <= 512
}

// isID reports whether s has the form of randomID.
func isID(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 16
}
