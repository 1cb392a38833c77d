package proxy

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limits bounds what each person does at one cluster, and all of them together.
type limits struct {
	mu      sync.Mutex
	cfg     LimitsConfig
	persons map[string]*person
	all     underway
}

// underway is what has begun at one cluster and not ended.
type underway struct{ inFlight, streams int }

// person is what somebody has under way at one cluster.
type person struct {
	underway
	rate *rate.Limiter
}

func newLimits(cfg LimitsConfig) *limits {
	return &limits{cfg: cfg, persons: map[string]*person{}}
}

// configure changes the limits of what comes from now on.
func (l *limits) configure(cfg LimitsConfig) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg = cfg
	for _, p := range l.persons {
		p.rate.SetLimit(rate.Limit(cfg.Rate))
		p.rate.SetBurst(cfg.Burst)
	}
}

// enter counts a request of somebody, who is known by an id. The release must be called
// once. The error is an *answer.
func (l *limits) enter(id string, stream bool, now time.Time) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.persons[id]
	if p == nil {
		p = &person{rate: rate.NewLimiter(rate.Limit(l.cfg.Rate), l.cfg.Burst)}
		l.persons[id] = p
	}
	count, limit, what := &p.inFlight, l.cfg.InFlight, "requests"
	all, most := &l.all.inFlight, l.cfg.AllInFlight
	if stream {
		count, limit, what = &p.streams, l.cfg.Streams, "watches, logs and connections"
		all, most = &l.all.streams, l.cfg.AllStreams
	}
	switch {
	case *count >= limit:
		return nil, tooMany(time.Second, "you have too many "+what+" open at this cluster: end some")
	case *all >= most:
		return nil, tooMany(time.Second, "all people together have too many "+what+" open at this cluster: wait a moment")
	}
	if !p.rate.AllowN(now, 1) {
		return nil, tooMany(time.Second, "you send too many requests to this cluster: wait a moment")
	}
	*count++
	*all++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*count--
		*all--
	}, nil
}

// forget drops who has nothing under way and could not be told from somebody new.
func (l *limits) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, p := range l.persons {
		if p.inFlight == 0 && p.streams == 0 && p.rate.TokensAt(now) >= float64(l.cfg.Burst) {
			delete(l.persons, id)
		}
	}
}
