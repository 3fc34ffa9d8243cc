package replicate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// catchupsAtOnce is how many databases a node fetches pages of from peers at a time.
const catchupsAtOnce = 4

// afterRestore follows the state machine to a snapshot's state. At start the files already have it; when
// the leader sent it, the pages that are missing are fetched before this node acknowledges anything on top.
func (s *Service) afterRestore(states []DatabaseState) error {
	s.quotas.recount(states)
	if s.archiver != nil {
		s.archiver.rebase(states)
	}
	s.mu.Lock()
	fromLeader := s.restored
	keep := make(map[DatabaseID]bool, len(states))
	for _, st := range states {
		keep[st.ID] = true
		d, ok := s.replicas[st.ID]
		if ok {
			d.adopt(st)
			d.rebase(st)
		} else {
			d = newReplica(s, st)
			s.replicas[st.ID] = d
		}
		d.mu.Lock()
		d.unreached = fromLeader && !st.Pending
		d.mu.Unlock()
		if st.Pending {
			d.beginForking(st, true) // how it began is not known any more: the archive may have it, peers too
			s.goroutine(func() { d.startFork(nil) })
		}
	}
	var gone []*replica
	for id, d := range s.replicas {
		if !keep[id] {
			gone = append(gone, d)
		}
	}
	s.mu.Unlock()
	for _, d := range gone {
		d.enqueue(item{deleted: true})
	}
	if !fromLeader {
		return nil
	}
	s.log.Info("catching up from peers", "databases", len(states))
	start := time.Now()
	work := make(chan DatabaseState)
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	for range min(2*catchupsAtOnce, len(states)) { // the tokens bound those that fetch
		wg.Go(func() {
			for st := range work {
				d, ok := s.replica(st.ID)
				if !ok {
					continue
				}
				if err := d.reach(s.ctx, st.Position); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, st := range states {
		if !st.Pending {
			work <- st
		}
	}
	close(work)
	wg.Wait()
	if err := s.syncRecords(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.log.Info("caught up from peers", "databases", len(states), "duration", time.Since(start).Round(time.Millisecond))
	s.finishReplay()
	return nil
}

// rebase drops what was queued before a snapshot that the leader sent.
func (d *replica) rebase(st DatabaseState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) > 0 {
		d.dropQueueHeadLocked()
	}
	d.decided, d.base = st.Position, st.Position
}

// reach brings the files to position p or later, from a peer if need be, and syncs them.
func (d *replica) reach(ctx context.Context, p Position) error {
	if d.reached(p) {
		return nil
	}
	err := d.reachSoon(ctx, p)
	for wait := 50 * time.Millisecond; err != nil; wait = min(2*wait, 2*time.Second) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		cerr := d.catchUp(ctx, true)
		if errors.Is(cerr, ErrDeleted) {
			return nil // and so will this node decide; nothing of it is used until then (RULES A5)
		}
		if cerr == nil {
			break
		}
		d.svc.stopIfSyncFailed(cerr)
		d.log.Warn("catch up from a peer, will try again", "err", cerr)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	for { // what was fetched and is kept is durable
		err := d.durableNow(ctx, p.TXID)
		if err == nil || !errors.Is(err, errBlocked) || ctx.Err() != nil {
			return err
		}
		if !d.svc.pauseFor(ctx, blockedPoll) {
			return ErrShutdown
		}
	}
}

// reached reports that files which nobody has opened since they were closed are at p or later: nothing of them has to
// be read.
func (d *replica) reached(p Position) bool {
	d.mu.Lock()
	closed := d.live == nil && !d.known && d.pending == nil
	d.mu.Unlock()
	if !closed || !d.ioMu.TryLock() {
		return false
	}
	defer d.ioMu.Unlock()
	rec, ok, _ := d.closedRecord()
	if !ok || TXID(rec.TXID) < p.TXID || TXID(rec.TXID) == p.TXID && Checksum(rec.Checksum) != p.Checksum {
		return false
	}
	d.mu.Lock()
	d.durable = max(d.durable, TXID(rec.TXID))
	d.unreached = false
	d.mu.Unlock()
	return true
}

// reachSoon finds the position of the files, for as long as no application keeps it waiting, and is nil when it
// is p or later.
func (d *replica) reachSoon(ctx context.Context, p Position) error {
	ctx, cancel := context.WithTimeout(ctx, holdPatience)
	defer cancel()
	if err := d.lockIO(ctx); err != nil {
		return err
	}
	defer d.ioMu.Unlock()
	if err := d.locateIO(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.position.TXID < p.TXID || d.position.TXID == p.TXID && d.position != p {
		return fmt.Errorf("the files are at %s, the snapshot at %s", d.position, p)
	}
	return nil
}
