package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
)

func sessionsCommand() *cobra.Command {
	f := &groupsFlags{}
	cmd := family("sessions", "Show and end sessions", f.listSessions(), f.endSessions())
	f.flags(cmd)
	return cmd
}

func (f *groupsFlags) listSessions() *cobra.Command {
	var person string
	var all bool
	cmd := f.command("list", "List sessions: yours, or as an administrator those of others", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		if all {
			person = "*"
		}
		sessions, err := c.Sessions(cmd.Context(), person)
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), f.output, api.SessionList{Sessions: append([]api.Session{}, sessions...)}, func() [][]string { return sessionRows(sessions) })
	})
	cmd.Flags().StringVar(&person, "person", "", "whose: a username or subject")
	cmd.Flags().BoolVar(&all, "all", false, "everybody's")
	return cmd
}

func sessionRows(sessions []api.Session) [][]string {
	rows := [][]string{{"ID", "USER", "CLIENTS", "ADDRESS", "DEVICE", "SIGNED IN", "LAST USED", "ENDS"}}
	for _, s := range sessions {
		held := s.Clients
		if s.Browser {
			held = append(held, "browser")
		}
		rows = append(rows, []string{s.ID, s.Username, strings.Join(held, ","), s.Address, s.Device, clock(s.Created), clock(s.LastUsed), clock(s.Ends)})
	}
	return rows
}

func (f *groupsFlags) endSessions() *cobra.Command {
	var person string
	cmd := f.command("end [ID…]", "End sessions, by id or all of one person", cobra.ArbitraryArgs, func(cmd *cobra.Command, c *api.Client, ids []string) error {
		if (person == "") == (len(ids) == 0) {
			return usageError{errors.New("say which: ids as `tabard sessions list` shows them, or --person for all of one person")}
		}
		if person != "" {
			n, err := c.EndSessions(cmd.Context(), person)
			if err != nil {
				return err
			}
			return tell(cmd, "%s of %s ended; tokens they gave out end within minutes", count(n, "session", "sessions"), person)
		}
		for _, id := range ids {
			if err := c.EndSession(cmd.Context(), id); err != nil {
				return fmt.Errorf("end %s: %w", id, err)
			}
			if err := tell(cmd, "session %s ended", id); err != nil {
				return err
			}
		}
		return nil
	})
	cmd.Flags().StringVar(&person, "person", "", "end every session of this person: a username or subject; of yourself all but this one")
	return cmd
}

func keysCommand() *cobra.Command {
	f := &groupsFlags{}
	cmd := family("keys", "Show and rotate the signing keys", f.listKeys(), f.rotateKeys())
	f.flags(cmd)
	return cmd
}

func (f *groupsFlags) listKeys() *cobra.Command {
	return f.command("list", "List the signing keys", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		keys, err := c.Keys(cmd.Context())
		if err != nil {
			return err
		}
		return f.writeKeys(cmd, keys)
	})
}

func (f *groupsFlags) writeKeys(cmd *cobra.Command, keys []api.Key) error {
	return write(cmd.OutOrStdout(), f.output, api.KeyList{Keys: keys}, func() [][]string {
		rows := [][]string{{"ID", "ALGORITHM", "STATE", "SIGNS FROM", "ENCRYPTED"}}
		for _, k := range keys {
			rows = append(rows, []string{k.ID, k.Algorithm, k.State, clock(k.Signs), strconv.FormatBool(k.Encrypted)})
		}
		return rows
	})
}

// emergencyCost is what an emergency rotation does, said before it is done.
const emergencyCost = `A new key signs at once, and every other one is gone:
- every id_token given out until now is refused once an API server has seen the new keys;
  kubectl-tabard and kubelogin get another when theirs expires, minutes later, tabard itself
  at once; a token pasted elsewhere is dead;
- people stay signed in: sessions and refresh tokens do not hang on these keys;
- an API server trusts the removed keys until it meets a token of the new one: afterwards run
  ` + "`kubectl auth whoami`" + ` against each API server, each replica by its own address.
Go ahead? Type yes: `

func (f *groupsFlags) rotateKeys() *cobra.Command {
	var emergency, yes bool
	cmd := f.command("rotate", "Publish the next signing key now", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		if emergency && !yes {
			if err := confirm(cmd, emergencyCost); err != nil {
				return err
			}
		}
		keys, err := c.RotateKeys(cmd.Context(), emergency)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.State == "next" {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s signs from %s on, when every API server knows it\n", k.ID, clock(k.Signs))
			}
		}
		return f.writeKeys(cmd, keys)
	})
	cmd.Flags().BoolVar(&emergency, "emergency", false, "a key was stolen: sign with a new one at once and drop all others")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
