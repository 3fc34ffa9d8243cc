package wal

import (
	"errors"
	"fmt"
	"io"
)

// Commit is a transaction found in a WAL.
type Commit struct {
	// First and Last are its frames; Last is the commit frame.
	First, Last uint32
	// PageCount is the size of the database after it.
	PageCount uint32
	// Pgnos are the page numbers of frames First..Last. A page may be there more
	// than once: the last frame counts. The slice is valid until the next call.
	Pgnos []uint32
}

// Reader walks the transactions of a WAL. It may be used on a log that grows:
// after io.EOF, Next looks again at the same place.
type Reader struct {
	r      io.ReaderAt
	header Header
	sum    Sum    // after frame last
	last   uint32 // the last commit frame returned
	frame  []byte
	pgnos  []uint32
}

// NewReader reads the header of the log r. An error that wraps [ErrCorrupt]
// means that the log holds no transaction, as an empty one.
func NewReader(r io.ReaderAt) (*Reader, error) {
	var b [HeaderSize]byte
	n, err := r.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read wal header: %w", err)
	}
	h, sum, err := DecodeHeader(b[:n])
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, header: h, sum: sum, frame: make([]byte, FrameHeaderSize+h.PageSize)}, nil
}

// Header returns the header of the log.
func (r *Reader) Header() Header { return r.header }

// Next returns the next transaction, or io.EOF when no valid commit frame
// follows: at the end, before a torn or unfinished transaction, and before
// frames of an earlier generation.
func (r *Reader) Next() (Commit, error) {
	r.pgnos = r.pgnos[:0]
	sum := r.sum
	for n := r.last + 1; n != 0; n++ {
		off := frameOffset(n, r.header.PageSize)
		got, err := r.r.ReadAt(r.frame, off)
		if got < len(r.frame) {
			if err == nil || errors.Is(err, io.EOF) {
				return Commit{}, io.EOF
			}
			return Commit{}, fmt.Errorf("read frame %d at offset %d: %w", n, off, err)
		}
		f, after, ok := decodeFrame(r.frame, r.header, sum)
		if !ok {
			return Commit{}, io.EOF
		}
		sum = after
		r.pgnos = append(r.pgnos, f.Pgno)
		if f.Commit() {
			c := Commit{First: r.last + 1, Last: n, PageCount: f.PageCount, Pgnos: r.pgnos}
			r.last, r.sum = n, sum
			return c, nil
		}
	}
	return Commit{}, io.EOF
}

// ReadFrame reads the page of frame n, one of a transaction that Next returned,
// into buf, which is one page long.
func (r *Reader) ReadFrame(n uint32, buf []byte) error {
	if n == 0 || n > r.last {
		return fmt.Errorf("read frame %d of %d: %w", n, r.last, ErrInvalid)
	}
	if len(buf) != int(r.header.PageSize) {
		return fmt.Errorf("read frame %d: buffer of %d bytes for pages of %d: %w", n, len(buf), r.header.PageSize, ErrPageSize)
	}
	off := frameOffset(n, r.header.PageSize) + FrameHeaderSize
	got, err := r.r.ReadAt(buf, off)
	if got < len(buf) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read frame %d at offset %d: %w", n, off, err)
	}
	return nil
}

// ReadPages reads the final image of each page of c, in the order of their last
// frames, leaving out pages beyond the end of the database (spilled to the log
// and then cut off).
func (r *Reader) ReadPages(c Commit) ([]Page, error) {
	newest := make(map[uint32]uint32, len(c.Pgnos))
	for i, pgno := range c.Pgnos {
		newest[pgno] = c.First + uint32(i)
	}
	pages := make([]Page, 0, len(newest))
	for i, pgno := range c.Pgnos {
		n := c.First + uint32(i)
		if newest[pgno] != n || pgno > c.PageCount {
			continue
		}
		data := make([]byte, r.header.PageSize)
		if err := r.ReadFrame(n, data); err != nil {
			return nil, err
		}
		pages = append(pages, Page{Pgno: pgno, Data: data})
	}
	return pages, nil
}
