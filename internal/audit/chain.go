package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
)

// BrokenError says where a trail does not hold.
type BrokenError struct {
	File string
	Line int // from 1
	Why  string
}

func (e *BrokenError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// Summary is what Verify found in order.
type Summary struct {
	Files       int
	First, Last uint64 // seq; both 0 for an empty trail
	Hash        string // of the last record, in hex: kept elsewhere, it shows a cut end
}

// Verify checks every record of the trail in dir and the chain through them. A
// change, a reorder, or a removal but at the ends is a *BrokenError that names file
// and line. Files missing at the beginning show in Summary.First, and records
// missing at the end by comparing Summary.Hash with one kept elsewhere. While a Log
// writes, its last group can show as unfinished.
func Verify(dir string) (Summary, error) {
	files, err := list(dir)
	if err != nil {
		return Summary{}, fmt.Errorf("verify audit log: %w", err)
	}
	var end tail
	for _, f := range files {
		found, err := scan(f, end)
		if err == nil && found.why != "" {
			err = &BrokenError{f.path, found.lines + 1, found.why}
		}
		if err != nil {
			return Summary{}, fmt.Errorf("verify audit log: %w", err)
		}
		end = found.tail
	}
	if end.seq == 0 {
		return Summary{Files: len(files)}, nil
	}
	return Summary{len(files), files[0].first, end.seq, hex.EncodeToString(end.hash[:])}, nil
}

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
	digits, _, _ := bytes.Cut(bytes.TrimPrefix(line, []byte(seqIs)), []byte(","))
	var err error
	r.seq, err = strconv.ParseUint(string(digits), 10, 64)
	if err != nil || !bytes.HasPrefix(line, []byte(seqIs)) ||
		!member(prev, prevIs, `"`, &r.prev) || !member(rest, hashIs, after+"\n", &r.hash) {
		return r, "not a record"
	}
	if r.prev.onto(covered) != r.hash {
		return r, "the record was changed: its hash does not fit"
	}
	return r, ""
}

// member reads a hash between two strings. Hex in capitals is a change as well.
func member(b []byte, before, behind string, h *hash) bool {
	if len(b) != len(before)+hexLen+len(behind) {
		return false
	}
	digits := b[len(before) : len(before)+hexLen]
	_, err := hex.Decode(h[:], digits)
	return err == nil && string(b) == before+hex.EncodeToString(h[:])+behind
}

// onto is the hash of the record whose line begins with covered, after h.
func (h hash) onto(covered []byte) (next hash) {
	d := sha256.New()
	d.Write(h[:])
	d.Write(covered)
	d.Sum(next[:0])
	return next
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
	tail
	lines  int    // good ones
	size   int64  // up to the end of the last of them
	why    string // what is wrong with the next line; "" at the end of the file
	damage bool   // and no crash leaves it like that: whole records are behind it
}

// scan reads the records of f as a chain that goes on from end; from anywhere where
// end is zero, which is where the oldest file that is left begins.
func scan(f file, end tail) (found, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return found{}, err
	}
	defer func() { _ = in.Close() }()
	if end.seq == 0 {
		end.seq = f.first - 1
	}
	res := found{tail: end}
	if f.first != end.seq+1 {
		res.why = fmt.Sprintf("records %d to %d are missing before this file", end.seq+1, f.first-1)
		res.damage = true
		return res, nil
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*maxGroupBytes) // a crash can leave that much of zeros
	lines.Split(splitLines)
	for lines.Scan() {
		r, why := parse(lines.Bytes())
		switch {
		case res.why != "":
			res.damage = res.damage || why == ""
		case why != "":
			res.why = why
		default:
			res.add(r, len(lines.Bytes()), f.first)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		res.why, res.damage = "the line is longer than any record", true
		return res, nil
	}
	return res, lines.Err()
}

// add takes r onto the chain, or says why it does not fit.
func (res *found) add(r record, bytes int, first uint64) {
	oldest := res.lines == 0 && res.hash == hash{} && first > 1
	switch {
	case r.seq != res.seq+1:
		res.why = fmt.Sprintf("record %d where %d belongs", r.seq, res.seq+1)
		res.damage = true
	case r.prev != res.hash && !oldest:
		res.why = fmt.Sprintf("record %d does not follow the record before it", r.seq)
		res.damage = true
	default:
		res.tail = tail{r.seq, r.hash}
		res.lines++
		res.size += int64(bytes)
	}
}

// splitLines is a bufio.SplitFunc for lines with their line feed.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
