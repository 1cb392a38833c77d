package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/idp"
)

func clusterCommand() *cobra.Command {
	return family("cluster", "Print what an API server and its people are told about Tabard",
		clusterFlagsCommand(), clusterAuthnCommand(), clusterWebhookCommand(), clusterRBACCommand(), clusterKubeconfigCommand())
}

// clusterFiles is what the files for one cluster are made of.
type clusterFiles struct {
	Issuer   string
	IssuerCA string // PEM; "" where machines trust the issuer's certificate
	Cluster  idp.ClusterConfig
	Direct   idp.APIServerConfig // the API server itself, where Cluster's is our proxy
	Dir      string              // on the API servers' machines

	DenySID, DenyJTI []string

	ClusterAdmins, Namespace, Admins, Viewers string // groups, but Namespace
	AccountNamespace, Account                 string // of the proxy
	ExecArgs                                  []string
	InstallHint                               string
}

// clusterOptions are the flags that several of the commands have.
type clusterOptions struct {
	config, issuerCA string
	files            clusterFiles
}

// clusterSub makes the command NAME --config FILE, which prints what text returns.
func clusterSub(use, short string, o *clusterOptions, text func(cmd *cobra.Command, f *clusterFiles) (string, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use + " NAME --config FILE", Short: short, Args: usage(cobra.ExactArgs(1))}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.load(args[0]); err != nil {
			return err
		}
		out, err := text(cmd, &o.files)
		if err == nil {
			_, err = fmt.Fprint(cmd.OutOrStdout(), out)
		}
		return err
	}
	configFlag(cmd, &o.config)
	return cmd
}

func (o *clusterOptions) issuerCAFlag(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&o.issuerCA, "issuer-ca", "", "CA of the issuer's certificate, "+what+"; left out: that at the end of tls.certFile, if it is one")
}

func (o *clusterOptions) dirFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.files.Dir, "dir", "/etc/kubernetes/pki", "folder for Tabard's files on the API server's machine")
}

// load reads the configuration and the cluster's part of it.
func (o *clusterOptions) load(name string) error {
	cfg, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(cfg.idp.Clusters, func(c idp.ClusterConfig) bool { return c.Name == name })
	if at < 0 {
		return fmt.Errorf("there is no cluster %q in %s", name, o.config)
	}
	o.files.Issuer, o.files.Cluster = cfg.Issuer, cfg.idp.Clusters[at]
	a := cfg.Clusters[at].APIServer
	o.files.Direct = idp.APIServerConfig{URL: a.URL, CA: a.CA}
	if o.files.Dir != "" && !path.IsAbs(o.files.Dir) {
		return usageError{errors.New("--dir is not an absolute path")}
	}
	o.files.Dir = strings.TrimSuffix(o.files.Dir, "/")
	if o.issuerCA == "" {
		o.files.IssuerCA = cfg.ownCA()
		return nil
	}
	b, err := os.ReadFile(o.issuerCA)
	if err != nil {
		return fmt.Errorf("--issuer-ca: %s %s", o.issuerCA, fileTrouble(err))
	}
	if o.files.IssuerCA, err = certificatesIn(b); err != nil {
		return fmt.Errorf("--issuer-ca: %s %w", o.issuerCA, err)
	}
	return nil
}

func clusterFlagsCommand() *cobra.Command {
	o := &clusterOptions{}
	var way string
	var systemRoots bool
	cmd := clusterSub("flags", "Print the flags of kube-apiserver", o, func(_ *cobra.Command, f *clusterFiles) (string, error) {
		flags, err := f.flags(way, systemRoots)
		if err != nil {
			return "", err
		}
		return strings.Join(flags, "\n") + "\n", nil
	})
	cmd.Flags().StringVar(&way, "for", "native", "native: --oidc-… flags; authn-config or webhook: those that name the file which tabard cluster authn-config or webhook-config prints")
	cmd.Flags().BoolVar(&systemRoots, "system-roots", false, "the API server's machine trusts the issuer's certificate: leave out --oidc-ca-file")
	o.dirFlag(cmd)
	return cmd
}

// flags are those of kube-apiserver for a way to trust the issuer.
func (f *clusterFiles) flags(way string, systemRoots bool) ([]string, error) {
	switch way {
	case "native":
		flags := []string{"--oidc-issuer-url=" + f.Issuer, "--oidc-client-id=" + f.Cluster.ClientID}
		if !systemRoots {
			flags = append(flags, "--oidc-ca-file="+f.Dir+"/tabard-ca.pem")
		}
		t := f.Cluster.Tokens
		flags = append(flags, "--oidc-username-claim="+t.UsernameClaim, "--oidc-username-prefix=-", "--oidc-groups-claim="+t.GroupsClaim)
		if t.SigningAlgorithm != "RS256" {
			flags = append(flags, "--oidc-signing-algs="+t.SigningAlgorithm)
		}
		return flags, nil
	case "authn-config":
		return []string{"--authentication-config=" + f.Dir + "/tabard-authn.yaml"}, nil
	case "webhook":
		return []string{
			"--authentication-token-webhook-config-file=" + f.Dir + "/tabard-webhook.yaml",
			"--authentication-token-webhook-version=v1", "--authentication-token-webhook-cache-ttl=10s",
		}, f.needWebhook()
	}
	return nil, usageError{fmt.Errorf("--for %s: use native, authn-config or webhook", way)}
}

func (f *clusterFiles) needWebhook() error {
	if f.Cluster.Webhook == nil {
		return fmt.Errorf("cluster %s has no webhook: set clusters[].webhook.callers", f.Cluster.Name)
	}
	return nil
}

// tokenID is what a sid or jti looks like.
var tokenID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func clusterAuthnCommand() *cobra.Command {
	o := &clusterOptions{}
	cmd := clusterSub("authn-config", "Print an AuthenticationConfiguration for kube-apiserver", o, func(_ *cobra.Command, f *clusterFiles) (string, error) {
		for _, id := range slices.Concat(f.DenySID, f.DenyJTI) {
			if !tokenID.MatchString(id) {
				return "", usageError{fmt.Errorf("%q is no sid and no jti", id)}
			}
		}
		return f.render("authn-config.yaml")
	})
	cmd.Flags().StringSliceVar(&o.files.DenySID, "deny-sid", nil, "refuse the tokens of these sessions")
	cmd.Flags().StringSliceVar(&o.files.DenyJTI, "deny-jti", nil, "refuse these tokens")
	o.issuerCAFlag(cmd, "to put in")
	o.dirFlag(cmd)
	return cmd
}

func clusterWebhookCommand() *cobra.Command {
	o := &clusterOptions{}
	cmd := clusterSub("webhook-config", "Print the kubeconfig by which kube-apiserver asks about tokens", o, func(_ *cobra.Command, f *clusterFiles) (string, error) {
		if err := f.needWebhook(); err != nil {
			return "", err
		}
		return f.render("webhook-config.yaml")
	})
	o.issuerCAFlag(cmd, "to put in")
	o.dirFlag(cmd)
	return cmd
}

func clusterRBACCommand() *cobra.Command {
	o := &clusterOptions{}
	var whom, account string
	cmd := clusterSub("rbac", "Print roles to begin with, or an account of the proxy", o, func(_ *cobra.Command, f *clusterFiles) (string, error) {
		switch whom {
		case "people":
			return f.rbacOfPeople()
		case "proxy", "passthrough":
			if account == "" {
				account = "kube-system/tabard-" + whom
			}
			var ok bool
			if f.AccountNamespace, f.Account, ok = strings.Cut(account, "/"); !ok || !objectName.MatchString(f.Account) || !objectName.MatchString(f.AccountNamespace) {
				return "", usageError{errors.New("--service-account is not NAMESPACE/NAME")}
			}
			return f.render("rbac-" + whom + ".yaml")
		}
		return "", usageError{fmt.Errorf("--for %s: use people, proxy or passthrough", whom)}
	})
	flags := cmd.Flags()
	flags.StringVar(&whom, "for", "people", "people: discovery, and admins and viewers of a namespace; proxy: the account that may impersonate; passthrough: the account that may review tokens")
	flags.StringVar(&o.files.Namespace, "namespace", "default", "namespace of the admins and viewers")
	flags.StringVar(&o.files.Admins, "admins", "", "group of its admins; left out: NAMESPACE-admins")
	flags.StringVar(&o.files.Viewers, "viewers", "", "group of its viewers; left out: NAMESPACE-viewers")
	flags.StringVar(&o.files.ClusterAdmins, "cluster-admins", "", "group that may do everything; left out: none")
	flags.StringVar(&account, "service-account", "", "NAMESPACE/NAME of the account; left out: kube-system/tabard-proxy or kube-system/tabard-passthrough")
	return cmd
}

// objectName is the form of a namespace's name (RFC 1123).
var objectName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (f *clusterFiles) rbacOfPeople() (string, error) {
	if !objectName.MatchString(f.Namespace) {
		return "", usageError{errors.New("--namespace is not the name of one")}
	}
	if f.Admins == "" {
		f.Admins = f.Namespace + "-admins"
	}
	if f.Viewers == "" {
		f.Viewers = f.Namespace + "-viewers"
	}
	for _, g := range []string{f.Admins, f.Viewers, f.ClusterAdmins} {
		if strings.HasPrefix(strings.ToLower(g), "system:") {
			return "", usageError{fmt.Errorf("no token holds a group such as %q", g)}
		}
	}
	return f.render("rbac-people.yaml")
}

func clusterKubeconfigCommand() *cobra.Command {
	o := &clusterOptions{}
	var program string
	var direct bool
	cmd := clusterSub("kubeconfig", "Print a kubeconfig for the people of a cluster", o, func(cmd *cobra.Command, f *clusterFiles) (string, error) {
		switch {
		case direct:
			f.Cluster.APIServer = f.Direct
		case f.Cluster.APIServer.Proxied:
			f.Cluster.APIServer.CA = f.IssuerCA
		}
		if f.Cluster.APIServer.URL == "" {
			return "", fmt.Errorf("cluster %s has no apiServer.url in the configuration: set it", f.Cluster.Name)
		}
		switch program {
		case "plugin":
			f.execPlugin(o.issuerCA)
		case "kubelogin":
			if !slices.Contains(f.Cluster.RedirectURIs, kubeloginURI) {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: kubelogin needs %s in redirectURIs of cluster %s\n", kubeloginURI, f.Cluster.Name)
			}
			f.execKubelogin()
		default:
			return "", usageError{fmt.Errorf("--for %s: use plugin or kubelogin", program)}
		}
		return f.render("kubeconfig.yaml")
	})
	cmd.Flags().StringVar(&program, "for", "plugin", "plugin: kubectl-tabard; kubelogin: kubectl-oidc_login")
	cmd.Flags().BoolVar(&direct, "direct", false, "the API server itself, where the cluster has a proxy")
	o.issuerCAFlag(cmd, "to put in for kubelogin and for a cluster that is proxied; the plugin reads it from that path on people's machines")
	return cmd
}

// kubeloginURI is where kubelogin listens.
const kubeloginURI = "http://localhost:8000"

// execPlugin makes kubectl ask our plugin; caFile is "" where its machine trusts the
// issuer's certificate.
func (f *clusterFiles) execPlugin(caFile string) {
	f.ExecArgs = []string{"tabard", "get-token", "--server=" + f.Issuer}
	if caFile != "" {
		f.ExecArgs = append(f.ExecArgs, "--ca-file="+caFile)
	}
	f.ExecArgs = append(f.ExecArgs, "--cluster="+f.Cluster.Name)
	f.InstallHint = "kubectl cannot find the plugin of Tabard: put kubectl-tabard into a folder of PATH."
}

// execKubelogin makes kubectl ask kubelogin.
func (f *clusterFiles) execKubelogin() {
	f.ExecArgs = []string{"oidc-login", "get-token", "--oidc-issuer-url=" + f.Issuer, "--oidc-client-id=" + f.Cluster.ClientID, "--oidc-extra-scope=offline_access"}
	if f.IssuerCA != "" {
		f.ExecArgs = append(f.ExecArgs, "--certificate-authority-data="+base64Of(f.IssuerCA))
	}
	f.InstallHint = "kubectl cannot find kubelogin: put kubectl-oidc_login into a folder of PATH."
}
