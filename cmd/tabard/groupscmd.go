package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/idp"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/web"
)

// groupsFlags say where the groups, and what explains them, are: at a server, or in a
// store that is opened here.
type groupsFlags struct{ server, config, output string }

func groupsCommand() *cobra.Command {
	f := &groupsFlags{}
	cmd := family("groups", "Show and change local groups",
		f.list(), f.show(), f.create(), f.delete(), f.add(), f.remove())
	f.flags(cmd)
	return cmd
}

func (f *groupsFlags) flags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.server, "server", "", "issuer URL; default TABARD_SERVER, else the last one signed in to")
	cmd.PersistentFlags().StringVar(&f.config, "config", "", "configuration file: work on its store while the server is stopped")
	cmd.PersistentFlags().StringVarP(&f.output, "output", "o", "table", "table, json or yaml")
}

// command makes one of the commands. do gets the client of a server, or of the
// store itself.
func (f *groupsFlags) command(use, short string, check cobra.PositionalArgs, do func(*cobra.Command, *api.Client, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: usage(check),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(f.output); err != nil {
				return err
			}
			if f.config == "" {
				client, _, err := signedIn(cmd, f.server)
				if err != nil {
					return err
				}
				return do(cmd, client, args)
			}
			return offline(cmd, f.config, func(client *api.Client) error { return do(cmd, client, args) })
		},
	}
}

// offline opens the store of a stopped server and gives do a client that reaches
// the API without a network, as the operator.
func offline(cmd *cobra.Command, path string, do func(*api.Client) error) error {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(cmd.ErrOrStderr())
	log.SetLevel(logrus.ErrorLevel)
	f, err := openFoundation(cmd.Context(), cfg, log)
	if errors.Is(err, store.ErrInUse) {
		return fmt.Errorf("the server has the store open: leave out --config and sign in with `tabard login --server %s`, or stop the server", cfg.Issuer)
	}
	if err != nil {
		return err
	}
	defer f.close(log)
	a := &assembly{cfg: cfg}
	defer a.close()
	keys, err := idp.OpenKeys(cmd.Context(), f.store, cfg.Keys, log, nil)
	if err != nil {
		return fmt.Errorf("open the signing keys: %w", err)
	}
	a.closers = append(a.closers, keys.Close)
	sessions, err := idp.OpenSessions(cmd.Context(), f.store, log)
	if err != nil {
		return fmt.Errorf("open the sessions: %w", err)
	}
	a.closers = append(a.closers, sessions.Close)
	parts := idp.Parts{Store: f.store, Trail: f.trail, Keys: keys, Sessions: sessions, Log: log}
	dirs, err := a.openDirectories()
	if err != nil {
		return err
	}
	for _, d := range dirs {
		parts.Directories = append(parts.Directories, d)
	}
	local, err := a.openGroups(cmd.Context(), f, log)
	if err != nil {
		return err
	}
	parts.Groups = local
	svc, err := idp.New(cmd.Context(), cfg.idp, parts) // it signs nothing
	if err != nil {
		return err
	}
	h := web.API(local, svc, groups.Actor{Sub: "operator", Name: "operator", Operator: true}, log)
	return do(api.NewClient("http://store", &http.Client{Transport: handlerTransport{h}}, nil))
}

// handlerTransport answers requests from a handler in this process.
type handlerTransport struct{ h http.Handler }

// RoundTrip implements http.RoundTripper.
func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &answer{header: http.Header{}}
	t.h.ServeHTTP(w, in)
	return &http.Response{StatusCode: w.code(), Header: w.header, Body: io.NopCloser(&w.body), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// answer is an http.ResponseWriter in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = cmp.Or(a.status, status) }

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

func (a *answer) code() int { return cmp.Or(a.status, http.StatusOK) }

func (f *groupsFlags) list() *cobra.Command {
	return f.command("list", "List the local groups", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		all, err := c.Groups(cmd.Context())
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), f.output, api.GroupList{Groups: all}, func() [][]string {
			rows := [][]string{{"NAME", "MEMBERS", "DESCRIPTION"}}
			for _, g := range all {
				rows = append(rows, []string{g.Name, strconv.Itoa(g.MemberCount), g.Description})
			}
			return rows
		})
	})
}

func (f *groupsFlags) show() *cobra.Command {
	return f.command("show GROUP", "Show who is in a local group", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		g, err := c.Group(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), f.output, g, func() [][]string { return memberRows(g) })
	})
}

func memberRows(g api.Group) [][]string {
	rows := [][]string{{"MEMBER", "KIND", "ENDS", "GRANTED BY", "REASON", "ID"}}
	for _, m := range g.Members {
		kind, ends := "person", "never"
		if m.Kind == api.KindDirectoryGroup {
			kind = "group"
		}
		if m.End != nil {
			ends = m.End.Local().Format(time.RFC3339)
		}
		if m.Ended {
			ends = "ended " + ends
		}
		rows = append(rows, []string{memberName(m), kind, ends, m.GrantedByName, m.Reason, m.ID})
	}
	return rows
}

func memberName(m api.Member) string {
	if m.Name == "" {
		return m.ID
	}
	return m.Name
}

func (f *groupsFlags) create() *cobra.Command {
	var description string
	cmd := f.command("create GROUP", "Create a local group", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		if _, err := c.CreateGroup(cmd.Context(), args[0], description); err != nil {
			return err
		}
		return tell(cmd, "group %s created", args[0])
	})
	cmd.Flags().StringVar(&description, "description", "", "what the group is for")
	return cmd
}

func tell(cmd *cobra.Command, format string, args ...any) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	return err
}

func (f *groupsFlags) delete() *cobra.Command {
	var yes bool
	cmd := f.command("delete GROUP", "Delete a local group and its memberships", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		g, err := c.Group(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if !yes {
			if err := confirm(cmd, fmt.Sprintf("%s loses group %s now. Delete it? Type yes: ", count(len(g.Members), "member", "members"), g.Name)); err != nil {
				return err
			}
		}
		if err := c.DeleteGroup(cmd.Context(), g.Name); err != nil {
			return err
		}
		return tell(cmd, "group %s deleted", g.Name)
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirm asks in the terminal; without one it fails.
func confirm(cmd *cobra.Command, question string) error {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("there is no terminal to ask in: say --yes to go ahead")
	}
	fmt.Fprint(cmd.ErrOrStderr(), question)
	b := make([]byte, 64)
	n, err := in.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(string(b[:n])) != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// who names members: people as arguments or by flag, directory groups by flag.
type who struct{ people, groups []string }

func (w *who) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&w.people, "person", nil, "a person, as they sign in, or their subject; may be repeated")
	cmd.Flags().StringArrayVar(&w.groups, "group", nil, "a directory group such as corp:devs; may be repeated")
}

func (w *who) with(args []string) (people, groups []string, err error) {
	people = append(args[1:len(args):len(args)], w.people...)
	if len(people)+len(w.groups) == 0 {
		return nil, nil, usageError{errors.New("say who: a username, --person or --group")}
	}
	return people, w.groups, nil
}

func (f *groupsFlags) add() *cobra.Command {
	var w who
	var until, reason string
	cmd := f.command("add GROUP [PERSON…]", "Add people or directory groups to a local group", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		people, dirGroups, err := w.with(args)
		if err != nil {
			return err
		}
		end, err := parseUntil(until, time.Now())
		if err != nil {
			return err
		}
		for _, p := range people {
			if err := addOne(cmd, c, args[0], p, api.AddMember{Person: p, End: end, Reason: reason}); err != nil {
				return err
			}
		}
		for _, g := range dirGroups {
			if err := addOne(cmd, c, args[0], g, api.AddMember{DirectoryGroup: g, End: end, Reason: reason}); err != nil {
				return err
			}
		}
		return nil
	})
	w.flags(cmd)
	cmd.Flags().StringVar(&until, "until", "", "when the membership ends: 8h, or 2027-01-31T18:00:00Z")
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	return cmd
}

func addOne(cmd *cobra.Command, c *api.Client, group, name string, m api.AddMember) error {
	if err := c.AddMember(cmd.Context(), group, m); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return tell(cmd, "%s added to %s", name, group)
}

// parseUntil reads a duration from now or a time; "" is no end.
func parseUntil(s string, now time.Time) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		end := now.Add(d)
		return &end, nil
	}
	end, err := time.Parse(time.RFC3339, s)
	if err != nil || !end.After(now) {
		return nil, usageError{errors.New("--until must be a duration such as 8h, or a time to come such as 2027-01-31T18:00:00Z")}
	}
	return &end, nil
}

func (f *groupsFlags) remove() *cobra.Command {
	var w who
	cmd := f.command("remove GROUP [PERSON…]", "Remove people or directory groups from a local group", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		people, dirGroups, err := w.with(args)
		if err != nil {
			return err
		}
		g, err := c.Group(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		for _, p := range people {
			if err := removeOne(cmd.Context(), c, g, api.KindPerson, p); err != nil {
				return err
			}
			if err := tell(cmd, "%s removed from %s", p, g.Name); err != nil {
				return err
			}
		}
		for _, d := range dirGroups {
			if err := removeOne(cmd.Context(), c, g, api.KindDirectoryGroup, d); err != nil {
				return err
			}
			if err := tell(cmd, "%s removed from %s", d, g.Name); err != nil {
				return err
			}
		}
		return nil
	})
	w.flags(cmd)
	return cmd
}

// removeOne removes the member that name means: its id, or the username as of
// when it was granted, so that someone who left the directory can be removed too.
func removeOne(ctx context.Context, c *api.Client, g api.Group, kind, name string) error {
	var ids []string
	for _, m := range g.Members {
		if m.Kind == kind && m.ID == name {
			return c.RemoveMember(ctx, g.Name, kind, m.ID)
		}
		if m.Kind == kind && strings.EqualFold(m.Name, name) {
			ids = append(ids, m.ID)
		}
	}
	switch len(ids) {
	case 0:
		return fmt.Errorf("%s is not in %s: `tabard groups show %s` lists who is", name, g.Name, g.Name)
	case 1:
		return c.RemoveMember(ctx, g.Name, kind, ids[0])
	}
	return fmt.Errorf("%s is more than one member of %s: name one by id: %s", name, g.Name, strings.Join(ids, ", "))
}
