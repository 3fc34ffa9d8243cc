package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/uglyer/ha-sqlite/internal/reflink"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/vfs"
	"github.com/uglyer/ha-sqlite/wal"
)

// files gives package replicate the database files. Whatever touches their content goes through package
// vfs, that is through SQLite's own file methods: closing any other descriptor of these files would drop
// every POSIX lock that this process holds on them.
type files struct {
	fileMode os.FileMode
	gid      int // -1: leave the group alone
	// making is held while a database file is created, and while an empty one that nobody used is removed.
	making *sync.Mutex
}

// dirMode is the mode of directories: the group bits of the file mode, searchable, and with the set-group-ID
// bit so that SQLite's own files inherit the group (RULES D1).
func (f files) dirMode() os.FileMode {
	m := f.fileMode & 0o777
	return m | (m&0o444)>>2 | os.ModeSetgid
}

// prepare makes the directory of a database.
func (f files) prepare(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return err
	}
	if f.gid >= 0 {
		if err := os.Chown(dir, -1, f.gid); err != nil {
			return err
		}
	}
	return os.Chmod(dir, f.dirMode())
}

// Create implements replicate.Files.
func (f files) Create(path string, pageSize uint32, autoVacuum uint8) error {
	if st, err := os.Stat(path); err == nil && st.Size() > 0 {
		return nil
	}
	f.making.Lock()
	defer f.making.Unlock()
	if err := f.prepare(path); err != nil {
		return err
	}
	err := vfs.CreateImage(path, pageSize, autoVacuum, f.fileMode)
	if errors.Is(err, vfs.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	if f.gid >= 0 {
		if err := os.Chown(path, -1, f.gid); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(filepath.Dir(path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w: %w", path, wal.ErrSync, err)
	}
	return nil
}

// Open implements replicate.Files.
func (f files) Open(path string) (replicate.LiveFile, error) {
	live, err := vfs.OpenLive(path)
	if errors.Is(err, vfs.ErrNotDatabase) {
		err = fmt.Errorf("%w: %w", replicate.ErrUnusable, err)
	}
	if err != nil {
		return nil, err
	}
	return live, nil
}

// Stat implements replicate.Files.
func (f files) Stat(path string) (replicate.FileStat, error) {
	st, err := os.Stat(path)
	if err != nil {
		return replicate.FileStat{}, err
	}
	return fileStat(st), nil
}

// WALEmpty implements replicate.Files.
func (f files) WALEmpty(path string) bool {
	st, err := os.Stat(path + "-wal")
	return errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0
}

// removeUnused removes the empty file that SQLite made for a name that was opened and never used. A database
// that exists has its replica before its file, so exists tells whether the file is about to be one.
func (f files) removeUnused(path string, exists func(path string) bool) {
	f.making.Lock()
	defer f.making.Unlock()
	if exists(path) {
		return
	}
	if st, err := os.Stat(path); err == nil && st.Size() == 0 {
		os.Remove(path)
	}
	os.Remove(filepath.Dir(path)) // fails if anything is in it
}

// Trim implements replicate.Files.
func (f files) Trim() { vfs.TrimMemory() }

// Place implements replicate.Files.
func (f files) Place(file, path string) error {
	f.making.Lock()
	defer f.making.Unlock()
	if err := f.prepare(path); err != nil {
		return err
	}
	if err := os.Chmod(file, f.fileMode); err != nil {
		return err
	}
	if f.gid >= 0 {
		if err := os.Chown(file, -1, f.gid); err != nil {
			return err
		}
	}
	// A log of a file that is gone would be taken for this one's.
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		for _, suffix := range []string{"-wal", "-shm"} {
			if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Link(file, path); err != nil { // unlike a rename it replaces nothing
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(filepath.Dir(path)))
}

// Clone implements replicate.Files. A child process does it: closing a descriptor of the database file in this one would
// drop its locks (RULES A6).
func (f files) Clone(ctx context.Context, path, file string) error {
	err := reflink.Clone(ctx, path, file)
	if errors.Is(err, reflink.ErrUnsupported) {
		return fmt.Errorf("%w: %w", replicate.ErrNoClone, err)
	}
	return err
}

// Discard implements replicate.Files.
func (f files) Discard(path string) error {
	err := vfs.Discard(path)
	if errors.Is(err, wal.ErrBusy) {
		err = fmt.Errorf("a program has it open and must close first: %w", err)
	}
	return err
}

// Remove implements replicate.Files.
func (f files) Remove(path string) error { return os.RemoveAll(filepath.Dir(path)) }
