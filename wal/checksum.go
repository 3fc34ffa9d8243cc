package wal

import "encoding/binary"

// Sum is the state of the WAL's cumulative checksum. The zero value is the seed
// of a header's checksum; the checksum of a header is the seed of the first
// frame, and so on, so that a frame is valid only behind all earlier ones.
type Sum [2]uint32

// Add returns the checksum after b, of which whole 8-byte words are used. The
// words are read as big-endian numbers if big, else as little-endian ones: the
// log says which (the lowest bit of its magic number).
func (s Sum) Add(big bool, b []byte) Sum {
	if big {
		return s.addBig(b)
	}
	return s.addLittle(b)
}

// addLittle keeps the sums of one step independent of its second addition
// (s1 + word first), which halves the length of the chain of additions.
func (s Sum) addLittle(b []byte) Sum {
	s1, s2 := s[0], s[1]
	for len(b) >= 64 {
		w := b[:64:64]
		s1 = s1 + binary.LittleEndian.Uint32(w[0:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[4:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[8:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[12:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[16:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[20:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[24:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[28:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[32:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[36:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[40:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[44:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[48:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[52:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(w[56:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(w[60:]) + s1
		b = b[64:]
	}
	for len(b) >= 8 {
		s1 = s1 + binary.LittleEndian.Uint32(b[0:]) + s2
		s2 = s2 + binary.LittleEndian.Uint32(b[4:]) + s1
		b = b[8:]
	}
	return Sum{s1, s2}
}

func (s Sum) addBig(b []byte) Sum {
	s1, s2 := s[0], s[1]
	for len(b) >= 8 {
		s1 = s1 + binary.BigEndian.Uint32(b[0:]) + s2
		s2 = s2 + binary.BigEndian.Uint32(b[4:]) + s1
		b = b[8:]
	}
	return Sum{s1, s2}
}
