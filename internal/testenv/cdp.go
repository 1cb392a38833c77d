package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// cdp speaks the Chrome DevTools Protocol over a pair of pipes: JSON messages,
// each ended by a NUL byte.
type cdp struct {
	out     io.WriteCloser
	onEvent func(method string, params json.RawMessage)
	done    chan struct{} // closed when the read loop ended

	mu      sync.Mutex
	lastID  int
	pending map[int]chan cdpMessage
}

type cdpMessage struct {
	ID        int             `json:"id,omitempty"`
	SessionID string          `json:"sessionId,omitempty"`
	Method    string          `json:"method,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// newCDP reads in until it ends; that goroutine calls onEvent.
func newCDP(in io.Reader, out io.WriteCloser, onEvent func(string, json.RawMessage)) *cdp {
	c := &cdp{out: out, onEvent: onEvent, done: make(chan struct{}), pending: map[int]chan cdpMessage{}}
	go c.read(bufio.NewReader(in))
	return c
}

func (c *cdp) read(in *bufio.Reader) {
	defer close(c.done)
	for {
		raw, err := in.ReadBytes(0)
		if err != nil {
			return
		}
		var m cdpMessage
		if json.Unmarshal(bytes.TrimSuffix(raw, []byte{0}), &m) != nil {
			continue
		}
		if m.ID == 0 {
			c.onEvent(m.Method, m.Params)
			continue
		}
		c.mu.Lock()
		answer := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// call sends one command and decodes its result into result unless that is nil.
func (c *cdp) call(ctx context.Context, session, method string, params, result any) error {
	rawParams, err := json.Marshal(params)
	if err != nil {
		return fmt.Errorf("encode %s: %w", method, err)
	}
	answer := make(chan cdpMessage, 1)
	if err := c.send(cdpMessage{SessionID: session, Method: method, Params: rawParams}, answer); err != nil {
		return fmt.Errorf("send %s: %w", method, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	case <-c.done:
		return fmt.Errorf("%s: %w", method, errors.New("chromium has ended"))
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Result, result)
	}
}

func (c *cdp) send(m cdpMessage, answer chan cdpMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	m.ID = c.lastID
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	c.pending[m.ID] = answer
	_, err = c.out.Write(append(raw, 0))
	return err
}
