package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/pkg/apis/clientauthentication"
	clientauth "k8s.io/client-go/pkg/apis/clientauthentication/v1"

	"github.com/tabard-id/tabard/internal/api"
)

func tokenCommand() *cobra.Command {
	o, cluster := &options{}, ""
	cmd := &cobra.Command{
		Use: "get-token", Short: "Print a token for a cluster; kubectl calls this by itself",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return usageError{errors.New("get-token: --cluster is missing")}
			}
			return getToken(cmd, o, cluster)
		},
	}
	o.basic(cmd)
	o.signIn(cmd)
	cmd.Flags().StringVar(&cluster, "cluster", "", "name of the cluster at the server")
	return cmd
}

func getToken(cmd *cobra.Command, o *options, cluster string) error {
	w := o.person(cmd)
	if err := w.Check(); err != nil {
		return usageError{err}
	}
	credential, err := readExecInfo(os.Getenv("KUBERNETES_EXEC_INFO"))
	if err != nil {
		return err
	}
	c, err := o.cache(cmd)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "tabard: warning: logins are not kept: %v\n", err)
	}
	a, err := o.account(c)
	if err != nil {
		return err
	}
	if c.MoreCA, err = o.ca(""); err != nil { // what was trusted at the sign-in may be enough
		fmt.Fprintf(cmd.ErrOrStderr(), "tabard: warning: %v\n", err)
	}
	var signIn func(context.Context, api.Account, string) (api.Login, error)
	if credential.Spec.Interactive && w.Terminal() != nil {
		signIn = func(ctx context.Context, a api.Account, knownCA string) (api.Login, error) {
			ca, err := o.ca(knownCA)
			if err != nil {
				return api.Login{}, err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Sign in to %s for cluster %s.\n", a.Server, cluster)
			w.Username = a.User // of the login that is over, if there was one
			return w.SignIn(ctx, a.Server, ca)
		}
	}
	t, err := c.ClusterToken(cmd.Context(), a, cluster, signIn)
	if errors.Is(err, api.ErrNoLogin) || errors.Is(err, api.ErrSignInAgain) {
		return errors.New("not signed in, or the session is over: run " + o.loginLine(a))
	}
	if err != nil {
		return err
	}
	return write(cmd, credential, t)
}

// readExecInfo returns the credential to be filled in: of the version that kubectl
// asks for, and telling whether it lets the person be asked. Without kubectl it is
// v1, and they may be.
func readExecInfo(info string) (*clientauth.ExecCredential, error) {
	group := clientauthentication.GroupName
	// v1beta1 has the same fields.
	c := &clientauth.ExecCredential{TypeMeta: metav1.TypeMeta{Kind: "ExecCredential", APIVersion: group + "/v1"}, Spec: clientauth.ExecCredentialSpec{Interactive: true}}
	if info == "" {
		return c, nil
	}
	c.Spec.Interactive = false
	if err := json.Unmarshal([]byte(info), c); err != nil {
		return nil, fmt.Errorf("read KUBERNETES_EXEC_INFO: %w", err)
	}
	if c.Kind != "ExecCredential" || c.APIVersion != group+"/v1" && c.APIVersion != group+"/v1beta1" {
		return nil, fmt.Errorf("kubectl asks for %s %s: write apiVersion: %s/v1 into the kubeconfig", api.Printable(c.APIVersion), api.Printable(c.Kind), group)
	}
	return c, nil
}

// write prints the credential. It ends for kubectl when the cache renews it.
func write(cmd *cobra.Command, c *clientauth.ExecCredential, t api.Token) error {
	until := metav1.NewTime(t.Renew)
	c.Spec.Cluster = nil
	c.Status = &clientauth.ExecCredentialStatus{Token: t.Raw, ExpirationTimestamp: &until}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(c)
}

// loginLine is the command that signs in for a.
func (o *options) loginLine(a api.Account) string {
	line := []string{"kubectl tabard login --server", a.Server}
	for _, f := range [][2]string{{"--username", o.username}, {"--ca-file", o.caFile}, {"--cache-dir", o.cacheDir}} {
		if f[1] != "" {
			line = append(line, f[0], api.Printable(f[1]))
		}
	}
	return strings.Join(line, " ")
}
