// Package store is the contract between Tabard and what keeps its records:
// ordered keys, each value with a revision, and atomic conditional writes. It is
// shaped after etcd, so that etcd needs no imitation and bbolt stays simple. The
// suite in storetest proves it for each back end.
package store

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Errors that every back end returns, wrapped with what was being done.
var (
	// ErrNotFound: the key does not exist, or its value has expired.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a condition of a Txn did not hold; nothing was written.
	ErrConflict = errors.New("conflict")
	// ErrUnknown: a Txn may or may not have been written (a time-out, a lost
	// connection). The caller reads again before it decides.
	ErrUnknown = errors.New("outcome unknown")
	// ErrCompacted: the revision asked of Watch is older than what is kept. The
	// caller lists again and watches from the revision of that list.
	ErrCompacted = errors.New("revision compacted")
	// ErrInUse: another process has the store open.
	ErrInUse = errors.New("in use by another process")
	// ErrNewer: the store was written by a newer Tabard and must not be opened.
	ErrNewer = errors.New("written by a newer version")
	// ErrTooLarge: a Txn is over MaxOps or MaxBytes.
	ErrTooLarge = errors.New("transaction too large")
	// ErrInvalid: a key, limit or Txn that the contract does not allow.
	ErrInvalid = errors.New("invalid")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store closed")
)

// What one Txn may hold; etcd's own defaults with room to spare.
const (
	MaxOps   = 100       // conditions, and puts and deletes, each
	MaxBytes = 1_000_000 // keys and values together
	MaxKey   = 1_024     // bytes of one key
	MaxList  = 10_000    // entries of one List
)

// Entry is one record as it was read.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64     // of the Txn that last wrote the key; revisions only grow
	Expires  time.Time // UTC, to the microsecond; zero: never. An expired entry is not returned by Get or List
}

// Cond is one condition of a Txn: the key's revision is Revision, where 0 means
// that the key does not exist. An expired entry counts as absent.
type Cond struct {
	Key      string
	Revision int64
}

// Op is one change of a Txn: a put, or a delete where Delete is true. Deleting an
// absent key is no error and no event. A key may occur once in a Txn.
type Op struct {
	Key     string
	Value   []byte
	Expires time.Time // zero: never
	Delete  bool
}

// Event is one change as Watch tells it.
type Event struct {
	Entry       // of a delete, Key and Revision alone
	Delete bool // deleted, by a Txn or by the sweep of expired entries
}

// Batch is what a Watch delivers at once: the events of one or more whole
// revisions in order. A Batch without events is a sign of life: everything up to
// Revision has been delivered.
type Batch struct {
	Revision int64
	Events   []Event
}

// Store keeps records under ordered keys. Keys are "kind/rest", both non-empty;
// prefixes may end anywhere. Every method is safe for use by many goroutines and
// gives up when ctx ends. A Txn whose answer was nil is durable: it survives the
// process being killed.
type Store interface {
	// Get returns the entry at key, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)

	// List returns at most limit entries whose keys begin with prefix and are not
	// below from ("" for the first), in order of their keys, and the store's
	// revision as of the same moment. limit must be in 1..10,000.
	List(ctx context.Context, prefix, from string, limit int) ([]Entry, int64, error)

	// Txn makes all changes at once if every condition holds, and returns the
	// revision they got; ErrConflict if one does not hold. Without a condition it
	// always writes. A Txn that changes nothing returns the store's revision. After
	// ErrUnknown it may have happened; after any other error it has not.
	Txn(ctx context.Context, conds []Cond, ops []Op) (int64, error)

	// Watch delivers every change to keys under prefix with a revision above
	// after, in order, without gaps, until ctx ends or the store is closed; then
	// the channel is closed. While nothing changes a Batch without events comes at
	// least every 2 s. A reader that falls too far behind finds its channel closed
	// and starts again. ErrCompacted if after is too old.
	Watch(ctx context.Context, prefix string, after int64) (<-chan Batch, error)

	// Dump calls fn for every live entry as of one moment, in order of their keys, and
	// returns the store's revision of that moment. An entry's value is fn's to keep.
	// Writes go on meanwhile. It ends with the first error of fn, or when ctx ends.
	Dump(ctx context.Context, fn func(Entry) error) (int64, error)

	// Close ends all watches and waits for writes under way; what is called later
	// answers ErrClosed. Closing again is no error.
	Close() error
}

// All yields the entries whose keys begin with prefix and are not below from, in order
// of their keys, as it reads them: page at a time, each page as of its own moment. An
// error is the last that it yields.
func All(ctx context.Context, st Store, prefix, from string, page int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for {
			entries, _, err := st.List(ctx, prefix, from, page)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			if len(entries) < page {
				return
			}
			from = entries[len(entries)-1].Key + "\x00"
		}
	}
}
