package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

// ErrNotEmpty: a backup is restored into an empty store only.
var ErrNotEmpty = errors.New("the store is not empty: a backup is never mixed with other records; move the bolt file away, delete what is under the etcd prefix, or name another path or prefix in the configuration")

// ErrOther: a restore of another file was cut off in this store.
var ErrOther = errors.New("a restore of another file was cut off in this store: run it again with that file, or empty the store first")

// Restored is what came of a Restore.
type Restored struct {
	Summary
	Expired int `json:"expired"` // records that were left out because they have expired
}

// Restore puts the backup in r into st, which must be empty or hold the half of the
// same backup. It reads all of r before it writes, and compares afterwards what is in
// st with r. While it writes, store.RestoreKey keeps everybody else out; after an
// error past the first write it has to be run again. newest is the newest format of
// records that this Tabard reads (see store.Migrate).
func Restore(ctx context.Context, st store.Store, r io.ReadSeeker, newest int) (Restored, error) {
	sum, err := Verify(r)
	if err != nil {
		return Restored{}, err
	}
	if sum.Format > newest {
		return Restored{}, fmt.Errorf("the records in the backup have format %d, this Tabard reads up to %d: %w: restore it with that version", sum.Format, newest, store.ErrNewer)
	}
	job := &restore{st: st, file: r, sum: sum}
	for _, step := range []func(context.Context) error{job.begin, job.copy, job.compare, job.end} {
		if err := step(ctx); err != nil {
			return Restored{}, fmt.Errorf("restore the store: %w", err)
		}
	}
	return Restored{sum, job.expired}, nil
}

// restore is a restore under way.
type restore struct {
	st       store.Store
	file     io.ReadSeeker
	sum      Summary
	revision int64 // of the marker
	expired  int
}

// marker is the value at store.RestoreKey.
type marker struct {
	SHA256 string    `json:"sha256"` // of the backup
	Begun  time.Time `json:"begun"`
}

// begin puts the marker, or finds that of a restore of the same file.
func (j *restore) begin(ctx context.Context) error {
	e, err := j.st.Get(ctx, store.RestoreKey)
	if err == nil {
		var m marker
		if json.Unmarshal(e.Value, &m) != nil || m.SHA256 != j.sum.SHA256 {
			return ErrOther
		}
		j.revision = e.Revision
		return nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	switch empty, err := store.Empty(ctx, j.st); {
	case err != nil:
		return err
	case !empty:
		return ErrNotEmpty
	}
	value, err := json.Marshal(marker{j.sum.SHA256, time.Now().UTC()})
	if err != nil {
		return err
	}
	j.revision, err = j.st.Txn(ctx, []store.Cond{{Key: store.RestoreKey}}, []store.Op{
		{Key: store.RestoreKey, Value: value},
		{Key: store.FormatKey, Delete: true}, // the backup may have none
	})
	return err
}

// copy writes every record that has not expired.
func (j *restore) copy(ctx context.Context) error {
	var ops []store.Op
	bytes := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		var only []store.Cond // while the marker is ours; the largest record leaves no room to ask
		if bytes+len(store.RestoreKey) <= store.MaxBytes {
			only = []store.Cond{{Key: store.RestoreKey, Revision: j.revision}}
		}
		_, err := j.st.Txn(ctx, only, ops)
		ops, bytes = ops[:0], 0
		return err
	}
	if _, err := j.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := each(j.file, func(e store.Entry) error {
		if expired(e) {
			j.expired++
			return nil
		}
		size := len(e.Key) + len(e.Value)
		if len(ops) == store.MaxOps || bytes+size+len(store.RestoreKey) > store.MaxBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		ops = append(ops, store.Op{Key: e.Key, Value: e.Value, Expires: e.Expires})
		bytes += size
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// compare holds what is in the store against the file, record by record: both are in
// the order of their keys.
func (j *restore) compare(ctx context.Context) error {
	if _, err := j.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in := newReader(j.file)
	_, err := j.st.Dump(ctx, func(got store.Entry) error {
		if got.Key == store.RestoreKey || strings.HasPrefix(got.Key, store.LeasePrefix) {
			return nil
		}
		for {
			want, more, err := in.next()
			switch {
			case err != nil:
				return err
			case !more || want.Key > got.Key:
				return fmt.Errorf("%.80q is in the store and not in the backup: is a server running on it? Stop it, empty the store and begin again", got.Key)
			case want.Key == got.Key:
				return equal(got, want)
			case !expired(want):
				return missing(want.Key)
			}
		}
	})
	for err == nil {
		want, more, nextErr := in.next()
		switch {
		case nextErr != nil:
			return nextErr
		case !more:
			return nil
		case !expired(want):
			return missing(want.Key)
		}
	}
	return err
}

func equal(got, want store.Entry) error {
	if string(got.Value) != string(want.Value) || !got.Expires.Equal(want.Expires) {
		return fmt.Errorf("%.80q in the store is not what is in the backup: check the disk, empty the store and begin again", got.Key)
	}
	return nil
}

func missing(key string) error {
	return fmt.Errorf("%.80q of the backup is not in the store: check the disk, empty the store and begin again", key)
}

// end takes the marker away. Whether that happened must be known: the next run would
// find a store that is not empty.
func (j *restore) end(ctx context.Context) error {
	_, err := j.st.Txn(ctx, []store.Cond{{Key: store.RestoreKey, Revision: j.revision}}, []store.Op{{Key: store.RestoreKey, Delete: true}})
	if errors.Is(err, store.ErrUnknown) && store.NotRestoring(ctx, j.st) == nil {
		return nil
	}
	return err
}

func expired(e store.Entry) bool { return !e.Expires.IsZero() && !time.Now().Before(e.Expires) }
