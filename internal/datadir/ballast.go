package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ballastFile holds blocks that are given back when the disk is full, so that a node can still finish what it has
// to: votes, snapshots, checkpoints.
const ballastFile = "ballast"

// startRoom is what a start needs: probes, process ids, marks.
const startRoom = 1 << 20

// Space is the room on the file system of a data directory, and the reserve in it. Its methods may be called
// concurrently.
type Space struct {
	dir   string
	bytes int64

	mu   sync.Mutex
	held bool
}

// Space returns the directory's, with a reserve of bytes that Reserve makes.
func (d *Dir) Space(bytes int64) *Space {
	s := &Space{dir: d.path, bytes: bytes}
	if st, err := os.Stat(s.path()); err == nil && st.Size() == bytes {
		s.held = true // it gets its size together with its blocks
	}
	return s
}

func (s *Space) path() string { return filepath.Join(s.dir, ballastFile) }

// Free returns how many bytes can still be written.
func (s *Space) Free() (int64, error) { return freeBytes(s.dir) }

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// Reserved returns the bytes that Release gives back now.
func (s *Space) Reserved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return 0
	}
	return s.bytes
}

// Reserve makes the reserve, if it is not there.
func (s *Space) Reserve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held || s.bytes <= 0 {
		return nil
	}
	f, err := os.OpenFile(s.path(), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make the reserve for a full disk: %w", err)
	}
	err = allocate(f, s.bytes)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(s.path()) //nolint:errcheck // it is truncated when it is made again
		return fmt.Errorf("make the reserve for a full disk: %w", err)
	}
	s.held = true
	return nil
}

func fill(f *os.File, n int64) error {
	zero := make([]byte, 1<<20)
	for n > 0 {
		w, err := f.Write(zero[:min(n, int64(len(zero)))])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return f.Sync()
}

// Release gives the reserve up. It reports whether there was one.
func (s *Space) Release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return false
	}
	s.held = false
	return os.Remove(s.path()) == nil
}

// relieve gives the reserve up when there is no room left for a start.
func (d *Dir) relieve() error {
	free, err := freeBytes(d.path)
	if err != nil {
		return err
	}
	if free >= startRoom {
		return nil
	}
	if err := os.Remove(filepath.Join(d.path, ballastFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give up the reserve for a full disk: %w", err)
	}
	return nil
}
