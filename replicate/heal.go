package replicate

import (
	"errors"
	"fmt"
	"time"
)

// fence stops writes and applies on a database whose local copy cannot be trusted, and starts healing.
// It returns the error that writers get from then on.
func (d *replica) fence(cause error) error {
	d.mu.Lock()
	if d.fenced != nil || d.removed || d.deleted {
		defer d.mu.Unlock()
		if d.fenced == nil {
			return d.deletedError()
		}
		return d.fenced
	}
	fenced := fmt.Errorf("database %q on node %s: %w: %w", d.name, d.svc.opts.NodeID, ErrFenced, cause)
	d.fenced, d.stuck = fenced, nil // what it waited for does not matter any more
	d.fenceKnown = time.Now()
	d.listLocked()
	d.known, d.durable = false, 0
	heal := !d.healing
	d.healing = true
	for r := range d.pins {
		delete(d.pins, r)
		r.err = d.fenced
		close(r.done)
	}
	d.mu.Unlock()
	d.svc.metrics.fences.Add(1)
	d.log.Error("local copy fenced, it will be replaced by a peer's", "err", cause)
	if heal {
		d.svc.goroutine(d.heal)
	}
	return fenced
}

// heal heals until no fence is left: one that is raised when the former was just lifted relies on it.
func (d *replica) heal() {
	for again := true; again; {
		healed := d.liftFence()
		d.mu.Lock()
		again = healed && d.fenced != nil
		d.healing = again
		d.mu.Unlock()
	}
}

// liftFence replaces the local copy by a peer's and lifts the fence. It tries until it succeeds, and returns false where
// no fence matters any more.
func (d *replica) liftFence() bool {
	wait, said := 100*time.Millisecond, ""
	for d.svc.ctx.Err() == nil {
		err := d.catchUp(d.svc.ctx, false)
		if err == nil {
			d.mu.Lock()
			took := time.Since(d.fenceKnown)
			d.kickLocked()
			d.mu.Unlock()
			d.svc.metrics.heals.Add(1)
			d.log.Info("local copy healed from a peer", "duration", took.Round(time.Millisecond))
			return true
		}
		if errors.Is(err, ErrDeleted) {
			return false // and so will this node decide
		}
		d.mu.Lock()
		d.healErr = err
		d.mu.Unlock()
		d.svc.stopIfSyncFailed(err)
		if text := err.Error(); d.svc.ctx.Err() == nil && text != said {
			said = text
			d.log.Warn("heal from a peer, will try again", "err", err)
		}
		select {
		case <-d.svc.ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
	return false
}

// nextEpoch ends the handles that are open.
func nextEpoch(live LiveFile) error {
	epoch, err := live.Epoch()
	if err == nil {
		err = live.SetEpoch(epoch + 1)
	}
	if err != nil {
		return fmt.Errorf("set the epoch: %w", err)
	}
	return nil
}

// settleLocal forgets the commit of an application that cannot be in progress any more, because the caller
// holds native slot 0. Whether it was published the files tell.
func (d *replica) settleLocal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if local := d.local; local != nil {
		d.endLocalLocked(local)
	}
}

// discardIO removes a file that cannot be opened at all, unless somebody has it open: who did would go on with a file that
// has no name any more.
func (d *replica) discardIO(cause error) error {
	d.mu.Lock()
	open := len(d.handles)
	d.mu.Unlock()
	if open > 0 {
		return fmt.Errorf("%w; %d handles have it open and must close first", cause, open)
	}
	if err := d.svc.files.Discard(d.path); err != nil {
		return fmt.Errorf("%w; set the damaged file aside: %w", cause, err)
	}
	return nil
}
