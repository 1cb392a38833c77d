package idp

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// Vault encrypts what the store keeps of secrets: the private signing keys and the
// server's own secret. A nil Vault leaves them in clear.
type Vault struct{ keys []vaultKey } // the first one encrypts

type vaultKey struct {
	id  string // tells keys apart, and nothing of them
	key []byte
}

// box is a secret that a Vault has encrypted, by XChaCha20-Poly1305.
type box struct {
	By  string `json:"by"` // id of the key
	Box []byte `json:"box"`
}

// maxVaultKeys is more than a change of keys ever needs.
const maxVaultKeys = 10

// ParseVault reads the keys of a Vault: base64 of 32 random bytes or more, one a
// line. The first one encrypts; the others only decrypt what they once encrypted,
// until it has been encrypted anew. Empty text is no Vault.
func ParseVault(text string) (*Vault, error) {
	lines := strings.Fields(text)
	if len(lines) == 0 {
		return nil, nil
	}
	if len(lines) > maxVaultKeys {
		return nil, fmt.Errorf("holds more than %d keys", maxVaultKeys)
	}
	v := &Vault{}
	for i, line := range lines {
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) < 32 {
			return nil, fmt.Errorf("line %d is not base64 of 32 bytes or more: make one by `head -c 32 /dev/urandom | base64`", i+1)
		}
		key, err := hkdf.Key(sha256.New, raw, nil, "tabard encryption at rest", chacha20poly1305.KeySize)
		if err != nil {
			return nil, fmt.Errorf("derive key: %w", err)
		}
		id := sha256.Sum256(append([]byte("tabard key id"), key...))
		v.keys = append(v.keys, vaultKey{hex.EncodeToString(id[:4]), key})
	}
	return v, nil
}

// errNoVaultKey says what a person can do about a record that cannot be read.
var errNoVaultKey = errors.New("it is encrypted by a key that keys.encryptionKeyFile does not hold: put that key back into the file, on a line of its own")

// seal encrypts plain, which can be opened under the same name alone.
func (v *Vault) seal(name string, plain []byte) (box, error) {
	k := v.keys[0]
	sealed, err := encrypt(k.key, plain, []byte(name))
	if err != nil {
		return box{}, fmt.Errorf("encrypt %s: %w", name, err)
	}
	return box{k.id, sealed}, nil
}

// open decrypts what seal made for name.
func (v *Vault) open(name string, b box) ([]byte, error) {
	if v != nil {
		for _, k := range v.keys {
			if k.id != b.By {
				continue
			}
			plain, err := decrypt(k.key, b.Box, []byte(name))
			if err != nil {
				return nil, fmt.Errorf("decrypt %s: the record is damaged: restore the store from a backup", name)
			}
			return plain, nil
		}
	}
	return nil, fmt.Errorf("decrypt %s: %w", name, errNoVaultKey)
}

// current reports whether a secret is kept as it should be: in clear without a Vault,
// else encrypted by its first key.
func (v *Vault) current(b *box) bool {
	if v == nil {
		return b == nil
	}
	return b != nil && b.By == v.keys[0].id
}
