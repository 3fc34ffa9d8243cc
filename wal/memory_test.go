package wal

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// MemoryFile is a File in memory that can be told to fail.
type MemoryFile struct {
	mu    sync.Mutex
	Data  []byte
	Syncs int
	// Largest is the longest write seen, in bytes.
	Largest int
	// FailAfter, if positive, counts the bytes that may still be written: the
	// write that goes beyond is torn there and fails, as do all later ones.
	FailAfter int
	failed    bool
}

// ErrMemory is the error of a MemoryFile told to fail.
var ErrMemory = errors.New("memory file told to fail")

// ReadAt implements File.
func (f *MemoryFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.NewReader(f.Data).ReadAt(p, off)
}

// WriteAt implements File.
func (f *MemoryFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Largest = max(f.Largest, len(p))
	if f.failed {
		return 0, ErrMemory
	}
	n := len(p)
	if f.FailAfter > 0 {
		if f.FailAfter <= n {
			n, f.failed = f.FailAfter-1, true
		}
		f.FailAfter -= n
	}
	if need := int(off) + n; need > len(f.Data) {
		f.Data = append(f.Data, make([]byte, need-len(f.Data))...)
	}
	copy(f.Data[off:], p[:n])
	if f.failed {
		return n, ErrMemory
	}
	return n, nil
}

// Sync implements File.
func (f *MemoryFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Syncs++
	if f.failed {
		return ErrMemory
	}
	return nil
}

// Size implements File.
func (f *MemoryFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.Data)), nil
}

// Heal lets writes succeed again.
func (f *MemoryFile) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.FailAfter, f.failed = 0, false
}

// MemoryShm is a Shm in memory.
type MemoryShm struct {
	mu      sync.Mutex
	Regions [][]byte
	// Limit is the number of regions that can be mapped, 0 for any.
	Limit int
}

// Map implements Shm.
func (s *MemoryShm) Map(region int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Limit > 0 && region >= s.Limit {
		return nil, io.ErrShortWrite
	}
	for len(s.Regions) <= region {
		s.Regions = append(s.Regions, make([]byte, RegionSize))
	}
	return s.Regions[region], nil
}

// Barrier implements Shm.
func (s *MemoryShm) Barrier() {}

// MemoryLocks are the lock slots of a database, shared by several connections.
type MemoryLocks struct {
	mu     sync.Mutex
	shared [8]int
	excl   [8]bool
}

// Lock implements Locks.
func (l *MemoryLocks) Lock(first, n int, m LockMode) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := first; i < first+n; i++ {
		if l.excl[i] || m == Exclusive && l.shared[i] > 0 {
			return ErrBusy
		}
	}
	for i := first; i < first+n; i++ {
		if m == Exclusive {
			l.excl[i] = true
		} else {
			l.shared[i]++
		}
	}
	return nil
}

// Unlock implements Locks. It panics on a lock that is not held.
func (l *MemoryLocks) Unlock(first, n int, m LockMode) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := first; i < first+n; i++ {
		switch {
		case m == Exclusive && l.excl[i]:
			l.excl[i] = false
		case m == Shared && l.shared[i] > 0:
			l.shared[i]--
		default:
			panic("unlock of a slot that is not locked")
		}
	}
	return nil
}

// Held tells whether any slot is locked.
func (l *MemoryLocks) Held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shared != [8]int{} || l.excl != [8]bool{}
}

// Memory is a database in memory.
type Memory struct {
	DB, WAL MemoryFile
	Shm     MemoryShm
	Locks   MemoryLocks
	// Recoveries counts calls of Recover.
	Recoveries int
	*Handle
}

// NewMemory returns a database whose file is image, with an empty log.
func NewMemory(image []byte, opts Options) *Memory {
	m := &Memory{DB: MemoryFile{Data: bytes.Clone(image)}}
	if opts.Recover == nil {
		opts.Recover = m.Recover
	}
	m.Handle = NewHandle(&m.DB, &m.WAL, &m.Shm, &m.Locks, opts)
	return m
}

// Recover rebuilds the wal-index from the log, as SQLite does.
func (m *Memory) Recover() error {
	m.Recoveries++
	mem, err := m.Shm.Map(0)
	if err != nil {
		return err
	}
	var hdr IndexHeader
	if r, err := NewReader(&m.WAL); err == nil {
		hdr.BigEndian, hdr.Salts, hdr.PageSize = r.Header().BigEndian, r.Header().Salts, r.Header().PageSize
		for {
			c, err := r.Next()
			if err != nil {
				break
			}
			for i, pgno := range c.Pgnos {
				n := c.First + uint32(i)
				region, err := m.Shm.Map(hashRegion(n))
				if err != nil {
					return err
				}
				if n-regionBase(hashRegion(n)) == 1 {
					clear(region[pagesOffset(hashRegion(n)):])
				}
				if err := insertFrame(region, n, pgno, hdr.MaxFrame); err != nil {
					return err
				}
				hdr.MaxFrame = n
			}
			hdr.PageCount, hdr.FrameSum = c.PageCount, r.sum
		}
	}
	storeIndexHeader(mem, &m.Shm, hdr, nil)
	info := CheckpointInfo{ReadMarks: [readMarks]uint32{0, hdr.MaxFrame, MarkNotUsed, MarkNotUsed, MarkNotUsed}}
	epoch := loadWord(mem, epochOffset)
	info.Epoch = epoch
	info.Encode(mem[checkpointOffset:])
	return nil
}

// Checkpoint copies the whole log into the file. Nobody may read meanwhile.
func (m *Memory) Checkpoint() error {
	hdr, backfilled, err := m.peek()
	if err != nil {
		return err
	}
	page := make([]byte, hdr.PageSize)
	for pgno := uint32(1); pgno <= hdr.PageCount; pgno++ {
		n, err := findFrame(&m.Shm, pgno, backfilled+1, hdr.MaxFrame)
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		if _, err := m.WAL.ReadAt(page, frameOffset(n, hdr.PageSize)+FrameHeaderSize); err != nil {
			return err
		}
		if _, err := m.DB.WriteAt(page, int64(pgno-1)*int64(hdr.PageSize)); err != nil {
			return err
		}
	}
	m.DB.Data = m.DB.Data[:int64(hdr.PageCount)*int64(hdr.PageSize)]
	mem, err := m.Shm.Map(0)
	if err != nil {
		return err
	}
	storeWord(mem, backfillOffset, hdr.MaxFrame)
	return nil
}

// Entries counts the frames that the hash table of region 0 holds.
func (m *Memory) Entries() (n uint32) {
	mem, err := m.Shm.Map(0)
	if err != nil {
		return 0
	}
	for _, idx := range slots(mem) {
		if idx != 0 {
			n++
		}
	}
	return n
}
