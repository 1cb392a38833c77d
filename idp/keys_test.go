package idp

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/bolt"
	"github.com/tabard-id/tabard/internal/store/storetest"
)

// ring opens keys on a store of their own.
func ring(t testing.TB, st store.Store, c *clock, cfg KeyConfig) *Keys {
	t.Helper()
	if cfg.Algorithms == nil {
		cfg.Algorithms = []string{"ES256"}
	}
	cfg.Retain = 5 * time.Minute
	k, err := OpenKeys(t.Context(), st, cfg, quiet(), c.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func openDisk(t testing.TB, dir string, c *clock) *bolt.Store {
	t.Helper()
	st, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db"), Now: c.Now, SweepInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func published(k *Keys) []string {
	ids := []string{}
	for _, key := range k.Public().Keys {
		ids = append(ids, key.KeyID)
	}
	return ids
}

// signs returns the kid of what k signs now, which must verify.
func signs(t testing.TB, k *Keys, alg string) string {
	t.Helper()
	raw, err := k.Sign(alg, []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Verify(raw); err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
	if err != nil {
		t.Fatal(err)
	}
	return jws.Signatures[0].Header.KeyID
}

func TestKeysPersist(t *testing.T) {
	c, dir := &clock{at: time.Now()}, t.TempDir()
	st := openDisk(t, dir, c)
	k := ring(t, st, c, KeyConfig{Algorithms: []string{"RS256"}})
	first := signs(t, k, "RS256") // at once, on the first start
	old, err := k.Sign("RS256", []byte(`{"n":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range k.Public().Keys {
		if pub, ok := key.Key.(*rsa.PublicKey); !ok || pub.N.BitLen() < 2048 || key.Use != "sig" || key.Algorithm != "RS256" || !key.IsPublic() {
			t.Errorf("published: %+v", key)
		}
	}
	k.Close()
	st.Close()
	st = openDisk(t, dir, c)
	both := ring(t, st, c, KeyConfig{Algorithms: []string{"RS256", "ES256"}}) // one was added
	if signs(t, both, "RS256") != first || signs(t, both, "ES256") == "" || len(published(both)) != 2 {
		t.Errorf("published %v", published(both))
	}
	if payload, _, err := both.Verify(old); err != nil || string(payload) != `{"n":1}` {
		t.Errorf("a token from before the restart: %q, %v", payload, err)
	}
	if _, err := both.Sign("HS256", nil); err == nil {
		t.Error("HS256 signed")
	}
}

func TestKeysRotate(t *testing.T) {
	c := &clock{at: time.Now().UTC().Truncate(time.Second)}
	k := ring(t, openDisk(t, t.TempDir(), c), c, KeyConfig{})
	step := func(d time.Duration) {
		t.Helper()
		c.pass(d)
		if err := k.refresh(t.Context(), "ES256"); err != nil {
			t.Fatal(err)
		}
	}
	first := signs(t, k, "ES256")
	token, err := k.Sign("ES256", []byte("last"))
	if err != nil {
		t.Fatal(err)
	}
	step(29*24*time.Hour - time.Second)
	if got := published(k); !slices.Equal(got, []string{first}) {
		t.Fatalf("published %v before it is due", got)
	}
	step(time.Second) // a day ahead
	ids := published(k)
	if len(ids) != 2 || signs(t, k, "ES256") != first {
		t.Fatalf("published %v, signs %s", ids, signs(t, k, "ES256"))
	}
	step(24*time.Hour - time.Second)
	if signs(t, k, "ES256") != first {
		t.Error("the next key signs early")
	}
	c.pass(time.Second) // nobody has to come by: it signs by its time
	if signs(t, k, "ES256") != ids[1] {
		t.Error("the next key does not sign")
	}
	step(k.cfg.Retain + retireMargin)
	if _, _, err := k.Verify(token); err != nil || len(published(k)) != 2 {
		t.Errorf("the last key went while its tokens may live: %v", err)
	}
	step(time.Second)
	if _, _, err := k.Verify(token); err == nil || !slices.Equal(published(k), ids[1:]) {
		t.Errorf("the last key stays for ever: %v", published(k))
	}
}

// After a long time without a server the next key is still published before it signs.
func TestKeysAfterALongPause(t *testing.T) {
	c := &clock{at: time.Now().UTC()}
	k := ring(t, openDisk(t, t.TempDir(), c), c, KeyConfig{})
	first := signs(t, k, "ES256")
	c.pass(100 * 24 * time.Hour)
	for range 2 {
		if err := k.refresh(t.Context(), "ES256"); err != nil {
			t.Fatal(err)
		}
	}
	if signs(t, k, "ES256") != first || len(published(k)) != 2 {
		t.Fatalf("signs %s, published %v", signs(t, k, "ES256"), published(k))
	}
	c.pass(24*time.Hour - time.Second)
	if signs(t, k, "ES256") != first {
		t.Error("the next key signs early")
	}
	c.pass(time.Second)
	if signs(t, k, "ES256") == first {
		t.Error("the old key goes on")
	}
}

// Two nodes on one store agree on every key, whoever comes first, and a write whose
// outcome was unknown makes no second one.
func TestKeysOfTwoNodes(t *testing.T) {
	c := &clock{at: time.Now().UTC()}
	st := storetest.NewFaulty(openDisk(t, t.TempDir(), c))
	st.After(storetest.Times(1, errBroken))
	var nodes [2]*Keys
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() { nodes[i] = ring(t, st, c, KeyConfig{}) })
	}
	wg.Wait()
	for range 3 {
		if a, b := published(nodes[0]), published(nodes[1]); !slices.Equal(a, b) {
			t.Fatalf("%v and %v", a, b)
		}
		c.pass(29 * 24 * time.Hour)
		all(8, func(i int) {
			if err := nodes[i%2].refresh(t.Context(), "ES256"); err != nil {
				t.Error(err)
			}
		})
		c.pass(25 * time.Hour)
		all(8, func(i int) {
			if err := nodes[i%2].refresh(t.Context(), "ES256"); err != nil {
				t.Error(err)
			}
		})
	}
	if n := len(published(nodes[0])); n > 2 {
		t.Errorf("%d keys", n)
	}
}

func TestKeysThatCannotBeRead(t *testing.T) {
	rsaKey, err := newSigningKey("RS256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wrongKind, err := json.Marshal([]signingKey{rsaKey})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"no JSON": "{", "no key": `[{"kid":"a","notBefore":"2026-01-01T00:00:00Z","pkcs8":"AAAA"}]`, "of another kind": string(wrongKind),
	} {
		c := &clock{at: time.Now()}
		st := openDisk(t, t.TempDir(), c)
		if _, err := st.Txn(t.Context(), nil, []store.Op{{Key: "keys/ES256", Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
		_, err := OpenKeys(t.Context(), st, KeyConfig{Algorithms: []string{"ES256"}}, quiet(), c.Now)
		if err == nil || !strings.Contains(err.Error(), "signing key") {
			t.Errorf("%s: %v", name, err)
		}
	}
	st := storetest.NewFaulty(openDisk(t, t.TempDir(), &clock{at: time.Now()}))
	st.Read(func([]string) error { return errBroken })
	_, err = OpenKeys(t.Context(), st, KeyConfig{Algorithms: []string{"ES256"}}, quiet(), nil)
	wantErr(t, err, errBroken)
}

// The present keys go on while the store does not answer.
func TestKeysGoOnWithoutTheStore(t *testing.T) {
	c := &clock{at: time.Now()}
	st := storetest.NewFaulty(openDisk(t, t.TempDir(), c))
	k := ring(t, st, c, KeyConfig{})
	st.Read(func([]string) error { return errBroken })
	c.pass(40 * 24 * time.Hour)
	wantErr(t, k.refresh(t.Context(), "ES256"), errBroken)
	signs(t, k, "ES256")
}

func TestKeyConfig(t *testing.T) {
	for _, c := range []struct {
		cfg KeyConfig
		ok  bool
	}{
		{KeyConfig{}, true},
		{KeyConfig{RotateEvery: 2 * time.Hour, PublishAhead: time.Hour}, true},
		{KeyConfig{RotateEvery: time.Hour}, false},
		{KeyConfig{RotateEvery: time.Hour, PublishAhead: time.Hour}, false},
		{KeyConfig{RotateEvery: -1}, false},
		{KeyConfig{PublishAhead: -1}, false},
	} {
		if err := c.cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}

// forgeries are tokens that none of our keys signed, though they look like it.
func forgeries(t testing.TB, h *house, good string) map[string]string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	parts := strings.Split(good, ".")
	key := h.keys.Public().Keys[0]
	der, err := x509.MarshalPKIXPublicKey(key.Key)
	if err != nil {
		t.Fatal(err)
	}
	hs := part(map[string]string{"alg": "HS256", "kid": key.KeyID}) + "." + parts[1]
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte(hs))
	own, err := ecdsa.GenerateKey(key.Key.(*ecdsa.PublicKey).Curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger := func(kid string, embed bool) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: own, KeyID: kid}}, &jose.SignerOptions{EmbedJWK: embed})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		jws, err := s.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	return map[string]string{
		"alg none":                 part(map[string]string{"alg": "none", "kid": key.KeyID}) + "." + parts[1] + ".",
		"HS256 by the public key":  hs + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)),
		"another key, our kid":     stranger(key.KeyID, false),
		"another key, another kid": stranger("other", false),
		"another key, embedded":    stranger("", true),
		"other claims":             parts[0] + "." + part(map[string]any{"iss": "https://id.test", "exp": 99999999999, "azp": "tabard", "aud": []string{"tabard"}}) + "." + parts[2],
		"RS256 for our kid":        part(map[string]string{"alg": "RS256", "kid": key.KeyID}) + "." + parts[1] + "." + parts[2],
		"no signature":             parts[0] + "." + parts[1] + ".",
		"two parts":                parts[0] + "." + parts[1],
		"very long":                strings.Repeat("A", maxToken+1),
		"nothing":                  "",
	}
}

func TestVerifyRefusesForgeries(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", BuiltinClient)
	for name, raw := range forgeries(t, h, tokens.IDToken) {
		if _, err := h.verify(raw); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	elsewhere, err := h.keys.Sign("ES256", []byte(`{"iss":"https://other.test","exp":99999999999}`))
	h.must(err)
	if _, err := h.verify(elsewhere); err == nil {
		t.Error("another issuer's token was accepted")
	}
	h.clock.pass(5 * time.Minute)
	if _, err := h.verify(tokens.IDToken); err == nil {
		t.Error("an expired token was accepted")
	}
	if sub, err := h.HintedSub(tokens.IDToken); err != nil || sub != "corp."+aliceID {
		t.Errorf("as a hint: %q, %v", sub, err)
	}
}

func FuzzVerify(f *testing.F) {
	h := newHouse(f)
	tokens, _ := h.login("alice", BuiltinClient)
	for _, raw := range forgeries(f, h, tokens.IDToken) {
		if len(raw) < 10_000 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if c, err := h.verify(raw); err == nil {
			t.Errorf("%q was accepted: %+v", raw, c)
		}
		if _, err := h.Authenticate(t.Context(), raw); err == nil {
			t.Errorf("%q is let in", raw)
		}
	})
}

func TestServerSecret(t *testing.T) {
	c := &clock{at: time.Now()}
	disk := openDisk(t, t.TempDir(), c)
	st := storetest.NewFaulty(disk)
	st.After(storetest.Times(1, errBroken))
	secrets := make([]string, 4)
	all(len(secrets), func(i int) {
		b, err := serverSecret(t.Context(), st, nil)
		if err != nil {
			t.Error(err)
		}
		secrets[i] = string(b)
	})
	if len(slices.Compact(secrets)) != 1 || len(secrets[0]) != 32 {
		t.Error("nodes that start at once have different secrets")
	}
	if _, err := disk.Txn(t.Context(), nil, []store.Op{{Key: serverSecretKey, Value: []byte("short")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := serverSecret(t.Context(), st, nil); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged secret: %v", err)
	}
}

func vault(t testing.TB, keys ...string) *Vault {
	t.Helper()
	lines := make([]string, len(keys))
	for i, k := range keys {
		lines[i] = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(k, 32)))
	}
	v, err := ParseVault(strings.Join(lines, "\n") + "\n")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVault begins in clear, encrypts, changes the key, and loses it.
func TestVault(t *testing.T) {
	c := &clock{at: time.Now()}
	st := openDisk(t, t.TempDir(), c)
	both := []string{"RS256", "ES256"}
	secret, err := serverSecret(t.Context(), st, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := ring(t, st, c, KeyConfig{Algorithms: both})
	ids := published(k)
	k.Close()
	for i, v := range []*Vault{vault(t, "a"), vault(t, "b", "a"), vault(t, "b")} {
		k := ring(t, st, c, KeyConfig{Algorithms: both, Vault: v})
		if got := published(k); !slices.Equal(got, ids) || signs(t, k, "RS256") == "" {
			t.Errorf("%d: published %v, before %v", i, got, ids)
		}
		for _, info := range k.List() {
			if !info.Encrypted || info.State != "current" {
				t.Errorf("%d: %+v", i, info)
			}
		}
		if again, err := serverSecret(t.Context(), st, v); err != nil || string(again) != string(secret) {
			t.Errorf("%d: the server's secret: %v", i, err)
		}
		k.Close()
	}
	_, err = st.Dump(t.Context(), func(e store.Entry) error {
		if strings.Contains(string(e.Value), "pkcs8") || strings.Contains(string(e.Value), string(secret)) {
			t.Errorf("%s is in clear", e.Key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*Vault{nil, vault(t, "a")} {
		_, err := OpenKeys(t.Context(), st, KeyConfig{Algorithms: both, Vault: v}, quiet(), c.Now)
		if err == nil || !strings.Contains(err.Error(), "put that key back") {
			t.Errorf("without the key: %v", err)
		}
		if _, err := serverSecret(t.Context(), st, v); err == nil || !strings.Contains(err.Error(), "put that key back") {
			t.Errorf("the server's secret without the key: %v", err)
		}
	}
}

func TestParseVault(t *testing.T) {
	good := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	for text, ok := range map[string]bool{
		"": true, " \n": true, good: true, good + "\n" + good: true, good + "\r\n": true,
		"secret": false, good[:40]: false, good + "\nx": false, strings.Repeat(good+"\n", maxVaultKeys+1): false,
	} {
		if v, err := ParseVault(text); (err == nil) != ok || err == nil && (v == nil) != (strings.TrimSpace(text) == "") {
			t.Errorf("%.20q: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the key: %v", err)
		}
	}
}

// TestVaultDamage changes each byte of a box, and its name.
func TestVaultDamage(t *testing.T) {
	v := vault(t, "a")
	b, err := v.seal("name", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := v.open("name", b); err != nil || string(plain) != "plain" {
		t.Fatal(plain, err)
	}
	if _, err := v.open("other", b); err == nil {
		t.Error("opened under another name")
	}
	for i := range b.Box {
		bad := box{b.By, slices.Clone(b.Box)}
		bad.Box[i] ^= 1
		if _, err := v.open("name", bad); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
	}
	if _, err := v.open("name", box{b.By, []byte("short")}); err == nil {
		t.Error("opened a short box")
	}
}

// TestKeysEmergency removes every key at once, and another node follows by its watch.
func TestKeysEmergency(t *testing.T) {
	c := &clock{at: time.Now()}
	st := openDisk(t, t.TempDir(), c)
	here, there := ring(t, st, c, KeyConfig{}), ring(t, st, c, KeyConfig{})
	old, err := here.Sign("ES256", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	before := published(here)
	if err := here.Rotate(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	after := published(here)
	if len(after) != 1 || after[0] == before[0] || signs(t, here, "ES256") != after[0] {
		t.Errorf("published %v, before %v", after, before)
	}
	for !slices.Equal(published(there), after) { // until the test's deadline
		time.Sleep(5 * time.Millisecond)
	}
	for _, k := range []*Keys{here, there} {
		if _, _, err := k.Verify(old); err == nil {
			t.Error("a token of the removed key is good")
		}
	}
}

// TestKeysEmergencyOfOtherAlgorithms: a ring that the configuration does not use now
// would come back, stolen keys first, when it does again.
func TestKeysEmergencyOfOtherAlgorithms(t *testing.T) {
	c := &clock{at: time.Now()}
	st := openDisk(t, t.TempDir(), c)
	was := ring(t, st, c, KeyConfig{Algorithms: []string{"ES256", "RS256"}})
	stolen, err := was.Sign("RS256", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	was.Close()
	if err := ring(t, st, c, KeyConfig{Algorithms: []string{"ES256"}}).Rotate(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ring(t, st, c, KeyConfig{Algorithms: []string{"ES256", "RS256"}}).Verify(stolen); err == nil {
		t.Error("a token of a key from before the emergency is good")
	}
}

// TestKeysEmergencyMeetsRefresh: a refresh that has read the old keys does not put them
// back to use after the emergency took them away.
func TestKeysEmergencyMeetsRefresh(t *testing.T) {
	c := &clock{at: time.Now()}
	st := &slowGet{Store: openDisk(t, t.TempDir(), c), read: make(chan struct{}), goOn: make(chan struct{})}
	k := ring(t, st, c, KeyConfig{})
	old, err := k.Sign("ES256", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	k.Close() // of what refreshes, none but the one below is left
	st.armed.Store(true)
	refreshed, rotated := make(chan error, 1), make(chan error, 1)
	go func() { refreshed <- k.refresh(t.Context(), "ES256") }()
	<-st.read
	go func() { rotated <- k.Rotate(t.Context(), true) }()
	select {
	case err = <-rotated: // ahead of the refresh, which has read what was before
		close(st.goOn)
	case <-time.After(500 * time.Millisecond): // it waits its turn
		close(st.goOn)
		err = <-rotated
	}
	if err := errors.Join(err, <-refreshed); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Verify(old); err == nil {
		t.Error("a token of the removed key is good")
	}
}

// slowGet answers the first Get after it was armed when it may go on.
type slowGet struct {
	store.Store
	armed      atomic.Bool
	read, goOn chan struct{}
}

func (s *slowGet) Get(ctx context.Context, key string) (store.Entry, error) {
	e, err := s.Store.Get(ctx, key)
	if s.armed.CompareAndSwap(true, false) {
		close(s.read)
		<-s.goOn
	}
	return e, err
}

// TestKeysRotateEarly publishes the next key now and signs with it when API servers
// know it; asked twice it does so once.
func TestKeysRotateEarly(t *testing.T) {
	c := &clock{at: time.Now().UTC().Truncate(time.Second)}
	k := ring(t, openDisk(t, t.TempDir(), c), c, KeyConfig{})
	first := signs(t, k, "ES256")
	for range 2 {
		if err := k.Rotate(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	got := k.List()
	if len(got) != 2 || got[0].State != "current" || got[1].State != "next" || !got[1].Signs.Equal(c.Now().Add(24*time.Hour)) || signs(t, k, "ES256") != first {
		t.Fatalf("keys %+v", got)
	}
	c.pass(24 * time.Hour)
	if got := k.List(); signs(t, k, "ES256") != got[1].ID || got[0].State != "retired" {
		t.Errorf("keys %+v", got)
	}
}
