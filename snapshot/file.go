package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"
)

// FileHeader describes an LTX file of a range of transactions: the pages that
// they left different, as the last of them left them.
type FileHeader struct {
	PageSize         uint32 // bytes
	PageCount        uint32 // pages of the database after the last transaction, at least 1
	MinTXID          uint64 // at least 1; a file from transaction 1 on holds every page
	MaxTXID          uint64
	CommitTimeMillis int64 // of the last transaction, since 1970
}

// FileInfo says what was written to, or read and verified from, an LTX file.
type FileInfo struct {
	FileHeader
	Pages    int    // page images in it
	Size     int64  // bytes
	Checksum uint64 // of the content, the last eight bytes of the file
}

// Whole reports whether the file holds every page: it needs no other to
// restore from.
func (h FileHeader) Whole() bool { return h.MinTXID == 1 }

func (h FileHeader) append(dst []byte) []byte {
	dst = append(dst, ltx.Magic...)
	dst = binary.BigEndian.AppendUint32(dst, ltx.HeaderFlagNoChecksum)
	dst = binary.BigEndian.AppendUint32(dst, h.PageSize)
	dst = binary.BigEndian.AppendUint32(dst, h.PageCount)
	dst = binary.BigEndian.AppendUint64(dst, h.MinTXID)
	dst = binary.BigEndian.AppendUint64(dst, h.MaxTXID)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.CommitTimeMillis))
	return append(dst, make([]byte, headerSize-reservedOffset)...)
}

// check refuses what no range has; class is the error to wrap.
func (h FileHeader) check(class error) error {
	switch {
	case !ValidPageSize(h.PageSize):
		return fmt.Errorf("page size %d: %w", h.PageSize, class)
	case h.PageCount == 0:
		return fmt.Errorf("database of 0 pages: %w", class)
	case h.MinTXID == 0 || h.MaxTXID < h.MinTXID:
		return fmt.Errorf("transactions %016x to %016x: %w", h.MinTXID, h.MaxTXID, class)
	}
	return nil
}

// ParseFileHeader reads the first 100 bytes of an LTX file, of which nothing
// else is checked.
func ParseFileHeader(b []byte) (FileHeader, error) {
	h, err := parseFileHeader(b)
	if err != nil {
		return FileHeader{}, fmt.Errorf("read LTX header: %w", err)
	}
	return h, nil
}

func parseFileHeader(b []byte) (FileHeader, error) {
	if len(b) < headerSize {
		return FileHeader{}, fmt.Errorf("%d bytes, at least %d are needed: %w", len(b), headerSize, ErrCorrupt)
	}
	if string(b[:4]) != ltx.Magic {
		return FileHeader{}, fmt.Errorf("magic %q, want %q: %w", b[:4], ltx.Magic, ErrCorrupt)
	}
	if flags := binary.BigEndian.Uint32(b[4:]); flags != ltx.HeaderFlagNoChecksum {
		return FileHeader{}, fmt.Errorf("flags %#x, want %#x: %w", flags, ltx.HeaderFlagNoChecksum, ErrCorrupt)
	}
	for i, v := range b[reservedOffset:headerSize] {
		if v != 0 {
			return FileHeader{}, fmt.Errorf("byte %d of the header is %#x, want 0: %w", reservedOffset+i, v, ErrCorrupt)
		}
	}
	h := FileHeader{
		PageSize:         binary.BigEndian.Uint32(b[8:]),
		PageCount:        binary.BigEndian.Uint32(b[12:]),
		MinTXID:          binary.BigEndian.Uint64(b[16:]),
		MaxTXID:          binary.BigEndian.Uint64(b[24:]),
		CommitTimeMillis: int64(binary.BigEndian.Uint64(b[timestampOffset:])),
	}
	return h, h.check(ErrCorrupt)
}

// frameOrder checks the page numbers of a file one by one.
type frameOrder struct {
	header FileHeader
	last   uint32
}

func (o *frameOrder) next(pgno uint32, class error) error {
	switch {
	case pgno == 0 || pgno > o.header.PageCount:
		return fmt.Errorf("page %d of a database of %d pages: %w", pgno, o.header.PageCount, class)
	case pgno <= o.last:
		return fmt.Errorf("page %d after page %d: %w", pgno, o.last, class)
	case pgno == LockPgno(o.header.PageSize):
		return fmt.Errorf("page %d is the lock page: %w", pgno, class)
	case o.header.Whole() && pgno != o.following():
		return fmt.Errorf("page %d after page %d in a file that must hold every page: %w", pgno, o.last, class)
	}
	o.last = pgno
	return nil
}

// following returns the page after the last one, skipping the lock page.
func (o *frameOrder) following() uint32 {
	next := o.last + 1
	if next == LockPgno(o.header.PageSize) {
		next++
	}
	return next
}

// end refuses a whole file that lacks pages, which neither the encoder nor the
// decoder of superfly/ltx notices.
func (o *frameOrder) end(class error) error {
	if o.header.Whole() && o.following() <= o.header.PageCount {
		return fmt.Errorf("a file that must hold every page ends at page %d of %d: %w", o.last, o.header.PageCount, class)
	}
	return nil
}

// Frame is one page of an LTX file.
type Frame struct {
	Pgno   uint32
	Data   []byte // the image
	Sum    uint64 // PageSum of it
	Offset int64  // of the frame in the file
	Size   int    // of the frame in the file

	raw   []byte // the frame as it is in the file
	image uint64 // remainder of the image alone
}

// FileWriter writes an LTX file page by page. Beside one page it keeps the page
// index in memory, some ten bytes a page.
type FileWriter struct {
	w          io.Writer
	order      frameOrder
	state      uint64
	shift      *pageShift
	compressor lz4.Compressor
	frame      []byte // room for the largest
	index      []byte
	info       FileInfo
	err        error // of a write: nothing more can be written
}

// NewFileWriter writes the header to w, which should be buffered.
func NewFileWriter(w io.Writer, h FileHeader) (*FileWriter, error) {
	f := &FileWriter{w: w, order: frameOrder{header: h}, info: FileInfo{FileHeader: h}}
	if err := h.check(ErrInvalidTransaction); err != nil {
		return nil, f.wrap(err)
	}
	f.shift = shiftOfPage(h.PageSize)
	f.frame = make([]byte, frameHeaderSize+lz4.CompressBlockBound(int(h.PageSize)))
	head := h.append(nil)
	f.state = crcUpdate(^uint64(0), head)
	return f, f.write(head)
}

func (f *FileWriter) wrap(err error) error {
	return fmt.Errorf("write LTX file %016x-%016x: %w", f.order.header.MinTXID, f.order.header.MaxTXID, err)
}

func (f *FileWriter) write(b []byte) error {
	if f.err == nil {
		if _, err := f.w.Write(b); err != nil {
			f.err = f.wrap(fmt.Errorf("at offset %d: %w", f.info.Size, err))
		}
		f.info.Size += int64(len(b))
	}
	return f.err
}

// Page writes the next page and returns the frame that it became, without its
// bytes. Pages ascend by number.
func (f *FileWriter) Page(pgno uint32, data []byte) (Frame, error) {
	if len(data) != int(f.order.header.PageSize) {
		return Frame{}, f.wrap(fmt.Errorf("page %d has %d bytes, page size is %d: %w", pgno, len(data), f.order.header.PageSize, ErrInvalidTransaction))
	}
	n, err := f.compressor.CompressBlock(data, f.frame[frameHeaderSize:])
	if err != nil {
		return Frame{}, f.wrap(fmt.Errorf("compress page %d: %w", pgno, err))
	}
	binary.BigEndian.PutUint32(f.frame, pgno)
	binary.BigEndian.PutUint16(f.frame[4:], ltx.PageHeaderFlagSize)
	binary.BigEndian.PutUint32(f.frame[6:], uint32(n))
	image := crcUpdate(0, data)
	fr := Frame{Pgno: pgno, Sum: ChecksumFlag | ^(f.shift.apply(pageNumberState(pgno)) ^ image), image: image, raw: f.frame[:frameHeaderSize+n]}
	return f.put(fr)
}

// Copy writes a frame of another file without compressing it again.
func (f *FileWriter) Copy(fr Frame) (Frame, error) {
	if len(fr.Data) != int(f.order.header.PageSize) {
		return Frame{}, f.wrap(fmt.Errorf("page %d has %d bytes, page size is %d: %w", fr.Pgno, len(fr.Data), f.order.header.PageSize, ErrInvalidTransaction))
	}
	return f.put(fr)
}

func (f *FileWriter) put(fr Frame) (Frame, error) {
	if f.err != nil {
		return Frame{}, f.err
	}
	if err := f.order.next(fr.Pgno, ErrInvalidTransaction); err != nil {
		return Frame{}, f.wrap(err)
	}
	f.state = f.shift.apply(crcUpdate(f.state, fr.raw[:frameHeaderSize])) ^ fr.image
	at := f.info.Size
	f.index = appendIndexEntry(f.index, fr.Pgno, int(at), len(fr.raw))
	f.info.Pages++
	return Frame{Pgno: fr.Pgno, Sum: fr.Sum, Offset: at, Size: len(fr.raw)}, f.write(fr.raw)
}

// Close writes what follows the pages. It does not close the writer.
func (f *FileWriter) Close() (FileInfo, error) {
	if err := f.order.end(ErrInvalidTransaction); err != nil {
		return FileInfo{}, f.wrap(err)
	}
	tail := make([]byte, endSize, endSize+len(f.index)+indexTailSize+trailerSize)
	tail = append(tail, f.index...)
	tail = append(tail, 0)
	tail = binary.BigEndian.AppendUint64(tail, uint64(len(f.index)+1))
	tail = append(tail, 0, 0, 0, 0, 0, 0, 0, 0)
	f.info.Checksum = ChecksumFlag | ^crcUpdate(f.state, tail)
	if err := f.write(binary.BigEndian.AppendUint64(tail, f.info.Checksum)); err != nil {
		return FileInfo{}, err
	}
	f.err = f.wrap(errors.New("the file is finished"))
	return f.info, nil
}

// FileReader reads an LTX file page by page and verifies all of it. Only the
// io.EOF after the last page says that the file is whole: what was read before
// must not become visible to anybody without it.
type FileReader struct {
	r     io.Reader
	order frameOrder
	state uint64
	shift *pageShift
	raw   []byte
	page  []byte
	index []byte
	info  FileInfo
	at    int64
	err   error
}

// NewFileReader reads the header from r, which should be buffered.
func NewFileReader(r io.Reader) (*FileReader, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read LTX header: %w", endIsCorrupt(err))
	}
	h, err := ParseFileHeader(head[:])
	if err != nil {
		return nil, err
	}
	return &FileReader{
		r: r, order: frameOrder{header: h}, state: crcUpdate(^uint64(0), head[:]), shift: shiftOfPage(h.PageSize),
		raw: make([]byte, frameHeaderSize+lz4.CompressBlockBound(int(h.PageSize))), page: make([]byte, h.PageSize),
		at: headerSize, info: FileInfo{FileHeader: h},
	}, nil
}

// endIsCorrupt makes the end of a file in the wrong place what it is.
func endIsCorrupt(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the file ends too early: %w", ErrCorrupt)
	}
	return err
}

// Header returns the header, which only the io.EOF of Next verifies.
func (f *FileReader) Header() FileHeader { return f.order.header }

// Info says what was read; call it after the io.EOF of Next.
func (f *FileReader) Info() FileInfo { return f.info }

// Next returns the next page, valid until the next call. io.EOF: all pages
// were returned and the whole file is verified.
func (f *FileReader) Next() (Frame, error) {
	if f.err != nil {
		return Frame{}, f.err
	}
	fr, err := f.next()
	if err != nil {
		if f.err = err; err != io.EOF {
			f.err = fmt.Errorf("read LTX file at offset %d: %w", f.at, err)
		}
		return Frame{}, f.err
	}
	return fr, nil
}

func (f *FileReader) next() (Frame, error) {
	head := f.raw[:frameHeaderSize]
	if _, err := io.ReadFull(f.r, head[:endSize]); err != nil {
		return Frame{}, endIsCorrupt(err)
	}
	pgno, flags := binary.BigEndian.Uint32(head), binary.BigEndian.Uint16(head[4:])
	if pgno == 0 && flags == 0 {
		return Frame{}, f.end()
	}
	if flags != ltx.PageHeaderFlagSize {
		return Frame{}, fmt.Errorf("frame has flags %#x, want %#x: %w", flags, ltx.PageHeaderFlagSize, ErrCorrupt)
	}
	if err := f.order.next(pgno, ErrCorrupt); err != nil {
		return Frame{}, err
	}
	if _, err := io.ReadFull(f.r, head[endSize:]); err != nil {
		return Frame{}, endIsCorrupt(err)
	}
	n := binary.BigEndian.Uint32(head[6:])
	if n == 0 || n > uint32(len(f.raw)-frameHeaderSize) {
		return Frame{}, fmt.Errorf("block of %d bytes: %w", n, ErrCorrupt)
	}
	raw := f.raw[:frameHeaderSize+int(n)]
	if _, err := io.ReadFull(f.r, raw[frameHeaderSize:]); err != nil {
		return Frame{}, endIsCorrupt(err)
	}
	fr, err := expand(raw, pgno, f.page, f.shift)
	if err != nil {
		return Frame{}, err
	}
	fr.Offset = f.at
	f.state = f.shift.apply(crcUpdate(f.state, head)) ^ fr.image
	f.index = appendIndexEntry(f.index, pgno, int(f.at), len(raw))
	f.at += int64(len(raw))
	f.info.Pages++
	return fr, nil
}

// expand makes a page of a frame whose header was checked.
func expand(raw []byte, pgno uint32, page []byte, shift *pageShift) (Frame, error) {
	got, err := lz4.UncompressBlock(raw[frameHeaderSize:], page)
	if err != nil {
		return Frame{}, fmt.Errorf("expand page %d: %w: %w", pgno, err, ErrCorrupt)
	}
	if got != len(page) {
		return Frame{}, fmt.Errorf("page %d has %d bytes, page size is %d: %w", pgno, got, len(page), ErrCorrupt)
	}
	image := crcUpdate(0, page)
	return Frame{Pgno: pgno, Data: page, Sum: ChecksumFlag | ^(shift.apply(pageNumberState(pgno)) ^ image), Size: len(raw), raw: raw, image: image}, nil
}

// ExpandFrame makes a page of one frame that was read by its offset. Nothing
// but the frame itself is checked: compare the Sum with one that is known.
func ExpandFrame(raw []byte, pageSize uint32) (Frame, error) {
	if !ValidPageSize(pageSize) {
		return Frame{}, fmt.Errorf("expand frame: page size %d: %w", pageSize, ErrCorrupt)
	}
	if len(raw) <= frameHeaderSize || len(raw) > frameHeaderSize+lz4.CompressBlockBound(int(pageSize)) {
		return Frame{}, fmt.Errorf("expand frame of %d bytes: %w", len(raw), ErrCorrupt)
	}
	pgno, flags, n := binary.BigEndian.Uint32(raw), binary.BigEndian.Uint16(raw[4:]), binary.BigEndian.Uint32(raw[6:])
	if pgno == 0 || flags != ltx.PageHeaderFlagSize || int64(n) != int64(len(raw)-frameHeaderSize) {
		return Frame{}, fmt.Errorf("expand frame of %d bytes: header %x: %w", len(raw), raw[:frameHeaderSize], ErrCorrupt)
	}
	return expand(raw, pgno, make([]byte, pageSize), shiftOfPage(pageSize))
}

// end verifies what follows the pages and returns io.EOF.
func (f *FileReader) end() error {
	if err := f.order.end(ErrCorrupt); err != nil {
		return err
	}
	want := append(f.index, 0)
	want = binary.BigEndian.AppendUint64(want, uint64(len(want)))
	want = append(want, 0, 0, 0, 0, 0, 0, 0, 0)
	got := make([]byte, len(want)+8+1)
	n, err := io.ReadFull(f.r, got)
	switch {
	case err == nil:
		return fmt.Errorf("bytes after the end: %w", ErrCorrupt)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case n != len(got)-1:
		return endIsCorrupt(io.EOF)
	case !bytes.Equal(got[:len(want)], want):
		return fmt.Errorf("page index does not match the frames: %w", ErrCorrupt)
	}
	state := crcUpdate(crcUpdate(f.state, make([]byte, endSize)), want)
	f.info.Checksum = binary.BigEndian.Uint64(got[len(want):])
	if sum := ChecksumFlag | ^state; sum != f.info.Checksum {
		return fmt.Errorf("checksum %016x, want %016x: %w", sum, f.info.Checksum, ErrCorrupt)
	}
	f.info.Size = f.at + endSize + int64(n)
	return io.EOF
}

// VerifyFile reads and verifies the LTX file in r to its end.
func VerifyFile(r io.Reader) (FileInfo, error) {
	f, err := NewFileReader(r)
	if err != nil {
		return FileInfo{}, err
	}
	for {
		if _, err := f.Next(); err == io.EOF {
			return f.Info(), nil
		} else if err != nil {
			return FileInfo{}, err
		}
	}
}
