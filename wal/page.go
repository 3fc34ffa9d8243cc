package wal

import "encoding/binary"

// Page is the image of one database page.
type Page struct {
	Pgno uint32
	Data []byte
}

// EmptyDatabase returns the one-page image of a database without tables.
func EmptyDatabase(pageSize uint32, autoVacuum uint8) []byte {
	b := make([]byte, pageSize)
	copy(b, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(b[16:], uint16(pageSize&0xffff|pageSize>>16))
	b[18], b[19], b[21], b[22], b[23] = 2, 2, 64, 32, 32
	binary.BigEndian.PutUint32(b[28:], 1)
	if autoVacuum != 0 {
		b[55] = 1
	}
	if autoVacuum == 2 {
		b[67] = 1
	}
	b[100] = 0x0d
	binary.BigEndian.PutUint16(b[105:], uint16(pageSize&0xffff))
	return b
}
