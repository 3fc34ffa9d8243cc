package wal

import (
	"encoding/binary"
	"fmt"
)

// EmptyDatabase returns the image of an empty database in WAL mode: one page,
// with nothing in its schema. Every node makes the same bytes. autoVacuum is 0
// (none), 1 (full) or 2 (incremental), as in PRAGMA auto_vacuum.
//
// SQLite itself would write the same, but for the change counter and version
// fields, which stay 0 here: they are set by the first transaction. The schema
// format and the text encoding stay 0 ("not chosen yet"), so that the first
// CREATE chooses them.
func EmptyDatabase(pageSize uint32, autoVacuum uint8) ([]byte, error) {
	if !ValidPageSize(pageSize) {
		return nil, fmt.Errorf("make empty database: page size %d: %w", pageSize, ErrPageSize)
	}
	if autoVacuum > 2 {
		return nil, fmt.Errorf("make empty database: auto_vacuum %d: %w", autoVacuum, ErrInvalid)
	}
	b := make([]byte, pageSize)
	copy(b, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(b[16:], uint16(pageSize&0xfe00|pageSize>>16)) // 65536 is written as 1
	b[18], b[19] = 2, 2                                                      // WAL for writers and readers
	b[21], b[22], b[23] = 64, 32, 32                                         // fixed payload fractions
	binary.BigEndian.PutUint32(b[28:], 1)                                    // pages
	if autoVacuum > 0 {
		binary.BigEndian.PutUint32(b[52:], 1)
	}
	if autoVacuum == 2 {
		binary.BigEndian.PutUint32(b[64:], 1)
	}
	b[100] = 0x0d                                         // leaf of a table b-tree
	binary.BigEndian.PutUint16(b[105:], uint16(pageSize)) // cell area starts at the end; 65536 is written as 0
	return b, nil
}
