package replicate

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// The shares of Options.LogLimit, in bytes of the log:
//
//	trail     of entries stays after a compaction, for followers that are a little behind
//	snapshot  after the last snapshot make the next one due
//	hold      stays for a member that restores a snapshot or follows from one
//	slow      makes the leader slow down the grants of write locks
//	full      makes it give none
//
//	least     stays however much room large transactions need
//
// What is in flight when the last grant is given has the room from full to the limit. Large transactions reserve theirs:
// logroom.go.
const (
	leastShare    = 0.125
	trailShare    = 0.25
	snapshotShare = 0.25
	holdShare     = 0.625
	slowShare     = 0.75
	fullShare     = 0.9375
)

const (
	logInterval = 100 * time.Millisecond
	// progressInterval is how often a node tells the leader how far its log is; a report counts for five.
	progressInterval = 500 * time.Millisecond
	// holdGrace is for how long the log is kept for a member whose restore has just ended: its next report says
	// what it needs.
	holdGrace = 3 * time.Second
	// snapshotRetry is the pause after a snapshot that could not be taken.
	snapshotRetry = time.Second
)

// logBound is what a node knows of the growth of its log.
type logBound struct {
	mu         sync.Mutex
	blocked    error     // why the last snapshot failed
	since      time.Time // of the first failure in a row
	next       time.Time // no snapshot before
	taking     bool
	compacted  uint64 // covered index of the last compaction
	holding    time.Time
	holdFrom   uint64
	progress   map[string]memberProgress
	reserved   int64 // bytes that large transactions under way will still add
	waiting    int64 // bytes of those that wait for room
	slowed     uint64
	refused    uint64
	heldBefore bool
}

type memberProgress struct {
	progressReport
	at     time.Time
	offset int64 // of Last in the leader's log
}

// progressReport is what a node tells the leader of its log.
type progressReport struct {
	Last    uint64  `json:"last"`
	Full    float64 `json:"full"` // share of its limit
	Blocked bool    `json:"blocked"`
}

// LogStatus is the raft log of one node.
type LogStatus struct {
	Bytes    int64  `json:"bytes"`
	Limit    int64  `json:"limit_bytes"`
	First    uint64 `json:"first_index"`
	Last     uint64 `json:"last_index"`
	Snapshot uint64 `json:"snapshot_index"`
	// Blocked is why the log cannot be compacted; empty while it can.
	Blocked   string `json:"blocked,omitempty"`
	BlockedMS int64  `json:"blocked_ms,omitempty"`
}

func (s *Service) logStatus() LogStatus {
	first, last := s.store.Bounds()
	st := LogStatus{Bytes: s.store.Bytes(), Limit: s.opts.LogLimit, First: first, Last: last, Snapshot: s.store.CoveredIndex()}
	b := &s.logBound
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.blocked != nil {
		st.Blocked, st.BlockedMS = b.blocked.Error(), time.Since(b.since).Milliseconds()
	}
	return st
}

// persisted notes how an attempt to take a snapshot ended.
func (b *logBound) persisted(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.blocked, b.since = nil, time.Time{}
		return
	}
	if b.blocked == nil {
		b.since = time.Now()
	}
	b.blocked = err
}

func share(limit int64, part float64) int64 { return int64(float64(limit) * part) }

// boundLog keeps the log within its limit. raft takes snapshots by the number of entries and leaves the
// log alone: what stays of it is decided here, by bytes.
func (s *Service) boundLog() {
	for s.pauseFor(s.ctx, logInterval) {
		if s.snapshotDue() {
			s.goroutine(s.takeSnapshot)
		}
		s.compactLog()
	}
}

func (s *Service) snapshotDue() bool {
	after := s.store.BytesAfter(s.store.CoveredIndex())
	b := &s.logBound
	b.mu.Lock()
	defer b.mu.Unlock()
	if after == 0 || b.waiting == 0 && after < share(s.opts.LogLimit, snapshotShare) {
		return false
	}
	if b.taking || time.Now().Before(b.next) {
		return false
	}
	b.taking = true
	return true
}

func (s *Service) takeSnapshot() {
	err := s.raft.Snapshot().Error()
	b := &s.logBound
	b.mu.Lock()
	b.taking = false
	if err != nil {
		b.next = time.Now().Add(snapshotRetry)
	}
	b.mu.Unlock()
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && s.ctx.Err() == nil {
		s.metrics.error("snapshot")
	}
}

// compactLog removes what a snapshot covers and nobody is to be sent.
func (s *Service) compactLog() {
	covered, limit := s.store.CoveredIndex(), s.opts.LogLimit
	first, _ := s.store.Bounds()
	if first == 0 || covered < first {
		return
	}
	b := &s.logBound
	held := s.heldFrom(time.Now())
	b.mu.Lock()
	hold := min(share(limit, holdShare), share(limit, slowShare)-b.reserved-b.waiting)
	hold = max(hold, share(limit, leastShare))
	// Between two snapshots there is nothing to do, unless a member that was waited for has come along.
	due := covered != b.compacted || b.heldBefore && held == 0 || s.store.Bytes() > hold
	b.compacted, b.heldBefore = covered, held != 0
	b.mu.Unlock()
	if !due {
		return
	}
	from := s.store.Newest(min(share(limit, trailShare), hold), s.opts.TrailingEntries)
	if held != 0 && held < from {
		from = max(held, s.store.Newest(hold, math.MaxUint64))
	}
	if err := s.store.Compact(from); err != nil && s.ctx.Err() == nil {
		s.metrics.error("compact")
		s.log.Warn("compact the raft log", "err", err)
	}
}

// heldFrom is the first entry that a member which restores a snapshot, or has just done so, will be sent. 0:
// there is none.
func (s *Service) heldFrom(now time.Time) uint64 {
	first, last := s.store.Bounds()
	b := &s.logBound
	b.mu.Lock()
	defer b.mu.Unlock()
	if index, ok := s.opts.Snapshots.Reading(); ok {
		b.holding, b.holdFrom = now.Add(holdGrace), index+1
	}
	from := uint64(0)
	if now.Before(b.holding) {
		from = b.holdFrom
	}
	if _, leads := s.leading(); !leads {
		return from
	}
	for _, p := range b.progress {
		// What is gone cannot be kept; who has everything needs nothing.
		if now.Sub(p.at) < 5*progressInterval && p.Last+1 >= first && p.Last < last && (from == 0 || p.Last+1 < from) {
			from = p.Last + 1
		}
	}
	return from
}

// reportProgress tells the leader how far this node's log is, and at once when it can no longer be compacted: from
// what it is sent after that the leader knows by itself how full it is.
func (s *Service) reportProgress() {
	var told time.Time
	said := false // that it is blocked
	for s.pauseFor(s.ctx, progressInterval/10) {
		st := s.logStatus()
		blocked := st.Blocked != ""
		if blocked == said && time.Since(told) < progressInterval {
			continue
		}
		told, said = time.Now(), blocked
		leader, _ := s.leader()
		if leader == "" || leader == s.opts.NodeID {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		_, err := callJSON[progressReport, bool](ctx, s, leader, methodProgress, progressReport{
			Last: st.Last, Full: float64(st.Bytes) / float64(st.Limit), Blocked: blocked,
		})
		cancel()
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("tell the leader how far this node is", "err", err)
		}
	}
}

func (s *Service) serveProgress(_ context.Context, from string, r progressReport) (bool, error) {
	b, offset := &s.logBound, s.store.Offset(r.Last)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.progress == nil {
		b.progress = map[string]memberProgress{}
	}
	b.progress[from] = memberProgress{r, s.now(), offset}
	return true, nil
}

func (b *logBound) count(n *uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*n++
}
