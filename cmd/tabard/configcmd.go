package main

import (
	_ "embed"
	"fmt"

	"github.com/spf13/cobra"
)

// exampleConfig is deploy/tabard.example.yaml; a test keeps them equal.
//
//go:embed tabard.example.yaml
var exampleConfig []byte

func configCommand() *cobra.Command {
	return family("config", "Check a configuration file, print an example or its schema",
		&cobra.Command{
			Use: "check FILE", Short: "Tell every mistake in a configuration file, with its line",
			Args: usage(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error { return checkConfig(cmd, args[0]) },
		},
		printCommand("example", "Print a commented example", func() ([]byte, error) { return exampleConfig, nil }),
		printCommand("schema", "Print the JSON Schema of the configuration file", configSchema),
	)
}

func printCommand(name, short string, text func() ([]byte, error)) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := text()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

func checkConfig(cmd *cobra.Command, path string) error {
	cfg, err := loadConfig(path)
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
		return errReported
	}
	for _, w := range cfg.warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w)
	}
	return tell(cmd, "ok\n%s", summary(cfg))
}

// summary tells a configuration in a few words.
func summary(cfg *Config) string {
	return fmt.Sprintf("issuer %s on %s, %s, %s, %s",
		cfg.Issuer, cfg.Listen, count(len(cfg.Directories), "directory", "directories"),
		count(len(cfg.Clusters), "cluster", "clusters"), count(len(cfg.Clients), "further client", "further clients"))
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
