package replicate

import (
	"errors"
	"fmt"
	"sync"
)

// ErrNoRoom is what an archive says when it waits because the disk of the node has little room left: one on that disk,
// and any one for files that it makes there for a while.
var ErrNoRoom = errors.New("the disk has little room left, the archive waits")

// room leaves the last of the disk to the log and the databases, beside so many bytes.
func (a *archiver) room(bytes int64) error {
	if a.s.opts.Space == nil {
		return nil
	}
	free, err := a.s.opts.Space.Free()
	if err != nil {
		return err
	}
	least := archiveSpare * (a.s.opts.SegmentBytes + workBytes)
	switch {
	case free < least:
		return fmt.Errorf("%d bytes are free, %d are left to the log: %w", free, least, ErrNoRoom)
	case free-least < bytes:
		return fmt.Errorf("%d bytes are free, of which %d are left to the log, and files of %d are needed for a while: %w", free, least, bytes, ErrNoRoom)
	}
	return nil
}

// claim takes room for temporary files until it is given back. What others have claimed counts as used, though a part
// of it may be written already.
func (a *archiver) claim(bytes int64) (release func(), err error) {
	if a.opts.Local {
		bytes *= 2 // what is made of them is on the disk, too
	}
	a.roomMu.Lock()
	defer a.roomMu.Unlock()
	if err := a.room(a.claimed + bytes); err != nil {
		return nil, err
	}
	a.claimed += bytes
	return sync.OnceFunc(func() {
		a.roomMu.Lock()
		defer a.roomMu.Unlock()
		a.claimed -= bytes
	}), nil
}
