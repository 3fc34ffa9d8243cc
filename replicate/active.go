package replicate

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"
)

// activeSet holds the databases that a node has something to do with: files that are open, changes that are not in
// them, handles, a fence. What the node does all the time it does for these; an idle database costs its replica and
// nothing else. Its lock comes after a replica's.
type activeSet struct {
	mu         sync.Mutex
	set        map[*replica]struct{}
	unattended int // of them with open files and no handle
	closed     int // databases since memory was given back last
	trimmed    time.Time
}

// Memory of closed databases is given back after so many, and not more often than this.
const (
	trimClosed   = 64
	trimInterval = 10 * time.Second
)

func (a *activeSet) trim(f Files) {
	a.mu.Lock()
	due := a.closed >= trimClosed && time.Since(a.trimmed) >= trimInterval
	if due {
		a.closed, a.trimmed = 0, time.Now()
	}
	a.mu.Unlock()
	if due {
		debug.FreeOSMemory()
		f.Trim()
	}
}

// listLocked puts d into the set of active databases.
func (d *replica) listLocked() {
	if d.listed {
		return
	}
	d.listed = true
	a := &d.svc.active
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		a.set = map[*replica]struct{}{}
	}
	a.set[d] = struct{}{}
}

// unlistIfIdle takes d out of the set when nothing is left to do. The janitor calls it.
func (d *replica) unlistIfIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	busy := d.live != nil || len(d.queue) > 0 || len(d.handles) > 0 || d.local != nil || d.applying || d.checking || d.scrubbing ||
		d.fenced != nil || d.healing || d.stuck != nil || d.pending != nil || d.behind || d.provisional || len(d.waiters) > 0 || len(d.pins) > 0
	if !d.listed || busy && !d.removed {
		return
	}
	d.listed = false
	a := &d.svc.active
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.set, d)
}

// attendLocked keeps the count of databases whose files are open for no application here. It is called after live
// or handles changed.
func (d *replica) attendLocked() {
	now := d.live != nil && len(d.handles) == 0
	if now == d.unattended {
		return
	}
	d.unattended = now
	a := &d.svc.active
	a.mu.Lock()
	defer a.mu.Unlock()
	if now {
		a.unattended++
	} else {
		a.unattended--
		if d.live == nil {
			a.closed++
		}
	}
}

// activeReplicas returns the active databases, in no order.
func (s *Service) activeReplicas() []*replica {
	s.active.mu.Lock()
	defer s.active.mu.Unlock()
	all := make([]*replica, 0, len(s.active.set))
	for d := range s.active.set {
		all = append(all, d)
	}
	return all
}

// defaultUnattended is how many databases a node keeps open that no application on it uses, where its options do not
// say: those that applications write on other nodes, and those that were used a moment ago.
const defaultUnattended = 1024

func (s *Service) maxUnattended() int {
	if s.opts.MaxUnattended > 0 {
		return s.opts.MaxUnattended
	}
	return defaultUnattended
}

// evictionSample is how many databases an eviction looks at to find one that was not used for long.
const evictionSample = 32

// makeRoom closes databases that nobody uses until there is room for one more. Who opens one pays for it, so that no
// flood of opens is faster than the closes. It gives up when all it sees are at work.
func (s *Service) makeRoom() {
	for range 4 {
		s.active.mu.Lock()
		full := s.active.unattended >= s.maxUnattended()
		var sample []*replica
		if full {
			for d := range s.active.set { // a different order each time
				if sample = append(sample, d); len(sample) == evictionSample {
					break
				}
			}
		}
		s.active.mu.Unlock()
		if !full {
			return
		}
		var oldest *replica
		var used time.Time
		for _, d := range sample {
			d.mu.Lock()
			if d.unattended && len(d.queue) == 0 && !d.applying && !d.evicting && (oldest == nil || d.lastUsed.Before(used)) {
				oldest, used = d, d.lastUsed
			}
			d.mu.Unlock()
		}
		if oldest == nil {
			continue
		}
		oldest.mu.Lock()
		taken := oldest.evicting
		oldest.evicting = true
		oldest.mu.Unlock()
		if taken {
			continue
		}
		oldest.closeIdle(0)
		oldest.mu.Lock()
		oldest.evicting = false
		oldest.mu.Unlock()
	}
}

// sweepPart is the part of all databases whose files the janitor looks at each second when they are idle.
const sweepPart = 10

// idleSweep looks for foreign writers in the files of idle databases (RULES B13), a part of them at a time.
type idleSweep struct {
	rest []*replica
	part int
}

func (w *idleSweep) step(s *Service) {
	if len(w.rest) == 0 {
		s.mu.RLock()
		w.rest = make([]*replica, 0, len(s.replicas))
		for _, d := range s.replicas {
			w.rest = append(w.rest, d)
		}
		s.mu.RUnlock()
		w.part = (len(w.rest) + sweepPart - 1) / sweepPart
	}
	for n := min(w.part, len(w.rest)); n > 0 && s.ctx.Err() == nil; n-- {
		d := w.rest[0]
		w.rest[0] = nil
		w.rest = w.rest[1:]
		d.checkIdle()
	}
	if len(w.rest) == 0 {
		w.rest = nil
	}
}

// checkIdle compares the stat of an idle database with its record. A change means that somebody wrote it: it is
// opened, which checks every page. Without one that is done when its scrub is due, of one idle database at a time.
func (d *replica) checkIdle() {
	s := d.svc
	d.mu.Lock()
	idle := d.live == nil && d.fenced == nil && !d.deleted && !d.removed && len(d.queue) == 0
	due := idle && d.pending == nil && !d.behind && !d.unreached && !d.provisional && !d.forkingLocked() && d.scrubDueLocked()
	first := d.base.TXID <= 1
	d.mu.Unlock()
	if !idle || !d.ioMu.TryLock() {
		return
	}
	_, _, changed := d.closedRecord()
	d.ioMu.Unlock()
	if changed {
		d.log.Warn("an idle database changed on disk, checking it")
		d.beside(&d.checking, func() {
			if err := d.useOrFetch(s.ctx); err != nil && s.ctx.Err() == nil {
				d.log.Warn("check a changed idle database", "err", err)
			}
		})
		return
	}
	if !due || !s.replayed() || first && d.absent() || s.scrubbingIdle.Swap(true) {
		return
	}
	s.goroutine(func() {
		defer s.scrubbingIdle.Store(false)
		d.scrubInTurn(d.scrubIdle)
	})
}

// useOrFetch is use that has files fetched which are gone.
func (d *replica) useOrFetch(ctx context.Context) error {
	err := d.use(ctx)
	if errors.Is(err, errAbsent) {
		d.locate(ctx)
		return nil
	}
	return err
}
