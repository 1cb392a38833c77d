package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/web"
)

// groupsFlags say where the groups, and what explains them, are: at a server, or in a
// store that is opened here.
type groupsFlags struct{ server, config, output string }

func groupsCommand() *cobra.Command {
	f := &groupsFlags{}
	cmd := family("groups", "Show and change local groups",
		f.list(), f.show(), f.create(), f.edit(), f.rename(), f.delete(), f.add(), f.remove(), f.everyone(), f.export(), f.apply())
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
	instead := fmt.Sprintf("leave out --config and sign in with `tabard login --server %s`, or stop the server", cfg.Issuer)
	return onStore(cmd, cfg, openFoundation, instead, func(ctx context.Context, f *foundation, log logrus.FieldLogger) error {
		a := &assembly{cfg: cfg}
		defer a.close()
		if _, err := a.openRooms(ctx, f, log); err != nil {
			return err
		}
		h := web.API(a.groups, a.idp, groups.Actor{Sub: "operator", Name: "operator", Operator: true}, log)
		transport := &handlerTransport{h: h}
		defer transport.running.Wait() // before the store is closed
		return do(api.NewClient("http://store", &http.Client{Transport: transport}, nil))
	})
}

// handlerTransport answers requests from a handler in this process, while it is written.
type handlerTransport struct {
	h       http.Handler
	running sync.WaitGroup
}

// RoundTrip implements http.RoundTripper. Its goroutine ends when the handler does, whose
// writes fail once the body is closed.
func (t *handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	body, pipe := io.Pipe()
	w := &answer{header: http.Header{}, body: pipe, begun: make(chan struct{})}
	t.running.Go(func() {
		err := io.ErrUnexpectedEOF // of a handler that panics to break its answer off
		defer func() {
			_ = recover()
			w.begin(http.StatusOK)
			_ = pipe.CloseWithError(err)
		}()
		t.h.ServeHTTP(w, in)
		err = nil
	})
	<-w.begun
	return &http.Response{StatusCode: w.status, Header: w.sent, Body: body, Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// answer is an http.ResponseWriter that writes to a reader in this process.
type answer struct {
	header, sent http.Header
	status       int // once begun is closed
	body         *io.PipeWriter
	begun        chan struct{}
}

// begin sends the head, once.
func (a *answer) begin(status int) {
	if a.status == 0 {
		a.status, a.sent = status, a.header.Clone()
		close(a.begun)
	}
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.begin(status) }

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	a.begin(http.StatusOK)
	return a.body.Write(b)
}

func (f *groupsFlags) list() *cobra.Command {
	var filter api.GroupFilter
	cmd := f.command("list", "List local groups", cobra.NoArgs, func(cmd *cobra.Command, c *api.Client, _ []string) error {
		all, err := collect(c.Groups(cmd.Context(), filter))
		if err != nil {
			return err
		}
		if len(all) == 0 && f.output == "table" {
			fmt.Fprintln(cmd.ErrOrStderr(), noGroups(filter))
			return nil
		}
		return write(cmd.OutOrStdout(), f.output, api.GroupList{Groups: all}, func() [][]string {
			rows := [][]string{{"NAME", "MEMBERS", "CLUSTERS", "LABELS", "DESCRIPTION"}}
			for _, g := range all {
				rows = append(rows, []string{g.Name, strconv.Itoa(g.MemberCount), orAll(g.Clusters), labelText(g.Labels), g.Description})
			}
			return rows
		})
	})
	filterFlags(cmd, &filter)
	return cmd
}

// checkFilter refuses values that are not in the form they have.
func checkFilter(f api.GroupFilter) error {
	for _, l := range f.Labels {
		if k, _, _ := strings.Cut(l, "="); k == "" {
			return usageError{fmt.Errorf("--label %s: write key=value, or key for any value", l)}
		}
	}
	kind, id, _ := strings.Cut(f.Member, ":")
	if f.Member != "" && (id == "" || !slices.Contains([]string{api.KindPerson, api.KindDirectoryGroup, api.KindGroup}, kind)) {
		return usageError{fmt.Errorf("--member %s: write person:alice, directoryGroup:corp:devs or group:platform", f.Member)}
	}
	return nil
}

// noGroups is said in place of an empty table.
func noGroups(f api.GroupFilter) string {
	if f.Query+f.Cluster+f.Owner+f.Member != "" || len(f.Labels) > 0 || f.Mine {
		return "No group fits: `tabard groups list` alone shows all that you may see."
	}
	return "There is no local group that you may see: `tabard groups create NAME` makes one, as an administrator."
}

func filterFlags(cmd *cobra.Command, f *api.GroupFilter) {
	cmd.PreRunE = func(*cobra.Command, []string) error { return checkFilter(*f) }
	cmd.Flags().StringVarP(&f.Query, "query", "q", "", "those with this in their name or description")
	cmd.Flags().StringArrayVarP(&f.Labels, "label", "l", nil, "those with this label: key=value, or key for any value; may be repeated")
	cmd.Flags().StringVar(&f.Cluster, "cluster", "", "those that count on this cluster")
	cmd.Flags().StringVar(&f.Owner, "owner", "", "those that this person owns: a login or subject")
	cmd.Flags().StringVar(&f.Member, "member", "", "those with this direct member: person:alice, directoryGroup:corp:devs or group:platform")
	cmd.Flags().BoolVar(&f.Mine, "mine", false, "those that you own")
}

// collect reads a listing whole; never nil, so that JSON has an array.
func collect[T any](all iter.Seq2[T, error]) ([]T, error) {
	out := []T{}
	for one, err := range all {
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func orAll(clusters []string) string { return cmp.Or(strings.Join(clusters, ", "), "all") }

// labelText has labels as key=value, sorted.
func labelText(labels map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return strings.Join(pairs, ", ")
}

// shown is what show tells of a group.
type shown struct {
	api.Group
	ContainedIn []string     `json:"containedIn"`
	Members     []api.Member `json:"members"`
}

func (f *groupsFlags) show() *cobra.Command {
	return f.command("show GROUP", "Show a local group, and who is in it", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		var s shown
		var err error
		if s.Group, err = c.Group(cmd.Context(), args[0]); err != nil {
			return missing(args[0], err)
		}
		if s.ContainedIn, err = c.Containing(cmd.Context(), args[0]); err != nil {
			return err
		}
		if s.Members, err = collect(c.Members(cmd.Context(), args[0], "", "")); err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), f.output, s, func() [][]string {
			return append(append(groupRows(s.Group, s.ContainedIn), []string{}), memberRows(s.Members)...)
		})
	})
}

// missing names the group that a command is about, if that is what was not found.
func missing(group string, err error) error {
	if !api.HasCode(err, "not-found") {
		return err
	}
	return fmt.Errorf("there is no group %s, or you may not see it: `tabard groups list` shows those that you may", group)
}

// groupRows leaves out what a group does not have.
func groupRows(g api.Group, containedIn []string) [][]string {
	var owners, formerly []string
	for _, o := range g.Owners {
		owners = append(owners, cmp.Or(o.Name, o.ID))
	}
	for _, f := range g.Formerly {
		formerly = append(formerly, fmt.Sprintf("%s (until %s, by %s)", f.Name, clock(f.Until), cmp.Or(f.ByName, f.By)))
	}
	rows := [][]string{{"Group", g.Name}}
	for _, row := range [][]string{
		{"Description", g.Description}, {"Owners", strings.Join(owners, ", ")}, {"Labels", labelText(g.Labels)},
		{"Contained in", strings.Join(containedIn, ", ")}, {"Formerly", strings.Join(formerly, ", ")},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	rows = append(rows, []string{"Clusters", orAll(g.Clusters)})
	if g.Created != nil {
		rows = append(rows, []string{"Created", clock(*g.Created) + " by " + cmp.Or(g.CreatedByName, g.CreatedBy)})
	}
	return append(rows, []string{"Id", g.ID}, []string{"Version", strings.Trim(g.ETag, `"`)})
}

func memberRows(members []api.Member) [][]string {
	rows := [][]string{{"MEMBER", "KIND", "BEGINS", "ENDS", "GRANTED BY", "REASON", "ID"}}
	for _, m := range members {
		begins, ends := "at once", noEnd
		if m.Begin != nil {
			begins = clock(*m.Begin)
		}
		if m.End != nil {
			ends = clock(*m.End)
		}
		if m.Ended {
			ends = "ended " + ends
		}
		rows = append(rows, []string{memberName(m.Ref), kindText(m.Kind), begins, ends, m.GrantedByName, m.Reason, m.ID})
	}
	return rows
}

func kindText(kind string) string {
	switch kind {
	case api.KindDirectoryGroup:
		return "directory group"
	case api.KindGroup:
		return "local group"
	}
	return kind
}

func memberName(r api.Ref) string { return cmp.Or(r.Name, r.ID) }

func (f *groupsFlags) create() *cobra.Command {
	var e edits
	cmd := f.command("create GROUP", "Create a local group", cobra.ExactArgs(1), func(cmd *cobra.Command, c *api.Client, args []string) error {
		set, err := e.settings(args[0])
		if err != nil {
			return err
		}
		g, err := c.CreateGroup(cmd.Context(), set)
		if err != nil {
			return err
		}
		warn(cmd, g)
		return tell(cmd, "group %s created", g.Name)
	})
	cmd.Flags().StringVar(&e.description, "description", "", "what the group is for")
	cmd.Flags().StringArrayVar(&e.owners, "owner", nil, "who may change its members: a login, subject, corp:devs, or group:NAME for a local group; may be repeated")
	cmd.Flags().StringArrayVar(&e.clusters, "cluster", nil, "a cluster that it counts on; may be repeated; default all")
	cmd.Flags().StringArrayVarP(&e.labels, "label", "l", nil, "a label key=value; may be repeated")
	cmd.Flags().BoolVar(&e.requestable, "requestable", false, "people may ask to be let in")
	return cmd
}

// warn tells what people could take the group for.
func warn(cmd *cobra.Command, g api.Group) {
	for _, w := range g.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+api.Printable(w))
	}
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
			return missing(args[0], err)
		}
		in, err := c.Containing(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if len(in) > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is a member of %s: whoever is in it loses those with it.\n", api.Printable(g.Name), api.Printable(strings.Join(in, ", ")))
		}
		if !yes {
			if err := confirm(cmd, fmt.Sprintf("%s loses group %s now. Delete it? Type yes: ", count(g.MemberCount, "member", "members"), g.Name)); err != nil {
				return err
			}
		}
		if err := c.DeleteGroup(cmd.Context(), g.Name, g.ETag, len(in) > 0); err != nil {
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
