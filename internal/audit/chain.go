package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// A record is one line: the event's JSON object, whose last two members are
//
//	"prev":"<hash of the record before, 64 zeros for the first>","hash":"<its own>"
//
// The hash is SHA-256 over the 32 bytes of the hash before and the line's own bytes
// up to `,"hash"`. It covers the bytes as they are, so there is no other form to
// bring them into.
type hash [sha256.Size]byte

const (
	seqIs  = `{"seq":`
	prevIs = `,"prev":"`
	hashIs = `,"hash":"`
	after  = `"}`
	hexLen = 2 * sha256.Size

	maxLine = 1 << 20 // bytes; no record comes near it
)

// BrokenError says where a trail does not hold.
type BrokenError struct {
	File string
	Line int // from 1
	Why  string
}

func (e *BrokenError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// record is what the chain needs of one line.
type record struct {
	seq        uint64
	prev, hash hash
}

// parse reads one line with its line feed; why says what is wrong with it.
func parse(line []byte) (r record, why string) {
	const end = len(hashIs) + hexLen + len(after) + 1
	const mid = len(prevIs) + hexLen + len(`"`)
	if len(line) < len(seqIs)+end+mid || line[len(line)-1] != '\n' {
		return r, "unfinished record"
	}
	covered, rest := line[:len(line)-end], line[len(line)-end:]
	prev := covered[len(covered)-mid:]
	seq, ok := seqOf(line)
	if !ok || !member(prev, prevIs, `"`, &r.prev) || !member(rest, hashIs, after+"\n", &r.hash) {
		return r, "not a record"
	}
	r.seq = seq
	if r.prev.onto(covered) != r.hash {
		return r, "the record was changed: its hash does not fit"
	}
	return r, ""
}

// seqOf reads the number that a record begins with.
func seqOf(line []byte) (uint64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(seqIs))
	if !ok {
		return 0, false
	}
	digits, _, _ := bytes.Cut(rest[:min(len(rest), 21)], []byte(","))
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	return seq, err == nil
}

// member reads a hash between two strings. Hex in capitals is a change as well.
func member(b []byte, before, behind string, h *hash) bool {
	if len(b) != len(before)+hexLen+len(behind) {
		return false
	}
	digits := b[len(before) : len(before)+hexLen]
	if _, err := hex.Decode(h[:], digits); err != nil {
		return false
	}
	var again [hexLen]byte
	hex.Encode(again[:], h[:])
	return bytes.Equal(digits, again[:]) && string(b[:len(before)]) == before && string(b[len(before)+hexLen:]) == behind
}

// onto is the hash of the record whose line begins with covered, after h.
func (h hash) onto(covered []byte) (next hash) {
	d := sha256.New()
	d.Write(h[:])
	d.Write(covered)
	d.Sum(next[:0])
	return next
}

func (h hash) hex() string { return hex.EncodeToString(h[:]) }

// tail is the end of a chain.
type tail struct {
	seq  uint64 // 0: no records yet
	hash hash
}

// appendLine appends the record after end to buf. body is an event's JSON object
// without seq and time.
func appendLine(buf []byte, end tail, now time.Time, body []byte) ([]byte, tail) {
	start := len(buf)
	buf = append(buf, seqIs...)
	buf = strconv.AppendUint(buf, end.seq+1, 10)
	buf = append(buf, `,"time":"`...)
	buf = now.AppendFormat(buf, time.RFC3339Nano)
	buf = append(buf, `",`...)
	buf = append(buf, body[1:len(body)-1]...)
	buf = append(buf, prevIs...)
	buf = hex.AppendEncode(buf, end.hash[:])
	buf = append(buf, '"')
	next := tail{end.seq + 1, end.hash.onto(buf[start:])}
	buf = append(buf, hashIs...)
	buf = hex.AppendEncode(buf, next.hash[:])
	return append(buf, after+"\n"...), next
}

// found is what scan read of a file: good records, then the end or a bad line.
type found struct {
	tail          // seq is the one before the file's first where there is no record
	before hash   // what the first record follows
	lines  int    // good ones
	size   int64  // up to the end of the last of them
	why    string // what is wrong with the next line; "" at the end of the file
	damage bool   // and no crash leaves it like that: whole records are behind it
}

// scan reads the records of f, a chain that begins anywhere, and shows each to
// visit, which says what else is wrong with it. A line is good until visit returns.
func scan(f file, visit func(record, []byte) string) (found, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return found{}, err
	}
	defer func() { _ = in.Close() }()
	res := found{tail: tail{seq: f.first - 1}}
	lines := newLineReader(in)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return res, nil
		}
		if err != nil {
			return res, err
		}
		r, why := parse(line)
		switch {
		case res.why != "":
			res.damage = res.damage || why == ""
		case why != "":
			res.why = why
		default:
			res.add(r, line, visit)
		}
	}
}

// add takes r onto the chain, or says why it does not fit.
func (res *found) add(r record, line []byte, visit func(record, []byte) string) {
	why := ""
	switch {
	case r.seq != res.seq+1:
		why = fmt.Sprintf("record %d where %d belongs", r.seq, res.seq+1)
	case r.prev != res.hash && res.lines > 0:
		why = fmt.Sprintf("record %d does not follow the record before it", r.seq)
	default:
		why = visit(r, line)
	}
	if why != "" {
		res.why, res.damage = why, true
		return
	}
	if res.lines == 0 {
		res.before = r.prev
	}
	res.tail = tail{r.seq, r.hash}
	res.lines++
	res.size += int64(len(line))
}

// gap says what is wrong between a chain that ends in end and the file behind it.
func (end tail) gap(f file, res found) string {
	switch {
	case f.first > end.seq+1:
		return fmt.Sprintf("records %d to %d are missing before this file", end.seq+1, f.first-1)
	case f.first <= end.seq:
		return fmt.Sprintf("record %d where %d belongs", f.first, end.seq+1)
	case res.lines > 0 && res.before != end.hash:
		return fmt.Sprintf("record %d does not follow the record before it", f.first)
	}
	return ""
}

// lineReader reads lines with their line feed, in bounded memory: for a line longer
// than any record it gives one that is none.
type lineReader struct{ in *bufio.Reader }

func newLineReader(in io.Reader) lineReader { return lineReader{bufio.NewReaderSize(in, maxLine)} }

// next returns a line that is good until the call after; the last may lack its line
// feed. io.EOF is behind it.
func (l lineReader) next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = l.in.ReadSlice('\n')
		}
		line = []byte("too long")
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil
	}
	return line, err
}
