package replicate

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLocalGateLetsManyThroughTogetherAndRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, room = 50 * time.Millisecond, 4
		g := newLocalGate(room, func(took time.Duration) time.Duration { return 10 * took })
		var mu sync.Mutex
		inside, most, busy, since := 0, 0, time.Duration(0), time.Time{}
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			if inside == 0 {
				since = time.Now()
			}
			inside += n
			if inside == 0 {
				busy += time.Since(since)
			}
			most = max(most, inside)
		}
		for range 20 {
			go func() {
				for g.enter(t.Context()) == nil {
					count(1)
					<-time.After(each)
					count(-1)
					g.leave()
				}
			}()
		}
		<-time.After(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if part := float64(busy) / float64(time.Minute); most != room || part > 0.1 || part < 0.08 {
			t.Errorf("at most %d were inside together, want %d; somebody was for %.3f of the time, want a bit less than a tenth", most, room, part)
		}
	})
}

func TestLocalGateEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newLocalGate(1, func(time.Duration) time.Duration { return time.Hour })
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second one: %v", err)
		}
		g.leave()
		<-time.After(2 * time.Hour)
		if err := g.enter(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Load that never ends gets an archive on the same disk to keep up, at the cost of writers if need be.
func TestAnArchiveThatIsLateRestsLess(t *testing.T) {
	for lag, want := range map[time.Duration]int{
		0: 40, time.Minute: 40, time.Minute + 1: 7, 2 * time.Minute: 4, 8 * time.Minute: 1, 8*time.Minute + 1: 0, time.Hour: 0,
	} {
		if got := restFactor(lag); got != want {
			t.Errorf("%v late: rests %d times as long, want %d", lag, got, want)
		}
	}
}

// Who waits for what is not archived yet does not wait for a rest to end.
func TestALocalGateIsOpenedForWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newLocalGate(1, func(time.Duration) time.Duration { return time.Hour })
		g.hurry() // nothing to end
		for range 3 {
			if err := g.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
			g.hurry() // no rest yet
			g.leave()
			begun := time.Now()
			entered := make(chan error, 1)
			go func() { entered <- g.enter(t.Context()) }()
			synctest.Wait()
			g.hurry()
			if err := <-entered; err != nil || time.Since(begun) != 0 {
				t.Fatalf("%v after %v", err, time.Since(begun))
			}
			g.leave()
			g.hurry()
		}
	})
}
