package replicate

import (
	"context"
	"runtime"
	"sync"
)

// turns lets a bounded number of goroutines work at a time, in the order in which they came. One that has more to
// do after its turn stands in line again, so that a database with much to do keeps none with little waiting for
// longer than one turn of each. The zero value lets nobody in.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting []chan struct{} // closed when the turn has come; nil where somebody gave up
}

func newTurns(n int) *turns { return &turns{free: n} }

// take waits for a turn. It fails only with ctx.
func (t *turns) take(ctx context.Context) error {
	t.mu.Lock()
	if t.free > 0 && len(t.waiting) == 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	t.waiting = append(t.waiting, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, w := range t.waiting {
		if w == mine {
			t.waiting[i] = nil
			return ctx.Err()
		}
	}
	// It came in the same moment: it goes to the next.
	t.giveLocked()
	return ctx.Err()
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveLocked()
}

func (t *turns) giveLocked() {
	for len(t.waiting) > 0 {
		next := t.waiting[0]
		t.waiting[0] = nil
		if t.waiting = t.waiting[1:]; len(t.waiting) == 0 {
			t.waiting = nil
		}
		if next != nil {
			close(next)
			return
		}
	}
	t.free++
}

// inParallel runs f for 0 to n-1, some at a time, and returns the first error. After an error no further one begins.
func inParallel(n, width int, f func(i int) error) error {
	var mu sync.Mutex
	var first error
	next := 0
	var wg sync.WaitGroup
	for range min(n, width) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				end := i >= n || first != nil
				mu.Unlock()
				if end {
					return
				}
				if err := f(i); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// Bounds of what one node does for all its databases at a time. Each may wait for the disk, so they are more than
// processors; all at once would only wait for each other.
const (
	copierWidth   = 2 // checkpoints
	shutdownWidth = 8 // databases that are closed
)

func applierWidth() int { return max(4, 2*runtime.GOMAXPROCS(0)) }

// takeCopierIO waits for a turn to checkpoint and for the database's files. It waits for the files without the turn:
// an application can keep them for long.
func (d *replica) takeCopierIO() error {
	for {
		if err := d.svc.copiers.take(d.svc.ctx); err != nil {
			return err
		}
		if d.ioMu.TryLock() {
			return nil
		}
		d.svc.copiers.give()
		if !d.svc.pauseFor(d.svc.ctx, ioPoll) {
			return d.svc.ctx.Err()
		}
	}
}

func (d *replica) endCopierIO() {
	d.ioMu.Unlock()
	d.svc.copiers.give()
}
