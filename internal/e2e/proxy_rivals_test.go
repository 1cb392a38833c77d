package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
	"k8s.io/client-go/transport"
)

// rival is what the proxy is measured beside: this test binary, started again as a proxy
// of another kind.
type rival struct {
	Method            string // bare: Go's ReverseProxy with fixed headers; oidc: as kube-oidc-proxy does it
	Listen            string
	CertFile, KeyFile string
	Upstream, CAFile  string // the API server
	Issuer, IssuerCA  string
	User              transport.ImpersonationConfig // of bare

	upstream *url.URL
	client   *http.Transport
}

// rivalEnv holds a rival as JSON.
const rivalEnv = "TABARD_BENCH_RIVAL"

// serveRival is a rival's whole life. It returns false where this is no rival.
func serveRival() bool {
	said := os.Getenv(rivalEnv)
	if said == "" {
		return false
	}
	var r rival
	err := json.Unmarshal([]byte(said), &r)
	if err == nil {
		err = r.serve()
	}
	fmt.Fprintln(os.Stderr, "rival:", err)
	os.Exit(1)
	return true
}

func poolOf(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool, nil
}

func (r *rival) serve() error {
	pool, err := poolOf(r.CAFile)
	if err != nil {
		return err
	}
	if r.upstream, err = url.Parse(r.Upstream); err != nil {
		return err
	}
	r.client = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 100}
	handler := r.bare()
	if r.Method == "oidc" {
		if handler, err = r.oidc(); err != nil {
			return err
		}
	}
	return (&http.Server{Addr: r.Listen, Handler: handler, ReadHeaderTimeout: 10 * time.Second}).ListenAndServeTLS(r.CertFile, r.KeyFile)
}

// bare puts the same person on every request.
func (r *rival) bare() http.Handler {
	return &httputil.ReverseProxy{Transport: r.client, Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(r.upstream)
		h := pr.Out.Header
		h.Set("Authorization", "Bearer account")
		h.Set("Impersonate-User", r.User.UserName)
		h.Set("Impersonate-Uid", r.User.UID)
		h["Impersonate-Group"] = r.User.Groups
		for k, v := range r.User.Extra {
			h["Impersonate-Extra-"+strings.ReplaceAll(k, "/", "%2f")] = v
		}
	}}
}

// oidc verifies each token with the API server's own authenticator, and impersonates with
// client-go's transport.
func (r *rival) oidc() (http.Handler, error) {
	ca, err := os.ReadFile(r.IssuerCA)
	if err != nil {
		return nil, err
	}
	none := ""
	verify, err := oidc.New(context.Background(), oidc.Options{
		CAContentProvider: pemFile(ca), SupportedSigningAlgs: []string{"RS256"},
		JWTAuthenticator: apiserver.JWTAuthenticator{
			Issuer: apiserver.Issuer{URL: r.Issuer, Audiences: []string{"kubernetes"}},
			ClaimMappings: apiserver.ClaimMappings{
				Username: apiserver.PrefixedClaimOrExpression{Claim: "preferred_username", Prefix: &none},
				Groups:   apiserver.PrefixedClaimOrExpression{Claim: "groups", Prefix: &none},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	for verify.HealthCheck() != nil {
		time.Sleep(100 * time.Millisecond)
	}
	forward := &httputil.ReverseProxy{FlushInterval: -1, Transport: impersonating{r.client}, Rewrite: func(pr *httputil.ProxyRequest) { pr.SetURL(r.upstream) }}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		res, known, err := verify.AuthenticateToken(req.Context(), token)
		if !ok || !known || err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		req.Header.Del("Authorization")
		who := transport.ImpersonationConfig{UserName: res.User.GetName(), Groups: append(res.User.GetGroups(), "system:authenticated"), Extra: res.User.GetExtra()}
		forward.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), impersonating{}, who)))
	}), nil
}

type pemFile []byte

func (p pemFile) CurrentCABundleContent() []byte { return p }

// impersonating finds in the context who asks.
type impersonating struct{ next http.RoundTripper }

func (i impersonating) RoundTrip(req *http.Request) (*http.Response, error) {
	who, _ := req.Context().Value(impersonating{}).(transport.ImpersonationConfig)
	return transport.NewImpersonatingRoundTripper(who, transport.NewBearerAuthRoundTripper("account", i.next)).RoundTrip(req)
}
