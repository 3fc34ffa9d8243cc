package logstore

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// fillDisk makes the log find no more blocks, until the returned function is called.
func fillDisk(s *Store) (free func()) {
	w, ok := s.backend.(walStore)
	if !ok {
		b := s.backend.(boltStore)
		b.free = func() (int64, error) { return 0, nil }
		s.backend = b
		return func() { b.free = nil; s.backend = b }
	}
	none := func(*os.File, int64, int64) error { return unix.ENOSPC }
	set := func(f func(*os.File, int64, int64) error) {
		w.fs.mu.Lock()
		defer w.fs.mu.Unlock()
		w.fs.alloc, w.fs.tail.alloc = f, f
	}
	set(none)
	return func() { set(allocate) }
}

// On a full disk the log refuses whole batches, has changed nothing, and goes on when there is room: without a restart,
// and with the same entries after one.
func TestAFullDiskRefusesAndIsForgotten(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		next := uint64(1)
		batch := func() error {
			err := s.StoreLog(entry(next, 1, string(bytes.Repeat([]byte{byte(next)}, 100_000))))
			if err == nil {
				next++
			}
			return err
		}
		for range 3 {
			must(t, batch())
			free := fillDisk(s)
			n := 0
			for ; n < 100 && batch() == nil; n++ { // what is reserved is used
			}
			if n == 100 {
				t.Fatal("100 entries of 100 kB fit into a segment of 1 MiB")
			}
			for range 3 {
				if err := batch(); !errors.Is(err, ErrFull) {
					t.Fatalf("got %v", err)
				}
			}
			if !s.Full() || s.Room() == nil || s.Failed() != nil {
				t.Fatalf("full %v, room %v, failed %v", s.Full(), s.Room(), s.Failed())
			}
			wantBounds(t, s, 1, next-1, 1)
			must(t, s.SetUint64([]byte("CurrentTerm"), next)) // a vote needs no room
			free()
			must(t, s.Room())
			for range 25 { // more than two segments
				must(t, batch())
			}
		}
		s = open()
		wantBounds(t, s, 1, next-1, 1)
		for i := uint64(1); i < next; i++ {
			l, err := s.Entry(i)
			must(t, err)
			if !bytes.Equal(l.Data, bytes.Repeat([]byte{byte(i)}, 100_000)) {
				t.Fatalf("entry %d is another", i)
			}
		}
	})
}

// The last entries are removed only where others can follow at once: raft goes on from the old end, and would never get
// past it, if the removal worked and the append did not.
func TestEntriesAreReplacedWholeOrNotAtAll(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		must(t, s.StoreLogs(entries(1, 10, 1)))
		free := fillDisk(s)
		if err := s.DeleteRange(6, 10); !errors.Is(err, ErrFull) && s.kind == WAL {
			t.Fatalf("got %v", err)
		}
		if s.kind == WAL {
			wantBounds(t, s, 1, 10, 1)
		}
		free()
		must(t, s.DeleteRange(6, 10))
		// Full again before the append: it waits for room, and for nothing else.
		free = fillDisk(s)
		stored := make(chan error, 1)
		big := entry(6, 2, string(make([]byte, 2*testSegment)))
		go func() { stored <- s.StoreLogs(append([]*raft.Log{big}, entries(7, 7, 2)...)) }()
		select {
		case err := <-stored:
			t.Fatalf("an append after a removal did not wait for room: %v", err)
		case <-time.After(3 * roomRetry):
		}
		if s.kind == WAL {
			free()
			must(t, <-stored)
			wantBounds(t, s, 1, 7, 2)
			return
		}
		s.Interrupt()
		if err := <-stored; !errors.Is(err, ErrFull) {
			t.Fatalf("interrupted: %v", err)
		}
	})
}

// A vote that meets a full disk is written when the reserve is given up; one that meets a broken disk is never
// answered, and its owner is told.
func TestAVoteWaitsForRoomAndNeverFails(t *testing.T) {
	dir := t.TempDir()
	var released atomic.Int32
	broken := make(chan error, 1)
	s, err := Open(dir, WAL, Options{SegmentBytes: testSegment,
		Release:  func() bool { return released.Add(1) == 1 },
		OnBroken: func(err error) { broken <- err },
	})
	must(t, err)
	defer s.Close()
	var disk atomic.Pointer[error]
	fail := func(err error) { disk.Store(&err) }
	s.backend = stableFails{s.backend, &disk}
	fail(unix.ENOSPC)
	done := make(chan error, 1)
	go func() { done <- s.SetUint64([]byte("CurrentTerm"), 5) }()
	for released.Load() < 2 { // it was given up, and not enough
		select {
		case err := <-done:
			t.Fatalf("a full disk answered %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	fail(nil)
	must(t, <-done)
	if v, err := s.GetUint64([]byte("CurrentTerm")); v != 5 || err != nil {
		t.Fatalf("%d %v", v, err)
	}
	fail(unix.EIO)
	go func() { done <- s.SetUint64([]byte("CurrentTerm"), 6) }()
	if err := <-broken; !errors.Is(err, unix.EIO) {
		t.Fatalf("told of %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("a broken disk answered %v", err)
	default:
	}
	if err := s.StoreLogs(entries(1, 1, 1)); !errors.Is(err, ErrFailed) {
		t.Fatalf("entries after that: %v", err)
	}
}

type stableFails struct {
	backend
	err *atomic.Pointer[error]
}

func (f stableFails) SetUint64(k []byte, v uint64) error {
	if err := *f.err.Load(); err != nil {
		return err
	}
	return f.backend.SetUint64(k, v)
}

// A log that a snapshot has replaced begins elsewhere, with a new segment. A disk that has no room for that refuses the first
// entry, as any other, and the log goes on when there is.
func TestAFullDiskRefusesTheFirstEntryAfterASnapshot(t *testing.T) {
	for name, had := range map[string]bool{"of a log that was removed": true, "of a new log": false} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, _ string, open func() *Store) {
				s := open()
				if had {
					must(t, s.StoreLogs(entries(1, 9, 1)))
					must(t, s.DeleteRange(1, 9))
				}
				s.Covered(50, 1)
				free := fillDisk(s)
				if err := s.StoreLogs(entries(51, 52, 1)); !errors.Is(err, ErrFull) || s.Failed() != nil {
					t.Fatalf("got %v, failed %v, want %v", err, s.Failed(), ErrFull)
				}
				free()
				must(t, s.StoreLogs(entries(51, 52, 1)))
				s = open()
				wantBounds(t, s, 51, 52, 1)
			})
		})
	}
}
