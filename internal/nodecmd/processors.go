package nodecmd

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

const (
	processorsPeriod = 200 * time.Millisecond // between two looks at what waits
	// Goroutines that are ready and wait for a processor, on average over a period. One writer alone makes
	// 0.1 to 0.5 of them, 64 make 2 on a follower and 15 on the leader.
	processorsMore = 1.0
	processorsLess = 0.5
	processorsCalm = 10 // periods below processorsLess before half of the processors are given back

	// The runtime measures the waiting of one in so many turns of a goroutine (gTrackingPeriod).
	latencySampling = 8
)

// allProcessors is what the runtime took at the start: the processors of the machine, or of the container.
var allProcessors = runtime.GOMAXPROCS(0)

// processors says how many processors the node's goroutines may use at once: half of all, which is cheapest
// while they mostly hand over to one another, all where they wait for one (decision 009).
type processors struct {
	all  int
	use  int
	calm int // periods in a row in which few waited
}

func newProcessors(all int) *processors {
	return &processors{all: all, use: max(1, all/2)}
}

// step takes how many goroutines waited for a processor in the last period.
func (p *processors) step(waiting float64) int {
	switch {
	case waiting > processorsMore:
		p.use, p.calm = p.all, 0
	case waiting >= processorsLess:
		p.calm = 0
	default:
		if p.calm++; p.calm >= processorsCalm {
			p.use, p.calm = max(1, p.all/2), 0
		}
	}
	return p.use
}

// shareProcessors adjusts GOMAXPROCS, at most to all, until ctx ends. A value in the environment overrides it.
func shareProcessors(ctx context.Context, all int) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	p := newProcessors(all)
	runtime.GOMAXPROCS(p.use)
	if p.use == p.all {
		return
	}
	go func() {
		sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
		last, at := timeWaited(sample), time.Now()
		tick := time.NewTicker(processorsPeriod)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			waited, now := timeWaited(sample), time.Now()
			used := p.use
			if n := p.step((waited - last) / now.Sub(at).Seconds()); n != used {
				runtime.GOMAXPROCS(n) // stops all goroutines for some 50 µs
			}
			last, at = waited, now
		}
	}()
}

// timeWaited returns the seconds that all goroutines together have waited for a processor since the start,
// as far as the runtime's histogram tells.
func timeWaited(sample []metrics.Sample) float64 {
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := sample[0].Value.Float64Histogram()
	var sum float64
	for i, n := range h.Counts {
		low, high := max(0, h.Buckets[i]), h.Buckets[i+1]
		if math.IsInf(high, 1) {
			high = low
		}
		sum += float64(n) * (low + high) / 2
	}
	return sum * latencySampling
}
