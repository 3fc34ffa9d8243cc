package replicate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
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
	d.fenced = fenced
	d.fenceKnown = time.Now()
	d.listLocked()
	d.known = false
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

// heal replaces the local copy by a peer's and lifts the fence. It tries until it succeeds.
func (d *replica) heal() {
	defer func() {
		d.mu.Lock()
		d.healing = false
		d.mu.Unlock()
	}()
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
			return
		}
		if errors.Is(err, ErrDeleted) {
			return // and so will this node decide
		}
		d.mu.Lock()
		d.healErr = err
		d.mu.Unlock()
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
}

// catchUp fetches the whole database from a peer that is at the decided position or later, appends the
// pages that differ as one transaction under open readers, and verifies the checksum of the bytes read
// back (RULES A5).
//
// A restore may not wait for an application that holds native slot 0: with hold set, and when the lock cannot be
// had within a moment, the image is kept, durably, and installed once the application lets go.
func (d *replica) catchUp(ctx context.Context, hold bool) error {
	d.mu.Lock()
	if d.deleted || d.removed {
		d.mu.Unlock()
		return ErrDeleted
	}
	at := max(d.decided.TXID, d.base.TXID)
	d.mu.Unlock()
	var errs []error
	for _, peer := range d.svc.peersLeaderLast() {
		img, err := d.fetch(ctx, peer, at)
		if err != nil {
			errs = append(errs, fmt.Errorf("from node %s: %w", peer, err))
			continue
		}
		err = d.install(ctx, img, hold)
		if errors.Is(err, errHeld) && hold {
			if err = d.keep(img); err == nil {
				return nil
			}
		}
		img.close()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return errAlone
	}
	return errors.Join(errs...)
}

// errAlone says that nobody can heal this node.
var errAlone = errors.New("the cluster has no other node to fetch the database from: it can be read as it is, save what is needed" +
	" (sqlite3 .dump of the file, or VACUUM INTO), delete the database with --force and create it again")

// image is a database as a peer sent it, spooled to a file of its own.
type image struct {
	file      *os.File
	position  Position
	pageSize  uint32
	pageCount uint32
	sums      sumTable
}

func (m *image) close() {
	m.file.Close()
	os.Remove(m.file.Name())
}

// fetchHeaderSize is the head of a fetch stream: TXID, checksum, page size, page count. After it come
// the pages in order, the lock page as zeros.
const fetchHeaderSize = 8 + 8 + 4 + 4

func (d *replica) fetch(ctx context.Context, peer string, at TXID) (_ *image, err error) {
	req := make([]byte, 24)
	copy(req, d.id[:])
	binary.LittleEndian.PutUint64(req[16:], uint64(at))
	stream, err := d.svc.port.Stream(ctx, peer, methodFetch, req)
	if err != nil {
		return nil, remoteError(err)
	}
	defer stream.Close()
	in := bufio.NewReaderSize(stream, 1<<20)
	var head [fetchHeaderSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, fmt.Errorf("read the head of database %q: %w", d.name, remoteError(err))
	}
	m := &image{
		position: Position{TXID(binary.LittleEndian.Uint64(head[0:])), Checksum(binary.LittleEndian.Uint64(head[8:]))},
		pageSize: binary.LittleEndian.Uint32(head[16:]), pageCount: binary.LittleEndian.Uint32(head[20:]),
	}
	if m.pageSize != d.pageSize || m.pageCount == 0 || m.position.TXID < at {
		return nil, fmt.Errorf("peer offers %d pages of %d bytes at transaction %s, wanted pages of %d bytes at %s or later",
			m.pageCount, m.pageSize, m.position.TXID, d.pageSize, at)
	}
	if err := os.MkdirAll(d.svc.spoolDir(), 0o770); err != nil {
		return nil, err
	}
	m.file, err = os.CreateTemp(d.svc.spoolDir(), "fetch-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	out := bufio.NewWriterSize(m.file, 1<<20)
	page := make([]byte, m.pageSize)
	acc := uint64(snapshot.ChecksumFlag)
	for pgno := uint32(1); pgno <= m.pageCount; pgno++ {
		if _, err := io.ReadFull(in, page); err != nil {
			return nil, fmt.Errorf("read page %d of %d: %w", pgno, m.pageCount, err)
		}
		s := pageSum(m.pageSize, pgno, page)
		m.sums = append(m.sums, s)
		acc ^= s
		if _, err := out.Write(page); err != nil {
			return nil, fmt.Errorf("spool page %d: %w", pgno, err)
		}
	}
	if sum := Checksum(acc | snapshot.ChecksumFlag); sum != m.position.Checksum {
		return nil, fmt.Errorf("the pages sent have checksum %s, not %s: %w", sum, m.position.Checksum, errDiverged)
	}
	return m, out.Flush()
}

// errHeld says that an application holds native slot 0, or that somebody waits for it.
var errHeld = errors.New("an application holds the native write lock of this node's copy")

const (
	installPatience = 30 * time.Second
	holdPatience    = 2 * time.Second
)

// install makes the local copy equal to the image. It waits for native slot 0, with hold only for a moment.
func (d *replica) install(ctx context.Context, m *image, hold bool) error {
	patience := installPatience
	if hold {
		patience = holdPatience
	}
	wctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := d.lockIO(wctx)
	if err == nil {
		defer d.ioMu.Unlock()
		err = d.installIO(wctx, m)
	}
	if err != nil && wctx.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errHeld, err)
	}
	return err
}

func (d *replica) installIO(ctx context.Context, m *image) error {
	d.mu.Lock()
	known, pos, fenced := d.known, d.position, d.fenced != nil
	d.mu.Unlock()
	if known && pos.TXID >= m.position.TXID {
		return nil
	}
	live, err := d.openIO()
	if err != nil {
		if !errors.Is(err, ErrUnusable) {
			return err
		}
		if live, err = d.recreateIO(err); err != nil {
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
	var pages []wal.Page
	buf := make([]byte, m.pageSize)
	for pgno := uint32(1); pgno <= m.pageCount; pgno++ {
		want := m.sums[pgno-1]
		if want == 0 { // the lock page
			continue
		}
		if pgno <= txn.PageCount() {
			if err := txn.ReadPage(pgno, buf); err == nil && pageSum(m.pageSize, pgno, buf) == want {
				continue
			}
		}
		data := make([]byte, m.pageSize)
		if _, err := m.file.ReadAt(data, int64(pgno-1)*int64(m.pageSize)); err != nil {
			return fmt.Errorf("read page %d from the spool: %w", pgno, err)
		}
		pages = append(pages, wal.Page{Pgno: pgno, Data: data})
	}
	fp := txn.Fingerprint()
	if len(pages) == 0 && txn.PageCount() != m.pageCount {
		data := make([]byte, m.pageSize) // a WAL transaction that only changes the size carries page 1
		if _, err := m.file.ReadAt(data, 0); err != nil {
			return fmt.Errorf("read page 1 from the spool: %w", err)
		}
		pages = append(pages, wal.Page{Pgno: 1, Data: data})
	}
	if len(pages) > 0 {
		if fp, err = txn.Append(pages, m.pageCount); err != nil {
			return fmt.Errorf("append %d pages: %w", len(pages), err)
		}
	}
	sums, sum, err := readSums(txn, m.pageSize)
	if err != nil {
		return err
	}
	if sum != m.position.Checksum {
		return fmt.Errorf("after catching up the files have checksum %s, the peer %s: %w", sum, m.position, errDiverged)
	}
	if fenced {
		if err := nextEpoch(live); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sums, d.known, d.fenced, d.healErr = sums, true, nil, nil
	d.svc.metrics.fetchedPages.Add(uint64(len(pages)))
	d.advanceLocked(m.position, fp)
	d.dropKeptLocked()
	return nil
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

// recreateIO starts over with an empty file when the old one cannot be opened at all. Nobody has it open.
func (d *replica) recreateIO(cause error) (LiveFile, error) {
	d.mu.Lock()
	open := len(d.handles)
	d.mu.Unlock()
	if open > 0 {
		return nil, fmt.Errorf("%w; %d handles have it open and must close first", cause, open)
	}
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(d.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w; set the damaged file aside: %w", cause, err)
		}
	}
	return d.openIO()
}

// serveFetch sends the whole database at TXID at or later. See fetch.
func (s *Service) serveFetch(ctx context.Context, _ string, req []byte, w io.Writer) error {
	if len(req) != 24 {
		return fmt.Errorf("fetch request of %d bytes, want 24", len(req))
	}
	id := DatabaseID(req[:16])
	d, ok := s.replica(id)
	if !ok {
		if name, index, gone := s.fsm.Tombstone(id); gone {
			return fmt.Errorf("database %q was deleted at log index %d: %w", name, index, ErrDeleted)
		}
		return fmt.Errorf("database %s: %w", id, ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	snap, pos, err := d.pin(ctx, TXID(binary.LittleEndian.Uint64(req[16:])))
	if err != nil {
		return err
	}
	defer snap.Close()
	out := bufio.NewWriterSize(w, 1<<20)
	var head [fetchHeaderSize]byte
	binary.LittleEndian.PutUint64(head[0:], uint64(pos.TXID))
	binary.LittleEndian.PutUint64(head[8:], uint64(pos.Checksum))
	binary.LittleEndian.PutUint32(head[16:], snap.PageSize())
	binary.LittleEndian.PutUint32(head[20:], snap.PageCount())
	if _, err := out.Write(head[:]); err != nil {
		return err
	}
	page := make([]byte, snap.PageSize())
	for pgno := uint32(1); pgno <= snap.PageCount(); pgno++ {
		if err := snap.ReadPage(pgno, page); err != nil {
			return fmt.Errorf("read page %d of database %q: %w", pgno, d.name, err)
		}
		if pageSum(snap.PageSize(), pgno, page) == 0 {
			clear(page)
		}
		if _, err := out.Write(page); err != nil {
			return err
		}
	}
	return out.Flush()
}

func (s *Service) spoolDir() string { return filepath.Join(s.opts.Dir, "spool") }
