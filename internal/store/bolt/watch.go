package bolt

import (
	"bytes"
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

const (
	heartbeat   = time.Second // the contract says at least every 2 s
	batchEvents = 1_000       // a Batch ends with the revision that reaches this
)

// hub retains the latest revisions in memory. Each watch reads them from its own
// position, so a slow reader costs nothing and stops nobody: it falls out of what
// is retained, and its channel is closed.
type hub struct {
	maxEvents, maxBytes int
	readers             sync.WaitGroup
	done                chan struct{} // closed by close

	mu            sync.Mutex
	retained      []revision // oldest first
	events, bytes int        // in retained
	compacted     int64      // the newest revision that is not retained
	last          int64      // the newest revision
	changed       chan struct{}
	err           error // set: the hub is closed
}

// revision is what one Txn changed.
type revision struct {
	number int64
	events []store.Event
	bytes  int
}

func newHub(last int64, maxEvents, maxBytes int) *hub {
	return &hub{
		maxEvents: maxEvents, maxBytes: maxBytes,
		compacted: last, last: last,
		changed: make(chan struct{}), done: make(chan struct{}),
	}
}

// publish appends revs, which are in order, and wakes the readers.
func (h *hub) publish(revs []revision) {
	if len(revs) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range revs {
		h.retained = append(h.retained, r)
		h.events += len(r.events)
		h.bytes += r.bytes
		h.last = r.number
	}
	for len(h.retained) > 0 && (h.events > h.maxEvents || h.bytes > h.maxBytes) {
		old := h.retained[0]
		h.retained[0] = revision{} // lets go of the events
		h.retained = h.retained[1:]
		h.events -= len(old.events)
		h.bytes -= old.bytes
		h.compacted = old.number
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// close ends all watches and waits for them; later ones answer err.
func (h *hub) close(err error) {
	h.mu.Lock()
	if h.err == nil {
		h.err = err
		close(h.done)
	}
	h.mu.Unlock()
	h.readers.Wait()
}

func (h *hub) watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	if after < h.compacted {
		return nil, store.ErrCompacted
	}
	out := make(chan store.Batch)
	h.readers.Go(func() { h.deliver(ctx, prefix, after, out) })
	return out, nil
}

// deliver sends what comes after a revision until ctx ends, the hub closes or the
// reader has fallen too far behind.
func (h *hub) deliver(ctx context.Context, prefix string, after int64, out chan<- store.Batch) {
	defer close(out)
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		batch, changed, ok := h.since(prefix, after)
		if !ok {
			return
		}
		after = batch.Revision
		if len(batch.Events) == 0 {
			select {
			case <-changed:
				continue
			case <-beat.C:
			case <-ctx.Done():
				return
			case <-h.done:
				return
			}
		}
		select {
		case out <- batch:
		case <-ctx.Done():
			return
		case <-h.done:
			return
		}
	}
}

// since returns the next events under prefix, and a channel that is closed when
// there are more. It is false when what comes next is no longer retained.
func (h *hub) since(prefix string, after int64) (batch store.Batch, changed <-chan struct{}, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if after < h.compacted {
		return batch, nil, false
	}
	// A List may have read a revision that is committed but not published yet.
	batch.Revision = max(after, h.last)
	first := sort.Search(len(h.retained), func(i int) bool { return h.retained[i].number > after })
	for _, r := range h.retained[first:] {
		for _, e := range r.events {
			if strings.HasPrefix(e.Key, prefix) {
				e.Value = bytes.Clone(e.Value) // each reader may keep and change its own
				batch.Events = append(batch.Events, e)
			}
		}
		if len(batch.Events) >= batchEvents {
			batch.Revision = r.number
			break
		}
	}
	return batch, h.changed, true
}
