package history

import (
	"os"

	"github.com/psanford/sqlite3vfs"
)

// What of sqlite3vfs v0.0.0-20260519004904 is worked round, and where. The
// tests in quirks_test.go fail without each.
//
//   - After an Open that fails it leaves methods behind, and SQLite closes the
//     file by an identifier that is 0: that of the first file that this process
//     has opened with the package, whosever it is. Opens never fail here: they
//     give a failedFile, whose first read does.
//   - The answer of CheckReservedLock is turned round: notReserved.
//   - A FileControl without an error takes every PRAGMA away from SQLite:
//     unknownPragma.
//   - Errors are known by their concrete type; one that is wrapped is SQLITE_ERROR.
//     All files here return its own.
//   - Every error of a write becomes 778, which elsewhere means that a commit has
//     an unknown outcome. A database is opened read-only, so that SQLite refuses
//     the statement; a temporary file can return it.
//   - A short read without an error panics: all files here return io.EOF.
//   - Temporary files of a connection come to its VFS: tempFile.
//   - It has no shared memory, and a database whose header says WAL would need
//     some: Database.readAt says that it is none.

// notReserved is what CheckReservedLock returns where nobody has the lock.
const notReserved = true

// unknownPragma lets SQLite handle a PRAGMA.
var unknownPragma = sqlite3vfs.NotFoundError

// failedFile is what an open that failed gives. SQLite reads the header before
// sqlite3_open returns, gets SQLITE_CANTOPEN, and closes it.
type failedFile struct{}

// Close implements sqlite3vfs.File.
func (failedFile) Close() error { return nil }

// ReadAt implements sqlite3vfs.File.
func (failedFile) ReadAt([]byte, int64) (int, error) { return 0, sqlite3vfs.CantOpenError }

// WriteAt implements sqlite3vfs.File.
func (failedFile) WriteAt([]byte, int64) (int, error) { return 0, sqlite3vfs.CantOpenError }

// Truncate implements sqlite3vfs.File.
func (failedFile) Truncate(int64) error { return sqlite3vfs.CantOpenError }

// Sync implements sqlite3vfs.File.
func (failedFile) Sync(sqlite3vfs.SyncType) error { return sqlite3vfs.CantOpenError }

// FileSize implements sqlite3vfs.File.
func (failedFile) FileSize() (int64, error) { return 0, sqlite3vfs.CantOpenError }

// Lock implements sqlite3vfs.File.
func (failedFile) Lock(sqlite3vfs.LockType) error { return sqlite3vfs.CantOpenError }

// Unlock implements sqlite3vfs.File.
func (failedFile) Unlock(sqlite3vfs.LockType) error { return nil }

// CheckReservedLock implements sqlite3vfs.File.
func (failedFile) CheckReservedLock() (bool, error) { return notReserved, nil }

// SectorSize implements sqlite3vfs.File.
func (failedFile) SectorSize() int64 { return 4096 }

// DeviceCharacteristics implements sqlite3vfs.File.
func (failedFile) DeviceCharacteristics() sqlite3vfs.DeviceCharacteristic {
	return sqlite3vfs.IocapImmutable
}

// tempFile is what SQLite sorts and keeps temporary tables in. It goes away
// with its descriptor.
type tempFile struct{ *os.File }

func newTempFile() (*tempFile, error) {
	f, err := os.CreateTemp("", "hasqlite-history-*")
	if err != nil {
		return nil, err
	}
	return &tempFile{f}, nil
}

// Close implements sqlite3vfs.File.
func (f *tempFile) Close() error {
	_ = f.File.Close() // nobody reads it any more
	if os.Remove(f.Name()) != nil {
		return sqlite3vfs.IOError
	}
	return nil
}

// Truncate implements sqlite3vfs.File.
func (f *tempFile) Truncate(size int64) error {
	if f.File.Truncate(size) != nil {
		return sqlite3vfs.IOError
	}
	return nil
}

// Sync implements sqlite3vfs.File: nothing of it has to last.
func (f *tempFile) Sync(sqlite3vfs.SyncType) error { return nil }

// FileSize implements sqlite3vfs.File.
func (f *tempFile) FileSize() (int64, error) {
	i, err := f.Stat()
	if err != nil {
		return 0, sqlite3vfs.IOError
	}
	return i.Size(), nil
}

// Lock implements sqlite3vfs.File.
func (f *tempFile) Lock(sqlite3vfs.LockType) error { return nil }

// Unlock implements sqlite3vfs.File.
func (f *tempFile) Unlock(sqlite3vfs.LockType) error { return nil }

// CheckReservedLock implements sqlite3vfs.File.
func (f *tempFile) CheckReservedLock() (bool, error) { return notReserved, nil }

// SectorSize implements sqlite3vfs.File.
func (f *tempFile) SectorSize() int64 { return 4096 }

// DeviceCharacteristics implements sqlite3vfs.File.
func (f *tempFile) DeviceCharacteristics() sqlite3vfs.DeviceCharacteristic { return 0 }
