package wal

import "fmt"

// Snapshot is a state of the database that can be read without any lock, because
// nobody checkpoints while it is open. Its methods may be called from several
// goroutines.
//
// Why its pages stay where they are: the log is restarted only when all of it is
// in the database file, and only a checkpoint brings it there. So either some
// frames are not in the file when the snapshot is taken, then the log cannot be
// restarted and the frames stay; or all are, then nothing is read from the log,
// and the file is written by checkpoints only.
type Snapshot struct {
	h                   *Handle
	hdr                 IndexHeader
	pageSize, pageCount uint32
	minFrame, maxFrame  uint32
	closed              bool // under h.life
}

// Pin returns the newest state as a snapshot. It takes no lock; the caller (or
// Options.Pin) sees to it that no checkpoint runs until the snapshot is closed.
func (h *Handle) Pin() (*Snapshot, error) {
	if h.opts.Pin != nil {
		if err := h.opts.Pin(); err != nil {
			return nil, fmt.Errorf("pin: %w", err)
		}
	}
	s, err := h.pin()
	if err != nil {
		if h.opts.Unpin != nil {
			h.opts.Unpin()
		}
		return nil, fmt.Errorf("pin: %w", err)
	}
	return s, nil
}

func (h *Handle) pin() (*Snapshot, error) {
	h.life.RLock()
	defer h.life.RUnlock()
	if h.closed {
		return nil, ErrClosed
	}
	// Our own restart sets backfilled to 0 before the header: a snapshot taken in
	// between would trust frames that are about to be overwritten. SQLite's own
	// order is the other way round, which gives maxFrame 0 in between.
	h.restart.Lock()
	hdr, backfilled, err := h.peek()
	h.restart.Unlock()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{h: h, hdr: hdr, minFrame: 1}
	if backfilled < hdr.MaxFrame {
		s.minFrame, s.maxFrame = backfilled+1, hdr.MaxFrame
	}
	if s.pageSize, s.pageCount, err = h.geometry(hdr); err != nil {
		return nil, err
	}
	return s, nil
}

// Fingerprint identifies the state.
func (s *Snapshot) Fingerprint() Fingerprint { return s.hdr.Fingerprint() }

// PageCount is the size of the database.
func (s *Snapshot) PageCount() uint32 { return s.pageCount }

// PageSize is the size of its pages in bytes, 0 for an empty file.
func (s *Snapshot) PageSize() uint32 { return s.pageSize }

// ReadPage reads page pgno into buf, which is one page long. A page that neither
// the log nor the file has is zeros.
func (s *Snapshot) ReadPage(pgno uint32, buf []byte) error {
	s.h.life.RLock()
	defer s.h.life.RUnlock()
	if s.closed || s.h.closed {
		return ErrClosed
	}
	return s.h.readPage(pgno, s.minFrame, s.maxFrame, s.pageSize, buf)
}

// ReadPages is ReadPage for consecutive pages from pgno on, as many as fill buf.
func (s *Snapshot) ReadPages(pgno uint32, buf []byte) error {
	s.h.life.RLock()
	defer s.h.life.RUnlock()
	if s.closed || s.h.closed {
		return ErrClosed
	}
	if pgno == 0 {
		return fmt.Errorf("read page 0: %w", ErrInvalid)
	}
	return s.h.readPages(pgno, s.minFrame, s.maxFrame, s.pageSize, buf)
}

// Close lets checkpoints run again.
func (s *Snapshot) Close() error {
	s.h.life.Lock()
	defer s.h.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.h.opts.Unpin != nil {
		s.h.opts.Unpin()
	}
	return nil
}

// LogPages calls f with the number of each page that the snapshot reads from the
// log; of all others it reads what is in the file. A number may come several
// times.
func (s *Snapshot) LogPages(f func(pgno uint32)) error {
	s.h.life.RLock()
	defer s.h.life.RUnlock()
	if s.closed || s.h.closed {
		return ErrClosed
	}
	for n := s.minFrame; n <= s.maxFrame; n++ {
		region := hashRegion(n)
		mem, err := s.h.shm.Map(region)
		if err != nil {
			return fmt.Errorf("map wal-index region %d: %w", region, err)
		}
		f(loadWord(mem, pagesOffset(region)+4*int(n-regionBase(region)-1)))
	}
	return nil
}
