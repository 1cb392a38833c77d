package idp

import "sync"

// onceSet tells the first time of something from the others. It holds at most maxOnce
// names twice over, and forgets those that did not come since maxOnce others did.
type onceSet struct {
	mu       sync.Mutex
	now, old map[string]bool
}

const maxOnce = 4096

// first reports whether name is new, and remembers it.
func (o *onceSet) first(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now[name] {
		return false
	}
	if o.now == nil || len(o.now) >= maxOnce {
		o.now, o.old = map[string]bool{}, o.now
	}
	known := o.old[name]
	o.now[name] = true
	return !known
}

// forget makes name new again.
func (o *onceSet) forget(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.now, name)
	delete(o.old, name)
}
