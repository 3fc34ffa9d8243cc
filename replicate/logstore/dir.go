package logstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// mkdirSync makes dir and its missing parents durable.
func mkdirSync(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return syncDir(filepath.Dir(dir))
	case errors.Is(err, os.ErrExist):
		return nil
	case errors.Is(err, os.ErrNotExist):
		if err := mkdirSync(filepath.Dir(dir)); err != nil {
			return err
		}
		return mkdirSync(dir)
	}
	return fmt.Errorf("make directory: %w", err)
}

// fsync makes a file durable. Tests only: they let it fail.
var fsync = (*os.File).Sync

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if err := fsync(f); err != nil {
		return fmt.Errorf("sync directory %s: %w: %w", dir, ErrSync, err)
	}
	return nil
}
