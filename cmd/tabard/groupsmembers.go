package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

// who names members: people as arguments or by flag, groups by flag.
type who struct{ people, groups, locals []string }

func (w *who) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&w.people, "person", nil, "a person, as they sign in, or their subject; may be repeated")
	cmd.Flags().StringArrayVar(&w.groups, "group", nil, "a directory group such as corp:devs; may be repeated")
	cmd.Flags().StringArrayVar(&w.locals, "local-group", nil, "a local group; may be repeated")
}

// named is one member as it was named.
type named struct{ kind, name string }

// with lists all who were named, args[0] being the group to change.
func (w *who) with(args []string) ([]named, error) {
	var all []named
	for _, p := range append(args[1:len(args):len(args)], w.people...) {
		all = append(all, named{api.KindPerson, p})
	}
	for _, g := range w.groups {
		all = append(all, named{api.KindDirectoryGroup, g})
	}
	for _, g := range w.locals {
		all = append(all, named{api.KindGroup, g})
	}
	if len(all) == 0 {
		return nil, usageError{errors.New("say who: a username, --person, --group or --local-group")}
	}
	return all, nil
}

func (f *groupsFlags) add() *cobra.Command {
	var w who
	var from, until, reason string
	var begin, end *time.Time
	cmd := f.command("add GROUP [PERSON…]", "Add people, directory groups or local groups to a local group", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		all, err := w.with(args)
		if err != nil {
			return err
		}
		for _, one := range all {
			m := api.AddMember{Begin: begin, End: end, Reason: reason}
			switch one.kind {
			case api.KindPerson:
				m.Person = one.name
			case api.KindDirectoryGroup:
				m.DirectoryGroup = one.name
			case api.KindGroup:
				m.Group = one.name
			}
			if _, err := c.AddMember(cmd.Context(), args[0], "", m); api.HasCode(err, "not-found") {
				return missing(args[0], err)
			} else if err != nil {
				return fmt.Errorf("add %s: %w", one.name, err)
			}
			if err := tell(cmd, "%s added to %s", one.name, args[0]); err != nil {
				return err
			}
		}
		return nil
	})
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		now := time.Now()
		if begin, err = parseMoment("--from", from, now); err == nil {
			end, err = parseMoment("--until", until, now)
		}
		return err
	}
	w.flags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "when the membership begins: 8h from now, or 2027-01-31T18:00:00Z; default at once")
	cmd.Flags().StringVar(&until, "until", "", "when the membership ends: 8h from now, or 2027-01-31T18:00:00Z; default never")
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	return cmd
}

// parseMoment reads a duration from now or a time to come; "" is none.
func parseMoment(flag, s string, now time.Time) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		t := now.Add(d)
		return &t, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !t.After(now) {
		return nil, usageError{fmt.Errorf("%s must be a duration such as 8h, or a time to come such as 2027-01-31T18:00:00Z", flag)}
	}
	return &t, nil
}

func (f *groupsFlags) remove() *cobra.Command {
	var w who
	cmd := f.command("remove GROUP [PERSON…]", "Remove members from a local group", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		all, err := w.with(args)
		if err != nil {
			return err
		}
		for _, one := range all {
			if err := removeOne(cmd.Context(), c, args[0], one); err != nil {
				return err
			}
			if err := tell(cmd, "%s removed from %s", one.name, args[0]); err != nil {
				return err
			}
		}
		return nil
	})
	w.flags(cmd)
	return cmd
}

// removeOne removes the member that is named: by id, or by the username as of when it
// was granted, so that someone who left the directory can be removed too.
func removeOne(ctx context.Context, c *api.Client, group string, one named) error {
	var ids []string
	for m, err := range c.Members(ctx, group, one.kind, one.name) {
		if err != nil {
			return missing(group, err)
		}
		if m.ID == one.name {
			ids = []string{m.ID}
			break
		}
		if strings.EqualFold(m.Name, one.name) {
			ids = append(ids, m.ID)
		}
	}
	switch len(ids) {
	case 0:
		return fmt.Errorf("%s is not in %s: `tabard groups show %s` lists who is", one.name, group, group)
	case 1:
		_, err := c.RemoveMember(ctx, group, "", one.kind, ids[0])
		return err
	}
	return fmt.Errorf("%s is more than one member of %s: name one by id: %s", one.name, group, strings.Join(ids, ", "))
}

func (f *groupsFlags) everyone() *cobra.Command {
	var people bool
	var limit int
	cmd := f.command("everyone GROUP", "Show who gets a local group, also through groups in it, and how", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		if limit < 1 || limit > 10_000 {
			return usageError{errors.New("--limit is a number from 1 to 10000")}
		}
		all, err := c.Everyone(cmd.Context(), args[0], limit, people)
		if err != nil {
			return missing(args[0], err)
		}
		if all.Cut {
			fmt.Fprintf(cmd.ErrOrStderr(), "There are more than %d: see more with --limit.\n", limit)
		}
		return write(cmd.OutOrStdout(), f.output, all, func() [][]string { return everyoneRows(all) })
	})
	cmd.Flags().BoolVar(&people, "people", false, "also list who is in the directory groups")
	cmd.Flags().IntVar(&limit, "limit", 1000, "at most this many")
	return cmd
}

// everyoneRows has a row for each path, and below a directory group its people.
func everyoneRows(all api.Everyone) [][]string {
	rows := [][]string{{"WHO", "KIND", "HOW", "UNTIL"}}
	for _, one := range all.Everyone {
		for _, p := range one.Paths {
			rows = append(rows, []string{memberName(one.Ref), kindText(one.Kind), pathText(p), untilText(p)})
		}
		for _, p := range one.People {
			rows = append(rows, []string{"  " + p.Username, api.KindPerson, "in " + one.ID, p.Name})
		}
		for _, text := range peopleNotes(one) {
			rows = append(rows, []string{"  …", kindText(one.Kind), text})
		}
	}
	return rows
}

// peopleNotes say who is in a directory group besides the people that are listed.
func peopleNotes(one api.Reach) []string {
	var notes []string
	if one.PeopleCut {
		notes = append(notes, "in "+one.ID+" are more")
	}
	switch n := one.Unreadable; {
	case n == 1:
		notes = append(notes, "1 more member of "+one.ID+" is nobody that could sign in")
	case n > 1:
		notes = append(notes, fmt.Sprintf("%d more members of %s are no people that could sign in", n, one.ID))
	}
	if one.Problem != "" {
		notes = append(notes, "who is in "+one.ID+" could not be read: "+one.Problem)
	}
	return notes
}

// pathText is the way of p: alice → platform → prod-admin.
func pathText(p api.Path) string {
	way := []string{memberName(p.Steps[0].Member.Ref)}
	for _, s := range p.Steps {
		way = append(way, s.Group)
	}
	return strings.Join(way, " → ")
}

// noEnd stands where a membership or a path has no end.
const noEnd = "no end"

// untilText says how long a path counts.
func untilText(p api.Path) string {
	now := time.Now()
	text := noEnd
	if p.End != nil {
		text = clock(*p.End)
	}
	switch {
	case p.End != nil && !p.End.After(now):
		return "ended " + text
	case p.Begin != nil && p.Begin.After(now) && p.End == nil:
		return "from " + clock(*p.Begin) + ", " + text
	case p.Begin != nil && p.Begin.After(now):
		return "from " + clock(*p.Begin) + " until " + text
	}
	return text
}
