package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what a webhook can ask for.
const maxRetryAfter = 10 * time.Minute

// webhookCarrier posts batches of JSON lines. Any answer of 2xx takes the batch.
type webhookCarrier struct {
	url, header, secret string
	client              *http.Client
}

func newWebhook(c WebhookConfig) (*webhookCarrier, error) {
	cfg, err := clientTLS(c.CA)
	if err != nil {
		return nil, err
	}
	return &webhookCarrier{c.URL, cmp.Or(c.Header, "Authorization"), c.Secret, &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		},
		// A redirect would take the secret to another place.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (w *webhookCarrier) deliver(ctx context.Context, lines [][]byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(bytes.Join(lines, nil)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("User-Agent", "tabard")
	if w.secret != "" {
		req.Header.Set(w.header, w.secret)
	}
	resp, err := w.client.Do(req)
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL: it can hold a token
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return &waitError{
		fmt.Errorf("the webhook answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode)),
		retryAfter(resp.Header.Get("Retry-After"), time.Now()), resp.StatusCode == http.StatusRequestEntityTooLarge,
	}
}

func (w *webhookCarrier) close() { w.client.CloseIdleConnections() }

// retryAfter reads the header, seconds or a date; 0 for none.
func retryAfter(s string, now time.Time) time.Duration {
	wait := time.Duration(0)
	if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil {
		wait = time.Duration(min(max(n, 0), 86400)) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}
