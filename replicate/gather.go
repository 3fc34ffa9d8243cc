package replicate

import (
	"sync"
	"time"
)

// An applier lets transactions of a stream come together, which it then writes at once: to begin and to end a write
// costs more than the pages of a small transaction. How long depends on how many databases have such streams, so that
// what a node writes in a second is bounded, however many there are.
const (
	gatherTime = 2 * time.Millisecond
	gatherMost = 20 * time.Millisecond
	// gatherEach is what each database adds that had transactions in the last gatherMost.
	gatherEach = gatherMost / 40
	// gatherBytes are written at once: beside many small streams a large one would count as late.
	gatherBytes = lateBytes / 4
)

// streams counts the databases with transactions in each period of gatherMost.
type streams struct {
	mu       sync.Mutex
	period   int64 // number of the running one
	now, old int   // databases seen in it, and in the one before
}

// sawLocked notes a transaction of d, and returns for how long those of a stream gather.
func (s *streams) sawLocked(d *replica, at time.Time) time.Duration {
	period := at.UnixNano() / int64(gatherMost)
	s.mu.Lock()
	defer s.mu.Unlock()
	if period != s.period {
		if s.old = s.now; period != s.period+1 {
			s.old = 0
		}
		s.now, s.period = 0, period
	}
	if d.seen != period {
		d.seen = period
		s.now++
	}
	return min(max(gatherTime, time.Duration(max(s.now, s.old))*gatherEach), gatherMost)
}

// kickSoonLocked is kickLocked for a transaction that was just decided: where nobody waits for it, and the applier wrote
// the one before a moment ago, it is given a moment in which others may follow.
func (d *replica) kickSoonLocked() {
	alone := len(d.waiters)+len(d.pins) == 0 && d.local == nil && d.queue[len(d.queue)-1].mergeable()
	now := time.Now()
	gather := d.svc.streams.sawLocked(d, now)
	switch {
	case !alone || len(d.queue) >= maxMergedItems || d.queueBytes >= gatherBytes:
	case d.gathering:
		return
	case !d.applying && len(d.queue) == 1 && now.Sub(d.lastApply) < 2*gather:
		d.gathering = true
		time.AfterFunc(gather, d.gathered)
		return
	}
	d.kickLocked()
}

func (d *replica) gathered() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gathering = false
	d.kickLocked()
}
