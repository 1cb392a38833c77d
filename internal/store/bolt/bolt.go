// Package bolt keeps a store in one bbolt file, for one process at a time.
// Concurrent writes share an fsync; watches are served from memory.
package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/tabard-id/tabard/internal/store"
)

// Config says where the store is. All but Path have defaults that fit.
type Config struct {
	// Path of the file. It is created with mode 0600; its folder must exist.
	Path string `yaml:"path"`

	// SweepInterval is how often expired entries are deleted; 0: one minute.
	SweepInterval time.Duration `yaml:"-"`
	// RetainEvents and RetainBytes bound the events that Watch can go back to, and
	// so how far a reader may fall behind; 0: 16,384 and 8 MiB.
	RetainEvents, RetainBytes int `yaml:"-"`
	// Now is the clock; nil: time.Now.
	Now func() time.Time `yaml:"-"`
}

func (c Config) withDefaults() Config {
	if c.SweepInterval <= 0 {
		c.SweepInterval = time.Minute
	}
	if c.RetainEvents <= 0 {
		c.RetainEvents = 16_384
	}
	if c.RetainBytes <= 0 {
		c.RetainBytes = 8 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Store is a store.Store in one file.
type Store struct {
	cfg   Config
	db    *bbolt.DB
	hub   *hub
	queue chan *request

	commit func(*bbolt.Tx) error // (*bbolt.Tx).Commit, but in tests
	failed atomic.Pointer[error] // set for good once the file can no longer be trusted

	stop    context.CancelFunc // ends the goroutines
	ended   chan struct{}      // closed when the committer takes no more
	workers sync.WaitGroup
	once    sync.Once
	closed  error // of the first Close
}

// Open opens the store at cfg.Path, or creates it. The errors wrap store.ErrInUse
// when another process holds it (after a second), store.ErrNewer when a newer
// Tabard wrote it, and say what to do when the file is damaged.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	db, last, err := openFile(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.Path, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Store{
		cfg:    cfg,
		db:     db,
		hub:    newHub(last.revision, cfg.RetainEvents, cfg.RetainBytes),
		queue:  make(chan *request, maxGroup),
		commit: (*bbolt.Tx).Commit,
		stop:   stop,
		ended:  make(chan struct{}),
	}
	s.workers.Go(func() { s.commitLoop(ctx, last) })
	s.workers.Go(func() { s.sweepLoop(ctx) })
	return s, nil
}

// Close implements store.Store. A Txn that is queued but not yet being written
// answers store.ErrClosed.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.hub.close(store.ErrClosed)
		s.stop()
		s.workers.Wait()
		s.closed = s.db.Close()
	})
	return s.closed
}

// view runs fn on one moment of the store. What bbolt hands out is valid only
// until fn returns.
func (s *Store) view(ctx context.Context, fn func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.failed.Load(); err != nil {
		return *err
	}
	err := s.db.View(fn)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	var e store.Entry
	err := store.CheckKey(key)
	if err == nil {
		err = s.view(ctx, func(tx *bbolt.Tx) error {
			e = decode(key, tx.Bucket(recordsBucket).Get([]byte(key)))
			if !live(e, s.cfg.Now()) {
				return store.ErrNotFound
			}
			e.Value = bytes.Clone(e.Value)
			return nil
		})
	}
	if err != nil {
		return store.Entry{}, fmt.Errorf("get %.80q: %w", key, err)
	}
	return e, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, from string, limit int) ([]store.Entry, int64, error) {
	var entries []store.Entry
	var revision int64
	err := store.CheckLimit(limit)
	if err == nil {
		err = s.view(ctx, func(tx *bbolt.Tx) error {
			revision = revisionOf(tx)
			now := s.cfg.Now()
			c := tx.Bucket(recordsBucket).Cursor()
			for k, v := c.Seek([]byte(max(prefix, from))); k != nil && len(entries) < limit; k, v = c.Next() {
				if !bytes.HasPrefix(k, []byte(prefix)) || ctx.Err() != nil {
					break
				}
				if e := decode(string(k), v); live(e, now) {
					e.Value = bytes.Clone(e.Value)
					entries = append(entries, e)
				}
			}
			return ctx.Err()
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list %.80q: %w", prefix, err)
	}
	return entries, revision, nil
}

// Txn implements store.Store. When ctx ends before the Txn is being written, its
// error is returned and nothing was written; later it is store.ErrUnknown.
func (s *Store) Txn(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	err := store.CheckTxn(conds, ops)
	if err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	r := newRequest(slices.Clone(conds), len(ops))
	for _, op := range ops {
		c := change{key: op.Key}
		if !op.Delete {
			c.record = encode(op.Value, op.Expires)
		}
		r.add(c)
	}
	revision, err := s.submit(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	return revision, nil
}

// Watch implements store.Store. It reads from memory: a reader that falls behind
// what is retained finds its channel closed.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	ch, err := s.hub.watch(ctx, prefix, after)
	if err != nil {
		return nil, fmt.Errorf("watch %.80q: %w", prefix, err)
	}
	return ch, nil
}

// Dump implements store.Store. A long one keeps the pages that writes free meanwhile,
// so that the file grows.
func (s *Store) Dump(ctx context.Context, fn func(store.Entry) error) (int64, error) {
	var revision int64
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		revision = revisionOf(tx)
		now := s.cfg.Now()
		c := tx.Bucket(recordsBucket).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			e := decode(string(k), v)
			if !live(e, now) {
				continue
			}
			e.Value = bytes.Clone(e.Value)
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("dump store %s: %w", s.cfg.Path, err)
	}
	return revision, nil
}

// A record is the revision and the expiry (Unix microseconds, 0 for never), each 8
// bytes big-endian, then the value.
const headerSize = 16

// encode leaves the revision to the committer.
func encode(value []byte, expires time.Time) []byte {
	record := make([]byte, headerSize+len(value))
	if !expires.IsZero() {
		// Before 1970 is as expired as 1970, and 0 is taken.
		binary.BigEndian.PutUint64(record[8:], uint64(max(1, expires.UnixMicro())))
	}
	copy(record[headerSize:], value)
	return record
}

// decode returns the entry in record, the value not copied; the zero Entry for nil.
func decode(key string, record []byte) store.Entry {
	if record == nil {
		return store.Entry{}
	}
	e := store.Entry{
		Key:      key,
		Value:    record[headerSize:],
		Revision: int64(binary.BigEndian.Uint64(record)),
	}
	if micros := int64(binary.BigEndian.Uint64(record[8:])); micros != 0 {
		e.Expires = time.UnixMicro(micros).UTC()
	}
	return e
}

// live says whether e exists at now.
func live(e store.Entry, now time.Time) bool {
	return e.Revision != 0 && (e.Expires.IsZero() || now.Before(e.Expires))
}
