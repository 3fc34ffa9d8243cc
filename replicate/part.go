package replicate

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A transaction whose LTX file is longer than PartBytes travels as parts and a
// final entry (RULES A8). Entries as in entry.go:
//
//	part   16 database, 16 entry id, 8 term, 8+8 pre position, 4 parts in all, 4 number from 1, 4 length, bytes of the LTX file
//	final  1 flags (1: abort), 16 database, 16 entry id, 8 term, 8+8 pre position, 8+8 post position,
//	       8 commit time, 4 page size, 4 page count, 4 pages, 4 parts, 8 length of the LTX file, 32 hash
//
// Every part but the last holds PartBytes bytes. The LTX file in the parts has
// the commit time partsCommitMillis: its own is in the final entry, and
// snapshot.RestampReader puts it where it belongs. The hash is that of
// partHash over the parts in order. A final entry that aborts has zeros from
// the post position on.

const (
	// PartBytes is the length of a part, and the longest LTX file of a
	// transaction that is a single entry.
	PartBytes = 512 << 10

	maxParts          = 1 << 20
	maxRunning        = 1024 // large transactions under way in a cluster
	partsCommitMillis = 1

	partHeaderSize = entryPrefixSize + 16 + 16 + 8 + 16 + 4 + 4 + 4
	partOverhead   = partHeaderSize + entryChecksumSize

	finalAbort = 1
)

// Part carries a piece of the LTX file of a large transaction.
type Part struct {
	DB     DatabaseID
	ID     EntryID // of the transaction
	Term   uint64  // the only raft term in which it may be decided
	Pre    Position
	Count  uint32 // parts of the transaction
	Number uint32 // of this one, from 1
	Data   []byte // decoded: aliases the entry's bytes
}

// Final decides a large transaction whose parts came before.
type Final struct {
	Abort      bool // the writer gave up
	DB         DatabaseID
	ID         EntryID
	Term       uint64
	Pre, Post  Position
	CommitTime int64  // microseconds since 1970
	PageSize   uint32 // bytes
	PageCount  uint32 // pages of the database after it
	Pages      uint32 // in the transaction
	Count      uint32 // parts
	Size       uint64 // bytes of the LTX file
	Hash       [32]byte
}

// newPart returns the entry of a part of n bytes and, within it, the place of
// those bytes. finishPart completes it.
func newPart(p *Part, n int) (entry, data []byte) {
	entry = make([]byte, 0, partOverhead+n)
	entry = append(entry, CodecVersion, byte(KindPart))
	entry = append(entry, p.DB[:]...)
	entry = append(entry, p.ID[:]...)
	entry = binary.LittleEndian.AppendUint64(entry, p.Term)
	entry = appendPosition(entry, p.Pre)
	entry = binary.LittleEndian.AppendUint32(entry, p.Count)
	entry = binary.LittleEndian.AppendUint32(entry, p.Number)
	entry = binary.LittleEndian.AppendUint32(entry, uint32(n))
	entry = entry[:partHeaderSize+n]
	return entry, entry[partHeaderSize:]
}

func finishPart(entry []byte) []byte {
	return binary.LittleEndian.AppendUint32(entry, crc32.Checksum(entry, castagnoli))
}

// EncodePart appends the entry to dst.
func EncodePart(dst []byte, p *Part) []byte {
	entry, data := newPart(p, len(p.Data))
	copy(data, p.Data)
	return append(dst, finishPart(entry)...)
}

// EncodeFinal appends the entry to dst.
func EncodeFinal(dst []byte, f *Final) []byte {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindFinal), boolByte(f.Abort)*finalAbort)
	dst = append(dst, f.DB[:]...)
	dst = append(dst, f.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, f.Term)
	dst = appendPosition(dst, f.Pre)
	dst = appendPosition(dst, f.Post)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(f.CommitTime))
	for _, v := range []uint32{f.PageSize, f.PageCount, f.Pages, f.Count} {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	dst = binary.LittleEndian.AppendUint64(dst, f.Size)
	dst = append(dst, f.Hash[:]...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func (d *decoder) part(p *Part) {
	d.bytes16((*[16]byte)(&p.DB))
	d.bytes16((*[16]byte)(&p.ID))
	p.Term = d.uint64()
	p.Pre = d.position()
	p.Count = d.uint32()
	p.Number = d.uint32()
	n := d.uint32()
	if uint64(n) != uint64(len(d.b)) || n > PartBytes {
		d.fail("part of %d bytes, at most %d, and %d are left", n, PartBytes, len(d.b))
	}
	p.Data = d.take(len(d.b))
}

func (d *decoder) final(f *Final) {
	switch flags := d.uint8(); flags {
	case 0:
	case finalAbort:
		f.Abort = true
	default:
		d.fail("flags of the final entry are %#x", flags)
	}
	d.bytes16((*[16]byte)(&f.DB))
	d.bytes16((*[16]byte)(&f.ID))
	f.Term = d.uint64()
	f.Pre = d.position()
	f.Post = d.position()
	f.CommitTime = int64(d.uint64())
	f.PageSize = d.uint32()
	f.PageCount = d.uint32()
	f.Pages = d.uint32()
	f.Count = d.uint32()
	f.Size = d.uint64()
	copy(f.Hash[:], d.take(len(f.Hash)))
}

// transaction is what f decides, in the form of an entry that carries all of it.
func (f *Final) transaction() *Transaction {
	return &Transaction{
		DB: f.DB, ID: f.ID, Term: f.Term, Pre: f.Pre, Post: f.Post, CommitTime: f.CommitTime,
		PageSize: f.PageSize, PageCount: f.PageCount,
	}
}

// String names the transaction for people.
func (f *Final) String() string {
	return fmt.Sprintf("%s of %s in %d parts", f.Post.TXID, f.DB, f.Count)
}
