package main

import (
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
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/idp/provider"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
)

// Results of a check.
const (
	resultOK   = "ok"
	resultWarn = "warn"
	resultFail = "fail"
)

// finding is one line of the doctor's report.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"` // what was seen, and what to do
}

// doctor collects findings.
type doctor struct {
	cfg      *Config
	user     string // whose groups are looked up in every way; "": nobody's
	found    bool   // user, in a directory
	findings []finding
}

func doctorCommand() *cobra.Command {
	var config, user string
	cmd := &cobra.Command{Use: "doctor --config FILE", Short: "Try everything the configuration names, and say what to do", Args: usage(cobra.NoArgs)}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		d := &doctor{user: user}
		d.examine(cmd.Context(), config)
		err := write(cmd.OutOrStdout(), *output, map[string]any{"checks": d.findings}, func() [][]string {
			rows := [][]string{{"CHECK", "RESULT", "DETAIL"}}
			for _, f := range d.findings {
				rows = append(rows, []string{f.Check, f.Result, f.Detail})
			}
			return rows
		})
		if err == nil && slices.ContainsFunc(d.findings, func(f finding) bool { return f.Result == resultFail }) {
			return errReported
		}
		return err
	}
	cmd.Flags().StringVar(&user, "user", "", "somebody, as they sign in, whose groups are looked up in every way that their directory knows")
	configFlag(cmd, &config)
	return cmd
}

func (d *doctor) say(check, result, format string, args ...any) {
	d.findings = append(d.findings, finding{check, result, fmt.Sprintf(format, args...)})
}

func (d *doctor) examine(ctx context.Context, path string) {
	cfg, err := loadConfig(path)
	var many *configError
	if errors.As(err, &many) {
		for _, line := range strings.Split(many.Error(), "\n") {
			d.say("config", resultFail, "%s", line)
		}
		return
	}
	d.cfg = cfg
	d.say("config", resultOK, "%s", summary(cfg))
	for _, w := range cfg.warnings {
		if !strings.HasPrefix(w, "tls.certFile") { // checked below
			d.say("config", resultWarn, "%s", w)
		}
	}
	if time.Now().Year() < 2024 {
		d.say("clock", resultFail, "this machine's clock says %s: set it", time.Now().UTC().Format(time.DateOnly))
	}
	d.certificate()
	running := d.store(ctx)
	d.trail()
	for _, c := range cfg.Directories {
		d.directory(ctx, c)
	}
	if d.user != "" && !d.found {
		d.say("user", resultFail, "nobody signs in as %s in a directory that answers", d.user)
	}
	d.proxies(ctx)
	d.issuer(ctx, running)
}

// certificate checks the server's own certificate.
func (d *doctor) certificate() {
	if d.cfg.cert == nil {
		d.say("tls", resultWarn, "no certificate: a proxy in front has to have TLS for %s", d.cfg.Issuer)
		return
	}
	leaf := d.cfg.cert.Leaf
	trouble := certTrouble(leaf, d.cfg.Issuer, time.Now())
	for _, t := range trouble {
		d.say("tls", resultFail, "%s", t)
	}
	left := time.Until(leaf.NotAfter)
	switch {
	case len(trouble) > 0:
	case left < 7*24*time.Hour:
		d.say("tls", resultWarn, "the certificate for %s ends at %s: renew it", certNames(leaf), leaf.NotAfter.Format(time.RFC3339))
	default:
		d.say("tls", resultOK, "for %s until %s", certNames(leaf), leaf.NotAfter.Format(time.DateOnly))
	}
}

// store opens the store, unless a running server has it.
func (d *doctor) store(ctx context.Context) (running bool) {
	if d.cfg.Store.Etcd != nil {
		d.etcd(ctx)
		return false
	}
	path := d.cfg.Store.Bolt.Path
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		d.say("store", resultWarn, "%s does not exist yet: `tabard serve` creates it", path)
		return false
	}
	st, err := bolt.Open(d.cfg.Store.Bolt)
	switch {
	case errors.Is(err, store.ErrInUse):
		d.say("store", resultOK, "%s is open in a running server", path)
		return true
	case err != nil:
		d.say("store", resultFail, "%s", err)
		return false
	}
	if err := st.Close(); err != nil {
		d.say("store", resultFail, "could not be closed: %s", err)
		return false
	}
	d.say("store", resultOK, "%s opens; the server is stopped", path)
	return false
}

// published is what the issuer shows of itself.
type published struct {
	Issuer  string   `json:"issuer"`
	JWKSURI string   `json:"jwks_uri"`
	Algs    []string `json:"id_token_signing_alg_values_supported"`
}

// issuer looks at the issuer as an API server does: over the network, by its URL.
func (d *doctor) issuer(ctx context.Context, running bool) {
	hc, note := d.client(false), ""
	var doc published
	target := d.cfg.Issuer + "/.well-known/openid-configuration"
	date, err := getJSON(ctx, hc, target, &doc)
	var authority x509.UnknownAuthorityError
	if errors.As(err, &authority) && d.cfg.cert != nil {
		hc.CloseIdleConnections()
		hc, note = d.client(true), "; this machine does not know its CA, so API servers need --oidc-ca-file"
		date, err = getJSON(ctx, hc, target, &doc)
	}
	defer hc.CloseIdleConnections()
	switch {
	case err != nil && !running:
		d.say("issuer", resultWarn, "%s", err)
	case err != nil:
		d.say("issuer", resultFail, "%s", err)
	case doc.Issuer != d.cfg.Issuer:
		d.say("issuer", resultFail, "%s answers as %q: API servers refuse that; is another server there?", d.cfg.Issuer, clipBytes(doc.Issuer, 200))
	default:
		d.keys(ctx, hc, doc, note)
		d.skew(date)
		d.readiness(ctx, hc)
		d.webhooks(ctx, hc)
	}
}

func (d *doctor) keys(ctx context.Context, hc *http.Client, doc published, note string) {
	var keys jose.JSONWebKeySet
	if _, err := getJSON(ctx, hc, doc.JWKSURI, &keys); err != nil {
		d.say("issuer", resultFail, "keys: %s", err)
		return
	}
	for _, alg := range d.cfg.idp.KeyAlgorithms() {
		if !slices.ContainsFunc(keys.Keys, func(k jose.JSONWebKey) bool { return k.Algorithm == alg }) {
			d.say("issuer", resultFail, "no key for %s is published: reload or restart the server", alg)
			return
		}
	}
	d.say("issuer", resultOK, "discovery and %s are served; tokens are signed with %s%s", count(len(keys.Keys), "key", "keys"), strings.Join(doc.Algs, ", "), note)
}

// skew compares this machine's clock with the issuer's.
func (d *doctor) skew(date time.Time) {
	if date.IsZero() {
		return
	}
	skew := time.Since(date).Round(time.Second)
	if skew.Abs() > 30*time.Second {
		d.say("clock", resultFail, "this machine's clock and the issuer's are %s apart: set both by NTP", skew.Abs())
		return
	}
	d.say("clock", resultOK, "this machine and the issuer agree")
}

func (d *doctor) readiness(ctx context.Context, hc *http.Client) {
	var ready readiness
	if _, err := getJSON(ctx, hc, d.cfg.Issuer+"/readyz", &ready); err != nil {
		d.say("server", resultFail, "not ready: %s: its log says why", err)
		return
	}
	d.say("server", resultOK, "ready")
	for name, state := range ready.Directories {
		if state == stateError {
			d.say("server", resultFail, "the server cannot use directory %s: its log says why", name)
		}
	}
	for name, state := range ready.Clusters {
		if state == stateError {
			d.say("server", resultFail, "the server cannot use the API server of cluster %s: its log says why", name)
		}
	}
}

// webhooks asks each webhook about a token, as its API server does.
func (d *doctor) webhooks(ctx context.Context, hc *http.Client) {
	for _, cl := range d.cfg.idp.Clusters {
		if cl.Webhook == nil {
			continue
		}
		check := "cluster " + cl.Name
		for i, caller := range cl.Webhook.Callers {
			if err := askWebhook(ctx, hc, d.cfg.Issuer+provider.ReviewPath+cl.Name, caller.Token); err != nil {
				d.say(check, resultFail, "webhook.callers[%d]: %s", i, err)
			}
		}
		d.say(check, resultOK, "API servers can ask about each token. What ends then counts at their next cache miss, but only where they do not also trust %s by --oidc-issuer-url or --authentication-config: look at their flags", d.cfg.Issuer)
	}
}

func askWebhook(ctx context.Context, hc *http.Client, target, caller string) error {
	const review = `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"tabard-doctor"}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(review))
	if err != nil {
		return fmt.Errorf("%s is not a URL", target)
	}
	req.Header.Set("Authorization", "Bearer "+caller)
	resp, err := hc.Do(req)
	if err != nil {
		return fetchTrouble(target, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: does the server run with this configuration?", target, resp.Status)
	}
	return nil
}

// client trusts the system's roots and, with own, our own chain, as an API server
// does that has it as CA file.
func (d *doctor) client(own bool) *http.Client {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if own {
		for _, der := range d.cfg.cert.Certificate {
			if c, err := x509.ParseCertificate(der); err == nil {
				pool.AddCert(c)
			}
		}
	}
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
	}
}

// getJSON fetches a document and returns the Date that it was sent at.
func getJSON(ctx context.Context, hc *http.Client, target string, into any) (time.Time, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is not a URL", target)
	}
	resp, err := hc.Do(req)
	if err != nil {
		return time.Time{}, fetchTrouble(target, err)
	}
	defer resp.Body.Close()
	date, _ := http.ParseTime(resp.Header.Get("Date"))
	if resp.StatusCode != http.StatusOK {
		return date, fmt.Errorf("%s answers %s", target, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into); err != nil {
		return date, fmt.Errorf("%s answers no JSON: is another server there?", target)
	}
	return date, nil
}

// fetchTrouble says why a URL cannot be fetched, and what to do.
func fetchTrouble(target string, err error) error {
	u, _ := url.Parse(target)
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var dns *net.DNSError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("%s is not known to DNS: make a record for it: %w", u.Hostname(), err)
	case errors.As(err, &name):
		return fmt.Errorf("%s shows a certificate for another name: get one that names it: %w", u.Host, err)
	case errors.As(err, &authority):
		return fmt.Errorf("%s shows a certificate of an authority that this machine does not trust: install its CA here: %w", u.Host, err)
	}
	return fmt.Errorf("%s gives no answer: is the server started and the way to it open: %w", u.Host, err)
}
