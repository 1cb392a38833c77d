package idp

import "sync"

// remembered holds at most about 2×size values, and forgets those that were not
// asked for since size others came.
type remembered[K comparable, V any] struct {
	size int

	mu       sync.Mutex
	now, old map[K]V
}

func newRemembered[K comparable, V any](size int) *remembered[K, V] {
	return &remembered[K, V]{size: size, now: map[K]V{}}
}

func (r *remembered[K, V]) get(k K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.now[k]
	if !ok {
		if v, ok = r.old[k]; ok {
			r.keep(k, v)
		}
	}
	return v, ok
}

func (r *remembered[K, V]) put(k K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(k, v)
}

// first remembers k and reports whether it was not known.
func (r *remembered[K, V]) first(k K) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, inNow := r.now[k]
	_, inOld := r.old[k]
	if !inNow {
		var none V
		r.keep(k, none)
	}
	return !inNow && !inOld
}

// keep puts k among the newer half. The caller holds the lock.
func (r *remembered[K, V]) keep(k K, v V) {
	if len(r.now) >= r.size {
		r.now, r.old = map[K]V{}, r.now
	}
	r.now[k] = v
}
