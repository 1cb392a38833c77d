package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	batchRecords = 500       // at most, of one delivery
	batchBytes   = 512 << 10 // and their lines, but for the last
	deliverTime  = 30 * time.Second
)

// pauses are how long a sink waits; short in tests.
type pauses struct {
	first, longest time.Duration // before it tries again, doubled each time
	save           time.Duration // between writes of its position
	again          time.Duration // between two complaints of the same trouble
	settle         time.Duration // how soon a syslog server that goes away is heard of
	closing        time.Duration // to deliver what is left when the log is closed
}

func (p *pauses) setDefaults() {
	p.first = cmp.Or(p.first, time.Second)
	p.longest = cmp.Or(p.longest, time.Minute)
	p.save = cmp.Or(p.save, 5*time.Second)
	p.again = cmp.Or(p.again, 10*time.Minute)
	p.settle = cmp.Or(p.settle, 200*time.Millisecond)
	p.closing = cmp.Or(p.closing, 3*time.Second)
}

// carrier takes lines of a batch, all or, after an error, perhaps some. A *waitError
// says how long to wait. close ends what it holds open.
type carrier interface {
	deliver(ctx context.Context, lines [][]byte) error
	close()
}

// waitError is a refusal that says when to come again, or to bring less.
type waitError struct {
	error
	wait time.Duration
	less bool
}

func (e *waitError) Unwrap() error { return e.error }

// sink brings the records of a chain to one place, each at least once and in order. The
// files of the trail are its buffer: it reads them from its position on, which it moves
// and writes down after a delivery.
type sink struct {
	name     string
	to       carrier
	log      logrus.FieldLogger
	pauses   pauses
	file     string         // of the position
	durable  *atomic.Uint64 // up to where it may read
	position atomic.Uint64  // seq of the last record that was delivered

	wake    chan struct{}
	closing chan struct{} // closed when no more records come
	ended   chan struct{}
	cancel  context.CancelFunc

	// Of its goroutine alone.
	reader   follower
	saved    uint64
	savedAt  time.Time
	limit    int // records of a batch
	failures int // in a row
	told     bool
	toldAt   time.Time
}

// openSinks makes the sinks and reads their positions.
func (l *Log) openSinks() error {
	for _, c := range l.cfg.Sinks {
		to, err := c.carrier(l.cfg.Node, l.cfg.pauses.settle)
		if err != nil {
			return fmt.Errorf("audit sink %s: %w", c.Name, err)
		}
		s := &sink{
			name: c.Name, to: to, log: l.cfg.Log.WithField("sink", c.Name), pauses: l.cfg.pauses,
			file: filepath.Join(l.dir, "sink-"+c.Name+".json"), durable: &l.durable, reader: follower{dir: l.dir}, limit: batchRecords,
			wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}),
		}
		if s.saved, err = readPosition(s.file); err != nil {
			return fmt.Errorf("audit sink %s: %w", c.Name, err)
		}
		if s.saved > l.tail.seq {
			s.log.Warnf("audit: the trail ends before record %d, which the sink has: it gets this trail from the beginning", s.saved)
			s.saved = 0
		}
		s.position.Store(s.saved)
		l.sinks = append(l.sinks, s)
	}
	return nil
}

// carrier makes what c asks for.
func (c SinkConfig) carrier(node string, settle time.Duration) (carrier, error) {
	switch {
	case c.File != nil:
		return fileCarrier{c.File.Path}, nil
	case c.Stdout != nil:
		return writerCarrier{os.Stdout}, nil
	case c.Syslog != nil:
		return newSyslog(*c.Syslog, node, settle)
	case c.Webhook != nil:
		return newWebhook(*c.Webhook)
	}
	return nil, errors.New("no kind")
}

// position is the file that remembers what a sink has.
type position struct {
	Delivered uint64 `json:"delivered"` // seq of the last record
}

func readPosition(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var p position
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return 0, fmt.Errorf("position %s: %w: remove it to send the whole trail again", path, err)
	}
	return p.Delivered, nil
}

// save writes the position down.
func (s *sink) save() {
	at := s.position.Load()
	if at == s.saved {
		return
	}
	b, err := json.Marshal(position{at})
	if err == nil {
		err = replace(s.file, b)
	}
	if err != nil {
		s.log.WithError(err).Error("audit: the position could not be written: after a restart the sink gets some records again")
		return
	}
	s.saved, s.savedAt = at, time.Now()
}

// replace writes a file so that a crash leaves the old or the new.
func replace(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *sink) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sink) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(ctx)
}

// closeSinks lets sinks that work deliver what is left, then ends all.
func closeSinks(sinks []*sink) {
	for _, s := range sinks {
		close(s.closing)
	}
	for _, s := range sinks {
		if s.cancel == nil { // never started
			continue
		}
		select {
		case <-s.ended:
		case <-time.After(s.pauses.closing):
			s.cancel()
			select {
			case <-s.ended:
			case <-time.After(time.Second): // a write to standard output that nobody reads
			}
		}
		s.cancel()
	}
}

// run delivers until the log is closed and all is delivered, or ctx ends.
func (s *sink) run(ctx context.Context) {
	defer close(s.ended)
	defer s.to.close()
	defer s.reader.close()
	defer s.save()
	s.savedAt = time.Now()
	for ctx.Err() == nil {
		lines, last, err := s.reader.batch(s.position.Load()+1, s.durable.Load(), s.limit)
		if err == nil && len(lines) > 0 {
			err = s.deliver(ctx, lines)
		}
		switch {
		case err != nil:
			if !s.pause(ctx, err) {
				return
			}
		case len(lines) > 0:
			s.delivered(last)
		case !s.idle(ctx):
			return
		}
	}
}

func (s *sink) deliver(ctx context.Context, lines [][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, deliverTime)
	defer cancel()
	return s.to.deliver(ctx, lines)
}

func (s *sink) delivered(last uint64) {
	s.position.Store(last)
	if s.failures = 0; s.told {
		s.told = false
		s.log.Info("audit: the sink takes records again")
	}
	if time.Since(s.savedAt) >= s.pauses.save {
		s.save()
	}
}

// idle waits for more; false when there will be none.
func (s *sink) idle(ctx context.Context) bool {
	var due <-chan time.Time
	if s.position.Load() != s.saved {
		timer := time.NewTimer(s.pauses.save)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-s.closing:
		return s.position.Load() < s.durable.Load()
	default:
	}
	select {
	case <-s.wake:
	case <-due:
		s.save()
	case <-s.closing:
	case <-ctx.Done():
	}
	return true
}

// pause tells of a failure and waits before the next try; false when the log is closed.
func (s *sink) pause(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	wait := min(s.pauses.longest, s.pauses.first<<min(s.failures, 20))
	var told *waitError
	if errors.As(err, &told) {
		wait = max(wait, told.wait)
		if told.less && s.limit > 1 {
			s.limit, wait = s.limit/2, 0
		}
	}
	if s.failures++; s.toldAt.IsZero() || time.Since(s.toldAt) >= s.pauses.again {
		s.told, s.toldAt = true, time.Now()
		s.log.WithError(err).WithField("behind", s.durable.Load()-s.position.Load()).
			Error("audit: the sink does not take records: they stay in the trail, and it is tried again")
	}
	s.save()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closing:
	case <-ctx.Done():
	}
	return false
}

// follower reads the records of a chain in order, from file to file.
type follower struct {
	dir string
	f   *os.File
	in  *bufio.Reader
	seq uint64 // of the record that is read next
	at  int64  // where it begins
}

func (r *follower) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}

// batch returns the lines of records from first up to last, as many as fit, and the
// number of the last of them. Where retention took records away it goes on behind them.
func (r *follower) batch(first, last uint64, limit int) (lines [][]byte, end uint64, err error) {
	if first > last {
		return nil, 0, nil
	}
	if r.f == nil || r.seq != first {
		if err := r.open(first); err != nil {
			return nil, 0, err
		}
	}
	// What was read ahead is behind what was durable then: it may have changed.
	if _, err := r.f.Seek(r.at, io.SeekStart); err != nil {
		return nil, 0, err
	}
	r.in.Reset(r.f)
	for size := 0; len(lines) < limit && size < batchBytes && r.seq <= last; r.seq++ {
		line, err := r.in.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			if err := r.open(r.seq); err != nil {
				return lines, end, err
			}
			line, err = r.in.ReadBytes('\n')
		}
		seq, ok := seqOf(line)
		if err != nil || !ok || seq != r.seq {
			where := r.f.Name()
			r.close()
			return nil, 0, fmt.Errorf("%s has no record %d where it belongs: run `tabard audit verify`", where, r.seq)
		}
		lines, size, end = append(lines, line), size+len(line), seq
		r.at += int64(len(line))
	}
	return lines, end, nil
}

// open finds record seq, or the first that is left behind it.
func (r *follower) open(seq uint64) error {
	r.close()
	files, err := list(r.dir)
	if err != nil {
		return err
	}
	at := len(files) - 1
	for at > 0 && files[at].first > seq {
		at--
	}
	if at < 0 {
		return fmt.Errorf("%s: no files", r.dir)
	}
	if r.f, err = os.Open(files[at].path); err != nil {
		return err
	}
	r.in = bufio.NewReaderSize(r.f, 64<<10)
	r.at = 0
	for r.seq = files[at].first; r.seq < seq; {
		part, err := r.in.ReadSlice('\n')
		r.at += int64(len(part))
		switch {
		case err == nil:
			r.seq++
		case !errors.Is(err, bufio.ErrBufferFull):
			where := r.f.Name()
			r.close()
			return fmt.Errorf("%s ends before record %d: run `tabard audit verify`", where, seq)
		}
	}
	return nil
}

// fileCarrier appends lines to a file.
type fileCarrier struct{ path string }

func (c fileCarrier) deliver(_ context.Context, lines [][]byte) error {
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	b := bytes.Join(lines, nil)
	if unfinished(f) { // by a crash; that record comes again
		b = append([]byte("\n"), b...)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// unfinished says whether the last line of f has no line feed.
func unfinished(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}

func (fileCarrier) close() {}

// writerCarrier writes lines.
type writerCarrier struct{ w io.Writer }

func (c writerCarrier) deliver(_ context.Context, lines [][]byte) error {
	_, err := c.w.Write(bytes.Join(lines, nil))
	return err
}

func (writerCarrier) close() {}

// Lag is how far a sink is behind the trail, as of when its position was written last,
// seconds ago where the server runs.
type Lag struct {
	Sink    string
	Records uint64    // that it does not have
	Since   time.Time // of the oldest of them
}

// Behind tells of each sink of cfg how far it is behind, from the files alone. An error
// is fs.ErrNotExist where there is no trail yet.
func Behind(cfg Config) ([]Lag, error) {
	cfg.setDefaults()
	last, err := newest(cfg.chainDir())
	if err != nil {
		return nil, fmt.Errorf("read the trail: %w", err)
	}
	var all []Lag
	for _, s := range cfg.Sinks {
		at, err := readPosition(filepath.Join(cfg.chainDir(), "sink-"+s.Name+".json"))
		if err != nil {
			return nil, err
		}
		lag := Lag{Sink: s.Name, Records: last - min(at, last)}
		if lag.Records > 0 {
			if lag.Since, err = timeOf(cfg.chainDir(), at+1, last); err != nil {
				return nil, fmt.Errorf("sink %s: %w", s.Name, err)
			}
		}
		all = append(all, lag)
	}
	return all, nil
}

// newest is the seq of the last record in dir, 0 where there is none.
func newest(dir string) (last uint64, err error) {
	files, err := list(dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files[max(0, len(files)-2):] { // the last may be empty
		line, err := lastLine(f.path)
		if err != nil {
			return 0, err
		}
		if seq, ok := seqOf(line); ok {
			last = seq
		}
	}
	return last, nil
}

// timeOf is the time of the first record from seq to last that is there.
func timeOf(dir string, seq, last uint64) (time.Time, error) {
	r := follower{dir: dir}
	defer r.close()
	lines, _, err := r.batch(seq, last, 1)
	if err != nil || len(lines) == 0 {
		return time.Time{}, err
	}
	var e Event
	err = json.Unmarshal(lines[0], &e)
	return e.Time, err
}
