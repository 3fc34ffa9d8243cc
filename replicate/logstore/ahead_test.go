package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// tailOf is the segment that raft-wal appends to.
func tailOf(s *Store) *segmentFile {
	fs := s.backend.(walStore).fs
	fs.mu.Lock() // raft-wal makes the next segment in a goroutine of its own
	defer fs.mu.Unlock()
	return fs.tail
}

// Small appends find blocks that were written before, a little ahead of them and never past what is reserved; what they
// find there is zeros, and after a restart they are followed by others as ever.
func TestSmallAppendsOverwriteZeros(t *testing.T) {
	dir := t.TempDir()
	open := func() *Store {
		s, err := Open(dir, WAL, Options{SegmentBytes: testSegment})
		must(t, err)
		return s
	}
	s := open()
	data := bytes.Repeat([]byte("entry"), 1600)
	next, ahead, segments := uint64(1), 0, map[string]bool{}
	for round := range 3 {
		for range 100 { // more than two segments in all
			before := tailOf(s)
			found := before.written
			must(t, s.StoreLog(entry(next, 1, fmt.Sprint(next, string(data)))))
			next++
			f := tailOf(s)
			segments[f.f.Name()] = true
			if f != before {
				continue
			}
			if f.end > f.allocated || f.written < f.end || f.written > f.allocated || f.written-f.end > zeroStep {
				t.Fatalf("the segment ends at %d, is written to %d and reserved to %d", f.end, f.written, f.allocated)
			}
			if f.end <= found {
				ahead++
			}
			rest := make([]byte, f.written-f.end)
			if _, err := f.f.ReadAt(rest, f.end); err != nil || len(bytes.Trim(rest, "\x00")) > 0 {
				t.Fatalf("no zeros after the last entry: %v", err)
			}
		}
		must(t, s.Close())
		s = open()
		wantBounds(t, s, 1, next-1, 1)
		for i := uint64(1); i < next; i++ {
			if l, err := s.Entry(i); err != nil || string(l.Data) != fmt.Sprint(i, string(data)) {
				t.Fatalf("round %d: entry %d is another, or not there: %v", round, i, err)
			}
		}
	}
	defer s.Close()
	if ahead < 270 || len(segments) < 3 {
		t.Fatalf("%d of 300 appends found their blocks written, over %d segments", ahead, len(segments))
	}
}

// Large appends are not written twice.
func TestLargeAppendsWriteNoZeros(t *testing.T) {
	s, err := Open(t.TempDir(), WAL, Options{SegmentBytes: testSegment})
	must(t, err)
	defer s.Close()
	for i := uint64(1); i <= 8; i++ {
		must(t, s.StoreLog(entry(i, 1, string(make([]byte, 100_000)))))
		if f := tailOf(s); i > 4 && f.written != f.end {
			t.Fatalf("entry %d ends at %d, and the file is written to %d", i, f.end, f.written)
		}
	}
}

// The zeros are a matter of speed: an append does not fail with them. Nor does it hide that its own write failed.
func TestZerosThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment")
	must(t, os.WriteFile(path, nil, 0o600))
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	s := &segmentFile{f: f, t: &trouble{}, allocated: 1 << 20}
	s.writeAhead()
	if s.written != 0 || s.t.err != nil {
		t.Fatalf("written to %d, %v", s.written, s.t.err)
	}
	if _, err := s.WriteAt([]byte("entry"), 0); err == nil || !errors.Is(s.t.cause(raft.ErrLogNotFound), s.t.err) || s.written != 0 {
		t.Fatalf("a write to a file that takes none: %v, written to %d", err, s.written)
	}
}
