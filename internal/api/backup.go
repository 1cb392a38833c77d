package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxStall is how long a backup may bring nothing.
const maxStall = time.Minute

// Backup asks for a copy of the whole store, for administrators. The caller reads the
// answer to its end, checks that it is whole (backup.Verify), and closes it. It ends
// with an error when nothing comes for a minute, or with ctx.
func (c *Client) Backup(ctx context.Context) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stall := time.AfterFunc(maxStall, func() { cancel(fmt.Errorf("nothing came for %s", maxStall)) })
	resp, err := c.open(ctx, request{method: http.MethodGet, path: "/api/v1/backup"})
	if err != nil {
		stall.Stop()
		cancel(nil)
		return nil, err
	}
	body := &streamed{resp.Body, ctx, cancel, stall}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	defer body.Close()
	return nil, cmp.Or(refused(resp), fmt.Errorf("the server answered %d instead of a backup: is the URL right?", resp.StatusCode))
}

// streamed is the body of an answer under way.
type streamed struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *time.Timer
}

// Read implements io.Reader.
func (s *streamed) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	s.stall.Reset(maxStall)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("the server's answer broke off: its log says why; try again: %w", err)
	}
	return n, err
}

// Close implements io.Closer.
func (s *streamed) Close() error {
	s.stall.Stop()
	s.cancel(nil)
	return s.body.Close()
}
