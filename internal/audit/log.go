package audit

import (
	"cmp"
	"context"
	"crypto/ed25519"
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

	checkpointRecords = 1_000     // at most so many records without a checkpoint
	retainEvery       = time.Hour // how often retention looks at the files, besides when one begins
)

// Log appends to the chain of one node.
type Log struct {
	cfg      Config
	dir      string // of the chain
	key      ed25519.PrivateKey
	lock     *flock.Flock
	queue    chan *request
	stop     context.CancelFunc
	ended    chan struct{} // closed when no more is written
	once     sync.Once
	closeErr error // of the first Close
	sinks    []*sink
	durable  atomic.Uint64 // seq of the last record that a crash does not lose

	// Of the writer alone.
	f      *os.File    // nil: the next record begins a file
	size   int64       // of f, up to the last whole record
	torn   bool        // f may hold more than size
	late   atomic.Bool // f holds records that are not synced yet
	failed bool        // to sync them
	tail   tail
	since  uint64 // records since the last checkpoint
	syncs  atomic.Int64
}

// Open opens the chain of cfg.Node in cfg.Dir, or begins one. What a crash left of a
// record that nobody was told of is moved from the end of the last file into a file
// ending in ".torn", and the trail says so in an event "audit.repair". Damage that
// no crash leaves is an error that names file and line.
func Open(cfg Config) (*Log, error) {
	if cfg.Dir == "" {
		return nil, errors.New("open audit log: no folder was named")
	}
	cfg.setDefaults()
	l := &Log{cfg: cfg, dir: cfg.chainDir(), queue: make(chan *request, maxGroup), ended: make(chan struct{})}
	cut, err := l.load()
	if err == nil && cfg.Serve {
		err = l.openSinks()
	}
	if err != nil {
		_ = l.release()
		return nil, fmt.Errorf("open audit log %s: %w", l.dir, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go l.run(ctx)
	if cut != nil {
		err := l.Append(ctx, Event{Act: "audit.repair", Outcome: Done, On: cut["file"], Reason: "a crash left an unfinished record", Detail: cut})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open audit log %s: %w", l.dir, err), l.Close())
		}
	}
	for _, s := range l.sinks {
		s.start()
	}
	return l, nil
}

// load takes the folder and finds the end of the chain.
func (l *Log) load() (cut map[string]string, err error) {
	if err := l.takeFolder(); err != nil {
		return nil, err
	}
	if l.key, err = openKey(l.cfg.KeyFile); err != nil {
		return nil, err
	}
	files, err := list(l.dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	for i, f := range files[max(0, len(files)-2):] { // the last may be empty
		res, err := scan(f, l.visit)
		if err != nil {
			return nil, err
		}
		last := f == files[len(files)-1]
		if why := l.tail.gap(f, res); i > 0 && why != "" {
			res = found{why: why, damage: true}
		}
		if res.why != "" && (res.damage || !last) {
			return nil, fmt.Errorf("%w: move the folder away for examination; tabard begins a new trail", &BrokenError{f.path, res.lines + 1, res.why})
		}
		if res.why != "" {
			if cut, err = cutOff(f.path, res); err != nil {
				return nil, err
			}
		}
		if l.size = res.size; res.lines > 0 || i == 0 {
			l.tail = res.tail
		}
	}
	if l.f, err = os.OpenFile(files[len(files)-1].path, os.O_RDWR, 0); err == nil {
		err = l.f.Sync() // a killed process may have left that to the system
	}
	l.durable.Store(l.tail.seq)
	return cut, err
}

// takeFolder makes the folder of the chain, and keeps other processes out of it.
func (l *Log) takeFolder() error {
	for _, dir := range slices.Compact([]string{l.cfg.Dir, l.dir}) {
		if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("folder %s does not exist: create it for the user that runs tabard", filepath.Dir(dir))
		} else if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	l.lock = flock.New(filepath.Join(l.dir, "lock"), flock.SetPermissions(0o600))
	ok, err := l.lock.TryLock()
	if err == nil && !ok {
		err = fmt.Errorf("%w: stop the other tabard first, or set another audit.dir or audit.node", ErrInUse)
	}
	return err
}

// visit looks for checkpoints while the end of the chain is read.
func (l *Log) visit(r record, line []byte) string {
	is, _, why := checkCheckpoint(r, line, nil)
	if l.since++; is {
		l.since = 0
	}
	return why
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

// Close waits for what is being written, and a moment for the sinks. An Append that
// is queued but not yet being written answers ErrClosed. Closing again is no error.
func (l *Log) Close() error {
	l.once.Do(func() {
		l.stop()
		<-l.ended
		closeSinks(l.sinks)
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
		body, err := l.encode(ctx, e)
		if err != nil {
			return err
		}
		r.bodies, r.size, r.soon = append(r.bodies, body), r.size+len(body), r.soon && e.Soon
	}
	return l.submit(ctx, r)
}

// bare is an Event whose seq and time the writer puts in front: the outer fields hide
// the inner ones.
type bare struct {
	Event
	Seq  *struct{} `json:"seq,omitempty"`
	Time *struct{} `json:"time,omitempty"`
}

// encode returns e's JSON without seq and time.
func (l *Log) encode(ctx context.Context, e Event) ([]byte, error) {
	if e.Act == "" {
		return nil, fmt.Errorf("no act: %w", ErrInvalid)
	}
	if !slices.Contains([]string{Intended, Done, Denied, Failed}, e.Outcome) {
		return nil, fmt.Errorf("outcome %.80q: %w", e.Outcome, ErrInvalid)
	}
	o := OriginOf(ctx)
	e.Node = l.cfg.Node
	e.Address = cmp.Or(e.Address, o.Address)
	e.UserAgent = cmp.Or(e.UserAgent, o.UserAgent)
	e.RequestID = cmp.Or(e.RequestID, o.RequestID)
	bound(&e)
	return json.Marshal(bare{Event: e})
}

// bound cuts what somebody else may have made long.
func bound(e *Event) {
	for _, s := range []*string{
		&e.Act, &e.Who, &e.Name, &e.On, &e.Reason, &e.Address, &e.UserAgent,
		&e.RequestID, &e.Session, &e.JTI, &e.Client, &e.Cluster,
	} {
		*s = cutString(*s)
	}
	detail, fits := e.Detail, len(e.Detail) <= maxDetails
	for k, v := range detail {
		fits = fits && len(k) <= maxField && len(v) <= maxField
	}
	if fits {
		return // no copy: proxied requests come often
	}
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
	sign, tidy := time.NewTicker(l.cfg.CheckpointEvery), time.NewTicker(retainEvery)
	defer sign.Stop()
	defer tidy.Stop()
	if l.since >= checkpointRecords { // of an older version
		l.complain("write a checkpoint", l.checkpoint())
	}
	l.retain()
	var due <-chan time.Time // when to sync what nobody waits for
	for {
		select {
		case <-ctx.Done():
			l.complain("write the last checkpoint", l.checkpoint())
			return
		case <-due:
			_ = l.sync() // if it failed, the next write tries again and tells
		case <-sign.C:
			l.complain("write a checkpoint", l.checkpoint())
		case <-tidy.C:
			l.retain()
		case r := <-l.queue:
			l.answer(l.collect(r))
		}
		if !l.late.Load() {
			due = nil
		} else if due == nil {
			due = time.After(soon)
		}
	}
}

// answer writes group and says to each what came of it.
func (l *Log) answer(group []*request) {
	var bodies [][]byte
	waits := false
	for _, r := range group {
		bodies, waits = append(bodies, r.bodies...), waits || !r.soon
	}
	before := l.f
	err := l.write(bodies, waits)
	began := l.f != before
	for _, r := range group {
		r.answer <- err
	}
	if began {
		l.retain()
	}
}

// checkpoint signs what was written since the last one.
func (l *Log) checkpoint() error {
	if l.since == 0 || l.cfg.unsigned {
		return nil
	}
	return l.write(nil, true)
}

// complain logs what nobody waits for.
func (l *Log) complain(doing string, err error) {
	if err != nil {
		l.cfg.Log.WithError(err).Error("audit: " + doing)
	}
}

// sync makes durable what was written without.
func (l *Log) sync() error {
	if !l.late.Load() {
		return nil
	}
	l.syncs.Add(1)
	err := l.f.Sync()
	l.failed = err != nil
	l.late.Store(l.failed)
	if err == nil {
		l.publish()
	}
	return err
}

// publish tells the sinks of what is durable.
func (l *Log) publish() {
	l.durable.Store(l.tail.seq)
	for _, s := range l.sinks {
		s.poke()
	}
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

// write adds records to the file, and a checkpoint where one is due or there is
// nothing else; with waits it makes all durable. What a failed write left is cut off,
// at the latest before the next one, which fails as long as that does.
func (l *Log) write(bodies [][]byte, waits bool) error {
	if len(bodies) == 0 && l.since == 0 {
		return nil
	}
	now := l.cfg.Now().UTC()
	if err := l.ready(now); err != nil {
		return fmt.Errorf("nothing was written, check the disk: %w", err)
	}
	end, since := l.tail, l.since+uint64(len(bodies))
	var lines []byte
	for _, body := range bodies {
		lines, end = appendLine(lines, end, now, body)
	}
	full := l.size+int64(len(lines)) >= int64(l.cfg.FileSize)
	if !l.cfg.unsigned && (len(bodies) == 0 || since >= checkpointRecords || full) {
		var err error
		if lines, end, err = l.appendCheckpoint(lines, end, now); err != nil {
			return err
		}
		since = 0
	}
	_, err := l.f.WriteAt(lines, l.size)
	if err == nil && waits {
		l.syncs.Add(1)
		err = l.f.Sync()
	}
	if err != nil {
		l.torn = true
		return fmt.Errorf("check the disk: %w", errors.Join(err, l.repair()))
	}
	l.tail, l.size, l.since = end, l.size+int64(len(lines)), since
	l.late.Store(!waits)
	if waits {
		l.publish()
	}
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
	if l.f != nil && l.size < int64(l.cfg.FileSize) {
		return nil
	}
	if err := l.sync(); err != nil {
		return err
	}
	f, err := create(l.dir, now, l.tail.seq+1)
	if err != nil {
		return err
	}
	if l.f != nil {
		_ = l.f.Close() // all in it is synced
	}
	l.f, l.size = f, 0
	return nil
}
