package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// file is one file of a trail: audit-<day>-<seq of its first record>.jsonl.
type file struct {
	path  string
	first uint64
}

// list returns the files of the trail in dir, oldest first.
func list(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	name := regexp.MustCompile(`^audit-[0-9]{8}-([0-9]{12,19})\.jsonl$`)
	var files []file
	for _, e := range entries {
		m := name.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		first, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil || first == 0 {
			return nil, fmt.Errorf("%s: not the name of an audit file", e.Name())
		}
		files = append(files, file{filepath.Join(dir, e.Name()), first})
	}
	// By what is in them, not by day: a clock may have been wrong.
	slices.SortStableFunc(files, func(a, b file) int { return cmp.Compare(a.first, b.first) })
	return files, nil
}

// chain is one chain of a trail.
type chain struct {
	dir string
	id  string // in cursors: the number of the folder it was given in, and its name there
}

// chainsIn returns the chains in dirs: of each folder its own, and one for each folder
// in it that holds files of a trail.
func chainsIn(dirs []string) ([]chain, error) {
	var all []chain
	for i, dir := range dirs {
		own, err := list(dir)
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		before := len(all)
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			sub := filepath.Join(dir, e.Name())
			if files, err := list(sub); err != nil {
				return nil, err
			} else if len(files) > 0 {
				all = append(all, chain{sub, fmt.Sprintf("%d/%s", i, e.Name())})
			}
		}
		if len(own) > 0 || len(all) == before {
			all = slices.Insert(all, before, chain{dir, strconv.Itoa(i)})
		}
	}
	return all, nil
}

// firstLine reads the first record of a file, or what is there of one.
func firstLine(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReaderSize(io.LimitReader(f, maxLine), 4096).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return line, err
}

// lastLine reads the last whole line of a file, nil where there is none.
func lastLine(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(info.Size(), maxLine))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	end := bytes.LastIndexByte(b, '\n')
	if end < 0 {
		return nil, nil
	}
	return b[bytes.LastIndexByte(b[:end], '\n')+1 : end+1], nil
}

// create makes the file for the records from first on, and its name durable.
func create(dir string, now time.Time, first uint64) (*os.File, error) {
	path := filepath.Join(dir, fmt.Sprintf("audit-%s-%012d.jsonl", now.Format("20060102"), first))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// cutOff moves what is behind the good records of a file into a file of its own,
// and returns what there is to tell about it.
func cutOff(path string, good found) (map[string]string, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	torn, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.torn")
	if err != nil {
		return nil, err
	}
	defer func() { _ = torn.Close() }()
	sum := sha256.New()
	if _, err := f.Seek(good.size, io.SeekStart); err != nil {
		return nil, err
	}
	n, err := io.Copy(io.MultiWriter(torn, sum), f)
	if err != nil {
		return nil, err
	}
	// First the copy is durable, then the original goes.
	for _, step := range []func() error{
		torn.Sync,
		func() error { return syncDir(filepath.Dir(path)) },
		func() error { return f.Truncate(good.size) },
		f.Sync,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return map[string]string{
		"file": filepath.Base(path), "line": strconv.Itoa(good.lines + 1), "bytes": strconv.FormatInt(n, 10),
		"sha256": hex.EncodeToString(sum.Sum(nil)), "movedTo": filepath.Base(torn.Name()),
	}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
