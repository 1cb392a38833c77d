package audit

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Proof is what Verify holds a trail against besides itself.
type Proof struct {
	// Keys are the public halves of the audit keys that signed it; without any,
	// signatures are not checked.
	Keys []ed25519.PublicKey
	// Checkpoints, if not nil, is a file that was kept elsewhere, with checkpoints as
	// the sinks received them; other lines in it are passed over.
	Checkpoints io.Reader
}

// Summary is what VerifyAll found of one chain.
type Summary struct {
	Dir, Node   string
	Files       int
	First, Last uint64 // seq; both 0 for an empty chain
	Hash        string // of the last record, in hex
	Checkpoints int    // in the chain
	Signed      uint64 // the last record that a checkpoint covers whose signature was checked
	Kept        int    // checkpoints kept elsewhere that hold
	TooOld      int    // checkpoints kept elsewhere whose records retention removed
	Err         error  // *BrokenError, or why it could not be read
}

// unsigned is how many records a whole chain can end in without a checkpoint: one is
// made with the write that completes checkpointRecords.
const unsigned = checkpointRecords + maxGroup + maxEvents

// errMoved: retention removed files meanwhile.
var errMoved = errors.New("files were removed meanwhile")

// Verify checks the chain in dir, as VerifyAll does without any Proof. While a Log
// writes, its last group can show as unfinished.
func Verify(dir string) (Summary, error) {
	s := verifyChain(context.Background(), dir, Proof{}, nil, 0)
	if s.Err != nil {
		return Summary{}, fmt.Errorf("verify audit log: %w", s.Err)
	}
	return s, nil
}

// VerifyAll checks every chain in dirs: each record, the order of them, that nothing is
// missing but what the chain itself says was removed, each checkpoint, and that it
// holds what p says. It may run while Tabard writes. A chain that does not hold is in
// the Summary of it; the error is of what could not be checked at all.
func VerifyAll(ctx context.Context, dirs []string, p Proof) ([]Summary, error) {
	chains, err := chainsIn(dirs)
	if err != nil {
		return nil, fmt.Errorf("verify audit log: %w", err)
	}
	held := map[string][]kept{}
	if p.Checkpoints != nil {
		if held, err = readKept(p.Checkpoints, p.Keys); err != nil {
			return nil, fmt.Errorf("verify audit log: checkpoints kept elsewhere: %w", err)
		}
	}
	var all []Summary
	for _, c := range chains {
		all = append(all, verifyChain(ctx, c.dir, p, held, 10))
	}
	for _, node := range slices.Sorted(maps.Keys(held)) {
		if !slices.ContainsFunc(all, func(s Summary) bool { return s.Node == node && s.Files > 0 }) {
			last := held[node][len(held[node])-1]
			all = append(all, Summary{Node: node, Err: fmt.Errorf("the whole chain of node %q is missing: a checkpoint of %s, in line %d, knows of record %d", node, last.at.Format(time.RFC3339), last.line, last.seq)})
		}
	}
	return all, ctx.Err()
}

// verifyChain begins anew when retention took a file away meanwhile.
func verifyChain(ctx context.Context, dir string, p Proof, held map[string][]kept, patience int) Summary {
	for range 10 {
		v := &verifier{Summary: Summary{Dir: dir}, keys: p.Keys, patience: patience}
		err := v.run(ctx, held)
		if errors.Is(err, errMoved) {
			continue
		}
		v.Err = err
		return v.Summary
	}
	return Summary{Dir: dir, Err: errMoved}
}

// verifier checks one chain.
type verifier struct {
	Summary
	keys     []ed25519.PublicKey
	held     []kept
	patience int // how often to look again at a last record that is unfinished
	end      tail
	removed  *hash // of the record before the first, as the chain tells of its removal
}

// part is what one file adds.
type part struct {
	file
	found
	checkpoints, held int
	signed            uint64
	removed           *hash
}

func (v *verifier) run(ctx context.Context, held map[string][]kept) error {
	files, err := list(v.Dir)
	if err != nil || len(files) == 0 {
		return err
	}
	v.Files, v.First = len(files), files[0].first
	if v.Node, err = nodeOf(files); err != nil {
		return err
	}
	v.held = held[v.Node]
	for _, k := range v.held {
		if k.seq < v.First {
			v.TooOld++
		}
	}
	var first part
	for p, err := range inOrder(ctx, lookAhead(1), slices.Values(files), v.scan) {
		if err != nil {
			return err
		}
		if p.file == files[0] {
			first = p
			v.end = tail{p.first - 1, p.before}
		}
		if err := v.take(ctx, p, p.file == files[len(files)-1]); err != nil {
			return err
		}
	}
	return v.finish(first, files[len(files)-1])
}

// scan reads one file.
func (v *verifier) scan(ctx context.Context, f file) (part, error) {
	p := part{file: f}
	at, _ := slices.BinarySearchFunc(v.held, f.first, func(k kept, first uint64) int { return cmp.Compare(k.seq, first) })
	held := v.held[at:]
	var err error
	p.found, err = scan(f, func(r record, line []byte) string {
		if r.seq%4096 == 0 && ctx.Err() != nil {
			return "interrupted"
		}
		for ; len(held) > 0 && held[0].seq == r.seq; held = held[1:] {
			if held[0].hash != r.hash {
				return fmt.Sprintf("the chain was rewritten: record %d is not the one that the checkpoint of %s, in line %d, was taken of", r.seq, held[0].at.Format(time.RFC3339), held[0].line)
			}
			p.held++
		}
		return v.special(&p, r, line)
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = errMoved
	}
	return p, cmp.Or(ctx.Err(), err)
}

// special looks at the records that speak of the chain itself.
func (v *verifier) special(p *part, r record, line []byte) string {
	is, signed, why := checkCheckpoint(r, line, v.keys)
	if is {
		p.checkpoints++
	}
	if signed {
		p.signed = r.seq
	}
	if d := removal(line); d != nil && d["last"] == strconv.FormatUint(v.First-1, 10) {
		h := new(hash)
		if member([]byte(d["hash"]), "", "", h) {
			p.removed = h
		}
	}
	return why
}

// take joins a file onto the chain so far.
func (v *verifier) take(ctx context.Context, p part, last bool) error {
	if why := v.end.gap(p.file, p.found); why != "" {
		return &BrokenError{p.path, 1, why}
	}
	if p.why != "" && last && !p.damage { // perhaps it is being written now
		p = v.again(ctx, p)
	}
	v.Checkpoints, v.Kept, v.Signed = v.Checkpoints+p.checkpoints, v.Kept+p.held, max(v.Signed, p.signed)
	if p.removed != nil {
		v.removed = p.removed
	}
	if p.why != "" {
		return &BrokenError{p.path, p.lines + 1, p.why}
	}
	if p.lines > 0 {
		v.end = p.tail
	}
	return nil
}

// again reads the last file until it ends in a whole record, or patience or ctx ends.
func (v *verifier) again(ctx context.Context, p part) part {
	for range v.patience {
		select {
		case <-ctx.Done():
			return p
		case <-time.After(100 * time.Millisecond):
		}
		if next, err := v.scan(ctx, p.file); err == nil {
			p = next
		}
		if p.why == "" {
			break
		}
	}
	return p
}

// finish looks at both ends of the chain.
func (v *verifier) finish(first part, last file) error {
	v.Last = v.end.seq
	if v.Last < v.First {
		v.First, v.Last = 0, 0
	} else {
		v.Hash = v.end.hash.hex()
	}
	switch {
	case first.first == 1 && first.lines > 0 && first.before != hash{}:
		return &BrokenError{first.path, 1, "the first record does not begin a chain"}
	case first.first > 1 && (v.removed == nil || first.lines > 0 && *v.removed != first.before):
		return &BrokenError{first.path, 1, fmt.Sprintf("records 1 to %d are missing, and no record says that retention removed them", first.first-1)}
	}
	lines := int(v.Last - max(last.first, 1) + 1)
	if n := len(v.held); n > 0 && v.held[n-1].seq > v.end.seq {
		k := v.held[n-1]
		return &BrokenError{last.path, lines + 1, fmt.Sprintf("the end was cut off: the chain ends in record %d, and a checkpoint of %s, in line %d, knows of record %d", v.end.seq, k.at.Format(time.RFC3339), k.line, k.seq)}
	}
	if len(v.keys) > 0 && v.end.seq-max(v.Signed, 0) > unsigned {
		return &BrokenError{last.path, lines, fmt.Sprintf("the last %d records have no signed checkpoint: Tabard leaves one at least every %d", v.end.seq-v.Signed, checkpointRecords)}
	}
	return nil
}

// nodeOf reads whose chain it is from the newest record that can be read.
func nodeOf(files []file) (string, error) {
	for _, f := range slices.Backward(files) {
		line, err := firstLine(f.path)
		var e Event
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", errMoved
		case err != nil:
			return "", err
		case json.Unmarshal(line, &e) == nil:
			return e.Node, nil
		}
	}
	return "", nil
}
