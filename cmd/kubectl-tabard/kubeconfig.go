package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/pkg/apis/clientauthentication"
	"k8s.io/client-go/tools/clientcmd"
	kube "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tabard-id/tabard/internal/api"
)

const installHint = `kubectl cannot find the plugin of Tabard: put kubectl-tabard into a folder of PATH.`

func kubeconfigCommand() *cobra.Command {
	o := &options{}
	var names []string
	var file, prefix string
	var merge bool
	cmd := &cobra.Command{
		Use: "kubeconfig", Short: "Write a kubeconfig with a context for each cluster that is open to you",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if merge && file != "" {
				return usageError{errors.New("kubeconfig: use one of --merge and -o")}
			}
			made, err := makeKubeconfig(cmd, o, names, prefix)
			if err != nil {
				return err
			}
			return putKubeconfig(cmd, made, file, merge)
		},
	}
	o.basic(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&names, "cluster", nil, "clusters; default all")
	f.StringVarP(&file, "output", "o", "", "file to write; default standard output")
	f.StringVar(&prefix, "prefix", "", "put before the names of contexts")
	f.BoolVar(&merge, "merge", false, "add the contexts to the kubeconfig that kubectl uses")
	return cmd
}

// makeKubeconfig asks the server which clusters there are.
func makeKubeconfig(cmd *cobra.Command, o *options, names []string, prefix string) (*kube.Config, error) {
	c, a, err := o.open(cmd)
	if err != nil {
		return nil, err
	}
	client, err := c.Client(a)
	if err != nil {
		return nil, err
	}
	clusters, err := client.Clusters(cmd.Context())
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if !slices.ContainsFunc(clusters, func(cl api.Cluster) bool { return cl.Name == n }) {
			return nil, fmt.Errorf("cluster %s is not open to you, or there is none of that name", n)
		}
	}
	ca := c.CA(a)
	args, err := o.tokenArgs(cmd.Context(), c, a)
	if err != nil {
		return nil, err
	}
	made := kube.NewConfig()
	for _, cl := range clusters {
		switch {
		case len(names) > 0 && !slices.Contains(names, cl.Name):
		case cl.APIServer == "":
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is left out: the server does not know its API server (clusters[].apiServer)\n", api.Printable(cl.Name))
		default:
			if cl.Proxied && cl.CA == "" {
				cl.CA = ca
			}
			addContext(made, prefix+cl.Name, cl, args)
		}
	}
	if len(made.Contexts) == 0 {
		return nil, errors.New("there is no cluster to write")
	}
	return made, nil
}

// tokenArgs are those of get-token but for the cluster. The CA goes into a file of
// its own, since the one that was used at the sign-in may go.
func (o *options) tokenArgs(ctx context.Context, c *api.Cache, a api.Account) ([]string, error) {
	args := []string{"tabard", "get-token", "--server=" + a.Server}
	if o.username != "" {
		args = append(args, "--username="+o.username)
	}
	if o.cacheDir != "" {
		dir, err := filepath.Abs(o.cacheDir)
		if err != nil {
			return nil, fmt.Errorf("find --cache-dir: %w", err)
		}
		args = append(args, "--cache-dir="+dir)
	}
	l, err := c.Load(a)
	if err != nil || l.CA == "" {
		return args, err
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return nil, fmt.Errorf("find the configuration folder for the CA: %w", err)
	}
	sum := sha256.Sum256([]byte(a.Server))
	path := filepath.Join(base, "tabard", "ca-"+hex.EncodeToString(sum[:8])+".pem")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the configuration folder: %w", err)
	}
	return append(args, "--ca-file="+path), replaceFile(ctx, path, []byte(l.CA))
}

func addContext(k *kube.Config, name string, cl api.Cluster, args []string) {
	k.Clusters[name] = &kube.Cluster{Server: cl.APIServer, CertificateAuthorityData: []byte(cl.CA)}
	k.AuthInfos[name] = &kube.AuthInfo{Exec: &kube.ExecConfig{
		APIVersion: clientauthentication.GroupName + "/v1", Command: "kubectl", Args: append(slices.Clone(args), "--cluster="+cl.Name),
		InstallHint: installHint, InteractiveMode: kube.IfAvailableExecInteractiveMode,
	}}
	k.Contexts[name] = &kube.Context{Cluster: name, AuthInfo: name}
	if k.CurrentContext == "" {
		k.CurrentContext = name
	}
}

// putKubeconfig writes made to standard output, to a file of its own, or into the
// one that kubectl uses.
func putKubeconfig(cmd *cobra.Command, made *kube.Config, file string, merge bool) error {
	if !merge && file == "" {
		b, err := clientcmd.Write(*made)
		if err == nil {
			_, err = cmd.OutOrStdout().Write(b)
		}
		return err
	}
	if !merge {
		if err := writeKubeconfig(cmd.Context(), file, made); err != nil {
			return err
		}
	} else {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		file = rules.GetDefaultFilename()
		if err := mergeKubeconfig(cmd.Context(), rules, file, made); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(made.Contexts))
	for n := range made.Contexts {
		names = append(names, api.Printable(n))
	}
	slices.Sort(names)
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", file, strings.Join(names, ", "))
	return err
}

// mergeKubeconfig adds made to file. Entries of the same name are replaced if they
// are ours, and else nothing is written.
func mergeKubeconfig(ctx context.Context, rules *clientcmd.ClientConfigLoadingRules, file string, made *kube.Config) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return fmt.Errorf("make the folder of the kubeconfig: %w", err)
	}
	lock, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_EXCL, 0) // as kubectl config locks it
	if err != nil {
		return fmt.Errorf("lock the kubeconfig: %w: if no other command is writing it, remove that file", err)
	}
	defer os.Remove(lock.Name())
	defer lock.Close()
	all, err := rules.Load()
	if err != nil {
		return fmt.Errorf("read the kubeconfig: %w", err)
	}
	for name := range made.Contexts {
		if !free(all, name) {
			return fmt.Errorf("the kubeconfig has a %s already that is not from Tabard: use --prefix, or -o for a file of its own", name)
		}
	}
	own, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		own, err = kube.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("read the kubeconfig: %w", err)
	}
	for name := range made.Contexts {
		context := made.Contexts[name].DeepCopy()
		if old := own.Contexts[name]; old != nil {
			context.Namespace = old.Namespace // chosen by the person
		}
		own.Contexts[name], own.Clusters[name], own.AuthInfos[name] = context, made.Clusters[name], made.AuthInfos[name]
	}
	if all.CurrentContext == "" {
		own.CurrentContext = made.CurrentContext
	}
	return writeKubeconfig(ctx, file, own)
}

// free says whether name is not used in k, or by an earlier run.
func free(k *kube.Config, name string) bool {
	context, cluster, user := k.Contexts[name], k.Clusters[name], k.AuthInfos[name]
	if user != nil {
		return user.Exec != nil && slices.Contains(user.Exec.Args, "get-token") && slices.Contains(user.Exec.Args, "tabard") &&
			(context == nil || context.AuthInfo == name && context.Cluster == name)
	}
	return context == nil && cluster == nil
}

func writeKubeconfig(ctx context.Context, file string, k *kube.Config) error {
	b, err := clientcmd.Write(*k)
	if err != nil {
		return fmt.Errorf("encode the kubeconfig: %w", err)
	}
	return replaceFile(ctx, file, b)
}

// replaceFile writes a file in one step, where a link leads if it is one. Its mode
// stays, or is 0600.
func replaceFile(ctx context.Context, path string, b []byte) error {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tabard-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close(), ctx.Err())
	if fi, no := os.Stat(path); err == nil && no == nil {
		err = os.Chmod(f.Name(), fi.Mode().Perm())
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
