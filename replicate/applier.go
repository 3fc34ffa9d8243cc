package replicate

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

const (
	// maxQueueBytesPerDatabase and maxQueueBytes bound the payloads kept in memory for appliers;
	// beyond them an applier reads the entry back from the log (RULES A4).
	maxQueueBytesPerDatabase = 8 << 20
	maxQueueBytes            = 256 << 20
	pinPatience              = 2 * time.Second
)

// errForeign says that somebody other than this cluster wrote the files.
var errForeign = errors.New("the files were changed by a writer that is not part of the cluster")

// errDiverged says that the files and the log disagree about the same transaction.
var errDiverged = errors.New("the local copy differs from the log")

// deviceError says that the files could not be read or written now: a full disk, an I/O error. They show
// what they showed before, and the change is tried again.
type deviceError struct{ error }

func (e deviceError) Unwrap() error { return e.error }

// apply empties the queue, and lets other databases go first between two items. One runs at a time per database
// (d.applying).
func (d *replica) apply(w *worker) {
	d.worker = w
	wait := minApplyRetry
	for first := true; ; first = false {
		if !first && !w.lent.Load() && w.pool.crowded() {
			w.pool.run(d.apply)
			return
		}
		d.mu.Lock()
		d.inHand = 0
		if d.idleLocked() || d.svc.ctx.Err() != nil {
			d.applying = false
			d.mu.Unlock()
			return
		}
		if len(d.queue) == 0 { // behind
			d.mu.Unlock()
			w.lend()
			wait = d.applyPages(wait)
			continue
		}
		it, behind := d.queue[0], d.behind
		local := d.local
		batch := d.batchLocked()
		if !behind || it.deleted {
			d.inHand = len(batch)
			if it.spool != nil { // a snapshot from the leader empties the queue
				it.spool.hold()
			}
		}
		d.mu.Unlock()
		if behind && !it.deleted {
			w.lend()
			wait = d.applyPages(wait)
			continue
		}
		done, err := d.applyHead(it, batch, local)
		var device deviceError
		switch {
		case err == nil:
			wait = minApplyRetry
		case d.svc.ctx.Err() != nil:
			continue
		case errors.As(err, &device):
			d.trouble(err)
			w.lend()
			d.svc.pauseFor(d.svc.ctx, wait)
			if wait = min(2*wait, maxApplyRetry); wait == maxApplyRetry {
				d.fetchUnread(err)
			}
			continue
		case errors.Is(err, raft.ErrLogNotFound), errors.Is(err, errIncomplete), errors.Is(err, errSpoolLost), d.awaited(err):
			// The log was cut off while this copy was blocked, or before it was here: a peer has the pages (RULES A4).
			d.mu.Lock()
			d.behind = true
			d.mu.Unlock()
			continue
		default:
			// A database that was deleted meanwhile is not fenced: its removal is next.
			d.fence(fmt.Errorf("apply transaction %s at log index %d: %w", it.position.TXID, it.index, err))
			continue
		}
		d.trouble(nil)
		d.mu.Lock()
		// A restore may have emptied the queue meanwhile.
		for n := 0; n < done && len(d.queue) > 0 && len(batch) > n && d.queue[0].index == batch[n].index; n++ {
			d.dropQueueHeadLocked()
		}
		d.mu.Unlock()
	}
}

// applyHead applies what is in hand: an item, or the batch that begins with it. It returns how many it was.
func (d *replica) applyHead(it item, batch []item, local *localCommit) (int, error) {
	if it.spool != nil {
		defer it.spool.release()
	}
	if local != nil && local.id == it.id && !it.deleted {
		d.worker.lend()
		d.awaitLocal(local)
		if err := d.svc.ctx.Err(); err != nil {
			return 0, err
		}
	}
	if len(batch) > 1 {
		return d.applyMerged(batch)
	}
	return 1, d.applyItem(it)
}

// applyPages brings files that are behind the log up to date from a peer. It returns how long to wait after
// the next failure.
func (d *replica) applyPages(wait time.Duration) time.Duration {
	err := d.catchUp(d.svc.ctx, false)
	switch {
	case err == nil:
		d.trouble(nil)
		d.log.Info("local copy brought up to date from a peer")
		return minApplyRetry
	case errors.Is(err, ErrDeleted):
		d.mu.Lock()
		d.behind = false
		d.mu.Unlock()
		d.svc.pauseFor(d.svc.ctx, minApplyRetry) // this node decides it soon
		return minApplyRetry
	case errors.Is(err, ErrFenced), d.svc.ctx.Err() != nil:
		return minApplyRetry
	}
	d.trouble(fmt.Errorf("catch up from a peer: %w", err))
	d.svc.pauseFor(d.svc.ctx, wait)
	return min(2*wait, maxApplyRetry)
}

const (
	minApplyRetry = 50 * time.Millisecond
	maxApplyRetry = 5 * time.Second
)

// awaitLocal waits until an application has published its transaction, or is gone.
func (d *replica) awaitLocal(local *localCommit) {
	d.mu.Lock()
	d.late = time.Now()
	d.mu.Unlock()
	select {
	case <-local.done:
	case <-d.svc.ctx.Done():
	}
	d.mu.Lock()
	d.late = time.Time{}
	d.mu.Unlock()
}

// trouble notes why the applier cannot go on, or that it can.
func (d *replica) trouble(err error) {
	d.svc.stopIfSyncFailed(err)
	d.mu.Lock()
	former := d.stuck
	d.stuck = err
	d.mu.Unlock()
	switch {
	case err == nil && former != nil:
		d.log.Info("changes are applied again")
	case err != nil && (former == nil || former.Error() != err.Error()):
		d.svc.metrics.error("apply")
		d.log.Error("a change cannot be applied, it is tried again: free the disk or repair the device", "err", err)
	}
}

// decoders are those of the appliers, with the memory of the transactions that they decoded last: as many as appliers work
// at a time, not as many as there are databases.
var decoders = sync.Pool{New: func() any { return new(snapshot.Decoder) }}

func (d *replica) applyItem(it item) error {
	if it.deleted {
		return d.applyDelete()
	}
	if it.fork != nil {
		it.fork.startFork(d.forkSource(it))
		return nil
	}
	ctx := d.svc.ctx
	if it.spool != nil { // it takes long, and others need not wait for that
		d.worker.lend()
		if err := it.spool.wait(ctx, it.size); err != nil {
			return err
		}
	}
	d.lockApplier()
	defer d.unlockApplier()
	if err := d.locateIO(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	pos, behind := d.position, d.behind
	d.mu.Unlock()
	switch {
	case behind:
		return errIncomplete
	case it.position.TXID < pos.TXID:
		return nil
	case it.position.TXID == pos.TXID:
		if it.position != pos {
			return fmt.Errorf("the files show %s, the log %s: %w", pos, it.position, errDiverged)
		}
		return nil
	case it.pre != pos:
		return fmt.Errorf("the files show %s, the log continues from %s: %w", pos, it.pre, errDiverged)
	}
	live, err := d.openIO()
	if err != nil {
		return err
	}
	if it.spool != nil {
		return d.applyLargeIO(ctx, live, it)
	}
	payload := it.ltx
	if payload == nil {
		if payload, err = d.svc.payload(it.index); err != nil {
			return err
		}
	}
	decoder := decoders.Get().(*snapshot.Decoder)
	defer decoders.Put(decoder)
	hdr, pages, err := decoder.Decode(payload, maxSinglePages)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.lastUsed = time.Now()
	delta, sum, err := d.sums.step(pos.Checksum, d.pageSize, hdr.PageCount, pages, decoder.Sums())
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if sum != it.position.Checksum {
		return fmt.Errorf("checksum %s after transaction %s, the log says %s: %w", sum, it.position.TXID, it.position.Checksum, errDiverged)
	}
	start := time.Now()
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
	if err := d.appendIO(txn, it.position, hdr.PageCount, pages, delta); err != nil {
		return err
	}
	d.svc.metrics.apply(1, len(payload), time.Since(start))
	return nil
}

// appendIO writes one transaction into the files under slot 0 and moves the file position.
func (d *replica) appendIO(txn *wal.Txn, to Position, pageCount uint32, pages []wal.Page, delta *sumDelta) error {
	d.mu.Lock()
	want, sums := d.fingerprint, d.sums
	d.mu.Unlock()
	if !txn.Fingerprint().Matches(want) {
		if err := d.confirmIO(txn); err != nil {
			return err
		}
	}
	// The old image of every page that is replaced must be what the table says (RULES B8): the sum of
	// the table proves the log, only this proves the file.
	if d.oldPage == nil {
		d.oldPage = make([]byte, d.pageSize)
	}
	buf := d.oldPage
	for _, p := range pages {
		if int(p.Pgno) > len(sums) {
			break
		}
		if err := txn.ReadPage(p.Pgno, buf); err != nil {
			return unread(fmt.Errorf("read page %d: %w", p.Pgno, err))
		}
		if pageSum(d.pageSize, p.Pgno, buf) != sums[p.Pgno-1] {
			return fmt.Errorf("page %d of the files is not what transaction %s left: %w", p.Pgno, to.TXID, errDiverged)
		}
	}
	fp, err := txn.Append(pages, pageCount)
	if err != nil {
		return deviceError{err}
	}
	d.mu.Lock()
	d.stepSumsLocked(delta)
	d.advanceLocked(to, fp)
	d.lastApply = d.lastUsed
	d.mu.Unlock()
	if d.svc.opts.VerifyFull {
		return d.confirmIO(nil)
	}
	return nil
}

// confirmIO compares the whole file with the position and takes its fingerprint as the new base.
// It is the answer to a fingerprint that differs for a harmless reason: SQLite rebuilt the wal-index.
func (d *replica) confirmIO(txn *wal.Txn) error {
	d.mu.Lock()
	pos, live := d.position, d.live
	d.mu.Unlock()
	var r pageReader = txn
	fp := wal.Fingerprint{}
	if txn == nil {
		snap, err := live.Pin()
		if err != nil {
			return err
		}
		defer snap.Close()
		r, fp = snap, snap.Fingerprint()
	} else {
		fp = txn.Fingerprint()
	}
	sums, sum, err := readSums(r, d.pageSize)
	if err != nil {
		return err
	}
	if sum != pos.Checksum {
		return fmt.Errorf("checksum %s of %d pages instead of %s: %w", sum, len(sums), pos, errForeign)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.position == pos {
		d.fingerprint, d.verified = fp, true
	}
	return nil
}

// applyDelete empties the database for the handles that are open and removes the files once none is.
func (d *replica) applyDelete() error {
	d.lockApplier()
	defer d.unlockApplier()
	d.mu.Lock()
	open := len(d.handles) > 0
	d.mu.Unlock()
	if !open {
		d.removeFilesIO()
		return nil
	}
	live, err := d.openIO()
	if errors.Is(err, ErrDeleted) {
		return nil // the last handle closed meanwhile
	}
	if err != nil {
		return deviceError{err}
	}
	empty, err := wal.EmptyDatabase(d.pageSize, d.autoVacuum)
	if err != nil {
		return deviceError{err}
	}
	txn, err := d.beginIO(d.svc.ctx, live)
	if err != nil {
		return deviceError{err}
	}
	defer txn.End()
	d.settleLocal()
	if _, err := txn.Append([]wal.Page{{Pgno: 1, Data: empty}}, 1); err != nil {
		return deviceError{err}
	}
	d.mu.Lock()
	d.known = false
	d.mu.Unlock()
	return nil
}

// removeFiles closes and deletes a database that was deleted and has no handles.
func (d *replica) removeFiles() {
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.removeFilesIO()
}

func (d *replica) removeFilesIO() {
	d.mu.Lock()
	if !d.deleted || d.removed || len(d.handles) > 0 {
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	// An application may have attached before this node started and only read since: it is no handle. It gets
	// I/O errors from now on, not the pages of an unlinked file. Where nothing was ever used there is no file.
	if _, err := d.svc.files.Stat(d.path); !errors.Is(err, os.ErrNotExist) {
		live, err := d.openIO()
		if err == nil {
			err = nextEpoch(live)
		}
		if err != nil {
			d.log.Debug("end handles of a deleted database", "err", err)
		}
	}
	d.mu.Lock()
	d.removed = true
	d.dropCatchupLocked()
	live := d.live
	d.live, d.known = nil, false
	d.attendLocked()
	d.mu.Unlock()
	var errs []error
	if live != nil {
		errs = append(errs, live.Close())
	}
	errs = append(errs, d.svc.files.Remove(d.path), d.svc.sums.Forget(d.id))
	d.svc.forget(d)
	err := errors.Join(errs...)
	d.svc.stopIfSyncFailed(err)
	if err != nil {
		d.log.Warn("files of a deleted database stay behind", "err", err)
	}
}
