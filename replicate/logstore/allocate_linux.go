package logstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate reserves blocks for a range of a file, which grows to hold it. Where the file system cannot, it does
// nothing, and writes may run into a full disk.
func allocate(f *os.File, off, n int64) error { return fallocate(f, 0, off, n) }

// allocateHidden reserves blocks for the first n bytes of a file, whose size stays.
func allocateHidden(f *os.File, n int64) error {
	return fallocate(f, unix.FALLOC_FL_KEEP_SIZE, 0, n)
}

func fallocate(f *os.File, mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), mode, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		}
		return err
	}
}

// syncData syncs what was written, and of the metadata what is needed to read it again.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
