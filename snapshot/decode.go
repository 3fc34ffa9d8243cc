package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/wal"
)

// Decoder decodes transactions one after the other into the same memory. The
// zero value is ready. It is not safe for concurrent use.
type Decoder struct {
	pages []wal.Page
	sums  []uint64
	image []byte
	index []byte
}

// Decode verifies all of b and returns its pages, whose images are valid until
// the next call. maxPageBytes bounds the sum of the images.
func (d *Decoder) Decode(b []byte, maxPageBytes int) (Header, []wal.Page, error) {
	h, pages, err := d.decode(b, maxPageBytes)
	if err != nil {
		return Header{}, nil, fmt.Errorf("decode LTX file of %d bytes: %w", len(b), err)
	}
	return h, pages, nil
}

// Sums returns the PageSum of each page of the last Decode, valid until the next.
func (d *Decoder) Sums() []uint64 { return d.sums }

// DecodeTransaction verifies all of b and returns its pages in memory of their
// own. maxPageBytes bounds the sum of the images.
func DecodeTransaction(b []byte, maxPageBytes int) (Header, []wal.Page, error) {
	return new(Decoder).Decode(b, maxPageBytes)
}

// PeekHeader returns the header of b, of which nothing but the header is checked.
func PeekHeader(b []byte) (Header, error) {
	h, err := parseHeader(b)
	if err != nil {
		return Header{}, fmt.Errorf("read LTX header: %w", err)
	}
	return h, nil
}

// PageNumbers returns the header of b and the numbers of its pages, without looking into them.
func PageNumbers(b []byte) (Header, []uint32, error) {
	l, err := parse(b)
	if err != nil {
		return Header{}, nil, fmt.Errorf("read page numbers of an LTX file of %d bytes: %w", len(b), err)
	}
	pgnos := make([]uint32, 0, l.frames)
	for at := headerSize; at < l.end; { // parse has checked that the frames lie within b
		pgnos = append(pgnos, binary.BigEndian.Uint32(b[at:]))
		at += frameHeaderSize + int(binary.BigEndian.Uint32(b[at+6:]))
	}
	return l.header, pgnos, nil
}

// Frames calls f for each page of b with its number and its frame, which is at an offset of b. What is in the frames is
// not looked at: ExpandFrame does.
func Frames(b []byte, f func(pgno uint32, offset int, raw []byte)) error {
	l, err := parse(b)
	if err != nil {
		return fmt.Errorf("read the frames of an LTX file of %d bytes: %w", len(b), err)
	}
	for at := headerSize; at < l.end; { // parse has checked that the frames lie within b
		raw := b[at : at+frameHeaderSize+int(binary.BigEndian.Uint32(b[at+6:]))]
		f(binary.BigEndian.Uint32(raw), at, raw)
		at += len(raw)
	}
	return nil
}

func (d *Decoder) decode(b []byte, maxPageBytes int) (Header, []wal.Page, error) {
	l, err := parse(b)
	if err != nil {
		return Header{}, nil, err
	}
	size := int(l.header.PageSize)
	if l.frames > maxPageBytes/size {
		return Header{}, nil, fmt.Errorf("%d pages of %d bytes, at most %d bytes are allowed: %w", l.frames, size, maxPageBytes, ErrTooLarge)
	}
	d.pages = slices.Grow(d.pages[:0], l.frames)
	d.sums = slices.Grow(d.sums[:0], l.frames)
	if need := l.frames * size; cap(d.image) < need {
		d.image = make([]byte, need)
	}

	// parse has checked that the frames lie within b and that the last one ends
	// at l.end, so nothing below reads beyond.
	state := crcUpdate(^uint64(0), b[:headerSize])
	shift := shiftOfPage(l.header.PageSize)
	d.index = d.index[:0]
	for at := headerSize; at < l.end; {
		head := b[at : at+frameHeaderSize]
		pgno, n := binary.BigEndian.Uint32(head), int(binary.BigEndian.Uint32(head[6:]))
		i := len(d.pages)
		data := d.image[i*size : (i+1)*size : (i+1)*size]
		got, err := lz4.UncompressBlock(b[at+frameHeaderSize:at+frameHeaderSize+n], data)
		if err != nil {
			return Header{}, nil, fmt.Errorf("expand page %d at offset %d: %w: %w", pgno, at, err, ErrCorrupt)
		}
		if got != size {
			return Header{}, nil, fmt.Errorf("page %d at offset %d has %d bytes, page size is %d: %w", pgno, at, got, size, ErrCorrupt)
		}
		image := crcUpdate(0, data)
		state = shift.apply(crcUpdate(state, head)) ^ image
		d.pages = append(d.pages, wal.Page{Pgno: pgno, Data: data})
		d.sums = append(d.sums, ChecksumFlag|^(shift.apply(pageNumberState(pgno))^image))
		d.index = appendIndexEntry(d.index, pgno, at, frameHeaderSize+n)
		at += frameHeaderSize + n
	}

	// The index must be the one that the frames ask for, byte by byte.
	d.index = append(d.index, 0)
	d.index = binary.BigEndian.AppendUint64(d.index, uint64(len(d.index)))
	checksum := len(b) - 8
	if !bytes.Equal(d.index, b[l.end+endSize:len(b)-trailerSize]) {
		return Header{}, nil, fmt.Errorf("page index at offset %d does not match the frames: %w", l.end+endSize, ErrCorrupt)
	}
	if got, want := ChecksumFlag|^crcUpdate(state, b[l.end:checksum]), binary.BigEndian.Uint64(b[checksum:]); got != want {
		return Header{}, nil, fmt.Errorf("checksum %016x, want %016x: %w", got, want, ErrCorrupt)
	}
	return l.header, d.pages, nil
}

// layout is where things are in an LTX file.
type layout struct {
	header Header
	frames int
	end    int // offset of the zero frame header
}

// parse checks the header, the sizes and order of the frames and the length of
// the rest, without looking into pages, index or checksum.
func parse(b []byte) (layout, error) {
	h, err := parseHeader(b)
	if err != nil {
		return layout{}, err
	}
	l := layout{header: h}
	order := pageOrder{header: h}
	bound := lz4.CompressBlockBound(int(h.PageSize))
	limit := len(b) - trailerSize - indexTailSize - endSize // the zero frame header begins here at the latest
	at := headerSize
	for {
		if at > limit {
			return layout{}, fmt.Errorf("end of file in the frames at offset %d: %w", at, ErrCorrupt)
		}
		pgno, flags := binary.BigEndian.Uint32(b[at:]), binary.BigEndian.Uint16(b[at+4:])
		if pgno == 0 && flags == 0 {
			break
		}
		if flags != ltx.PageHeaderFlagSize {
			return layout{}, fmt.Errorf("frame at offset %d has flags %#x, want %#x: %w", at, flags, ltx.PageHeaderFlagSize, ErrCorrupt)
		}
		if err := order.next(pgno, ErrCorrupt); err != nil {
			return layout{}, fmt.Errorf("frame at offset %d: %w", at, err)
		}
		n := binary.BigEndian.Uint32(b[at+6:]) // within b: at <= limit leaves more than a frame header
		if n == 0 || n > uint32(bound) || int(n) > limit-at-frameHeaderSize {
			return layout{}, fmt.Errorf("frame at offset %d has a block of %d bytes: %w", at, n, ErrCorrupt)
		}
		at += frameHeaderSize + int(n)
		l.frames++
	}
	if err := order.end(ErrCorrupt); err != nil {
		return layout{}, err
	}
	l.end = at
	if n := len(b) - trailerSize - at - endSize; n > l.frames*indexEntryBound+indexTailSize {
		return layout{}, fmt.Errorf("page index of %d bytes for %d frames: %w", n, l.frames, ErrCorrupt)
	}
	if post := binary.BigEndian.Uint64(b[len(b)-trailerSize:]); post != 0 {
		return layout{}, fmt.Errorf("post-apply checksum %016x in a file without checksums: %w", post, ErrCorrupt)
	}
	return l, nil
}

func parseHeader(b []byte) (Header, error) {
	if len(b) < minTransaction {
		return Header{}, fmt.Errorf("%d bytes, at least %d are needed: %w", len(b), minTransaction, ErrCorrupt)
	}
	if string(b[:4]) != ltx.Magic {
		return Header{}, fmt.Errorf("magic %q, want %q: %w", b[:4], ltx.Magic, ErrCorrupt)
	}
	if flags := binary.BigEndian.Uint32(b[4:]); flags != ltx.HeaderFlagNoChecksum {
		return Header{}, fmt.Errorf("flags %#x, want %#x: %w", flags, ltx.HeaderFlagNoChecksum, ErrCorrupt)
	}
	h := Header{
		PageSize:         binary.BigEndian.Uint32(b[8:]),
		PageCount:        binary.BigEndian.Uint32(b[12:]),
		TXID:             binary.BigEndian.Uint64(b[16:]),
		CommitTimeMillis: int64(binary.BigEndian.Uint64(b[timestampOffset:])),
	}
	if last := binary.BigEndian.Uint64(b[24:]); last != h.TXID {
		return Header{}, fmt.Errorf("transactions %016x to %016x, want one: %w", h.TXID, last, ErrCorrupt)
	}
	for i, v := range b[reservedOffset:headerSize] {
		if v != 0 {
			return Header{}, fmt.Errorf("byte %d of the header is %#x, want 0: %w", reservedOffset+i, v, ErrCorrupt)
		}
	}
	return h, h.check(ErrCorrupt)
}

// Restamp sets the commit time in the LTX file b in place and corrects the
// checksum without expanding a page: the CRC is linear, so what the changed
// bytes add to it does not depend on what follows. A file that was corrupt
// before is corrupt after.
func Restamp(b []byte, commitTimeMillis int64) error {
	l, err := parse(b)
	if err != nil {
		return fmt.Errorf("set commit time in LTX file of %d bytes: %w", len(b), err)
	}
	field := b[timestampOffset : timestampOffset+8]
	old := binary.BigEndian.Uint64(field)
	if old == uint64(commitTimeMillis) {
		return nil
	}
	binary.BigEndian.PutUint64(field, uint64(commitTimeMillis))
	var change [8]byte
	binary.BigEndian.PutUint64(change[:], old^uint64(commitTimeMillis))

	checksum := len(b) - 8
	behind := headerSize - timestampOffset - 8 + l.frames*(frameHeaderSize+int(l.header.PageSize)) + checksum - l.end
	delta := multiply(crcUpdate(0, change[:]), zeros(uint64(behind)))
	sum := ChecksumFlag | (binary.BigEndian.Uint64(b[checksum:]) ^ delta)
	binary.BigEndian.PutUint64(b[checksum:], sum)
	return nil
}
