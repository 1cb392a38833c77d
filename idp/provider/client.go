package provider

import (
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/tabard-id/tabard/idp"
)

var grantTypes = []string{
	"authorization_code", "refresh_token", "client_credentials",
	string(oidc.GrantTypeDeviceCode), string(oidc.GrantTypeTokenExchange),
}

// checkedURI stands for a redirect URI that Authorize's own, stricter check has
// passed: the library would unescape the real one once more and compare loosely.
const checkedURI = "https://checked.invalid/"

// client shows an idp.Client to the library, which asks it for little: redirect
// URIs, lifetimes and flows are decided in idp.
type client struct{ *idp.Client }

func (c client) GetID() string                       { return c.ID }
func (c client) RedirectURIs() []string              { return []string{checkedURI} }
func (c client) PostLogoutRedirectURIs() []string    { return nil }
func (c client) ApplicationType() op.ApplicationType { return op.ApplicationTypeWeb }
func (c client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c client) LoginURL(string) string               { return "" }
func (c client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeBearer }
func (c client) IDTokenLifetime() time.Duration       { return 0 }
func (c client) DevMode() bool                        { return false }
func (c client) IsScopeAllowed(string) bool           { return true }
func (c client) IDTokenUserinfoClaimsAssertion() bool { return false }
func (c client) ClockSkew() time.Duration             { return 0 }

// AuthMethod implements op.Client.
func (c client) AuthMethod() oidc.AuthMethod {
	if c.Public {
		return oidc.AuthMethodNone
	}
	return oidc.AuthMethodBasic // or another: it is checked already
}

// GrantTypes implements op.Client: every client has every grant that a person takes
// part in; what it may do with one is decided there.
func (c client) GrantTypes() []oidc.GrantType {
	var out []oidc.GrantType
	for _, g := range grantTypes {
		if grant := oidc.GrantType(g); grant != oidc.GrantTypeClientCredentials || c.HasOwnToken() {
			out = append(out, grant)
		}
	}
	return out
}

// RestrictAdditionalIdTokenScopes implements op.Client.
func (c client) RestrictAdditionalIdTokenScopes() func([]string) []string { return keepScopes }

// RestrictAdditionalAccessTokenScopes implements op.Client.
func (c client) RestrictAdditionalAccessTokenScopes() func([]string) []string { return keepScopes }

func keepScopes(scopes []string) []string { return scopes }
