package etcd

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	beatInterval = time.Second
	beatTimeout  = 3 * time.Second
)

// pulse is what was last heard from a majority of etcd: a watch that has come as far
// had, at that time, everything that was written before. So no member can make a
// watch look alive that is behind, or cut off.
type pulse struct {
	mu      sync.Mutex
	beat    beat
	changed chan struct{} // closed when there is another beat
}

// beat is the revision that etcd was at, at a time or later.
type beat struct {
	revision int64
	at       time.Time
	era      int // counts how often etcd was set back to an older revision
}

func newPulse() *pulse { return &pulse{changed: make(chan struct{})} }

func (p *pulse) last() (beat, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beat, p.changed
}

func (p *pulse) set(b beat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beat = b
	close(p.changed)
	p.changed = make(chan struct{})
}

// beat reads the store's revision again and again until the store is closed.
func (s *Store) beat() {
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	for silent := false; ; {
		err := s.beatOnce()
		if s.ctx.Err() != nil {
			return
		}
		switch log := logrus.WithField("endpoints", s.cfg.Endpoints); {
		case err != nil && !silent:
			log.WithError(err).Error("etcd does not answer")
		case err == nil && silent:
			log.Info("etcd answers again")
		}
		silent = err != nil
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Store) beatOnce() error {
	ctx, cancel := context.WithTimeout(s.ctx, beatTimeout)
	defer cancel()
	before, _ := s.pulse.last()
	seen, at := s.seen.Load(), time.Now()
	revision, err := s.revision(ctx)
	if err != nil {
		return err
	}
	era := before.era
	if revision < seen {
		logrus.WithField("endpoints", s.cfg.Endpoints).Warnf("etcd was set back from revision %d to %d: everything is read again", seen, revision)
		era++
		s.seen.Store(revision)
	}
	s.pulse.set(beat{revision: revision, at: at, era: era})
	return nil
}
