package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

var (
	// ErrNotFound is returned by Get and Stat for a key that has no object.
	ErrNotFound = errors.New("no such object")

	// ErrExists is returned by Put for a key that has an object. It may be the
	// caller's own, of a call whose answer was lost: compare it.
	ErrExists = errors.New("the object exists already")

	// ErrInvalidKey is returned for a key that is no clean relative path.
	ErrInvalidKey = errors.New("invalid object key")
)

// Info describes an object.
type Info struct {
	Key  string
	Size int64
	Time time.Time // that Put was given; of List the zero time, where it would cost a request
}

// Store keeps objects by key. Keys are relative paths with slashes; a key is
// never a directory of another. All methods may be called concurrently.
type Store interface {
	// URL names the store, without secrets.
	URL() string

	// LevelDir is the directory of a level below that of a database, as
	// litestream has it on this kind of store.
	LevelDir(level int) string

	// Detect finds out what Conditional reports, and how objects have to be put
	// here. A writer calls it before its first Put; a reader needs no such thing.
	Detect(ctx context.Context) error

	// Conditional reports whether two concurrent Puts of one key are sure to
	// give one of them ErrExists. Without it only Puts one after the other are.
	Conditional() bool

	// Put makes the object of size bytes that body has. When it returns nil the
	// object is durable. The time is the commit time.
	Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error

	// Get opens length bytes of an object from offset; a negative length is up
	// to the end. A range that is not in the object is an error, of Get or of
	// the reader.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat describes an object.
	Stat(ctx context.Context, key string) (Info, error)

	// List calls f for the objects directly in dir whose names are behind after,
	// in the order of their keys. A dir that does not exist has none.
	List(ctx context.Context, dir, after string, f func(Info) error) error

	// Dirs returns the names of the directories directly in dir, in order.
	Dirs(ctx context.Context, dir string) ([]string, error)

	// Delete removes objects. One that is not there is no error.
	Delete(ctx context.Context, keys ...string) error
}

// Join puts a key together of parts, of which empty ones are left out.
func Join(parts ...string) string {
	kept := make([]string, 0, len(parts))
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "/")
}

// CheckKey refuses a key that is not a clean relative path.
func CheckKey(key string) error {
	refuse := func(why string) error { return fmt.Errorf("key %q: %s: %w", key, why, ErrInvalidKey) }
	if key == "" {
		return refuse("it is empty")
	}
	if len(key) > 1024 {
		return refuse("it is longer than 1024 bytes")
	}
	if strings.ContainsRune(key, 0) {
		return refuse("it has a zero byte")
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." {
			return refuse("it is no clean relative path")
		}
	}
	return nil
}

// LevelTimeKey is the name of the user metadata in which litestream looks for
// the commit time of an object.
const LevelTimeKey = "litestream-timestamp"
