package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// ErrCursor: a cursor that Search did not return.
var ErrCursor = errors.New("not a cursor of a search")

const (
	blockSize = 512 << 10 // bytes of a file that are searched at once

	// clockSlack is how far a server's clock may have been set back: within it, files
	// are opened that by their first records are outside of a time range.
	clockSlack = 24 * time.Hour
)

// Query says which records to find; what is left out counts for nothing. Upper and
// lower case are the same but in IDs.
type Query struct {
	Person    string // sub or name of who did it, or whom it was done to
	Group     string // that was acted on, or that was a member
	Act       string // whole, or a beginning such as "group."
	Cluster   string
	Outcome   string
	Session   string
	JTI       string
	RequestID string
	Text      string    // in any field
	From, To  time.Time // From itself counts, To does not
	Limit     int       // 0: none
	Cursor    string    // that the search before returned: goes on behind it
}

// Search calls fn for each record of the chains in dirs that q describes, newest first:
// each chain in its own order, the chains merged by time. It returns the cursor to go
// on with, "" when there is nothing older. The cursor is good too beside an error of
// ctx or fn: it goes on from where time ran out, or behind the record that fn was given
// last. Records that are no longer whole are passed over: Verify finds those.
func Search(ctx context.Context, dirs []string, q Query, fn func(Event) error) (cursor string, err error) {
	chains, err := chainsIn(dirs)
	if err != nil {
		return "", fmt.Errorf("search audit log: %w", err)
	}
	from, err := parseCursor(q.Cursor)
	if err != nil {
		return "", fmt.Errorf("search audit log: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMatcher(q)
	var streams []*stream
	for _, c := range chains {
		s := &stream{chain: c, below: math.MaxUint64, until: math.MaxUint64}
		if at, ok := from[c.id]; ok {
			s.below = at
		} else if from != nil {
			continue // was read to its end, or began since
		}
		var stop func()
		s.next, stop = iter.Pull2(inOrder(ctx, lookAhead(len(chains)), s.blocks(q), m.search))
		defer stop()
		streams = append(streams, s)
	}
	if err := merge(streams, q.Limit, fn); err != nil {
		return cursorOf(streams), fmt.Errorf("search audit log: %w", err)
	}
	return cursorOf(streams), nil
}

// Search is Search of every chain in the folder of l's trail.
func (l *Log) Search(ctx context.Context, q Query, fn func(Event) error) (cursor string, err error) {
	return Search(ctx, []string{l.cfg.Dir}, q, fn)
}

// merge calls fn for what streams give, the newest first, at most limit times.
func merge(streams []*stream, limit int, fn func(Event) error) error {
	for n := 0; limit == 0 || n < limit; n++ {
		var newest *stream
		for _, s := range streams {
			if err := s.fill(); err != nil {
				return err
			}
			if len(s.found) > 0 && (newest == nil || s.found[0].Time.After(newest.found[0].Time)) {
				newest = s
			}
		}
		if newest == nil {
			return nil
		}
		e := newest.found[0]
		newest.found, newest.below = newest.found[1:], e.Seq
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// stream is the search of one chain.
type stream struct {
	chain
	next  func() (hits, error, bool)
	below uint64  // what is to be read yet has a smaller seq
	found []Event // newest first
	until uint64  // seq of the first record of the block of found
	ended bool
}

// fill sees that the next record is there, unless there is none.
func (s *stream) fill() error {
	for len(s.found) == 0 && !s.ended {
		s.below = min(s.below, max(s.until, 1)) // that block is done
		h, err, ok := s.next()
		if err != nil {
			return err
		}
		if !ok {
			s.ended = true
			return nil
		}
		s.until = s.below
		if h.first > 0 {
			s.until = h.first
		}
		at := slices.IndexFunc(h.events, func(e Event) bool { return e.Seq < s.below })
		if at >= 0 {
			s.found = h.events[at:]
		}
	}
	return nil
}

// cursorOf is where the streams are: base64 of JSON, the seq that what is left is below by
// chain.
func cursorOf(streams []*stream) string {
	at := map[string]uint64{}
	for _, s := range streams {
		if (!s.ended || len(s.found) > 0) && s.below > 1 {
			at[s.id] = s.below
		}
	}
	if len(at) == 0 {
		return ""
	}
	b, err := json.Marshal(at)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseCursor(s string) (map[string]uint64, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	var at map[string]uint64
	if err != nil || json.Unmarshal(b, &at) != nil || len(at) == 0 || slices.Contains(slices.Collect(maps.Values(at)), 0) {
		return nil, ErrCursor
	}
	return at, nil
}

// block is a part of a file: the lines that begin in it.
type block struct {
	path       string
	begin, end int64
}

// blocks are those of the chain that can hold what q asks for, the newest first. The
// files are listed once; what is written meanwhile is newer.
func (s *stream) blocks(q Query) iter.Seq[block] {
	return func(yield func(block) bool) {
		files, err := list(s.dir)
		if err != nil {
			return
		}
		behind := time.Time{} // time of the first record of the file behind
		for _, f := range slices.Backward(files) {
			if f.first >= s.below {
				continue
			}
			began, size := beginning(f.path)
			if !q.From.IsZero() && !behind.IsZero() && behind.Before(q.From.Add(-clockSlack)) {
				return
			}
			behind = began
			if !q.To.IsZero() && began.After(q.To.Add(clockSlack)) {
				continue
			}
			for end := size; end > 0; end -= min(end, blockSize) {
				if !yield(block{f.path, max(0, end-blockSize), end}) {
					return
				}
			}
		}
	}
}

// beginning returns the time of a file's first record, and its size; the zero time
// where there is none.
func beginning(path string) (time.Time, int64) {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, 0
	}
	var e Event
	if line, err := firstLine(path); err != nil || json.Unmarshal(line, &e) != nil {
		return time.Time{}, info.Size()
	}
	return e.Time, info.Size()
}

// hits is what was found in a block.
type hits struct {
	events []Event // newest first
	first  uint64  // seq of the first record that begins in the block; 0: none does
}

// search searches one block.
func (m *matcher) search(ctx context.Context, b block) (hits, error) {
	if err := ctx.Err(); err != nil {
		return hits{}, err
	}
	text, err := b.read()
	if errors.Is(err, fs.ErrNotExist) {
		return hits{}, nil // retention took it
	}
	if err != nil {
		return hits{}, err
	}
	var h hits
	h.first, _ = seqOf(text)
	for line := range m.candidates(text) {
		var e Event
		if json.Unmarshal(line, &e) == nil && m.matches(&e) {
			h.events = append(h.events, e)
		}
	}
	slices.Reverse(h.events)
	return h, ctx.Err()
}

// read returns the lines that begin in the block, whole.
func (b block) read() ([]byte, error) {
	f, err := os.Open(b.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	from := max(0, b.begin-1) // one more, to see whether a line begins with the block
	text := make([]byte, b.end-from, b.end-from+16<<10)
	n, err := f.ReadAt(text, from)
	if text = text[:n]; err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if b.begin > 0 {
		i := bytes.IndexByte(text, '\n')
		if i < 0 || i+1 == len(text) {
			return nil, nil // all of it belongs to a line that begins before
		}
		text = text[i+1:]
	}
	for at := from + int64(n); err == nil && len(text) > 0 && text[len(text)-1] != '\n' && at < b.end+maxLine; {
		rest := make([]byte, 16<<10)
		if n, err = f.ReadAt(rest, at); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		at += int64(n)
		if i := bytes.IndexByte(rest[:n], '\n'); i >= 0 {
			n = i + 1
		}
		text = append(text, rest[:n]...)
	}
	return text[:bytes.LastIndexByte(text, '\n')+1], nil
}

// matcher decides which records a Query asks for. Bytes that a record must hold are
// looked for first, since reading JSON costs a hundred times as much.
type matcher struct {
	q       Query
	text    string
	needles [][]byte // in lower case; the first in the whole block, the others in its lines
}

func newMatcher(q Query) *matcher {
	m := &matcher{q: q, text: fold(q.Text)}
	// The rarest first.
	m.need(`"jti":"`, q.JTI, `"`)
	m.need(`"requestID":"`, q.RequestID, `"`)
	m.need(`"session":"`, q.Session, `"`)
	m.need(`"`, q.Person, `"`)
	m.need(`"`, q.Group, `"`)
	m.need("", q.Text, "")
	m.need(`"act":"`, q.Act, "")
	m.need(`"cluster":"`, q.Cluster, `"`)
	m.need(`"outcome":"`, q.Outcome, `"`)
	return m
}

// need adds s with what is around it in a record, or the longest part of s that JSON
// writes as it is.
func (m *matcher) need(before, s, after string) {
	longest := ""
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune("\"\\<>&", r) }) {
		if len(part) > len(longest) {
			longest = part
		}
	}
	if longest == "" {
		return
	}
	if longest == s {
		longest = before + s + after
	}
	m.needles = append(m.needles, []byte(strings.ToLower(longest)))
}

// candidates are the lines of text that may match, the oldest first.
func (m *matcher) candidates(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if len(m.needles) == 0 {
			for line := range bytes.Lines(text) {
				if !yield(line) {
					return
				}
			}
			return
		}
		folded := lower(text)
		for at := 0; at < len(text); {
			i := bytes.Index(folded[at:], m.needles[0])
			if i < 0 {
				return
			}
			begin := bytes.LastIndexByte(folded[:at+i], '\n') + 1
			end := at + i + bytes.IndexByte(folded[at+i:], '\n') + 1
			at = end
			if m.promising(folded[begin:end]) && !yield(text[begin:end]) {
				return
			}
		}
	}
}

func (m *matcher) promising(line []byte) bool {
	for _, n := range m.needles[1:] {
		if !bytes.Contains(line, n) {
			return false
		}
	}
	return true
}

// matches decides about a whole record.
func (m *matcher) matches(e *Event) bool {
	q := &m.q
	if !q.From.IsZero() && e.Time.Before(q.From) || !q.To.IsZero() && !e.Time.Before(q.To) {
		return false
	}
	for _, f := range [...]struct{ want, is string }{{q.JTI, e.JTI}, {q.RequestID, e.RequestID}, {q.Session, e.Session}} {
		if f.want != "" && f.want != f.is {
			return false
		}
	}
	return (q.Outcome == "" || fold(q.Outcome) == fold(e.Outcome)) &&
		(q.Cluster == "" || fold(q.Cluster) == fold(e.Cluster)) &&
		(q.Act == "" || strings.HasPrefix(fold(e.Act), fold(q.Act))) &&
		(q.Person == "" || m.concerns(e, fold(q.Person), false)) &&
		(q.Group == "" || m.concerns(e, fold(q.Group), true)) &&
		(q.Text == "" || m.hasText(e))
}

// SearchAct is the act of a record of who looked for what. What they looked for is in its
// details, and counts only where an act is asked for: else each search would find itself
// and those before it.
const SearchAct = "audit.search"

func (m *matcher) details(e *Event) map[string]string {
	if e.Act == SearchAct && m.q.Act == "" {
		return nil
	}
	return e.Detail
}

// concerns says whether e is about a person or a group: what acts on groups are on is a
// group, what others are on may be a person, and details can name either.
func (m *matcher) concerns(e *Event, who string, group bool) bool {
	if onGroup := strings.HasPrefix(e.Act, "group"); onGroup == group && fold(e.On) == who {
		return true
	}
	if !group && (fold(e.Who) == who || fold(e.Name) == who) {
		return true
	}
	for _, v := range m.details(e) {
		if fold(v) == who {
			return true
		}
	}
	return false
}

func (m *matcher) hasText(e *Event) bool {
	for _, s := range [...]string{
		e.Node, e.Act, e.Who, e.Name, e.On, e.Outcome, e.Reason, e.Address, e.UserAgent, e.RequestID, e.Session, e.JTI, e.Client, e.Cluster,
	} {
		if strings.Contains(fold(s), m.text) {
			return true
		}
	}
	for k, v := range m.details(e) {
		if strings.Contains(fold(k), m.text) || strings.Contains(fold(v), m.text) {
			return true
		}
	}
	return false
}
