package reflink

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// clone runs in the child.
func clone(source, target string) (err error) {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(target))
		}
	}()
	err = unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.ETXTBSY, unix.EPERM} {
		if errors.Is(err, cannot) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return err
}
