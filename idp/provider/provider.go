// Package provider serves the OpenID Connect and OAuth 2.0 endpoints. The library
// routes and parses; what is decided is decided in idp. It is the only package that
// knows zitadel/oidc.
package provider

import (
	"context"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/tabard-id/tabard/idp"
)

// Config is what the handler needs beside the Service.
type Config struct {
	// ErrorPage tells a person what went wrong at /authorize or /logout.
	ErrorPage func(w http.ResponseWriter, r *http.Request, status int, title, detail string)
	Log       logrus.FieldLogger
}

// server implements op.Server over the Service.
type server struct {
	op.UnimplementedServer
	svc  *idp.Service
	keys *idp.Keys
	log  logrus.FieldLogger
}

// New returns the handler of the endpoints, relative to the issuer's path.
func New(svc *idp.Service, keys *idp.Keys, cfg Config) http.Handler {
	s := &server{svc: svc, keys: keys, log: cfg.Log}
	endpoints := op.Endpoints{
		Authorization:       op.NewEndpoint("authorize"),
		Token:               op.NewEndpoint("token"),
		Introspection:       op.NewEndpoint("introspect"),
		Userinfo:            op.NewEndpoint("userinfo"),
		Revocation:          op.NewEndpoint("revoke"),
		EndSession:          op.NewEndpoint("logout"),
		JwksURI:             op.NewEndpoint("keys"),
		DeviceAuthorization: op.NewEndpoint("device_authorization"),
	}
	// The library's own CORS policy reflects any origin with credentials.
	return guard(op.RegisterServer(s, endpoints, op.WithServerCORSOptions(nil)), cfg)
}

// discovery is the document of OpenID Connect Discovery section 3 and RFC 8414. It
// is ours because the library's always lists the implicit flow.
type discovery struct {
	Issuer                                     string   `json:"issuer"`
	AuthorizationEndpoint                      string   `json:"authorization_endpoint"`
	TokenEndpoint                              string   `json:"token_endpoint"`
	UserinfoEndpoint                           string   `json:"userinfo_endpoint"`
	JwksURI                                    string   `json:"jwks_uri"`
	DeviceAuthorizationEndpoint                string   `json:"device_authorization_endpoint"`
	RevocationEndpoint                         string   `json:"revocation_endpoint"`
	IntrospectionEndpoint                      string   `json:"introspection_endpoint"`
	EndSessionEndpoint                         string   `json:"end_session_endpoint"`
	ScopesSupported                            []string `json:"scopes_supported"`
	ResponseTypesSupported                     []string `json:"response_types_supported"`
	ResponseModesSupported                     []string `json:"response_modes_supported"`
	GrantTypesSupported                        []string `json:"grant_types_supported"`
	SubjectTypesSupported                      []string `json:"subject_types_supported"`
	IDTokenSigningAlgValuesSupported           []string `json:"id_token_signing_alg_values_supported"`
	TokenEndpointAuthMethodsSupported          []string `json:"token_endpoint_auth_methods_supported"`
	RevocationEndpointAuthMethodsSupported     []string `json:"revocation_endpoint_auth_methods_supported"`
	IntrospectionEndpointAuthMethodsSupported  []string `json:"introspection_endpoint_auth_methods_supported"`
	TokenEndpointAuthAlgorithms                []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	RevocationEndpointAuthAlgorithms           []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	IntrospectionEndpointAuthAlgorithms        []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	CodeChallengeMethodsSupported              []string `json:"code_challenge_methods_supported"`
	ClaimsSupported                            []string `json:"claims_supported"`
	PromptValuesSupported                      []string `json:"prompt_values_supported"`
	AuthorizationResponseIssParameterSupported bool     `json:"authorization_response_iss_parameter_supported"`
	ClaimsParameterSupported                   bool     `json:"claims_parameter_supported"`
	RequestParameterSupported                  bool     `json:"request_parameter_supported"`
	RequestURIParameterSupported               bool     `json:"request_uri_parameter_supported"`
}

// Discovery implements op.Server.
func (s *server) Discovery(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	at := func(path string) string { return s.svc.Issuer() + path }
	auth := []string{"none", "client_secret_basic", "client_secret_post", "private_key_jwt"}
	return op.NewResponse(discovery{
		Issuer:                                     s.svc.Issuer(),
		AuthorizationEndpoint:                      at("/authorize"),
		TokenEndpoint:                              at("/token"),
		UserinfoEndpoint:                           at("/userinfo"),
		JwksURI:                                    at("/keys"),
		DeviceAuthorizationEndpoint:                at("/device_authorization"),
		RevocationEndpoint:                         at("/revoke"),
		IntrospectionEndpoint:                      at("/introspect"),
		EndSessionEndpoint:                         at("/logout"),
		ScopesSupported:                            []string{"openid", "profile", "email", "groups", "offline_access"},
		ResponseTypesSupported:                     []string{"code"},
		ResponseModesSupported:                     []string{"query"},
		GrantTypesSupported:                        grantTypes,
		SubjectTypesSupported:                      []string{"public"},
		IDTokenSigningAlgValuesSupported:           s.svc.Algorithms(),
		TokenEndpointAuthMethodsSupported:          auth,
		RevocationEndpointAuthMethodsSupported:     auth,
		IntrospectionEndpointAuthMethodsSupported:  auth[1:],
		TokenEndpointAuthAlgorithms:                idp.AssertionAlgorithms(),
		RevocationEndpointAuthAlgorithms:           idp.AssertionAlgorithms(),
		IntrospectionEndpointAuthAlgorithms:        idp.AssertionAlgorithms(),
		CodeChallengeMethodsSupported:              []string{"S256"},
		ClaimsSupported:                            s.svc.ClaimNames(),
		PromptValuesSupported:                      []string{"none", "login", "select_account"},
		AuthorizationResponseIssParameterSupported: true,
	}), nil
}

// Keys implements op.Server. It sends no Cache-Control: kube-apiserver trusts a
// max-age over an unknown kid, and would refuse the tokens of a new key.
func (s *server) Keys(context.Context, *op.Request[struct{}]) (*op.Response, error) {
	return op.NewResponse(s.keys.Public()), nil
}

// VerifyClient implements op.Server: a confidential client proves itself by its
// secret or an assertion, a public one has neither.
func (s *server) VerifyClient(ctx context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	c, err := s.authenticate(ctx, r.Header, *r.Data)
	if err != nil {
		return nil, err
	}
	return client{c}, nil
}

// authenticate checks a client's credentials. The library lets pass a header and a
// body that name different clients, or a secret in each (RFC 6749 section 2.3).
func (s *server) authenticate(ctx context.Context, header http.Header, cc op.ClientCredentials) (*idp.Client, error) {
	form := formOf(ctx)
	_, _, basic := (&http.Request{Header: header}).BasicAuth()
	if basic && (form.Has("client_secret") || form.Has("client_id") && form.Get("client_id") != cc.ClientID) ||
		form.Has("client_assertion") && (basic || form.Has("client_secret")) {
		return nil, oidc.ErrInvalidRequest().WithDescription("client authentication must not use more than one method")
	}
	var c *idp.Client
	var err error
	if cc.ClientAssertion != "" {
		c, err = s.svc.AuthenticateAssertion(ctx, cc.ClientID, cc.ClientAssertion)
	} else {
		c, err = s.svc.AuthenticateClient(cc.ClientID, cc.ClientSecret)
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return c, nil
}

// CodeExchange implements op.Server (RFC 6749 section 4.1.3).
func (s *server) CodeExchange(ctx context.Context, r *op.ClientRequest[oidc.AccessTokenRequest]) (*op.Response, error) {
	t, err := s.svc.Redeem(ctx, r.Client.(client).Client, r.Data.Code, r.Data.RedirectURI, r.Data.CodeVerifier)
	return s.tokens(ctx, t, err)
}

// RefreshToken implements op.Server (RFC 6749 section 6).
func (s *server) RefreshToken(ctx context.Context, r *op.ClientRequest[oidc.RefreshTokenRequest]) (*op.Response, error) {
	t, err := s.svc.Refresh(ctx, r.Client.(client).Client, r.Data.RefreshToken)
	return s.tokens(ctx, t, err)
}

// DeviceToken implements op.Server (RFC 8628 section 3.4).
func (s *server) DeviceToken(ctx context.Context, r *op.ClientRequest[oidc.DeviceAccessTokenRequest]) (*op.Response, error) {
	t, err := s.svc.PollDevice(ctx, r.Client.(client).Client, r.Data.DeviceCode)
	return s.tokens(ctx, t, err)
}

// ClientCredentialsExchange implements op.Server (RFC 6749 section 4.4): a client's own
// token, for its cluster's API server and for nothing here. It comes under both names,
// for programs that look for either.
func (s *server) ClientCredentialsExchange(ctx context.Context, r *op.ClientRequest[oidc.ClientCredentialsRequest]) (*op.Response, error) {
	t, err := s.svc.ClientToken(ctx, r.Client.(client).Client)
	t.AccessToken = t.IDToken
	return s.tokens(ctx, t, err)
}

func (s *server) tokens(ctx context.Context, t idp.Tokens, err error) (*op.Response, error) {
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return op.NewResponse(oidc.AccessTokenResponse{
		AccessToken: t.AccessToken, TokenType: oidc.BearerToken, RefreshToken: t.RefreshToken,
		ExpiresIn: s.lifeLeft(t.Expires), IDToken: t.IDToken,
	}), nil
}

func (s *server) lifeLeft(expires time.Time) uint64 {
	return uint64(max(expires.Sub(s.svc.Now()), time.Second) / time.Second)
}

// TokenExchange implements op.Server (RFC 8693): an id_token for another audience.
func (s *server) TokenExchange(ctx context.Context, r *op.ClientRequest[oidc.TokenExchangeRequest]) (*op.Response, error) {
	d := r.Data
	switch {
	case d.SubjectTokenType != oidc.IDTokenType:
		return nil, oidc.ErrInvalidRequest().WithDescription("subject_token_type must be %s", oidc.IDTokenType)
	case d.RequestedTokenType != "" && d.RequestedTokenType != oidc.IDTokenType:
		return nil, oidc.ErrInvalidRequest().WithDescription("requested_token_type must be %s", oidc.IDTokenType)
	case d.ActorToken != "" || len(d.Resource) > 0:
		return nil, oidc.ErrInvalidRequest().WithDescription("actor_token and resource are not supported")
	case len(d.Audience) != 1:
		return nil, oidc.ErrInvalidRequest().WithDescription("exactly one audience is required: a cluster's client id")
	}
	t, err := s.svc.Exchange(ctx, r.Client.(client).Client, d.SubjectToken, d.Audience[0])
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	// N_A because the token is for an API server, not a way into this one.
	return op.NewResponse(oidc.TokenExchangeResponse{
		AccessToken: t.IDToken, IssuedTokenType: oidc.IDTokenType, TokenType: "N_A", ExpiresIn: s.lifeLeft(t.Expires),
	}), nil
}

// DeviceAuthorization implements op.Server (RFC 8628 section 3.1).
func (s *server) DeviceAuthorization(ctx context.Context, r *op.ClientRequest[oidc.DeviceAuthorizationRequest]) (*op.Response, error) {
	d, err := s.svc.StartDevice(ctx, r.Client.(client).Client, hasScope(r.Form.Get("scope"), "offline_access"))
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return op.NewResponse(oidc.DeviceAuthorizationResponse{
		DeviceCode: d.DeviceCode, UserCode: d.UserCode,
		VerificationURI:         s.svc.Issuer() + "/device",
		VerificationURIComplete: s.svc.Issuer() + "/device?user_code=" + d.UserCode,
		ExpiresIn:               int(d.Expires.Seconds()), Interval: int(d.Interval.Seconds()),
	}), nil
}

// UserInfo implements op.Server (OpenID Connect Core section 5.3).
func (s *server) UserInfo(ctx context.Context, r *op.Request[oidc.UserInfoRequest]) (*op.Response, error) {
	claims, err := s.svc.UserInfo(ctx, r.Data.AccessToken)
	if err != nil {
		return nil, s.bearerFault(ctx, err)
	}
	return op.NewResponse(claims), nil
}

// introspection is the answer of RFC 7662 section 2.2.
type introspection struct {
	Active    bool     `json:"active"`
	ClientID  string   `json:"client_id,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	Username  string   `json:"username,omitempty"`
	TokenType string   `json:"token_type,omitempty"`
	Audience  []string `json:"aud,omitempty"`
	Expires   int64    `json:"exp,omitempty"`
	JTI       string   `json:"jti,omitempty"`
	Issuer    string   `json:"iss,omitempty"`
}

// Introspect implements op.Server (RFC 7662), for confidential clients alone.
func (s *server) Introspect(ctx context.Context, r *op.Request[op.IntrospectionRequest]) (*op.Response, error) {
	c, err := s.authenticate(ctx, r.Header, *r.Data.ClientCredentials)
	if err != nil {
		return nil, err
	}
	if c.Public {
		return nil, s.fault(ctx, idp.ErrInvalidClient)
	}
	in, err := s.svc.Introspect(ctx, c, r.Data.Token)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	if !in.Active {
		return op.NewResponse(introspection{}), nil
	}
	return op.NewResponse(introspection{
		Active: true, ClientID: in.Client, Subject: in.Subject, Username: in.Username, TokenType: in.Type,
		Audience: in.Audience, Expires: in.Expires.Unix(), JTI: in.ID, Issuer: s.svc.Issuer(),
	}), nil
}

// Revocation implements op.Server (RFC 7009).
func (s *server) Revocation(ctx context.Context, r *op.ClientRequest[oidc.RevocationRequest]) (*op.Response, error) {
	if err := s.svc.Revoke(ctx, r.Client.(client).Client, r.Data.Token); err != nil {
		return nil, s.fault(ctx, err)
	}
	return op.NewResponse(struct{}{}), nil
}
