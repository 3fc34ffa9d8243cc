package testcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system in a file, mounted on a directory: it can be filled, and lose its power, alone.
type Disk struct {
	Dir   string
	image string
}

// NewDisk makes a file system of the kind ("ext4", "xfs") and mounts it on dir, which is made. It is unmounted when the
// test ends; whatever has files open on it must have ended before. Mounts need root, and a kernel that lends loop devices.
func NewDisk(t testing.TB, dir, kind string, size int64) (*Disk, error) {
	d := &Disk{Dir: dir, image: filepath.Join(t.TempDir(), "disk.img")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	args := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F", "-m", "0"}, "xfs": {"mkfs.xfs", "-q", "-f"}}[kind]
	if args == nil {
		return nil, fmt.Errorf("make a file system: unknown kind %q", kind)
	}
	if err := command(append(args, d.image)...); err != nil {
		return nil, err
	}
	if err := d.Mount(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d, nil
}

func command(args ...string) error {
	// sbin is in no user's PATH.
	cmd := exec.Command("env", append([]string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Mount mounts the disk. The kernel gives its loop device back with the last unmount.
func (d *Disk) Mount() error { return command("mount", "-o", "loop", d.image, d.Dir) }

// Unmount unmounts the disk if it is mounted.
func (d *Disk) Unmount() error {
	var here, above unix.Stat_t
	if unix.Stat(d.Dir, &here) == nil && unix.Stat(filepath.Dir(d.Dir), &above) == nil && here.Dev == above.Dev {
		return nil
	}
	return command("umount", d.Dir)
}

// FS_IOC_SHUTDOWN is _IOR('X', 125, __u32); with this flag the journal is not written out either.
const (
	ioctlShutdown    = 0x8004587d
	shutdownNoJounal = 2
)

// Cut takes the power away: nothing is written any more, and every call on the file system fails, until it is unmounted
// and mounted again. What was not synced before is lost.
func (d *Disk) Cut() error {
	dir, err := os.Open(d.Dir)
	if err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.Dir, err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, shutdownNoJounal); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.Dir, err)
	}
	return nil
}

// Allocate gives a file n bytes of real blocks.
func Allocate(f *os.File, n int64) error { return unix.Fallocate(int(f.Fd()), 0, 0, n) }

// Fill writes a file until at most rest bytes are free, and returns its path.
func (d *Disk) Fill(rest int64) (string, error) {
	path := filepath.Join(d.Dir, "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for step := int64(16 << 20); step >= 4096; {
		var st unix.Statfs_t
		if err := unix.Statfs(d.Dir, &st); err != nil {
			return "", err
		}
		size, err := f.Seek(0, 2)
		if err != nil {
			return "", err
		}
		n := min(step, int64(st.Bavail)*int64(st.Bsize)-rest)
		if n <= 0 {
			return path, nil
		}
		if err := unix.Fallocate(int(f.Fd()), 0, size, n); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else if err != nil {
			return "", fmt.Errorf("fill the disk: %w", err)
		}
	}
	return path, nil
}
