package audit

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A checkpoint is a record of the act "audit.checkpoint": its details name the record
// before it, "seq" and "hash", and hold an Ed25519 "signature" over them in base64,
// by the key whose id is "key". What is signed is the text of checkpointText.
const checkpointAct = "audit.checkpoint"

// checkpointText is what a checkpoint's signature covers. time is the record's.
func checkpointText(node string, seq uint64, hash string, at time.Time) []byte {
	return fmt.Appendf(nil, "tabard audit checkpoint v1\n%s\n%d\n%s\n%s\n", node, seq, hash, at.UTC().Format(time.RFC3339Nano))
}

// appendCheckpoint appends the record that signs everything up to end.
func (l *Log) appendCheckpoint(lines []byte, end tail, now time.Time) ([]byte, tail, error) {
	e := Event{Node: l.cfg.Node, Act: checkpointAct, Outcome: Done, Detail: map[string]string{
		"seq": strconv.FormatUint(end.seq, 10), "hash": end.hash.hex(), "key": KeyID(l.key.Public().(ed25519.PublicKey)),
		"signature": base64.StdEncoding.EncodeToString(ed25519.Sign(l.key, checkpointText(l.cfg.Node, end.seq, end.hash.hex(), now))),
	}}
	body, err := json.Marshal(bare{Event: e})
	if err != nil {
		return lines, end, fmt.Errorf("encode a checkpoint: %w", err)
	}
	lines, end = appendLine(lines, end, now, body)
	return lines, end, nil
}

// mark says cheaply whether line may be a record of act.
func mark(line []byte, act string) bool { return bytes.Contains(line, []byte(`"act":"`+act+`"`)) }

// checkCheckpoint says what is wrong with the record r if it is a checkpoint. With keys,
// signed is true for one that one of them signed.
func checkCheckpoint(r record, line []byte, keys []ed25519.PublicKey) (is, signed bool, why string) {
	if !mark(line, checkpointAct) {
		return false, false, ""
	}
	var e Event
	if json.Unmarshal(line, &e) != nil || e.Act != checkpointAct {
		return false, false, ""
	}
	d := e.Detail
	if d["seq"] != strconv.FormatUint(r.seq-1, 10) || d["hash"] != r.prev.hex() {
		return true, false, "the checkpoint is of another chain"
	}
	if len(keys) == 0 {
		return true, false, ""
	}
	i := slices.IndexFunc(keys, func(k ed25519.PublicKey) bool { return KeyID(k) == d["key"] })
	if i < 0 {
		return true, false, fmt.Sprintf("the checkpoint is signed by key %.40q, which was not given", d["key"])
	}
	sig, err := base64.StdEncoding.DecodeString(d["signature"])
	if err != nil || !ed25519.Verify(keys[i], checkpointText(e.Node, r.seq-1, d["hash"], e.Time), sig) {
		return true, false, "the checkpoint's signature does not fit: this is not what Tabard wrote"
	}
	return true, true, ""
}

// KeyID is the name of a key in checkpoints: 16 hex digits of the SHA-256 of its
// public half in DER.
func KeyID(k ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:8])
}

// PublicPEM is k as ParseKeys reads it.
func PublicPEM(k ed25519.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode the audit key's public half: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParseKeys reads every Ed25519 public key in a PEM file.
func ParseKeys(b []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		k, ok := key.(ed25519.PublicKey)
		if err != nil || !ok || block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a block %q is no Ed25519 public key: give the file ending in .pub beside the audit key", block.Type)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key in PEM form: give the file ending in .pub beside the audit key")
	}
	return keys, nil
}

// PublicKeyFile is where the public half of the key in keyFile is.
func PublicKeyFile(keyFile string) string {
	return strings.TrimSuffix(keyFile, filepath.Ext(keyFile)) + ".pub"
}

// openKey reads the key that signs checkpoints, or makes it with mode 0600, and sees
// that its public half is beside it.
func openKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = newKey(); err == nil {
			err = createWhole(path, b, 0o600)
		}
		if err == nil || errors.Is(err, fs.ErrExist) { // another node was first
			b, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("audit key: %w: set audit.keyFile to a file in a folder that tabard may write to", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("audit key %s: no key in PEM form", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("audit key %s: not an Ed25519 key in PKCS #8 form", path)
	}
	return key, writePublic(PublicKeyFile(path), key.Public().(ed25519.PublicKey))
}

func newKey() ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// writePublic leaves a file that holds k already alone: an administrator may have made
// the folder read-only since.
func writePublic(path string, k ed25519.PublicKey) error {
	want, err := PublicPEM(k)
	if err != nil {
		return err
	}
	if is, err := os.ReadFile(path); err == nil && bytes.Equal(is, want) {
		return nil
	}
	if err := os.WriteFile(path, want, 0o644); err != nil {
		return fmt.Errorf("public half of the audit key: %w", err)
	}
	return nil
}

// createWhole makes a file with what is in it at once; fs.ErrExist where there is one.
func createWhole(path string, b []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// kept is a checkpoint that was kept elsewhere: record seq has this hash.
type kept struct {
	tail
	at   time.Time
	line int // in the file of checkpoints
}

// maxKept is how many checkpoints one file of them can hold; they are in memory.
const maxKept = 5_000_000

// readKept reads the checkpoints among lines as sinks receive them, by node, in the
// order of their records. A line may have something in front, such as syslog's head;
// every line without a checkpoint is passed over. With keys, each must be signed by one.
func readKept(in io.Reader, keys []ed25519.PublicKey) (map[string][]kept, error) {
	out := map[string][]kept{}
	lines := newLineReader(in)
	for n, total := 1, 0; ; n++ {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		node, k, why := parseKept(line, keys)
		if why != "" {
			return nil, fmt.Errorf("line %d: %s", n, why)
		}
		if k.seq == 0 {
			continue
		}
		if total++; total > maxKept {
			return nil, fmt.Errorf("more than %d checkpoints: verify with a part of the file at a time", maxKept)
		}
		k.line = n
		out[node] = append(out[node], k)
	}
	for _, all := range out {
		slices.SortStableFunc(all, func(a, b kept) int { return cmp.Compare(a.seq, b.seq) })
	}
	return out, nil
}

// parseKept reads one line; seq is 0 where it holds no checkpoint.
func parseKept(line []byte, keys []ed25519.PublicKey) (node string, k kept, why string) {
	i := bytes.LastIndex(line, []byte(seqIs))
	if i < 0 || !mark(line, checkpointAct) {
		return "", k, ""
	}
	line = append(bytes.TrimRight(bytes.Clone(line[i:]), "\r\n"), '\n')
	var e Event
	if json.Unmarshal(line, &e) != nil || e.Act != checkpointAct {
		return "", k, ""
	}
	r, why := parse(line)
	if why == "" {
		_, _, why = checkCheckpoint(r, line, keys)
	}
	return e.Node, kept{tail: tail{r.seq, r.hash}, at: e.Time}, why
}
