package idp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/tabard-id/tabard/groups"
)

func TestMembershipsEnd(t *testing.T) {
	h := newHouse(t)
	now := h.Now()
	bob := "corp." + bobID
	h.member("lasting", groups.KindPerson, bob, time.Time{})
	h.member("hour", groups.KindPerson, bob, now.Add(time.Hour))
	h.member("hour2", groups.KindPerson, bob, now.Add(2*time.Hour))
	h.member("hour2", groups.KindDirectoryGroup, "corp:k8s-x", now.Add(3*time.Hour))
	h.corp.change("bob", func(e *entry) { e.groups = []string{"corp:k8s-x"} })
	tokens, _ := h.login("bob", "kubernetes")
	step := func(d time.Duration, groups string, life time.Duration) {
		t.Helper()
		h.clock.pass(d)
		var err error
		tokens, err = h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
		h.must(err)
		if got := strings.Join(h.groupsIn(tokens.IDToken), " "); got != groups {
			t.Errorf("after %s: groups %q, want %q", h.Now().Sub(now), got, groups)
		}
		c := h.claims(tokens.IDToken)
		if got := time.Duration(c["exp"].(float64)-c["iat"].(float64)) * time.Second; got != life || !tokens.Expires.Equal(h.Now().Add(life)) {
			t.Errorf("after %s: lives %s, want %s", h.Now().Sub(now), got, life)
		}
	}
	step(0, "corp:k8s-x hour hour2 lasting", 5*time.Minute)
	step(57*time.Minute, "corp:k8s-x hour hour2 lasting", 3*time.Minute)
	step(2*time.Minute, "corp:k8s-x hour hour2 lasting", time.Minute) // just enough
	step(time.Second, "corp:k8s-x hour2 lasting", 5*time.Minute)      // less than minLifetime
	step(2*time.Minute, "corp:k8s-x hour2 lasting", 5*time.Minute)    // ended
	step(56*time.Minute, "corp:k8s-x hour2 lasting", 5*time.Minute)   // of two ends the later
	_, err := h.local.Remove(h.ctx, groups.Actor{Operator: true}, "lasting", 0, groups.KindPerson, bob)
	h.must(err)
	step(0, "corp:k8s-x hour2", 5*time.Minute)
}

func TestRequiredGroupBoundsTheToken(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Clusters[2].Groups.Include = []string{"nothing"} })
	h.member("vault-users", groups.KindPerson, "corp."+bobID, h.Now().Add(3*time.Minute))
	tokens, _ := h.login("bob", "vault")
	if got := h.groupsIn(tokens.IDToken); len(got) != 0 {
		t.Errorf("groups %q", got)
	}
	if !tokens.Expires.Equal(h.Now().Add(3 * time.Minute)) {
		t.Errorf("it outlives the membership that let bob in: %s", tokens.Expires.Sub(h.Now()))
	}
	h.clock.pass(2*time.Minute + time.Second)
	_, err := h.Refresh(h.ctx, h.client("vault"), tokens.RefreshToken)
	wantErr(t, err, ErrNoAccess)
}

func TestEntitle(t *testing.T) {
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	ends := map[string]time.Time{"five": at(5), "nine": at(9)}
	in := []string{"corp:a", "five", "free", "nine"}
	for _, c := range []struct {
		require []string
		include []string
		groups  string
		ends    time.Time
		err     error
	}{
		{nil, nil, "corp:a five free nine", at(5), nil},
		{nil, []string{"corp:*", "f*"}, "corp:a five free", at(5), nil},
		{nil, []string{"free", "corp:*"}, "corp:a free", time.Time{}, nil},
		{[]string{"nine"}, []string{"free"}, "free", at(9), nil},
		{[]string{"five", "nine"}, []string{"free"}, "free", at(9), nil},
		{[]string{"five", "free"}, []string{"free"}, "free", time.Time{}, nil},
		{[]string{"nine"}, []string{"five"}, "five", at(5), nil},
		{[]string{"corp:a"}, []string{}, "", time.Time{}, nil},
		{[]string{"absent"}, nil, "", time.Time{}, ErrNoAccess},
	} {
		client := &Client{rules: &ClusterConfig{RequireGroups: c.require, Groups: GroupFilter{Include: c.include}}}
		e, err := client.entitle(in, ends, []string{"corp:"})
		if !errors.Is(err, c.err) || strings.Join(e.groups, " ") != c.groups || !e.ends.Equal(c.ends) || err == nil && e.groups == nil {
			t.Errorf("require %v, include %v: %v until %v, %v", c.require, c.include, e.groups, e.ends, err)
		}
	}
}

func TestMergeGroups(t *testing.T) {
	prefixes := []string{"corp:", "lab:"}
	local := func(names ...string) (out []groups.Effective) {
		for _, n := range names {
			out = append(out, groups.Effective{Group: n})
		}
		return out
	}
	for _, c := range []struct {
		dir            []string
		local          []groups.Effective
		names, dropped string
	}{
		{nil, nil, "", ""},
		{[]string{"corp:b", "corp:a", "corp:b"}, local("z", "a"), "a corp:a corp:b z", ""},
		{[]string{"system:masters", "corp:a"}, nil, "corp:a", "system:masters"},
		{[]string{"unprefixed"}, nil, "", "unprefixed"},
		{nil, local("system:masters", " System:masters", "corp:admins", "lab:x", ""), "", "system:masters, System:masters,corp:admins,lab:x,"},
		{[]string{"corp:a\nsystem:masters"}, nil, "", "corp:a\nsystem:masters"},
	} {
		m, dropped := mergeGroups(c.dir, c.local, prefixes, time.Now())
		if m.names == nil || strings.Join(m.names, " ") != c.names || strings.Join(dropped, ",") != c.dropped {
			t.Errorf("%q and %v: %q without %q", c.dir, c.local, m.names, dropped)
		}
	}
}

func TestFilterTable(t *testing.T) {
	prefixes := []string{"corp:", "lab:"}
	names := []string{"corp:k8s-a", "corp:other", "lab:k8s-a", "local", "k8s-a"}
	for _, c := range []struct {
		include, exclude []string
		want             string
	}{
		{nil, nil, "corp:k8s-a corp:other lab:k8s-a local k8s-a"},
		{[]string{}, nil, ""},
		{[]string{"*"}, nil, "local k8s-a"},
		{[]string{"corp:*"}, nil, "corp:k8s-a corp:other"},
		{[]string{"corp:k8s-*", "*"}, nil, "corp:k8s-a local k8s-a"},
		{[]string{"*:k8s-a"}, nil, ""}, // without a directory's prefix it means local groups
		{[]string{"c*"}, nil, ""},
		{[]string{"k8s-?"}, nil, "k8s-a"},
		{nil, []string{"corp:*"}, "lab:k8s-a local k8s-a"},
		{nil, []string{"*"}, "corp:k8s-a corp:other lab:k8s-a"},
		{[]string{"corp:*"}, []string{"corp:k8s-a"}, "corp:other"},
		{[]string{"corp:k8s-a[]"}, nil, ""},
	} {
		f := GroupFilter{Include: c.include, Exclude: c.exclude}
		if got := strings.Join(f.apply(names, prefixes), " "); got != c.want {
			t.Errorf("include %q, exclude %q: %q, want %q", c.include, c.exclude, got, c.want)
		}
	}
}

func TestClaimsOfAnIDToken(t *testing.T) {
	h := newHouse(t)
	h.hire(h.corp, "plain", "00000000-0000-4000-8000-000000000020")
	h.corp.entries["plain"].Email = ""
	tokens, _ := h.login("alice", "headlamp")
	c := h.claims(tokens.IDToken)
	want := map[string]any{
		"iss": "https://id.test", "sub": "corp." + aliceID, "azp": "headlamp", "acr": acrPassword,
		"preferred_username": "alice", "name": "Name of alice", "email": "alice@corp.test", "email_verified": true, "nonce": "nonce-1",
		"exp": float64(h.Now().Add(5 * time.Minute).Unix()), "iat": float64(h.Now().Unix()), "nbf": float64(h.Now().Add(-time.Minute).Unix()),
		"auth_time": float64(h.Now().Unix()), "sid": sidOf(tokens.RefreshToken),
	}
	for k, v := range want {
		if c[k] != v {
			t.Errorf("%s is %v, want %v", k, c[k], v)
		}
	}
	if fmt.Sprint(c["aud"], c["amr"], c["groups"]) != "[headlamp kubernetes] [pwd] [corp:k8s-admins]" || len(c["jti"].(string)) < 20 {
		t.Errorf("claims %v", c)
	}
	for name := range c {
		if !slices.Contains(h.ClaimNames(), name) {
			t.Errorf("claim %s is not in the discovery document", name)
		}
	}
	// Groups are an array for everybody, at the built-in client too.
	for _, client := range []string{"kubernetes", BuiltinClient} {
		tokens, _ := h.login("plain", client)
		c := h.claims(tokens.IDToken)
		if len(h.groupsIn(tokens.IDToken)) != 0 {
			t.Errorf("groups %v", c["groups"])
		}
		if _, there := c["email_verified"]; there {
			t.Error("email_verified without an address")
		}
		info, err := h.UserInfo(h.ctx, tokens.AccessToken)
		h.must(err)
		if g, ok := info["groups"].([]string); !ok || g == nil {
			t.Errorf("userinfo's groups are %#v", info["groups"])
		}
	}
}

func TestClaimNamesOfACluster(t *testing.T) {
	h := newHouse(t, func(c *Config) {
		c.Clusters[0].Tokens = TokenConfig{UsernameClaim: "upn", GroupsClaim: "roles"}
	})
	tokens, _ := h.login("alice", "kubernetes")
	c := h.claims(tokens.IDToken)
	if c["upn"] != "alice" || fmt.Sprint(c["roles"]) != "[corp:k8s-admins]" || c["groups"] != nil || c["preferred_username"] != "alice" {
		t.Errorf("claims %v", c)
	}
}

func TestNoTokenWithAReservedUsername(t *testing.T) {
	h := newHouse(t)
	tokens, _ := h.login("alice", "kubernetes")
	for _, name := range []string{"system:admin", "System:Admin", " system:x", "", "a\nb"} {
		h.corp.change("alice", func(e *entry) { e.Username = name })
		_, err := h.Refresh(h.ctx, h.client("kubernetes"), tokens.RefreshToken)
		wantErr(t, err, ErrNoAccess)
	}
}

func TestTokenTooLarge(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Tokens.SigningAlgorithm = "RS256" })
	many := func(n int) {
		h.corp.change("alice", func(e *entry) {
			e.groups = nil
			for i := range n {
				e.groups = append(e.groups, fmt.Sprintf("corp:k8s-%040d", i))
			}
		})
	}
	code, _ := h.code("alice", "kubernetes")
	many(1000)
	a, err := h.Redeem(h.ctx, h.client("kubernetes"), code, redirect, verifier) // as of the sign-in
	h.must(err)
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), a.RefreshToken)
	wantErr(t, err, ErrTooLarge)
	for _, want := range []string{"1000 groups", "1000 of corp:* with 52000 bytes (corp:k8s-" + strings.Repeat("0", 40) + ", ", "…", "clusters[prod].groups.include"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if said := h.trail.said("token.issue"); !slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "denied token too large") }) {
		t.Errorf("the trail says %q", said)
	}
	for n := 250; n < 300; n++ { // around the limit: what is made keeps it
		many(n)
		got, err := h.Refresh(h.ctx, h.client("kubernetes"), a.RefreshToken)
		if err != nil {
			wantErr(t, err, ErrTooLarge)
			break
		}
		a.RefreshToken = got.RefreshToken
		if len(got.IDToken) > 16<<10 {
			t.Fatalf("a token of %d bytes", len(got.IDToken))
		}
	}
	many(1)
	_, err = h.Refresh(h.ctx, h.client("kubernetes"), a.RefreshToken)
	wantErr(t, err, nil)
}

// TestLargeTokenWarns: once for a session and client in the log, each time in the
// trail, and where somebody asks why.
func TestLargeTokenWarns(t *testing.T) {
	h := newHouse(t)
	var log strings.Builder
	logger := logrus.New()
	logger.SetOutput(&log)
	h.Service.Log = logger
	h.corp.change("alice", func(e *entry) {
		for i := range 100 {
			e.groups = append(e.groups, fmt.Sprintf("corp:k8s-%070d", i))
		}
	})
	h.member("oncall", groups.KindPerson, "corp."+aliceID, time.Time{})
	a, _ := h.login("alice", "kubernetes")
	if len(a.IDToken) <= largeToken {
		t.Fatalf("%d bytes are not large", len(a.IDToken))
	}
	_, err := h.Refresh(h.ctx, h.client("kubernetes"), a.RefreshToken)
	h.must(err)
	const want = "101 of corp:* with 8218 bytes (corp:k8s-"
	if strings.Count(log.String(), want) != 1 || !strings.Contains(log.String(), "1 of local groups with 9 bytes (oncall): narrow clusters[prod].groups.include") {
		t.Errorf("the log says %s", log.String())
	}
	n := 0
	for _, e := range h.trail.events {
		if e.Act == "token.issue" && e.Detail["size"] != "" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d events tell the size", n)
	}
	x, err := h.Explain(h.ctx, "alice", "prod")
	h.must(err)
	if !strings.Contains(x.SizeAdvice, want) || x.Refused != "" {
		t.Errorf("explained: %q, %q", x.SizeAdvice, x.Refused)
	}
	if x, err = h.Explain(h.ctx, "bob", "prod"); err != nil || x.SizeAdvice != "" {
		t.Errorf("bob: %q, %v", x.SizeAdvice, err)
	}
}
