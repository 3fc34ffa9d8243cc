package replicate

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsComeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		if err := turns.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		var order []int
		var wg sync.WaitGroup
		gaveUp, cancel := context.WithCancel(t.Context())
		for i := range 5 {
			wg.Go(func() {
				ctx := t.Context()
				if i == 2 {
					ctx = gaveUp
				}
				if err := turns.take(ctx); err != nil {
					if i != 2 || !errors.Is(err, context.Canceled) {
						t.Errorf("turn %d: %v", i, err)
					}
					return
				}
				order = append(order, i)
				turns.give()
			})
			synctest.Wait() // in the line before the next comes
		}
		cancel()
		synctest.Wait()
		turns.give()
		wg.Wait()
		if len(order) != 4 || order[0] != 0 || order[1] != 1 || order[2] != 3 || order[3] != 4 {
			t.Errorf("order %v", order)
		}
		if turns.free != 1 {
			t.Errorf("%d turns are free in the end, want 1", turns.free)
		}
	})
}

func TestInParallelStopsAtAnError(t *testing.T) {
	broken := errors.New("broken")
	var ran atomic.Int32
	err := inParallel(1000, 4, func(i int) error {
		ran.Add(1)
		if i == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || ran.Load() > 14+4 {
		t.Errorf("%d ran, %v", ran.Load(), err)
	}
	ran.Store(0)
	if err := inParallel(100, 8, func(int) error { ran.Add(1); return nil }); err != nil || ran.Load() != 100 {
		t.Errorf("%d ran, %v", ran.Load(), err)
	}
}

// One database has a thousand changes, a hundred others one each: those are done after about a turn of each, not after
// the thousand.
func TestPoolKeepsNobodyWaitingForOneWithMuchToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = time.Millisecond
		p := newPool(1, func(f func()) { go f() })
		begun := time.Now()
		left := 1000
		var bulk func(w *worker)
		bulk = func(w *worker) {
			for first := true; left > 0; first = false {
				if !first && p.crowded() {
					p.run(bulk)
					return
				}
				left--
				busyFor(each)
			}
		}
		p.run(bulk)
		var waits []time.Duration
		for range 100 {
			p.run(func(*worker) {
				waits = append(waits, time.Since(begun))
				busyFor(each)
			})
		}
		<-time.After(10 * time.Second)
		synctest.Wait()
		if len(waits) != 100 || left != 0 {
			t.Fatalf("%d of 100 had their turn, %d of the many changes are left", len(waits), left)
		}
		if last := waits[99]; last > 250*each {
			t.Errorf("the last had its turn after %v", last)
		}
		if p.free != 1 {
			t.Errorf("%d workers are free in the end, want 1", p.free)
		}
	})
}

// busyFor takes the fake clock's time.
func busyFor(d time.Duration) { <-time.After(d) }

// An applier that waits for an application lends its place, and the bound holds for all others.
func TestPoolLendsThePlaceOfOneThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(2, func(f func()) { go f() })
		released := make(chan struct{})
		for range 10 {
			p.run(func(w *worker) {
				stop := w.lendSoon()
				<-released
				stop()
			})
		}
		var at, most, done atomic.Int32
		for range 50 {
			p.run(func(w *worker) {
				defer w.lendSoon()()
				n := at.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				busyFor(lendAfter / 2)
				at.Add(-1)
				done.Add(1)
			})
		}
		<-time.After(time.Second)
		synctest.Wait()
		if done.Load() != 50 || most.Load() > 2 {
			t.Errorf("%d of 50 were done beside ten that wait, %d at a time", done.Load(), most.Load())
		}
		close(released)
		<-time.After(time.Second)
		synctest.Wait()
		if p.free != 2 {
			t.Errorf("%d workers are free in the end, want 2", p.free)
		}
	})
}
