package replicate

import "time"

// gatherTime is for how long the applier lets transactions of a stream come together, which it then writes at once: to
// begin and to end a write costs more than the pages of a small transaction.
const gatherTime = 2 * time.Millisecond

// kickSoonLocked is kickLocked for a transaction that was just decided: where nobody waits for it, and the applier wrote
// the one before a moment ago, it is given a moment in which others may follow.
func (d *replica) kickSoonLocked() {
	alone := len(d.waiters)+len(d.pins) == 0 && d.local == nil && d.queue[len(d.queue)-1].mergeable()
	switch {
	case !alone || len(d.queue) >= maxMergedItems:
	case d.gathering:
		return
	case !d.applying && len(d.queue) == 1 && time.Since(d.lastApply) < 2*gatherTime:
		d.gathering = true
		time.AfterFunc(gatherTime, d.gathered)
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
