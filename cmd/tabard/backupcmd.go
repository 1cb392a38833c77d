package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tabard-id/tabard/groups"
	"github.com/tabard-id/tabard/internal/audit"
	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
)

// migrations lead from format 1 of the records to the one this version works with.
func migrations() []store.Migration { return []store.Migration{groups.Migration()} }

// migrate brings the records up to date. The copy that is made first is a backup: next
// to the bolt file or, where etcd keeps the records, next to audit.dir.
func migrate(ctx context.Context, cfg *Config, st store.Store, log logrus.FieldLogger) error {
	return store.Migrate(ctx, st, migrations(), func(ctx context.Context) error {
		beside := cfg.Store.Bolt.Path
		if beside == "" {
			beside = filepath.Join(filepath.Dir(cfg.Audit.Dir), "tabard")
		}
		return keepCopy(ctx, beside, st, log)
	})
}

// keepCopy writes a backup to a new file whose name begins with that of beside.
func keepCopy(ctx context.Context, beside string, st store.Store, log logrus.FieldLogger) error {
	path := fmt.Sprintf("%s.format1-%s.backup", beside, time.Now().UTC().Format("20060102T150405.000Z"))
	err := newFile(path, false, func(w io.Writer) error {
		_, err := backup.Write(ctx, st, w)
		return err
	})
	if err == nil {
		log.WithField("path", path).Warn("the store's records are changed to a new format; a backup of them as they were is kept: it holds the signing keys")
	}
	return err
}

func backupCommand() *cobra.Command {
	var server, config string
	var force bool
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Copy the whole store, signing keys included, to a new file; - for standard output",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM) // nothing is left behind
			defer stop()
			cmd.SetContext(ctx)
			copyTo := func(w io.Writer) (backup.Summary, error) { return backupOnline(cmd, server, w) }
			if config != "" {
				copyTo = func(w io.Writer) (backup.Summary, error) { return backupOffline(cmd, config, w) }
			}
			return runBackup(cmd, args[0], force, copyTo)
		},
	}
	serverFlag(cmd, &server)
	cmd.Flags().StringVar(&config, "config", "", "configuration file: copy its store while the server is stopped")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE")
	return cmd
}

// runBackup says where the copy goes, and what it was.
func runBackup(cmd *cobra.Command, path string, force bool, copyTo func(io.Writer) (backup.Summary, error)) error {
	if path == "-" {
		out := cmd.OutOrStdout()
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return usageError{errors.New("backup: the copy holds the signing keys and is not shown in a terminal: name a file, or pipe it on")}
		}
		sum, err := copyTo(out)
		if err != nil {
			return fmt.Errorf("what was written is no backup, throw it away: %w", err)
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "backup: "+describe(sum))
		return nil
	}
	var sum backup.Summary
	err := newFile(path, force, func(w io.Writer) (err error) {
		sum, err = copyTo(w)
		return err
	})
	if err != nil {
		return err
	}
	return tell(cmd, "%s: %s. It holds the signing keys: guard it as you guard them", path, describe(sum))
}

func describe(s backup.Summary) string {
	return fmt.Sprintf("%s, %s, of %s (revision %d, format %d)", count(s.Records, "record", "records"), count(int(s.Bytes), "byte", "bytes"), s.Created.Format(time.RFC3339), s.Revision, s.Format)
}

// backupOnline asks the running server, and checks the copy while it is written.
func backupOnline(cmd *cobra.Command, server string, w io.Writer) (backup.Summary, error) {
	client, _, err := signedIn(cmd, server)
	if err != nil {
		return backup.Summary{}, err
	}
	body, err := client.Backup(cmd.Context())
	if err != nil {
		return backup.Summary{}, err
	}
	defer body.Close()
	return backup.Verify(io.TeeReader(body, w))
}

// backupOffline copies the store of a stopped server, as it is: without changing its
// records to a newer format.
func backupOffline(cmd *cobra.Command, config string, w io.Writer) (sum backup.Summary, err error) {
	err = onStoreAsIs(cmd, config, func(ctx context.Context, f *foundation) error {
		return noted(ctx, f.trail, "store.backup", nil, func() (map[string]string, error) {
			sum, err = backup.Write(ctx, f.store, w)
			return map[string]string{"records": strconv.Itoa(sum.Records), "sha256": sum.SHA256}, err
		})
	})
	return sum, err
}

// onStoreAsIs opens store and trail of the configuration at path, as they are.
func onStoreAsIs(cmd *cobra.Command, path string, do func(context.Context, *foundation) error) error {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	const instead = "stop it; a backup can also be made through it, without --config"
	return onStore(cmd, cfg, openAsIs, instead, func(ctx context.Context, f *foundation, _ logrus.FieldLogger) error { return do(ctx, f) })
}

// onStore opens store and trail while no server has them; else it says what to do instead.
func onStore(cmd *cobra.Command, cfg *Config, open func(context.Context, *Config, logrus.FieldLogger) (*foundation, error), instead string,
	do func(context.Context, *foundation, logrus.FieldLogger) error) error {
	log := logrus.New()
	log.SetOutput(cmd.ErrOrStderr())
	log.SetLevel(logrus.ErrorLevel)
	f, err := open(cmd.Context(), cfg, log)
	if errors.Is(err, store.ErrInUse) || errors.Is(err, audit.ErrInUse) { // with etcd, the trail alone
		return errors.New("the server has the store open: " + instead)
	}
	if err != nil {
		return err
	}
	defer f.close(log)
	return do(cmd.Context(), f, log)
}

// noted does what the trail can hold, with an event before it and one after it.
func noted(ctx context.Context, trail *audit.Log, act string, detail map[string]string, do func() (map[string]string, error)) error {
	e := audit.Event{Act: act, Who: "operator", Name: "operator", Outcome: audit.Intended, Detail: detail}
	if err := trail.Append(ctx, e); err != nil {
		return fmt.Errorf("nothing was done, because the audit trail cannot be written: %w", err)
	}
	detail, err := do()
	e.Outcome, e.Detail = audit.Done, detail
	if err != nil {
		e.Outcome, e.Detail, e.Reason = audit.Failed, nil, clipBytes(err.Error(), 256)
	}
	return errors.Join(err, trail.Append(context.WithoutCancel(ctx), e))
}

func restoreCommand() *cobra.Command {
	var config string
	var check bool
	cmd := &cobra.Command{
		Use: "restore FILE {--config FILE | --check}", Short: "Put a backup into an empty store while the server is stopped",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (config == "") != check {
				return usageError{errors.New("restore: say --config FILE to put the backup into that store, or --check to look at it only")}
			}
			file, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("%s %s", args[0], fileTrouble(err))
			}
			defer file.Close()
			sum, err := checkBackup(file)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if check {
				return tell(cmd, "%s is whole: %s", args[0], describe(sum))
			}
			return runRestore(cmd, config, file, sum)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file that names the store")
	cmd.Flags().BoolVar(&check, "check", false, "read the backup and say whether it is whole")
	return cmd
}

func newestFormat() int { return len(migrations()) + 1 }

// checkBackup reads the whole file; nothing is begun with one that cannot be restored.
func checkBackup(file io.Reader) (backup.Summary, error) {
	sum, err := backup.Verify(file)
	if err == nil && sum.Format > newestFormat() {
		err = fmt.Errorf("its records have format %d, this Tabard reads up to %d: %w: use that version", sum.Format, newestFormat(), store.ErrNewer)
	}
	return sum, err
}

func runRestore(cmd *cobra.Command, config string, file io.ReadSeeker, sum backup.Summary) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("the backup must be a file that can be read twice, not a pipe: %w", err)
	}
	var done backup.Restored
	err := onStoreAsIs(cmd, config, func(ctx context.Context, f *foundation) error {
		detail := map[string]string{"records": strconv.Itoa(sum.Records), "sha256": sum.SHA256, "created": sum.Created.Format(time.RFC3339)}
		return noted(ctx, f.trail, "store.restore", detail, func() (_ map[string]string, err error) {
			done, err = backup.Restore(ctx, f.store, file, newestFormat())
			return detail, err
		})
	})
	if err != nil {
		return err
	}
	left := ""
	if done.Expired > 0 {
		left = fmt.Sprintf(", %d of them expired and left out", done.Expired)
	}
	return tell(cmd, "restored and compared: %s%s. Start the server", describe(done.Summary), left)
}

// newFile has write make the file at path, of mode 0600: whole and on the disk, or not
// at all. What is at path is replaced only by force.
func newFile(path string, force bool, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return existsAlready(path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := place(f.Name(), path, force); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("sync the folder of %s: %w", path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// place gives the file at from the name path. Without force a hard link refuses, at
// once, a file that was made meanwhile; where there are no links it is looked for.
func place(from, path string, force bool) error {
	if !force {
		err := os.Link(from, path)
		if err == nil {
			return os.Remove(from)
		}
		if _, statErr := os.Lstat(path); errors.Is(err, fs.ErrExist) || statErr == nil {
			return existsAlready(path)
		}
	}
	if err := os.Rename(from, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func existsAlready(path string) error {
	return fmt.Errorf("%s exists already: name another file, or say --force to replace it", path)
}
