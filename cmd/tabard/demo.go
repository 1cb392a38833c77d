package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/gofrs/flock"
	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/internal/api"
	"github.com/tabard-id/tabard/internal/demoldap"
	"github.com/tabard-id/tabard/internal/parts"
)

const (
	demoPort    = 9443 // of the provider; the next two are the directory's and the API server's
	demoGroup   = "pod-readers"
	demoCluster = "demo"
)

// demoFlags are the flags of `tabard demo`.
type demoFlags struct {
	dir       string
	noCluster bool
	port      int
}

func demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use: "demo", Short: "Show it all on this machine: sample directory, provider, a real kube-apiserver",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.port < 1 || f.port > 65533 {
				return usageError{errors.New("demo: --port must be from 1 to 65533: it and the next two are used")}
			}
			return demo(cmd, f)
		},
	}
	cmd.Flags().StringVar(&f.dir, "dir", ".demo", "folder for all state; the next demo there goes on with it")
	cmd.Flags().BoolVar(&f.noCluster, "no-cluster", false, "leave kube-apiserver, etcd and kubectl out; nothing is built then")
	cmd.Flags().IntVar(&f.port, "port", demoPort, "port of the provider on 127.0.0.1; the next two are used as well")
	return cmd
}

// demoRun is one run of the demo.
type demoRun struct {
	demoFlags
	cmd    *cobra.Command
	screen *screen
	plugin string // path of kubectl-tabard
	issuer string
}

// demo runs until a signal comes or a part ends. Everything it starts has ended
// when it returns.
func demo(cmd *cobra.Command, f demoFlags) error {
	// Whoever closes the terminal wants the demo to end; for a server SIGHUP is
	// another thing.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	cmd.SetContext(ctx)
	d := &demoRun{demoFlags: f, cmd: cmd, screen: newScreen(cmd.OutOrStdout()), issuer: fmt.Sprintf("https://127.0.0.1:%d", f.port)}
	err := d.run(ctx)
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		d.screen.say("Everything has ended. The state is in %s: the next demo goes on with it.", d.dir)
		return nil
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("the disk of %s is full: free some space, or choose another folder with --dir: %w", d.dir, err)
	}
	return err
}

func (d *demoRun) run(ctx context.Context) (err error) {
	unlock, err := d.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	pair, err := d.writeFiles()
	if err != nil {
		return err
	}
	ldap, err := demoldap.Start(demoldap.Config{Port: d.port + 1, Certificate: pair.cert, BindPassword: pair.bindPassword})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ldap.Stop()) }()
	if err := offline(d.cmd, d.path("tabard.yaml"), d.addGroup); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended, err := d.serve(ctx)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	d.screen.welcome(d)
	if d.noCluster {
		d.screen.say("Ctrl-C ends it.")
		select {
		case err := <-ended:
			ended <- nil
			return err
		case <-ctx.Done():
			return nil
		}
	}
	return d.withCluster(ctx, ended)
}

// prepare makes the folder, takes its lock and looks whether the demo can begin.
func (d *demoRun) prepare() (unlock func(), err error) {
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return nil, fmt.Errorf("find --dir: %w", err)
	}
	for _, sub := range []string{"", "bin", "cluster", "cache"} {
		if err := os.MkdirAll(d.path(sub), 0o700); err != nil {
			return nil, fmt.Errorf("make the demo's folder (choose another with --dir): %w", err)
		}
	}
	lock := flock.New(d.path("lock"), flock.SetPermissions(0o600))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock the demo's folder: %w", err)
	case !locked:
		return nil, fmt.Errorf("another demo runs in %s: end it with Ctrl-C in its terminal, or choose another folder with --dir and other ports with --port", d.dir)
	}
	if err := errors.Join(d.checkPorts(), d.findPlugin()); err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

func (d *demoRun) path(elem ...string) string {
	return filepath.Join(append([]string{d.dir}, elem...)...)
}

// checkPorts says which port is taken before anything is built.
func (d *demoRun) checkPorts() error {
	needed := []string{"the provider", "the directory", "kube-apiserver"}
	if d.noCluster {
		needed = needed[:2]
	}
	for i, what := range needed {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", d.port+i))
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("port %d, for %s, is taken by another process: end that one, or choose another with --port N (N, N+1 and N+2 are used)", d.port+i, what)
		case err != nil:
			return fmt.Errorf("listen for %s (choose another port with --port): %w", what, err)
		}
		l.Close()
	}
	return nil
}

// findPlugin looks for kubectl-tabard beside this program and in PATH.
func (d *demoRun) findPlugin() error {
	if d.noCluster {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find kubectl-tabard: %w", err)
	}
	for _, dir := range append([]string{filepath.Dir(exe)}, filepath.SplitList(os.Getenv("PATH"))...) {
		path := filepath.Join(dir, "kubectl-tabard")
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && filepath.IsAbs(path) {
			d.plugin = path
			return nil
		}
	}
	return fmt.Errorf("kubectl-tabard is neither beside %s nor in PATH: build both with `make build`, or leave the cluster out with --no-cluster", exe)
}

// addGroup makes the local group of the story.
func (d *demoRun) addGroup(c *api.Client) error {
	_, err := c.CreateGroup(d.cmd.Context(), api.Settings{Name: demoGroup, Description: "May look at the pods of the demo cluster"})
	if api.HasCode(err, api.CodeExists) {
		return nil
	}
	return err
}

// serve starts the provider as `tabard serve` does and returns once it answers.
// The channel tells how it ended.
func (d *demoRun) serve(ctx context.Context) (chan error, error) {
	file, err := os.OpenFile(d.path("tabard.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	log, err := newLog(file, "info")
	if err != nil {
		return nil, err
	}
	slog.SetDefault(slog.New(slogHandler{log: log, level: log.GetLevel()}))
	ended, listening := make(chan error, 2), make(chan struct{})
	go func() {
		defer file.Close()
		ended <- serve(ctx, d.path("tabard.yaml"), log, func(net.Addr) { close(listening) })
	}()
	select {
	case err := <-ended:
		return nil, cmp.Or(err, ctx.Err())
	case <-listening:
		return ended, nil
	}
}

// withCluster adds the cluster and waits for the end.
func (d *demoRun) withCluster(ctx context.Context, ended chan error) (err error) {
	c, err := d.startCluster(ctx)
	defer c.stop()
	if err != nil {
		if errors.Is(err, parts.ErrNoCheckout) {
			err = fmt.Errorf("%w, which says what kube-apiserver is built from: run `make demo` in a clone, or leave the cluster out with --no-cluster", err)
		}
		return err
	}
	d.screen.story(d)
	select {
	case err = <-ended:
		ended <- nil
	case <-c.etcd.Exited():
		err = fmt.Errorf("etcd has ended: its log is %s", c.etcd.LogFile)
	case <-c.server.Exited():
		err = fmt.Errorf("kube-apiserver has ended: its log is %s", c.server.LogFile)
	case <-ctx.Done():
		d.screen.say("\nEnding everything …")
	}
	return err
}

// groupNames are a person's directory groups as they stand in tokens.
func groupNames(p demoldap.Person) string {
	names := make([]string, len(p.Groups))
	for i, g := range p.Groups {
		names[i] = "corp:" + g
	}
	return strings.Join(names, ", ")
}
