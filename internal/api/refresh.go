package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"
)

// ErrNoAccess: the person has no access to the cluster, or there is none of that
// name. Signing in again changes nothing.
var ErrNoAccess = errors.New("no access")

// Token returns an id_token of the server itself that lives for a while yet,
// refreshing it first when needed. Of many callers at once, in any process, one
// refreshes. Errors: ErrNoLogin, ErrSignInAgain, *TemporaryError.
func (c *Cache) Token(ctx context.Context, a Account) (string, error) {
	a = c.whose(a)
	if l, err := c.Load(a); err != nil || l.Token.fresh() {
		return l.Token.Raw, err
	}
	return c.renew(ctx, a, func(t Token) bool { return !t.fresh() })
}

// renew refreshes the login unless its token is good by now: whoever held the lock may
// have refreshed it.
func (c *Cache) renew(ctx context.Context, a Account, bad func(Token) bool) (string, error) {
	unlock, err := c.lock(ctx, a)
	if err != nil {
		return "", err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	l, err := c.Load(a)
	if err == nil && bad(l.Token) {
		l, err = c.refresh(ctx, l)
	}
	return l.Token.Raw, err
}

// ClusterToken returns an id_token for a cluster, in the way of Token. Without a
// login that is good, signIn is called once, under the lock, with the account and the
// CA that is known, so that of many callers one asks; nil: nobody can be asked. Errors
// besides those of Token: ErrNoAccess.
func (c *Cache) ClusterToken(ctx context.Context, a Account, cluster string, signIn func(context.Context, Account, string) (Login, error)) (Token, error) {
	a = c.whose(a)
	if l, err := c.Load(a); err == nil && l.Clusters[cluster].fresh() {
		return l.Clusters[cluster], nil
	}
	unlock, err := c.lock(ctx, a)
	if err != nil {
		return Token{}, err
	}
	defer unlock()
	t, err := c.clusterToken(ctx, a, cluster)
	if signIn == nil || !errors.Is(err, ErrNoLogin) && !errors.Is(err, ErrSignInAgain) {
		return t, err
	}
	l, err := signIn(ctx, a, c.CA(a))
	if err != nil {
		return Token{}, err
	}
	l.User = a.User
	c.keep(&l, c.add)
	return c.clusterToken(ctx, a, cluster)
}

// clusterToken is called under the lock.
func (c *Cache) clusterToken(ctx context.Context, a Account, cluster string) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	l, err := c.Load(a)
	if err != nil || l.Clusters[cluster].fresh() {
		return l.Clusters[cluster], err
	}
	refreshed := !l.Token.fresh()
	if refreshed {
		l, err = c.refresh(ctx, l)
	}
	var t Token
	if err == nil {
		t, err = exchange(ctx, l, cluster)
	}
	if errors.Is(err, ErrSignInAgain) && !refreshed { // the id_token is refused; the login may be good
		if l, err = c.refresh(ctx, l); err == nil {
			t, err = exchange(ctx, l, cluster)
		}
	}
	var temporary *TemporaryError
	switch old := l.Clusters[cluster]; {
	case err == nil:
		if l.Clusters == nil {
			l.Clusters = map[string]Token{}
		}
		l.Clusters[cluster] = t
		c.keep(&l, c.save)
	case errors.As(err, &temporary) && old.alive():
		return old, nil
	case errors.Is(err, ErrSignInAgain):
		c.forget(l)
	}
	return t, err
}

// refresh renews the login's own token, under the lock, and returns the login as
// it is then.
func (c *Cache) refresh(ctx context.Context, l Login) (Login, error) {
	if l.RefreshToken == "" && !l.Keyring {
		return l, ErrSignInAgain
	}
	next, err := l, error(nil)
	if l.RefreshToken == "" {
		next.RefreshToken, err = c.ring.secret(c.ringKey(l.account()))
	}
	if err == nil {
		next, err = Refresh(ctx, next)
	}
	var temporary *TemporaryError
	switch {
	case err == nil:
		c.keep(&next, c.save)
		return next, nil
	case errors.As(err, &temporary) && l.Token.alive():
		return l, nil
	case errors.Is(err, ErrSignInAgain):
		c.forget(l)
	}
	return l, err
}

// forget drops every token of l; the CA stays for the next sign-in.
func (c *Cache) forget(l Login) {
	c.dropSecret(l)
	c.keep(&Login{Server: l.Server, User: l.User, CA: l.CA}, c.save)
}

// Refresh trades the refresh token of l for a new login. A server that is down,
// slow or without its directory is asked again a few times while ctx lasts.
// Sending the same refresh token again is safe: the server answers with the same
// successor. Errors: ErrSignInAgain, *TemporaryError.
func Refresh(ctx context.Context, l Login) (Login, error) {
	hc, err := HTTPClient(l.roots())
	if err != nil {
		return Login{}, err
	}
	defer hc.CloseIdleConnections()
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {l.RefreshToken}, "client_id": {clientID}}
	var answer tokenAnswer
	err = patiently(ctx, func() error {
		answer, err = postToken(ctx, hc, l.Server, form)
		return err
	})
	if err != nil {
		return l, err
	}
	return l.with(answer, "")
}

const idTokenType = "urn:ietf:params:oauth:token-type:id_token"

// exchange gets a token for a cluster (RFC 8693). The server says which audience
// the cluster has: to take its name for one could name another cluster's.
func exchange(ctx context.Context, l Login, cluster string) (Token, error) {
	hc, err := HTTPClient(l.roots())
	if err != nil {
		return Token{}, err
	}
	defer hc.CloseIdleConnections()
	var t Token
	err = patiently(ctx, func() error {
		audience, err := audienceOf(ctx, hc, l, cluster)
		if err != nil {
			return err
		}
		answer, err := postToken(ctx, hc, l.Server, url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {clientID}, "audience": {audience},
			"subject_token": {l.Token.Raw}, "subject_token_type": {idTokenType}, "requested_token_type": {idTokenType},
		})
		var refused *refusal
		if errors.As(err, &refused) && refused.code == "access_denied" {
			return fmt.Errorf("%w to cluster %s: %s", ErrNoAccess, cluster, refused.words)
		}
		if err == nil {
			t, err = readToken(answer.AccessToken, l.Server, audience, "")
		}
		return err
	})
	return t, err
}

func audienceOf(ctx context.Context, hc *http.Client, l Login, cluster string) (string, error) {
	bearer := func(context.Context) (string, error) { return l.Token.Raw, nil }
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	list, err := NewClient(l.Server, hc, bearer).Clusters(ctx)
	if err != nil {
		var p *Problem
		if errors.Is(err, ErrSignInAgain) || errors.As(err, &p) && p.Status < 500 && p.Status != http.StatusTooManyRequests {
			return "", err
		}
		return "", temporarily(err)
	}
	for _, cl := range list {
		if cl.Name == cluster {
			return cl.ClientID, nil
		}
	}
	return "", fmt.Errorf("%w to cluster %s: no group of yours opens it, or there is none of that name; ask those who run it", ErrNoAccess, cluster)
}

// Tries of one request, and time for each.
const (
	requestTries = 4
	tryTimeout   = 6 * time.Second
)

// patiently calls do until its error is not temporary, a few times, while ctx lasts.
func patiently(ctx context.Context, do func() error) error {
	for try, wait := 1, 200*time.Millisecond; ; try, wait = try+1, 2*wait {
		err := do()
		var temporary *TemporaryError
		if !errors.As(err, &temporary) || try == requestTries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// Client returns a Client that acts as the person signed in as a.
func (c *Cache) Client(a Account) (*Client, error) {
	a = c.whose(a)
	l, err := c.Load(a)
	if err != nil {
		return nil, err
	}
	hc, err := HTTPClient(l.roots())
	if err != nil {
		return nil, err
	}
	client := NewClient(a.Server, hc, func(ctx context.Context) (string, error) { return c.Token(ctx, a) })
	client.renew = func(ctx context.Context, refused string) (string, error) {
		return c.renew(ctx, a, func(t Token) bool { return t.Raw == refused })
	}
	return client, nil
}

// Logout revokes the login of a and forgets it. What could not be revoked is
// forgotten all the same, and the error says so.
func (c *Cache) Logout(ctx context.Context, a Account) error {
	a = c.whose(a)
	unlock, err := c.lock(ctx, a)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	l, err := c.Load(a)
	if err != nil {
		return err
	}
	if l.Keyring && l.RefreshToken == "" {
		l.RefreshToken, err = c.ring.secret(c.ringKey(a))
	}
	if err == nil && l.RefreshToken != "" {
		err = revoke(ctx, l)
	}
	if err != nil {
		err = fmt.Errorf("signed out here, but the server could not be told, so the session lasts until it times out: %w", err)
	}
	if c.whose(Account{Server: a.Server}) == a {
		_ = os.Remove(c.path(Account{Server: a.Server}, ".user")) // the next one may be another person
	}
	return errors.Join(err, c.remove(l))
}
