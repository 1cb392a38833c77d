package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// maxBody bounds what is read of any answer, in bytes.
const maxBody = 4 << 20

// ErrSignInAgain: the server no longer accepts what the cache holds.
var ErrSignInAgain = errors.New("you are signed out: sign in again with `tabard login` or `kubectl tabard login`")

// Client sends requests to the JSON API of one server. It is safe for concurrent
// use.
type Client struct {
	server string
	http   *http.Client
	token  func(context.Context) (string, error)
	// renew gives another token in the place of one that the server has refused; nil:
	// there is no other.
	renew func(ctx context.Context, refused string) (string, error)
}

// NewClient returns a Client for the server at that URL. token gives the bearer
// token of each request; with nil none is sent.
func NewClient(server string, hc *http.Client, token func(context.Context) (string, error)) *Client {
	return &Client{server: server, http: hc, token: token}
}

// HTTPClient returns a client that trusts the system's roots and the certificates
// in caPEM, which may be empty. It follows no redirects, so that no secret is sent
// on to another place.
func HTTPClient(caPEM string) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caPEM != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM([]byte(caPEM)) {
			return nil, errors.New("the CA file holds no certificate in PEM form")
		}
		cfg.RootCAs = pool
	}
	return &http.Client{
		Transport: named{&http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:       cfg,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			IdleConnTimeout:       5 * time.Second,
			ForceAttemptHTTP2:     true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// named says in each request which program on which machine it is from: people tell
// their sessions apart by it.
type named struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", userAgent())
	return n.Transport.RoundTrip(r)
}

func userAgent() string {
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe") + " on " + runtime.GOOS
	host, err := os.Hostname()
	if host, _, _ = strings.Cut(host, "."); err != nil || host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return name
	}
	return name + " (" + clip(host, 63) + ")"
}

// ServerURL checks the URL of a server and returns it as the cache knows it:
// https unless on loopback, lower-case host, without a trailing slash.
func ServerURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("the server's URL must look like https://id.corp.example, as the issuer in its configuration")
	}
	u.Host = strings.ToLower(u.Host)
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return "", errors.New("the server's URL must begin with https://: passwords and tokens are not sent in the clear")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Me asks who the caller is.
func (c *Client) Me(ctx context.Context) (Me, error) {
	return answer[Me](ctx, c, http.MethodGet, "/api/v1/me", nil)
}

// Clusters lists the clusters whose rules give the caller a token.
func (c *Client) Clusters(ctx context.Context) ([]Cluster, error) {
	list, err := answer[ClusterList](ctx, c, http.MethodGet, "/api/v1/clusters", nil)
	return list.Clusters, err
}

// Explain says what somebody's token for a cluster would hold, and why. Without a user
// it is about the caller, without a cluster about a token of Tabard itself.
func (c *Client) Explain(ctx context.Context, user, cluster string) (Explanation, error) {
	q := parameters(map[string]string{"user": user, "cluster": cluster})
	return answer[Explanation](ctx, c, http.MethodGet, "/api/v1/explain?"+q.Encode(), nil)
}

// parameters are those that have a value.
func parameters(all map[string]string) url.Values {
	q := url.Values{}
	for key, value := range all {
		if value != "" {
			q.Set(key, value)
		}
	}
	return q
}

// do sends one request and decodes the answer into out. Refusals are *Problem,
// or ErrSignInAgain.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	return c.send(ctx, request{method: method, path: path, in: in}, func(resp *http.Response) error { return decode(resp, out) })
}

// answer is do for an answer of type T.
func answer[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	err = c.do(ctx, method, path, in, &out)
	return out, err
}

// answerTo is answer for what is more than a method, a path and a body.
func answerTo[T any](ctx context.Context, c *Client, rq request) (out T, err error) {
	err = c.send(ctx, rq, func(resp *http.Response) error { return decodeUpTo(cmp.Or(rq.most, maxBody), resp, &out) })
	return out, err
}

// request is one call of the API.
type request struct {
	method, path string
	in           any           // the JSON body; nil: none
	contentType  string        // of in; "": application/json
	ifMatch      string        // "": whatever version it is
	deadline     time.Duration // 0: 30 s
	most         int64         // bytes that are read of the answer; 0: maxBody
}

// send sends one request and gives the answer to read.
func (c *Client) send(ctx context.Context, rq request, read func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(rq.deadline, 30*time.Second))
	defer cancel()
	resp, err := c.open(ctx, rq)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return read(resp)
}

// open sends one request and gives the answer as it begins.
func (c *Client) open(ctx context.Context, rq request) (*http.Response, error) {
	var body io.Reader
	if rq.in != nil {
		b, err := json.Marshal(rq.in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, rq.method, c.server+rq.path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if rq.in != nil {
		req.Header.Set("Content-Type", cmp.Or(rq.contentType, "application/json"))
	}
	if rq.ifMatch != "" {
		req.Header.Set("If-Match", rq.ifMatch)
	}
	token := ""
	if c.token != nil {
		if token, err = c.token(ctx); err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	hc := c.httpFor(rq)
	resp, err := hc.Do(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && c.renew != nil {
		resp.Body.Close()
		if req, err = c.again(req, token); err != nil {
			return nil, err
		}
		resp, err = hc.Do(req)
	}
	if err != nil {
		return nil, unreachable(c.server, err)
	}
	return resp, nil
}

// again is req with another token. The server can refuse one before its end, after an
// emergency rotation of its keys, while the login is good. It has then done nothing.
func (c *Client) again(req *http.Request, refused string) (*http.Request, error) {
	token, err := c.renew(req.Context(), refused)
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	if req.GetBody != nil {
		if req.Body, err = req.GetBody(); err != nil {
			return nil, fmt.Errorf("make the request again: %w", err)
		}
	}
	return req, nil
}

// httpFor is the client for rq: what may take longer also has longer until the answer
// begins.
func (c *Client) httpFor(rq request) *http.Client {
	t, ok := c.http.Transport.(named)
	if rq.deadline == 0 || !ok {
		return c.http
	}
	patient, hc := t.Clone(), *c.http
	patient.ResponseHeaderTimeout = rq.deadline
	patient.DisableKeepAlives = true
	hc.Transport = named{patient}
	return &hc
}

// decode reads an answer of the API.
func decode(resp *http.Response, out any) error { return decodeUpTo(maxBody, resp, out) }

func decodeUpTo(limit int64, resp *http.Response, out any) error {
	if err := refused(resp); err != nil {
		return err
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the server's answer is not what this version expects: %w", err)
	}
	return nil
}

// refused is the *Problem of an answer that is one, or ErrSignInAgain.
func refused(resp *http.Response) error {
	if resp.StatusCode == http.StatusUnauthorized {
		return ErrSignInAgain
	}
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	p := &Problem{}
	if json.Unmarshal(b, p) != nil || p.Title == "" {
		p = &Problem{Title: fmt.Sprintf("the server answered %d %s: is the URL right?", resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	p.Status = resp.StatusCode
	return p
}

// unreachable is the sentence for a request that got no answer. The URL that
// net/http puts into its error is left out: it can hold a code.
func unreachable(server string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%s shows a certificate of an authority that is not trusted here: sign in with --ca-file and its CA certificate: %w", server, err)
	}
	return fmt.Errorf("%s gives no answer: check the URL and the network, then try again: %w", server, err)
}
