package audit

import (
	"context"
	"iter"
	"runtime"
	"sync"
)

// outcome is what one job came to.
type outcome[T any] struct {
	value T
	err   error
}

// inOrder does jobs several at once, and gives what they come to in the order of
// the jobs. At most ahead are under way or waiting to be taken. It ends with the first
// error, and waits for what is under way.
func inOrder[J, T any](ctx context.Context, ahead int, jobs iter.Seq[J], do func(context.Context, J) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		next, stop := iter.Pull(jobs)
		defer stop()
		var under []chan outcome[T]
		for more := true; ; {
			for more && len(under) < ahead {
				var job J
				if job, more = next(); more {
					done := make(chan outcome[T], 1)
					under = append(under, done)
					wg.Go(func() {
						value, err := do(ctx, job)
						done <- outcome[T]{value, err}
					})
				}
			}
			if len(under) == 0 {
				return
			}
			o := <-under[0]
			under = under[1:]
			if !yield(o.value, o.err) || o.err != nil {
				return
			}
		}
	}
}

// lookAhead is how many jobs of one of several chains keep the CPUs at work.
func lookAhead(chains int) int { return max(1, 2*runtime.GOMAXPROCS(0)/max(1, chains)) + 1 }
