package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/term"
)

// newLog returns a logger to w: JSON lines, or text when w is a terminal.
func newLog(w io.Writer, level string) (*logrus.Logger, error) {
	lvl, err := logrus.ParseLevel(level)
	if err != nil {
		return nil, usageError{fmt.Errorf("--log-level %s: use error, warning, info or debug", level)}
	}
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(lvl)
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		log.SetFormatter(&logrus.JSONFormatter{})
	}
	return log, nil
}

// slogHandler sends what a library logs through log/slog to logrus.
type slogHandler struct {
	log    logrus.FieldLogger
	level  logrus.Level
	prefix string // of groups, "a.b."
}

// toLogrus puts what libraries find worth knowing at debug.
func toLogrus(l slog.Level) logrus.Level {
	switch {
	case l >= slog.LevelError:
		return logrus.ErrorLevel
	case l >= slog.LevelWarn:
		return logrus.WarnLevel
	}
	return logrus.DebugLevel
}

// Enabled implements slog.Handler.
func (h slogHandler) Enabled(_ context.Context, l slog.Level) bool { return toLogrus(l) <= h.level }

// Handle implements slog.Handler.
func (h slogHandler) Handle(_ context.Context, r slog.Record) error {
	fields := logrus.Fields{}
	r.Attrs(func(a slog.Attr) bool { h.add(fields, a); return true })
	h.log.WithFields(fields).WithTime(r.Time).Log(toLogrus(r.Level), r.Message)
	return nil
}

func (h slogHandler) add(fields logrus.Fields, a slog.Attr) {
	if a.Key != "" {
		fields[h.prefix+a.Key] = a.Value.Resolve().Any()
	}
}

// WithAttrs implements slog.Handler.
func (h slogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	fields := logrus.Fields{}
	for _, a := range attrs {
		h.add(fields, a)
	}
	h.log = h.log.WithFields(fields)
	return h
}

// WithGroup implements slog.Handler.
func (h slogHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.prefix += name + "."
	}
	return h
}
