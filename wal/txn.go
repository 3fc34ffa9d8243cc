package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// Txn is a write transaction on a live database: it holds the write lock. It
// belongs to one goroutine at a time.
type Txn struct {
	h    *Handle
	mem  []byte // region 0 of the wal-index
	hdr  IndexHeader
	done bool
}

// batches are buffers in which frames are put together for one write.
var batches = sync.Pool{New: func() any { return new([MaxWrite]byte) }}

// Fingerprint identifies the state the transaction sees, its own appended pages
// included.
func (t *Txn) Fingerprint() Fingerprint { return t.hdr.Fingerprint() }

// PageSize returns the size of a page in bytes, or 0 for an empty file.
func (t *Txn) PageSize() uint32 {
	size, _, err := t.h.geometry(t.hdr)
	if err != nil {
		return 0
	}
	return size
}

// PageCount returns the size of the database in pages.
func (t *Txn) PageCount() uint32 {
	_, count, err := t.h.geometry(t.hdr)
	if err != nil {
		return 0
	}
	return count
}

// ReadPage reads the newest image of page pgno into buf, which is one page long.
// A page that neither the log nor the file has is zeros.
func (t *Txn) ReadPage(pgno uint32, buf []byte) error {
	if t.done {
		return ErrClosed
	}
	// The log cannot be restarted while we hold the write lock, so every frame in
	// it is good, checkpointed or not.
	return t.h.readPage(pgno, 1, t.hdr.MaxFrame, uint32(len(buf)), buf)
}

// ReadStored is ReadPage that takes what is in the database file for every page
// of which the newest frame was copied there: so do readers that begin when all
// frames are, and all once the log is restarted.
func (t *Txn) ReadStored(pgno uint32, buf []byte) error {
	if t.done {
		return ErrClosed
	}
	return t.h.readPage(pgno, loadWord(t.mem, backfillOffset)+1, t.hdr.MaxFrame, uint32(len(buf)), buf)
}

// End releases the write lock.
func (t *Txn) End() error {
	if t.done {
		return nil
	}
	t.done = true
	err := t.h.locks.Unlock(slotWrite, 1, Exclusive)
	t.h.release()
	if err != nil {
		return fmt.Errorf("end: release write lock: %w", err)
	}
	return nil
}

// Append makes pages, all of one size, the next transaction of the log, after
// which the database has pageCount pages. Every process sees it as soon as
// Append returns, and none sees anything of it when Append fails. It is not
// synced. The page data is not kept.
func (t *Txn) Append(pages []Page, pageCount uint32) (Fingerprint, error) {
	if t.done {
		return Fingerprint{}, ErrClosed
	}
	pageSize, err := t.check(pages, pageCount)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("append: %w", err)
	}
	i := 0
	return t.append(pages[0], len(pages), pageSize, func() (Page, error) {
		if i++; i == len(pages) {
			return Page{}, io.EOF
		}
		return pages[i], nil
	}, nil, pageCount)
}

// check returns the page size of a transaction that can be appended.
func (t *Txn) check(pages []Page, pageCount uint32) (uint32, error) {
	if len(pages) == 0 || pageCount == 0 {
		return 0, fmt.Errorf("%d pages, database of %d: %w", len(pages), pageCount, ErrInvalid)
	}
	if uint64(len(pages)) > math.MaxUint32/2-uint64(t.hdr.MaxFrame) {
		return 0, fmt.Errorf("%d pages after frame %d: log too long: %w", len(pages), t.hdr.MaxFrame, ErrInvalid)
	}
	size := uint32(len(pages[0].Data))
	have, _, err := t.h.geometry(t.hdr)
	if err != nil {
		return 0, err
	}
	if !ValidPageSize(size) || have != 0 && have != size {
		return 0, fmt.Errorf("page %d has %d bytes, the database's have %d: %w", pages[0].Pgno, len(pages[0].Data), have, ErrPageSize)
	}
	for _, p := range pages {
		if p.Pgno == 0 || p.Pgno > pageCount {
			return 0, fmt.Errorf("page %d in a database of %d: %w", p.Pgno, pageCount, ErrInvalid)
		}
		if len(p.Data) != int(size) {
			return 0, fmt.Errorf("page %d has %d bytes, page %d has %d: %w", p.Pgno, len(p.Data), pages[0].Pgno, size, ErrPageSize)
		}
	}
	return size, nil
}

// restart lets the log begin again at its start if all of it is in the database
// file and nobody reads it, as SQLite's walRestartLog does.
func (t *Txn) restart() error {
	backfilled := func() uint32 { return loadWord(t.mem, backfillOffset) }
	if t.hdr.MaxFrame == 0 || backfilled() != t.hdr.MaxFrame {
		return nil
	}
	locks := t.h.locks
	// A reader of slot 3 keeps checkpoints out.
	if err := locks.Lock(slotRead0, 1, Shared); err != nil {
		return ignoreBusy(err)
	}
	err := locks.Lock(slotRead1, readSlots, Exclusive)
	if err != nil {
		err = ignoreBusy(err)
	} else {
		if backfilled() == t.hdr.MaxFrame {
			t.publishRestart()
		}
		err = locks.Unlock(slotRead1, readSlots, Exclusive)
	}
	if unlockErr := locks.Unlock(slotRead0, 1, Shared); err == nil {
		err = unlockErr
	}
	return err
}

func ignoreBusy(err error) error {
	if errors.Is(err, ErrBusy) {
		return nil
	}
	return err
}

// publishRestart needs the lock slots of all readers of the log. Backfilled goes
// to 0 first: if we die before the header, the log is merely copied again. The
// other way round, frames of the new log would pass for copied ones.
func (t *Txn) publishRestart() {
	t.h.restart.Lock()
	defer t.h.restart.Unlock()
	storeWord(t.mem, backfillOffset, 0)
	t.h.shm.Barrier()
	t.step(StepRestartBackfill)
	next := t.hdr
	next.MaxFrame = 0
	binary.BigEndian.PutUint32(next.Salts[0:], binary.BigEndian.Uint32(next.Salts[0:])+1)
	randomSalt(next.Salts[4:])
	storeIndexHeader(t.mem, t.h.shm, next, t.between(StepRestartBetween))
	t.hdr = next
	t.step(StepRestarted)
	storeWord(t.mem, attemptedOffset, 0)
	storeWord(t.mem, readMarkOffset+4, 0)
	for i := 2; i < readMarks; i++ {
		storeWord(t.mem, readMarkOffset+4*i, MarkNotUsed)
	}
}

// randomSalt cannot fail: crypto/rand ends the process instead.
func randomSalt(b []byte) { _, _ = rand.Read(b) }

// writeHeader starts an empty log. The header is synced before any frame can
// be: else frames of the former log could come back after a power failure.
func (t *Txn) writeHeader(next *IndexHeader) error {
	if next.Salts == ([8]byte{}) {
		randomSalt(next.Salts[:])
	}
	var b [HeaderSize]byte
	h := Header{BigEndian: hostBig, PageSize: next.PageSize, Salts: next.Salts}
	if n, _ := t.h.wal.ReadAt(b[:], 0); n == HeaderSize {
		if old, _, err := DecodeHeader(b[:]); err == nil {
			h.Sequence = old.Sequence + 1
		}
	}
	next.BigEndian, next.FrameSum = h.BigEndian, h.Encode(b[:])
	if _, err := t.h.wal.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("write wal header: %w", err)
	}
	if err := t.h.wal.Sync(); err != nil {
		return fmt.Errorf("sync wal header: %w", err)
	}
	t.step(StepHeader)
	return nil
}

func (t *Txn) step(s Step) {
	if t.h.opts.Step != nil {
		t.h.opts.Step(s)
	}
}

// between returns the call to make between the copies of a header, if any.
func (t *Txn) between(s Step) func() {
	if t.h.opts.Step == nil {
		return nil
	}
	return func() { t.h.opts.Step(s) }
}
