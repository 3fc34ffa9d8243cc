package wal

import "encoding/binary"

// FrameHeaderSize is the length of the header in front of each page of a WAL,
// in bytes.
const FrameHeaderSize = 24

// Page is a page image and its number.
type Page struct {
	Pgno uint32
	Data []byte
}

// FrameHeader is the part of a frame header that says what the frame is:
//
//	 0  page number
//	 4  page count     of the database after the transaction in its last frame
//	                   (the commit frame), 0 in its other frames
//	 8  salts          those of the WAL header
//	16  checksum       cumulative, after bytes 0..7 and the page
//
// All numbers are big-endian.
type FrameHeader struct {
	Pgno      uint32
	PageCount uint32
}

// Commit tells whether the frame ends a transaction.
func (f FrameHeader) Commit() bool { return f.PageCount != 0 }

// encodeFrame writes the header of a frame with the page data to b and returns
// the checksum after it.
func encodeFrame(b []byte, f FrameHeader, salts [8]byte, big bool, seed Sum, data []byte) Sum {
	_ = b[FrameHeaderSize-1]
	binary.BigEndian.PutUint32(b[0:], f.Pgno)
	binary.BigEndian.PutUint32(b[4:], f.PageCount)
	copy(b[8:16], salts[:])
	s := seed.Add(big, b[:8]).Add(big, data)
	binary.BigEndian.PutUint32(b[16:], s[0])
	binary.BigEndian.PutUint32(b[20:], s[1])
	return s
}

// decodeFrame reads a frame (header and page) of the log whose header is h. It
// returns false for a frame that does not belong there: normal behind the end
// of a log, where an earlier generation or an unfinished write may be.
func decodeFrame(frame []byte, h Header, seed Sum) (FrameHeader, Sum, bool) {
	if len(frame) != FrameHeaderSize+int(h.PageSize) || [8]byte(frame[8:16]) != h.Salts {
		return FrameHeader{}, seed, false
	}
	f := FrameHeader{Pgno: binary.BigEndian.Uint32(frame), PageCount: binary.BigEndian.Uint32(frame[4:])}
	if f.Pgno == 0 {
		return FrameHeader{}, seed, false
	}
	s := seed.Add(h.BigEndian, frame[:8]).Add(h.BigEndian, frame[FrameHeaderSize:])
	if s[0] != binary.BigEndian.Uint32(frame[16:]) || s[1] != binary.BigEndian.Uint32(frame[20:]) {
		return FrameHeader{}, seed, false
	}
	return f, s, true
}

// frameOffset is where frame n (from 1) starts in a log of pages of pageSize.
func frameOffset(n, pageSize uint32) int64 {
	return HeaderSize + int64(n-1)*int64(pageSize+FrameHeaderSize)
}
