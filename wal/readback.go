package wal

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// readBack reads frames of the log again behind the one who writes them, on a
// goroutine of its own, and gives their pages to a check.
type readBack struct {
	wal      File
	check    func(pgno uint32, data []byte) error
	pageSize int
	batches  chan frameBatch
	pending  sync.WaitGroup // of batches
	ended    chan struct{}

	mu  sync.Mutex
	err error // the first
}

// frameBatch is frames that lie side by side from an offset on.
type frameBatch struct {
	pgnos []uint32
	off   int64
}

// readBackAhead is how many batches may wait.
const readBackAhead = 8

func newReadBack(wal File, check func(pgno uint32, data []byte) error, pageSize int) *readBack {
	r := &readBack{wal: wal, check: check, pageSize: pageSize, batches: make(chan frameBatch, readBackAhead), ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		buf := batches.Get().(*[MaxWrite]byte)
		defer batches.Put(buf)
		for b := range r.batches {
			if r.failed() == nil {
				if err := r.read(b, buf[:]); err != nil {
					r.mu.Lock()
					r.err = err
					r.mu.Unlock()
				}
			}
			r.pending.Done()
		}
	}()
	return r
}

func (r *readBack) read(b frameBatch, buf []byte) error {
	size := FrameHeaderSize + r.pageSize
	buf = buf[:len(b.pgnos)*size]
	if n, err := r.wal.ReadAt(buf, b.off); n < len(buf) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read frames at offset %d back: %w", b.off, err)
	}
	for i, pgno := range b.pgnos {
		if err := r.check(pgno, buf[i*size+FrameHeaderSize:(i+1)*size]); err != nil {
			return fmt.Errorf("frame at offset %d: %w", b.off+int64(i*size), err)
		}
	}
	return nil
}

func (r *readBack) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// add has frames read that were written. pgnos is not changed any more.
func (r *readBack) add(pgnos []uint32, off int64) {
	r.pending.Add(1)
	r.batches <- frameBatch{pgnos, off}
}

// settle returns when all that was added is read, and the first error.
func (r *readBack) settle() error {
	r.pending.Wait()
	return r.failed()
}

// stop ends the goroutine.
func (r *readBack) stop() {
	close(r.batches)
	<-r.ended
}
