package wal

import "errors"

var (
	// ErrSync is wrapped by the error of a sync that failed. It is not tried again: the kernel may have dropped
	// what it could not write, and would call the next sync a success. What is on disk is not known any more.
	ErrSync = errors.New("sync failed, and what is on disk is not known")
	// ErrBusy is returned by [Locks.Lock], and by [Handle.Begin] when its context
	// ended first: another connection holds the lock. Try again.
	ErrBusy = errors.New("lock is held by another connection")
	// ErrUnstable is returned by [Handle.Peek] and [Handle.Pin] when the wal-index
	// header is being changed or needs recovery. Begin heals it.
	ErrUnstable = errors.New("wal-index header is not stable")
	// ErrCorrupt is returned by decoders for bytes that break the format, and by
	// lookups in a hash table that SQLite cannot have written. Stop using the file.
	ErrCorrupt = errors.New("corrupt")
	// ErrVersion is returned by decoders for a format version this package does
	// not know.
	ErrVersion = errors.New("unsupported format version")
	// ErrPageSize is returned for a page size that SQLite cannot have, or one that
	// differs from the database's.
	ErrPageSize = errors.New("wrong page size")
	// ErrInvalid is returned by [Txn.Append] for pages that make no transaction.
	// The caller built them wrongly; nothing was written.
	ErrInvalid = errors.New("invalid transaction")
	// ErrClosed is returned by every method of a handle, transaction or snapshot
	// after its end.
	ErrClosed = errors.New("closed")
)
