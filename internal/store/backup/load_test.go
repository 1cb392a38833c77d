package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabard-id/tabard/internal/store"
	"github.com/tabard-id/tabard/internal/store/backup"
)

const writers = 16

// load has each writer put its number into the two ends of the store and a record of
// its own between them, in one Txn, and says in acked what was acknowledged.
func load(ctx context.Context, t *testing.T, st store.Store, acked *[writers]atomic.Int64) *sync.WaitGroup {
	wg := &sync.WaitGroup{}
	for w := range writers {
		wg.Go(func() {
			for n := int64(1); ctx.Err() == nil; n++ {
				v := []byte(strconv.FormatInt(n, 10))
				ops := []store.Op{
					{Key: fmt.Sprintf("a/%02d", w), Value: v}, {Key: fmt.Sprintf("z/%02d", w), Value: v},
					{Key: fmt.Sprintf("m/%02d.%d", w, n%200), Value: bytes.Repeat(v, 50), Expires: time.Now().Add(time.Hour)},
					{Key: fmt.Sprintf("m/%02d.%d", w, (n+100)%200), Delete: true},
				}
				if _, err := st.Txn(context.WithoutCancel(ctx), nil, ops); err != nil {
					t.Error(err)
					return
				}
				acked[w].Store(n)
			}
		})
	}
	return wg
}

// TestUnderLoad backs up and restores again and again while 16 writers write. What was
// acknowledged before a backup began is in it, and each Txn whole or not at all.
func TestUnderLoad(t *testing.T) {
	from := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var acked [writers]atomic.Int64
	wg := load(ctx, t, from, &acked)
	defer wg.Wait()
	defer cancel()
	for round := range int64(8) {
		var before [writers]int64
		for w := range writers {
			for before[w] < 30*(round+1) && !t.Failed() { // each has written a while
				time.Sleep(time.Millisecond)
				before[w] = acked[w].Load()
			}
		}
		file, _ := saved(t, from)
		to := open(t)
		if _, err := backup.Restore(t.Context(), to, bytes.NewReader(file), 9); err != nil {
			t.Fatal(err)
		}
		checkPairs(t, to, before)
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func checkPairs(t *testing.T, st store.Store, before [writers]int64) {
	t.Helper()
	values := map[string]string{}
	if _, err := st.Dump(t.Context(), func(e store.Entry) error {
		values[e.Key] = string(e.Value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for w := range writers {
		a, z := values[fmt.Sprintf("a/%02d", w)], values[fmt.Sprintf("z/%02d", w)]
		n, _ := strconv.ParseInt(a, 10, 64)
		if a != z || n < before[w] {
			t.Errorf("writer %d: %q and %q, acknowledged before it began: %d", w, a, z, before[w])
		}
		_, deleted := values[fmt.Sprintf("m/%02d.%d", w, (n+100)%200)]
		if own := values[fmt.Sprintf("m/%02d.%d", w, n%200)]; n > 0 && (deleted || own != strings.Repeat(a, 50)) {
			t.Errorf("writer %d: Txn %d is there in part", w, n)
		}
	}
}
