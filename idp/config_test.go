package idp

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestValidateTable(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		path   string // "" valid
	}{
		{"as it should be", func(*Config) {}, ""},
		{"http issuer", func(c *Config) { c.Issuer = "http://id.test" }, "issuer"},
		{"issuer with query", func(c *Config) { c.Issuer = "https://id.test?" }, "issuer"},
		{"issuer with fragment", func(c *Config) { c.Issuer = "https://id.test#" }, "issuer"},
		{"issuer with user", func(c *Config) { c.Issuer = "https://a@id.test" }, "issuer"},
		{"issuer without host", func(c *Config) { c.Issuer = "https:///x" }, "issuer"},
		{"issuer with path", func(c *Config) { c.Issuer = "https://id.test/a/" }, ""},
		{"cluster name", func(c *Config) { c.Clusters[0].Name = "Prod" }, "clusters[0].name"},
		{"cluster twice", func(c *Config) { c.Clusters[1].Name = "prod" }, "clusters[1].name"},
		{"client id twice", func(c *Config) { c.Clusters[1].ClientID = "kubernetes" }, "clusters[1].clientID"},
		{"client id of ours", func(c *Config) { c.Clusters[0].ClientID = BuiltinClient }, "clusters[0].clientID"},
		{"client id of a cluster", func(c *Config) { c.Clients[0].ID = "dev" }, "clients[0].id"},
		{"client id with space", func(c *Config) { c.Clients[0].ID = "a b" }, "clients[0].id"},
		{"no client id", func(c *Config) { c.Clusters[0].ClientID = "" }, "clusters[0].clientID"},
		{"no such cluster", func(c *Config) { c.Clients[0].Cluster = "nowhere" }, "clients[0].cluster"},
		{"http redirect", func(c *Config) { c.Clients[0].RedirectURIs = []string{"http://headlamp.test/"} }, "clients[0].redirectURIs[0]"},
		{"wildcard", func(c *Config) { c.Clients[0].RedirectURIs = []string{"https://*.test/"} }, "clients[0].redirectURIs[0]"},
		{"fragment", func(c *Config) { c.Clients[0].RedirectURIs = []string{"https://a.test/#"} }, "clients[0].redirectURIs[0]"},
		{"user", func(c *Config) { c.Clients[0].RedirectURIs = []string{"https://a@b.test/"} }, "clients[0].redirectURIs[0]"},
		{"relative", func(c *Config) { c.Clients[0].RedirectURIs = []string{"/cb"} }, "clients[0].redirectURIs[0]"},
		{"javascript", func(c *Config) { c.Clients[0].RedirectURIs = []string{"javascript:alert(1)"} }, "clients[0].redirectURIs[0]"},
		{"private scheme", func(c *Config) { c.Clients[0].RedirectURIs = []string{"com.example.app:/cb"} }, ""},
		{"post-logout", func(c *Config) { c.Clients[0].PostLogoutRedirectURIs = []string{"http://a.test"} }, "clients[0].postLogoutRedirectURIs[0]"},
		{"API server by http", func(c *Config) { c.Clusters[0].APIServer.URL = "http://10.0.0.1:6443" }, "clusters[0].apiServer.url"},
		{"API server without URL", func(c *Config) { c.Clusters[0].APIServer.CAFile = "ca.pem" }, "clusters[0].apiServer.url"},
		{"API server", func(c *Config) { c.Clusters[0].APIServer.URL = "https://10.0.0.1:6443" }, ""},
		{"webhook", withWebhooks, ""},
		{"webhook without callers", func(c *Config) { c.Clusters[0].Webhook = &WebhookConfig{} }, "clusters[0].webhook.callers"},
		{"caller of another cluster", func(c *Config) { withWebhooks(c); c.Clusters[1].Webhook.Callers[0].Token = callerOne }, "clusters[1].webhook.callers[0]"},
		{"short caller", func(c *Config) { withWebhooks(c); c.Clusters[0].Webhook.Callers[1].Token = callerOne[:15] }, "clusters[0].webhook.callers[1]"},
		{"caller with a line in it", func(c *Config) { withWebhooks(c); c.Clusters[0].Webhook.Callers[1].Token += "\n" }, "clusters[0].webhook.callers[1]"},
		{"empty audience", func(c *Config) { withWebhooks(c); c.Clusters[0].Webhook.Audiences = []string{""} }, "clusters[0].webhook.audiences"},
		{"webhook for large tokens", func(c *Config) { withWebhooks(c); c.Clusters[0].Tokens.MaxSize = 64 << 10 }, "clusters[0].webhook"},
		{"short life", func(c *Config) { c.Tokens.IDTokenLifetime = time.Second }, "tokens.idTokenLifetime"},
		{"long life", func(c *Config) { c.Clusters[0].Tokens.IDTokenLifetime = 25 * time.Hour }, "clusters[0].tokens.idTokenLifetime"},
		{"minLifetime above", func(c *Config) { c.Tokens.MinLifetime = time.Hour }, "tokens.minLifetime"},
		{"negative minLifetime", func(c *Config) { c.Tokens.MinLifetime = -1 }, "tokens.minLifetime"},
		{"small maxSize", func(c *Config) { c.Tokens.MaxSize = 100 }, "tokens.maxSize"},
		{"HS256", func(c *Config) { c.Clusters[0].Tokens.SigningAlgorithm = "HS256" }, "clusters[0].tokens.signingAlgorithm"},
		{"none", func(c *Config) { c.Tokens.SigningAlgorithm = "none" }, "tokens.signingAlgorithm"},
		{"username in sub", func(c *Config) { c.Tokens.UsernameClaim = "sub" }, "tokens.usernameClaim"},
		{"username in groups", func(c *Config) { c.Tokens.UsernameClaim = "groups" }, "tokens.usernameClaim"},
		{"groups in aud", func(c *Config) { c.Tokens.GroupsClaim = "aud" }, "tokens.groupsClaim"},
		{"groups in preferred_username", func(c *Config) { c.Tokens.UsernameClaim, c.Tokens.GroupsClaim = "upn", "preferred_username" }, "tokens.groupsClaim"},
		{"idle above max", func(c *Config) { c.Sessions.IdleTimeout = 13 * time.Hour }, "sessions.idleTimeout"},
		{"no idle", func(c *Config) { c.Sessions.IdleTimeout = time.Second }, "sessions.idleTimeout"},
		{"very long", func(c *Config) { c.Sessions.MaxLifetime = 91 * 24 * time.Hour }, "sessions.maxLifetime"},
		{"long grace", func(c *Config) { c.Clusters[0].Sessions.RefreshGrace = time.Hour }, "clusters[0].sessions.refreshGrace"},
	} {
		cfg := testConfig()
		c.change(&cfg)
		cfg.SetDefaults()
		err := cfg.Validate()
		var field *FieldError
		errors.As(err, &field)
		if c.path == "" && err != nil || c.path != "" && (field == nil || field.Path != c.path) {
			t.Errorf("%s: %v, want a mistake in %q", c.name, err, c.path)
		}
	}
}

func TestValidateTellsEveryMistake(t *testing.T) {
	cfg := testConfig()
	cfg.Issuer, cfg.Clusters[0].Name, cfg.Clients[0].Cluster, cfg.Tokens.MaxSize = "", "", "nowhere", 1
	cfg.SetDefaults()
	err := cfg.Validate()
	for _, path := range []string{"issuer", "clusters[0].name", "clients[0].cluster", "tokens.maxSize"} {
		if strings.Count(err.Error(), path+": ") != 1 { // what clusters inherit is told where it stands
			t.Errorf("%q does not tell %s once", err, path)
		}
	}
}

func TestDefaultsComeFromTheTop(t *testing.T) {
	cfg := testConfig()
	cfg.Issuer = "https://id.test/"
	cfg.Tokens.IDTokenLifetime = 7 * time.Minute
	cfg.Clusters[1].Tokens.SigningAlgorithm = "RS256"
	cfg.SetDefaults()
	if cfg.Issuer != "https://id.test" || cfg.Clusters[0].Tokens.IDTokenLifetime != 7*time.Minute || cfg.Clusters[0].Sessions.MaxLifetime != 12*time.Hour {
		t.Errorf("%+v", cfg)
	}
	if cfg.Clusters[1].Sessions.MaxLifetime != 3*time.Hour || cfg.Clusters[1].Sessions.RefreshGrace != 30*time.Second {
		t.Errorf("%+v", cfg.Clusters[1])
	}
	if got := cfg.KeyAlgorithms(); !slices.Equal(got, []string{"ES256", "RS256"}) || cfg.LongestToken() != 7*time.Minute {
		t.Errorf("%v, %s", got, cfg.LongestToken())
	}
}

func TestAuthenticateClient(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		id, secret string
		ok         bool
	}{
		{"kubernetes", "", true}, {"kubernetes", "x", false}, {BuiltinClient, "", true}, {"headlamp", secret, true},
		{"headlamp", "", false}, {"headlamp", secret + "x", false}, {"nobody", "", false}, {"", "", false}, {"headlamp", strings.ToUpper(secret), false},
	} {
		client, err := h.AuthenticateClient(c.id, c.secret)
		if c.ok != (err == nil) || c.ok && client.ID != c.id || !c.ok && !errors.Is(err, ErrInvalidClient) {
			t.Errorf("%q with %q: %v", c.id, c.secret, err)
		}
	}
}

func TestRedirectTable(t *testing.T) {
	for _, c := range []struct {
		registered, uri string
		want            bool
	}{
		{"https://a.test/cb", "https://a.test/cb", true},
		{"https://a.test/cb", "https://a.test/cb/", false},
		{"https://a.test/cb", "https://a.test/cb?x", false},
		{"https://a.test/cb", "https://a.test:443/cb", false},
		{"https://a.test/cb", "https://A.test/cb", false},
		{"https://a.test/cb", "https://a.test/%63b", false},
		{"http://localhost:8000", "http://localhost:8000", true},
		{"http://localhost:8000", "http://localhost:8001", false},
		{"http://localhost:8000", "http://127.0.0.1:8000", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:51004/callback", true},
		{"http://127.0.0.1/callback", "http://127.0.0.1/callback", true},
		{"http://127.0.0.1:1/callback", "http://127.0.0.1/callback", true},
		{"http://[::1]/callback", "http://[::1]:51004/callback", true},
		{"http://127.0.0.1/callback", "http://[::1]:51004/callback", false},
		{"http://127.0.0.1/callback", "https://127.0.0.1:51004/callback", false},
		{"http://127.0.0.1/callback", "http://localhost:51004/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:51004/other", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:51004/callback?x=1", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:51004/callback#x", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:0/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:70000/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:80@evil.test/callback", false},
		{"http://127.0.0.1/callback", "http://x@127.0.0.1:80/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1.evil.test/callback", false},
		{"http://127.0.0.1/callback", "http://127.0.0.1:1234\\@evil.test/callback", false},
		{"http://127.0.0.1/callback", "HTTP://127.0.0.1:80/callback", false},
		{"http://127.0.0.1/callback", "http://0177.0.0.1:80/callback", false},
		{"https://127.0.0.1/callback", "https://127.0.0.1:80/callback", false},
		{"https://a.test/" + strings.Repeat("a", 2048), "https://a.test/" + strings.Repeat("a", 2048), false},
	} {
		if got := redirectMatches(c.registered, c.uri); got != c.want {
			t.Errorf("%s for %s: %v", c.uri, c.registered, got)
		}
	}
}

func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"http://127.0.0.1:80/callback", "http://127.0.0.1:80@evil/callback", "http://[::1]:1/callback", "http://[::1%25x]:1/callback", "http://127.0.0.1:1\t/callback", "com.example:/cb?a", "\x00"} {
		f.Add("http://127.0.0.1/callback", s)
		f.Add("http://[::1]:7/callback", s)
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, registered, uri string) {
		if registered != "" && validateURIs("", []string{registered}) != nil || !redirectMatches(registered, uri) || registered == uri {
			return
		}
		// Different strings that match: only ever a port on loopback.
		r, err := url.Parse(registered)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatalf("%q for %q: %v", uri, registered, err)
		}
		if u.Scheme != "http" || u.Hostname() != "127.0.0.1" && u.Hostname() != "::1" || u.Hostname() != r.Hostname() || u.User != nil {
			t.Errorf("%q leads away from %q", uri, registered)
		}
		r.Host, u.Host = "", ""
		if r.String() != u.String() {
			t.Errorf("%q is another place than %q", uri, registered)
		}
	})
}
