package bolt

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// bbolt's pages: a head of 16 bytes (number 8, kind 2, count 2, overflow 4), and in a
// branch an element of 16 bytes for each child, whose number is its second half.
const (
	pageHead    = 16
	pageElement = 16
)

// pages accounts for every page of a file: it holds records, or is free, or is the
// list of free pages. A page that is in use and listed as free would be taken by the
// next write. (bbolt's own check goes astray in a damaged file, and cannot be ended.)
type pages struct {
	tx   *bbolt.Tx
	file io.ReaderAt
	size int // of a page
	end  int // number of the first page that is not used yet
	used []bool
}

// checkPages is called when every record could be read.
func checkPages(tx *bbolt.Tx) error {
	file, err := os.Open(tx.DB().Path())
	if err != nil {
		return err
	}
	defer file.Close()
	size := tx.DB().Info().PageSize
	p := &pages{tx: tx, file: file, size: size, end: int(tx.Size()) / size}
	p.used = make([]bool, p.end)
	roots := []int{int(tx.Cursor().Bucket().Root())}
	for _, name := range [][]byte{metaBucket, recordsBucket} {
		if root := int(tx.Bucket(name).Root()); root != 0 { // 0: in the page of its parent
			roots = append(roots, root)
		}
	}
	for _, root := range roots {
		if err := p.tree(root); err != nil {
			return err
		}
	}
	return p.rest()
}

// tree takes the pages from root down.
func (p *pages) tree(root int) error {
	for left := []int{root}; len(left) > 0; {
		id := left[len(left)-1]
		left = left[:len(left)-1]
		if err := p.take(id); err != nil {
			return err
		}
		info, err := p.tx.Page(id)
		if err != nil {
			return err
		}
		if info.Type != "branch" {
			continue
		}
		elements := make([]byte, info.Count*pageElement)
		if _, err := p.file.ReadAt(elements, int64(id)*int64(p.size)+pageHead); err != nil {
			return err
		}
		for e := elements; len(e) >= pageElement; e = e[pageElement:] {
			left = append(left, int(binary.NativeEndian.Uint64(e[pageElement-8:])))
		}
	}
	return nil
}

// take notes that page id, with those that belong to it, is in use.
func (p *pages) take(id int) error {
	if id < 2 || id >= p.end {
		return damagedPage(id, "does not exist")
	}
	first, err := p.tx.Page(id)
	if err != nil {
		return err
	}
	for n := id; n <= id+first.OverflowCount; n++ {
		if n >= p.end || p.used[n] {
			return damagedPage(n, "is used twice")
		}
		info, err := p.tx.Page(n)
		if err != nil {
			return err
		}
		if info.Type == "free" {
			return damagedPage(n, "is in use and listed as free")
		}
		p.used[n] = true
	}
	return nil
}

// rest goes through the pages that no tree has, behind the two roots of the file.
func (p *pages) rest() error {
	for id := 0; id < p.end; id++ {
		info, err := p.tx.Page(id)
		switch {
		case err != nil:
			return err
		case id < 2 && info.Type != "meta":
			return damagedPage(id, "is no root")
		case id < 2, p.used[id], info.Type == "free":
		case info.Type == "freelist":
			if err := p.take(id); err != nil {
				return err
			}
		default:
			return damagedPage(id, "is neither in use nor free")
		}
	}
	return nil
}

func damagedPage(id int, what string) error {
	return fmt.Errorf("%w (page %d %s)", errDamaged, id, what)
}
