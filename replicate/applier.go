package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// MaxTransactionBytes is the size of the pages of the largest transaction. A larger one is refused early.
const MaxTransactionBytes = 8 << 20

const (
	// maxQueueBytesPerDatabase and maxQueueBytes bound the payloads kept in memory for appliers;
	// beyond them an applier reads the entry back from the log (RULES A4).
	maxQueueBytesPerDatabase = 8 << 20
	maxQueueBytes            = 256 << 20
	// checkpointFrames is the length of the WAL at which the node checkpoints it, SQLite's own default.
	checkpointFrames = 1000
	// truncateBytes is the size of the WAL file at which a checkpoint also truncates it.
	truncateBytes = 64 << 20
	pinPatience   = 2 * time.Second
	// maxTransactionBytes bounds the pages of one transaction: what an entry of the log may carry.
	maxTransactionBytes = MaxTransactionBytes + 1<<20
)

// errForeign says that somebody other than this cluster wrote the files.
var errForeign = errors.New("the files were changed by a writer that is not part of the cluster")

// errDiverged says that the files and the log disagree about the same transaction.
var errDiverged = errors.New("the local copy differs from the log")

// apply empties the queue. One runs at a time per database (d.applying).
func (d *replica) apply() {
	for {
		d.mu.Lock()
		if len(d.queue) == 0 || d.fenced != nil || d.removed {
			d.applying = false
			d.mu.Unlock()
			return
		}
		it := d.queue[0]
		local := d.local
		d.mu.Unlock()
		if local != nil && local.id == it.id && !it.deleted {
			// The application is about to publish this transaction itself.
			select {
			case <-local.done:
			case <-d.svc.ctx.Done():
			}
		}
		if d.svc.ctx.Err() != nil {
			d.mu.Lock()
			d.applying = false
			d.mu.Unlock()
			return
		}
		if err := d.applyItem(it); err != nil {
			d.mu.Lock()
			d.applying = false
			d.mu.Unlock()
			if d.svc.ctx.Err() == nil {
				d.fence(fmt.Errorf("apply transaction %s at log index %d: %w", it.position.TXID, it.index, err))
			}
			return
		}
		d.mu.Lock()
		// A restore may have emptied the queue meanwhile.
		if len(d.queue) > 0 && d.queue[0].index == it.index {
			d.dropQueueHeadLocked()
		}
		d.mu.Unlock()
	}
}

func (d *replica) applyItem(it item) error {
	if it.deleted {
		return d.applyDelete()
	}
	ctx := d.svc.ctx
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	if err := d.locateIO(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	pos := d.position
	d.mu.Unlock()
	switch {
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
	payload := it.ltx
	if payload == nil {
		if payload, err = d.svc.payload(it.index); err != nil {
			return err
		}
	}
	hdr, pages, err := d.decoder.Decode(payload, maxTransactionBytes)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.lastUsed = time.Now()
	delta, sum, err := d.sums.step(pos.Checksum, d.pageSize, hdr.PageCount, pages, d.decoder.Sums())
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
	d.svc.metrics.apply(len(payload), time.Since(start))
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
			return fmt.Errorf("read page %d: %w", p.Pgno, err)
		}
		if pageSum(d.pageSize, p.Pgno, buf) != sums[p.Pgno-1] {
			return fmt.Errorf("page %d of the files is not what transaction %s left: %w", p.Pgno, to.TXID, errDiverged)
		}
	}
	fp, err := txn.Append(pages, pageCount)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.sums = d.sums.apply(delta)
	d.advanceLocked(to, fp)
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
		d.fingerprint, d.sums = fp, sums
	}
	return nil
}

// applyDelete empties the database for the handles that are open and removes the files once none is.
func (d *replica) applyDelete() error {
	d.mu.Lock()
	d.deleted = true
	open := len(d.handles) > 0
	d.mu.Unlock()
	if !open {
		return d.removeFiles()
	}
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	live, err := d.openIO()
	if err != nil {
		return err
	}
	empty, err := wal.EmptyDatabase(d.pageSize, d.autoVacuum)
	if err != nil {
		return err
	}
	txn, err := d.beginIO(d.svc.ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
	_, err = txn.Append([]wal.Page{{Pgno: 1, Data: empty}}, 1)
	d.mu.Lock()
	d.known = false
	d.mu.Unlock()
	return err
}

// removeFiles closes and deletes a database that was deleted and has no handles.
func (d *replica) removeFiles() error {
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.mu.Lock()
	if !d.deleted || d.removed || len(d.handles) > 0 {
		d.mu.Unlock()
		return nil
	}
	d.removed = true
	live := d.live
	d.live, d.known = nil, false
	d.mu.Unlock()
	var errs []error
	if live != nil {
		errs = append(errs, live.Close())
	}
	errs = append(errs, d.svc.files.Remove(d.path))
	d.svc.forget(d)
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("files of a deleted database stay behind", "err", err)
	}
	return nil
}

// runCheckpoint copies the WAL into the main file. Only the node does so: applications get BUSY.
func (d *replica) runCheckpoint() {
	defer func() {
		d.mu.Lock()
		d.checkpoint = false
		d.mu.Unlock()
	}()
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live := d.live
	last := d.lastFrames
	frames := d.fingerprint.MaxFrame
	d.mu.Unlock()
	if live == nil {
		return
	}
	size, err := live.WALSize()
	if err != nil {
		d.log.Warn("size of the WAL unknown", "err", err)
		return
	}
	if frames > last && frames-last < checkpointFrames/4 && size < truncateBytes {
		return // a reader holds the log; try again after more frames
	}
	walFrames, backfilled, err := live.Checkpoint(size >= truncateBytes)
	result := checkpointOK
	switch {
	case err != nil:
		result = checkpointError
		d.svc.metrics.error("checkpoint")
		d.log.Warn("checkpoint", "err", err)
	case backfilled < walFrames:
		result = checkpointBusy
	}
	d.svc.metrics.checkpoint(size >= truncateBytes, result)
	d.mu.Lock()
	d.lastFrames = 0
	if result != checkpointOK {
		d.lastFrames = frames
	}
	d.mu.Unlock()
}

// suspect checks files whose fingerprint is not the expected one, and fences the database when its
// bytes are not the expected ones either.
func (d *replica) suspect(ctx context.Context, why string) {
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live, known, fenced, local := d.live, d.known, d.fenced, d.local
	d.mu.Unlock()
	if live == nil || !known || fenced != nil || local != nil {
		return
	}
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		if ctx.Err() == nil {
			d.fence(err)
		}
		return
	}
	defer txn.End()
	d.mu.Lock()
	same := txn.Fingerprint().Matches(d.fingerprint) || d.local != nil
	d.mu.Unlock()
	if same {
		return
	}
	if err := d.confirmIO(txn); err != nil {
		d.fence(fmt.Errorf("%s: %w", why, err))
	}
}

// watch looks for a foreign writer in the wal-index of an open database, without a lock.
func (d *replica) watch() {
	d.mu.Lock()
	live, known, fp := d.live, d.known, d.fingerprint
	quiet := !d.applying && d.local == nil && d.fenced == nil && !d.deleted
	for h := range d.handles {
		quiet = quiet && !h.granted
	}
	pos := d.position
	d.mu.Unlock()
	if live == nil || !known || !quiet {
		return
	}
	seen, _, _, err := live.Peek()
	if err == nil && seen.Matches(fp) {
		return
	}
	d.mu.Lock()
	moved := d.position != pos || d.local != nil || d.fingerprint != fp
	d.mu.Unlock()
	if moved {
		return
	}
	ctx, cancel := context.WithTimeout(d.svc.ctx, 5*time.Second)
	defer cancel()
	d.suspect(ctx, "the wal-index changed with no transaction of the cluster")
}
