package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

// maxGroupFile bounds what is read of one file, in bytes: as much as the API takes.
const maxGroupFile = 64 << 20

func (f *groupsFlags) export() *cobra.Command {
	var filter api.GroupFilter
	cmd := f.command("export", "Write local groups with their members as YAML, as apply reads it", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		if cmd.Flags().Changed("output") && f.output != "yaml" {
			return usageError{errors.New("groups export writes YAML alone")}
		}
		out := bufio.NewWriter(cmd.OutOrStdout())
		if err := c.Export(cmd.Context(), filter, func(g api.File) error { return writeGroup(out, g) }); err != nil {
			return err
		}
		return out.Flush()
	})
	filterFlags(cmd, &filter)
	return cmd
}

func (f *groupsFlags) apply() *cobra.Command {
	var dryRun, yes bool
	var prune []string
	cmd := f.command("apply FILE…", "Make local groups what files, or the *.yaml in folders, say; - is standard input", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		for _, p := range prune {
			if k, v, _ := strings.Cut(p, "="); k == "" || v == "" {
				return usageError{fmt.Errorf("--prune %s: write key=value", p)}
			}
		}
		files, err := readGroupFiles(args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		if len(prune) > 0 && !dryRun && !yes {
			if err := confirmPrune(cmd, c, files, prune); err != nil {
				return err
			}
		}
		done, err := c.Apply(cmd.Context(), files, dryRun, prune)
		if err != nil {
			return err
		}
		if err := write(cmd.OutOrStdout(), f.output, done, func() [][]string { return appliedRows(done) }); err != nil {
			return err
		}
		if dryRun && len(done.Changes) > 0 {
			return errDiffer
		}
		return nil
	})
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, print what would change; exit with 3 if anything would")
	cmd.Flags().StringArrayVar(&prune, "prune", nil, "delete groups with this label, key=value, that no file names; repeated: with all of them")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before groups are deleted")
	return cmd
}

// confirmPrune names the groups that would be deleted, and asks.
func confirmPrune(cmd *cobra.Command, c *api.Client, files []api.File, prune []string) error {
	would, err := c.Apply(cmd.Context(), files, true, prune)
	if err != nil {
		return err
	}
	var gone []string
	for _, ch := range would.Changes {
		if ch.Act == "delete" {
			gone = append(gone, api.Printable(ch.Group))
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return confirm(cmd, fmt.Sprintf("No file names %s. Delete %s with their memberships? Type yes: ", strings.Join(gone, ", "), count(len(gone), "group", "groups")))
}

// appliedRows has a row for each change, and a count.
func appliedRows(done api.Applied) [][]string {
	var rows [][]string
	counts := map[string]int{}
	for _, ch := range done.Changes {
		counts[ch.Act]++
		for _, line := range changeLines(ch) {
			rows = append(rows, []string{line})
		}
	}
	var parts []string
	for _, kind := range []struct{ act, one, many, done string }{
		{"create", "group", "groups", "created"}, {"edit", "group", "groups", "changed"}, {"delete", "group", "groups", "deleted"},
		{"add", "member", "members", "added"}, {"change", "member", "members", "changed"}, {"remove", "member", "members", "removed"},
	} {
		if n := counts[kind.act]; n > 0 {
			parts = append(parts, count(n, kind.one, kind.many)+" "+kind.done)
		}
	}
	sum := cmp.Or(strings.Join(parts, ", "), "nothing to change")
	if done.DryRun && len(parts) > 0 {
		sum = "would be: " + sum
	}
	return append(rows, []string{sum})
}

// changeLines is one change as a diff has it: + added, ~ changed, - removed.
func changeLines(ch api.AppliedChange) []string {
	sign := map[string]string{"create": "+", "add": "+", "delete": "-", "remove": "-"}[ch.Act]
	line := cmp.Or(sign, "~") + " group " + ch.Group
	if ch.Member != nil {
		line += ": " + kindText(ch.Member.Kind) + " " + memberName(*ch.Member)
	}
	lines := []string{line}
	for _, field := range slices.Sorted(maps.Keys(ch.Diff)) {
		lines = append(lines, "    "+field+": "+ch.Diff[field])
	}
	return lines
}

// readGroupFiles reads all groups that paths hold, or every mistake in them.
func readGroupFiles(paths []string, stdin io.Reader) ([]api.File, error) {
	sources, err := expand(paths)
	if err != nil {
		return nil, err
	}
	var all []api.File
	var wrong []error
	first := map[string]string{} // where each group was first
	for _, source := range sources {
		b, err := readBounded(source, stdin)
		if err != nil {
			return nil, err
		}
		f := readGroups(b)
		for i, g := range f.groups {
			at := fmt.Sprintf("%s:%d", source, f.lines[i].line)
			if earlier, twice := first[g.Name]; twice && g.Name != "" {
				f.mistakes = append(f.mistakes, mistake{f.lines[i], "name", fmt.Sprintf("%q is in %s already: a group is in one document", g.Name, earlier)})
			} else {
				first[g.Name] = at
			}
		}
		if len(f.mistakes) > 0 {
			wrong = append(wrong, &configError{source, f.mistakes})
		}
		all = append(all, f.groups...)
	}
	return all, errors.Join(wrong...)
}

// expand puts the *.yaml and *.yml files of a folder, by name, in its place.
func expand(paths []string) ([]string, error) {
	var sources []string
	for _, p := range paths {
		if info, err := os.Stat(p); p == "-" || err != nil || !info.IsDir() {
			sources = append(sources, p) // what is not there is found when it is read
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, fmt.Errorf("read the folder: %w", err)
		}
		n := len(sources)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
				sources = append(sources, filepath.Join(p, e.Name()))
			}
		}
		if len(sources) == n {
			return nil, fmt.Errorf("%s: the folder holds no *.yaml file", p)
		}
	}
	return sources, nil
}

func readBounded(source string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if source != "-" {
		file, err := os.Open(source)
		if err != nil {
			return nil, fmt.Errorf("%s %s", source, fileTrouble(err))
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, maxGroupFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	if len(b) > maxGroupFile {
		return nil, fmt.Errorf("%s is larger than %d MiB: split it", source, maxGroupFile>>20)
	}
	return b, nil
}
