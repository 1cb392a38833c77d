// Package backup copies a whole store into one file and back, the same for every
// back end. The file is JSON lines: a header, one line for each record in order of
// the keys, and a trailer with their number and the SHA-256 of all bytes before it.
// The hash shows accidents; whoever can change the file can also make it anew.
package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tabard-id/tabard/internal/store"
)

// version is that of the file's format. What an older Tabard would misread gets the
// next number.
const version = 1

// maxLine bounds a line in bytes: the largest value in base64 and the longest key
// with every byte escaped.
const maxLine = 4*store.MaxBytes/3 + 6*store.MaxKey + 1_000

// Errors of reading a file, wrapped with where.
var (
	ErrNotBackup = errors.New("not a backup of Tabard")
	ErrCutShort  = errors.New("the backup is cut short: its end is missing; take another one")
	ErrChanged   = errors.New("the backup was changed or damaged after it was written; take another one")
)

// Summary is what a backup holds.
type Summary struct {
	Created  time.Time `json:"created"`  // when it was begun, UTC
	Format   int       `json:"format"`   // of the records, see store.Migrate
	Records  int       `json:"records"`  // how many
	Bytes    int64     `json:"bytes"`    // of the file
	Revision int64     `json:"revision"` // of the store at the moment that was copied
	SHA256   string    `json:"sha256"`   // in hex, as in the last line; names the backup
}

// header is the first line.
type header struct {
	Backup  string    `json:"backup"` // "tabard"
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

// line is a record, which has a Value, or what follows the last one.
type line struct {
	Key     string  `json:"key,omitempty"`
	RawKey  []byte  `json:"rawKey,omitempty"` // instead of Key where that is no UTF-8
	Value   *[]byte `json:"value,omitempty"`
	Expires int64   `json:"expires,omitempty"` // Unix time in microseconds; 0: never
	End     *end    `json:"end,omitempty"`
}

// end is the last line but one.
type end struct {
	Records  int   `json:"records"`
	Revision int64 `json:"revision"`
}

// seal is the last line.
type seal struct {
	SHA256 string `json:"sha256"` // in hex, of all lines before
}

// Write copies what st holds at one moment to w, but for leases, which belong to
// running servers. It holds one record at a time in memory. The error wraps
// store.ErrRestoring when st is half restored; after any error what was written is
// no backup, and Verify says so.
func Write(ctx context.Context, st store.Store, w io.Writer) (Summary, error) {
	sum, err := write(ctx, st, w)
	if err != nil {
		return Summary{}, fmt.Errorf("back up the store: %w", err)
	}
	return sum, nil
}

func write(ctx context.Context, st store.Store, w io.Writer) (Summary, error) {
	if err := store.NotRestoring(ctx, st); err != nil {
		return Summary{}, err
	}
	out := &writer{buf: bufio.NewWriterSize(w, 64<<10), hash: sha256.New()}
	sum := Summary{Created: time.Now().UTC().Truncate(time.Second), Format: 1}
	if err := out.line(header{Backup: "tabard", Version: version, Created: sum.Created}); err != nil {
		return Summary{}, err
	}
	var err error
	sum.Revision, err = st.Dump(ctx, func(e store.Entry) (err error) {
		switch {
		case strings.HasPrefix(e.Key, store.LeasePrefix):
			return nil
		case e.Key == store.RestoreKey:
			return store.ErrRestoring
		case e.Key == store.FormatKey:
			if sum.Format, err = store.ParseFormat(e.Value); err != nil {
				return err
			}
		}
		sum.Records++
		return out.line(recordLine(e))
	})
	if err != nil {
		return Summary{}, err
	}
	if err := out.line(line{End: &end{sum.Records, sum.Revision}}); err != nil {
		return Summary{}, err
	}
	sum.SHA256 = hex.EncodeToString(out.hash.Sum(nil))
	if err := out.line(seal{sum.SHA256}); err != nil {
		return Summary{}, err
	}
	sum.Bytes = out.bytes
	return sum, out.buf.Flush()
}

func recordLine(e store.Entry) line {
	value := e.Value
	if value == nil {
		value = []byte{}
	}
	l := line{Key: e.Key, Value: &value}
	if !utf8.ValidString(e.Key) {
		l.Key, l.RawKey = "", []byte(e.Key)
	}
	if !e.Expires.IsZero() {
		l.Expires = e.Expires.UnixMicro()
	}
	return l
}

// writer writes lines and counts and hashes them.
type writer struct {
	buf   *bufio.Writer
	hash  hash.Hash
	bytes int64
}

func (w *writer) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	w.hash.Write(b)
	w.bytes += int64(len(b))
	_, err = w.buf.Write(b)
	return err
}
