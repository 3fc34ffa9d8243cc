package replicate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/replicate/pagesums"
)

// The durable record of a database (RULES A3, B9) says at which position its files are known to be durable, with the
// checksum of every page there. It is written when a raft snapshot makes the files durable, when the files are closed,
// and when pages came from a peer; between two of them only the pages that changed are written.

// sumsDir has the records, in the data directory.
const sumsDir = "sums"

// capture is what the next record of a database will say, taken at one moment.
type capture struct {
	record  pagesums.Record
	all     sumTable          // every page, or
	changes []pagesums.Change // those that changed since the record at prev
	prev    TXID
	dirty   pageSet
	table   uint64 // d.table then
}

// setSumsLocked replaces the table of page checksums. The next record holds all of it.
func (d *replica) setSumsLocked(sums sumTable) {
	d.sums, d.recorded, d.dirty = sums, 0, pageSet{}
	d.table++
}

// stepSumsLocked changes the table by one transaction.
func (d *replica) stepSumsLocked(delta *sumDelta) {
	d.sums = d.sums.apply(delta)
	for _, pgno := range delta.pgnos {
		d.dirty.add(pgno)
	}
}

// captureLocked takes what a record of the position now is made of, nil if there is nothing new to record. The caller
// holds recordMu until it was stored.
func (d *replica) captureLocked() *capture {
	if !d.known || d.fenced != nil {
		return nil
	}
	c := &capture{prev: d.recorded, table: d.table, record: pagesums.Record{
		ID: d.id, TXID: uint64(d.position.TXID), Checksum: uint64(d.position.Checksum), PageSize: d.pageSize, PageCount: uint32(len(d.sums)),
	}}
	if d.recorded == 0 || d.svc.sums.WantsAll(d.id, uint64(d.recorded), d.dirty.n, len(d.sums)) {
		c.all = append(sumTable{}, d.sums...)
	} else {
		c.changes = make([]pagesums.Change, 0, d.dirty.n)
		d.dirty.each(func(pgno uint32) {
			if int(pgno) <= len(d.sums) {
				c.changes = append(c.changes, pagesums.Change{Pgno: pgno, Sum: d.sums[pgno-1]})
			}
		})
	}
	c.dirty, d.dirty = d.dirty, pageSet{}
	return c
}

// store appends the record; it is durable with the next sync of the store. The caller holds recordMu and has seen
// to it that the files are durable at the position.
func (d *replica) store(c *capture) error {
	var err error
	if c.all != nil {
		err = d.svc.sums.PutAll(c.record, c.all)
	} else {
		err = d.svc.sums.PutChanges(c.record, uint64(c.prev), c.changes)
	}
	d.svc.stopIfSyncFailed(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.table != c.table { // replaced meanwhile
		return err
	}
	if err != nil {
		d.recorded = 0
		return fmt.Errorf("record database %q: %w", d.name, err)
	}
	d.recorded = TXID(c.record.TXID)
	return nil
}

// recordNow makes files and record durable at the position that the files show.
func (d *replica) recordNow() error {
	d.recordMu.Lock()
	defer d.recordMu.Unlock()
	d.mu.Lock()
	c, live := d.captureLocked(), d.live
	d.mu.Unlock()
	if c == nil || live == nil {
		return nil
	}
	err := live.SyncWAL()
	if err == nil {
		err = d.store(c)
	}
	if err == nil {
		err = d.svc.syncRecords()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.recorded = 0
		return fmt.Errorf("record database %q: %w", d.name, err)
	}
	d.durable = max(d.durable, TXID(c.record.TXID))
	return nil
}

// syncRecords makes all records durable. A sync that fails once is not tried again: the next one may say that
// all is well when it is not.
func (s *Service) syncRecords() error {
	err := s.sums.Sync()
	s.stopIfSyncFailed(err)
	return err
}

// closedRecord returns the record of files that were closed and are unchanged since, by size, times and inode
// (RULES B9). changed reports that there is one, and that somebody has written the files.
func (d *replica) closedRecord() (_ pagesums.Record, ok, changed bool) {
	rec, ok := d.svc.sums.Find(d.id)
	if !ok || rec.Closed == nil {
		return rec, false, false
	}
	st, err := d.svc.files.Stat(d.path)
	if err != nil || st != FileStat(*rec.Closed) || !d.svc.files.WALEmpty(d.path) {
		return rec, false, true
	}
	return rec, rec.PageSize == d.pageSize, rec.PageSize != d.pageSize
}

// openRecord is called before the files are opened. It returns the page checksums of files that were closed and are
// unchanged, and makes certain that nobody takes them for unchanged files again.
func (d *replica) openRecord() (_ pagesums.Record, sums sumTable, err error) {
	rec, ok, changed := d.closedRecord()
	switch {
	case ok:
		rec, sums, ok = d.svc.sums.Load(d.id)
		if !ok || rec.Closed == nil || Checksum(rec.Checksum) != sumTable(sums).checksum() {
			sums = nil
		}
		err = d.svc.sums.Opened(d.id)
		d.svc.stopIfSyncFailed(err)
	case changed: // what the record says of pages that the log does not touch means nothing: all are read
		d.log.Warn("the files of a database changed while nobody had it open, all of it is read")
		if err = d.svc.sums.Forget(d.id); err == nil {
			err = d.svc.syncRecords()
		}
	}
	if err != nil {
		return rec, nil, fmt.Errorf("open database %q: %w", d.name, err)
	}
	return rec, sums, nil
}

// adoptRecord trusts the page sums of a database that was closed cleanly and is unchanged since.
func (d *replica) adoptRecord(rec pagesums.Record, sums sumTable, live LiveFile) {
	fp, pageSize, _, err := live.Peek()
	if err != nil || pageSize != rec.PageSize || fp.PageCount != uint32(len(sums)) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known || TXID(rec.TXID) < d.base.TXID {
		return
	}
	d.setSumsLocked(sums)
	d.recorded = TXID(rec.TXID)
	d.known, d.verified = true, true
	d.advanceLocked(Position{TXID(rec.TXID), Checksum(rec.Checksum)}, fp)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncFile(dir)
}

// closeIdle checkpoints, closes and records a database that nobody uses. It reports whether it is closed.
func (d *replica) closeIdle(idle time.Duration) bool {
	if !d.ioMu.TryLock() {
		return false
	}
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live := d.live
	busy := live == nil || len(d.handles) > 0 || d.local != nil || len(d.queue) > 0 || d.healing || d.behind || len(d.pins) > 0 ||
		len(d.waiters) > 0 || time.Since(d.lastUsed) < idle
	d.mu.Unlock()
	if busy {
		return live == nil
	}
	walFrames, backfilled, err := live.Checkpoint(true)
	if err != nil || backfilled < walFrames {
		return false // somebody else reads it: try again later
	}
	// The stat comes before the look at the wal-index: who writes after that look changes the stat once more,
	// when the log is copied into the file.
	stat, statErr := d.svc.files.Stat(d.path)
	fp, _, _, err := live.Peek()
	if err != nil {
		return false
	}
	d.recordMu.Lock()
	defer d.recordMu.Unlock()
	d.mu.Lock()
	if len(d.handles) > 0 || d.local != nil { // an application came meanwhile
		d.mu.Unlock()
		return false
	}
	rec := d.captureLocked()
	known := rec != nil && statErr == nil && fp.Matches(d.fingerprint) && d.verified
	if rec != nil { // the queue has forgotten what came before: this is where a later search begins
		d.base, d.durable = d.position, max(d.durable, d.position.TXID)
	}
	d.live, d.known, d.sums, d.dirty = nil, false, nil, pageSet{}
	d.oldPage = nil
	if rec != nil && !d.svc.draining.Load() { // a catch-up that a restart cut off is not needed any more
		d.dropCatchupLocked()
	}
	d.attendLocked()
	d.mu.Unlock()
	if err := live.Close(); err != nil {
		d.log.Warn("close idle database", "err", err)
		known = false
	}
	if rec == nil {
		return true
	}
	if after, err := d.svc.files.Stat(d.path); known && err == nil && after == stat {
		closed := pagesums.Stat(stat)
		rec.record.Closed = &closed
	}
	// It need not be durable now: without it the one before counts, and the log.
	if err := d.store(rec); err != nil {
		d.log.Warn("record an idle database", "err", err)
	}
	return true
}

// writeFileSync replaces a file so that a crash leaves the old or the new content, whole.
func writeFileSync(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = syncFile(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// errAbsent says that the files of a database are not here: they are fetched from a peer before anybody opens them.
var errAbsent = errors.New("this node has no copy of the database yet")
