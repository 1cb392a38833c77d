package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// DeviceCode is what a person needs to sign in on another device (RFC 8628
// section 3.2).
type DeviceCode struct {
	URL      string // of the page that wants the code
	Code     string
	Complete string // URL with the code; may be empty
}

// deviceAnswer is RFC 8628 section 3.2 on the wire.
type deviceAnswer struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URL        string `json:"verification_uri"`
	Complete   string `json:"verification_uri_complete"`
	Expires    int    `json:"expires_in"` // seconds, as is Interval
	Interval   int    `json:"interval"`
}

// Device signs in on another device: show tells the person where, and the server
// is asked until they did, the code runs out, or ctx ends (RFC 8628).
func (s *SignIn) Device(ctx context.Context, show func(DeviceCode)) (Login, error) {
	d, err := s.startDevice(ctx)
	if err != nil {
		return Login{}, err
	}
	show(DeviceCode{clip(d.URL, 300), clip(d.UserCode, 40), clip(d.Complete, 300)})
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(d.Expires, 60))*time.Second)
	defer cancel()
	wait := time.Duration(d.Interval) * time.Second
	if wait <= 0 {
		wait = 5 * time.Second
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {clientID}, "device_code": {d.DeviceCode}}
	for {
		select {
		case <-ctx.Done():
			return Login{}, tooLate(ctx, "nobody gave the code in time: run the command again")
		case <-time.After(wait):
		}
		answer, err := postToken(ctx, s.http, s.login.Server, form)
		var refused *refusal
		var temporary *TemporaryError
		switch {
		case err == nil:
			return s.login.with(answer, "")
		case errors.As(err, &temporary):
		case !errors.As(err, &refused):
			return Login{}, err
		case refused.code == "authorization_pending":
		case refused.code == "slow_down":
			wait += 5 * time.Second
		case refused.code == "access_denied":
			return Login{}, errors.New("the sign-in was refused: " + refused.words)
		case refused.code == "expired_token":
			return Login{}, errors.New("the code ran out: run the command again")
		default:
			return Login{}, err
		}
	}
}

func (s *SignIn) startDevice(ctx context.Context) (d deviceAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := postForm(ctx, s.http, s.login.Server+"/device_authorization", url.Values{"client_id": {clientID}, "scope": {"openid offline_access"}})
	if err != nil {
		return d, unreachable(s.login.Server, err)
	}
	defer resp.Body.Close()
	err = json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&d)
	if resp.StatusCode != http.StatusOK || err != nil || d.DeviceCode == "" || d.UserCode == "" || d.URL == "" {
		return d, fmt.Errorf("the server gave no code for another device (it answered %d): use --prompt or --browser", resp.StatusCode)
	}
	return d, nil
}
