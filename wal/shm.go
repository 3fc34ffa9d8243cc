package wal

import (
	"sync/atomic"
	"unsafe"
)

// The memory of the wal-index is shared with processes that read it while it is
// written here. Facts that make the code below safe, on any memory order:
//  1. Only the holder of the write lock stores to headers and hash tables, so a
//     load-modify-store of a word has no other writer to lose.
//  2. Every word whose order matters is loaded and stored by sync/atomic, which
//     is sequentially consistent: a later store is never seen before an earlier
//     one. The barriers that SQLite's own code has are made too, because the
//     other side may be C.
//  3. SQLite accesses slots of the hash tables by 16 bits, Go has no atomic of
//     that size. Slots are stored as halves of aligned 32-bit words, which an
//     observer of 16 bits sees as one store (fact 1 protects the other half).

// word is the aligned 32-bit word at byte off of a region.
func word(region []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer(&region[off : off+4][0]))
}

func loadWord(region []byte, off int) uint32     { return atomic.LoadUint32(word(region, off)) }
func storeWord(region []byte, off int, v uint32) { atomic.StoreUint32(word(region, off), v) }

// loadWords copies len(dst) bytes, a multiple of 4, from byte off of a region.
func loadWords(dst, region []byte, off int) {
	for i := 0; i < len(dst); i += 4 {
		*(*uint32)(unsafe.Pointer(&dst[i : i+4][0])) = loadWord(region, off+i)
	}
}

// storeWords copies src, a multiple of 4 bytes, to byte off of a region.
func storeWords(region []byte, off int, src []byte) {
	for i := 0; i < len(src); i += 4 {
		storeWord(region, off+i, *(*uint32)(unsafe.Pointer(&src[i : i+4][0])))
	}
}

// slotShift is where slot i is in the word it shares with its neighbour.
func slotShift(i uint32) uint32 { return (i&1 ^ evenSlotHigh) * 16 }

// loadSlot returns slot i of the hash table of a region.
func loadSlot(region []byte, i uint32) uint32 {
	return loadWord(region, hashOffset+int(i&^1)*2) >> slotShift(i) & 0xffff
}

// slots is the hash table of a region for the holder of the write lock, who sees
// his own stores without atomics.
func slots(region []byte) *[hashSlots]uint16 {
	return (*[hashSlots]uint16)(unsafe.Pointer(&region[hashOffset:RegionSize][0]))
}

// storeSlot sets slot i of the hash table of a region.
func storeSlot(region []byte, i, v uint32) {
	w := word(region, hashOffset+int(i&^1)*2)
	shift := slotShift(i)
	atomic.StoreUint32(w, *w&^(0xffff<<shift)|v<<shift)
}

// loadIndexHeader reads the header as SQLite does: the first copy, a barrier,
// the second copy; both must be the same.
func loadIndexHeader(region []byte, shm Shm) (IndexHeader, error) {
	var buf [2 * indexHeaderSize]uint32 // aligned; more than enough
	b := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), 2*indexHeaderSize)
	loadWords(b[:indexHeaderSize], region, 0)
	shm.Barrier()
	loadWords(b[indexHeaderSize:], region, indexHeaderSize)
	if [indexHeaderSize]byte(b) != [indexHeaderSize]byte(b[indexHeaderSize:]) {
		return IndexHeader{}, ErrUnstable
	}
	return DecodeIndexHeader(b[:indexHeaderSize])
}

// storeIndexHeader publishes h: the second copy, a barrier, the first copy.
// Whoever reads the first copy sees everything stored before. between runs
// after the second copy.
func storeIndexHeader(region []byte, shm Shm, h IndexHeader, between func()) {
	var buf [indexHeaderSize / 4]uint32
	b := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), indexHeaderSize)
	h.Encode(b)
	shm.Barrier()
	storeWords(region, indexHeaderSize, b)
	if between != nil {
		between()
	}
	shm.Barrier()
	storeWords(region, 0, b)
	shm.Barrier()
}
