package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	minBackoff    = 100 * time.Microsecond
	maxBackoff    = 2 * time.Millisecond
	maxRecoveries = 16
	peekAttempts  = 64
)

// Handle appends transactions to, and reads pages of, one live database whose
// files other processes use through SQLite at the same time. Its methods may be
// called from several goroutines; at most one [Txn] is open at a time.
type Handle struct {
	db, wal File
	shm     Shm
	locks   Locks
	opts    Options

	// turn is empty while a transaction is open or being begun. Lock slots belong to a connection, so they do not exclude
	// goroutines that share it.
	turn chan struct{}
	// restart is held while the log is restarted and while a snapshot is pinned:
	// between its first two stores a restarted log looks like one that nobody
	// may restart, see Pin.
	restart sync.Mutex
	// life is held for reading while shared memory or files are used without a
	// turn, and for writing to close the handle.
	life   sync.RWMutex
	closed bool
}

// NewHandle returns a handle on the database with these files.
func NewHandle(db, wal File, shm Shm, locks Locks, opts Options) *Handle {
	h := &Handle{db: db, wal: wal, shm: shm, locks: locks, opts: opts, turn: make(chan struct{}, 1)}
	h.turn <- struct{}{}
	return h
}

// acquire keeps transactions of this handle out until release, without a lock
// that other processes see. It waits for an open transaction until ctx ends.
func (h *Handle) acquire(ctx context.Context) error {
	select {
	case <-h.turn:
	default:
		select {
		case <-h.turn:
		case <-ctx.Done():
			return fmt.Errorf("wait for the handle: %w (%w)", ErrBusy, context.Cause(ctx))
		}
	}
	if h.closed {
		h.turn <- struct{}{}
		return ErrClosed
	}
	return nil
}

// release ends acquire.
func (h *Handle) release() { h.turn <- struct{}{} }

// Close makes every later call fail with [ErrClosed]. It waits for an open
// transaction and for calls in progress, not for snapshots.
func (h *Handle) Close() error {
	if err := h.acquire(context.Background()); err != nil {
		return nil // closed before
	}
	h.life.Lock()
	h.closed = true
	h.life.Unlock()
	h.release()
	return nil
}

// Begin takes the write lock of the database. While another connection holds it,
// Begin tries again until ctx ends; the error wraps [ErrBusy] then. The
// transaction must be ended.
func (h *Handle) Begin(ctx context.Context) (*Txn, error) {
	var timer *time.Timer
	wait, recoveries := minBackoff, 0
	for {
		if err := h.acquire(ctx); err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
		t, err := h.tryBegin()
		if err == nil {
			return t, nil
		}
		if errors.Is(err, ErrUnstable) && h.opts.Recover != nil && recoveries < maxRecoveries {
			recoveries++
			if err = h.opts.Recover(); err == nil {
				h.release()
				continue
			}
		}
		h.release()
		if !errors.Is(err, ErrBusy) {
			return nil, fmt.Errorf("begin: %w", err)
		}
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("begin: write lock: %w (%w)", ErrBusy, context.Cause(ctx))
		}
		wait = min(wait*3/2, maxBackoff)
	}
}

// tryBegin takes the write lock and reads the header; it holds nothing when it
// fails.
func (h *Handle) tryBegin() (*Txn, error) {
	if err := h.locks.Lock(slotWrite, 1, Exclusive); err != nil {
		return nil, err
	}
	mem, err := h.shm.Map(0)
	if err != nil {
		err = fmt.Errorf("map wal-index region 0: %w", err)
	} else {
		var hdr IndexHeader
		if hdr, err = loadIndexHeader(mem, h.shm); err == nil {
			return &Txn{h: h, mem: mem, hdr: hdr}, nil
		}
	}
	if unlockErr := h.locks.Unlock(slotWrite, 1, Exclusive); unlockErr != nil {
		return nil, fmt.Errorf("release write lock: %w", unlockErr)
	}
	return nil, err
}

// peek reads header and backfilled frames of the same moment, without a lock.
func (h *Handle) peek() (hdr IndexHeader, backfilled uint32, err error) {
	mem, err := h.shm.Map(0)
	if err != nil {
		return IndexHeader{}, 0, fmt.Errorf("map wal-index region 0: %w", err)
	}
	for range peekAttempts {
		if hdr, err = loadIndexHeader(mem, h.shm); err != nil {
			if errors.Is(err, ErrUnstable) {
				continue
			}
			return IndexHeader{}, 0, err
		}
		backfilled = loadWord(mem, backfillOffset)
		again, err := loadIndexHeader(mem, h.shm)
		if err == nil && again == hdr {
			return hdr, backfilled, nil
		}
	}
	return IndexHeader{}, 0, fmt.Errorf("read wal-index header: %w", ErrUnstable)
}

// Peek returns the state of the database without taking a lock: its
// fingerprint, page size (0 if the wal-index does not know it yet) and the
// number of frames of the log that are in the database file.
func (h *Handle) Peek() (f Fingerprint, pageSize, backfilled uint32, err error) {
	h.life.RLock()
	defer h.life.RUnlock()
	if h.closed {
		return Fingerprint{}, 0, 0, ErrClosed
	}
	hdr, backfilled, err := h.peek()
	if err != nil {
		return Fingerprint{}, 0, 0, err
	}
	return hdr.Fingerprint(), hdr.PageSize, backfilled, nil
}

// MarkNotUsed is the mark of a lock slot that no reader may use before it has set another one.
const MarkNotUsed = 0xffffffff

// Marks is how far the log is copied, and what readers may still need of it.
type Marks struct {
	MaxFrame   uint32 // last frame of the log
	Backfilled uint32 // frames that are in the database file
	Salts      [8]byte
	// Read are the marks of lock slots 3 to 7: a reader that holds slot 3 uses the database file alone, one
	// that holds another slot the log up to that frame. A slot that nobody holds means nothing.
	Read [readMarks]uint32
}

// Marks reads the marks without taking a lock.
func (h *Handle) Marks() (Marks, error) {
	h.life.RLock()
	defer h.life.RUnlock()
	if h.closed {
		return Marks{}, ErrClosed
	}
	hdr, backfilled, err := h.peek()
	if err != nil {
		return Marks{}, err
	}
	m := Marks{MaxFrame: hdr.MaxFrame, Backfilled: backfilled, Salts: hdr.Salts}
	mem, err := h.shm.Map(0)
	if err != nil {
		return Marks{}, fmt.Errorf("map wal-index region 0: %w", err)
	}
	for i := range m.Read {
		m.Read[i] = loadWord(mem, readMarkOffset+4*i)
	}
	return m, nil
}

// Epoch returns the word by which the node tells open handles that they are
// stale.
func (h *Handle) Epoch() (uint32, error) {
	h.life.RLock()
	defer h.life.RUnlock()
	if h.closed {
		return 0, ErrClosed
	}
	mem, err := h.shm.Map(0)
	if err != nil {
		return 0, fmt.Errorf("map wal-index region 0: %w", err)
	}
	return loadWord(mem, epochOffset), nil
}

// SetEpoch sets it.
func (h *Handle) SetEpoch(epoch uint32) error {
	h.life.RLock()
	defer h.life.RUnlock()
	if h.closed {
		return ErrClosed
	}
	mem, err := h.shm.Map(0)
	if err != nil {
		return fmt.Errorf("map wal-index region 0: %w", err)
	}
	storeWord(mem, epochOffset, epoch)
	h.shm.Barrier()
	return nil
}

// geometry returns page size and page count of the state hdr shows. An empty
// log may not know them: the database file tells then.
func (h *Handle) geometry(hdr IndexHeader) (pageSize, pageCount uint32, err error) {
	pageSize, pageCount = hdr.PageSize, hdr.PageCount
	if pageSize != 0 && pageCount != 0 {
		return pageSize, pageCount, nil
	}
	size, err := h.db.Size()
	if err != nil {
		return 0, 0, fmt.Errorf("size of database file: %w", err)
	}
	if size == 0 {
		return pageSize, pageCount, nil
	}
	if pageSize == 0 {
		var b [18]byte
		if _, err := h.db.ReadAt(b[:], 0); err != nil {
			return 0, 0, fmt.Errorf("read database header: %w", err)
		}
		n := uint32(binary.BigEndian.Uint16(b[16:]))
		if pageSize = n&0xfe00 | n&1<<16; !ValidPageSize(pageSize) {
			return 0, 0, fmt.Errorf("read database header: page size %d: %w", n, ErrCorrupt)
		}
	}
	if pageCount == 0 {
		pageCount = uint32(size / int64(pageSize))
	}
	return pageSize, pageCount, nil
}

// readPage reads the image of page pgno: its last frame in minFrame..maxFrame,
// else the database file.
func (h *Handle) readPage(pgno, minFrame, maxFrame, pageSize uint32, buf []byte) error {
	if pgno == 0 {
		return fmt.Errorf("read page 0: %w", ErrInvalid)
	}
	if len(buf) != int(pageSize) {
		return fmt.Errorf("read page %d: buffer of %d bytes for pages of %d: %w", pgno, len(buf), pageSize, ErrPageSize)
	}
	n, err := findFrame(h.shm, pgno, minFrame, maxFrame)
	if err != nil {
		return err
	}
	if n != 0 {
		got, err := h.wal.ReadAt(buf, frameOffset(n, pageSize)+FrameHeaderSize)
		if got < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read page %d from frame %d: %w", pgno, n, err)
		}
		return nil
	}
	got, err := h.db.ReadAt(buf, int64(pgno-1)*int64(pageSize))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read page %d from database file: %w", pgno, err)
	}
	clear(buf[got:])
	return nil
}

// readPages is readPage for consecutive pages from pgno on, as many as fill buf.
// What lies side by side in the database file is read at once, at most MaxWrite
// bytes of it.
func (h *Handle) readPages(pgno, minFrame, maxFrame, pageSize uint32, buf []byte) error {
	size := int(pageSize)
	if size == 0 || len(buf) == 0 || len(buf)%size != 0 {
		return fmt.Errorf("read pages from %d: buffer of %d bytes for pages of %d: %w", pgno, len(buf), pageSize, ErrPageSize)
	}
	for len(buf) > 0 {
		n := 0 // bytes of pages that the log does not have
		for n+size <= len(buf) && (n == 0 || n+size <= MaxWrite) {
			frame, err := findFrame(h.shm, pgno+uint32(n/size), minFrame, maxFrame)
			if err != nil {
				return err
			}
			if frame != 0 {
				break
			}
			n += size
		}
		if n <= size { // in the log, or alone
			n = size
			if err := h.readPage(pgno, minFrame, maxFrame, pageSize, buf[:n]); err != nil {
				return err
			}
		} else {
			got, err := h.db.ReadAt(buf[:n], int64(pgno-1)*int64(pageSize))
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read pages %d to %d from database file: %w", pgno, pgno+uint32(n/size)-1, err)
			}
			clear(buf[got:n])
		}
		pgno += uint32(n / size)
		buf = buf[n:]
	}
	return nil
}
