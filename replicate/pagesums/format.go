package pagesums

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A segment is a header and records, each at a multiple of 8, little-endian:
//
//	segment  8 magic "HASQSUM1", 8 number of the segment
//	record   4 magic "HSUM", 1 kind, 3 zero
//	         16 database id, 8 TXID, 8 checksum, 4 page size, 4 pages
//	         4 entries, 4 CRC-32C of the body
//	         8 TXID of the record that a delta continues
//	         8 size, 8 mtime, 8 ctime, 8 inode of a file that was closed with everything in it
//	         4 CRC-32C of the header so far, 4 zero
//	         8 closed: closedWord, or anything else once the file was opened again (written in place)
//	body     all:   8 checksum of each page
//	         delta: 4 page number, 8 checksum, for each page that changed; zeros to a multiple of 8

const (
	segmentMagic      = "HASQSUM1"
	segmentHeaderSize = 16

	recordMagic  = "HSUM"
	headerSize   = 112
	closedOffset = 104

	kindAll   = 1
	kindDelta = 2
	kindGone  = 3

	closedWord uint64 = 0x4445534f4c435148 // "HQCLOSED"

	deltaEntrySize = 12
	// maxEntries bounds a record: SQLite has no larger database.
	maxEntries = 1 << 32 / 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt is returned for a record that cannot be what was written.
var ErrCorrupt = errors.New("corrupt record of page checksums")

// ErrSync is wrapped by the error of a sync that failed, and by every later one: the next sync may succeed without the
// data.
var ErrSync = errors.New("sync of page checksums failed")

// Stat identifies a file that nobody changed.
type Stat struct {
	SizeBytes    int64
	ModTimeNanos int64
	ChangeNanos  int64
	Inode        uint64
}

// Record says what the files of a database held at least, durably.
type Record struct {
	ID                  [16]byte
	TXID, Checksum      uint64 // the position
	PageSize, PageCount uint32
	// Closed is not nil if the files were closed at that position with an empty log and have not been opened
	// since: as long as the main file has this stat nobody changed it.
	Closed *Stat
}

// header is a record's header as it is on disk.
type header struct {
	Record
	kind    uint8
	entries uint32
	bodySum uint32
	prev    uint64
}

func padded(n int64) int64 { return (n + 7) &^ 7 }

// bodySize is the length of the body on disk.
func (h *header) bodySize() int64 {
	switch h.kind {
	case kindAll:
		return 8 * int64(h.entries)
	case kindDelta:
		return padded(deltaEntrySize * int64(h.entries))
	}
	return 0
}

func (h *header) append(b []byte) []byte {
	start := len(b)
	le := binary.LittleEndian
	b = append(b, recordMagic...)
	b = append(b, h.kind, 0, 0, 0)
	b = append(b, h.ID[:]...)
	b = le.AppendUint64(b, h.TXID)
	b = le.AppendUint64(b, h.Checksum)
	b = le.AppendUint32(b, h.PageSize)
	b = le.AppendUint32(b, h.PageCount)
	b = le.AppendUint32(b, h.entries)
	b = le.AppendUint32(b, h.bodySum)
	b = le.AppendUint64(b, h.prev)
	var st Stat
	closed := uint64(0)
	if h.Closed != nil {
		st, closed = *h.Closed, closedWord
	}
	for _, v := range []uint64{uint64(st.SizeBytes), uint64(st.ModTimeNanos), uint64(st.ChangeNanos), st.Inode} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	b = le.AppendUint32(b, 0)
	return le.AppendUint64(b, closed)
}

// decodeHeader reads the header of a record.
func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("%d bytes of a header of %d: %w", len(b), headerSize, ErrCorrupt)
	}
	le := binary.LittleEndian
	if string(b[:4]) != recordMagic || crc32.Checksum(b[:96], castagnoli) != le.Uint32(b[96:]) {
		return header{}, fmt.Errorf("magic or checksum of a header differ: %w", ErrCorrupt)
	}
	h := header{kind: b[4], entries: le.Uint32(b[48:]), bodySum: le.Uint32(b[52:]), prev: le.Uint64(b[56:])}
	copy(h.ID[:], b[8:])
	h.TXID, h.Checksum = le.Uint64(b[24:]), le.Uint64(b[32:])
	h.PageSize, h.PageCount = le.Uint32(b[40:]), le.Uint32(b[44:])
	if le.Uint64(b[closedOffset:]) == closedWord {
		h.Closed = &Stat{int64(le.Uint64(b[64:])), int64(le.Uint64(b[72:])), int64(le.Uint64(b[80:])), le.Uint64(b[88:])}
	}
	ok := h.entries <= maxEntries
	switch h.kind {
	case kindAll:
		ok = ok && h.entries == h.PageCount
	case kindDelta:
		ok = ok && h.entries <= h.PageCount && h.prev <= h.TXID
	case kindGone:
		ok = ok && h.entries == 0
	default:
		ok = false
	}
	if !ok {
		return header{}, fmt.Errorf("record of kind %d with %d entries for %d pages: %w", h.kind, h.entries, h.PageCount, ErrCorrupt)
	}
	return h, nil
}

// Change is the checksum of one page.
type Change struct {
	Pgno uint32
	Sum  uint64
}

// encode returns a whole record. all is used unless it is a delta.
func (h *header) encode(all []uint64, changes []Change) []byte {
	le := binary.LittleEndian
	h.entries = uint32(len(all))
	if h.kind == kindDelta {
		h.entries = uint32(len(changes))
	}
	size := h.bodySize()
	b := make([]byte, headerSize, headerSize+size)
	switch h.kind {
	case kindAll:
		for _, s := range all {
			b = le.AppendUint64(b, s)
		}
	case kindDelta:
		for _, c := range changes {
			b = le.AppendUint32(b, c.Pgno)
			b = le.AppendUint64(b, c.Sum)
		}
		for int64(len(b)) < headerSize+size {
			b = append(b, 0)
		}
	}
	h.bodySum = crc32.Checksum(b[headerSize:], castagnoli)
	h.append(b[:0])
	return b
}

// applyBody changes sums, which are those of the record before, into those of the record with this body.
func (h *header) applyBody(sums []uint64, body []byte) ([]uint64, error) {
	if int64(len(body)) != h.bodySize() || crc32.Checksum(body, castagnoli) != h.bodySum {
		return nil, fmt.Errorf("checksum of a body of %d bytes differs: %w", len(body), ErrCorrupt)
	}
	le := binary.LittleEndian
	if h.kind == kindAll {
		sums = make([]uint64, h.entries)
		for i := range sums {
			sums[i] = le.Uint64(body[8*i:])
		}
		return sums, nil
	}
	switch n := int(h.PageCount); {
	case n <= len(sums):
		sums = sums[:n]
	case n-len(sums) > int(h.entries)+1: // every page that is new is in it, but the lock page
		return nil, fmt.Errorf("%d new pages and %d entries: %w", n-len(sums), h.entries, ErrCorrupt)
	default:
		sums = append(sums, make([]uint64, n-len(sums))...)
	}
	for i := range int(h.entries) {
		pgno := le.Uint32(body[deltaEntrySize*i:])
		if pgno == 0 || pgno > h.PageCount {
			return nil, fmt.Errorf("page %d of %d: %w", pgno, h.PageCount, ErrCorrupt)
		}
		sums[pgno-1] = le.Uint64(body[deltaEntrySize*i+4:])
	}
	return sums, nil
}
