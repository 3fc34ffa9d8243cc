package wal

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the length of the header at offset 0 of a WAL, in bytes.
const HeaderSize = 32

const (
	magic      = 0x377f0682 // | 1: checksummed in big-endian order
	walVersion = 3007000
)

// Header is the WAL header:
//
//	 0  magic          0x377f0682, or 0x377f0683 for big-endian checksums
//	 4  version        3007000
//	 8  page size
//	12  sequence       how often the log was restarted; informative
//	16  salts          8 bytes, repeated in each frame header
//	24  checksum       of bytes 0..23
//
// All numbers are big-endian.
type Header struct {
	// BigEndian is the byte order of every checksum of the log, its own included.
	BigEndian bool
	// PageSize is a power of two from 512 to 65536.
	PageSize uint32
	Sequence uint32
	// Salts are kept as the file has them.
	Salts [8]byte
}

// Encode writes the header to b, which has room for [HeaderSize] bytes, and
// returns its checksum, the seed of the first frame.
func (h Header) Encode(b []byte) Sum {
	m := uint32(magic)
	if h.BigEndian {
		m |= 1
	}
	binary.BigEndian.PutUint32(b[0:], m)
	binary.BigEndian.PutUint32(b[4:], walVersion)
	binary.BigEndian.PutUint32(b[8:], h.PageSize)
	binary.BigEndian.PutUint32(b[12:], h.Sequence)
	copy(b[16:24], h.Salts[:])
	s := Sum{}.Add(h.BigEndian, b[:24])
	binary.BigEndian.PutUint32(b[24:], s[0])
	binary.BigEndian.PutUint32(b[28:], s[1])
	return s
}

// DecodeHeader reads a WAL header and its checksum from b. As in SQLite, a log
// whose header is not valid holds nothing.
func DecodeHeader(b []byte) (Header, Sum, error) {
	if len(b) < HeaderSize {
		return Header{}, Sum{}, fmt.Errorf("decode wal header: %d of %d bytes: %w", len(b), HeaderSize, ErrCorrupt)
	}
	m := binary.BigEndian.Uint32(b)
	if m&^1 != magic {
		return Header{}, Sum{}, fmt.Errorf("decode wal header: magic number %08x: %w", m, ErrCorrupt)
	}
	h := Header{
		BigEndian: m&1 == 1,
		PageSize:  binary.BigEndian.Uint32(b[8:]),
		Sequence:  binary.BigEndian.Uint32(b[12:]),
		Salts:     [8]byte(b[16:24]),
	}
	s := Sum{}.Add(h.BigEndian, b[:24])
	if s[0] != binary.BigEndian.Uint32(b[24:]) || s[1] != binary.BigEndian.Uint32(b[28:]) {
		return Header{}, Sum{}, fmt.Errorf("decode wal header: checksum differs: %w", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(b[4:]); v != walVersion {
		return Header{}, Sum{}, fmt.Errorf("decode wal header: version %d: %w", v, ErrVersion)
	}
	if !ValidPageSize(h.PageSize) {
		return Header{}, Sum{}, fmt.Errorf("decode wal header: page size %d: %w", h.PageSize, ErrCorrupt)
	}
	return h, s, nil
}

// ValidPageSize tells whether SQLite can have pages of n bytes.
func ValidPageSize(n uint32) bool {
	return n >= 512 && n <= 65536 && n&(n-1) == 0
}
