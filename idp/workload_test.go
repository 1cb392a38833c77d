package idp

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tabard-id/tabard/internal/audit"
)

func (w *workshop) own(id string) map[string]any {
	w.t.Helper()
	c, err := w.Client(id)
	w.must(err)
	got, err := w.ClientToken(w.ctx, c)
	w.must(err)
	if got.RefreshToken != "" || got.AccessToken != "" {
		w.t.Errorf("more than one token: %+v", got)
	}
	payload, _, err := w.keys.Verify(got.IDToken)
	w.must(err)
	out := map[string]any{"raw": got.IDToken}
	w.must(json.Unmarshal(payload, &out))
	return out
}

func TestClientToken(t *testing.T) {
	w := newWorkshop(t)
	got, now := w.own("ci"), float64(w.Now().Unix())
	want := map[string]any{
		"iss": "https://id.test", "sub": "client:ci", "aud": []any{"ci", "kubernetes"}, "azp": "ci", "jti": got["jti"], "raw": got["raw"],
		"iat": now, "nbf": now - 60, "exp": now + 300, "preferred_username": "client:ci", "groups": []any{"a", "ci-deployers"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	event := w.trail.events[len(w.trail.events)-1]
	if event.Act != "token.issue" || event.Outcome != audit.Done || event.Who != "client:ci" || event.Client != "ci" || event.Cluster != "prod" || event.JTI != got["jti"] || event.Detail["assertion"] != "ci" || event.Session != "" {
		t.Errorf("trail: %+v", event)
	}
	w.own("argocd")
	if event := w.trail.events[len(w.trail.events)-1]; event.Detail["assertion"] != podSubject {
		t.Errorf("trail: %+v", event)
	}
	w.trail.down = errors.New("disk is full")
	c, err := w.Client("ci")
	w.must(err)
	if got, err := w.ClientToken(w.ctx, c); err == nil || got.IDToken != "" {
		t.Error("a token that is not in the trail")
	}
	w.trail.down = nil
	for _, id := range []string{"headlamp", "web", "kubernetes", BuiltinClient} {
		c, err := w.Client(id)
		w.must(err)
		if _, err := w.ClientToken(w.ctx, c); !errors.Is(err, ErrNoAccess) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// A client's own token is for API servers: here it opens nothing.
func TestClientTokenOpensNothing(t *testing.T) {
	w := newWorkshop(t)
	raw := w.own("ci")["raw"].(string)
	ci, err := w.Client("ci")
	w.must(err)
	if _, err := w.Authenticate(w.ctx, raw); !errors.Is(err, ErrNoSession) {
		t.Errorf("the API: %v", err)
	}
	if _, err := w.UserInfo(w.ctx, raw); !errors.Is(err, ErrNoSession) {
		t.Errorf("userinfo: %v", err)
	}
	if _, err := w.Exchange(w.ctx, ci, raw, "kubernetes"); !errors.Is(err, ErrInvalidGrant) {
		t.Errorf("exchange: %v", err)
	}
	if _, err := w.Refresh(w.ctx, ci, raw); !errors.Is(err, ErrInvalidGrant) {
		t.Errorf("refresh: %v", err)
	}
	if err := w.Revoke(w.ctx, ci, raw); err != nil {
		t.Errorf("revoke: %v", err)
	}
	in, err := w.Introspect(w.ctx, ci, raw)
	if err != nil || !in.Active || in.Subject != "client:ci" || in.Username != "client:ci" || in.Client != "ci" || in.ID == "" {
		t.Errorf("introspection: %+v, %v", in, err)
	}
	other, err := w.Client("other")
	w.must(err)
	if in, err := w.Introspect(w.ctx, other, raw); err != nil || in.Active {
		t.Errorf("introspection by another: %+v, %v", in, err)
	}
	w.clock.pass(5 * time.Minute)
	if in, err := w.Introspect(w.ctx, ci, raw); err != nil || in.Active {
		t.Errorf("introspection of an old one: %+v, %v", in, err)
	}
}

// No person can have the name of a client.
func TestClientNamesAreReserved(t *testing.T) {
	w := newWorkshop(t)
	for _, name := range []string{"client:ci", "Client:ci", " client:x", "CLIENT:"} {
		w.corp.change("alice", func(e *entry) { e.Username = name })
		a, err := w.Authorize(w.ctx, w.request("kubernetes"), "", "")
		w.must(err)
		req, err := w.OpenRequest(a.Sealed, a.Binding)
		w.must(err)
		if _, err := w.SignIn(w.ctx, Credentials{Login: "alice", Password: password}, req); !errors.Is(err, ErrNoAccess) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, c := range []idClaims{
		{Subject: "client:ci", AuthorizedParty: "ci", SessionID: "x"}, {Subject: "client:other", AuthorizedParty: "ci"}, {Subject: "corp." + aliceID, AuthorizedParty: "ci"},
		{Subject: "client:headlamp", AuthorizedParty: "headlamp"}, {Subject: "client:kubernetes", AuthorizedParty: "kubernetes"}, {Subject: "client:gone", AuthorizedParty: "gone"}, {},
	} {
		if w.ownerOf(c) != nil {
			t.Errorf("%+v is a client's own", c)
		}
	}
}

func TestClientProofMistakes(t *testing.T) {
	ec, p384 := newSigner(t, "a", jose.ES256), newSigner(t, "b", jose.ES384)
	good := jwks(t, ec)
	key := func(k jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	account := func(change func(*ServiceAccountConfig)) ServiceAccountConfig {
		a := ServiceAccountConfig{Issuer: "https://k.test", JWKS: good, Subject: podSubject}
		change(&a)
		return a
	}
	for name, c := range map[string]struct {
		cc   ClientConfig
		path string
		says string
	}{
		"right":            {ClientConfig{JWKS: good, Groups: []string{"ci"}}, "", ""},
		"right account":    {ClientConfig{ServiceAccount: account(func(*ServiceAccountConfig) {})}, "", ""},
		"two proofs":       {ClientConfig{JWKS: good, Secret: "x"}, "clients[0]", "exclude each other"},
		"groups by secret": {ClientConfig{Secret: "x", Groups: []string{"ci"}}, "clients[0].groups", "needs jwksFile"},
		"groups of nobody": {ClientConfig{Groups: []string{"ci"}}, "clients[0].groups", "needs jwksFile"},
		"file not read":    {ClientConfig{JWKSFile: "x", Groups: []string{"ci"}}, "clients[0].jwksFile", "not a JWKS"},
		"no JSON":          {ClientConfig{JWKS: "x"}, "clients[0].jwksFile", "not a JWKS"},
		"no keys":          {ClientConfig{JWKS: `{"keys": []}`}, "clients[0].jwksFile", "0 keys"},
		"private key":      {ClientConfig{JWKS: key(jose.JSONWebKey{Key: ec.key})}, "clients[0].jwksFile", "key 1 is a private key"},
		"shared secret":    {ClientConfig{JWKS: key(jose.JSONWebKey{Key: []byte("0123456789abcdef")})}, "clients[0].jwksFile", "shared secret"},
		"another curve":    {ClientConfig{JWKS: jwks(t, p384)}, "clients[0].jwksFile", "P-256"},
		"another alg":      {ClientConfig{JWKS: key(jose.JSONWebKey{Key: ec.key.Public(), Algorithm: "ES384"})}, "clients[0].jwksFile", "another algorithm"},
		"for encryption":   {ClientConfig{JWKS: key(jose.JSONWebKey{Key: ec.key.Public(), Use: "enc"})}, "clients[0].jwksFile", "not for signatures"},
		"the same kid":     {ClientConfig{JWKS: jwks(t, ec, ec)}, "clients[0].jwksFile", "kid of its own"},
		"system group":     {ClientConfig{JWKS: good, Groups: []string{"ci", "System:masters"}}, "clients[0].groups[1]", "may not be in a token"},
		"directory group":  {ClientConfig{JWKS: good, Groups: []string{"corp:ops"}}, "clients[0].groups[0]", "like a directory's"},
		"empty group":      {ClientConfig{JWKS: good, Groups: []string{""}}, "clients[0].groups[0]", "may not be in a token"},
		"filtered group":   {ClientConfig{Cluster: "dev", JWKS: good, Groups: []string{"ci"}}, "clients[0].groups[0]", "filter of cluster dev"},
		"required group":   {ClientConfig{Cluster: "vault", JWKS: good, Groups: []string{"ci"}}, "clients[0].groups", "requireGroups: vault-users"},
		"too many":         {ClientConfig{JWKS: good, Groups: strings.Split(strings.Repeat("g ", 50)+"g", " ")}, "clients[0].groups", "51 groups"},
		"no subject":       {ClientConfig{ServiceAccount: account(func(a *ServiceAccountConfig) { a.Subject = "argocd" })}, "clients[0].serviceAccount.subject", "NAMESPACE:NAME"},
		"no issuer":        {ClientConfig{ServiceAccount: account(func(a *ServiceAccountConfig) { a.Issuer = "" })}, "clients[0].serviceAccount.issuer", "missing"},
		"no keys of pods":  {ClientConfig{ServiceAccount: account(func(a *ServiceAccountConfig) { a.JWKS = "" })}, "clients[0].serviceAccount.jwksFile", "missing"},
		"API's audience":   {ClientConfig{ServiceAccount: account(func(a *ServiceAccountConfig) { a.Audience = a.Issuer })}, "clients[0].serviceAccount.audience", "by default"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Clusters[1].Groups.Include = []string{"corp:*"}
			if c.cc.Cluster == "" {
				c.cc.Cluster = "prod"
			}
			c.cc.ID = "ci"
			cfg.Clients = []ClientConfig{c.cc}
			cfg.SetDefaults()
			err := cfg.Validate()
			if c.path == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if got := fmt.Sprint(err); !strings.HasPrefix(got, c.path+": ") || !strings.Contains(got, c.says) || strings.Contains(got, "\n") {
				t.Errorf("%s, want %s: %s", got, c.path, c.says)
			}
		})
	}
}
