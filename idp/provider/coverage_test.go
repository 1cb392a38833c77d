package provider

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// coverage says by which test each demand of the RFCs is held. A test is named with
// its folder; one that is gone fails TestCoverage.
var coverage = []struct{ demand, tests string }{
	{"RFC 6749 3.1: a parameter sent twice is refused, unknown ones are ignored", "idp/provider.TestAuthorizeThatMayNotRedirect idp/provider.TestAuthorizeLeadsToSignIn idp/provider.TestTokenEndpointTable"},
	{"RFC 6749 2.3: one client authentication in a request", "idp/provider.TestConfidentialClients idp/provider.TestOneProofARequest"},
	{"RFC 6749 4.4: client credentials for confidential clients alone", "idp/provider.TestClientCredentials idp/provider.TestClientCredentialsRefused"},
	{"RFC 6749 5.1: no-store", "idp/provider.TestTokenEndpointTable"},
	{"RFC 6749 10.6, 10.15: no open redirector", "idp/provider.TestAuthorizeThatMayNotRedirect idp/provider.FuzzAuthorize"},
	{"RFC 6750 2.3: no token in the URL", "idp/provider.TestUserInfoEndpoint"},

	{"RFC 7009 2.1: a client revokes its own tokens alone", "idp/provider.TestRevocationAndIntrospection idp.TestRevoke"},
	{"RFC 7009 2.2: an unknown token, and any hint, is answered with 200", "idp/provider.TestRevocationAndIntrospection"},

	{"RFC 7523 3: issuer, subject, audience, time and signature of an assertion", "idp.TestAssertionsThatAreRight idp.TestHostileAssertions idp.FuzzAssertion"},
	{"RFC 7523 3 (7): jti once", "idp.TestAssertionWorksOnce idp.TestAssertionNeedsTheStore"},

	{"RFC 7636 4.2, 4.3: S256 alone, and required of public clients", "idp/provider.TestAuthorizeFaultsGoToTheClient idp.TestAuthorizeRefuses"},
	{"RFC 7636 4.6: the verifier is checked before the code is used up", "idp.TestRedeemChecksBeforeItConsumes"},

	{"RFC 7662 2.1: the caller is authenticated", "idp/provider.TestRevocationAndIntrospection"},
	{"RFC 7662 2.2: of any other token only that it is not active", "idp/provider.TestRevocationAndIntrospection idp/provider.TestRejectionsAreAlike idp.TestIntrospect"},

	{"RFC 8252 7.1: private-use schemes hold a dot", "idp.TestValidateTable"},
	{"RFC 8252 7.3, 8.3: any port of a loopback IP address, none of localhost", "idp.TestRedirectTable idp/provider.TestAuthorizeLeadsToSignIn"},
	{"RFC 8252 8.1: PKCE", "idp/provider.TestAuthorizeFaultsGoToTheClient"},
	{"RFC 8252 8.5: a public client has no secret", "idp.TestAuthenticateClient idp/provider.TestTokenEndpointTable"},
	{"RFC 8252 8.12: pages are not to be framed", "web.TestEveryPageHasItsHeaders"},

	{"RFC 8414 2: what discovery promises", "idp/provider.TestDiscoveryDocument idp/provider.TestConformance"},
	{"RFC 8414 3.1: at its own path, before that of the issuer", "idp/provider.TestDiscoveryDocument cmd/tabard.TestWorkload"},

	{"RFC 8628 3.2: the device authorization response", "idp/provider.TestDeviceEndpoints"},
	{"RFC 8628 3.3: the person confirms client and code", "web.TestDevice internal/e2e.TestDevice"},
	{"RFC 8628 3.5: pending, slow_down, denied, expired", "idp.TestDeviceThatPollsTooFast idp.TestDeviceTurnedAway idp.TestDeviceExpires"},
	{"RFC 8628 5.1: user codes cannot be guessed", "idp.TestDeviceThrottle"},
	{"RFC 8628: a device code works once", "idp.TestDeviceTwentyAtOnce internal/e2e.TestDevice"},

	{"RFC 8693: exchange to one audience, by the client that holds the token", "idp/provider.TestTokenExchangeRules idp.TestExchangeTable idp.TestExchangeProlongsNothing"},

	{"RFC 9207 2: iss in every authorization response", "idp/provider.TestAuthorizeFaultsGoToTheClient idp/provider.TestAuthorizeLeadsToSignIn"},
	{"RFC 9207 3: and in the metadata", "idp/provider.TestDiscoveryDocument"},

	{"RFC 9700 2.1: redirect URIs match exactly", "idp.TestRedirectTable idp/provider.TestConformance"},
	{"RFC 9700 2.1.1, 4.8: PKCE cannot be taken away", "idp.TestRedeemWithoutChallenge idp/provider.TestConformance"},
	{"RFC 9700 2.1.2: no implicit grant", "idp/provider.TestAuthorizeFaultsGoToTheClient"},
	{"RFC 9700 2.2.2, 4.14: refresh tokens rotate, and reuse ends the session", "idp.TestRefreshModel internal/e2e.TestGrace"},
	{"RFC 9700 2.3: tokens for one audience", "idp.TestExchangeTable idp.TestAccessTokens idp.TestClientTokenOpensNothing"},
	{"RFC 9700 2.4: no password grant", "idp/provider.TestTokenEndpointTable"},
	{"RFC 9700 2.5: asymmetric client authentication", "idp/provider.TestPrivateKeyJWT"},
	{"RFC 9700 4.5: a code for another client, or used twice", "idp.TestRedeemChecksBeforeItConsumes idp.TestCodeUsedTwiceEndsTheSession idp.TestCodeFiftyAtOnce"},
	{"RFC 9700 4.12: 303 after the password", "web.TestSignInGoesToTheClient"},
	{"RFC 9700 4.16: clickjacking", "web.TestEveryPageHasItsHeaders"},

	{"Core 3.1.2.1: login_hint fills the page's field", "web.TestSignInLoginHint idp/provider.TestConformance"},
	{"Core 3.1.2.1: prompt and max_age", "idp/provider.TestPromptTable idp/provider.TestAuthorizeWithASession idp.TestSingleSignOn"},
	{"Nothing tells rejections apart", "idp/provider.TestRejectionsAreAlike web.TestSignInRefusals idp.TestSignInDoesTheSameWork"},
	{"Clocks a minute off", "idp/provider.TestClockSkew idp.TestAssertionsThatAreRight"},
}

func TestCoverage(t *testing.T) {
	there := map[string]map[string]bool{}
	for _, c := range coverage {
		for name := range strings.FieldsSeq(c.tests) {
			dir, test, _ := strings.Cut(name, ".")
			if there[dir] == nil {
				there[dir] = testsIn(t, filepath.Join("..", "..", filepath.FromSlash(dir)))
			}
			if !there[dir][test] {
				t.Errorf("%s: there is no test %s", c.demand, name)
			}
		}
	}
}

// testsIn returns the names of the functions in a folder's test files.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", dir, err)
	}
	names := map[string]bool{}
	for _, f := range files {
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}
