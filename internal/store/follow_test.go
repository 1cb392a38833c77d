package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// setBack is a store that was set back to an older revision while it was followed, and
// whose revision passes the old one just when a watch is begun.
type setBack struct {
	Store
	mu      sync.Mutex
	records []Entry
	at      int64
	watched func() // before a Watch
	ended   chan struct{}
}

func (s *setBack) List(context.Context, string, string, int) ([]Entry, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records, s.at, nil
}

func (s *setBack) Watch(ctx context.Context, _ string, after int64) (<-chan Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched()
	if after > s.at {
		return nil, errors.New("a revision of the future")
	}
	out, at, ended := make(chan Batch), s.at, s.ended
	go func() {
		defer close(out)
		for {
			select {
			case out <- Batch{Revision: at}:
			case <-ended:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// names is what a Target of records has.
type names struct {
	mu  sync.Mutex
	has []string
}

func (n *names) Replace(records iter.Seq2[Entry, error]) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.has = nil
	for e := range records {
		n.has = append(n.has, e.Key)
	}
	return nil
}

func (n *names) Apply([]Event) {}

// TestFollowerOfAStoreSetBack: what is not in the store any more is not served as if it
// were, once the store's revision passes the one that was followed.
func TestFollowerOfAStoreSetBack(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	begun := make(chan struct{})
	st := &setBack{records: []Entry{{Key: "a/ended", Revision: 9}}, at: 10, watched: sync.OnceFunc(func() { close(begun) }), ended: make(chan struct{})}
	var target names
	f, err := Follow(t.Context(), st, "a/", &target, log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	<-begun
	st.mu.Lock()
	st.records, st.at = nil, 3
	tries := 0
	st.watched = func() {
		if tries++; tries == 1 {
			st.at = 12
		}
	}
	close(st.ended)
	st.ended = make(chan struct{})
	st.mu.Unlock()
	grown := time.AfterFunc(time.Second, func() { // for who does not watch
		st.mu.Lock()
		st.at = 12
		st.mu.Unlock()
	})
	defer grown.Stop()
	if err := f.Reached(t.Context(), 12); err != nil {
		t.Fatal(err)
	}
	target.mu.Lock()
	defer target.mu.Unlock()
	if len(target.has) != 0 {
		t.Errorf("at revision %d it has %q", f.Revision(), target.has)
	}
}
