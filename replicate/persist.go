package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// persistPatience is for how long a raft snapshot waits for files that are behind.
	persistPatience = 10 * time.Second
	// persistWorkers sync so many databases at a time.
	persistWorkers = 8
	// blockedPoll is how often a wait looks whether its database is blocked.
	blockedPoll = 100 * time.Millisecond
	// askPatience is for how long a member may take to make its files durable when another asks.
	askPatience = 5 * time.Second
)

// errBlocked says that the files of a database cannot be written here for now: an application holds native slot 0, or
// the device fails, or the copy is fenced.
var errBlocked = errors.New("the files of this node's copy cannot be written for now")

// beforePersist makes a snapshot's positions durable in the files, and the page checksums at them (RULES A5, B9). The
// log may be compacted only after that, so an error keeps it. For a database whose files are blocked here it is
// enough that a majority of the members has the position durably: this node fetches the pages from them later.
func (s *Service) beforePersist(ctx context.Context, states []DatabaseState) error {
	ctx, cancel := context.WithTimeout(ctx, persistPatience)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var positions []durablePosition
	for _, st := range states {
		if !st.Pending { // nobody was told of it
			positions = append(positions, durablePosition{st.ID, st.Position.TXID})
		}
	}
	var blocked []durablePosition
	errs, failed := s.makeAllDurable(ctx, positions)
	for i, err := range errs {
		switch {
		case err == nil || errors.Is(err, ErrDeleted) || errors.Is(err, ErrNotFound):
		case errors.Is(err, errBlocked):
			blocked = append(blocked, positions[i])
		case failed == nil:
			failed = err
		}
	}
	if failed == nil && len(blocked) > 0 {
		failed = s.majorityHas(s.ctx, blocked)
	}
	if failed == nil && s.archiver != nil {
		failed = s.archiver.keep(s.ctx, states)
	}
	if failed != nil {
		return fmt.Errorf("keep the log: %w", failed)
	}
	first, _ := s.store.Bounds()
	for _, b := range blocked {
		if d, ok := s.replica(b.ID); ok {
			d.trimRedo(first)
		}
	}
	s.goroutine(func() {
		err := s.sums.Compact()
		s.stopIfSyncFailed(err)
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("compact the page checksums, will try again", "err", err)
		}
	})
	return nil
}

// makeAllDurable makes the files and records of many databases durable at their positions, some at a time, with one sync
// for all records. It returns why each is not, ErrDeleted or ErrNotFound for those that are gone since, and why that
// sync failed.
func (s *Service) makeAllDurable(ctx context.Context, positions []durablePosition) ([]error, error) {
	errs := make([]error, len(positions))
	var (
		mu       sync.Mutex
		captures []durableCapture
		wg       sync.WaitGroup
	)
	work := make(chan int)
	for range min(persistWorkers, len(positions)) {
		wg.Go(func() {
			for i := range work {
				d, ok := s.replica(positions[i].ID)
				if !ok {
					errs[i] = ErrNotFound
					continue
				}
				c, err := d.makeDurable(ctx, positions[i].TXID)
				if errs[i] = err; err == nil && c != nil {
					mu.Lock()
					captures = append(captures, durableCapture{d, c})
					mu.Unlock()
				}
			}
		})
	}
	for i := range positions {
		work <- i
	}
	close(work)
	wg.Wait()
	return errs, s.settleCaptures(captures)
}

// durableCapture is a record that was stored, and is durable after the next sync of the store.
type durableCapture struct {
	d *replica
	c *capture
}

// settleCaptures makes the records durable, with one sync for all databases.
func (s *Service) settleCaptures(captures []durableCapture) error {
	err := s.syncRecords()
	for _, k := range captures {
		k.d.mu.Lock()
		if err == nil {
			k.d.durable = max(k.d.durable, TXID(k.c.record.TXID))
		} else {
			k.d.recorded = 0
		}
		k.d.mu.Unlock()
	}
	return err
}

// makeDurable returns when the files show at least TXID txid, are synced and recorded; the record is durable after
// the next sync of the store. It needs no turn at the files: an applier may hold that while it waits for an application.
func (d *replica) makeDurable(ctx context.Context, txid TXID) (*capture, error) {
	if d.isDurable(txid) {
		return nil, nil
	}
	if err := d.waitUnblocked(ctx, txid); err != nil {
		return nil, err
	}
	d.recordMu.Lock()
	defer d.recordMu.Unlock()
	d.mu.Lock()
	live := d.live
	if d.fenced == nil && (live == nil || d.durableLocked(txid)) { // closed in between: closing checkpoints, syncs and records
		d.mu.Unlock()
		return nil, nil
	}
	c := d.captureLocked()
	d.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("sync database %q: %w", d.name, errBlocked)
	}
	err := live.SyncWAL()
	if err != nil {
		d.mu.Lock()
		closed := d.live != live
		d.recorded = 0 // what was captured is in no record
		d.mu.Unlock()
		if closed {
			return nil, nil
		}
		return nil, fmt.Errorf("sync the log of database %q: %w", d.name, err)
	}
	return c, d.store(c)
}

// isDurable reports that files and record are known to be durable at TXID txid or later, or matter no more.
func (d *replica) isDurable(txid TXID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.durableLocked(txid) || d.removed || d.deleted
}

// durableLocked reports that this copy has a transaction durably, in the files or in pages that wait to be installed. One
// that is fenced, or behind and without them, may be something else than it was when that was noted: it vouches for
// nothing, and no log is compacted on its word (RULES A5).
func (d *replica) durableLocked(txid TXID) bool {
	return d.durable >= txid && d.fenced == nil && (!d.behind || d.pending != nil)
}

// durableNow is makeDurable with the sync of the record.
func (d *replica) durableNow(ctx context.Context, txid TXID) error {
	c, err := d.makeDurable(ctx, txid)
	if err == nil && c != nil {
		err = d.svc.settleCaptures([]durableCapture{{d, c}})
	}
	return err
}

// waitUnblocked is waitPosition that gives up as soon as the database is blocked.
func (d *replica) waitUnblocked(ctx context.Context, txid TXID) error {
	for {
		sctx, cancel := context.WithTimeout(ctx, blockedPoll)
		err := d.waitPosition(sctx, txid)
		cancel()
		if err == nil || errors.Is(err, ErrDeleted) || ctx.Err() != nil && !d.blocked() {
			return err
		}
		if d.blocked() {
			return fmt.Errorf("database %q: %w: %w", d.name, errBlocked, err)
		}
	}
}

// blocked reports that the files cannot move now.
func (d *replica) blocked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fenced != nil || d.forkingLocked() || d.stuck != nil || d.behind || d.pending != nil || !d.late.IsZero() && time.Since(d.late) > lateAfter
}

// trimRedo forgets decided changes that the log does not have any more: pages come from a peer instead (RULES A4).
func (d *replica) trimRedo(first uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	from := min(d.inHand, len(d.queue)) // the applier ends with what it has begun
	to := from
	for ; to < len(d.queue) && d.queue[to].index < first && !d.queue[to].deleted; to++ {
		d.endItemLocked(d.queue[to])
		d.behind = true
	}
	d.queue = slices.Delete(d.queue, from, to)
}

// durablePosition asks a member whether its files show a transaction, durably.
type durablePosition struct {
	ID   DatabaseID `json:"id"`
	TXID TXID       `json:"txid"`
}

// majorityHas is nil when a majority of the members has every one of the positions durably in its files.
func (s *Service) majorityHas(ctx context.Context, positions []durablePosition) error {
	ctx, cancel := context.WithTimeout(ctx, 2*askPatience)
	defer cancel()
	voters := 0
	var members []string
	for _, srv := range s.servers() {
		if srv.Suffrage == raft.Voter {
			if voters++; string(srv.ID) != s.opts.NodeID {
				members = append(members, string(srv.ID))
			}
		}
	}
	have := make([]int, len(positions))
	answers := make(chan []bool, len(members))
	for _, id := range members {
		s.goroutine(func() {
			yes, err := callJSON[[]durablePosition, []bool](ctx, s, id, methodDurable, positions)
			if err != nil {
				s.log.Debug("ask a member what is durable there", "member", id, "err", err)
			}
			answers <- yes
		})
	}
	for range members {
		select {
		case yes := <-answers:
			for i := range min(len(yes), len(have)) {
				if yes[i] {
					have[i]++
				}
			}
		case <-ctx.Done():
			return fmt.Errorf("ask the members what is durable there: %w", ctx.Err())
		}
	}
	for i, p := range positions {
		if 2*have[i] <= voters {
			return fmt.Errorf("database %s is blocked here and durable at transaction %s on %d of %d members only", p.ID, p.TXID, have[i], voters)
		}
	}
	s.log.Info("the log goes on without databases that are blocked here", "databases", len(positions))
	return nil
}

// serveDurable makes positions durable here, as far as nothing is in the way, and says which are.
func (s *Service) serveDurable(ctx context.Context, positions []durablePosition) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	yes := make([]bool, len(positions))
	errs, err := s.makeAllDurable(ctx, positions)
	if err != nil {
		return nil, err
	}
	for i, err := range errs {
		yes[i] = err == nil
	}
	return yes, nil
}
