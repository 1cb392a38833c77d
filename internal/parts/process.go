package parts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	defaultReadyTimeout = 3 * time.Minute
	readyPoll           = 20 * time.Millisecond
	stopGrace           = time.Minute // longer than a Tabard drains
)

// Command describes a program to start.
type Command struct {
	// Name is used in messages; Path's base when empty.
	Name string
	// Path is the program.
	Path string
	// Args come after the program's own name.
	Args []string
	// Env is added to this process's environment, as KEY=value.
	Env []string
	// Dir is the working folder; this process's own when empty.
	Dir string
	// LogFile gets what the program writes to stdout and stderr; it is emptied first.
	LogFile string
	// ExtraFiles become the program's file descriptors 3 and up.
	ExtraFiles []*os.File
	// Ready is called until it returns nil; no waiting when it and ReadyURL are unset.
	Ready func(context.Context) error
	// ReadyURL is fetched until it answers 200.
	ReadyURL string
	// Client fetches ReadyURL; http.DefaultClient when nil.
	Client *http.Client
	// ReadyTimeout bounds the wait; 3 minutes when zero.
	ReadyTimeout time.Duration
}

// Process is a running program. Whoever started it calls Stop.
type Process struct {
	// LogFile holds what the program wrote to stdout and stderr.
	LogFile string

	name    string
	cmd     *exec.Cmd
	exited  chan struct{}
	waitErr error // read after exited is closed
}

// Start runs c and waits until it is ready. When it is not ready in time or ctx
// ends first, the program is stopped; the error names its log.
func Start(ctx context.Context, c Command) (*Process, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	log, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the log of %s: %w", c.Name, err)
	}
	defer log.Close() // the program has its own
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = c.ExtraFiles
	p := &Process{LogFile: c.LogFile, name: c.Name, cmd: cmd, exited: make(chan struct{})}
	if err := p.run(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := p.waitReady(ctx, c); err != nil {
		p.Stop()
		return nil, fmt.Errorf("wait for %s: %w: its log %s ends with: %s", p.name, err, p.LogFile, lastLine(p.Log()))
	}
	return p, nil
}

// run starts the program and leaves a goroutine that reaps it. That goroutine
// keeps its thread: the parent-death signal is sent when the starting thread
// ends, not when the process does.
func (p *Process) run() error {
	p.cmd.SysProcAttr = processAttributes()
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.waitErr = p.cmd.Wait()
			close(p.exited)
		}
	}()
	return <-started
}

func (p *Process) waitReady(ctx context.Context, c Command) error {
	ready := c.Ready
	if ready == nil && c.ReadyURL != "" {
		ready = func(ctx context.Context) error { return fetchOK(ctx, c.Client, c.ReadyURL) }
	}
	if ready == nil {
		return nil
	}
	timeout := c.ReadyTimeout
	if timeout == 0 {
		timeout = defaultReadyTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready after %s", timeout))
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended before it was ready: %w", errors.Join(p.waitErr, err))
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(readyPoll):
		}
	}
}

// Pid is the program's process id, which is also its process group's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed once the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait returns how the program ended, after it did.
func (p *Process) Wait() error {
	<-p.exited
	return p.waitErr
}

// Log returns what the program has written so far.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Signal sends sig to the program alone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process group to end, kills what is left after a minute and
// returns when the program is gone. It may be called again.
func (p *Process) Stop() {
	if !p.running() {
		p.Kill()
		return
	}
	signalGroup(p.cmd.Process, syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopGrace):
	}
	p.Kill()
}

// Kill ends the process group at once with SIGKILL, as a power cut would, and
// returns when the program is gone. It may be called again.
func (p *Process) Kill() {
	signalGroup(p.cmd.Process, syscall.SIGKILL)
	<-p.exited
}

func (p *Process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// lastLine is the last line of log that is not empty, cut to 400 bytes.
func lastLine(log string) string {
	log = strings.TrimSpace(log)
	line := log[strings.LastIndexByte(log, '\n')+1:]
	return line[:min(len(line), 400)]
}

// fetchOK is nil when url answers 200. A nil client is http.DefaultClient.
func fetchOK(ctx context.Context, client *http.Client, url string) error {
	if client == nil {
		client = http.DefaultClient
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("build the request for %s: %w", url, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
