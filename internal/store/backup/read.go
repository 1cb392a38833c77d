package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// Verify reads a whole backup. The error says what is wrong with it: ErrNotBackup,
// ErrCutShort, ErrChanged, store.ErrNewer, or that of r.
func Verify(r io.Reader) (Summary, error) {
	sum, err := each(r, func(store.Entry) error { return nil })
	if err != nil {
		return Summary{}, fmt.Errorf("read the backup: %w", err)
	}
	return sum, nil
}

// each calls fn for every record of a backup.
func each(r io.Reader, fn func(store.Entry) error) (Summary, error) {
	in := newReader(r)
	for {
		e, more, err := in.next()
		if err != nil || !more {
			return in.sum, err
		}
		if err := fn(e); err != nil {
			return in.sum, err
		}
	}
}

// reader reads a backup line by line, and trusts nothing of it.
type reader struct {
	buf  *bufio.Reader
	hash hash.Hash
	at   int    // number of the line last read
	last string // key last read
	sum  Summary
}

func newReader(r io.Reader) *reader {
	return &reader{buf: bufio.NewReaderSize(r, maxLine), hash: sha256.New(), sum: Summary{Format: 1}}
}

// next returns the next record; false after the last one, when the end agrees with
// all that was read.
func (r *reader) next() (store.Entry, bool, error) {
	if r.at == 0 {
		if err := r.header(); err != nil {
			return store.Entry{}, false, err
		}
	}
	b, err := r.read()
	if err != nil {
		return store.Entry{}, false, err
	}
	var l line
	if err := strict(b, &l); err != nil {
		return store.Entry{}, false, r.changed("it cannot be read")
	}
	r.hash.Write(b)
	if l.End != nil {
		return store.Entry{}, false, r.end(l)
	}
	e, err := r.record(l)
	return e, err == nil, err
}

func (r *reader) header() error {
	const begin = `{"backup":"tabard",`
	b, err := r.read()
	var h header
	switch {
	case errors.Is(err, ErrCutShort) && strings.HasPrefix(begin, string(b[:min(len(b), len(begin))])):
		return err
	case errors.Is(err, ErrCutShort), errors.Is(err, ErrChanged):
		return ErrNotBackup
	case err != nil:
		return err
	case json.Unmarshal(b, &h) != nil || h.Backup != "tabard" || h.Version < 1:
		return ErrNotBackup
	case h.Version > version:
		return fmt.Errorf("the file has version %d, this Tabard reads up to %d: %w: use that version", h.Version, version, store.ErrNewer)
	}
	r.hash.Write(b)
	r.sum.Created = h.Created
	return nil
}

// read returns the next line, valid until the next call, or what there is of it with
// an error.
func (r *reader) read() ([]byte, error) {
	b, err := r.buf.ReadSlice('\n')
	r.at++
	r.sum.Bytes += int64(len(b))
	switch {
	case errors.Is(err, io.EOF):
		err = ErrCutShort
	case errors.Is(err, bufio.ErrBufferFull):
		err = r.changed(fmt.Sprintf("it has more than %d bytes", maxLine))
	}
	return b, err
}

func (r *reader) changed(why string) error {
	return fmt.Errorf("line %d: %s: %w", r.at, why, ErrChanged)
}

// record checks one record as the store would, so that a restore cannot fail half way.
func (r *reader) record(l line) (store.Entry, error) {
	e := store.Entry{Key: l.Key}
	if l.RawKey != nil {
		e.Key += string(l.RawKey)
	}
	switch {
	case l.Value == nil || l.Expires < 0 || l.Key != "" && l.RawKey != nil:
		return e, r.changed("it is no record")
	case store.CheckTxn(nil, []store.Op{{Key: e.Key, Value: *l.Value}}) != nil:
		return e, r.changed("the record is larger than a store takes, or its key is not one")
	case e.Key <= r.last:
		return e, r.changed("its key is not above the one before")
	case e.Key == store.RestoreKey || strings.HasPrefix(e.Key, store.LeasePrefix):
		return e, r.changed("the record does not belong into a backup")
	}
	e.Value = *l.Value
	if l.Expires != 0 {
		e.Expires = time.UnixMicro(l.Expires).UTC()
	}
	if e.Key == store.FormatKey {
		n, err := store.ParseFormat(e.Value)
		if err != nil {
			return e, r.changed("the format of the records cannot be read")
		}
		r.sum.Format = n
	}
	r.last = e.Key
	r.sum.Records++
	return e, nil
}

// end holds the last two lines, of which l is the first, against what was read, and
// makes sure that nothing follows.
func (r *reader) end(l line) error {
	if l.Key != "" || l.RawKey != nil || l.Value != nil || l.Expires != 0 || l.End.Revision < 0 {
		return r.changed("it is no end")
	}
	if l.End.Records != r.sum.Records {
		return fmt.Errorf("there are %d records, written were %d: %w", r.sum.Records, l.End.Records, ErrChanged)
	}
	r.sum.Revision, r.sum.SHA256 = l.End.Revision, hex.EncodeToString(r.hash.Sum(nil))
	b, err := r.read()
	if err != nil {
		return err
	}
	if want, err := json.Marshal(seal{r.sum.SHA256}); err != nil || string(b) != string(want)+"\n" {
		return r.changed("it is not the SHA-256 of what is before it, " + r.sum.SHA256)
	}
	if _, err := r.buf.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			r.at++
			err = r.changed("something follows the end")
		}
		return err
	}
	return nil
}

// strict decodes one JSON object that has no other fields than v.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}
