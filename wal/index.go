package wal

import (
	"encoding/binary"
	"fmt"
)

// The wal-index (the -shm file) is a row of regions of 32 KiB. All numbers are
// in the byte order of the host. Region 0:
//
//	  0  index header      48 bytes
//	 48  index header      the same again; written first, read last
//	 96  checkpoint block  40 bytes
//	136  page numbers of frames 1..4062
//	16384  hash table: 8192 slots of 16 bits
//
// Other regions: page numbers of 4096 frames at 0, hash table at 16384.
const (
	// RegionSize is the size of the parts in which the wal-index is mapped.
	RegionSize = 32768

	indexVersion      = 3007000
	indexHeaderSize   = 48
	checkpointOffset  = 2 * indexHeaderSize
	checkpointSize    = 40
	backfillOffset    = checkpointOffset
	readMarkOffset    = checkpointOffset + 4
	attemptedOffset   = checkpointOffset + 32
	epochOffset       = checkpointOffset + 36
	indexPagesOffset  = checkpointOffset + checkpointSize
	hashOffset        = RegionSize / 2
	hashSlots         = 8192
	hashFactor        = 383
	framesPerRegion   = 4096
	framesInRegion0   = framesPerRegion - indexPagesOffset/4
	readMarks         = 5
	indexChecksumSize = 40 // bytes of the header that its checksum covers
)

// IndexHeader is the header of the wal-index:
//
//	 0  version         3007000
//	 4  unused
//	 8  change          + 1 at each transaction, 0 after a recovery
//	12  initialised     1 byte, 1
//	13  big-endian      1 byte, byte order of the log's checksums
//	14  page size       2 bytes, 65536 as 1
//	16  max frame       the last valid frame, 0 for an empty log
//	20  page count      of the database
//	24  frame checksum  of frame max frame, 8 bytes
//	32  salts           8 bytes, as in the log
//	40  checksum        of bytes 0..39, in the byte order of the host
type IndexHeader struct {
	Change    uint32
	BigEndian bool
	// PageSize is 0 in an index that was recovered from an empty log.
	PageSize uint32
	MaxFrame uint32
	// PageCount is 0 in an index that was recovered from an empty log: the
	// database file's size tells then.
	PageCount uint32
	FrameSum  Sum
	Salts     [8]byte
}

// Encode writes the header to b, which has room for 48 bytes.
func (h IndexHeader) Encode(b []byte) {
	_ = b[indexHeaderSize-1]
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], indexVersion)
	ne.PutUint32(b[4:], 0)
	ne.PutUint32(b[8:], h.Change)
	b[12] = 1
	b[13] = 0
	if h.BigEndian {
		b[13] = 1
	}
	ne.PutUint16(b[14:], uint16(h.PageSize&0xff00|h.PageSize>>16))
	ne.PutUint32(b[16:], h.MaxFrame)
	ne.PutUint32(b[20:], h.PageCount)
	ne.PutUint32(b[24:], h.FrameSum[0])
	ne.PutUint32(b[28:], h.FrameSum[1])
	copy(b[32:40], h.Salts[:])
	s := Sum{}.Add(hostBig, b[:indexChecksumSize])
	ne.PutUint32(b[40:], s[0])
	ne.PutUint32(b[44:], s[1])
}

// DecodeIndexHeader reads one copy of the header from b. A header that is not
// initialised or whose checksum differs gives an error that wraps
// [ErrUnstable]: it is being written, or its writer died and recovery is due.
func DecodeIndexHeader(b []byte) (IndexHeader, error) {
	if len(b) < indexHeaderSize {
		return IndexHeader{}, fmt.Errorf("decode wal-index header: %d of %d bytes: %w", len(b), indexHeaderSize, ErrCorrupt)
	}
	ne := binary.NativeEndian
	if b[12] == 0 {
		return IndexHeader{}, fmt.Errorf("decode wal-index header: not initialised: %w", ErrUnstable)
	}
	s := Sum{}.Add(hostBig, b[:indexChecksumSize])
	if s[0] != ne.Uint32(b[40:]) || s[1] != ne.Uint32(b[44:]) {
		return IndexHeader{}, fmt.Errorf("decode wal-index header: checksum differs: %w", ErrUnstable)
	}
	if v := ne.Uint32(b); v != indexVersion {
		return IndexHeader{}, fmt.Errorf("decode wal-index header: version %d: %w", v, ErrVersion)
	}
	size := uint32(ne.Uint16(b[14:]))
	h := IndexHeader{
		Change:    ne.Uint32(b[8:]),
		BigEndian: b[13] != 0,
		PageSize:  size&0xfe00 | size&1<<16,
		MaxFrame:  ne.Uint32(b[16:]),
		PageCount: ne.Uint32(b[20:]),
		FrameSum:  Sum{ne.Uint32(b[24:]), ne.Uint32(b[28:])},
		Salts:     [8]byte(b[32:40]),
	}
	if h.PageSize != 0 && !ValidPageSize(h.PageSize) || h.PageSize == 0 && h.MaxFrame != 0 {
		return IndexHeader{}, fmt.Errorf("decode wal-index header: page size %d with %d frames: %w", h.PageSize, h.MaxFrame, ErrCorrupt)
	}
	return h, nil
}

// Fingerprint returns what identifies the state the header shows.
func (h IndexHeader) Fingerprint() Fingerprint {
	return Fingerprint{
		Change:         h.Change,
		PageCount:      h.PageCount,
		Salt1:          binary.NativeEndian.Uint32(h.Salts[0:]),
		Salt2:          binary.NativeEndian.Uint32(h.Salts[4:]),
		MaxFrame:       h.MaxFrame,
		FrameChecksum1: h.FrameSum[0],
		FrameChecksum2: h.FrameSum[1],
	}
}

// CheckpointInfo is the checkpoint block of the wal-index:
//
//	 0  backfilled  frames that are in the database file
//	 4  read marks  5 numbers; mark i goes with lock slot 3+i
//	24  locks       8 bytes that only some platforms lock
//	32  attempted   frames that a checkpoint may have begun to copy
//	36  epoch       unused by SQLite; ours
type CheckpointInfo struct {
	Backfilled uint32
	ReadMarks  [readMarks]uint32
	Attempted  uint32
	// Epoch is the word by which the node tells handles that were open before a
	// heal or a delete to fail until they are reopened. SQLite never touches it,
	// recovery included.
	Epoch uint32
}

// Encode writes the block to b, which has room for 40 bytes. It leaves the lock
// bytes alone.
func (c CheckpointInfo) Encode(b []byte) {
	_ = b[checkpointSize-1]
	ne := binary.NativeEndian
	ne.PutUint32(b, c.Backfilled)
	for i, m := range c.ReadMarks {
		ne.PutUint32(b[4+4*i:], m)
	}
	ne.PutUint32(b[32:], c.Attempted)
	ne.PutUint32(b[36:], c.Epoch)
}

// DecodeCheckpointInfo reads the block from b.
func DecodeCheckpointInfo(b []byte) (CheckpointInfo, error) {
	if len(b) < checkpointSize {
		return CheckpointInfo{}, fmt.Errorf("decode checkpoint block: %d of %d bytes: %w", len(b), checkpointSize, ErrCorrupt)
	}
	ne := binary.NativeEndian
	c := CheckpointInfo{Backfilled: ne.Uint32(b), Attempted: ne.Uint32(b[32:]), Epoch: ne.Uint32(b[36:])}
	for i := range c.ReadMarks {
		c.ReadMarks[i] = ne.Uint32(b[4+4*i:])
	}
	return c, nil
}
