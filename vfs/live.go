package vfs

/*
#include <stdlib.h>
#include "live.h"

#cgo noescape hasqlite_live_lock
#cgo nocallback hasqlite_live_lock
#cgo noescape hasqlite_live_barrier
#cgo nocallback hasqlite_live_barrier
#cgo noescape hasqlite_live_read
#cgo nocallback hasqlite_live_read
#cgo noescape hasqlite_live_write
#cgo nocallback hasqlite_live_write
#cgo noescape hasqlite_live_size
#cgo nocallback hasqlite_live_size
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	_ "github.com/mattn/go-sqlite3" // the one SQLite library of the process

	"github.com/uglyer/ha-sqlite/wal"
)

var (
	// ErrExists is returned by [CreateImage] for a file that has content.
	ErrExists = errors.New("database file exists")
	// ErrPinned is returned by [Live.Checkpoint] while a snapshot is open. Try
	// again when it is closed.
	ErrPinned = fmt.Errorf("a snapshot is open: %w", wal.ErrBusy)
	// ErrNotDatabase is returned by [OpenLive] when the content of the file is to
	// blame: no database in WAL mode, or a damaged one. Any other error may pass.
	ErrNotDatabase = errors.New("not a usable database file")
)

// liveResult is a result code of SQLite with what was done.
type liveResult struct {
	code int
	text string
}

func (e *liveResult) Error() string { return fmt.Sprintf("%s (SQLite error %d)", e.text, e.code) }

// liveError turns a result code into an error. Any kind of SQLITE_BUSY wraps
// [wal.ErrBusy], a failed sync [wal.ErrSync].
func liveError(rc C.int) error {
	if rc == C.SQLITE_OK {
		return nil
	}
	err := &liveResult{code: int(rc), text: C.GoString(C.sqlite3_errstr(rc))}
	if rc&0xff == C.SQLITE_BUSY {
		return fmt.Errorf("%w: %w", wal.ErrBusy, err)
	}
	if rc == C.SQLITE_IOERR_FSYNC || rc == C.SQLITE_IOERR_DIR_FSYNC {
		return fmt.Errorf("%w: %w", wal.ErrSync, err)
	}
	return err
}

// Image returns the image with which a database starts: see [wal.EmptyDatabase].
// It returns nil for a page size or auto_vacuum mode that SQLite does not have.
func Image(pageSize uint32, autoVacuum uint8) []byte {
	b, err := wal.EmptyDatabase(pageSize, autoVacuum)
	if err != nil {
		return nil
	}
	return b
}

// CreateImage creates the database file path with the image of an empty database
// and makes file and directory entry durable. A file that has content is left
// alone; the error wraps [ErrExists] then.
func CreateImage(path string, pageSize uint32, autoVacuum uint8, mode os.FileMode) error {
	data, err := wal.EmptyDatabase(pageSize, autoVacuum)
	if err != nil {
		return err
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var exists C.int
	rc := C.hasqlite_live_create(name, unsafe.Pointer(&data[0]), C.int(len(data)), C.int(mode.Perm()), &exists)
	if rc != C.SQLITE_OK {
		return fmt.Errorf("create %s: %w", path, liveError(rc))
	}
	if exists != 0 {
		return fmt.Errorf("create %s: %w", path, ErrExists)
	}
	return liveSyncDir(filepath.Dir(path))
}

// Discard removes a database file with its log and wal-index. Nothing is changed,
// and the error wraps [wal.ErrBusy], if somebody has it open.
func Discard(path string) error {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	if err := liveError(C.hasqlite_live_discard(name)); err != nil {
		return fmt.Errorf("discard %s: %w", path, err)
	}
	return nil
}

// liveSyncDir makes the entries of a directory durable.
func liveSyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be opened there; the journal of NTFS does it
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w: %w", dir, wal.ErrSync, err)
	}
	return nil
}

// Live is the node's handle on a database that other processes have open. It
// reaches the files only through an SQLite connection of its own, which keeps
// -wal and -shm in place as long as it is open, over the platform's VFS.
//
// The connection runs recoveries; otherwise it is idle and lends its files to
// the [wal.Handle]. Checkpoints run on a second one.
type Live struct {
	*wal.Handle
	path string
	c    *C.hasqlite_live
	// pins is held for reading by each snapshot, for writing by a checkpoint.
	pins        sync.RWMutex
	checkpoints sync.Mutex // held by a checkpoint; before pins
	// life is held for reading by calls that use c apart from the handle.
	life   sync.RWMutex
	closed bool

	regionsMu sync.Mutex               // for storing regions
	regions   atomic.Pointer[[][]byte] // mapped so far; never changed in place
}

// liveStep is given to the handle as its Options.Step. Tests only.
var liveStep func(wal.Step)

// notWAL is what live.c says of a file that opens and is not in WAL mode.
const notWAL = "not a database in WAL mode"

// OpenLive opens the database file path, which must exist and be in WAL mode.
func OpenLive(path string) (*Live, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var text [256]C.char
	l := &Live{path: path}
	if rc := C.hasqlite_live_open(name, &l.c, &text[0], C.int(len(text))); rc != C.SQLITE_OK {
		err := fmt.Errorf("open %s: %s: %w", path, C.GoString(&text[0]), liveError(rc))
		if rc&0xff == C.SQLITE_NOTADB || rc&0xff == C.SQLITE_CORRUPT || C.GoString(&text[0]) == notWAL {
			err = fmt.Errorf("%w: %w", ErrNotDatabase, err)
		}
		return nil, err
	}
	l.regions.Store(&[][]byte{})
	l.Handle = wal.NewHandle(liveFile{l, C.HASQLITE_LIVE_DB}, liveFile{l, C.HASQLITE_LIVE_WAL},
		liveShm{l}, liveLocks{l}, wal.Options{
			Recover: l.recover,
			Pin:     func() error { l.pins.RLock(); return nil },
			Unpin:   l.pins.RUnlock,
			Step:    liveStep,
		})
	return l, nil
}

// TrimMemory gives the memory that closed handles have left behind back to the system. It takes milliseconds.
func TrimMemory() { C.hasqlite_live_trim() }

// Path returns the path the database was opened with.
func (l *Live) Path() string { return l.path }

// Close closes the connection, after an open transaction has ended. If no other
// connection is left, SQLite copies the log into the file and removes it.
// Snapshots that are open fail from now on.
func (l *Live) Close() error {
	if err := l.Handle.Close(); err != nil {
		return err
	}
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if rc := C.hasqlite_live_close(l.c); rc != C.SQLITE_OK {
		return fmt.Errorf("close %s: %w", l.path, liveError(rc))
	}
	return nil
}

// Checkpoint copies the log into the database file: as much as readers allow,
// or with truncate all of it, cutting the log to length 0, if nobody is in the
// way. It returns the frames of the log and how many of them are in the file.
// It waits for nobody: a lock in its way gives [wal.ErrBusy], an open snapshot
// [ErrPinned]. Transactions go on meanwhile; Pin waits until it is done.
func (l *Live) Checkpoint(truncate bool) (walFrames, backfilled int, err error) {
	if truncate {
		return l.checkpoint(C.SQLITE_CHECKPOINT_TRUNCATE, 0)
	}
	return l.checkpoint(C.SQLITE_CHECKPOINT_PASSIVE, 0)
}

// Truncate is Checkpoint with truncate, and waits for a writer and for readers
// that are in the way, as long as they end within wait. Nobody can write
// meanwhile.
func (l *Live) Truncate(wait time.Duration) (walFrames, backfilled int, err error) {
	return l.checkpoint(C.SQLITE_CHECKPOINT_TRUNCATE, wait)
}

func (l *Live) checkpoint(mode C.int, wait time.Duration) (walFrames, backfilled int, err error) {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.closed {
		return 0, 0, fmt.Errorf("checkpoint %s: %w", l.path, wal.ErrClosed)
	}
	l.checkpoints.Lock()
	defer l.checkpoints.Unlock()
	if !l.pins.TryLock() {
		return 0, 0, fmt.Errorf("checkpoint %s: %w", l.path, ErrPinned)
	}
	defer l.pins.Unlock()
	frames, copied := C.int(-1), C.int(-1)
	rc := C.hasqlite_live_checkpoint(l.c, mode, C.int(wait.Milliseconds()), &frames, &copied)
	walFrames, backfilled = max(0, int(frames)), max(0, int(copied))
	if rc != C.SQLITE_OK {
		return walFrames, backfilled, fmt.Errorf("checkpoint %s: %w", l.path, liveError(rc))
	}
	return walFrames, backfilled, nil
}

// TryPin is Pin that does not wait for a checkpoint: the error wraps
// [wal.ErrBusy] while one runs.
func (l *Live) TryPin() (*wal.Snapshot, error) {
	// A checkpoint only tries for the lock, so taking it twice for reading cannot block.
	if !l.pins.TryRLock() {
		return nil, fmt.Errorf("pin %s: a checkpoint runs: %w", l.path, wal.ErrBusy)
	}
	defer l.pins.RUnlock()
	return l.Pin()
}

// SyncWAL makes every transaction that is in the log now durable. Appends go on
// meanwhile.
func (l *Live) SyncWAL() error {
	return l.use(func() error { return liveFile{l, C.HASQLITE_LIVE_WAL}.Sync() })
}

// WALSize returns the length of the log in bytes, of frames of a former
// generation too.
func (l *Live) WALSize() (size int64, err error) {
	err = l.use(func() error {
		size, err = liveFile{l, C.HASQLITE_LIVE_WAL}.Size()
		return err
	})
	return size, err
}

// use runs f while the connection cannot be closed.
func (l *Live) use(f func() error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.closed {
		return wal.ErrClosed
	}
	return f()
}

// recover is called by the handle when it has the turn.
func (l *Live) recover() error {
	if err := liveError(C.hasqlite_live_recover(l.c)); err != nil {
		return fmt.Errorf("recover wal-index of %s: %w", l.path, err)
	}
	return nil
}

// liveFile is one of the two files of a Live. The handle calls it only while it
// is open.
type liveFile struct {
	l     *Live
	which C.int
}

func (f liveFile) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n C.int
	rc := C.hasqlite_live_read(f.l.c, f.which, unsafe.Pointer(&p[0]), C.int(len(p)), C.sqlite3_int64(off), &n)
	if rc != C.SQLITE_OK {
		return 0, liveError(rc)
	}
	if int(n) < len(p) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (f liveFile) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	rc := C.hasqlite_live_write(f.l.c, f.which, unsafe.Pointer(&p[0]), C.int(len(p)), C.sqlite3_int64(off))
	if rc != C.SQLITE_OK {
		return 0, liveError(rc)
	}
	return len(p), nil
}

func (f liveFile) Sync() error { return liveError(C.hasqlite_live_sync(f.l.c, f.which)) }

func (f liveFile) Size() (int64, error) {
	var n C.sqlite3_int64
	if rc := C.hasqlite_live_size(f.l.c, f.which, &n); rc != C.SQLITE_OK {
		return 0, liveError(rc)
	}
	return int64(n), nil
}

// liveShm is the wal-index of a Live. Its regions stay mapped, at the same
// addresses, until the connection is closed.
type liveShm struct{ l *Live }

func (s liveShm) Map(region int) ([]byte, error) {
	if have := *s.l.regions.Load(); region < len(have) {
		return have[region], nil
	}
	s.l.regionsMu.Lock()
	defer s.l.regionsMu.Unlock()
	have := *s.l.regions.Load()
	next := make([][]byte, len(have), region+1)
	copy(next, have)
	for i := len(have); i <= region; i++ {
		var mem unsafe.Pointer
		if rc := C.hasqlite_live_map(s.l.c, C.int(i), &mem); rc != C.SQLITE_OK {
			return nil, liveError(rc)
		}
		next = append(next, unsafe.Slice((*byte)(mem), wal.RegionSize))
	}
	s.l.regions.Store(&next)
	return next[region], nil
}

func (s liveShm) Barrier() { C.hasqlite_live_barrier(s.l.c) }

// liveLocks are the lock slots of the wal-index of a Live.
type liveLocks struct{ l *Live }

func lockFlags(m wal.LockMode) C.int {
	if m == wal.Shared {
		return C.SQLITE_SHM_SHARED
	}
	return C.SQLITE_SHM_EXCLUSIVE
}

func (k liveLocks) Lock(first, n int, m wal.LockMode) error {
	rc := C.hasqlite_live_lock(k.l.c, C.int(first), C.int(n), C.SQLITE_SHM_LOCK|lockFlags(m))
	if rc == C.SQLITE_BUSY {
		return wal.ErrBusy
	}
	return liveError(rc)
}

func (k liveLocks) Unlock(first, n int, m wal.LockMode) error {
	return liveError(C.hasqlite_live_lock(k.l.c, C.int(first), C.int(n), C.SQLITE_SHM_UNLOCK|lockFlags(m)))
}
