package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// catchUp brings the files to the decided position, or a later one, by the pages in which they differ from a peer's
// (RULES A5). Pages that were fetched are kept in the spool: a fetch that is cut off goes on where it stopped, from
// the same peer or another, also after a restart.
//
// A restore may not wait for an application that holds native slot 0: with hold set, and when the lock cannot be
// had within a moment, what was fetched is kept, durably, and installed once the application lets go.
func (d *replica) catchUp(ctx context.Context, hold bool) error {
	d.catchMu.Lock()
	defer d.catchMu.Unlock()
	defer d.dropIfGone()
	d.mu.Lock()
	if d.deleted || d.removed {
		d.mu.Unlock()
		return ErrDeleted
	}
	at := max(d.decided.TXID, d.base.TXID)
	t := d.pending
	d.mu.Unlock()
	if t != nil && t.position.TXID >= at {
		err := d.install(ctx, t, nil, hold)
		if err == nil || errors.Is(err, errHeld) && hold || !errors.Is(err, errIncomplete) {
			if errors.Is(err, errHeld) && hold {
				return nil // it waits already
			}
			return err
		}
	}
	if err := d.revoke(ctx); err != nil {
		return err
	}
	t, pages, err := d.collect(ctx, at)
	if err != nil {
		return err
	}
	defer pages.file.Close()
	d.step("fetched")
	err = d.install(ctx, t, pages, hold)
	if errors.Is(err, errHeld) && hold {
		return d.keep(t, pages)
	}
	return err
}

// collect brings what the files lack into the spool. So many databases do that at a time, and not longer than it takes:
// one whose application holds native slot 0 waits for that beside them, and delays nobody else (RULES A4).
func (d *replica) collect(ctx context.Context, at TXID) (*target, *fetched, error) {
	select {
	case d.svc.catchups <- struct{}{}:
		defer func() { <-d.svc.catchups }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	pages, err := d.openFetched()
	if err != nil {
		return nil, nil, err
	}
	t, err := d.fetch(ctx, at, pages)
	if err != nil {
		pages.file.Close()
		return nil, nil, err
	}
	return t, pages, nil
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
func (d *replica) fetch(ctx context.Context, at TXID, pages *fetched) (*target, error) {
	have, err := d.localSums(ctx)
	if err != nil {
		return nil, err
	}
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
	readBack := uint32(len(have)) // pages beyond are sent, and read for that
	for {
		// Its checksums are paid for before: the time of a round is for pages, however few the rate allows.
		if st, ok := d.svc.fsm.Get(d.id); ok {
			if err := d.svc.catchup.spend(ctx, 8*int(st.PageCount)); err != nil {
				return nil, err
			}
		}
		r, err := d.openRound(ctx, peer, at, readBack)
		if err != nil {
			return nil, err
		}
		if !r.whole {
			readBack = 0
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
		readBack = 0
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

// fetchRuns sends one request and reads its answer. What came is compared and spooled behind the reader.
func (d *replica) fetchRuns(ctx context.Context, r *round, req []byte, asked []uint32, pages *fetched) (done int, err error) {
	stream, err := d.svc.bulk(ctx, r.peer, methodPages, req)
	if err != nil {
		return 0, remoteError(err)
	}
	defer stream.Close()
	size := int(r.pageSize)
	empty, came := make(chan []byte, fetchedAhead), make(chan []byte, fetchedAhead)
	for range fetchedAhead {
		empty <- make([]byte, max(fetchedRun/size, 1)*size)
	}
	ended := make(chan struct{})
	var spoolErr error
	go func() {
		defer close(ended)
		for data := range came {
			if spoolErr == nil {
				if spoolErr = d.spoolPages(r, asked[done:], data, pages); spoolErr == nil {
					done += len(data) / size
				} else {
					stream.Close() // the reader need not go on
				}
			}
			empty <- data[:cap(data)]
		}
	}()
	err = readPages(r, stream, asked, empty, came)
	close(came)
	<-ended
	if spoolErr != nil {
		return done, spoolErr
	}
	return done, err
}

// readPages reads the pages that were asked for, as many as the peer sends, each time as many as lie side by side.
func readPages(r *round, stream io.Reader, asked []uint32, empty <-chan []byte, came chan<- []byte) error {
	size := int(r.pageSize)
	for len(asked) > 0 {
		buf := <-empty
		n := sideBySide(asked, len(buf)/size)
		got, err := io.ReadFull(stream, buf[:n*size])
		over := errors.Is(err, io.EOF) || err == io.ErrUnexpectedEOF && got%size == 0
		if err != nil && !over {
			return fmt.Errorf("read page %d: %w", asked[0], remoteError(err))
		}
		came <- buf[:got]
		if over {
			return nil
		}
		asked = asked[n:]
	}
	return nil
}

// spoolPages puts consecutive pages that came into the spool, if they are what the round says.
func (d *replica) spoolPages(r *round, asked []uint32, data []byte, pages *fetched) error {
	size := int(r.pageSize)
	n := len(data) / size
	if n == 0 {
		return nil
	}
	sums := make([]uint64, n)
	for i := range sums {
		pgno := asked[i]
		sums[i] = pageSum(r.pageSize, pgno, data[i*size:(i+1)*size])
		if sums[i] != r.sums[pgno-1] {
			return fmt.Errorf("page %d has checksum %016x, not %016x: %w", pgno, sums[i], r.sums[pgno-1], errDiverged)
		}
	}
	if err := pages.put(asked[0], data, sums); err != nil {
		return err
	}
	d.svc.metrics.fetchedPages.Add(uint64(n))
	d.mu.Lock()
	d.progress.fetched += uint32(n)
	d.mu.Unlock()
	d.step("pages")
	return nil
}

// localSums returns the checksums of the pages that are here, 0 for one that cannot be read, nil if there is no file. They
// are only what to ask a peer for: what is installed is compared once more.
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
		for ; pgno <= snap.PageCount() && time.Now().Before(end); pgno++ {
			if snap.PageSize() != d.pageSize {
				break
			}
			var sum uint64
			if err := snap.ReadPage(pgno, buf); err == nil {
				sum = pageSum(d.pageSize, pgno, buf)
			}
			sums = append(sums, sum)
		}
		over := pgno > snap.PageCount() || snap.PageSize() != d.pageSize
		snap.Close()
		if over || ctx.Err() != nil {
			return sums, ctx.Err()
		}
	}
}

// localPin is how long the local copy is held still at a time.
const localPin = time.Second
