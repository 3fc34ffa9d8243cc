package logstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"golang.org/x/sys/unix"
)

// walStore is raft-wal with room that is reserved beforehand.
type walStore struct {
	*raftwal.WAL
	meta *metaStore
	fs   *segmentFS
}

// metaBytes are reserved for raft-wal's metadata, which hold votes and terms too. A full disk cannot keep this
// node from voting.
const metaBytes = 1 << 20

func openWAL(dir string, opt Options) (backend, error) {
	t := &trouble{}
	meta := &metaStore{&metadb.BoltMetaDB{}, t}
	fs := &segmentFS{t: t, dir: dir, bytes: int64(opt.SegmentBytes), alloc: allocate}
	if st, err := os.Stat(filepath.Join(dir, spareFile)); err == nil && st.Size() == fs.bytes {
		fs.spare = true // allocated before it had its size
	}
	err := mendTail(dir, meta, fs)
	if err == nil {
		err = reserveFile(filepath.Join(dir, metadb.FileName), metaBytes)
	}
	var w *raftwal.WAL
	if err == nil {
		w, err = raftwal.Open(dir, raftwal.WithSegmentSize(opt.SegmentBytes), raftwal.WithLogger(opt.Logger),
			raftwal.WithMetaStore(meta), raftwal.WithSegmentFiler(segment.NewFiler(dir, fs)))
	}
	if err != nil {
		meta.Close() //nolint:errcheck // the first error counts
		return nil, fmt.Errorf("open raft log %s: %w", dir, t.cause(err))
	}
	return walStore{w, meta, fs}, nil
}

// reserveFile allocates blocks for the first n bytes of a file, whose size stays. A disk that is full already is
// no reason not to start.
func reserveFile(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	if err := allocateHidden(f, n); err != nil && !noSpace(err) {
		return fmt.Errorf("reserve room in %s: %w", path, err)
	}
	return nil
}

// Close implements io.Closer. raft-wal leaves its metadata open and locked when it did not open.
func (w walStore) Close() error { return errors.Join(w.WAL.Close(), w.meta.Close()) }

func (w walStore) prepare(n int64, cut bool) error { return w.fs.prepare(n, cut) }

func (w walStore) cause(err error) error { return w.fs.t.cause(err) }

// boltStore makes missing keys read as raft documents it.
type boltStore struct {
	*raftboltdb.BoltStore
	free func() (int64, error)
}

var _ io.Closer = boltStore{}

// Get implements raft.StableStore.
func (b boltStore) Get(key []byte) ([]byte, error) {
	v, err := b.BoltStore.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return v, err
}

// GetUint64 implements raft.StableStore.
func (b boltStore) GetUint64(key []byte) (uint64, error) {
	v, err := b.BoltStore.GetUint64(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return 0, nil
	}
	return v, err
}

// boltGrows is by how much bbolt's file grows at a time.
const boltGrows = 16 << 20

// prepare asks for twice what is to be written: pages are copied before they change.
func (b boltStore) prepare(n int64, _ bool) error {
	if b.free == nil {
		return nil
	}
	free, err := b.free()
	if err == nil && free < 2*n+boltGrows {
		return fmt.Errorf("%d bytes are free, %d are wanted: %w", free, 2*n+boltGrows, unix.ENOSPC)
	}
	return err
}

func (b boltStore) cause(err error) error { return err }

var _ raft.LogStore = boltStore{}
