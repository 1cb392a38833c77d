package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

func loginCommand() *cobra.Command {
	var server, caFile string
	w := api.Ways{}
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in once for the commands of tabard and for kubectl",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return login(cmd, server, caFile, w) },
	}
	serverFlag(cmd, &server)
	cmd.Flags().StringVar(&caFile, "ca-file", "", "PEM file with the CA of the server's certificate, besides the system's")
	cmd.Flags().StringVar(&w.Username, "username", "", "who to sign in as")
	cmd.Flags().BoolVar(&w.Browser, "browser", false, "sign in in a browser")
	cmd.Flags().BoolVar(&w.Device, "device", false, "sign in on another device, with a code")
	cmd.Flags().BoolVar(&w.Prompt, "prompt", false, "ask for the password in this terminal")
	cmd.Flags().BoolVar(&w.PasswordStdin, "password-stdin", false, "read the password from standard input; needs --username")
	return cmd
}

func serverFlag(cmd *cobra.Command, server *string) {
	cmd.Flags().StringVar(server, "server", "", "issuer URL; default TABARD_SERVER, else the last one signed in to")
}

// pickServer returns the server to talk to, and the cache.
func pickServer(cmd *cobra.Command, flag string) (*api.Cache, string, error) {
	cache, err := api.OpenCache("", func(m string) { fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+m) })
	if err != nil {
		return nil, "", err
	}
	for _, s := range []string{flag, os.Getenv("TABARD_SERVER"), cache.Last()} {
		if s != "" {
			s, err = api.ServerURL(s)
			return cache, s, err
		}
	}
	return nil, "", usageError{errors.New("no server is known: name it with --server https://id.corp.example")}
}

func login(cmd *cobra.Command, server, caFile string, w api.Ways) error {
	if err := w.Check(); err != nil {
		return usageError{fmt.Errorf("login: %w", err)}
	}
	cache, server, err := pickServer(cmd, server)
	if err != nil {
		return err
	}
	ca := cache.CA(api.Account{Server: server, User: w.Username})
	if caFile != "" {
		b, err := os.ReadFile(caFile)
		if err != nil {
			return fmt.Errorf("--ca-file %s %s", caFile, fileTrouble(err))
		}
		ca = string(b)
	}
	w.In, w.Out = cmd.InOrStdin(), cmd.ErrOrStderr()
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt) // the terminal gets its echo back
	defer stop()
	l, err := w.SignIn(ctx, server, ca)
	if err != nil {
		return err
	}
	if err := cache.Add(ctx, l); err != nil {
		return err
	}
	return whoami(cmd, server, "table")
}

func whoamiCommand() *cobra.Command {
	var server string
	cmd := &cobra.Command{Use: "whoami", Short: "Tell who is signed in, and in which groups", Args: usage(cobra.NoArgs)}
	serverFlag(cmd, &server)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return whoami(cmd, server, *output) }
	return cmd
}

func whoami(cmd *cobra.Command, flag, format string) error {
	if err := checkOutput(format); err != nil {
		return err
	}
	client, server, err := signedIn(cmd, flag)
	if err != nil {
		return err
	}
	me, err := client.Me(cmd.Context())
	if err != nil {
		return err
	}
	return write(cmd.OutOrStdout(), format, me, func() [][]string {
		return [][]string{
			{"Server", server}, {"Username", me.Username}, {"Name", me.Name}, {"Subject", me.Sub},
			{"Groups", strings.Join(me.Groups, ", ")}, {"Administrator", yesNo(me.Admin)},
		}
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// signedIn returns a client for the server of the flag, and its URL.
func signedIn(cmd *cobra.Command, flag string) (*api.Client, string, error) {
	cache, server, err := pickServer(cmd, flag)
	if err != nil {
		return nil, "", err
	}
	client, err := cache.Client(api.Account{Server: server})
	return client, server, err
}

func logoutCommand() *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use: "logout", Short: "End the session of `tabard login` and forget its tokens",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, server, err := pickServer(cmd, server)
			if err != nil {
				return err
			}
			if err := cache.Logout(cmd.Context(), api.Account{Server: server}); err != nil {
				return err
			}
			return tell(cmd, "signed out of %s", server)
		},
	}
	serverFlag(cmd, &server)
	return cmd
}
