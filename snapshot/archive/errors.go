package archive

import (
	"errors"
	"fmt"
)

var (
	// ErrDamaged is returned where an object is missing, is not the one that the
	// manifest lists, or does not decode. The text names it.
	ErrDamaged = errors.New("the archive is damaged")

	// ErrForeign is returned for an archive of another cluster, and where another
	// writer has written to the archive. The caller stops writing.
	ErrForeign = errors.New("the archive belongs to another writer")

	// ErrNoDatabase is returned for a name that the archive has no database of.
	ErrNoDatabase = errors.New("no such database in the archive")

	// ErrNotArchived is returned for a state that the archive does not have. The
	// text says which are there.
	ErrNotArchived = errors.New("not in the archive")

	// ErrSync is wrapped by the error of a sync of the backlog that failed, and by every later one: the next sync may
	// succeed without the data. The caller ends the process.
	ErrSync = errors.New("sync of the backlog failed, and what is on disk is not known")

	// ErrKey is returned where an archive is encrypted and the key is missing or
	// wrong, and where a key was given for one that is not.
	ErrKey = errors.New("encryption key")
)

// ObjectError names the object of the archive that an error is about.
type ObjectError struct {
	Key string
	Err error
}

func (e *ObjectError) Error() string { return fmt.Sprintf("object %s: %v", e.Key, e.Err) }

// Unwrap returns the cause.
func (e *ObjectError) Unwrap() error { return e.Err }

func damaged(key string, format string, args ...any) error {
	return &ObjectError{key, fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrDamaged)}
}
