package replicate

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/uglyer/ha-sqlite/internal/histogram"
)

// counters are a Service's numbers since its start.
type counters struct {
	begins        [3]atomic.Uint64 // granted, busy, error
	commits       [4]atomic.Uint64 // by Outcome
	applied       atomic.Uint64
	proposedBytes atomic.Uint64
	appliedBytes  atomic.Uint64
	fences, heals atomic.Uint64
	fetchedPages  atomic.Uint64
	shippedPages  atomic.Uint64
	leaderChanges atomic.Uint64
	checkpoints   [2][3]atomic.Uint64

	beginSeconds, commitSeconds, applySeconds histogram.Durations

	mu     sync.Mutex
	errors map[string]uint64
}

// CheckpointKey names a kind of checkpoint: its mode as SQLite calls it, and "ok", "busy" or "error".
type CheckpointKey struct{ Mode, Result string }

// Metrics is one reading of a Service's numbers since its start.
type Metrics struct {
	Begins, Commits          map[string]uint64 // by outcome
	Applied, ReplicatedBytes uint64            // transactions written by appliers; bytes of entries proposed and applied here
	FetchedPages             uint64            // from peers, to catch up
	ShippedPages             uint64            // to peers that catch up
	Checkpoints              map[CheckpointKey]uint64
	LeaderChanges            uint64
	Fences, Heals            uint64
	Errors                   map[string]uint64 // errors after which the node went on, by place

	BeginSeconds, CommitSeconds, ApplySeconds histogram.Reading
}

var (
	beginOutcomes     = [...]string{"granted", "busy", "error"}
	commitOutcomes    = [...]string{OutcomeUnknown: "unknown", OutcomeAccepted: "accepted", OutcomeRefused: "refused", OutcomeFull: "full"}
	checkpointModes   = [...]string{"passive", "truncate"}
	checkpointResults = [...]string{"ok", "busy", "error"}
)

const (
	checkpointOK = iota
	checkpointBusy
	checkpointError
)

func (c *counters) begin(outcome int, took time.Duration) {
	c.begins[outcome].Add(1)
	c.beginSeconds.Observe(took)
}

func (c *counters) commit(o Outcome, took time.Duration) {
	c.commits[o].Add(1)
	c.commitSeconds.Observe(took)
}

func (c *counters) apply(transactions, bytes int, took time.Duration) {
	c.applied.Add(uint64(transactions))
	c.appliedBytes.Add(uint64(bytes))
	c.applySeconds.Observe(took)
}

func (c *counters) checkpoint(truncate bool, result int) {
	mode := 0
	if truncate {
		mode = 1
	}
	c.checkpoints[mode][result].Add(1)
}

// error counts an error after which the node goes on.
func (c *counters) error(place string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errors == nil {
		c.errors = map[string]uint64{}
	}
	c.errors[place]++
}

// Metrics reads the numbers.
func (s *Service) Metrics() Metrics {
	c := &s.metrics
	m := Metrics{
		Begins: map[string]uint64{}, Commits: map[string]uint64{}, Checkpoints: map[CheckpointKey]uint64{}, Errors: map[string]uint64{},
		Applied: c.applied.Load(), ReplicatedBytes: c.proposedBytes.Load() + c.appliedBytes.Load(), FetchedPages: c.fetchedPages.Load(), ShippedPages: c.shippedPages.Load(),
		LeaderChanges: c.leaderChanges.Load(), Fences: c.fences.Load(), Heals: c.heals.Load(),
		BeginSeconds: c.beginSeconds.Read(), CommitSeconds: c.commitSeconds.Read(), ApplySeconds: c.applySeconds.Read(),
	}
	for i, name := range beginOutcomes {
		m.Begins[name] = c.begins[i].Load()
	}
	for i, name := range commitOutcomes {
		m.Commits[name] = c.commits[i].Load()
	}
	for i, mode := range checkpointModes {
		for j, result := range checkpointResults {
			m.Checkpoints[CheckpointKey{mode, result}] = c.checkpoints[i][j].Load()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range c.errors {
		m.Errors[k] = v
	}
	return m
}
