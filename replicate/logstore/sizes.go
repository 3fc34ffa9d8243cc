package logstore

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// storedOverhead is about what an entry costs on disk beside its data.
const storedOverhead = 64

func storedBytes(l *raft.Log) uint32 {
	return uint32(len(l.Data) + len(l.Extensions) + storedOverhead)
}

// sizes are the bytes of consecutive entries of the log, the oldest first.
type sizes struct {
	list  []uint32
	total int64
}

func (z *sizes) add(n uint32) {
	z.list = append(z.list, n)
	z.total += int64(n)
}

func (z *sizes) dropHead(n int) {
	for _, b := range z.list[:n] {
		z.total -= int64(b)
	}
	z.list = z.list[n:]
	if len(z.list) == 0 {
		z.list = nil
	}
}

func (z *sizes) dropTail(n int) {
	keep := len(z.list) - n
	for _, b := range z.list[keep:] {
		z.total -= int64(b)
	}
	z.list = z.list[:keep]
}

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
	return s.sizes.total
}

// BytesAfter is what the entries after index take together.
func (s *Store) BytesAfter(index uint64) (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 || index >= s.last {
		return 0
	}
	if index < s.first {
		return s.sizes.total
	}
	for _, b := range s.sizes.list[index-s.first+1:] {
		n += int64(b)
	}
	return n
}

// Newest is the index of the oldest entry of the longest tail of the log that has no more than limit bytes and
// entries entries; never beyond the last entry. 0: the log is empty.
func (s *Store) Newest(limit int64, entries uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		return 0
	}
	at, n := len(s.sizes.list), int64(0)
	for at > 0 && uint64(len(s.sizes.list)-at) < entries {
		if n += int64(s.sizes.list[at-1]); n > limit {
			break
		}
		at--
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
