package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/tabard-id/tabard/internal/api"
)

// outputFlag adds -o to cmd.
func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "table", "table, json or yaml")
}

// checkOutput refuses an unknown format before anything is done.
func checkOutput(format string) error {
	switch format {
	case "table", "json", "yaml":
		return nil
	}
	return usageError{fmt.Errorf("-o %s: use table, json or yaml", format)}
}

// write prints v as JSON or YAML, or the rows, whose first is the header, as a
// table.
func write(w io.Writer, format string, v any, rows func() [][]string) error {
	if format == "table" {
		return writeTable(w, rows())
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write the output: %w", err)
	}
	b = append(b, '\n')
	if format == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
	}
	_, err = w.Write(b)
	return err
}

func writeTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, api.Printable(cell))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
