package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/wal"
)

// Encoder writes the LTX file of one transaction page by page: the bytes that
// EncodeTransaction makes, for a transaction that need not fit into memory.
// Beside one page it keeps the page index, some ten bytes a page.
type Encoder struct {
	w      io.Writer
	order  pageOrder
	state  uint64
	shift  *pageShift
	packer *Packer
	index  []byte
	at     int64
	pages  int
	err    error // of a write: nothing more can be written
}

// PackedPage is a page as it stands in an LTX file, whatever else is in that.
type PackedPage struct {
	Pgno  uint32
	Image uint64 // state of the file's checksum over the page alone
	Bytes []byte // header and LZ4 block
}

// Packer makes packed pages. It is for one goroutine.
type Packer struct {
	pageSize   int
	compressor *lz4.Compressor
	frame      []byte // room for the largest
}

// NewPacker returns a packer for pages of a valid size.
func NewPacker(pageSize uint32) *Packer {
	return &Packer{int(pageSize), new(lz4.Compressor), make([]byte, frameHeaderSize+lz4.CompressBlockBound(int(pageSize)))}
}

// Pack compresses a page. The bytes are valid until the next call.
func (f *Packer) Pack(p wal.Page) (PackedPage, error) {
	if len(p.Data) != f.pageSize {
		return PackedPage{}, fmt.Errorf("page %d has %d bytes, page size is %d: %w", p.Pgno, len(p.Data), f.pageSize, ErrInvalidTransaction)
	}
	n, err := f.compressor.CompressBlock(p.Data, f.frame[frameHeaderSize:])
	if err != nil {
		return PackedPage{}, fmt.Errorf("compress page %d: %w", p.Pgno, err)
	}
	binary.BigEndian.PutUint32(f.frame, p.Pgno)
	binary.BigEndian.PutUint16(f.frame[4:], ltx.PageHeaderFlagSize)
	binary.BigEndian.PutUint32(f.frame[6:], uint32(n))
	return PackedPage{p.Pgno, crcUpdate(0, p.Data), f.frame[:frameHeaderSize+n]}, nil
}

// NewEncoder writes the header of a transaction to w.
func NewEncoder(w io.Writer, h Header) (*Encoder, error) {
	if err := h.check(ErrInvalidTransaction); err != nil {
		return nil, fmt.Errorf("encode transaction %016x: %w", h.TXID, err)
	}
	e := &Encoder{w: w, order: pageOrder{header: h}, shift: shiftOfPage(h.PageSize), packer: NewPacker(h.PageSize)}
	head := h.append(nil)
	e.state = crcUpdate(^uint64(0), head)
	return e, e.write(head)
}

func (e *Encoder) write(b []byte) error {
	if e.err == nil {
		if _, err := e.w.Write(b); err != nil {
			e.err = fmt.Errorf("encode transaction %016x: write at offset %d: %w", e.order.header.TXID, e.at, err)
		}
		e.at += int64(len(b))
	}
	return e.err
}

// Page writes the next page and returns its PageSum. Pages ascend by number.
func (e *Encoder) Page(p wal.Page) (sum uint64, err error) {
	if e.err != nil {
		return 0, e.err
	}
	f, err := e.packer.Pack(p)
	if err != nil {
		return 0, fmt.Errorf("encode transaction %016x: %w", e.order.header.TXID, err)
	}
	return e.Packed(f)
}

// Packed is Page for a page that a Packer for pages of this size has compressed before.
func (e *Encoder) Packed(f PackedPage) (sum uint64, err error) {
	if e.err != nil {
		return 0, e.err
	}
	if len(f.Bytes) < frameHeaderSize {
		return 0, fmt.Errorf("encode transaction %016x: frame of page %d has %d bytes: %w", e.order.header.TXID, f.Pgno, len(f.Bytes), ErrInvalidTransaction)
	}
	if err := e.order.next(f.Pgno, ErrInvalidTransaction); err != nil {
		return 0, fmt.Errorf("encode transaction %016x: %w", e.order.header.TXID, err)
	}
	e.state = e.shift.apply(crcUpdate(e.state, f.Bytes[:frameHeaderSize])) ^ f.Image
	e.index = appendIndexEntry(e.index, f.Pgno, int(e.at), len(f.Bytes))
	e.pages++
	return ChecksumFlag | ^(e.shift.apply(pageNumberState(f.Pgno)) ^ f.Image), e.write(f.Bytes)
}

// Pages is how many were written.
func (e *Encoder) Pages() int { return e.pages }

// Size is how many bytes were written.
func (e *Encoder) Size() int64 { return e.at }

// Close writes what follows the pages. It does not close the writer.
func (e *Encoder) Close() error {
	if err := e.order.end(ErrInvalidTransaction); err != nil {
		return fmt.Errorf("encode transaction %016x: %w", e.order.header.TXID, err)
	}
	tail := make([]byte, endSize, endSize+len(e.index)+indexTailSize+trailerSize)
	tail = append(tail, e.index...)
	tail = append(tail, 0)
	tail = binary.BigEndian.AppendUint64(tail, uint64(len(e.index)+1))
	tail = append(tail, 0, 0, 0, 0, 0, 0, 0, 0)
	sum := ChecksumFlag | ^crcUpdate(e.state, tail)
	return e.write(binary.BigEndian.AppendUint64(tail, sum))
}

// StreamDecoder reads the LTX file of one transaction page by page and
// verifies all that Decode verifies. Only the io.EOF after the last page says
// that the file is whole: what was read before must not be used without it.
type StreamDecoder struct {
	r     io.Reader
	order pageOrder
	state uint64
	shift *pageShift
	block []byte
	page  []byte
	index []byte
	at    int64
	err   error
}

// NewStreamDecoder reads the header from r, which should be buffered.
func NewStreamDecoder(r io.Reader) (*StreamDecoder, error) {
	var head [minTransaction]byte // parseHeader wants as much as the smallest file has
	if _, err := io.ReadFull(r, head[:headerSize]); err != nil {
		return nil, fmt.Errorf("read LTX header: %w", corruptEnd(err))
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return nil, fmt.Errorf("read LTX header: %w", err)
	}
	return &StreamDecoder{
		r: r, order: pageOrder{header: h}, state: crcUpdate(^uint64(0), head[:headerSize]), shift: shiftOfPage(h.PageSize),
		block: make([]byte, lz4.CompressBlockBound(int(h.PageSize))), page: make([]byte, h.PageSize), at: headerSize,
	}, nil
}

// corruptEnd makes the end of a file in the wrong place what it is.
func corruptEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("end of file: %w", ErrCorrupt)
	}
	return err
}

// Header returns the header. It is verified by the io.EOF of Next only.
func (d *StreamDecoder) Header() Header { return d.order.header }

// Next returns the next page and its PageSum. The image is valid until the
// call after. io.EOF: all pages were returned and the whole file is verified.
func (d *StreamDecoder) Next() (wal.Page, uint64, error) {
	if d.err != nil {
		return wal.Page{}, 0, d.err
	}
	page, sum, err := d.next()
	if err != nil {
		if d.err = err; err != io.EOF {
			d.err = fmt.Errorf("decode LTX file at offset %d: %w", d.at, err)
		}
		return wal.Page{}, 0, d.err
	}
	return page, sum, nil
}

func (d *StreamDecoder) next() (wal.Page, uint64, error) {
	var head [frameHeaderSize]byte
	if _, err := io.ReadFull(d.r, head[:endSize]); err != nil {
		return wal.Page{}, 0, corruptEnd(err)
	}
	pgno, flags := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint16(head[4:])
	if pgno == 0 && flags == 0 {
		return wal.Page{}, 0, d.end()
	}
	if flags != ltx.PageHeaderFlagSize {
		return wal.Page{}, 0, fmt.Errorf("frame has flags %#x, want %#x: %w", flags, ltx.PageHeaderFlagSize, ErrCorrupt)
	}
	if err := d.order.next(pgno, ErrCorrupt); err != nil {
		return wal.Page{}, 0, err
	}
	if _, err := io.ReadFull(d.r, head[endSize:]); err != nil {
		return wal.Page{}, 0, corruptEnd(err)
	}
	n := binary.BigEndian.Uint32(head[6:])
	if n == 0 || n > uint32(len(d.block)) {
		return wal.Page{}, 0, fmt.Errorf("block of %d bytes: %w", n, ErrCorrupt)
	}
	if _, err := io.ReadFull(d.r, d.block[:n]); err != nil {
		return wal.Page{}, 0, corruptEnd(err)
	}
	got, err := lz4.UncompressBlock(d.block[:n], d.page)
	if err != nil {
		return wal.Page{}, 0, fmt.Errorf("expand page %d: %w: %w", pgno, err, ErrCorrupt)
	}
	if got != len(d.page) {
		return wal.Page{}, 0, fmt.Errorf("page %d has %d bytes, page size is %d: %w", pgno, got, len(d.page), ErrCorrupt)
	}
	image := crcUpdate(0, d.page)
	d.state = d.shift.apply(crcUpdate(d.state, head[:])) ^ image
	d.index = appendIndexEntry(d.index, pgno, int(d.at), frameHeaderSize+int(n))
	d.at += frameHeaderSize + int64(n)
	return wal.Page{Pgno: pgno, Data: d.page}, ChecksumFlag | ^(d.shift.apply(pageNumberState(pgno)) ^ image), nil
}

// end verifies what follows the pages and returns io.EOF.
func (d *StreamDecoder) end() error {
	if err := d.order.end(ErrCorrupt); err != nil {
		return err
	}
	want := append(d.index, 0)
	want = binary.BigEndian.AppendUint64(want, uint64(len(want)))
	want = append(want, 0, 0, 0, 0, 0, 0, 0, 0)
	got := make([]byte, len(want)+8+1)
	n, err := io.ReadFull(d.r, got)
	switch {
	case err == nil:
		return fmt.Errorf("bytes after the end: %w", ErrCorrupt)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case n != len(got)-1 || !bytes.Equal(got[:len(want)], want):
		return fmt.Errorf("page index does not match the frames: %w", ErrCorrupt)
	}
	state := crcUpdate(crcUpdate(d.state, make([]byte, endSize)), want)
	if got, want := ChecksumFlag|^state, binary.BigEndian.Uint64(got[len(want):]); got != want {
		return fmt.Errorf("checksum %016x, want %016x: %w", got, want, ErrCorrupt)
	}
	return io.EOF
}

// RestampReader reads the LTX file of size bytes and so many pages in r as
// Restamp would leave it with another commit time. A file that is corrupt, or
// has another number of pages, is read with a checksum that is wrong.
func RestampReader(r io.ReaderAt, size int64, pages int, commitTimeMillis int64) (io.Reader, error) {
	f, err := RestampAt(r, size, pages, commitTimeMillis)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(f, 0, size), nil
}

// RestampAt is RestampReader for who reads the file several times.
func RestampAt(r io.ReaderAt, size int64, pages int, commitTimeMillis int64) (*Restamped, error) {
	fail := func(err error) (*Restamped, error) {
		return nil, fmt.Errorf("set commit time in LTX file of %d bytes: %w", size, err)
	}
	if size < minTransaction {
		return fail(ErrCorrupt)
	}
	var head [minTransaction]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return fail(corruptEnd(err))
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return fail(err)
	}
	var tail [8 + trailerSize]byte // size of the index, trailer
	if _, err := r.ReadAt(tail[:], size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return fail(err)
	}
	index := binary.BigEndian.Uint64(tail[:])
	if index > uint64(size-minTransaction+1) || pages < 0 || int64(pages) > int64(h.PageCount) {
		return fail(fmt.Errorf("page index of %d bytes, %d pages: %w", index, pages, ErrCorrupt))
	}
	field := head[timestampOffset : timestampOffset+8]
	var change [8]byte
	binary.BigEndian.PutUint64(change[:], binary.BigEndian.Uint64(field)^uint64(commitTimeMillis))
	binary.BigEndian.PutUint64(field, uint64(commitTimeMillis))
	behind := uint64(headerSize-timestampOffset-8) + uint64(pages)*uint64(frameHeaderSize+h.PageSize) + endSize + index + 8 + 8
	sum := tail[len(tail)-8:]
	binary.BigEndian.PutUint64(sum, ChecksumFlag|(binary.BigEndian.Uint64(sum)^multiply(crcUpdate(0, change[:]), zeros(behind))))
	f := &Restamped{r: r, size: size}
	copy(f.head[:], head[:headerSize])
	copy(f.sum[:], sum)
	return f, nil
}

// Restamped is an LTX file with another commit time.
type Restamped struct {
	r    io.ReaderAt
	size int64
	head [headerSize]byte
	sum  [8]byte // the last bytes
}

// Size returns the size of the file.
func (f *Restamped) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt.
func (f *Restamped) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), f.size-off)]
	n, err := f.r.ReadAt(want, off)
	if n < len(want) {
		return n, corruptEnd(err)
	}
	if off < headerSize {
		copy(want, f.head[off:])
	}
	if at := f.size - 8; off+int64(len(want)) > at {
		copy(want[max(at-off, 0):], f.sum[max(off-at, 0):])
	}
	if len(want) < len(p) {
		return n, io.EOF
	}
	return n, nil
}
