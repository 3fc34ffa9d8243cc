package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/uglyer/ha-sqlite/wal"
)

// The LTX file of one transaction, big-endian:
//
//	header     100  "LTX1", flags, page size, page count, first and last TXID, time in ms, 52 zero bytes
//	frame           page number 4, flags 2 (=1), compressed size 4, LZ4 block; page numbers ascend
//	end          6  zero frame header
//	index           uvarints page number, offset, size of each frame; 0; size of the index, 8 bytes
//	trailer     16  post-apply checksum (zero here), checksum of the file
//
// The file checksum is the CRC-64/ISO of all but itself, with each LZ4 block
// replaced by the page that it holds. superfly/ltx reads and writes the same
// bytes; this package has its own loops because every commit passes through
// them on every node.

const (
	headerSize      = ltx.HeaderSize
	frameHeaderSize = ltx.PageHeaderSize + 4
	endSize         = ltx.PageHeaderSize
	trailerSize     = ltx.TrailerSize
	indexTailSize   = 1 + 8      // end mark and size
	indexEntryBound = 5 + 10 + 4 // of one frame
	timestampOffset = 32
	minTransaction  = headerSize + endSize + indexTailSize + trailerSize
	reservedOffset  = timestampOffset + 8
)

var (
	// ErrCorrupt is returned for bytes that are not the LTX file of one
	// transaction. Nothing of it may be used.
	ErrCorrupt = errors.New("corrupt LTX file")

	// ErrTooLarge is returned for a transaction whose pages exceed the limit
	// that the caller gave.
	ErrTooLarge = errors.New("transaction too large")

	// ErrInvalidTransaction is returned by the encoder for pages that cannot be
	// one transaction: a bug of the caller or a damaged request.
	ErrInvalidTransaction = errors.New("invalid transaction")
)

// Header describes one transaction.
type Header struct {
	PageSize         uint32 // bytes
	PageCount        uint32 // pages of the database after the transaction, at least 1
	TXID             uint64 // at least 1; transaction 1 must hold every page
	CommitTimeMillis int64  // since 1970
}

// TransactionBound returns a capacity in which an LTX file of so many pages fits.
func TransactionBound(pageSize uint32, pages int) int {
	return minTransaction + pages*(frameHeaderSize+indexEntryBound+lz4.CompressBlockBound(int(pageSize)))
}

var compressors = sync.Pool{New: func() any { return new(lz4.Compressor) }}

// EncodeTransaction appends to dst the LTX file of a transaction that replaces
// pages, which must ascend by number. No pages at all is a valid transaction.
// It allocates only where dst has less room than TransactionBound.
func EncodeTransaction(dst []byte, h Header, pages []wal.Page) ([]byte, error) {
	out, _, err := EncodeTransactionSums(dst, h, pages, nil, false)
	return out, err
}

// EncodeTransactionSums is EncodeTransaction; where want is set it also appends
// to sums the PageSum of each page, which then costs next to nothing.
func EncodeTransactionSums(dst []byte, h Header, pages []wal.Page, sums []uint64, want bool) ([]byte, []uint64, error) {
	start := len(dst)
	if err := h.check(ErrInvalidTransaction); err != nil {
		return dst, sums, fmt.Errorf("encode transaction %016x: %w", h.TXID, err)
	}
	order := pageOrder{header: h}
	for i := range pages {
		if len(pages[i].Data) != int(h.PageSize) {
			return dst, sums, fmt.Errorf("encode transaction %016x: page %d has %d bytes, page size is %d: %w",
				h.TXID, pages[i].Pgno, len(pages[i].Data), h.PageSize, ErrInvalidTransaction)
		}
		if err := order.next(pages[i].Pgno, ErrInvalidTransaction); err != nil {
			return dst, sums, fmt.Errorf("encode transaction %016x: %w", h.TXID, err)
		}
	}
	if err := order.end(ErrInvalidTransaction); err != nil {
		return dst, sums, fmt.Errorf("encode transaction %016x: %w", h.TXID, err)
	}

	dst = slices.Grow(dst, TransactionBound(h.PageSize, len(pages)))
	dst = h.append(dst)
	state := crcUpdate(^uint64(0), dst[start:])
	shift := shiftOfPage(h.PageSize)
	compressor := compressors.Get().(*lz4.Compressor)
	defer compressors.Put(compressor)
	for i := range pages {
		pgno, data := pages[i].Pgno, pages[i].Data
		frame := len(dst)
		room := dst[frame+frameHeaderSize : cap(dst)]
		n, err := compressor.CompressBlock(data, room)
		if err != nil {
			return dst[:start], sums, fmt.Errorf("encode transaction %016x: compress page %d: %w", h.TXID, pgno, err)
		}
		dst = dst[:frame+frameHeaderSize+n]
		head := dst[frame : frame+frameHeaderSize]
		binary.BigEndian.PutUint32(head, pgno)
		binary.BigEndian.PutUint16(head[4:], ltx.PageHeaderFlagSize)
		binary.BigEndian.PutUint32(head[6:], uint32(n))
		image := crcUpdate(0, data)
		state = shift.apply(crcUpdate(state, head)) ^ image
		if want {
			sums = append(sums, ChecksumFlag|^(shift.apply(pageNumberState(pgno))^image))
		}
	}

	tail := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	dst = appendIndex(dst, start)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	sum := ChecksumFlag | ^crcUpdate(state, dst[tail:])
	return binary.BigEndian.AppendUint64(dst, sum), sums, nil
}

// appendIndex appends the index of the frames in dst[start+headerSize:], which
// end with a zero frame header at the end of dst.
func appendIndex(dst []byte, start int) []byte {
	index := len(dst)
	for at := start + headerSize; at < index-endSize; {
		size := frameHeaderSize + int(binary.BigEndian.Uint32(dst[at+6:]))
		dst = appendIndexEntry(dst, binary.BigEndian.Uint32(dst[at:]), at-start, size)
		at += size
	}
	dst = append(dst, 0)
	return binary.BigEndian.AppendUint64(dst, uint64(len(dst)-index))
}

func appendIndexEntry(dst []byte, pgno uint32, offset, size int) []byte {
	dst = binary.AppendUvarint(dst, uint64(pgno))
	dst = binary.AppendUvarint(dst, uint64(offset))
	return binary.AppendUvarint(dst, uint64(size))
}

func (h Header) append(dst []byte) []byte {
	dst = append(dst, ltx.Magic...)
	dst = binary.BigEndian.AppendUint32(dst, ltx.HeaderFlagNoChecksum)
	dst = binary.BigEndian.AppendUint32(dst, h.PageSize)
	dst = binary.BigEndian.AppendUint32(dst, h.PageCount)
	dst = binary.BigEndian.AppendUint64(dst, h.TXID)
	dst = binary.BigEndian.AppendUint64(dst, h.TXID)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.CommitTimeMillis))
	return append(dst, make([]byte, headerSize-reservedOffset)...)
}

// check refuses what no transaction has; class is the error to wrap.
func (h Header) check(class error) error {
	switch {
	case !ValidPageSize(h.PageSize):
		return fmt.Errorf("page size %d: %w", h.PageSize, class)
	case h.PageCount == 0:
		return fmt.Errorf("database of 0 pages: %w", class)
	case h.TXID == 0:
		return fmt.Errorf("transaction number 0: %w", class)
	}
	return nil
}

// pageOrder checks the page numbers of a transaction one by one.
type pageOrder struct {
	header Header
	last   uint32
}

func (o *pageOrder) next(pgno uint32, class error) error {
	lock := LockPgno(o.header.PageSize)
	switch {
	case pgno == 0 || pgno > o.header.PageCount:
		return fmt.Errorf("page %d of a database of %d pages: %w", pgno, o.header.PageCount, class)
	case pgno <= o.last:
		return fmt.Errorf("page %d after page %d: %w", pgno, o.last, class)
	case pgno == lock:
		return fmt.Errorf("page %d is the lock page: %w", pgno, class)
	case o.header.TXID == 1 && pgno != o.following():
		return fmt.Errorf("page %d after page %d in transaction 1, which must hold every page: %w", pgno, o.last, class)
	}
	o.last = pgno
	return nil
}

// following returns the page after the last one, skipping the lock page.
func (o *pageOrder) following() uint32 {
	next := o.last + 1
	if next == LockPgno(o.header.PageSize) {
		next++
	}
	return next
}

// end refuses a transaction 1 that lacks pages: neither the encoder nor the
// decoder of superfly/ltx notices that.
func (o *pageOrder) end(class error) error {
	if o.header.TXID == 1 && o.following() <= o.header.PageCount {
		return fmt.Errorf("transaction 1 ends at page %d of %d: %w", o.last, o.header.PageCount, class)
	}
	return nil
}
