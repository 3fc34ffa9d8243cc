// Package sqlitefile looks at SQLite files that are no replicated database: what somebody wants to import, and what was
// exported.
//
// Owns: what a file has to be so that it can be imported, and how one gets into that shape.
// Imports: wal for the header of a log, internal/shell to cut a script into statements.
// Invariant: a file that somebody else gave is never changed; where it has to be changed first, a private copy is.
package sqlitefile

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/mattn/go-sqlite3" // the one SQLite library of the process
)

// ErrDamaged is returned for a file that is no database that SQLite finds whole.
var ErrDamaged = errors.New("damaged")

// ErrRefused is returned for a file that may be whole, and cannot be taken as it lies there.
var ErrRefused = errors.New("refused")

// magic begins each SQLite file.
const magic = "SQLite format 3\x00"

const headerSize = 100

// Info is what the header of a file says, and SQLite makes of it.
type Info struct {
	PageSize   uint32
	PageCount  uint32
	AutoVacuum uint8 // 0 none, 1 full, 2 incremental
	WAL        bool  // the file is in WAL mode
}

// Size is that of the content in bytes.
func (i Info) Size() int64 { return int64(i.PageSize) * int64(i.PageCount) }

// readHeader reads what the first 100 bytes of a file say.
func readHeader(b []byte, size int64) (Info, error) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic {
		return Info{}, fmt.Errorf("it has not the header of a SQLite database (encrypted ones cannot be read): %w", ErrDamaged)
	}
	i := Info{PageSize: uint32(binary.BigEndian.Uint16(b[16:])), WAL: b[18] == 2 || b[19] == 2}
	if i.PageSize == 1 {
		i.PageSize = 65536
	}
	if i.PageSize < 512 || i.PageSize&(i.PageSize-1) != 0 {
		return Info{}, fmt.Errorf("page size %d: %w", i.PageSize, ErrDamaged)
	}
	if b[18] > 2 || b[19] > 2 {
		return Info{}, fmt.Errorf("it is of a format that this version of SQLite does not write (%d, %d): %w", b[18], b[19], ErrRefused)
	}
	if binary.BigEndian.Uint32(b[52:]) != 0 {
		i.AutoVacuum = 1
		if binary.BigEndian.Uint32(b[64:]) != 0 {
			i.AutoVacuum = 2
		}
	}
	// The size in the header counts if the version that wrote it says so, as for SQLite.
	i.PageCount = binary.BigEndian.Uint32(b[28:])
	if i.PageCount == 0 || binary.BigEndian.Uint32(b[24:]) != binary.BigEndian.Uint32(b[92:]) {
		i.PageCount = uint32(min(size/int64(i.PageSize), 1<<32-2))
	}
	if have := size / int64(i.PageSize); have < int64(i.PageCount) {
		return Info{}, fmt.Errorf("it should have %d pages of %d bytes, the file has %d: it was cut off: %w", i.PageCount, i.PageSize, have, ErrDamaged)
	}
	return i, nil
}

// Inspect reads the header of a file without a log beside it.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	b := make([]byte, headerSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if errors.Is(err, io.EOF) {
			return Info{}, fmt.Errorf("%d bytes are no SQLite database: %w", size, ErrDamaged)
		}
		return Info{}, err
	}
	return readHeader(b, size)
}

// Check has SQLite look through a file that nobody writes and that has no log beside it.
func Check(ctx context.Context, path string) error {
	db, err := open(path, "mode=ro&immutable=1")
	if err != nil {
		return err
	}
	defer db.Close()
	// What is looked at came from elsewhere.
	for _, pragma := range []string{"trusted_schema=off", "cell_size_check=on", "mmap_size=0"} {
		if _, err := db.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return found(err)
		}
	}
	rows, err := db.QueryContext(ctx, "PRAGMA integrity_check(10)")
	if err != nil {
		return found(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return found(err)
		}
		lines = append(lines, line)
	}
	if err := rows.Err(); err != nil {
		return found(err)
	}
	if len(lines) != 1 || lines[0] != "ok" {
		return fmt.Errorf("integrity_check: %s: %w", strings.Join(lines, "; "), ErrDamaged)
	}
	return nil
}

// found names what SQLite could not do.
func found(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("integrity_check: %w: %w", err, ErrDamaged)
}

func open(path, query string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: abs, RawQuery: query}
	db, err := sql.Open("sqlite3", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// sameStat reports that nobody wrote the file between the two looks at it.
func sameStat(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Header makes page 1 of a file that of a database in WAL mode, with the size that it has.
func Header(page []byte, pageCount uint32) {
	page[18], page[19] = 2, 2
	binary.BigEndian.PutUint32(page[28:], pageCount)
	copy(page[92:96], page[24:28])
}
