package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// TestServiceAccountGetsAToken is a job in one cluster that works in another: its
// service account's token, as that cluster made it, for a token of groups of its own.
func TestServiceAccountGetsAToken(t *testing.T) {
	t.Parallel()
	s := startTabard(t, options{})
	k := startCluster(t, s, "kubernetes")
	k.Kubectl(t, "create", "serviceaccount", "ci")
	s.write("accounts.jwks", k.Kubectl(t, "get", "--raw", "/openid/v1/jwks"))
	s.addClient("- {id: ci, cluster: prod, groups: [platform], serviceAccount: {issuer: https://kubernetes.default.svc, jwksFile: accounts.jwks, subject: 'system:serviceaccount:default:ci'}}")

	ask := func(account, audience string) tokens {
		assertion := strings.TrimSpace(k.Kubectl(t, "create", "token", account, "--audience", audience, "--duration", "10m"))
		return s.token(url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_assertion": {assertion},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		})
	}
	var token string
	eventually(t, 2*time.Minute, "the client is there, and the API server knows the issuer", func() error {
		a := ask("ci", s.issuer)
		if a.status != http.StatusOK {
			return fmt.Errorf("%+v", a)
		}
		token = a.AccessToken
		return pods(t, k, token)
	})
	if who, err := whoami(t, k, token); err != nil || !strings.Contains(who, `"client:ci"`) || !strings.Contains(who, `"platform"`) {
		t.Errorf("the API server sees %s, %v", who, err)
	}
	k.Kubectl(t, "create", "serviceaccount", "other")
	for name, a := range map[string]tokens{"another account": ask("other", s.issuer), "another audience": ask("ci", "https://kubernetes.default.svc")} {
		if a.status != http.StatusUnauthorized || a.Error != "invalid_client" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// addClient writes one more client into the configuration, which is read again.
func (s *server) addClient(line string) {
	s.t.Helper()
	b, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("tabard.yaml", strings.Replace(string(b), "\nclients:\n", "\nclients:\n"+line+"\n", 1))
}
