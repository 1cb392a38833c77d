package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/tabard-id/tabard/proxy"
)

// drainTime is how long requests under way get when the server stops.
const drainTime = 15 * time.Second

// pingAfter is how long an HTTP/2 connection may be silent, and then the answer to a ping
// may take. HTTP/1.1 has TCP's keep-alives, by Go's default at 15 seconds.
const pingAfter = 30 * time.Second

func serveCommand() *cobra.Command {
	var config, level string
	cmd := &cobra.Command{
		Use: "serve --config FILE", Short: "Run the server until SIGTERM; SIGHUP or a changed file reloads",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLog(cmd.ErrOrStderr(), level)
			if err != nil {
				return err
			}
			slog.SetDefault(slog.New(slogHandler{log: log, level: log.GetLevel()}))
			defer tuneCollector()()
			return serve(cmd.Context(), config, log, func(net.Addr) {})
		},
	}
	cmd.Flags().StringVar(&level, "log-level", "info", "error, warning, info or debug")
	configFlag(cmd, &config)
	return cmd
}

// server answers requests with the current assembly.
type server struct {
	path       string
	log        *logrus.Logger
	metrics    *metrics
	foundation *foundation
	started    *Config // as of the start: listeners, store and trail are its
	stopping   atomic.Bool
	proxy      *proxy.Proxy

	mu      sync.Mutex
	current *assembly
}

// serve runs the server until ctx ends or a signal comes. listening is told the
// address once requests are answered.
func serve(ctx context.Context, path string, log *logrus.Logger, listening func(net.Addr)) error {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	logWarnings(log, cfg)
	cfg.Audit.Serve = true
	f, err := openFoundation(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer f.close(log)
	s := &server{path: path, log: log, metrics: f.metrics, foundation: f, started: cfg}
	s.proxy = proxy.New(proxy.Deps{Authority: authority{s}, Trail: f.trail, Log: log, Observe: f.metrics.proxied, Now: time.Now})
	if s.current, err = s.assemble(ctx, cfg); err != nil {
		s.proxy.Close()
		return err
	}
	s.current.users = 1
	defer func() { s.release(s.current) }()
	defer s.proxy.Close() // before the assembly that it asks
	if err := s.proxy.Use(cfg.proxy); err != nil {
		return err
	}
	f.metrics.registry.MustRegister(newProxyCollector(s.proxy.Health))
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	return s.run(ctx, stop, listening)
}

func logWarnings(log logrus.FieldLogger, cfg *Config) {
	for _, w := range cfg.warnings {
		log.Warn(w)
	}
	if time.Now().Year() < 2024 {
		log.Warn("this machine's clock is before 2024: set it, or no token and certificate is good")
	}
}

// run listens, and owns every goroutine of the server. stop takes the signal
// handler away, so that a second signal ends the process at once.
func (s *server) run(ctx context.Context, stop func(), listening func(net.Addr)) error {
	watcher, err := newWatcher(s)
	if err != nil {
		return err
	}
	listeners, err := s.listen()
	if err != nil {
		return errors.Join(err, watcher.close())
	}
	failed := make(chan error, len(listeners))
	var wg sync.WaitGroup
	for _, l := range listeners {
		wg.Go(func() {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	wg.Go(func() { watcher.run(ctx) })
	s.log.WithFields(logrus.Fields{"issuer": s.started.Issuer, "listen": listeners[0].Addr().String()}).Info("serving")
	listening(listeners[0].Addr())
	select {
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	stop() // from here on a signal has its usual effect
	s.log.Info("stopping: requests under way are finished first; a second signal ends at once")
	wg.Go(s.drain)
	for _, l := range listeners {
		err = errors.Join(err, l.shutdown(s.log))
	}
	err = errors.Join(err, watcher.close())
	wg.Wait()
	s.log.Info("stopped")
	return err
}

// listener is an HTTP server on its address.
type listener struct {
	net.Listener
	srv *http.Server
}

// listen opens the server's address and, if configured, that of the metrics.
func (s *server) listen() ([]*listener, error) {
	main, err := s.listenOn("listen", s.started.Listen, s)
	if err != nil {
		return nil, err
	}
	if s.started.cert != nil {
		main.srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate}
	}
	if s.started.Metrics.Listen == "" {
		return []*listener{main}, nil
	}
	side, err := s.listenOn("metrics.listen", s.started.Metrics.Listen, s.metrics.handler())
	if err != nil {
		return nil, errors.Join(err, main.Close())
	}
	return []*listener{main, side}, nil
}

func (s *server) listenOn(key, addr string, h http.Handler) (*listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: %s is taken by another process: stop it or choose another port", key, addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: this account may not listen on %s: choose a port above 1023 or grant CAP_NET_BIND_SERVICE", key, addr)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return &listener{l, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       requestDeadline,
		WriteTimeout:      2 * requestDeadline,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		// A watch says nothing for hours: whether anybody still listens is asked.
		HTTP2:    &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter, WriteByteTimeout: 2 * pingAfter},
		ErrorLog: stdlog.New(debugWriter{s.log}, "", 0),
	}}, nil
}

func (l *listener) serve() error {
	if l.srv.TLSConfig != nil {
		return l.srv.ServeTLS(l.Listener, "", "")
	}
	return l.srv.Serve(l.Listener)
}

// shutdown waits for requests under way; those that do not end in time are cut.
func (l *listener) shutdown(log logrus.FieldLogger) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err := l.srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warnf("requests still ran after %s and were cut", drainTime)
		err = l.srv.Close()
	}
	return err
}

// drain ends the proxy's streams, which would go on for ever.
func (s *server) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	s.proxy.Drain(ctx)
}

// debugWriter takes what net/http logs: mostly clients that hang up.
type debugWriter struct{ log logrus.FieldLogger }

func (d debugWriter) Write(b []byte) (int, error) {
	d.log.Debugf("http: %s", clipBytes(string(b), 300))
	return len(b), nil
}

// certificate gives each connection the certificate that was read last.
func (s *server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a := s.acquire()
	defer s.release(a)
	if a.cfg.cert == nil {
		return s.started.cert, nil
	}
	return a.cfg.cert, nil
}

// acquire returns the current assembly, which stays open until release.
func (s *server) acquire() *assembly {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.users++
	return s.current
}

// release gives an assembly back; whoever is last with one that was replaced
// closes it.
func (s *server) release(a *assembly) {
	s.mu.Lock()
	a.users--
	last := a.users == 0
	s.mu.Unlock()
	if last {
		a.close()
	}
}
