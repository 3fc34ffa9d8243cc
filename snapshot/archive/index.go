package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// A page index says where each page of a large file is, and its checksum, so
// that one page can be read, and verified, without the rest:
//
//	magic 4 | size of the directory 8 | directory | CRC-64 8 | blocks
//
// The directory has for each block, as uvarints, what is added to the first page
// number of the block before to give its own, the offset in the file of its
// first frame, and its size; then its CRC-32C. A block has for each page,
// as uvarints, what is added to the page number before, and the size of the
// frame; then the page's checksum.
const (
	indexMagic     = "HSI1"
	indexHead      = 4 + 8
	indexBlock     = 128 // pages
	indexedFrom    = 32 << 10
	indexEntryMin  = 2 + 8
	directoryMin   = 3 + 4
	maxFrameSize   = 128 << 10
	indexBlockMax  = indexBlock * (5 + 5 + 8)
	indexFirstRead = 16 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// indexWriter collects the pages of a file.
type indexWriter struct {
	directory, blocks, block []byte
	blockN                   int
	last                     uint32 // page number
	first, before            uint32 // page number of this block, of the one before
	roll                     uint64 // all page checksums together
	offset                   int64  // of the block's first frame
}

func (w *indexWriter) add(fr snapshot.Frame) {
	if w.blockN == indexBlock {
		w.flush()
	}
	if w.blockN == 0 {
		w.first, w.offset, w.last = fr.Pgno, fr.Offset, fr.Pgno
	}
	w.block = binary.AppendUvarint(w.block, uint64(fr.Pgno-w.last))
	w.block = binary.AppendUvarint(w.block, uint64(fr.Size))
	w.block = binary.LittleEndian.AppendUint64(w.block, fr.Sum)
	w.last = fr.Pgno
	w.roll ^= fr.Sum &^ snapshot.ChecksumFlag
	w.blockN++
}

func (w *indexWriter) flush() {
	if w.blockN == 0 {
		return
	}
	w.directory = binary.AppendUvarint(w.directory, uint64(w.first-w.before))
	w.directory = binary.AppendUvarint(w.directory, uint64(w.offset))
	w.directory = binary.AppendUvarint(w.directory, uint64(len(w.block)))
	w.directory = binary.LittleEndian.AppendUint32(w.directory, crc32.Checksum(w.block, castagnoli))
	w.blocks = append(w.blocks, w.block...)
	w.before, w.block, w.blockN = w.first, w.block[:0], 0
}

// bytes returns the index and the checksum that the manifest keeps.
func (w *indexWriter) bytes() ([]byte, uint64) {
	w.flush()
	b := append(make([]byte, 0, indexHead+len(w.directory)+8+len(w.blocks)), indexMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(w.directory)))
	b = append(b, w.directory...)
	sum := crc(b)
	b = binary.LittleEndian.AppendUint64(b, sum)
	return append(b, w.blocks...), sum
}

// directoryEntry is one block of an index.
type directoryEntry struct {
	first  uint32 // page number
	offset int64  // of its first frame in the file
	at     int64  // of the block in the index
	size   int
	sum    uint32
}

// directory is the part of an index that is kept in memory.
type directory []directoryEntry

// directorySize reads from the head how many bytes the directory needs, with
// the head and the checksum.
func directorySize(head []byte, indexSize int64) (int64, error) {
	if len(head) < indexHead || string(head[:4]) != indexMagic {
		return 0, fmt.Errorf("it is no page index: %w", ErrDamaged)
	}
	n := binary.LittleEndian.Uint64(head[4:])
	if n > uint64(indexSize) || int64(n)+indexHead+8 > indexSize {
		return 0, fmt.Errorf("directory of %d bytes in an index of %d: %w", n, indexSize, ErrDamaged)
	}
	return int64(n) + indexHead + 8, nil
}

// directoryLikely is what the directory of a file with so many pages seldom
// takes more than, with the head and the checksum.
func directoryLikely(pages uint32) int64 {
	const entry = 3 + 4 + 2 + 4 // page numbers less than 2M apart, 256 MiB, a block
	return indexHead + 8 + entry*(int64(pages)/indexBlock+1)
}

// decodeDirectory reads the head, the directory and its checksum.
func decodeDirectory(b []byte, indexSize int64, sum uint64) (directory, error) {
	bad := func(format string, args ...any) (directory, error) {
		return nil, fmt.Errorf("page index: %w: %w", fmt.Errorf(format, args...), ErrDamaged)
	}
	n, err := directorySize(b, indexSize)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != n {
		return bad("directory of %d bytes, want %d", len(b), n)
	}
	if got := crc(b[:n-8]); got != sum || binary.LittleEndian.Uint64(b[n-8:]) != sum {
		return bad("checksum %016x, want %016x", got, sum)
	}
	rest := b[indexHead : n-8]
	d := make(directory, 0, len(rest)/directoryMin)
	last, at := uint64(0), n
	for len(rest) > 0 {
		var v [3]uint64
		for i := range v {
			var k int
			if v[i], k = binary.Uvarint(rest); k <= 0 {
				return bad("directory ends too early")
			}
			rest = rest[max(k, 0):]
		}
		if len(rest) < 4 || v[0] > 1<<32-1-last || v[1] > maxInt64-maxMetadata || v[2] > indexBlockMax || at+int64(v[2]) > indexSize || len(d) > 0 && int64(v[1]) <= d[len(d)-1].offset {
			return bad("block %d at page %d", len(d), last+v[0])
		}
		d = append(d, directoryEntry{first: uint32(last + v[0]), offset: int64(v[1]), at: at, size: int(v[2]), sum: binary.LittleEndian.Uint32(rest)})
		last += v[0]
		at += int64(v[2])
		rest = rest[4:]
	}
	return d, nil
}

// find returns the block that would have a page.
func (d directory) find(pgno uint32) (directoryEntry, bool) {
	i := sort.Search(len(d), func(i int) bool { return d[i].first > pgno })
	if i == 0 {
		return directoryEntry{}, false
	}
	return d[i-1], true
}

// place is where a page is in a file.
type place struct {
	offset int64
	size   int
	sum    uint64
}

// findInBlock looks a page up in a block.
func findInBlock(e directoryEntry, block []byte, pgno uint32) (place, bool, error) {
	bad := func(format string, args ...any) (place, bool, error) {
		return place{}, false, fmt.Errorf("page index: block of page %d: %w: %w", e.first, fmt.Errorf(format, args...), ErrDamaged)
	}
	if len(block) != e.size || crc32.Checksum(block, castagnoli) != e.sum {
		return bad("wrong checksum")
	}
	at, page := e.offset, uint64(e.first)
	for r := bytes.NewReader(block); r.Len() > 0; {
		delta, err := binary.ReadUvarint(r)
		if err != nil {
			return bad("%v", err)
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return bad("%v", err)
		}
		var sum [8]byte
		if n, _ := r.Read(sum[:]); n != 8 {
			return bad("it ends too early")
		}
		if delta > 1<<32-1-page || size > maxFrameSize {
			return bad("page %d of %d bytes", page+delta, size)
		}
		if page += delta; page == uint64(pgno) {
			return place{offset: at, size: int(size), sum: binary.LittleEndian.Uint64(sum[:])}, true, nil
		} else if page > uint64(pgno) {
			break
		}
		at += int64(size)
	}
	return place{}, false, nil
}
