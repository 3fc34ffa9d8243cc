package replicate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/pagesums"
	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// ErrDevice is wrapped by an error of Fatal after which nothing may be written any more: a sync failed. The
// process ends without a clean shutdown, and its next start finds out what is on disk.
var ErrDevice = errors.New("the disk failed: see to the device, then start the node again, which finds out what is on it")

// syncFile makes a file or a directory durable.
func syncFile(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%w: %w", wal.ErrSync, err)
	}
	return nil
}

// syncErrors are wrapped by the errors of failed syncs, of all that a Service writes.
var syncErrors = []error{wal.ErrSync, pagesums.ErrSync, logstore.ErrSync, archive.ErrSync}

// DeviceError wraps ErrDevice around the error of a failed sync, and returns any other as it is.
func DeviceError(err error) error {
	failed := slices.ContainsFunc(syncErrors, func(kind error) bool { return errors.Is(err, kind) })
	if failed && !errors.Is(err, ErrDevice) {
		return fmt.Errorf("%w: %w", ErrDevice, err)
	}
	return err
}

// stopIfSyncFailed stops the node after an error of a sync: a second sync would succeed without the data.
func (s *Service) stopIfSyncFailed(err error) {
	if err = DeviceError(err); errors.Is(err, ErrDevice) {
		s.stop(err)
	}
}

// unreadError is the deviceError of pages, or parts of a transaction, that the device does not give now. A peer has them.
type unreadError struct{ error }

func (e unreadError) Unwrap() error { return e.error }

// unread is the error of a read: the device's, unless what is there cannot be right.
func unread(err error) error {
	for _, wrong := range []error{wal.ErrCorrupt, wal.ErrPageSize, io.ErrUnexpectedEOF, snapshot.ErrCorrupt} {
		if errors.Is(err, wrong) {
			return err
		}
	}
	return deviceError{unreadError{err}}
}

// watchedFiles stops the node when a sync of a database fails.
type watchedFiles struct {
	Files
	s *Service
}

// Create implements Files.
func (w watchedFiles) Create(path string, pageSize uint32, autoVacuum uint8) error {
	err := w.Files.Create(path, pageSize, autoVacuum)
	w.s.stopIfSyncFailed(err)
	return err
}

// Open implements Files.
func (w watchedFiles) Open(path string) (LiveFile, error) {
	live, err := w.Files.Open(path)
	w.s.stopIfSyncFailed(err)
	if err != nil {
		return nil, err
	}
	return watchedLive{live, w.s}, nil
}

type watchedLive struct {
	LiveFile
	s *Service
}

// Checkpoint implements LiveFile.
func (w watchedLive) Checkpoint(truncate bool) (walFrames, backfilled int, err error) {
	walFrames, backfilled, err = w.LiveFile.Checkpoint(truncate)
	w.s.stopIfSyncFailed(err)
	return walFrames, backfilled, err
}

// SyncWAL implements LiveFile.
func (w watchedLive) SyncWAL() error {
	err := w.LiveFile.SyncWAL()
	w.s.stopIfSyncFailed(err)
	return err
}

// Close implements LiveFile.
func (w watchedLive) Close() error {
	err := w.LiveFile.Close()
	w.s.stopIfSyncFailed(err)
	return err
}
