// Command kubectl-tabard is the kubectl plugin of Tabard: it signs in once and gets
// kubectl a token for each cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

// Exit codes of every command.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as a shell says it of SIGINT
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// usageError says that a command was called wrongly.
type usageError struct{ error }

// run executes one command and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var wrongUse usageError
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "tabard: interrupted")
		return exitInterrupted
	case errors.As(err, &wrongUse):
		fmt.Fprintf(stderr, "tabard: %v\nSee `kubectl tabard --help`.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "tabard: %v\n", err)
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "kubectl-tabard", Short: "Sign in to Kubernetes clusters with Tabard",
		Annotations:  map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl tabard"},
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(loginCommand(), tokenCommand(), whoamiCommand(), logoutCommand(), kubeconfigCommand(), versionCommand())
	for _, cmd := range append(root.Commands(), root) {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%s: %q is neither a command nor a flag of it", cmd.CommandPath(), args[0])}
			}
			return nil
		}
	}
	return root
}

// options are the flags of more than one command.
type options struct {
	server, username, caFile, cacheDir string
	timeout                            time.Duration
	noKeyring                          bool
	ways                               api.Ways
}

// basic adds the flags that every command has that talks to the server.
func (o *options) basic(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.server, "server", "", "issuer URL; default TABARD_SERVER, else the last one signed in to")
	f.StringVar(&o.username, "username", "", "whose login; default the last one at that server")
	f.StringVar(&o.cacheDir, "cache-dir", "", "folder of the token cache; default the person's cache folder")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for the cache's lock, and for the server")
}

// signIn adds the flags that say how to sign in.
func (o *options) signIn(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.caFile, "ca-file", "", "PEM file with the CA of the server's certificate, besides the system's")
	f.BoolVar(&o.noKeyring, "no-keyring", false, "keep the refresh token in a file, as TABARD_KEYRING=off does")
	f.BoolVar(&o.ways.Browser, "browser", false, "sign in in a browser")
	f.BoolVar(&o.ways.Device, "device", false, "sign in on another device, with a code")
	f.BoolVar(&o.ways.Prompt, "prompt", false, "ask for the password in this terminal")
}

// cache opens the cache. The error says why logins cannot be kept; the cache can
// be used all the same.
func (o *options) cache(cmd *cobra.Command) (*api.Cache, error) {
	c, err := api.OpenCache(o.cacheDir, func(msg string) { fmt.Fprintln(cmd.ErrOrStderr(), "tabard: warning: "+msg) })
	c.Wait = o.timeout
	if o.noKeyring {
		c.NoKeyring()
	}
	return c, err
}

// account is whom and where the flags mean.
func (o *options) account(c *api.Cache) (api.Account, error) {
	for _, s := range []string{o.server, os.Getenv("TABARD_SERVER"), c.Last()} {
		if s != "" {
			server, err := api.ServerURL(s)
			return api.Account{Server: server, User: o.username}, err
		}
	}
	return api.Account{}, usageError{errors.New("no server is known: name it with --server https://id.corp.example")}
}

// open returns the cache and the account of a command that needs a login.
func (o *options) open(cmd *cobra.Command) (*api.Cache, api.Account, error) {
	c, err := o.cache(cmd)
	if err != nil {
		return nil, api.Account{}, err
	}
	a, err := o.account(c)
	return c, a, err
}

// ca reads --ca-file; without one it is what is known already.
func (o *options) ca(known string) (string, error) {
	if o.caFile == "" {
		return known, nil
	}
	b, err := os.ReadFile(o.caFile)
	if err != nil {
		return "", fmt.Errorf("read --ca-file: %w", err)
	}
	return string(b), nil
}

// person is how the person of cmd can sign in.
func (o *options) person(cmd *cobra.Command) api.Ways {
	w := o.ways
	w.Username, w.In, w.Out = o.username, cmd.InOrStdin(), cmd.ErrOrStderr()
	return w
}

func loginCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in once for every cluster",
		RunE: func(cmd *cobra.Command, _ []string) error { return login(cmd, o) },
	}
	o.basic(cmd)
	o.signIn(cmd)
	cmd.Flags().BoolVar(&o.ways.PasswordStdin, "password-stdin", false, "read the password from standard input; needs --username")
	return cmd
}

func login(cmd *cobra.Command, o *options) error {
	w := o.person(cmd)
	if err := w.Check(); err != nil {
		return usageError{err}
	}
	c, a, err := o.open(cmd)
	if err != nil {
		return err
	}
	ca, err := o.ca(c.CA(a))
	if err != nil {
		return err
	}
	l, err := w.SignIn(cmd.Context(), a.Server, ca)
	if err != nil {
		return err
	}
	if err := c.Add(cmd.Context(), l); err != nil {
		return err
	}
	return whoami(cmd, c, a)
}

func whoamiCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{Use: "whoami", Short: "Tell who is signed in, and in which groups"}
	o.basic(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, a, err := o.open(cmd)
		if err != nil {
			return err
		}
		return whoami(cmd, c, a)
	}
	return cmd
}

func whoami(cmd *cobra.Command, c *api.Cache, a api.Account) error {
	client, err := c.Client(a)
	if err != nil {
		return err
	}
	me, err := client.Me(cmd.Context())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "Server    %s\nUsername  %s\nName      %s\nGroups    %s\n",
		a.Server, api.Printable(me.Username), api.Printable(me.Name), api.Printable(strings.Join(me.Groups, ", ")))
	return err
}

func logoutCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{Use: "logout", Short: "End the session at the server and forget its tokens"}
	o.basic(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, a, err := o.open(cmd)
		if err != nil {
			return err
		}
		if err := c.Logout(cmd.Context(), a); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "signed out of %s\n", a.Server)
		return err
	}
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			release := version
			if info, ok := debug.ReadBuildInfo(); ok && release == "unknown" && info.Main.Version != "" {
				release = info.Main.Version
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "kubectl-tabard "+release)
			return err
		},
	}
}
