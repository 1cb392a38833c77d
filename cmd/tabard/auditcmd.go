package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/web"
)

// maxFound bounds one `tabard audit search`, which holds what it prints in memory.
const maxFound = 100_000

func auditCommand() *cobra.Command {
	return family("audit", "Search and verify the audit trail", auditSearchCommand(), auditVerifyCommand(), auditKeyCommand())
}

// trailFlags say where the files of a trail are.
type trailFlags struct {
	config string
	dirs   []string
}

func (f *trailFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file: its audit.dir, also while the server runs")
	cmd.Flags().StringArrayVar(&f.dirs, "dir", nil, "folder of a trail, or of copies of one; may be repeated")
}

// folders returns the folders that were named. cfg is nil without --config.
func (f *trailFlags) folders() (dirs []string, cfg *Config, err error) {
	if f.config == "" {
		return f.dirs, nil, nil
	}
	if cfg, err = loadConfig(f.config); err != nil {
		return nil, nil, err
	}
	return append([]string{cfg.Audit.Dir}, f.dirs...), cfg, nil
}

func auditSearchCommand() *cobra.Command {
	var f trailFlags
	var server string
	var output *string
	var limit int
	v := map[string]*string{}
	cmd := &cobra.Command{
		Use: "search", Short: "Find records, newest first: at the server, or in files with --config or --dir",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(*output); err != nil {
				return err
			}
			if limit < 1 || limit > maxFound {
				return usageError{fmt.Errorf("--limit must be from 1 to %d", maxFound)}
			}
			q := url.Values{}
			for name, value := range v {
				q.Set(name, *value)
			}
			query, err := auditQuery(q)
			if err != nil {
				return err
			}
			query.Limit = limit
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			page, err := f.search(ctx, cmd, server, q, query)
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), *output, page, func() [][]string { return auditRows(page) })
		},
	}
	f.flags(cmd)
	serverFlag(cmd, &server)
	output = outputFlag(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many records")
	for name, what := range map[string]string{
		"person": "sub or username: who did it, or whom it was done to", "group": "that was acted on, or that was a member",
		"act": "whole, or a beginning such as group.", "cluster": "name of a cluster", "outcome": "intended, done, denied or failed",
		"text": "in any field", "session": "id of a session", "jti": "id of a token", "request": "id of a request, as errors show it",
		"from": "2027-01-31, 2027-01-31T18:00:00Z, or how long ago: 24h", "to": "the same, itself left out", "cursor": "go on behind an earlier search",
	} {
		v[name] = cmd.Flags().String(name, "", what)
	}
	return cmd
}

// auditQuery refuses values that no search could take, before anything is asked.
func auditQuery(q url.Values) (audit.Query, error) {
	outcomes := []string{audit.Intended, audit.Done, audit.Denied, audit.Failed}
	query, err := web.AuditQuery(q, time.Now())
	if err == nil && query.Outcome != "" && !slices.Contains(outcomes, strings.ToLower(query.Outcome)) {
		err = fmt.Errorf("--outcome %s: use %s", query.Outcome, strings.Join(outcomes, ", "))
	}
	if err != nil {
		return query, usageError{err}
	}
	return query, nil
}

// search asks the server for q, or reads the files for query, which is the same.
func (f *trailFlags) search(ctx context.Context, cmd *cobra.Command, server string, q url.Values, query audit.Query) (api.AuditPage, error) {
	dirs, _, err := f.folders()
	if err != nil {
		return api.AuditPage{}, err
	}
	if len(dirs) == 0 {
		client, _, err := signedIn(cmd, server)
		if err != nil {
			return api.AuditPage{}, err
		}
		return searchServer(ctx, client, q, query.Limit)
	}
	page := api.AuditPage{Events: []api.AuditEvent{}}
	page.Next, err = audit.Search(ctx, dirs, query, func(e audit.Event) error {
		page.Events = append(page.Events, web.AuditEvent(e))
		return nil
	})
	return page, err
}

// searchServer asks for page after page.
func searchServer(ctx context.Context, client *api.Client, q url.Values, limit int) (api.AuditPage, error) {
	all := api.AuditPage{Events: []api.AuditEvent{}}
	for {
		q.Set("limit", strconv.Itoa(min(limit-len(all.Events), 1000)))
		page, err := client.Audit(ctx, q)
		if err != nil {
			return all, err
		}
		all.Events, all.Next = append(all.Events, page.Events...), page.Next
		if page.Next == "" || len(all.Events) >= limit {
			return all, nil
		}
		q.Set("cursor", page.Next)
	}
}

func auditRows(page api.AuditPage) [][]string {
	rows := [][]string{{"TIME", "WHO", "ACT", "ON", "CLUSTER", "OUTCOME", "FROM", "REASON"}}
	for _, e := range page.Events {
		rows = append(rows, []string{clock(e.Time), cmp.Or(e.Name, e.Who), e.Act, e.On, e.Cluster, e.Outcome, e.Address, e.Reason})
	}
	return rows
}

func auditVerifyCommand() *cobra.Command {
	var f trailFlags
	var checkpoint string
	var keys []string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check every record and checkpoint of a trail, also while the server runs",
		Long: "Check that no record was changed, removed or moved, and each checkpoint. With --checkpoint, a file of\nrecords as a sink received them, a cut end and a rewritten chain show as well.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, cfg, err := f.folders()
			if err != nil {
				return err
			}
			if len(dirs) == 0 {
				return usageError{errors.New("audit verify: say --config or --dir")}
			}
			if cfg != nil && len(keys) == 0 {
				keys = []string{cfg.Audit.PublicKeyFile()}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return verifyTrail(ctx, cmd, dirs, keys, checkpoint)
		},
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "file with checkpoints that was kept elsewhere; other lines in it are passed over")
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file with the audit key's public half, best one kept elsewhere; may be repeated. Default: beside the key of --config")
	return cmd
}

func verifyTrail(ctx context.Context, cmd *cobra.Command, dirs, keys []string, checkpoint string) error {
	proof := audit.Proof{}
	for _, path := range keys {
		k, err := readPublicKeys(path)
		if err != nil {
			return err
		}
		proof.Keys = append(proof.Keys, k...)
	}
	if checkpoint != "" {
		in, err := os.Open(checkpoint)
		if err != nil {
			return fmt.Errorf("checkpoints: %w", err)
		}
		defer in.Close()
		proof.Checkpoints = in
	}
	all, err := audit.VerifyAll(ctx, dirs, proof)
	if err != nil {
		return err
	}
	broken := false
	for _, s := range all {
		broken = broken || s.Err != nil
		if err := tell(cmd, "%s", verdict(s, proof)); err != nil {
			return err
		}
	}
	if broken {
		return errReported
	}
	return nil
}

func readPublicKeys(path string) ([]ed25519.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	keys, err := audit.ParseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// verdict is what there is to say of one chain.
func verdict(s audit.Summary, proof audit.Proof) string {
	if s.Err != nil {
		return "BROKEN " + s.Err.Error()
	}
	if s.Last == 0 {
		return "ok " + s.Dir + ": no records"
	}
	parts := []string{fmt.Sprintf("records %d to %d in %s, %s", s.First, s.Last, count(s.Files, "file", "files"), count(s.Checkpoints, "checkpoint", "checkpoints"))}
	switch {
	case len(proof.Keys) == 0:
		parts = append(parts, "signatures not checked: give --key")
	case s.Signed == s.Last:
		parts = append(parts, "signed to the end")
	default:
		parts = append(parts, fmt.Sprintf("signed up to record %d", s.Signed))
	}
	if proof.Checkpoints != nil {
		kept := count(s.Kept, "checkpoint", "checkpoints") + " kept elsewhere fit"
		if s.TooOld > 0 {
			kept += fmt.Sprintf(", %d are of records that retention removed", s.TooOld)
		}
		parts = append(parts, kept)
	}
	where := s.Dir
	if s.Node != "" && filepath.Base(s.Dir) != s.Node {
		where += " (" + s.Node + ")"
	}
	return fmt.Sprintf("ok %s: %s; the last has hash %s", where, strings.Join(parts, "; "), s.Hash)
}

func auditKeyCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "key --config FILE", Short: "Print the audit key's public half, to keep it elsewhere",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			keys, err := readPublicKeys(cfg.Audit.PublicKeyFile())
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no audit key yet: the server makes it when it first starts: %w", err)
			}
			if err != nil {
				return err
			}
			for _, k := range keys {
				pem, err := audit.PublicPEM(k)
				if err != nil {
					return err
				}
				if err := tell(cmd, "# key %s\n%s", audit.KeyID(k), strings.TrimSpace(string(pem))); err != nil {
					return err
				}
			}
			return nil
		},
	}
	configFlag(cmd, &config)
	return cmd
}
