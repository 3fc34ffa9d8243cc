package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// catchUp brings the files to the decided position, or a later one, by the pages in which they differ from a peer's
// (RULES A5). Pages that were fetched are kept in the spool: a fetch that is cut off goes on where it stopped, from
// the same peer or another, also after a restart.
//
// A restore may not wait for an application that holds native slot 0: with hold set, and when the lock cannot be
// had within a moment, what was fetched is kept, durably, and installed once the application lets go.
func (d *replica) catchUp(ctx context.Context, hold bool) error {
	select {
	case d.svc.catchups <- struct{}{}:
		defer func() { <-d.svc.catchups }()
	case <-ctx.Done():
		return ctx.Err()
	}
	d.catchMu.Lock()
	defer d.catchMu.Unlock()
	d.mu.Lock()
	if d.deleted || d.removed {
		d.mu.Unlock()
		return ErrDeleted
	}
	at := max(d.decided.TXID, d.base.TXID)
	t := d.pending
	d.mu.Unlock()
	if t != nil && t.position.TXID >= at {
		err := d.install(ctx, t, hold)
		if err == nil || errors.Is(err, errHeld) && hold || !errors.Is(err, errIncomplete) {
			if errors.Is(err, errHeld) && hold {
				return nil // it waits already
			}
			return err
		}
	}
	t, err := d.fetch(ctx, at)
	if err != nil {
		return err
	}
	d.step("fetched")
	err = d.install(ctx, t, hold)
	if errors.Is(err, errHeld) && hold {
		return d.keep(t)
	}
	return err
}

// step tells a test how far a catch-up is.
func (d *replica) step(name string) {
	if f := d.svc.opts.CatchupStep; f != nil {
		f(d.name, name)
	}
}

// progress is how far a catch-up is.
type progress struct{ fetched, total uint32 } // pages

// errAlone says that nobody can heal this node.
var errAlone = errors.New("the cluster has no other node to fetch the database from: it can be read as it is, save what is needed" +
	" (sqlite3 .dump of the file, or VACUUM INTO), delete the database with --force and create it again")

// fetch brings the pages of a state at transaction at or later into the spool, from whichever peer has it.
func (d *replica) fetch(ctx context.Context, at TXID) (*target, error) {
	have, err := d.localSums(ctx)
	if err != nil {
		return nil, err
	}
	pages, err := d.openFetched()
	if err != nil {
		return nil, err
	}
	defer pages.file.Close()
	var errs []error
	for _, peer := range d.svc.peersLeaderLast() {
		t, err := d.fetchFrom(ctx, peer, at, have, pages)
		if err == nil {
			return t, nil
		}
		errs = append(errs, fmt.Errorf("from node %s: %w", peer, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errAlone
	}
	return nil, errors.Join(errs...)
}

// fetchFrom goes through rounds with one peer. The first one has the peer read every page back. Each goes for what
// still differs; a round whose pages all came within its time is the one whose state is installed.
func (d *replica) fetchFrom(ctx context.Context, peer string, at TXID, have sumTable, pages *fetched) (*target, error) {
	flags := byte(roundReadBack)
	if have == nil {
		flags = 0 // every page is sent, and read for that
	}
	for {
		r, err := d.openRound(ctx, peer, at, flags)
		if err != nil {
			return nil, err
		}
		if !r.whole {
			flags = 0
			continue
		}
		d.step("sums")
		var missing []uint32
		for i, sum := range r.sums {
			if pgno := uint32(i) + 1; sum != 0 && (i >= len(have) || have[i] != sum) && !pages.has(pgno, sum) {
				missing = append(missing, pgno)
			}
		}
		d.mu.Lock()
		d.progress.total = d.progress.fetched + uint32(len(missing))
		d.mu.Unlock()
		n, err := d.fetchPages(ctx, r, missing, pages)
		if err != nil {
			return nil, err
		}
		if n == len(missing) {
			d.closeRound(ctx, r)
			return &r.target, nil
		}
		flags = 0
		at = max(at, r.position.TXID)
	}
}

// runsPerRequest bounds a request for pages.
const runsPerRequest = 16 << 10

// fetchPages fetches pages of a round into the spool, as many as its time allows.
func (d *replica) fetchPages(ctx context.Context, r *round, missing []uint32, pages *fetched) (done int, err error) {
	for done < len(missing) {
		req := binary.LittleEndian.AppendUint64(nil, r.token)
		asked := missing[done:]
		for i, runs := 0, 0; i < len(asked); runs++ {
			if runs == runsPerRequest {
				asked = asked[:i]
				break
			}
			n := 1
			for i+n < len(asked) && asked[i+n] == asked[i]+uint32(n) {
				n++
			}
			req = binary.LittleEndian.AppendUint32(req, asked[i])
			req = binary.LittleEndian.AppendUint32(req, uint32(n))
			i += n
		}
		n, err := d.fetchRuns(ctx, r, req, asked, pages)
		done += n
		if err != nil || n < len(asked) {
			return done, err
		}
	}
	return done, nil
}

// fetchRuns sends one request and reads its answer.
func (d *replica) fetchRuns(ctx context.Context, r *round, req []byte, asked []uint32, pages *fetched) (done int, err error) {
	stream, err := d.svc.port.Stream(ctx, r.peer, methodPages, req)
	if err != nil {
		return 0, remoteError(err)
	}
	defer stream.Close()
	size := int(r.pageSize)
	batch := make([]byte, max(1, (128<<10)/size)*size)
	sums := make([]uint64, 0, len(batch)/size)
	for done < len(asked) {
		// As many as lie side by side and fit.
		n := 1
		for n < len(batch)/size && done+n < len(asked) && asked[done+n] == asked[done]+uint32(n) {
			n++
		}
		if err := d.svc.catchup.wait(ctx, n*size); err != nil {
			return done, err
		}
		got, err := io.ReadFull(stream, batch[:n*size])
		over := errors.Is(err, io.EOF) || err == io.ErrUnexpectedEOF && got%size == 0
		if err != nil && !over {
			return done, fmt.Errorf("read page %d: %w", asked[done], remoteError(err))
		}
		n = got / size
		sums = sums[:0]
		for i := range n {
			pgno := asked[done+i]
			sum := pageSum(r.pageSize, pgno, batch[i*size:(i+1)*size])
			if sum != r.sums[pgno-1] {
				return done, fmt.Errorf("page %d has checksum %016x, not %016x: %w", pgno, sum, r.sums[pgno-1], errDiverged)
			}
			sums = append(sums, sum)
		}
		if n > 0 {
			if err := pages.put(asked[done], batch[:n*size], sums); err != nil {
				return done, err
			}
			d.svc.metrics.fetchedPages.Add(uint64(n))
			d.mu.Lock()
			d.progress.fetched += uint32(n)
			d.mu.Unlock()
			done += n
			d.step("pages")
		}
		if over {
			return done, nil
		}
	}
	return done, nil
}

// localSums returns the checksums of the pages that are here, nil if there is no file. They are only what to ask a peer
// for: what is installed is compared once more.
func (d *replica) localSums(ctx context.Context) (sumTable, error) {
	if d.absent() {
		return nil, nil
	}
	d.mu.Lock()
	if d.known && d.fenced == nil {
		defer d.mu.Unlock()
		return append(sumTable{}, d.sums...), nil
	}
	d.mu.Unlock()
	if err := d.openFiles(ctx); err != nil {
		if errors.Is(err, ErrUnusable) || errors.Is(err, errAbsent) {
			return nil, nil
		}
		return nil, err
	}
	var sums sumTable
	buf := make([]byte, d.pageSize)
	for pgno := uint32(1); ; { // under pins of a moment each, so that checkpoints get their turn
		d.mu.Lock()
		live := d.live
		d.mu.Unlock()
		if live == nil {
			return nil, ErrShutdown
		}
		snap, err := live.Pin()
		if err != nil {
			return nil, fmt.Errorf("read the local copy of database %q: %w", d.name, err)
		}
		end := time.Now().Add(localPin)
		for ; pgno <= snap.PageCount() && time.Now().Before(end) && err == nil; pgno++ {
			if snap.PageSize() != d.pageSize {
				break
			}
			if err = snap.ReadPage(pgno, buf); err == nil {
				sums = append(sums, pageSum(d.pageSize, pgno, buf))
			}
		}
		over := pgno > snap.PageCount() || snap.PageSize() != d.pageSize
		snap.Close()
		if err != nil {
			return nil, fmt.Errorf("read the local copy of database %q: %w", d.name, err)
		}
		if over || ctx.Err() != nil {
			return sums, ctx.Err()
		}
	}
}

// localPin is how long the local copy is held still at a time.
const localPin = time.Second

// throttle bounds what a node fetches from its peers, of all databases together.
type throttle struct {
	rate int64 // bytes per second; 0: no bound

	mu   sync.Mutex
	next time.Time // when what was granted so far is used up
}

// throttleBurst is how much may come at once after a pause.
const throttleBurst = 100 * time.Millisecond

// wait returns when n more bytes may be fetched.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t.rate <= 0 {
		return ctx.Err()
	}
	t.mu.Lock()
	now := time.Now()
	if least := now.Add(-throttleBurst); t.next.Before(least) {
		t.next = least
	}
	pause := t.next.Sub(now)
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	t.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errHeld says that an application holds native slot 0, or that somebody waits for it.
var errHeld = errors.New("an application holds the native write lock of this node's copy")

const (
	installPatience = 30 * time.Second
	holdPatience    = 2 * time.Second
)

// install makes the local copy equal to the target, whose pages are in the spool. It waits for native slot 0, with hold
// only for a moment.
func (d *replica) install(ctx context.Context, t *target, hold bool) error {
	patience := installPatience
	if hold {
		patience = holdPatience
	}
	wctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := d.lockIO(wctx)
	if err == nil {
		defer d.ioMu.Unlock()
		err = d.installIO(wctx, t)
	}
	if err != nil && wctx.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errHeld, err)
	}
	return err
}

// keep makes what was fetched durable, and the database wait for it: this node may acknowledge what follows (RULES A5).
func (d *replica) keep(t *target) error {
	pages, err := d.openFetched()
	if err != nil {
		return err
	}
	err = syncFile(pages.file)
	pages.file.Close()
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
	err := d.installIO(ctx, t)
	if errors.Is(err, errIncomplete) {
		d.mu.Lock()
		d.pending, d.behind = nil, true
		d.kickLocked()
		d.mu.Unlock()
	}
	if err != nil {
		return err
	}
	d.log.Info("this node's copy is up to date", "txid", t.position.TXID.String())
	return nil
}

func (d *replica) installIO(ctx context.Context, t *target) error {
	d.mu.Lock()
	known, pos, fenced := d.known, d.position, d.fenced != nil
	if known && pos.TXID >= t.position.TXID {
		d.dropCatchupLocked()
		d.mu.Unlock()
		return nil
	}
	d.mu.Unlock()
	pages, err := d.openFetched()
	if err != nil {
		return err
	}
	defer pages.file.Close()
	placed, err := d.placeIO(t, pages)
	if err != nil {
		return err
	}
	live, err := d.openFileIO(true)
	if err != nil {
		if !errors.Is(err, ErrUnusable) {
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
	txn, err := d.beginIO(ctx, live)
	if err != nil {
		return err
	}
	defer txn.End()
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
		if err := d.replaceIO(ctx, txn, t, pages); err != nil {
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
	d.known, d.verified, d.fenced, d.healErr, d.behind = true, true, nil, nil, false
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
	return nil
}

// replaceIO appends the pages in which the files differ from the target as one transaction. Every page is read for it,
// those that stay from the files and the others from the spool, so that the whole checksum is one of bytes read back
// before anybody sees the first of them; what was appended is read once more.
func (d *replica) replaceIO(ctx context.Context, txn *wal.Txn, t *target, pages *fetched) error {
	var differ []uint32
	buf := make([]byte, t.pageSize)
	for i, want := range t.sums {
		pgno := uint32(i) + 1
		if want == 0 { // the lock page
			continue
		}
		if pgno <= txn.PageCount() {
			if err := txn.ReadPage(pgno, buf); err == nil && pageSum(t.pageSize, pgno, buf) == want {
				continue
			}
		}
		if !pages.has(pgno, want) {
			return fmt.Errorf("install transaction %s: page %d: %w", t.position.TXID, pgno, errIncomplete)
		}
		differ = append(differ, pgno)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(differ) == 0 {
		if txn.PageCount() == t.pageCount() {
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
	left := differ
	_, err := txn.AppendFrom(func() (wal.Page, error) {
		if len(left) == 0 {
			return wal.Page{}, io.EOF
		}
		pgno := left[0]
		left = left[1:]
		return wal.Page{Pgno: pgno, Data: buf}, pages.read(pgno, t.sums[pgno-1], buf)
	}, t.pageCount())
	if errors.Is(err, errIncomplete) {
		return err
	}
	if err != nil {
		return deviceError{fmt.Errorf("append %d pages: %w", len(differ), err)}
	}
	for _, pgno := range differ {
		if err := txn.ReadPage(pgno, buf); err != nil {
			return deviceError{fmt.Errorf("read page %d back: %w", pgno, err)}
		}
		if pageSum(t.pageSize, pgno, buf) != t.sums[pgno-1] {
			return fmt.Errorf("page %d reads back otherwise than it was written: %w", pgno, errDiverged)
		}
	}
	return nil
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
	buf := make([]byte, t.pageSize)
	if err := pages.file.Truncate(int64(t.pageCount()) * int64(t.pageSize)); err != nil {
		return false, deviceError{fmt.Errorf("place database %q: %w", d.name, err)}
	}
	for i, want := range t.sums {
		if want == 0 { // the lock page
			continue
		}
		if err := pages.read(uint32(i)+1, want, buf); err != nil {
			return false, err
		}
	}
	if err := syncFile(pages.file); err != nil {
		return false, deviceError{fmt.Errorf("place database %q: %w", d.name, err)}
	}
	if err := d.writeTarget(t); err != nil {
		return false, deviceError{err}
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
	return true, nil
}
