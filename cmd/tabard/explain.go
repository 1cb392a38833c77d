package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

func explainCommand() *cobra.Command {
	f := &groupsFlags{}
	var cluster string
	cmd := f.command("explain [USER]", "Show which groups somebody's token holds, and why; without USER, your own", cobra.MaximumNArgs(1),
		func(cmd *cobra.Command, c *api.Client, args []string) error {
			user := ""
			if len(args) == 1 {
				user = args[0]
			} else if f.config != "" {
				return usageError{errors.New("explain: with --config nobody is signed in: say whom to explain")}
			}
			x, err := c.Explain(cmd.Context(), user, cluster)
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), f.output, x, func() [][]string { return explanationRows(x) })
		})
	f.flags(cmd)
	cmd.Flags().StringVar(&cluster, "cluster", "", "whose token; default a token of Tabard itself, which holds every group")
	return cmd
}

// explanationRows are the sections of x, with an empty row between two.
func explanationRows(x api.Explanation) [][]string {
	p := x.Person
	rows := [][]string{
		{"Person", p.Username, p.Name}, {"Entry", p.DN, "in directory " + p.Directory}, {"Subject", p.Sub},
		{"Account", p.Account},
	}
	if p.PasswordChanged != nil {
		rows = append(rows, []string{"Password", "changed " + clock(*p.PasswordChanged)})
	}
	rows = append(rows, tokenRows(x.Token)...)
	rows = append(rows, []string{}, []string{"GROUP IN THE TOKEN", "WHY", "UNTIL"})
	for _, g := range x.Groups {
		rows = append(rows, whyRows(g)...)
	}
	if len(x.Groups) == 0 {
		rows = append(rows, []string{"none"})
	}
	if len(x.LeftOut) > 0 {
		rows = append(rows, []string{}, []string{"LEFT OUT", "RULE", "WHAT"})
	}
	for _, l := range x.LeftOut {
		what := l.DN
		if l.Path != nil {
			what = pathText(*l.Path)
		}
		rows = append(rows, []string{l.Name, l.Rule, what})
	}
	rows = append(rows, []string{}, []string{"QUERY", "TIME", "ENTRIES", "BASE", "FILTER"})
	for _, q := range x.Queries {
		took := strconv.FormatFloat(q.Milliseconds, 'f', 1, 64) + " ms"
		rows = append(rows, []string{q.Doing, took, cmp.Or(q.Error, strconv.Itoa(q.Entries)), q.Base, q.Filter})
	}
	return append(rows, []string{"nested groups: " + cmp.Or(x.Strategy, "not known yet")})
}

func tokenRows(t api.ExplainedToken) [][]string {
	rows := [][]string{{"Token", cmp.Or(t.Cluster, "of Tabard itself"), fmt.Sprintf("about %d of at most %d bytes", t.Size, t.MaxSize)}}
	if t.SizeAdvice != "" {
		rows = append(rows, []string{"LARGE", t.SizeAdvice})
	}
	if len(t.RequireGroups) > 0 {
		rows = append(rows, []string{"Requires", "one of " + strings.Join(t.RequireGroups, ", ")})
	}
	if t.Refused != "" {
		rows = append(rows, []string{"REFUSED", t.Refused})
	}
	for _, name := range slices.Sorted(maps.Keys(t.Claims)) {
		value := fmt.Sprint(t.Claims[name])
		if n, ok := t.Claims[name].(float64); ok { // all numbers are times
			value = clock(time.Unix(int64(n), 0))
		}
		if list, ok := t.Claims[name].([]any); ok && len(list) > 1 {
			value = count(len(list), "value", "values")
		}
		rows = append(rows, []string{"Claim", name, value})
	}
	return rows
}

// whyRows has a row for each way that g came in, and below a way through groups one for
// each step of it.
func whyRows(g api.ExplainedGroup) [][]string {
	var rows [][]string
	if len(g.Path) > 0 {
		rows = append(rows, []string{g.Name, strings.Join(g.Path, " > "), "with the directory"})
	}
	for _, p := range g.Paths {
		if len(p.Steps) == 1 {
			rows = append(rows, []string{g.Name, pathText(p) + ", " + granted(p.Steps[0].Member), untilText(p)})
			continue
		}
		rows = append(rows, []string{g.Name, pathText(p), untilText(p)})
		for _, s := range p.Steps {
			one := api.Path{Steps: []api.Step{s}, Begin: s.Member.Begin, End: s.Member.End}
			rows = append(rows, []string{"", "  " + memberName(s.Member.Ref) + " in " + s.Group + ", " + granted(s.Member), untilText(one)})
		}
	}
	return rows
}

// granted says who granted a membership, when and why.
func granted(m api.Member) string {
	text := "added"
	if by := cmp.Or(m.GrantedByName, m.GrantedBy); by != "" {
		text += " by " + by
	}
	if m.GrantedAt != nil {
		text += " at " + clock(*m.GrantedAt)
	}
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	return text
}

func clock(t time.Time) string { return t.Local().Format(time.RFC3339) }
