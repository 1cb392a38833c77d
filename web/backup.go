package web

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
)

// BackupPath answers with a copy of the whole store. That may take up to BackupTime,
// so the server's own limits for a request do not fit it.
const (
	BackupPath = "/api/v1/backup"
	BackupTime = time.Hour
)

// chunkTime is how long a client may take for what is sent to it at once, 64 KiB.
const chunkTime = 30 * time.Second

var (
	errBackupBusy  = &fault{Status: 429, Title: "A backup is being made already", Detail: "One at a time is enough. Wait until it is done.", RetryAfter: 30}
	errNoBackup    = &fault{Status: 404, Title: "No backup is made here", Detail: "Use tabard backup."}
	errBackupToken = &fault{Status: 403, Title: "A browser gets no backup", Detail: "It holds the signing keys. Use tabard backup, which sends a token."}
)

// Backups gives copies of a whole store to administrators, one at a time.
type Backups struct {
	store store.Store
	trail groups.Trail
	log   logrus.FieldLogger
	busy  sync.Mutex
}

// NewBackups returns the Backups of st. Every request is in the trail before the first
// byte is sent, and again with its outcome.
func NewBackups(st store.Store, trail groups.Trail, log logrus.FieldLogger) *Backups {
	return &Backups{store: st, trail: trail, log: log}
}

// getBackup takes a bearer token only: what a browser session can do, a page that
// runs in it can do too.
func (a *apiServer) getBackup(w http.ResponseWriter, r *http.Request) {
	err := func() error {
		switch {
		case a.backups == nil:
			return errNoBackup
		case r.Method != http.MethodGet: // HEAD would make one for nothing
			return &fault{Status: http.StatusMethodNotAllowed, Title: http.StatusText(http.StatusMethodNotAllowed), Detail: "Ask with GET."}
		case r.Header.Get("Authorization") == "":
			if _, err := r.Cookie(idp.SessionCookie); err == nil {
				return errBackupToken
			}
			return idp.ErrNoSession
		}
		c, err := a.who(r)
		if err != nil {
			return err
		}
		return a.backups.serve(w, r, c)
	}()
	if err != nil {
		a.fail(w, r, err)
	}
}

// serve decides, notes it in the trail, and sends. An error is returned while nothing
// was sent; after that the connection is cut, which the client sees by the missing end.
func (b *Backups) serve(w http.ResponseWriter, r *http.Request, c caller) error {
	e := audit.Event{Act: "store.backup", Who: c.actor.Sub, Name: c.actor.Name, Outcome: audit.Intended}
	if !c.me.Admin {
		e.Outcome, e.Reason = audit.Denied, groups.ErrForbidden.Error()
		return cmp.Or(b.trail.Append(r.Context(), e), idp.ErrAdministrators)
	}
	if !b.busy.TryLock() {
		return errBackupBusy
	}
	defer b.busy.Unlock()
	out := &chunks{to: w, conn: http.NewResponseController(w)}
	if err := out.extend(); err != nil {
		return err
	}
	if err := b.trail.Append(r.Context(), e); err != nil {
		return fmt.Errorf("note the backup in the trail: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), BackupTime)
	defer cancel()
	sum, err := backup.Write(ctx, b.store, out)
	e.Outcome, e.Detail = audit.Done, map[string]string{"records": strconv.Itoa(sum.Records), "sha256": sum.SHA256}
	if err != nil {
		e.Outcome, e.Reason, e.Detail = audit.Failed, "broken off", nil
	}
	b.noteOutcome(r.Context(), e)
	if err == nil || !out.begun {
		return err
	}
	b.log.WithError(err).WithField("request", audit.OriginOf(r.Context()).RequestID).Error("a backup was broken off")
	panic(http.ErrAbortHandler)
}

// noteOutcome writes the second event, also when the client has gone away.
func (b *Backups) noteOutcome(ctx context.Context, e audit.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTime)
	defer cancel()
	if err := b.trail.Append(ctx, e); err != nil {
		b.log.WithError(err).Error("the outcome of a backup is not in the trail")
	}
}

// chunks sends what is written to it, each time with a new deadline, so that a slow
// client is waited for and one that has stopped is not.
type chunks struct {
	to    http.ResponseWriter
	conn  *http.ResponseController
	begun bool
}

// Write implements io.Writer.
func (c *chunks) Write(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		h := c.to.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", `attachment; filename="tabard.backup"`)
		h.Set("Cache-Control", "no-store")
	}
	if err := c.extend(); err != nil {
		return 0, err
	}
	return c.to.Write(p)
}

// extend gives the next piece its time.
func (c *chunks) extend() error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(chunkTime)); err != nil {
		return fmt.Errorf("set the deadline of an answer: %w", err)
	}
	return nil
}
