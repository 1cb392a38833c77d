package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

const (
	probeEvery   = 10 * time.Second
	probeTimeout = 5 * time.Second
	refreshPause = time.Second // between two looks for a credential, however often it is refused
)

// run keeps the credential and the health current until ctx ends.
func (u *upstream) run(ctx context.Context) {
	defer close(u.done)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	for first, refused := true, false; ; first = false {
		u.refresh(ctx, refused)
		if first {
			close(u.tried)
		}
		u.note(u.probe(ctx))
		pause.Reset(refreshPause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-u.refused:
			refused = true
		case <-tick.C:
			refused = false
		}
	}
}

// probe asks the API server whether it is ready. That it does not let the account know
// is an answer too.
func (u *upstream) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := u.ask(ctx, &wire{u: u, plain: true}, "readyz", http.Header{}, nil, nil)
	var s *statusError
	if errors.As(err, &s) && s.code == http.StatusForbidden {
		return nil
	}
	return explain(err)
}

// note takes the outcome of a probe, and tells of it where it is news.
func (u *upstream) note(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch was := u.trouble; {
	case was == nil && err == nil, was != nil && err != nil && was.Error() == err.Error():
		return
	case err == nil:
		u.log.Info("the API server answers")
	default: // at the start too, and when it is for another reason
		u.log.WithError(err).Error("the API server does not answer")
	}
	if (u.trouble == nil) != (err == nil) {
		u.since = time.Now()
	}
	u.trouble = err
}

// health is what is wrong with the API server by the last probe, nil for nothing, and
// since when there is or is not.
func (u *upstream) health() (since time.Time, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.since, u.trouble
}

// explain says in words for the administrator what is wrong with the API server.
func explain(err error) error {
	var where *url.Error
	if errors.As(err, &where) {
		err = where.Err
	}
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var s *statusError
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("its certificate is signed by an authority that is not in apiServer.caFile: %w", err)
	case errors.As(err, &host), errors.As(err, &invalid):
		return fmt.Errorf("its certificate is not good: %w", err)
	case errors.As(err, &s) && s.code == http.StatusUnauthorized:
		return errors.New("it refuses the proxy's account (401): renew the credential of apiServer")
	case errors.As(err, &s):
		return fmt.Errorf("it is not ready: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("it gives no answer in time")
	}
	return err
}
