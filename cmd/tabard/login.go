package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/pkg/browser"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tabard-id/tabard/internal/api"
)

// browserTime is how long a person has to sign in in the browser.
const browserTime = 5 * time.Minute

// loginFlags are the flags of `tabard login`.
type loginFlags struct {
	server, caFile, username       string
	browser, prompt, passwordStdin bool
}

func loginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use: "login", Short: "Sign in once for the commands of tabard",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return login(cmd, f) },
	}
	serverFlag(cmd, &f.server)
	cmd.Flags().StringVar(&f.caFile, "ca-file", "", "PEM file with the CA of the server's certificate, besides the system's")
	cmd.Flags().StringVar(&f.username, "username", "", "who to sign in as")
	cmd.Flags().BoolVar(&f.browser, "browser", false, "sign in in a browser")
	cmd.Flags().BoolVar(&f.prompt, "prompt", false, "ask for the password in this terminal")
	cmd.Flags().BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from standard input; needs --username")
	return cmd
}

func serverFlag(cmd *cobra.Command, server *string) {
	cmd.Flags().StringVar(server, "server", "", "issuer URL; default TABARD_SERVER, else the last one signed in to")
}

// pickServer returns the server to talk to, and the cache.
func pickServer(flag string) (*api.Cache, string, error) {
	cache, err := api.OpenCache("")
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

func login(cmd *cobra.Command, f loginFlags) error {
	if f.browser && (f.prompt || f.passwordStdin) || f.passwordStdin && f.username == "" {
		return usageError{errors.New("login: use one of --browser, --prompt, and --password-stdin with --username")}
	}
	cache, server, err := pickServer(f.server)
	if err != nil {
		return err
	}
	known, _ := cache.Load(server) // for its CA; none is no error
	ca := known.CA
	if f.caFile != "" {
		b, err := os.ReadFile(f.caFile)
		if err != nil {
			return fmt.Errorf("--ca-file %s %s", f.caFile, fileTrouble(err))
		}
		ca = string(b)
	}
	how, err := chooseLogin(cmd, f)
	if err != nil {
		return err
	}
	s, err := api.NewSignIn(cmd.Context(), server, ca)
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := how(s)
	if err != nil {
		return err
	}
	if err := cache.Save(l); err != nil {
		return err
	}
	return whoami(cmd, "", "table")
}

// chooseLogin picks the browser where there likely is one, else the terminal. It
// never prompts where nobody can answer.
func chooseLogin(cmd *cobra.Command, f loginFlags) (func(*api.SignIn) (api.Login, error), error) {
	if f.passwordStdin {
		return func(s *api.SignIn) (api.Login, error) { return s.Prompt(cmd.Context(), pipedAsker(cmd, f)) }, nil
	}
	if f.browser || !f.prompt && hasDisplay() {
		return func(s *api.SignIn) (api.Login, error) { return browserLogin(cmd, s, f.username) }, nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, errors.New("there is no terminal to ask for the password in: use --browser, or --username with --password-stdin")
	}
	return func(s *api.SignIn) (api.Login, error) { return s.Prompt(cmd.Context(), terminalAsker(cmd, in, f)) }, nil
}

// hasDisplay guesses whether a browser can be shown here.
func hasDisplay() bool {
	if runtime.GOOS == "darwin" || runtime.GOOS == "windows" {
		return os.Getenv("SSH_CONNECTION") == ""
	}
	return os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
}

func browserLogin(cmd *cobra.Command, s *api.SignIn, username string) (api.Login, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), browserTime)
	defer cancel()
	return s.Browser(ctx, username, func(url string) error {
		fmt.Fprintf(cmd.ErrOrStderr(), "Sign in in the browser. If none opens, visit:\n%s\n", url)
		browser.Stdout, browser.Stderr = io.Discard, io.Discard
		_ = browser.OpenURL(url) // the line above is the other way
		return nil
	})
}

// terminalAsker asks in the terminal, the password without echo.
func terminalAsker(cmd *cobra.Command, in *os.File, f loginFlags) api.Asker {
	out, lines := cmd.ErrOrStderr(), bufio.NewReader(in)
	line := func(prompt string) (string, error) {
		fmt.Fprint(out, prompt)
		s, err := lines.ReadString('\n')
		if err != nil && s == "" {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		return strings.TrimSpace(s), nil
	}
	return api.Asker{
		Username: func() (string, error) {
			if f.username != "" {
				return f.username, nil
			}
			return line("Username: ")
		},
		Password: func() (string, error) {
			fmt.Fprint(out, "Password: ")
			b, err := term.ReadPassword(int(in.Fd()))
			fmt.Fprintln(out)
			if err != nil {
				return "", fmt.Errorf("read the password: %w", err)
			}
			return string(b), nil
		},
		Directory: func(names []string) (string, error) {
			return line("This username is in several directories (" + printable(strings.Join(names, ", ")) + "). Which is yours? ")
		},
		Tell:  func(m string) { fmt.Fprintln(out, m) },
		Tries: 3,
	}
}

// pipedAsker takes the password from standard input, once.
func pipedAsker(cmd *cobra.Command, f loginFlags) api.Asker {
	return api.Asker{
		Username: func() (string, error) { return f.username, nil },
		Password: func() (string, error) {
			b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxSecret))
			if err != nil {
				return "", fmt.Errorf("read the password: %w", err)
			}
			return strings.TrimRight(string(b), "\r\n"), nil
		},
		Directory: func(names []string) (string, error) {
			return "", fmt.Errorf("%s is in several directories (%s): write the username with its directory's suffix", f.username, strings.Join(names, ", "))
		},
	}
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
	client, server, err := signedIn(flag)
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
func signedIn(flag string) (*api.Client, string, error) {
	cache, server, err := pickServer(flag)
	if err != nil {
		return nil, "", err
	}
	client, err := cache.Client(server)
	return client, server, err
}

func logoutCommand() *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use: "logout", Short: "End the session of `tabard login` and forget its tokens",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, server, err := pickServer(server)
			if err != nil {
				return err
			}
			if err := cache.Logout(cmd.Context(), server); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "signed out of %s\n", server)
			return err
		},
	}
	serverFlag(cmd, &server)
	return cmd
}
