package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// errHeld says that an application holds native slot 0, or that somebody waits for it.
var errHeld = errors.New("an application holds the native write lock of this node's copy")

const (
	installPatience = 30 * time.Second
	holdPatience    = 2 * time.Second
)

// install makes the local copy equal to the target, whose pages are in the spool, which is opened if pages is nil. It
// waits for native slot 0, with hold only for a moment; what it does then takes as long as it takes.
func (d *replica) install(ctx context.Context, t *target, pages *fetched, hold bool) error {
	patience := installPatience
	if hold {
		patience = holdPatience
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.lockIO(wait); err != nil {
		return heldError(ctx, wait, err)
	}
	defer d.ioMu.Unlock()
	return d.installIO(ctx, wait, t, pages, false)
}

// heldError says that err is of a wait that has ended before ctx.
func heldError(ctx, wait context.Context, err error) error {
	if wait.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errHeld, err)
	}
	return err
}

// keep makes what was fetched durable, and the database wait for it: this node may acknowledge what follows (RULES A5).
func (d *replica) keep(t *target, pages *fetched) error {
	var err error
	if !pages.placed { // synced before
		err = syncFile(pages.file)
	}
	if err == nil {
		err = d.writeTarget(t)
	}
	if err != nil {
		return fmt.Errorf("keep the pages of database %q: %w", d.name, err)
	}
	d.step("kept")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending, d.known = t, false
	d.durable = max(d.durable, t.position.TXID)
	d.log.Warn("this node's copy is brought up to date when the application that holds its write lock lets go", "txid", t.position.TXID.String())
	d.svc.goroutine(func() { d.locate(d.svc.ctx) })
	return nil
}

// installPendingIO installs what the database waits for, once slot 0 is free. If a page of it is missing after all, the
// applier fetches it.
func (d *replica) installPendingIO(ctx context.Context, t *target) error {
	err := d.installIO(ctx, ctx, t, nil, true)
	if errors.Is(err, errIncomplete) {
		d.mu.Lock()
		if d.pending == t {
			d.pending, d.behind = nil, true
			d.kickLocked()
		}
		d.mu.Unlock()
	}
	if err != nil {
		return err
	}
	d.log.Info("this node's copy is up to date", "txid", t.position.TXID.String())
	return nil
}

// claim keeps the pages of what the database waits for from being fetched over. It fails if they may have been already.
func (d *replica) claim(t *target) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending != t {
		return fmt.Errorf("install transaction %s: its pages are fetched over: %w", t.position.TXID, errIncomplete)
	}
	d.claimed = make(chan struct{})
	return nil
}

// unclaim ends that; it may have ended.
func (d *replica) unclaim() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claimed != nil {
		close(d.claimed)
		d.claimed = nil
	}
}

// revoke has the database not wait any more for what was fetched before: the next fetch goes over its pages. It waits
// until nobody installs that.
func (d *replica) revoke(ctx context.Context) error {
	for {
		d.mu.Lock()
		claimed := d.claimed
		if claimed == nil {
			d.fetches++
			if d.pending != nil {
				d.pending, d.durable = nil, 0
			}
		}
		d.mu.Unlock()
		if claimed == nil {
			return nil
		}
		select {
		case <-claimed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// installIO waits for native slot 0 until wait ends. kept says that the target is what the database waits for, and that
// catchMu is not held: what comes next may be fetched as long as the pages are not claimed.
func (d *replica) installIO(ctx, wait context.Context, t *target, pages *fetched, kept bool) error {
	d.mu.Lock()
	known, pos, fenced, removed := d.known, d.position, d.fenced != nil, d.removed || d.deleted
	if known && pos.TXID >= t.position.TXID {
		d.dropCatchupLocked()
		d.mu.Unlock()
		return nil
	}
	d.mu.Unlock()
	if removed {
		return ErrDeleted
	}
	if kept {
		if err := d.claim(t); err != nil {
			return err
		}
		defer d.unclaim()
	}
	if pages == nil {
		var err error
		if pages, err = d.openTarget(t); err != nil {
			return err
		}
		defer pages.file.Close()
	}
	placed, err := d.placeIO(t, pages)
	if err != nil {
		return err
	}
	live, err := d.openFileIO(true)
	if err != nil {
		if !errors.Is(err, ErrUnusable) || placed {
			return err
		}
		if err := d.discardIO(err); err != nil {
			return err
		}
		if placed, err = d.placeIO(t, pages); err != nil {
			return err
		}
		if live, err = d.openFileIO(true); err != nil {
			return err
		}
	}
	if kept { // who fetches meanwhile does not wait for an application
		d.unclaim()
	}
	txn, err := d.beginIO(wait, live)
	if err != nil {
		return heldError(ctx, wait, err)
	}
	defer txn.End()
	if kept && !placed {
		if err := d.claim(t); err != nil {
			return err
		}
	}
	// Slot 0 is ours: an application that was committing has left its transaction in the files or is gone,
	// and the report of its end, which may be on its way, is about a state that is replaced now.
	d.settleLocal()
	if fenced {
		// Handles that were open while bytes of no committed state were visible may have cached a schema that
		// never existed (RULES A7): they get an I/O error until they are reopened. Readers of a copy that was
		// merely behind go on. Now, so that none of them meets the healed bytes with what it cached; and once
		// more when they are in place, for who opened in between.
		if err := nextEpoch(live); err != nil {
			return err
		}
	}
	if !placed {
		// Should the node stop once the transaction is visible and before it is recorded, this names the state.
		if err := d.writeTarget(t); err != nil {
			return err
		}
		d.step("target")
		if err := d.replaceIO(ctx, txn, t, pages, fenced); err != nil {
			return err
		}
		d.step("appended")
	}
	if fenced {
		if err := nextEpoch(live); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.setSumsLocked(t.sums)
	d.known, d.verified, d.fenced, d.healErr, d.filling = true, !t.cloned, nil, nil, false
	if t.cloned {
		d.lastScrub = time.Time{}
	}
	d.advanceLocked(t.position, txn.Fingerprint())
	d.mu.Unlock()
	// The record takes the place of the target: only then what was fetched may go.
	if err := d.recordNow(); err != nil {
		return err
	}
	d.step("recorded")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropCatchupLocked()
	d.kickLocked()
	return nil
}

// replaceIO appends the pages in which the files differ from the target as one transaction. Every page is read for it,
// those that stay from the files and the others from the spool, so that the whole checksum is one of bytes read back
// before anybody sees the first of them; what was appended is read once more, behind the writer and before it shows.
func (d *replica) replaceIO(ctx context.Context, txn *wal.Txn, t *target, pages *fetched, fenced bool) error {
	var differ []uint32
	buf := make([]byte, t.pageSize)
	count := txn.PageCount()
	for i, want := range t.sums {
		pgno := uint32(i) + 1
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if want == 0 { // the lock page
			continue
		}
		if pgno <= count {
			err := txn.ReadPage(pgno, buf)
			same := err == nil && pageSum(t.pageSize, pgno, buf) == want
			if same && fenced { // the log may still have a good image of a page that is damaged in the file
				err = txn.ReadStored(pgno, buf)
				same = err == nil && pageSum(t.pageSize, pgno, buf) == want
			}
			if same {
				continue
			}
		}
		if !pages.has(pgno, want) {
			if d.remembers(pgno, want) { // why it was not fetched
				return d.fence(fmt.Errorf("install transaction %s: page %d is not what it was: %w", t.position.TXID, pgno, errForeign))
			}
			return fmt.Errorf("install transaction %s: page %d: %w", t.position.TXID, pgno, errIncomplete)
		}
		differ = append(differ, pgno)
	}
	if len(differ) == 0 {
		if count == t.pageCount() {
			return nil
		}
		// A WAL transaction that only changes the size carries page 1.
		if err := txn.ReadPage(1, buf); err != nil {
			return deviceError{fmt.Errorf("read page 1: %w", err)}
		}
		if _, err := txn.Append([]wal.Page{{Pgno: 1, Data: buf}}, t.pageCount()); err != nil {
			return deviceError{err}
		}
		return nil
	}
	next, stop := pages.readAhead(differ, t.sums)
	defer stop()
	_, err := txn.AppendChecked(next, func(pgno uint32, data []byte) error {
		if pageSum(t.pageSize, pgno, data) != t.sums[pgno-1] {
			return fmt.Errorf("page %d reads back otherwise than it was written: %w", pgno, errDiverged)
		}
		return nil
	}, t.pageCount())
	if errors.Is(err, errIncomplete) || errors.Is(err, errDiverged) {
		return err
	}
	if err != nil {
		return deviceError{fmt.Errorf("append %d pages: %w", len(differ), err)}
	}
	return nil
}

// remembers reports that a page has this checksum as far as this node knows.
func (d *replica) remembers(pgno uint32, sum uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known && int(pgno) <= len(d.sums) && d.sums[pgno-1] == sum
}

// placeIO makes the pages file the database file where there is none: no handle can be open, and the pages need not
// pass through the log. It reports whether it did.
func (d *replica) placeIO(t *target, pages *fetched) (bool, error) {
	if _, err := d.svc.files.Stat(d.path); !errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	d.mu.Lock()
	open := d.live != nil
	d.mu.Unlock()
	if open {
		return false, nil
	}
	if err := pages.file.Truncate(int64(t.pageCount()) * int64(t.pageSize)); err != nil {
		return false, deviceError{fmt.Errorf("place database %q: %w", d.name, err)}
	}
	// A clone is synced, and not read now. Nothing has to name its state: until that is recorded nobody goes by it, and a
	// node that stops in between reads all of it, and finds the position that the fork begins with.
	if !t.cloned {
		if err := pages.verify(t.sums); err != nil {
			return false, err
		}
		if err := syncFile(pages.file); err != nil {
			return false, deviceError{fmt.Errorf("place database %q: %w", d.name, err)}
		}
		if err := d.writeTarget(t); err != nil {
			return false, deviceError{err}
		}
	}
	d.step("verified")
	err := d.svc.files.Place(d.pagesPath(), d.path)
	if errors.Is(err, os.ErrExist) {
		return false, nil // somebody opened the name meanwhile
	}
	if err != nil {
		return false, deviceError{fmt.Errorf("place database %q: %w", d.name, err)}
	}
	d.step("placed")
	// Closing it drops every lock that this process holds on the database file (RULES A6): now, while there is none, and
	// before anybody here opens that.
	pages.placed = true
	pages.file.Close()
	if err := d.disownPlaced(); err != nil {
		return true, deviceError{err}
	}
	return true, nil
}
