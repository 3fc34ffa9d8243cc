package history

import (
	"io"

	"github.com/psanford/sqlite3vfs"

	"github.com/uglyer/ha-sqlite/internal/moment"
)

// file is one connection's database.
type file struct {
	db  *Database
	own bool // and nobody else's
}

// Close implements sqlite3vfs.File.
func (f *file) Close() error {
	if f.own {
		f.db.Close()
	}
	return nil
}

// ReadAt implements sqlite3vfs.File.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.db.readAt(p, off)
	if err != nil && err != io.EOF {
		err = sqlite3vfs.IOErrorRead // the text is kept for PRAGMA hasqlite_error
	}
	return n, err
}

// WriteAt implements sqlite3vfs.File. SQLite does not come here: it knows that
// the file was opened read-only.
func (f *file) WriteAt([]byte, int64) (int, error) { return 0, sqlite3vfs.ReadOnlyError }

// Truncate implements sqlite3vfs.File.
func (f *file) Truncate(int64) error { return sqlite3vfs.ReadOnlyError }

// Sync implements sqlite3vfs.File.
func (f *file) Sync(sqlite3vfs.SyncType) error { return nil }

// FileSize implements sqlite3vfs.File.
func (f *file) FileSize() (int64, error) { return f.db.size(), nil }

// Lock implements sqlite3vfs.File. What never changes needs no lock.
func (f *file) Lock(sqlite3vfs.LockType) error { return nil }

// Unlock implements sqlite3vfs.File.
func (f *file) Unlock(sqlite3vfs.LockType) error { return nil }

// CheckReservedLock implements sqlite3vfs.File.
func (f *file) CheckReservedLock() (bool, error) { return notReserved, nil }

// SectorSize implements sqlite3vfs.File.
func (f *file) SectorSize() int64 { return 4096 }

// DeviceCharacteristics implements sqlite3vfs.File. Of an immutable file SQLite
// looks for no journal and keeps its cache.
func (f *file) DeviceCharacteristics() sqlite3vfs.DeviceCharacteristic {
	return sqlite3vfs.IocapImmutable
}

// FileControl implements sqlite3vfs.FileController.
func (f *file) FileControl(_ int, pragma string, _ *string) (*string, error) {
	answer := ""
	switch pragma {
	case "journal_mode":
		answer = "off" // whatever was asked for
	case "hasqlite_position":
		answer = f.db.found.Bookmark()
	case "hasqlite_time":
		answer = moment.TimeText(f.db.found.Point.Time)
	case "hasqlite_error":
		if err := f.db.Err(); err != nil {
			answer = err.Error()
		}
	default:
		return nil, unknownPragma
	}
	return &answer, nil
}
