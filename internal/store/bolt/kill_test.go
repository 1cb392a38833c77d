package bolt

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
)

const childWriters = 6

// child writes to the store at path until it is killed, and prints each write that
// was acknowledged: "pair W N", "gone W N", "brief N" or "count". Meanwhile the sweep
// deletes what has expired, and the store is read as a backup reads it. It is the test
// binary, run again.
func child(path string) {
	s, err := Open(Config{Path: path, SweepInterval: 5 * time.Millisecond})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("open")
	go childDumper(s)
	go childBrief(s)
	var wg sync.WaitGroup
	for w := range childWriters {
		wg.Go(func() { childWriter(s, w) })
	}
	wg.Wait()
}

// childDumper reads the whole store again and again: both halves of each pair are as
// of one moment.
func childDumper(s *Store) {
	for {
		left := map[string]string{}
		_, err := s.Dump(context.Background(), func(e store.Entry) error {
			if w, ok := strings.CutPrefix(e.Key, "left/"); ok {
				left[w] = string(e.Value)
			}
			if w, ok := strings.CutPrefix(e.Key, "right/"); ok && left[w] != string(e.Value) {
				return fmt.Errorf("pair %s is torn: %s and %s", w, left[w], e.Value)
			}
			return nil
		})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
}

// childBrief writes entries that expire at once, and some that do not for an hour.
func childBrief(s *Store) {
	round := os.Getenv("TABARD_BOLT_ROUND") // no other process has it, as one might a number of a process
	for n := 0; ; n++ {
		now := time.Now()
		say(fmt.Sprintf("brief %d", n), s, nil,
			store.Op{Key: fmt.Sprintf("brief/%s.%d", round, n), Expires: now.Add(time.Millisecond)},
			store.Op{Key: fmt.Sprintf("hour/%s.%d", round, n%50), Value: []byte(strconv.Itoa(n)), Expires: now.Add(time.Hour)})
	}
}

func childWriter(s *Store, w int) {
	ctx := context.Background()
	left, right := fmt.Sprintf("left/%d", w), fmt.Sprintf("right/%d", w)
	e, _ := s.Get(ctx, left)
	n, _ := strconv.Atoi(string(e.Value))
	for {
		n++
		v := strconv.Itoa(n)
		if n%5 == 0 {
			say(fmt.Sprintf("gone %d %d", w, n), s, nil, store.Op{Key: fmt.Sprintf("temp/%d.%d", w, n-1), Delete: true})
			continue
		}
		say(fmt.Sprintf("pair %d %d", w, n), s, nil, op(left, v), op(right, v),
			op(fmt.Sprintf("temp/%d.%d", w, n), strings.Repeat(v, 1+n%300)))
		c, _ := s.Get(ctx, "count/1")
		count, _ := strconv.Atoi(string(c.Value))
		say("count", s, []store.Cond{{Key: "count/1", Revision: c.Revision}}, op("count/1", strconv.Itoa(count+1)))
	}
}

func say(what string, s *Store, conds []store.Cond, ops ...store.Op) {
	_, err := s.Txn(context.Background(), conds, ops)
	switch {
	case err == nil:
		fmt.Println(what)
	case !errors.Is(err, store.ErrConflict):
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// acknowledged is what the killed processes said they had written.
type acknowledged struct {
	pair  [childWriters]int
	gone  map[string]bool
	count int
	brief map[string]int // by round and slot
}

func (a *acknowledged) hear(t *testing.T, round int, line string) {
	f := strings.Fields(line)
	switch f[0] {
	case "open":
	case "count":
		a.count++
	case "pair":
		w, _ := strconv.Atoi(f[1])
		a.pair[w], _ = strconv.Atoi(f[2])
	case "gone":
		n, _ := strconv.Atoi(f[2])
		a.gone[fmt.Sprintf("temp/%s.%d", f[1], n-1)] = true
	case "brief":
		n, _ := strconv.Atoi(f[1])
		a.brief[fmt.Sprintf("hour/%d.%d", round, n%50)] = n
	default:
		t.Fatalf("the child says %q", line)
	}
}

// TestKill kills a process at random moments, 50 times or TABARD_SOAK_KILLS, while it
// writes, deletes, lets expire and is backed up. Whatever it had acknowledged is there
// when the store is opened again, and no Txn is there in part.
func TestKill(t *testing.T) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("TABARD_SOAK_KILLS"), "50"))
	if err != nil {
		t.Fatalf("TABARD_SOAK_KILLS: %v", err)
	}
	path := filepath.Join(t.TempDir(), "tabard.db")
	rng := rand.New(rand.NewPCG(2026, 2))
	a := &acknowledged{gone: map[string]bool{}, brief: map[string]int{}}
	for round := range rounds {
		killAfter(t, path, round, 1+rng.IntN(400), a)
		a.check(t, path)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if a.count == 0 || len(a.gone) == 0 || len(a.brief) == 0 {
		t.Fatalf("the rounds did too little: %+v", a)
	}
}

// killAfter runs the child, kills it after it has said n lines, and hears the rest
// that is in the pipe.
func killAfter(t *testing.T, path string, round, n int, a *acknowledged) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TABARD_BOLT_CHILD="+path, fmt.Sprintf("TABARD_BOLT_ROUND=%d", round))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		a.hear(t, round, lines.Text())
		if i == n {
			_ = cmd.Process.Signal(syscall.SIGKILL)
		}
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v", status)
	}
}

func (a *acknowledged) check(t *testing.T, path string) {
	t.Helper()
	s := openTest(t, Config{Path: path})
	defer mustClose(t, s)
	read := func(key string) (int, int64) {
		e, err := s.Get(t.Context(), key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		n, _ := strconv.Atoi(string(e.Value))
		return n, e.Revision
	}
	for w := range childWriters {
		left, leftRev := read(fmt.Sprintf("left/%d", w))
		right, rightRev := read(fmt.Sprintf("right/%d", w))
		if left != right || leftRev != rightRev {
			t.Errorf("torn: writer %d has %d@%d and %d@%d", w, left, leftRev, right, rightRev)
		}
		if left < a.pair[w] {
			t.Errorf("lost: writer %d has %d, acknowledged was %d", w, left, a.pair[w])
		}
	}
	for key := range a.gone {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s is back: %v", key, err)
		}
	}
	for key, want := range a.brief {
		if got, _ := read(key); got < want {
			t.Errorf("lost: %s is %d, acknowledged was %d", key, got, want)
		}
	}
	count, _ := read("count/1")
	// Each killed process may have written more than it could say.
	if count < a.count {
		t.Errorf("lost: the count is %d, acknowledged were %d", count, a.count)
	}
}
