package logstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// noSpace tells a full disk from one that fails.
func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Full reports whether the last write found no room.
func (s *Store) Full() bool { return s.full.Load() }

// Room looks whether the log has room now: for the segment that comes next, too.
func (s *Store) Room() error {
	if !s.writeMu.TryLock() {
		return s.fullNow()
	}
	defer s.writeMu.Unlock()
	if err := s.Failed(); err != nil {
		return err
	}
	return s.prepare(0, true)
}

func (s *Store) fullNow() error {
	if s.Full() {
		return ErrFull
	}
	return nil
}

// prepareEntries is prepare for entries that are to be stored. After the removal of entries that a leader has
// replaced it waits for room: raft believes that they are still there, and would from then on look in vain for
// one of them whenever it is sent another.
func (s *Store) prepareEntries(logs []*raft.Log) error {
	n := int64(0)
	for _, l := range logs {
		n += int64(len(l.Data)+len(l.Extensions)) + 128
	}
	_, last := s.Bounds()
	anew := last == 0 && (s.started || logs[0].Index > 1) // raft-wal makes a segment that begins there
	for {
		err := s.prepare(n, anew)
		if !s.cut || !errors.Is(err, ErrFull) {
			return err
		}
		if !s.release() && !s.waitForRoom() {
			return err
		}
	}
}

func (s *Store) prepare(n int64, cut bool) error {
	err := s.backend.prepare(n, cut)
	s.full.Store(noSpace(err))
	if err == nil {
		return nil
	}
	if noSpace(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return s.fail(fmt.Errorf("make room for the raft log: %w", err))
}

func (s *Store) release() bool { return s.opt.Release != nil && s.opt.Release() }

// waitForRoom waits a little. It is false when the node stops.
func (s *Store) waitForRoom() bool {
	select {
	case <-time.After(roomRetry):
		return true
	case <-s.stop:
		return false
	}
}

// roomRetry is how often something is tried again that waits for room.
const roomRetry = 100 * time.Millisecond

// fail remembers a failed write. A full disk is no reason where nothing was lost: bbolt takes back all that it
// did. raft-wal does not, but room was made for it before.
func (s *Store) fail(err error) error {
	err = s.backend.cause(err)
	if s.kind == BoltDB && noSpace(err) && !errors.Is(err, ErrSync) {
		s.full.Store(true)
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return s.broken(err)
}

func (s *Store) broken(err error) error {
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	s.mu.Unlock()
	if first && s.opt.OnBroken != nil {
		s.opt.OnBroken(err)
	}
	return err
}

// Set implements raft.StableStore. raft panics when a term cannot be written, so an error is never returned: on a
// full disk the call waits, and after any other error for ever, see Options.OnBroken.
func (s *Store) Set(key, val []byte) error {
	return s.setStable(func() error { return s.backend.Set(key, val) })
}

// SetUint64 implements raft.StableStore, as Set.
func (s *Store) SetUint64(key []byte, val uint64) error {
	return s.setStable(func() error { return s.backend.SetUint64(key, val) })
}

func (s *Store) setStable(write func() error) error {
	for {
		err := write()
		switch {
		case err == nil:
			return nil
		case s.opt.OnBroken == nil: // nobody ends the process
			return err
		case noSpace(err) && (s.release() || s.waitForRoom()):
			continue
		}
		s.broken(fmt.Errorf("write vote or term: %w", s.backend.cause(err))) //nolint:errcheck // told to OnBroken
		select {}
	}
}

// Interrupt ends waits for a full disk: the node stops.
func (s *Store) Interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}
