package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/tabard-id/tabard/internal/store"
)

// format is the version of what is in the file. A change that an older Tabard
// would misread gets the next number.
const format = 1

var (
	metaBucket    = []byte("meta")    // formatKey, revisionKey: 8 bytes big-endian each; digestKey
	recordsBucket = []byte("records") // key: record
	formatKey     = []byte("format")
	revisionKey   = []byte("revision")
	digestKey     = []byte("digest")
)

// errDamaged is what a person can do about a file that is not whole.
var errDamaged = errors.New("the file is damaged: move it away and restore the last backup (tabard restore)")

// openFile opens or creates the file and returns the digest of what is in it. bbolt
// panics on damaged pages, and reading a mapped file beyond its end is a fault;
// both become errDamaged here rather than a stack trace. After a panic inside
// bbolt.Open its lock stays until the process ends, which it does next.
func openFile(path string) (db *bbolt.DB, last digest, err error) {
	if err := checkPath(path); err != nil {
		return nil, last, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w (%v)", errDamaged, p)
		}
		if err != nil && db != nil {
			_ = db.Close()
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		// Address space, not memory: with room to grow, a write never waits for
		// readers (a backup) to let go of the old mapping.
		InitialMmapSize: 1 << 30,
	})
	if err != nil {
		return nil, last, explain(err)
	}
	last, err = prepare(db)
	return db, last, err
}

// checkPath refuses what bbolt would answer badly: it would take an empty file for
// a new store, and so hide that everything was lost.
func checkPath(path string) error {
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return fmt.Errorf("folder %s does not exist: create it with mode 0700 for the user that runs tabard", dir)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("not a regular file: name a file in store.bolt.path")
	case info.Size() == 0:
		return errors.New("the file is empty: restore the last backup (tabard restore), or delete the file to begin with an empty store")
	case info.Size() < 2*int64(os.Getpagesize()): // bbolt's error for it has no kind
		return fmt.Errorf("%w (it has %d bytes)", errDamaged, info.Size())
	}
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: stop the other tabard first, or act through it", store.ErrInUse)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return fmt.Errorf("%w (%w)", errDamaged, err)
	}
	return err
}

// prepare lays out a new file, or checks an existing one, and returns its digest.
func prepare(db *bbolt.DB) (last digest, err error) {
	fresh := false
	err = db.View(func(tx *bbolt.Tx) error {
		if name, _ := tx.Cursor().First(); name == nil {
			fresh = true
			return nil
		}
		last, err = inspect(tx)
		return err
	})
	if err != nil || !fresh {
		return last, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(recordsBucket); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(metaBucket)
		if err != nil {
			return err
		}
		return errors.Join(meta.Put(formatKey, number(format)), meta.Put(revisionKey, number(0)))
	})
	if err == nil {
		err = syncDir(filepath.Dir(db.Path()))
	}
	return last, err
}

// inspect checks the version, the length of the file and every record: bbolt has no
// checksum of its pages.
func inspect(tx *bbolt.Tx) (digest, error) {
	info, err := os.Stat(tx.DB().Path())
	if err != nil {
		return digest{}, err
	}
	if info.Size() < tx.Size() {
		return digest{}, fmt.Errorf("%w (it ends at byte %d of %d)", errDamaged, info.Size(), tx.Size())
	}
	meta, records := tx.Bucket(metaBucket), tx.Bucket(recordsBucket)
	if meta == nil || len(meta.Get(formatKey)) != 8 || len(meta.Get(revisionKey)) != 8 {
		return digest{}, errors.New("this is not a Tabard store: check store.bolt.path, or move the file away and restore the last backup (tabard restore)")
	}
	if f := binary.BigEndian.Uint64(meta.Get(formatKey)); f > format {
		return digest{}, fmt.Errorf("format %d, this Tabard reads up to %d: %w: run that version, or restore a backup made by this one", f, format, store.ErrNewer)
	}
	if records == nil {
		return digest{}, fmt.Errorf("%w (no records)", errDamaged)
	}
	found := digest{revision: revisionOf(tx)}
	var last []byte
	c := records.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if bytes.Compare(k, last) <= 0 || len(v) < headerSize || decode("", v).Revision > found.revision {
			return digest{}, fmt.Errorf("%w (record %.80q)", errDamaged, k)
		}
		last = k
		found.replace(k, nil, v)
	}
	// An older Tabard wrote no digest, or left an old one behind.
	written := meta.Get(digestKey)
	if len(written) == digestSize && bytes.Equal(written[:8], number(found.revision)) && !bytes.Equal(written, found.encode()) {
		return digest{}, fmt.Errorf("%w (the records are not those that were written)", errDamaged)
	}
	return found, checkPages(tx)
}

// digest tells one state of the records from another: their number and the sum of
// their checksums, which a change of one record changes without reading the others. It
// shows damage; it is no proof against somebody who can write to the file.
type digest struct {
	revision   int64
	count, sum uint64
}

const digestSize = 3 * 8

// replace notes that the record at key is now new and was old; nil: there is none.
func (d *digest) replace(key, old, new []byte) {
	if old != nil {
		d.count--
		d.sum -= checksum(key, old)
	}
	if new != nil {
		d.count++
		d.sum += checksum(key, new)
	}
}

func (d *digest) encode() []byte {
	b := number(d.revision)
	b = binary.BigEndian.AppendUint64(b, d.count)
	return binary.BigEndian.AppendUint64(b, d.sum)
}

func checksum(key, record []byte) uint64 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // made once; the processor has an instruction for it
	return uint64(crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record))
}

// syncDir makes the new file's name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func revisionOf(tx *bbolt.Tx) int64 {
	return int64(binary.BigEndian.Uint64(tx.Bucket(metaBucket).Get(revisionKey)))
}

func number(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
