package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	staleAfter    = 4 * time.Second        // a watch that is behind for longer is closed
	silentAfter   = 800 * time.Millisecond // a member that does not say how far it is is left for another
	batchEvents   = 1_000                  // a Batch ends with the revision that reaches this
	progressEvery = 200 * time.Millisecond // how often a member is asked how far it is, while that is of interest
)

// Why a watch ends for good, but for the last; what else goes wrong is tried again.
var (
	errStale = errors.New("no sign that the watch is up to date")
	errEra   = errors.New("etcd was set back to an older revision")

	errSilent = errors.New("the member does not answer") // another one may
)

// Watch implements store.Store. Each watch is a stream of its own to one member. Its
// channel is closed when for 4 s it could not be shown to have everything: because
// the member is cut off or slow, or because the reader is.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	w, err := s.newWatcher(ctx, prefix, after)
	if err != nil {
		return nil, fmt.Errorf("watch %.80q: %w", prefix, err)
	}
	return w.out, nil
}

func (s *Store) newWatcher(ctx context.Context, prefix string, after int64) (*watcher, error) {
	call, end, err := s.beginRead(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	last, _ := s.pulse.last()
	w := &watcher{s: s, prefix: s.base + prefix, reached: after, fresh: time.Now(), out: make(chan store.Batch)}
	// What can still be read at that revision has not been compacted. A revision of the
	// future is of an etcd that was set back since.
	resp, err := s.read(call, &pb.RangeRequest{Key: []byte(s.base), CountOnly: true, Revision: w.from()})
	if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) {
		return nil, fmt.Errorf("%w: %w", store.ErrCompacted, err)
	}
	if err != nil {
		return nil, err
	}
	w.want = beat{revision: resp.Header.Revision, at: w.fresh, era: last.era}
	w.era = last.era
	s.workers.Go(func() { w.run(ctx) })
	return w, nil
}

// watcher is one Watch.
type watcher struct {
	s      *Store
	prefix string // as it is in etcd
	out    chan store.Batch

	reached int64     // everything up to here is delivered or in queue
	fresh   time.Time // when that was everything there was
	era     int
	want    beat          // to be reached, unless its revision is 0
	heard   time.Time     // when the member has said something, or was first asked
	held    []store.Event // of a revision that may not be whole yet

	queue         []store.Batch // for the reader
	events, bytes int           // in queue
}

// from is the revision to ask for. It is the last one that is known, since etcd does
// not tell the progress of a watch that begins in the future.
func (w *watcher) from() int64 { return max(w.reached, 1) }

// run serves the watch until ctx ends, the store is closed or it has to be given up.
func (w *watcher) run(ctx context.Context) {
	defer close(w.out)
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	defer context.AfterFunc(w.s.ctx, cancel)()
	for {
		err := w.session(ctx)
		if ctx.Err() != nil {
			return
		}
		log := logrus.WithError(err).WithField("prefix", w.prefix)
		if errors.Is(err, errStale) || errors.Is(err, errEra) || errors.Is(err, store.ErrCompacted) || time.Since(w.fresh) > w.s.cfg.stale {
			log.Info("a watch on etcd ends; it is begun anew by who reads it")
			return
		}
		log.Debug("a watch on etcd is taken up again")
		pause(ctx, retryPause)
	}
}

// session serves the watch with one stream, and returns why that ended.
func (w *watcher) session(ctx context.Context) error {
	w.held = nil
	ctx, cancel := context.WithCancel(ctx)
	st := &stream{opened: make(chan pb.Watch_WatchClient, 1), answers: make(chan *pb.WatchResponse), failed: make(chan error, 1)}
	var receiver sync.WaitGroup
	receiver.Go(func() { st.failed <- st.receive(ctx, w) })
	defer receiver.Wait()
	defer cancel()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var sender pb.Watch_WatchClient // nil until it is open
	last, beats := w.s.pulse.last()
	w.heard = time.Now()
	w.expect(last)
	for {
		out, next, answers := w.ready(st.answers)
		select {
		case out <- next:
			w.delivered()
			continue
		case sender = <-st.opened:
		case a := <-answers:
			if err := w.take(a); err != nil {
				return err
			}
			continue
		case <-beats:
			last, beats = w.s.pulse.last()
			w.expect(last)
		case <-tick.C:
		case err := <-st.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := w.check(sender); err != nil {
			return err
		}
	}
}

// ready returns the channels to wait for.
func (w *watcher) ready(answers chan *pb.WatchResponse) (out chan<- store.Batch, next store.Batch, in <-chan *pb.WatchResponse) {
	if len(w.queue) > 0 {
		out, next = w.out, w.queue[0]
	}
	if !w.full() {
		in = answers
	}
	return out, next, in
}

// full says whether so much waits for the reader that nothing is read from etcd.
func (w *watcher) full() bool {
	return w.events >= w.s.cfg.RetainEvents || w.bytes >= w.s.cfg.RetainBytes
}

// expect wants the watch to reach what was written up to a beat.
func (w *watcher) expect(b beat) {
	if !b.at.After(w.fresh) {
		return // shown already
	}
	if w.want.revision == 0 {
		w.heard = time.Now()
	}
	w.want = b
}

// check ends a watch that is behind for too long, and asks how far the member is
// while that is of interest.
func (w *watcher) check(sender pb.Watch_WatchClient) error {
	if w.want.era != w.era {
		return errEra
	}
	w.alive()
	if time.Since(w.fresh) > w.s.cfg.stale {
		return errStale
	}
	if w.want.revision == 0 {
		return nil
	}
	if time.Since(w.heard) > silentAfter && !w.full() {
		return errSilent
	}
	if sender == nil {
		return nil
	}
	return sender.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// alive tells the reader that the watch has reached what is wanted.
func (w *watcher) alive() {
	if w.want.revision == 0 || w.reached < w.want.revision || len(w.held) > 0 {
		return
	}
	w.fresh = w.want.at
	w.want.revision = 0
	if n := len(w.queue); n > 0 {
		w.queue[n-1].Revision = w.reached
	} else {
		w.queue = append(w.queue, store.Batch{Revision: w.reached})
	}
}

// take takes an answer of the stream.
func (w *watcher) take(a *pb.WatchResponse) error {
	w.heard = time.Now()
	switch {
	case a.CompactRevision != 0:
		return store.ErrCompacted
	case a.Canceled:
		return fmt.Errorf("etcd ends the watch: %s", a.CancelReason)
	case a.Created:
		return nil
	case len(a.Events) == 0: // progress
		w.reached = max(w.reached, a.Header.Revision)
	}
	for _, e := range a.Events {
		if err := w.event(e); err != nil {
			return err
		}
	}
	if !a.Fragment {
		w.flush()
	}
	w.alive()
	return nil
}

// event takes an event. Those of one revision are held until the next one begins, or
// the answer ends.
func (w *watcher) event(e *mvccpb.Event) error {
	if e.Kv.ModRevision <= w.reached {
		return nil // known already
	}
	event := store.Event{Entry: store.Entry{Key: strings.TrimPrefix(string(e.Kv.Key), w.s.base), Revision: e.Kv.ModRevision}, Delete: true}
	if e.Type == mvccpb.Event_PUT {
		entry, err := decode(w.s.base, e.Kv)
		if err != nil {
			logrus.WithError(err).Error("a watch on etcd cannot go on")
			return fmt.Errorf("%w: %w", errStale, err)
		}
		event = store.Event{Entry: entry}
	}
	if len(w.held) > 0 && w.held[0].Revision != event.Revision {
		w.flush()
	}
	w.held = append(w.held, event)
	return nil
}

// flush puts the events of a whole revision into the queue.
func (w *watcher) flush() {
	if len(w.held) == 0 {
		return
	}
	if n := len(w.queue); n == 0 || len(w.queue[n-1].Events) >= batchEvents {
		w.queue = append(w.queue, store.Batch{})
	}
	last := &w.queue[len(w.queue)-1]
	last.Events = append(last.Events, w.held...)
	w.reached = w.held[0].Revision
	last.Revision = w.reached
	for _, e := range w.held {
		w.events++
		w.bytes += len(e.Key) + len(e.Value)
	}
	w.held = w.held[:0]
}

// delivered takes the first batch from the queue.
func (w *watcher) delivered() {
	for _, e := range w.queue[0].Events {
		w.events--
		w.bytes -= len(e.Key) + len(e.Value)
	}
	w.queue[0] = store.Batch{}
	w.queue = w.queue[1:]
}

// stream is a watch of one member, read by a goroutine of its own.
type stream struct {
	opened  chan pb.Watch_WatchClient // once the watch is asked for
	answers chan *pb.WatchResponse
	failed  chan error
}

// receive opens the stream and passes on what comes, until ctx ends or it breaks.
func (st *stream) receive(ctx context.Context, w *watcher) error {
	client, err := w.s.watch.Watch(ctx, callOptions()...)
	if err != nil {
		return err
	}
	err = client.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(w.prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(w.prefix)), StartRevision: w.from(), Fragment: true,
	}}})
	if err != nil {
		return err
	}
	st.opened <- client
	for {
		a, err := client.Recv()
		if err != nil {
			return err
		}
		select {
		case st.answers <- a:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
