// Package etcd keeps a store in an etcd that several nodes of Tabard share. All times
// that matter between nodes are those that entries expire at, so the nodes' clocks
// should agree to within a second or so.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	openTimeout = 10 * time.Second
	pageSize    = store.MaxList // records of one answer; etcd counts all that follow, so few large pages are cheap
	listTries   = 3             // when what is being listed is compacted away
)

// Store is a store.Store in etcd.
type Store struct {
	cfg    Config
	base   string // what the keys of entries begin with
	own    *Store // this store's own records, beside the entries; nil in own itself
	client *clientv3.Client
	kv     pb.KVClient
	watch  pb.WatchClient
	seen   atomic.Int64 // the highest revision that was heard of
	pulse  *pulse

	ctx     context.Context // of the goroutines
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu     sync.RWMutex
	closed bool
	calls  sync.WaitGroup // under way; Add with mu held
}

// Open connects to etcd and reads once, so that what is wrong is told at the start,
// within 10 s. cfg must have passed Validate. Close the store after use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.SetDefaults()
	s, err := connect(ctx, cfg)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("open etcd: %w: check that it runs at the endpoints, that caFile signed its certificates, and that it trusts certFile", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open etcd: %w", err)
	}
	s.workers.Go(s.beat)
	s.workers.Go(s.sweepLoop)
	return s, nil
}

func connect(ctx context.Context, cfg Config) (*Store, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	secure, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, pulse: newPulse()}
	if err := s.reach(ctx, secure); err != nil {
		return nil, err
	}
	client, err := newClient(cfg, secure)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	s.client, s.kv, s.watch = client, clientv3.RetryKVClient(client), pb.NewWatchClient(client.ActiveConnection())
	s.base = cfg.Prefix + "records/"
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.greet(ctx); err != nil {
		s.stop()
		return nil, errors.Join(err, ignoreCanceled(client.Close()))
	}
	s.own = &Store{cfg: cfg, base: cfg.Prefix + "own/", client: client, kv: s.kv, ctx: s.ctx}
	return s, nil
}

// reach asks for an answer, any answer, where the store has a user: signing in does
// not tell why it gets none.
func (s *Store) reach(ctx context.Context, secure *tls.Config) error {
	if s.cfg.Username == "" {
		return nil
	}
	cfg := s.cfg
	cfg.Username, cfg.Password = "", ""
	client, err := newClient(cfg, secure)
	if err != nil {
		return err
	}
	_, err = (&Store{cfg: cfg, kv: clientv3.RetryKVClient(client)}).revision(ctx)
	if known := (rpctypes.EtcdError{}); errors.As(err, &known) {
		err = nil
	}
	return errors.Join(err, ignoreCanceled(client.Close()))
}

func newClient(cfg Config, secure *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   cfg.Endpoints,
		TLS:         secure,
		Username:    cfg.Username,
		Password:    cfg.Password,
		DialTimeout: openTimeout,
		// On Linux the second is also how long sent bytes may stay unacknowledged.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(), // it logs every retry; what matters comes back as an error
		DialOptions:          []grpc.DialOption{grpc.WithStatsHandler(watchSending{}), grpc.WithNoProxy()},
	})
}

// greet reads once, and refuses members that are too old.
func (s *Store) greet(ctx context.Context) error {
	if _, err := s.revision(ctx); err != nil {
		return err
	}
	return tooOld(s.Members(ctx))
}

// Close implements store.Store. Writes under way are waited for: 5 s at most, or as
// long as their contexts allow. Reads end with store.ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.calls.Wait() // one of them may be a Watch that begins
	s.workers.Wait()
	if was {
		return nil
	}
	return ignoreCanceled(s.client.Close())
}

// ignoreCanceled drops what the client says of a context that closing it ends.
func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// revision is the store's, as of a moment after the call began.
func (s *Store) revision(ctx context.Context) (int64, error) {
	resp, err := s.read(clientv3.WithRequireLeader(ctx), &pb.RangeRequest{Key: []byte(s.base), CountOnly: true})
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	e, err := s.get(ctx, key)
	if err != nil {
		return store.Entry{}, fmt.Errorf("get %.80q: %w", key, err)
	}
	return e, nil
}

func (s *Store) get(ctx context.Context, key string) (store.Entry, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Entry{}, err
	}
	ctx, end, err := s.beginRead(ctx)
	if err != nil {
		return store.Entry{}, err
	}
	defer end()
	resp, err := s.read(ctx, &pb.RangeRequest{Key: []byte(s.base + key)})
	if err != nil {
		return store.Entry{}, err
	}
	if len(resp.Kvs) == 0 {
		return store.Entry{}, store.ErrNotFound
	}
	e, err := decode(s.base, resp.Kvs[0])
	if err == nil && !live(e, s.cfg.Now()) {
		err = store.ErrNotFound
	}
	return e, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, from string, limit int) ([]store.Entry, int64, error) {
	entries, revision, err := s.list(ctx, prefix, from, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("list %.80q: %w", prefix, err)
	}
	return entries, revision, nil
}

// errEnough ends a scan that found what it was for.
var errEnough = errors.New("enough")

func (s *Store) list(ctx context.Context, prefix, from string, limit int) ([]store.Entry, int64, error) {
	if err := store.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	ctx, end, err := s.beginRead(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer end()
	for try := 1; ; try++ {
		var entries []store.Entry
		now := s.cfg.Now()
		revision, err := s.scan(ctx, prefix, from, limit, func(e store.Entry) error {
			if live(e, now) {
				entries = append(entries, e)
			}
			if len(entries) == limit {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, rpctypes.ErrCompacted) && try < listTries {
			continue
		}
		if err != nil && !errors.Is(err, errEnough) {
			return nil, 0, err
		}
		return entries, revision, nil
	}
}

// Dump implements store.Store. It reads page by page at the revision of the first, so
// etcd must not compact that away meanwhile.
func (s *Store) Dump(ctx context.Context, fn func(store.Entry) error) (int64, error) {
	ctx, end, err := s.beginRead(ctx)
	if err != nil {
		return 0, fmt.Errorf("dump etcd: %w", err)
	}
	defer end()
	now := s.cfg.Now()
	revision, err := s.scan(ctx, "", "", pageSize, func(e store.Entry) error {
		if err := context.Cause(ctx); err != nil || !live(e, now) {
			return err
		}
		return fn(e)
	})
	if errors.Is(err, rpctypes.ErrCompacted) {
		err = fmt.Errorf("etcd was compacted meanwhile: try again, or let it keep revisions for longer (--auto-compaction-retention): %w", err)
	}
	if err != nil {
		return 0, fmt.Errorf("dump etcd: %w", err)
	}
	return revision, nil
}

// scan calls fn for every record under prefix that is not below from, expired ones
// too, in order of their keys and as of the moment that it returns the revision of.
// It ends with the first error of fn. Pages are of at most page records.
func (s *Store) scan(ctx context.Context, prefix, from string, page int, fn func(store.Entry) error) (revision int64, err error) {
	key, end := s.base+max(prefix, from), clientv3.GetPrefixRangeEnd(s.base+prefix)
	if key >= end {
		return s.revision(ctx)
	}
	for size := int64(min(page, pageSize)); ; {
		resp, err := s.read(ctx, &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Limit: size, Revision: revision})
		if tooLarge(err) && size > 1 {
			size /= 2 // the answer is over maxAnswer
			continue
		}
		if err != nil {
			return 0, err
		}
		revision = cmp.Or(revision, resp.Header.Revision)
		for _, kv := range resp.Kvs {
			e, err := decode(s.base, kv)
			if err == nil {
				err = fn(e)
			}
			if err != nil {
				return revision, err
			}
		}
		if !resp.More {
			return revision, nil
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
