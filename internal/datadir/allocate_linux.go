package datadir

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives a file real blocks of its own.
func allocate(f *os.File, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return fill(f, n)
		}
		return err
	}
}
