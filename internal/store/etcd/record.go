package etcd

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/tabard-id/tabard/internal/store"
)

// A record is the expiry (Unix microseconds, all ones for never) in 8 bytes
// big-endian, a byte for the layout, then the value. Etcd compares values byte by
// byte, so one comparison with bound tells whether an entry has expired.
const (
	headerSize = 9
	layout     = 1
	never      = math.MaxUint64
)

func encode(value []byte, expires time.Time) []byte {
	at := uint64(never)
	if !expires.IsZero() {
		at = uint64(max(0, expires.UnixMicro())) // before 1970 is as expired as 1970
	}
	record := make([]byte, headerSize+len(value))
	binary.BigEndian.PutUint64(record, at)
	record[8] = layout
	copy(record[headerSize:], value)
	return record
}

// bound is below every record that has not expired at now, and above all others.
func bound(now time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(now.UnixMicro())+1)
}

// decode returns the entry in kv, whose key begins with base.
func decode(base string, kv *mvccpb.KeyValue) (store.Entry, error) {
	key := strings.TrimPrefix(string(kv.Key), base)
	switch {
	case len(kv.Value) < headerSize || kv.Value[8] == 0:
		return store.Entry{}, fmt.Errorf("%.80q is no record of Tabard: does another program write under this prefix? Delete the key or change store.etcd.prefix", key)
	case kv.Value[8] > layout:
		return store.Entry{}, fmt.Errorf("%.80q: %w of Tabard: run that version", key, store.ErrNewer)
	}
	e := store.Entry{Key: key, Value: kv.Value[headerSize:], Revision: kv.ModRevision}
	if at := binary.BigEndian.Uint64(kv.Value); at != never {
		e.Expires = time.UnixMicro(int64(at)).UTC()
	}
	return e, nil
}

// live says whether e exists at now.
func live(e store.Entry, now time.Time) bool {
	return e.Expires.IsZero() || now.Before(e.Expires)
}
