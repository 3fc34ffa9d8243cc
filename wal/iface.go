package wal

// File is a database file or a WAL. ReadAt follows [io.ReaderAt] (a short read
// gives io.EOF). WriteAt gets at most [MaxWrite] bytes. Sync makes everything
// written before durable. Calls may come from several goroutines.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
	Size() (int64, error)
}

// Shm is the wal-index.
type Shm interface {
	// Map returns region n ([RegionSize] bytes, aligned to 4) and extends the
	// wal-index with zeros as needed. The memory stays valid until the handle is
	// closed. Calls may come from several goroutines.
	Map(region int) ([]byte, error)
	// Barrier orders every access before it with every access after it.
	Barrier()
}

// LockMode says whether a lock slot is shared.
type LockMode uint8

// The modes of a lock.
const (
	Shared LockMode = iota + 1
	Exclusive
)

// The lock slots of a wal-index.
const (
	slotWrite = 0
	slotRead0 = 3 // reader of the database file only
	slotRead1 = 4
	readSlots = 4 // slotRead1 and the next: readers of the log
)

// Locks are the lock slots of the wal-index. Lock takes n slots from first, or
// none and returns [ErrBusy]; it never waits. Unlock is given the same range.
type Locks interface {
	Lock(first, n int, m LockMode) error
	Unlock(first, n int, m LockMode) error
}

// MaxWrite is the most that a single WriteAt gets: SQLite's unix VFS takes the
// length of a write modulo 128 KiB.
const MaxWrite = 1<<17 - 1

// Step is a point within [Txn.Append] at which a process may die.
type Step uint8

// The steps in the order in which they come. The first four are there only if
// the log is restarted.
const (
	StepRestartBackfill Step = iota + 1 // backfilled set to 0, header still the old one
	StepRestartBetween                  // between the two copies of the restarted header
	StepRestarted                       // restarted header published
	StepHeader                          // WAL header written and synced
	StepFrames                          // one batch of frames written
	StepIndexed                         // one frame entered in its hash table
	StepBetween                         // between the two copies of the new header
	StepPublished                       // new header published
)

// Options of a [Handle].
type Options struct {
	// Recover makes SQLite rebuild the wal-index header: it runs a read on a
	// connection of the same files. It is called without any lock held and may
	// return [ErrBusy]. Nil: a header that needs recovery is an error.
	Recover func() error
	// Pin and Unpin, if not nil, are called around each [Snapshot]: no checkpoint
	// may run in between.
	Pin   func() error
	Unpin func()
	// Step, if not nil, is called at every step of Append. Tests only.
	Step func(Step)
}
