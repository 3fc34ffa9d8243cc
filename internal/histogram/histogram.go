// Package histogram counts durations in buckets without a lock.
//
// Owns: the bucket bounds that every duration of a node is counted in.
// Imports: the standard library only.
// Invariant: Observe takes no lock and allocates nothing, so the commit path can call it.
package histogram

import (
	"sync/atomic"
	"time"
)

// durationBounds are the upper bounds of the buckets of a Durations, chosen
// around the cost of one local round trip and one fsync.
var durationBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Durations counts durations for a histogram. It takes no lock, so that the
// commit path can use it. The zero value is ready.
type Durations struct {
	buckets [len(durationBounds) + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

// Observe adds one duration.
func (d *Durations) Observe(v time.Duration) {
	i := 0
	for i < len(durationBounds) && v > durationBounds[i] {
		i++
	}
	d.buckets[i].Add(1)
	d.sum.Add(int64(v))
}

// Read returns a reading. Observations made meanwhile may be counted in
// the sum and not yet in the buckets.
func (d *Durations) Read() Reading {
	h := Reading{Buckets: make(map[float64]uint64, len(durationBounds))}
	for i := range d.buckets {
		h.Count += d.buckets[i].Load()
		if i < len(durationBounds) {
			h.Buckets[durationBounds[i].Seconds()] = h.Count
		}
	}
	h.Sum = time.Duration(d.sum.Load()).Seconds()
	return h
}

// Reading is a reading of a Durations. Buckets maps an upper bound in
// seconds to the number of observations at most that long.
type Reading struct {
	Count   uint64
	Sum     float64
	Buckets map[float64]uint64
}
