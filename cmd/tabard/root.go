package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitDiffer = 3 // of `groups apply --dry-run`: something would change

	exitInterrupted = 130 // as a shell says it of SIGINT
)

// usageError says that a command was called wrongly.
type usageError struct{ error }

// errReported ends a command with exitFailed whose output says all already.
var errReported = errors.New("reported")

// errDiffer ends a command with exitDiffer whose output says what would change.
var errDiffer = errors.New("something would change")

// run executes one command and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var wrongUse usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, errDiffer):
		return exitDiffer
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "tabard: interrupted")
		return exitInterrupted
	case errors.As(err, &wrongUse):
		fmt.Fprintf(stderr, "tabard: %v\nSee `%s --help`.\n", err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "tabard: %v\n", err)
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "tabard", Short: "Sign in to Kubernetes with your directory account",
		SilenceErrors: true, SilenceUsage: true,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), configCommand(), demoCommand(), doctorCommand(), loginCommand(), whoamiCommand(), logoutCommand(), explainCommand(), groupsCommand(), clusterCommand(), auditCommand(), sessionsCommand(), keysCommand(), backupCommand(), restoreCommand(), versionCommand())
	return root
}

// usage makes the errors of an argument check usageErrors.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
		}
		return nil
	}
}

// configFlag adds --config, without which cmd, whose RunE is set, does nothing.
func configFlag(cmd *cobra.Command, config *string) {
	cmd.Flags().StringVar(config, "config", "", "configuration file")
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *config == "" {
			return usageError{fmt.Errorf("%s: --config is missing", cmd.CommandPath())}
		}
		return inner(cmd, args)
	}
}

// family is a command that only holds others.
func family(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("%s: say what to do", cmd.CommandPath())}
		},
	}
	cmd.AddCommand(sub...)
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			release, revision := buildVersion()
			return tell(cmd, "tabard %s (%s)", release, revision)
		},
	}
}
