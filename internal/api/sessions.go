package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// SessionList answers GET /api/v1/sessions.
type SessionList struct {
	Sessions []Session `json:"sessions"`       // used last first; never null
	Next     string    `json:"next,omitempty"` // cursor of the next page
}

// Session is one sign-in of one person on one device.
type Session struct {
	ID        string    `json:"id"`
	Sub       string    `json:"sub"`
	Username  string    `json:"username"`
	Name      string    `json:"name"`
	Clients   []string  `json:"clients"` // that hold tokens of it; never null
	Browser   bool      `json:"browser"` // a browser holds it
	Address   string    `json:"address,omitempty"`
	UserAgent string    `json:"userAgent,omitempty"`
	Device    string    `json:"device"` // UserAgent in two words, such as Chrome on Linux; "unknown" without one
	Created   time.Time `json:"created"`
	LastUsed  time.Time `json:"lastUsed"` // within some minutes
	Ends      time.Time `json:"ends"`     // unless it is used before that
	Current   bool      `json:"current"`  // the one that asks
}

// Ended answers DELETE /api/v1/sessions.
type Ended struct {
	Ended int `json:"ended"` // sessions
}

// Sessions lists all sessions of a person, named by username or sub; the caller's own
// for "", everybody's for "*".
func (c *Client) Sessions(ctx context.Context, person string) ([]Session, error) {
	var all []Session
	for one, err := range pages(parameters(map[string]string{"person": person}), func(q url.Values) ([]Session, string, error) {
		list, err := answer[SessionList](ctx, c, http.MethodGet, "/api/v1/sessions?"+q.Encode(), nil)
		return list.Sessions, list.Next, err
	}) {
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// EndSession ends one session.
func (c *Client) EndSession(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/api/v1/sessions/"+url.PathEscape(id), nil, nil)
}

// EndSessions ends every session of a person, named by username or sub; of the caller
// all but the one that asks, for "".
func (c *Client) EndSessions(ctx context.Context, person string) (int, error) {
	out, err := answer[Ended](ctx, c, http.MethodDelete, "/api/v1/sessions?"+url.Values{"person": {person}}.Encode(), nil)
	return out.Ended, err
}

// KeyList answers GET /api/v1/keys.
type KeyList struct {
	Keys []Key `json:"keys"` // by algorithm, oldest first
}

// Key is a signing key.
type Key struct {
	ID        string    `json:"id"` // kid
	Algorithm string    `json:"algorithm"`
	State     string    `json:"state"`     // current, next or retired
	Signs     time.Time `json:"signs"`     // from when on
	Encrypted bool      `json:"encrypted"` // in the store
}

// Keys lists the signing keys.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	list, err := answer[KeyList](ctx, c, http.MethodGet, "/api/v1/keys", nil)
	return list.Keys, err
}

// RotateKeys is the body of POST /api/v1/keys/rotate.
type RotateKeys struct {
	Emergency bool `json:"emergency"` // a new key signs at once, and all others are gone
}

// RotateKeys begins a rotation, and returns the keys as they are then.
func (c *Client) RotateKeys(ctx context.Context, emergency bool) ([]Key, error) {
	list, err := answer[KeyList](ctx, c, http.MethodPost, "/api/v1/keys/rotate", RotateKeys{emergency})
	return list.Keys, err
}
