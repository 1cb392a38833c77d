package audit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gofrs/flock"
)

// Errors of the package, wrapped with what was being done.
var (
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("audit log closed")
	// ErrInUse: another process writes to the folder.
	ErrInUse = errors.New("in use by another process")
	// ErrInvalid: an event without act, or with an outcome that there is not.
	ErrInvalid = errors.New("invalid event")
)

const (
	maxField      = 1 << 10 // bytes of one string of an event; the rest is cut off
	maxDetails    = 32      // entries of Detail; no line comes near 1 MiB
	maxEvents     = 1_000   // of one AppendAll
	maxGroup      = 256     // events that share one fsync, but for the last request's
	maxGroupBytes = 1 << 20 // and their lines, likewise

	soon = time.Second // how late a record may be synced that nobody waits for
)

// Config says where the trail is kept.
type Config struct {
	// Dir is the folder of the files, for one process at a time. It is created with
	// mode 0700 in an existing folder.
	Dir string `yaml:"dir"`

	// MaxFileBytes is the size from which the next file is begun; 0: 16 MiB.
	MaxFileBytes int64 `yaml:"-"`
	// Now is the clock; nil: time.Now.
	Now func() time.Time `yaml:"-"`
}

// Log appends to the trail in a folder.
type Log struct {
	cfg      Config
	lock     *flock.Flock
	queue    chan *request
	stop     context.CancelFunc
	ended    chan struct{} // closed when no more is written
	once     sync.Once
	closeErr error // of the first Close

	// Of the writer alone.
	f      *os.File    // nil: the next record begins a file
	size   int64       // of f, up to the last whole record
	torn   bool        // f may hold more than size
	late   atomic.Bool // f holds records that are not synced yet
	failed bool        // to sync them
	tail   tail
}

// tail is the end of the chain.
type tail struct {
	seq  uint64 // 0: no records yet
	hash hash
}

// Open opens the trail in cfg.Dir, or begins one. What a crash left of a record
// that nobody was told of is moved from the end of the last file into a file
// ending in ".torn", and the trail says so in an event "audit.repair". Damage that
// no crash leaves is an error that names file and line.
func Open(cfg Config) (*Log, error) {
	cfg.MaxFileBytes = cmp.Or(cfg.MaxFileBytes, 16<<20)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Log{cfg: cfg, queue: make(chan *request, maxGroup), ended: make(chan struct{})}
	cut, err := l.load()
	if err != nil {
		_ = l.release()
		return nil, fmt.Errorf("open audit log %s: %w", cfg.Dir, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go l.run(ctx)
	if cut != nil {
		err := l.Append(ctx, Event{Act: "audit.repair", Outcome: Done, On: cut["file"], Reason: "a crash left an unfinished record", Detail: cut})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open audit log %s: %w", cfg.Dir, err), l.Close())
		}
	}
	return l, nil
}

// load takes the folder and finds the end of the chain.
func (l *Log) load() (cut map[string]string, err error) {
	if err := os.Mkdir(l.cfg.Dir, 0o700); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s does not exist: create it for the user that runs tabard", filepath.Dir(l.cfg.Dir))
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	l.lock = flock.New(filepath.Join(l.cfg.Dir, "lock"), flock.SetPermissions(0o600))
	if ok, err := l.lock.TryLock(); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("%w: stop the other tabard first, or set another audit.dir", ErrInUse)
	}
	files, err := list(l.cfg.Dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	var end tail
	for _, f := range files[max(0, len(files)-2):] { // the last may be empty
		res, err := scan(f, end)
		if err != nil {
			return nil, err
		}
		last := f == files[len(files)-1]
		if res.why != "" && (res.damage || !last) {
			return nil, fmt.Errorf("%w: move the folder away for examination; tabard begins a new trail", &BrokenError{f.path, res.lines + 1, res.why})
		}
		if res.why != "" {
			if cut, err = cutOff(f.path, res); err != nil {
				return nil, err
			}
		}
		end, l.size = res.tail, res.size
	}
	l.tail = end
	l.f, err = os.OpenFile(files[len(files)-1].path, os.O_RDWR, 0)
	return cut, err
}

// release lets go of the files.
func (l *Log) release() error {
	var err error
	if l.f != nil {
		err = errors.Join(l.sync(), l.f.Close())
	}
	if l.lock != nil {
		err = errors.Join(err, l.lock.Unlock())
	}
	return err
}

// Close waits for what is being written. An Append that is queued but not yet being
// written answers ErrClosed. Closing again is no error.
func (l *Log) Close() error {
	l.once.Do(func() {
		l.stop()
		<-l.ended
		l.closeErr = l.release()
	})
	return l.closeErr
}

// request is what one caller brings to the file.
type request struct {
	bodies [][]byte // each event's JSON without seq and time
	size   int      // of them all, bytes
	soon   bool     // see Event
	taken  atomic.Bool
	answer chan error // holds one
}

// Append adds e to the trail, with seq, time and what is missing of the origin that
// ctx carries, and returns when it is durable, or written if e.Soon. Long strings are
// cut. After an error the act must not go on; if ctx ended or the disk failed
// meanwhile, the event may be in the trail all the same.
func (l *Log) Append(ctx context.Context, e Event) error {
	if err := l.append(ctx, e); err != nil {
		return fmt.Errorf("write audit event %.80q: %w", e.Act, err)
	}
	return nil
}

// AppendAll is Append for up to 1,000 events, ErrInvalid for more: they follow each
// other in the chain, and are durable together unless all are Soon. Where it fails,
// none is in the trail, or after a crash or the end of ctx perhaps the first few or all.
func (l *Log) AppendAll(ctx context.Context, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	err := fmt.Errorf("more than %d: %w", maxEvents, ErrInvalid)
	if len(events) <= maxEvents {
		err = l.append(ctx, events...)
	}
	if err != nil {
		return fmt.Errorf("write %d audit events: %w", len(events), err)
	}
	return nil
}

func (l *Log) append(ctx context.Context, events ...Event) error {
	r := &request{soon: true, answer: make(chan error, 1)}
	for _, e := range events {
		body, err := encode(ctx, e)
		if err != nil {
			return err
		}
		r.bodies, r.size, r.soon = append(r.bodies, body), r.size+len(body), r.soon && e.Soon
	}
	return l.submit(ctx, r)
}

// encode returns e's JSON without seq and time.
func encode(ctx context.Context, e Event) ([]byte, error) {
	if e.Act == "" {
		return nil, fmt.Errorf("no act: %w", ErrInvalid)
	}
	if !slices.Contains([]string{Intended, Done, Denied, Failed}, e.Outcome) {
		return nil, fmt.Errorf("outcome %.80q: %w", e.Outcome, ErrInvalid)
	}
	o := OriginOf(ctx)
	e.Address = cmp.Or(e.Address, o.Address)
	e.UserAgent = cmp.Or(e.UserAgent, o.UserAgent)
	e.RequestID = cmp.Or(e.RequestID, o.RequestID)
	bound(&e)
	// The outer fields hide those of Event, which the writer puts in front.
	return json.Marshal(struct {
		Event
		Seq  *struct{} `json:"seq,omitempty"`
		Time *struct{} `json:"time,omitempty"`
	}{Event: e})
}

// bound cuts what somebody else may have made long.
func bound(e *Event) {
	for _, s := range []*string{
		&e.Act, &e.Who, &e.Name, &e.On, &e.Reason, &e.Address, &e.UserAgent,
		&e.RequestID, &e.Session, &e.JTI, &e.Client, &e.Cluster,
	} {
		*s = cutString(*s)
	}
	detail := e.Detail
	e.Detail = make(map[string]string, min(len(detail), maxDetails))
	for _, k := range slices.Sorted(maps.Keys(detail)) {
		if len(e.Detail) == maxDetails-1 && len(detail) > maxDetails {
			e.Detail["cut"] = fmt.Sprintf("%d more details", len(detail)-len(e.Detail))
			break
		}
		e.Detail[cutString(k)] = cutString(detail[k])
	}
}

// cutString cuts s to maxField bytes, between runes, and marks that.
func cutString(s string) string {
	const mark = "…"
	if len(s) <= maxField {
		return s
	}
	end := maxField - len(mark)
	for end > maxField-len(mark)-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) + mark
}

// take is true for the first caller: the writer, or the waiter who gives up.
func (r *request) take() bool { return r.taken.CompareAndSwap(false, true) }

// submit hands r to the writer and waits until it is durable.
func (l *Log) submit(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.queue <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return ErrClosed
	}
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		if r.take() {
			return ctx.Err()
		}
		return fmt.Errorf("it may have been written: %w", ctx.Err())
	case <-l.ended:
		if r.take() {
			return ErrClosed
		}
		return <-r.answer
	}
}

// run writes what is queued with one fsync, and again. It never waits for a group
// to fill: while one is written the next one queues.
func (l *Log) run(ctx context.Context) {
	defer close(l.ended)
	var due <-chan time.Time // when to sync what nobody waits for
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
			_ = l.sync() // if it failed, the next write tries again and tells
		case r := <-l.queue:
			group := l.collect(r)
			err := l.write(group)
			for _, r := range group {
				r.answer <- err
			}
		}
		if !l.late.Load() {
			due = nil
		} else if due == nil {
			due = time.After(soon)
		}
	}
}

// sync makes durable what was written without.
func (l *Log) sync() error {
	if !l.late.Load() {
		return nil
	}
	err := l.f.Sync()
	l.failed = err != nil
	l.late.Store(l.failed)
	return err
}

// collect takes first and what is queued behind it, up to the bounds of a group.
func (l *Log) collect(first *request) []*request {
	var group []*request
	events, size := 0, 0
	for r := first; ; {
		if r.take() {
			group = append(group, r)
			events, size = events+len(r.bodies), size+r.size
		}
		if events >= maxGroup || size > maxGroupBytes {
			return group
		}
		select {
		case r = <-l.queue:
		default:
			return group
		}
	}
}

// write makes group durable. What a failed write left is cut off, at the latest
// before the next one, which fails as long as that does.
func (l *Log) write(group []*request) error {
	if len(group) == 0 {
		return nil
	}
	now := l.cfg.Now().UTC()
	if err := l.ready(now); err != nil {
		return fmt.Errorf("nothing was written, check the disk: %w", err)
	}
	end := l.tail
	var lines []byte
	for _, r := range group {
		for _, body := range r.bodies {
			lines, end = appendLine(lines, end, now, body)
		}
	}
	_, err := l.f.WriteAt(lines, l.size)
	waits := slices.ContainsFunc(group, func(r *request) bool { return !r.soon })
	if err == nil && waits {
		err = l.f.Sync()
	}
	if err != nil {
		l.torn = true
		return fmt.Errorf("check the disk: %w", errors.Join(err, l.repair()))
	}
	l.tail, l.size = end, l.size+int64(len(lines))
	l.late.Store(!waits)
	return nil
}

// repair cuts off what a failed write left.
func (l *Log) repair() error {
	if !l.torn {
		return nil
	}
	err := l.f.Truncate(l.size)
	l.torn = err != nil
	return err
}

// ready sees that the file can take a record: repaired, and the next one begun when
// this one is full.
func (l *Log) ready(now time.Time) error {
	if err := l.repair(); err != nil {
		return err
	}
	if l.failed {
		if err := l.sync(); err != nil {
			return err
		}
	}
	if l.f != nil && l.size < l.cfg.MaxFileBytes {
		return nil
	}
	if err := l.sync(); err != nil {
		return err
	}
	f, err := create(l.cfg.Dir, now, l.tail.seq+1)
	if err != nil {
		return err
	}
	if l.f != nil {
		_ = l.f.Close() // all in it is synced
	}
	l.f, l.size = f, 0
	return nil
}
