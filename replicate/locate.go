package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// openIO opens the live handle if it is not open. The caller holds ioMu, not mu.
func (d *replica) openIO() (LiveFile, error) { return d.openFileIO(false) }

// openFileIO is openIO. With install set, files that are not here are made, for a catch-up to fill them.
func (d *replica) openFileIO(install bool) (LiveFile, error) {
	d.mu.Lock()
	live := d.live
	removed, pageSize, autoVacuum, first := d.removed, d.pageSize, d.autoVacuum, d.base.TXID <= 1
	forking := d.forkingLocked() && !install
	filling := d.filling && !install
	d.mu.Unlock()
	if filling {
		return nil, fmt.Errorf("open database %q: %w", d.name, errAbsent)
	}
	if live != nil {
		return live, nil
	}
	if removed {
		return nil, ErrDeleted
	}
	if forking {
		return nil, fmt.Errorf("open database %q: %w", d.name, ErrForking)
	}
	d.svc.makeRoom()
	// A database that is past its first transaction is fetched whole before anybody opens it (RULES A5): an
	// empty file in its place would be read as an empty database.
	if !first && d.absent() {
		if !install {
			return nil, fmt.Errorf("open database %q: %w", d.name, errAbsent)
		}
		d.mu.Lock()
		d.filling = true
		d.mu.Unlock()
	}
	if err := d.svc.files.Create(d.path, pageSize, autoVacuum); err != nil {
		return nil, deviceError{fmt.Errorf("create database %q: %w", d.name, err)}
	}
	rec, sums, err := d.openRecord()
	if err != nil {
		return nil, deviceError{err}
	}
	live, err = d.svc.files.Open(d.path)
	if err != nil {
		err = fmt.Errorf("open database %q: %w", d.name, err)
		if !errors.Is(err, ErrUnusable) { // no descriptor, no permission, no space: that passes
			err = deviceError{err}
		}
		return nil, err
	}
	d.mu.Lock()
	d.live = live
	d.lastUsed = time.Now()
	d.listLocked()
	d.attendLocked()
	d.mu.Unlock()
	if sums != nil {
		d.adoptRecord(rec, sums, live)
	}
	return live, nil
}

// absent reports that there is no file, or an empty one.
func (d *replica) absent() bool {
	st, err := d.svc.files.Stat(d.path)
	return errors.Is(err, os.ErrNotExist) || err == nil && st.SizeBytes == 0
}

// locate finds the file position when it is not known: the checksum of all pages names it among the
// positions that the log has decided. While it is unknown nothing is applied. See RULES A3: equal sums
// are equal bytes, and nothing is redone below the position found.
func (d *replica) locate(ctx context.Context) {
	if err := d.svc.waitReplayed(ctx); err != nil {
		return
	}
	if err := d.lockIO(ctx); err != nil {
		return
	}
	defer d.ioMu.Unlock()
	if err := d.locateOrFenceIO(ctx); err != nil && ctx.Err() == nil {
		d.log.Debug("position of the local copy not found", "err", err)
	}
}

// locateOrFenceIO is locateIO for everybody but the applier: files that are at no position are fenced.
func (d *replica) locateOrFenceIO(ctx context.Context) error {
	d.mu.Lock()
	known := d.known
	d.mu.Unlock()
	err := d.locateIO(ctx)
	var device deviceError
	var unread unreadError
	switch {
	case err == nil && !known:
		d.trouble(nil)
	case errors.As(err, &unread):
		d.trouble(err)
		d.fetchUnread(err)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrFenced) || errors.Is(err, ErrDeleted) || errors.Is(err, ErrForking) || errors.Is(err, errIncomplete) || errors.As(err, &device) {
		return err
	}
	if d.awaited(err) {
		return err
	}
	return d.fence(fmt.Errorf("find the position of the local copy: %w", err))
}

// fetchUnread has a peer asked for files of which something cannot be read: what it has takes the place of that. Where
// there is no peer they are read again, by whoever uses them next.
func (d *replica) fetchUnread(err error) {
	var unread unreadError
	if !errors.As(err, &unread) || len(d.svc.peersLeaderLast()) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetLocked()
	d.behind, d.durable = true, 0
	d.kickLocked()
}

// forgetLocked has the position found anew, by what the files hold.
func (d *replica) forgetLocked() {
	if d.known && d.position.TXID > d.base.TXID { // the queue has forgotten what came before
		d.base = d.position
	}
	d.known = false
}

// awaited reports that err is of files that a peer has been asked for: they come, or the log says next that the database
// is deleted (RULES A5).
func (d *replica) awaited(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Is(err, errAbsent) && (d.unreached || d.behind)
}

func (d *replica) locateIO(ctx context.Context) error {
	d.mu.Lock()
	known, fenced, pending := d.known, d.fenced, d.pending
	d.mu.Unlock()
	if known || fenced != nil {
		return fenced
	}
	if pending != nil {
		return d.installPendingIO(ctx, pending)
	}
	live, err := d.openIO()
	if err != nil {
		return err
	}
	d.mu.Lock()
	known = d.known
	fetches := d.fetches
	d.mu.Unlock()
	if known { // the record of a clean close was enough
		d.settleFound()
		return nil
	}
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
	if d.findByRecordIO(txn) {
		return nil
	}
	sums, sum, err := readSums(txn, d.pageSize)
	if err != nil {
		return err
	}
	pending = d.loadTarget()
	err = d.findIO(txn, sums, sum, pending)
	if err == nil || pending == nil {
		return err
	}
	d.mu.Lock()
	if d.fetches == fetches { // else its pages are fetched over, and claiming them fails
		d.pending = pending
	}
	d.mu.Unlock()
	// The node stopped before it could install what a catch-up had fetched.
	if err := txn.End(); err != nil {
		return err
	}
	return d.installPendingIO(ctx, pending)
}

// findByRecordIO finds the position by the record of page checksums: only the pages that later entries of the log
// touch are read, and what they give together with the record has to be the checksum of a position (RULES A3).
// The pages that were not read are compared when they are touched first, and by the re-read that follows soon.
func (d *replica) findByRecordIO(txn *wal.Txn) bool {
	rec, table, ok := d.svc.sums.Load(d.id)
	sums := sumTable(table)
	if !ok || rec.Closed != nil || rec.PageSize != d.pageSize || sums.checksum() != Checksum(rec.Checksum) {
		return false
	}
	at := Position{TXID(rec.TXID), Checksum(rec.Checksum)}
	d.mu.Lock()
	base, later := d.base, slices.Clone(d.queue)
	d.mu.Unlock()
	if at.TXID < base.TXID || at.TXID == base.TXID && at != base {
		return false // the log does not say what came between
	}
	later = slices.DeleteFunc(later, func(it item) bool { return it.fork != nil })
	for len(later) > 0 && later[0].position.TXID <= at.TXID && !later[0].deleted {
		if later[0].position.TXID == at.TXID && later[0].position != at {
			return false
		}
		later = later[1:]
	}
	var touched pageSet
	candidates := []Position{at}
	for _, it := range later {
		if it.deleted {
			break
		}
		if it.pre != candidates[len(candidates)-1] || d.touches(it, &touched) != nil || touched.n > len(sums)/2+1024 {
			return false // reading every page is as good
		}
		candidates = append(candidates, it.position)
	}
	count := txn.PageCount()
	for pgno := uint32(len(sums)) + 1; pgno <= count; pgno++ {
		touched.add(pgno)
	}
	now := make(sumTable, count)
	copy(now, sums)
	buf := make([]byte, d.pageSize)
	var changed pageSet
	var err error
	touched.each(func(pgno uint32) {
		if pgno > count || err != nil {
			return
		}
		if err = txn.ReadPage(pgno, buf); err == nil {
			if sum := pageSum(d.pageSize, pgno, buf); sum != now[pgno-1] {
				now[pgno-1] = sum
				changed.add(pgno)
			}
		}
	})
	if err != nil {
		return false
	}
	sum, found := now.checksum(), -1
	for i, p := range candidates {
		if p.Checksum == sum {
			found = i // the highest that is confirmed counts
		}
	}
	if found < 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setSumsLocked(now)
	d.recorded, d.dirty = at.TXID, changed
	d.known, d.verified = true, false
	d.lastScrub = time.Time{} // every page is read, soon and paced (RULES B9)
	d.log.Debug("file position found", "txid", candidates[found].TXID.String(), "record", at.TXID.String(), "pages", touched.n)
	d.advanceLocked(candidates[found], txn.Fingerprint())
	return true
}

// touches adds the pages that a decided change replaces.
func (d *replica) touches(it item, set *pageSet) error {
	if it.spool != nil {
		return errors.New("a large transaction") // reading every page is as good
	}
	payload := it.ltx
	if payload == nil {
		var err error
		if payload, err = d.svc.payload(it.index); err != nil {
			return err
		}
	}
	_, pgnos, err := snapshot.PageNumbers(payload)
	if err != nil {
		return err
	}
	for _, pgno := range pgnos {
		set.add(pgno)
	}
	return nil
}

// findIO looks a checksum of the whole file up among the positions that it can have.
func (d *replica) findIO(txn *wal.Txn, sums sumTable, sum Checksum, pending *target) error {
	rec, recorded := d.svc.sums.Find(d.id)
	txid, old := d.svc.fsm.transactionWith(d.id, sum)
	d.mu.Lock()
	defer d.mu.Unlock()
	found, ok := d.base, sum == d.base.Checksum
	for _, it := range d.queue {
		if !it.deleted && it.position.Checksum == sum {
			found, ok = it.position, true // the highest that is confirmed counts
		}
	}
	if pending != nil && pending.position.Checksum == sum && (!ok || pending.position.TXID > found.TXID) {
		found, ok = pending.position, true // a catch-up was installed, and the node stopped before it was recorded
	}
	if !ok && pending == nil { // a copy that is merely older than the log is no foreign one
		if old {
			found, ok = Position{txid, sum}, true
		} else if recorded && Checksum(rec.Checksum) == sum && TXID(rec.TXID) < d.base.TXID {
			found, ok = Position{TXID(rec.TXID), sum}, true
		}
	}
	if !ok {
		return fmt.Errorf("checksum %s of %d pages is none of the positions %s to %s", sum, len(sums), d.base, d.decided)
	}
	d.setSumsLocked(sums)
	d.known, d.verified = true, true
	d.log.Debug("file position found", "txid", found.TXID.String(), "base", d.base.TXID.String())
	d.advanceLocked(found, txn.Fingerprint())
	d.settleFoundLocked()
	return nil
}

// settleFound decides what a position that was found asks for.
func (d *replica) settleFound() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settleFoundLocked()
}

func (d *replica) settleFoundLocked() {
	if d.position.TXID < d.base.TXID { // the log begins after it
		d.behind, d.durable = true, 0
		d.kickLocked()
	}
}
