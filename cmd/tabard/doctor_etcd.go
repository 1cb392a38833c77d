package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/etcd"
)

const (
	slowWrite  = 100 * time.Millisecond
	nearlyFull = 0.8 // of etcd's quota
)

// etcd asks every member how it is, and writes once.
func (d *doctor) etcd(ctx context.Context) {
	st, err := etcd.Open(ctx, *d.cfg.Store.Etcd)
	if err != nil {
		d.say("store", resultFail, "%s", err)
		return
	}
	for _, m := range st.Members(ctx) {
		d.member(m)
	}
	took, err := timeWrite(ctx, st)
	switch {
	case err != nil:
		d.say("store", resultFail, "%s", err)
	case took > slowWrite:
		d.say("store", resultWarn, "a write took %s: etcd wants a fast disk of its own and a short way between its members", took.Round(time.Millisecond))
	default:
		d.say("store", resultOK, "a write took %s", took.Round(100*time.Microsecond))
	}
	if err := st.Close(); err != nil {
		d.say("store", resultWarn, "could not be closed: %s", err)
	}
}

func (d *doctor) member(m etcd.Member) {
	size := float64(m.Size) / (1 << 20)
	role := "follows"
	if m.Leader {
		role = "leads"
	}
	switch {
	case m.Err != nil:
		d.say("store", resultFail, "%s does not say how it is: %s", m.Endpoint, m.Err)
	case len(m.Alarms) > 0:
		d.say("store", resultFail, "%s, etcd %s, has an alarm (%s): see `etcdctl alarm list`", m.Endpoint, m.Version, strings.Join(m.Alarms, ", "))
	case m.Quota > 0 && float64(m.Size) > nearlyFull*float64(m.Quota):
		d.say("store", resultWarn, "%s, etcd %s, %s: %.0f MiB of %d MiB are used: compact and defragment it, or raise --quota-backend-bytes", m.Endpoint, m.Version, role, size, m.Quota>>20)
	default:
		d.say("store", resultOK, "%s, etcd %s, %s: %.0f MiB are used", m.Endpoint, m.Version, role, size)
	}
}

// timeWrite writes a record that is of no use to anybody, and deletes it.
func timeWrite(ctx context.Context, st store.Store) (time.Duration, error) {
	const key = "health/doctor"
	began := time.Now()
	_, err := st.Txn(ctx, nil, []store.Op{{Key: key, Expires: began.Add(time.Minute)}})
	took := time.Since(began)
	if err == nil {
		_, err = st.Txn(ctx, nil, []store.Op{{Key: key, Delete: true}})
	}
	if errors.Is(err, store.ErrUnknown) {
		return took, errors.New("etcd does not confirm a write: " + err.Error())
	}
	return took, err
}
