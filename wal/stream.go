package wal

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// AppendFrom is Append for a transaction that need not fit into memory: next
// returns its pages one after the other, and io.EOF after the last. A page's
// data is used until the call after, so next may use one buffer for all.
//
// The commit frame is written only after next has returned io.EOF: whoever
// checks the transaction as a whole does it there, and any other error leaves
// nothing of it visible. next may call ReadPage, which still reads the state
// before. Beside one batch of frames AppendFrom keeps four bytes per page.
func (t *Txn) AppendFrom(next func() (Page, error), pageCount uint32) (Fingerprint, error) {
	return t.appendFrom(next, nil, pageCount)
}

// AppendChecked is AppendFrom that reads back what it writes: check gets every
// page as the log has it, in their order, while the next ones are written, from
// another goroutine than next. The commit frame is written only after check has
// accepted all pages of the batches before; an error of check leaves nothing of
// the transaction visible. The data belongs to check until it returns.
func (t *Txn) AppendChecked(next func() (Page, error), check func(pgno uint32, data []byte) error, pageCount uint32) (Fingerprint, error) {
	return t.appendFrom(next, check, pageCount)
}

func (t *Txn) appendFrom(next func() (Page, error), check func(pgno uint32, data []byte) error, pageCount uint32) (Fingerprint, error) {
	if t.done {
		return Fingerprint{}, ErrClosed
	}
	if pageCount == 0 {
		return Fingerprint{}, fmt.Errorf("append: database of 0 pages: %w", ErrInvalid)
	}
	first, err := next()
	if errors.Is(err, io.EOF) {
		return Fingerprint{}, fmt.Errorf("append: no pages: %w", ErrInvalid)
	}
	if err != nil {
		return Fingerprint{}, fmt.Errorf("append: %w", err)
	}
	pageSize, err := t.check([]Page{first}, pageCount)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("append: %w", err)
	}
	if check == nil {
		return t.append(first, 1, pageSize, next, nil, pageCount)
	}
	back := newReadBack(t.h.wal, check, int(pageSize))
	defer back.stop()
	return t.append(first, 1, pageSize, next, back, pageCount)
}

// append appends page and what next returns after it, at least n pages in all.
func (t *Txn) append(page Page, n int, pageSize uint32, next func() (Page, error), back *readBack, pageCount uint32) (Fingerprint, error) {
	if err := t.restart(); err != nil {
		return Fingerprint{}, fmt.Errorf("append: restart log: %w", err)
	}
	hdr := t.hdr
	hdr.PageSize = pageSize
	for r := hashRegion(hdr.MaxFrame + 1); r <= hashRegion(hdr.MaxFrame+uint32(n)); r++ {
		if _, err := t.h.shm.Map(r); err != nil {
			return Fingerprint{}, fmt.Errorf("append: map wal-index region %d: %w", r, err)
		}
	}
	if hdr.MaxFrame == 0 {
		if err := t.writeHeader(&hdr); err != nil {
			return Fingerprint{}, fmt.Errorf("append: %w", err)
		}
	}
	pgnos, err := t.writeFrames(&hdr, page, next, back, pageCount)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("append: %w", err)
	}
	if err := t.index(pgnos); err != nil {
		return Fingerprint{}, fmt.Errorf("append: %w", err)
	}
	storeIndexHeader(t.mem, t.h.shm, hdr, t.between(StepBetween))
	t.hdr = hdr
	t.step(StepPublished)
	return hdr.Fingerprint(), nil
}

// writeFrames writes the frames of a transaction behind hdr.MaxFrame, sets
// hdr to the state after it and returns the page numbers. The frame of a page
// is put together when the next one is there: only then it is known whether it
// is the commit frame. What can fail comes before that one is written: the log
// never holds the commit frame of a transaction that failed, which a recovery
// would find.
func (t *Txn) writeFrames(hdr *IndexHeader, page Page, next func() (Page, error), back *readBack, pageCount uint32) ([]uint32, error) {
	batch := batches.Get().(*[MaxWrite]byte)
	defer batches.Put(batch)
	size := int(hdr.PageSize)
	frameSize := FrameHeaderSize + size
	off := frameOffset(hdr.MaxFrame+1, hdr.PageSize)
	sum, used := hdr.FrameSum, 0
	var pgnos []uint32
	mapped := hashRegion(hdr.MaxFrame + 1)
	for last := false; !last; {
		if page.Pgno == 0 || page.Pgno > pageCount {
			return nil, fmt.Errorf("page %d in a database of %d: %w", page.Pgno, pageCount, ErrInvalid)
		}
		if len(page.Data) != size {
			return nil, fmt.Errorf("page %d has %d bytes, the database's have %d: %w", page.Pgno, len(page.Data), size, ErrPageSize)
		}
		if uint64(len(pgnos)) >= math.MaxUint32/2-uint64(hdr.MaxFrame) {
			return nil, fmt.Errorf("%d pages after frame %d: log too long: %w", len(pgnos), hdr.MaxFrame, ErrInvalid)
		}
		frame := batch[used : used+frameSize]
		copy(frame[FrameHeaderSize:], page.Data)
		f := FrameHeader{Pgno: page.Pgno}
		pgnos = append(pgnos, page.Pgno)
		// The regions are mapped before the commit frame can be written.
		if r := hashRegion(hdr.MaxFrame + uint32(len(pgnos))); r != mapped {
			if _, err := t.h.shm.Map(r); err != nil {
				return nil, fmt.Errorf("map wal-index region %d: %w", r, err)
			}
			mapped = r
		}
		var err error
		if page, err = next(); errors.Is(err, io.EOF) {
			last, f.PageCount = true, pageCount
		} else if err != nil {
			return nil, err
		}
		sum = encodeFrame(frame, f, hdr.Salts, hdr.BigEndian, sum, frame[FrameHeaderSize:])
		used += frameSize
		if used+frameSize <= MaxWrite && !last {
			continue
		}
		if last && back != nil {
			if err := back.settle(); err != nil {
				return nil, err
			}
		}
		if _, err := t.h.wal.WriteAt(batch[:used], off); err != nil {
			return nil, fmt.Errorf("write frames at offset %d: %w", off, err)
		}
		t.step(StepFrames)
		if back != nil {
			back.add(pgnos[len(pgnos)-used/frameSize:], off)
		}
		if last && back != nil {
			if err := back.settle(); err != nil {
				return nil, errors.Join(err, t.dropFrame(off+int64(used-frameSize)))
			}
		}
		off += int64(used)
		used = 0
	}
	hdr.FrameSum = sum
	hdr.Change++
	hdr.MaxFrame += uint32(len(pgnos))
	hdr.PageCount = pageCount
	return pgnos, nil
}

// index enters frames behind the last published one into their hash tables.
func (t *Txn) index(pgnos []uint32) error {
	for i, pgno := range pgnos {
		n := t.hdr.MaxFrame + 1 + uint32(i)
		mem, err := t.h.shm.Map(hashRegion(n))
		if err != nil {
			return fmt.Errorf("map wal-index region %d: %w", hashRegion(n), err)
		}
		if err := insertFrame(mem, n, pgno, t.hdr.MaxFrame); err != nil {
			return err
		}
		t.step(StepIndexed)
	}
	return nil
}

// dropFrame makes a commit frame that must not count one that no recovery takes.
func (t *Txn) dropFrame(off int64) error {
	if _, err := t.h.wal.WriteAt(make([]byte, FrameHeaderSize), off); err != nil {
		return fmt.Errorf("take the frame at offset %d back: %w", off, err)
	}
	return nil
}
