package logstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

// segmentFS is raft-wal's file system. It differs from its own one where a disk
// is full or fails:
//
//   - room is reserved before raft-wal is called: blocks of the last segment for
//     what it is going to write, and a spare file for the segment that follows.
//     A full disk so refuses an append before anything is done. raft-wal itself
//     would need a restart: a rotation that fails halfway leaves it with a full
//     segment for ever;
//   - the first Sync of a file that was found syncs its directory too, not only
//     that of one that was made: it may have been made just before a crash.
type segmentFS struct {
	t     *trouble
	dir   string
	bytes int64 // of a segment
	alloc func(f *os.File, off, n int64) error

	mu    sync.Mutex
	spare bool         // the spare file is there
	tail  *segmentFile // the last one that was made or found
	found int64        // end of what was found in it at start
	tried time.Time    // when a spare file was tried last
}

// spareFile becomes the next segment.
const spareFile = "spare"

// prepare makes sure that n bytes of entries can be written whatever becomes of
// the disk, or with cut that a segment can follow at once. On a disk that is
// full it gives an error, and nothing has changed. What the last segment has
// room for is taken even then.
func (s *segmentFS) prepare(n int64, cut bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The index that seals a segment has 4 bytes for each entry, and no entry has less than 32.
	end := s.tail.end + n
	end += end/8 + 4096
	if !s.spare && (cut || end > s.bytes || end > s.bytes/2 && time.Since(s.tried) > roomRetry) {
		s.tried = time.Now()
		if err := s.makeSpare(); err != nil && (cut || end > s.bytes || !noSpace(err)) {
			return err
		}
	}
	return s.tail.reserve(end)
}

func (s *segmentFS) makeSpare() error {
	path := filepath.Join(s.dir, spareFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = s.alloc(f, 0, s.bytes)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path) //nolint:errcheck // the blocks it may have are given back when it is made again
		return fmt.Errorf("allocate the next log segment: %w", err)
	}
	s.spare = true
	return nil
}

// trouble keeps what raft-wal would only log: it rotates its segments in a
// goroutine of its own.
type trouble struct {
	mu  sync.Mutex
	err error
	// fatal: a sync failed. What is on disk is not known any more.
	fatal error
}

func (t *trouble) note(err error) error {
	if err != nil {
		t.mu.Lock()
		t.err = err
		t.mu.Unlock()
	}
	return err
}

func (t *trouble) noteSync(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrSync, err)
		t.mu.Lock()
		t.err, t.fatal = err, err
		t.mu.Unlock()
	}
	return err
}

// cause is the reason behind an error of raft-wal.
func (t *trouble) cause(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.fatal != nil && !errors.Is(err, t.fatal):
		return fmt.Errorf("%w: %w", err, t.fatal)
	case t.err != nil && !errors.Is(err, t.err):
		return fmt.Errorf("%w: %w", err, t.err)
	}
	return err
}

// ListDir implements types.VFS.
func (*segmentFS) ListDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Create implements types.VFS.
func (s *segmentFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return nil, s.t.note(fmt.Errorf("make log segment %s: %w", path, errors.Join(os.ErrExist, err)))
	}
	if !s.spare || int64(size) != s.bytes {
		s.bytes = int64(size)
		if err := s.makeSpare(); err != nil {
			return nil, s.t.note(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, spareFile), path); err != nil {
		return nil, s.t.note(fmt.Errorf("make log segment: %w", err))
	}
	s.spare = false
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, s.t.note(fmt.Errorf("make log segment: %w", err))
	}
	s.tail = &segmentFile{f: f, dir: dir, t: s.t, alloc: s.alloc, allocated: int64(size)}
	return s.tail, nil
}

// Delete implements types.VFS. It is called once the metadata do not speak of the
// segment any more: one that comes back is removed at the next start.
func (*segmentFS) Delete(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// OpenReader implements types.VFS.
func (*segmentFS) OpenReader(dir, name string) (types.ReadableFile, error) {
	return os.Open(filepath.Join(dir, name))
}

// OpenWriter implements types.VFS. The file was mended, so it ends where the
// zeros begin; all of it counts as written until it is known better.
func (s *segmentFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = &segmentFile{f: f, dir: dir, t: s.t, alloc: s.alloc, end: s.found}
	return s.tail, nil
}

// segmentFile has one writer.
type segmentFile struct {
	f         *os.File
	dir       string
	t         *trouble
	alloc     func(f *os.File, off, n int64) error
	end       int64 // of what was written
	allocated int64 // blocks are reserved up to here
	written   int64 // and written up to here, with entries or zeros
	synced    bool  // all there is to know about the file is, and the directory too
}

// A block that was reserved and not written has to be entered into the file system's journal when it is: the
// sync of each append then waits for the journal too, and for what others have put there. Small appends
// therefore write zeros ahead of them, so that most overwrite blocks and are synced by themselves.
const (
	zeroStep  = 256 << 10 // how far ahead
	zeroUnder = 16 << 10  // larger appends would write as much again
)

var zeros [zeroStep]byte

// growStep is what a segment that is past its size grows by.
const growStep = 256 << 10

// reserve allocates the blocks up to size. On file systems that cannot, writes
// may run into a full disk.
func (s *segmentFile) reserve(size int64) error {
	if size <= s.allocated {
		return nil
	}
	size = (size + growStep - 1) / growStep * growStep
	if err := s.alloc(s.f, s.allocated, size-s.allocated); err != nil {
		return fmt.Errorf("reserve room for log entries: %w", err)
	}
	s.allocated = size
	return nil
}

// WriteAt implements types.WritableFile.
func (s *segmentFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := s.f.WriteAt(p, off)
	s.end = max(s.end, off+int64(n))
	s.written = max(s.written, s.end)
	if err != nil {
		return n, s.t.note(err)
	}
	if s.written == s.end && n <= zeroUnder {
		s.writeAhead()
	}
	return n, nil
}

// writeAhead makes blocks that the next appends overwrite. Nobody waits for them, so nobody hears of an error: what
// is not written now is written by the appends.
func (s *segmentFile) writeAhead() {
	to := min((s.end+zeroStep)/zeroStep*zeroStep, s.allocated)
	if to <= s.end {
		return
	}
	n, _ := s.f.WriteAt(zeros[:to-s.end], s.end) //nolint:errcheck // see above
	s.written += int64(n)
}

// ReadAt implements types.WritableFile.
func (s *segmentFile) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// Close implements types.WritableFile.
func (s *segmentFile) Close() error { return s.f.Close() }

// Sync implements types.WritableFile.
func (s *segmentFile) Sync() error {
	if s.synced {
		return s.t.noteSync(syncData(s.f))
	}
	if err := s.f.Sync(); err != nil {
		return s.t.noteSync(err)
	}
	if err := syncDir(s.dir); err != nil {
		return s.t.noteSync(err)
	}
	s.synced = true
	return nil
}

// metaStore is raft-wal's metadata, whose errors are kept.
type metaStore struct {
	*metadb.BoltMetaDB
	t *trouble
}

// CommitState implements types.MetaStore.
func (m *metaStore) CommitState(state types.PersistentState) error {
	return m.t.note(m.BoltMetaDB.CommitState(state))
}
