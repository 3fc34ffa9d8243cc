package logstore

import (
	"fmt"
	"sort"

	"github.com/hashicorp/raft"
)

// storedOverhead is about what an entry costs on disk beside its data.
const storedOverhead = 64

func storedBytes(l *raft.Log) uint32 {
	return uint32(len(l.Data) + len(l.Extensions) + storedOverhead)
}

// sizes are the bytes of consecutive entries of the log, the oldest first.
type sizes struct {
	ends   []int64 // where each ends, counted from somewhere before the first
	before int64   // where the first begins
}

func (z *sizes) total() int64 { return z.end() - z.before }

func (z *sizes) end() int64 {
	if n := len(z.ends); n > 0 {
		return z.ends[n-1]
	}
	return z.before
}

// after is what the entries behind the first n take.
func (z *sizes) after(n int) int64 {
	if n == 0 {
		return z.total()
	}
	return z.end() - z.ends[n-1]
}

func (z *sizes) add(n uint32) { z.ends = append(z.ends, z.end()+int64(n)) }

func (z *sizes) dropHead(n int) {
	if n > 0 {
		z.before = z.ends[n-1]
	}
	z.ends = z.ends[n:]
	if len(z.ends) == 0 {
		z.ends = nil
	}
}

func (z *sizes) dropTail(n int) { z.ends = z.ends[:len(z.ends)-n] }

// loadSizes reads the whole log once. An entry that cannot be read counts as nothing: whoever needs it says so.
func (s *Store) loadSizes() {
	for i := s.first; i <= s.last && s.last > 0; i++ {
		var l raft.Log
		if err := s.backend.GetLog(i, &l); err != nil {
			s.sizes.add(storedOverhead)
			continue
		}
		s.sizes.add(storedBytes(&l))
	}
}

// Bytes is what the entries of the log take together.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sizes.total()
}

// BytesAfter is what the entries after index take together. It takes no time to speak of: commits ask for it.
func (s *Store) BytesAfter(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sizes.end() - s.offsetLocked(index)
}

// Offset is where an entry ends in all that was ever appended, in bytes counted from somewhere: what a compaction removes
// does not change it. math.MaxUint64 asks for the end.
func (s *Store) Offset(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offsetLocked(index)
}

func (s *Store) offsetLocked(index uint64) int64 {
	switch {
	case s.last == 0 || index >= s.last:
		return s.sizes.end()
	case index < s.first:
		return s.sizes.before
	}
	return s.sizes.ends[index-s.first]
}

// Newest is the index of the oldest entry of the longest tail of the log that has no more than limit bytes and
// entries entries; never beyond the last entry. 0: the log is empty.
func (s *Store) Newest(limit int64, entries uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		return 0
	}
	n := len(s.sizes.ends)
	at := sort.Search(n, func(i int) bool { return s.sizes.after(i) <= limit })
	if uint64(n) > entries {
		at = max(at, n-int(entries))
	}
	return min(s.first+uint64(at), s.last)
}

// CoveredIndex is the last entry that a complete snapshot holds.
func (s *Store) CoveredIndex() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.covered
}

// Compact removes the entries before index, as far as a complete snapshot holds them; the last entry stays.
func (s *Store) Compact(index uint64) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.mu.Lock()
	first, to := s.first, min(index, s.covered+1, s.last)
	s.mu.Unlock()
	if first == 0 || to <= first {
		return nil
	}
	if err := s.deleteRange(first, to-1); err != nil {
		return fmt.Errorf("compact the raft log: %w", err)
	}
	return nil
}
