package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/testenv"
)

// realCluster is an API server with the accounts that `tabard cluster rbac` makes.
type realCluster struct {
	*testenv.KubeAPIServer
	api APIServerConfig
}

func (c *realCluster) token(t testing.TB, namespace, account string, more ...string) string {
	t.Helper()
	return strings.TrimSpace(c.Kubectl(t, append([]string{"create", "token", account, "-n", namespace}, more...)...))
}

// with is the API server by another account.
func (c *realCluster) with(t testing.TB, namespace, account string) APIServerConfig {
	api := c.api
	api.TokenFile = fileWith(t, c.token(t, namespace, account))
	return api
}

// robotRights let an account be one of each.
const robotRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: some}
rules:
- {apiGroups: [""], resources: [users], resourceNames: [bob, "system:admin", "a/b"], verbs: [impersonate]}
- {apiGroups: [""], resources: [groups], resourceNames: [devs, "x,system:masters"], verbs: [impersonate]}
- {apiGroups: [authentication.k8s.io], resources: [uids], resourceNames: [u-1], verbs: [impersonate]}
- {apiGroups: [authentication.k8s.io], resources: [userextras/scopes], resourceNames: [view], verbs: [impersonate]}
- {apiGroups: [authentication.k8s.io], resources: [userextras/acme.com/any], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: some, namespace: team-a}
rules:
- {apiGroups: [""], resources: [serviceaccounts], resourceNames: [deployer], verbs: [impersonate]}
`

// TestRealCluster has a real kube-apiserver judge.
func TestRealCluster(t *testing.T) {
	k := testenv.StartKubeAPIServer(t, testenv.KubeAPIServerOptions{})
	c := &realCluster{k, APIServerConfig{URL: k.URL, CA: fileText(t, k.CAFile)}}
	k.Kubectl(t, "apply", "--server-side", "-f", "../deploy/rbac/proxy.yaml", "-f", "../deploy/rbac/passthrough.yaml")
	for _, line := range []string{
		"create namespace team-a", "create serviceaccount robot", "create serviceaccount boss", "create serviceaccount nobody", "create serviceaccount deployer -n team-a",
		"apply -f " + fileWith(t, robotRights),
		"create clusterrolebinding some --clusterrole=some --serviceaccount=default:robot", "create rolebinding some -n team-a --role=some --serviceaccount=default:robot",
		"create clusterrolebinding boss --clusterrole=cluster-admin --serviceaccount=default:boss",
	} {
		k.Kubectl(t, strings.Fields(line)...)
	}
	c.api = c.with(t, "kube-system", "tabard-proxy")
	c.knowsTheRights(t)
	t.Run("lost headers", c.lostHeaders)
	t.Run("as", c.sameAsTheAPIServer)
	t.Run("passthrough", c.passesThrough)
	t.Run("examine", c.examined)
}

// knowsTheRights waits until the API server has heard of all that was bound: it watches
// roles and bindings of each kind, in their order.
func (c *realCluster) knowsTheRights(t *testing.T) {
	t.Helper()
	u := idleUpstream(t, c.api)
	c.await(t, "<nil> <nil> <nil>", func() string {
		robot, boss := impersonation{User: "system:serviceaccount:default:robot"}, impersonation{User: "system:serviceaccount:default:boss"}
		return fmt.Sprint(u.mayBe(t.Context(), robot, impersonation{User: "bob"}),
			u.mayBe(t.Context(), robot, impersonation{User: "system:serviceaccount:team-a:deployer"}), u.mayBe(t.Context(), boss, impersonation{User: "bob"}))
	})
}

// lostHeaders: a request of the account as itself, which the proxy never sends, may do
// nothing.
func (c *realCluster) lostHeaders(t *testing.T) {
	u := idleUpstream(t, c.api)
	for path, want := range map[string]int{
		"/api/v1/pods": 403, "/api/v1/namespaces/team-a/pods": 403, "/api/v1/namespaces/kube-system/secrets": 403, "/api/v1/nodes": 403, "/metrics": 403,
		"/api/v1/namespaces/team-a/pods/x/exec?command=sh": 403, "/apis/rbac.authorization.k8s.io/v1/clusterroles": 403, "/version": 200, "/api": 200,
	} {
		for _, http1 := range []bool{false, true} {
			res, err := send(t, &wire{u: u, plain: true, http1: http1}, u, path, "")
			if code := drop(t, res, err); code != want {
				t.Errorf("GET %s as the account itself: %d, want %d", path, code, want)
			}
		}
		if _, err := send(t, u.transport(), u, path, ""); !errors.Is(err, errNotImpersonating) {
			t.Errorf("GET %s: %v", path, err)
		}
	}
	who, err := (&examination{u: u}).whoAmI(t.Context(), u.transport(), http.Header{"Impersonate-User": {"alice"}, "Impersonate-Group": {"a,b", "ü"}})
	if err != nil || who.Username != "alice" || !slices.Equal(who.Groups, []string{"a,b", "ü", "system:authenticated"}) {
		t.Errorf("with headers: %+v, %v", who, err)
	}
}

// sameAsTheAPIServer: who somebody may be through the proxy is who they may be without it.
func (c *realCluster) sameAsTheAPIServer(t *testing.T) {
	u := idleUpstream(t, c.api)
	wants := map[string]impersonation{
		"bob": {User: "bob"}, "alice": {User: "alice"}, "nobody": {User: "system:anonymous"}, "a user with a name like a path": {User: "a/b"}, "system:admin": {User: "system:admin"},
		"devs": {User: "bob", Groups: []string{"devs"}}, "devs twice": {User: "bob", Groups: []string{"devs", "devs"}},
		"masters": {User: "bob", Groups: []string{"devs", "system:masters"}}, "masters by a comma": {User: "bob", Groups: []string{"x,system:masters"}},
		"authenticated": {User: "bob", Groups: []string{"system:authenticated"}},
		"uid":           {User: "bob", UID: "u-1"}, "another uid": {User: "bob", UID: "u-2"},
		"extra": {User: "bob", Extra: map[string][]string{"scopes": {"view"}}}, "another value": {User: "bob", Extra: map[string][]string{"scopes": {"view", "edit"}}},
		"any value": {User: "bob", Extra: map[string][]string{"acme.com/any": {"1", "2"}}}, "another extra": {User: "bob", Extra: map[string][]string{"scope": {"view"}}},
		"all":     {User: "bob", UID: "u-1", Groups: []string{"devs"}, Extra: map[string][]string{"scopes": {"view"}, "acme.com/any": {"ü"}}},
		"account": {User: "system:serviceaccount:team-a:deployer"}, "account elsewhere": {User: "system:serviceaccount:default:deployer"},
		"account with groups": {User: "system:serviceaccount:team-a:deployer", Groups: []string{"devs"}}, "no account": {User: "system:serviceaccount:team-a"},
		"node": {User: "system:node:n1"},
	}
	said := map[bool]int{}
	for _, account := range []string{"robot", "boss", "nobody"} {
		who := impersonation{User: "system:serviceaccount:default:" + account, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}}
		own := "Bearer " + c.token(t, "default", account)
		for name, want := range wants {
			h := http.Header{"Authorization": {own}}
			want.set(h)
			_, err := (&examination{u: u}).whoAmI(t.Context(), u.foreign(), h)
			var refused *statusError
			if errors.As(err, &refused) && refused.code == http.StatusForbidden && !strings.Contains(refused.message, "cannot impersonate") {
				err = nil // they were somebody who may not ask who they are
			}
			if err != nil && (refused == nil || refused.code != http.StatusForbidden) {
				t.Fatalf("%s as %s: %v", account, name, err)
			}
			var denied *asDenied
			got := u.mayBe(t.Context(), who, want)
			if got != nil && !errors.As(got, &denied) || (got == nil) != (err == nil) {
				t.Errorf("%s as %s: the proxy says %v, the API server %v", account, name, got, err)
			}
			said[got == nil]++
		}
	}
	if said[true] < len(wants) || said[false] < len(wants) {
		t.Errorf("%d times yes, %d times no", said[true], said[false])
	}
	err := u.mayBe(t.Context(), impersonation{User: "eve"}, impersonation{User: "bob", Groups: []string{"system:masters"}})
	if err == nil || !strings.HasPrefix(err.Error(), "may not impersonate ") {
		t.Errorf("eve: %v", err)
	}
}

// passesThrough reviews real tokens of service accounts.
func (c *realCluster) passesThrough(t *testing.T) {
	u := idleUpstream(t, c.api)
	account := fileWith(t, c.token(t, "kube-system", "tabard-passthrough"))
	p := newPassthrough(PassthroughConfig{TokenFile: account}, u)
	token := c.token(t, "default", "robot", "--duration=1h")
	who, err := p.review(t.Context(), token)
	if err != nil || who.Username != "system:serviceaccount:default:robot" || who.Cluster != "prod" || who.Sub == "" || who.JTI == "" || strings.Contains(who.JTI, "=") ||
		!slices.Contains(who.Groups, "system:serviceaccounts:default") || time.Until(who.Ends) < 30*time.Minute || issuerOf(token) == "" {
		t.Errorf("robot: %+v, %v", who, err)
	}
	vault := c.token(t, "default", "robot", "--audience=vault")
	for name, bad := range map[string]string{"another audience's": vault, "changed": token[:len(token)-6] + "AAAAAA", "none": "x", "JWT of nobody": "e30.e30.e30"} {
		if _, err := p.review(t.Context(), bad); !errors.Is(err, idp.ErrRefused) || strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p = newPassthrough(PassthroughConfig{TokenFile: account, Audiences: []string{"vault", "other"}}, u)
	if _, err := p.review(t.Context(), vault); err != nil {
		t.Errorf("the audience that is asked for: %v", err)
	}
	if _, err := p.review(t.Context(), token); !errors.Is(err, idp.ErrRefused) {
		t.Errorf("another audience: %v", err)
	}
	p = newPassthrough(PassthroughConfig{TokenFile: u.cfg.TokenFile}, u) // the account that impersonates
	if _, err := p.review(t.Context(), token); err == nil || errors.Is(err, idp.ErrRefused) {
		t.Errorf("by an account that may not review: %v, want neither yes nor no", err)
	}
}

// examined tries good and bad accounts.
func (c *realCluster) examined(t *testing.T) {
	look := func(api APIServerConfig, pt *PassthroughConfig) []Finding {
		return Examine(t.Context(), ClusterConfig{Name: "prod", APIServer: api, Proxy: &Config{Passthrough: pt}})
	}
	good := &PassthroughConfig{TokenFile: fileWith(t, c.token(t, "kube-system", "tabard-passthrough"))}
	found := look(c.api, good)
	if len(found) != 5 || !strings.Contains(found[0].Detail, " answers; its certificate ends at ") || // a test's, by tomorrow
		slices.ContainsFunc(found[1:], func(f Finding) bool { return f.Result != "ok" }) {
		t.Errorf("a good account: %q", found)
	}
	gone, unknown, untrusted := c.api, c.api, c.api
	gone.URL = "https://127.0.0.1:1"
	unknown.TokenFile = fileWith(t, "e30.e30.e30")
	untrusted.CA = fileText(t, testenv.NewCA(t, t.TempDir()).File)
	admin := c.api
	rc := c.RESTConfig()
	admin.TokenFile, admin.CertFile, admin.KeyFile = "", rc.CertFile, rc.KeyFile
	for _, bad := range []struct {
		name string
		api  APIServerConfig
		pt   *PassthroughConfig
		want string
	}{
		{"gone", gone, nil, "cannot be reached"},
		{"unknown", unknown, nil, "refuses the proxy's account"},
		{"another CA", untrusted, nil, "apiServer.caFile"},
		{"masters", admin, nil, "system:masters"},
		{"may do everything", c.with(t, "default", "boss"), nil, "may do more than impersonate: list secrets"},
		{"may not impersonate", c.with(t, "default", "nobody"), nil, "may not impersonate"},
		{"some names alone", c.with(t, "default", "robot"), nil, "may not impersonate"},
		{"no URL", APIServerConfig{}, nil, "apiServer.url"},
		{"no reviews", c.api, &PassthroughConfig{TokenFile: c.api.TokenFile}, "cannot review tokens"},
		{"no file for reviews", c.api, &PassthroughConfig{TokenFile: "/nowhere"}, "/nowhere"},
	} {
		found := look(bad.api, bad.pt)
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.Result == "fail" && strings.Contains(f.Detail, bad.want) }) {
			t.Errorf("%s: %q", bad.name, found)
		}
	}
	c.Kubectl(t, "create", "role", "extra", "-n", "kube-system", "--verb=patch", "--resource=configmaps")
	c.Kubectl(t, "create", "rolebinding", "extra", "-n", "kube-system", "--role=extra", "--serviceaccount=kube-system:tabard-proxy")
	c.await(t, "patch configmaps", func() string { return fmt.Sprint(look(c.api, nil)) })
	for _, role := range []string{"tabard-impersonate", "tabard-impersonate-constrained"} {
		c.Kubectl(t, "delete", "clusterrolebinding", role)
	}
	c.await(t, "apply `tabard cluster rbac prod --for proxy`", func() string { return fmt.Sprint(look(c.api, nil)) })
}

// await tries until the API server has heard of a change, and the test's deadline.
func (c *realCluster) await(t testing.TB, want string, see func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		got := see()
		if strings.Contains(got, want) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("saw %s, want %s", got, want)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
