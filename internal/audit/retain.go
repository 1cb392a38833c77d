package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// retentionAct is the act of the record that says which file is removed: "first" and
// "last" of its records, and the "hash" of the last, which the next file goes on from.
const retentionAct = "audit.retention"

// removal returns the details of line if it is the record of a removed file, or nil.
func removal(line []byte) map[string]string {
	if !mark(line, retentionAct) {
		return nil
	}
	var e Event
	if json.Unmarshal(line, &e) != nil || e.Act != retentionAct {
		return nil
	}
	return e.Detail
}

// retain removes the files that need not be kept, the oldest first.
func (l *Log) retain() {
	for l.cfg.Serve {
		again, err := l.retainOne()
		l.complain("remove an old file", err)
		if err != nil || !again {
			return
		}
	}
}

// retainOne removes the oldest file if it need not be kept. First the chain says so.
func (l *Log) retainOne() (removed bool, err error) {
	files, err := list(l.dir)
	if err != nil || len(files) < 2 {
		return false, err
	}
	old, last := files[0], tail{seq: files[1].first - 1}
	why, hard, err := l.outlived(files)
	if err != nil || why == "" {
		return false, err
	}
	detail := map[string]string{"first": strconv.FormatUint(old.first, 10), "last": strconv.FormatUint(last.seq, 10)}
	for _, s := range l.sinks {
		if at := s.position.Load(); at < last.seq {
			if !hard {
				return false, nil // the sink's own trouble is in the log
			}
			detail["missed by "+s.name] = fmt.Sprintf("%d to %d", max(at+1, old.first), last.seq)
		}
	}
	line, err := lastLine(old.path)
	if err != nil {
		return false, err
	}
	r, bad := parse(line)
	if bad != "" || r.seq != last.seq {
		return false, fmt.Errorf("%s stays: its last record is not number %d: run `tabard audit verify`", old.path, last.seq)
	}
	detail["hash"] = r.hash.hex()
	body, err := l.encode(context.Background(), Event{Act: retentionAct, On: filepath.Base(old.path), Outcome: Done, Reason: why, Detail: detail})
	if err == nil {
		err = l.write([][]byte{body}, true)
	}
	if err == nil {
		err = errors.Join(os.Remove(old.path), syncDir(l.dir))
	}
	return err == nil, err
}

// outlived says why the oldest of files need not be kept; hard, even if a sink has not
// taken it.
func (l *Log) outlived(files []file) (why string, hard bool, err error) {
	keep, total := l.cfg.Retain, Size(0)
	if keep == (RetainConfig{}) {
		return "", false, nil
	}
	for _, f := range files {
		info, err := os.Stat(f.path)
		if err != nil {
			return "", false, err
		}
		total += Size(info.Size())
	}
	hard = keep.HardSize > 0 && total > keep.HardSize
	if hard || keep.Size > 0 && total > keep.Size {
		return fmt.Sprintf("the files together are %d bytes", total), hard, nil
	}
	if keep.Age == 0 {
		return "", false, nil
	}
	line, err := lastLine(files[0].path)
	var e Event
	if err != nil || json.Unmarshal(line, &e) != nil {
		return "", false, err
	}
	if age := l.cfg.Now().Sub(e.Time); age > keep.Age {
		return fmt.Sprintf("its last record is %s old", age.Round(time.Second)), false, nil
	}
	return "", false, nil
}
