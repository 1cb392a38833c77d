package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Lease takes or renews the right to do something alone, for ttl from now: one
// conditional write of holder, the caller's unique name, to key ("lease/<what>"). It
// is false while another holds it. Who holds it renews well before ttl has passed, and
// stops what it does when that fails. Clocks of nodes differ and processes pause, so
// for a moment two may believe that they hold it: writes that must not meet carry
// conditions of their own. After ErrUnknown the caller may hold it, or not.
func Lease(ctx context.Context, st Store, key, holder string, ttl time.Duration) (held bool, err error) {
	if holder == "" || ttl <= 0 {
		return false, fmt.Errorf("lease %.80q: no holder or no time to live: %w", key, ErrInvalid)
	}
	e, err := st.Get(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound):
		e.Revision = 0
	case err != nil:
		return false, fmt.Errorf("lease: %w", err)
	case string(e.Value) != holder:
		return false, nil
	}
	op := Op{Key: key, Value: []byte(holder), Expires: time.Now().Add(ttl)}
	_, err = st.Txn(ctx, []Cond{{Key: key, Revision: e.Revision}}, []Op{op})
	if errors.Is(err, ErrConflict) {
		return false, nil // another was first
	}
	if err != nil {
		return false, fmt.Errorf("lease: %w", err)
	}
	return true, nil
}
