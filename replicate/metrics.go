package replicate

import (
	"sync/atomic"
	"time"
)

// Metrics are the counters of a Service since its start. Read them with atomic loads.
type Metrics struct {
	Commits       [3]atomic.Uint64 // by Outcome
	CommitNanos   atomic.Uint64
	commitBuckets [len(commitBounds) + 1]atomic.Uint64
	proposedBytes atomic.Uint64
	fences        atomic.Uint64
	fetchedPages  atomic.Uint64
	checkpoints   [2][3]atomic.Uint64 // passive, truncate; complete, partial, error
}

// commitBounds are the upper bounds of the commit duration's histogram, in seconds.
var commitBounds = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

func (m *Metrics) commit(o Outcome, took time.Duration) {
	m.Commits[o].Add(1)
	m.CommitNanos.Add(uint64(took))
	i := 0
	for i < len(commitBounds) && took.Seconds() > commitBounds[i] {
		i++
	}
	m.commitBuckets[i].Add(1)
}

var checkpointResults = [...]string{"complete", "partial", "error"}

func (m *Metrics) checkpoint(truncate bool, result string) {
	mode := 0
	if truncate {
		mode = 1
	}
	for i, r := range checkpointResults {
		if r == result {
			m.checkpoints[mode][i].Add(1)
		}
	}
}
