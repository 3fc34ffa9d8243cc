package nodecmd

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestProcessorsFollowWhatWaits(t *testing.T) {
	p := newProcessors(8)
	if p.use != 4 {
		t.Fatalf("starts with %d of 8, want half", p.use)
	}
	steps := func(n int, waiting float64, want int) {
		t.Helper()
		for range n {
			if got := p.step(waiting); got != want {
				t.Fatalf("%d processors while %.1f wait, want %d", got, waiting, want)
			}
		}
	}
	steps(100, processorsLess/2, 4)
	steps(100, processorsMore, 4) // not more than that
	steps(1, processorsMore*2, 8)
	steps(processorsCalm-1, 0, 8)
	steps(1, processorsLess, 8) // not calm: counted anew
	steps(processorsCalm-1, 0, 8)
	steps(1, 0, 4)
	if p := newProcessors(1); p.step(100) != 1 || p.step(0) != 1 {
		t.Error("one processor is not always one")
	}
}

// The runtime's own figures lead to all processors while goroutines wait, and back.
func TestProcessorsAreTakenUnderLoad(t *testing.T) {
	const all = 4 // whether the machine has them or not
	t.Setenv("GOMAXPROCS", "")
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shareProcessors(ctx, all)
	if got := runtime.GOMAXPROCS(0); got != all/2 {
		t.Fatalf("starts with %d processors of %d, want half", got, all)
	}
	reached := func(want int) bool {
		deadline := time.After(30 * time.Second)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for runtime.GOMAXPROCS(0) != want {
			select {
			case <-tick.C:
			case <-deadline:
				return false
			}
		}
		return true
	}
	busy, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 16 * all {
		wg.Go(func() {
			for busy.Err() == nil {
				runtime.Gosched()
			}
		})
	}
	if !reached(all) {
		t.Errorf("%d processors of %d while many wait", runtime.GOMAXPROCS(0), all)
	}
	stop()
	wg.Wait()
	if !reached(all / 2) {
		t.Errorf("still %d processors of %d when nothing waits", runtime.GOMAXPROCS(0), all)
	}
}
