package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Records that are about the store itself.
const (
	// FormatKey holds the format of all other records.
	FormatKey = "store/format"
	// RestoreKey is there while a backup is being restored: the store is half of
	// something, and only a restore may touch it.
	RestoreKey = "restore/under-way"
	// LeasePrefix begins the keys of leases, which belong to running servers.
	LeasePrefix = "lease/"
)

// ErrRestoring: a restore was begun and has not ended.
var ErrRestoring = errors.New("a restore is under way or was cut off: run tabard restore with the same file again")

// Migration is one step from a format of the records to the next.
type Migration struct {
	Name string // what it does, for errors
	// Run does it. It may be cut off anywhere and is then run again from the start,
	// and two nodes may run it at once: every Txn is conditional on what it read, and
	// what is done already is left alone.
	Run func(ctx context.Context, st Store) error
}

// format is the value at FormatKey. Records without it have format 1.
type format struct {
	Format   int   `json:"format"`
	To       int   `json:"to,omitempty"` // a copy was made, and steps towards this one are under way
	revision int64 // of the record, 0 when there is none
}

// Migrate brings the records of st to the format that steps lead to, the first step
// from format 1 to 2 and so on. Before the first step keep makes a copy; when a step
// was cut off, the next call goes on from there and does not copy again. An empty
// store gets the newest format at once. Nodes that start together may all call it. The
// errors are ErrNewer when st has, or is on its way to, a format that steps do not reach,
// and ErrRestoring.
func Migrate(ctx context.Context, st Store, steps []Migration, keep func(context.Context) error) error {
	for try := 1; ; try++ {
		err := migrate(ctx, st, steps, keep)
		if !errors.Is(err, ErrConflict) || try == migrateTries {
			return err
		}
		select { // another node was first; what is left to do is looked at anew
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(migratePause):
		}
	}
}

const (
	migrateTries = 50
	migratePause = 50 * time.Millisecond
)

func migrate(ctx context.Context, st Store, steps []Migration, keep func(context.Context) error) error {
	if err := NotRestoring(ctx, st); err != nil {
		return err
	}
	newest := len(steps) + 1
	f, err := readFormat(ctx, st)
	switch {
	case err != nil:
		return err
	case max(f.Format, f.To) > newest:
		return fmt.Errorf("the records have format %d, this Tabard reads up to %d: %w: run that version, or restore a backup made by this one", max(f.Format, f.To), newest, ErrNewer)
	case f.Format == 0:
		return f.write(ctx, st, format{Format: newest})
	case f.Format == newest:
		return nil
	case f.To == 0:
		if err := keep(ctx); err != nil {
			return fmt.Errorf("copy the store before its records are changed: %w", err)
		}
		if err := f.write(ctx, st, format{Format: f.Format, To: newest}); err != nil {
			return err
		}
	}
	for n := f.Format; n < newest; n++ {
		step := steps[n-1]
		if err := step.Run(ctx, st); err != nil {
			return fmt.Errorf("%s (format %d to %d; start again to go on): %w", step.Name, n, n+1, err)
		}
		next := format{Format: n + 1, To: newest}
		if next.Format == newest {
			next.To = 0
		}
		if err := f.write(ctx, st, next); err != nil {
			return err
		}
	}
	return nil
}

// NotRestoring returns ErrRestoring while st holds RestoreKey.
func NotRestoring(ctx context.Context, st Store) error {
	switch _, err := st.Get(ctx, RestoreKey); {
	case err == nil:
		return ErrRestoring
	case !errors.Is(err, ErrNotFound):
		return err
	}
	return nil
}

// Empty says whether st holds nothing but what a store writes about itself: its
// format and leases.
func Empty(ctx context.Context, st Store) (bool, error) {
	for e, err := range All(ctx, st, "", "", 100) {
		if err != nil || e.Key != FormatKey && !strings.HasPrefix(e.Key, LeasePrefix) {
			return false, err
		}
	}
	return true, nil
}

// readFormat returns what is written down; Format is 0 for an empty store.
func readFormat(ctx context.Context, st Store) (format, error) {
	e, err := st.Get(ctx, FormatKey)
	if errors.Is(err, ErrNotFound) {
		empty, emptyErr := Empty(ctx, st)
		if emptyErr != nil || empty {
			return format{}, emptyErr
		}
		// A node that found the store empty too may have written these records, after it
		// wrote down their format.
		if e, err = st.Get(ctx, FormatKey); errors.Is(err, ErrNotFound) {
			return format{Format: 1}, nil
		}
	}
	if err != nil {
		return format{}, err
	}
	f, err := parseFormat(e.Value)
	f.revision = e.Revision
	return f, err
}

func parseFormat(value []byte) (format, error) {
	var f format
	if err := json.Unmarshal(value, &f); err != nil || f.Format < 1 {
		return f, fmt.Errorf("the record %s cannot be read: restore the last backup (tabard restore): %w", FormatKey, errors.Join(err, ErrInvalid))
	}
	return f, nil
}

// ParseFormat reads the value at FormatKey: the newest format that a record beside it
// can have. Where there is no such record that is 1.
func ParseFormat(value []byte) (int, error) {
	f, err := parseFormat(value)
	return max(f.Format, f.To), err
}

// write replaces f by next, unless another node has changed it meanwhile.
func (f *format) write(ctx context.Context, st Store, next format) error {
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	rev, err := st.Txn(ctx, []Cond{{Key: FormatKey, Revision: f.revision}}, []Op{{Key: FormatKey, Value: value}})
	if err != nil {
		return fmt.Errorf("write down format %d of the records: %w", next.Format, err)
	}
	next.revision = rev
	*f = next
	return nil
}
