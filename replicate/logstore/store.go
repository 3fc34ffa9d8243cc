package logstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Kind names how the log is stored.
type Kind string

const (
	// WAL is hashicorp/raft-wal, the default.
	WAL Kind = "wal"
	// BoltDB is hashicorp/raft-boltdb/v2.
	BoltDB Kind = "boltdb"
)

const (
	walDir   = "log"     // directory of raft-wal, below the raft directory
	boltFile = "raft.db" // file of raft-boltdb

	// DefaultCacheBytes bounds the entries kept in memory.
	DefaultCacheBytes = 16 << 20
	// DefaultSegmentBytes is how much raft-wal allocates at a time.
	DefaultSegmentBytes = 64 << 20
	// MaxBatchBytes is what one AppendEntries request should carry at most; see
	// peer.LimitBatches.
	MaxBatchBytes = 4 << 20
)

var (
	// ErrUnknownKind is returned by Open and Migrate: neither "wal" nor "boltdb".
	ErrUnknownKind = errors.New("unknown raft log kind")
	// ErrLogLost is returned by Open and Check: the log is gone although this node had
	// one. It may have acknowledged entries that only it and another lost node
	// held, so it must not take part again: remove it from the cluster and add
	// it anew with an empty data directory.
	ErrLogLost = errors.New("this node lost its log: remove it from the cluster and add it again with an empty data directory")
	// ErrLogGap is returned by Check: entries between the newest snapshot and the
	// log are missing. As with ErrLogLost the node has to be added anew.
	ErrLogGap = errors.New("entries between the newest snapshot and the log are missing: remove this node from the cluster and add it again with an empty data directory")
	// ErrFull is returned by StoreLogs and DeleteRange when the disk has no room. Nothing was done; they work
	// again when there is.
	ErrFull = errors.New("no space left for the raft log")
	// ErrSync is wrapped by errors of a sync that failed. It is not tried again: the kernel may have dropped
	// what it could not write, and would call the next sync a success.
	ErrSync = errors.New("sync failed, and what is on disk is not known")
	// ErrFailed is returned by all writes after one failed: what is on disk is
	// no longer known, only a restart finds out.
	ErrFailed = errors.New("raft log failed and takes no more entries until the node is restarted")
	// ErrReplaced is returned by Durable: the index is taken by an entry of a
	// later term, so the entry that was asked for is not part of the log.
	ErrReplaced = errors.New("log index holds an entry of a later term")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("raft log closed")
)

// Options change what Open does; the zero value is fine.
type Options struct {
	// CacheBytes bounds the entries kept in memory, 0 = DefaultCacheBytes.
	CacheBytes int
	// SegmentBytes is raft-wal's allocation unit, 0 = DefaultSegmentBytes.
	SegmentBytes int
	// Free returns the bytes that can still be written to the disk; nil asks nobody.
	Free func() (int64, error)
	// Release gives up a reserve, so that votes and terms can be written to a full disk. It reports whether
	// there was one. nil: there is none.
	Release func() bool
	// OnBroken hears, once, of a write or sync after which nobody knows what is on disk. The store takes no
	// more, and a vote that was to be written waits for ever: the process has to end.
	OnBroken func(error)
	// MustExist refuses to create a log (ErrLogLost). Set it once the node is a member
	// of a cluster: a missing log then is a lost one.
	MustExist bool
	// Logger is for raft-wal; nil discards.
	Logger hclog.Logger
}

// keyStarted marks, in the stable store, that the log has ever held an entry.
var keyStarted = []byte("hasqlite.log.started")

type backend interface {
	raft.LogStore
	raft.StableStore
	io.Closer
	// prepare makes sure that n bytes of entries can be written, or with cut that the last ones can be
	// removed and others written. On a full disk it gives an error and has changed nothing.
	prepare(n int64, cut bool) error
	// cause is what is behind an error of the other methods.
	cause(err error) error
}

// Store is raft's LogStore and StableStore. Reads may run beside each other and
// beside one writer.
type Store struct {
	kind    Kind
	backend backend
	cache   cache
	opt     Options
	stop    chan struct{} // closed by Interrupt
	full    atomic.Bool   // the last write found no room

	writeMu sync.Mutex // one StoreLogs or DeleteRange at a time
	cut     bool       // the last entries were removed, and none stored since; under writeMu
	// installed is the index of a snapshot that came from the leader, until raft has removed what is before it, or has
	// stored an entry; under writeMu.
	installed uint64

	mu          sync.Mutex
	first       uint64 // of the log, 0 = empty
	last        uint64
	terms       []termRun // of what was stored or looked up since Open, ascending
	covered     uint64    // every entry up to here is in a complete snapshot
	coveredTerm uint64    // of that entry
	sizes       sizes     // of the entries first to last
	started     bool
	failed      error
	closed      bool
	waiters     map[*waiter]struct{}
}

// termRun says that the entries from first on have term, up to the next run.
type termRun struct{ first, term uint64 }

type waiter struct {
	index, term uint64
	done        chan error
}

var (
	_ raft.LogStore          = (*Store)(nil)
	_ raft.StableStore       = (*Store)(nil)
	_ raft.MonotonicLogStore = (*Store)(nil)
)

// Open opens the log of kind below dir, or creates it. The caller holds the
// lock of the data directory.
func Open(dir string, kind Kind, opt Options) (*Store, error) {
	if opt.CacheBytes == 0 {
		opt.CacheBytes = DefaultCacheBytes
	}
	if opt.MustExist {
		if ok, err := exists(dir, kind); err != nil {
			return nil, err
		} else if !ok {
			return nil, fmt.Errorf("open raft log in %s: no %s log: %w", dir, kind, ErrLogLost)
		}
	}
	b, err := openBackend(dir, kind, opt)
	if err != nil {
		return nil, err
	}
	s := &Store{kind: kind, backend: b, opt: opt, stop: make(chan struct{}), waiters: make(map[*waiter]struct{})}
	s.cache.limit = opt.CacheBytes
	if err := s.load(); err != nil {
		b.Close() //nolint:errcheck // the first error counts
		return nil, fmt.Errorf("open raft log in %s: %w", dir, err)
	}
	return s, nil
}

func path(dir string, kind Kind) (string, error) {
	switch kind {
	case WAL:
		return filepath.Join(dir, walDir), nil
	case BoltDB:
		return filepath.Join(dir, boltFile), nil
	}
	return "", fmt.Errorf("raft log kind %q: %w", kind, ErrUnknownKind)
}

func exists(dir string, kind Kind) (bool, error) {
	p, err := path(dir, kind)
	if err != nil {
		return false, err
	}
	if kind == WAL {
		p = filepath.Join(p, "wal-meta.db")
	}
	_, err = os.Stat(p)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for raft log: %w", err)
	}
	return true, nil
}

func openBackend(dir string, kind Kind, opt Options) (backend, error) {
	p, err := path(dir, kind)
	if err != nil {
		return nil, err
	}
	return openAt(p, kind, opt)
}

func openAt(p string, kind Kind, opt Options) (backend, error) {
	if opt.Logger == nil {
		opt.Logger = hclog.NewNullLogger()
	}
	if opt.SegmentBytes == 0 {
		opt.SegmentBytes = DefaultSegmentBytes
	}
	dir := filepath.Dir(p)
	if kind == WAL {
		dir = p
	}
	if err := mkdirSync(dir); err != nil {
		return nil, err
	}
	if kind == WAL {
		return openWAL(p, opt)
	}
	b, err := raftboltdb.New(raftboltdb.Options{Path: p, BoltOptions: &bbolt.Options{
		Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	}})
	if err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", p, err)
	}
	if err := syncDir(dir); err != nil {
		b.Close() //nolint:errcheck // the first error counts
		return nil, err
	}
	return boltStore{b, opt.Free}, nil
}

// load learns the state of the log.
func (s *Store) load() error {
	var err error
	if s.first, err = s.backend.FirstIndex(); err != nil {
		return fmt.Errorf("read first index: %w", err)
	}
	if s.last, err = s.backend.LastIndex(); err != nil {
		return fmt.Errorf("read last index: %w", err)
	}
	v, err := s.backend.Get(keyStarted)
	if err != nil {
		return fmt.Errorf("read mark: %w", err)
	}
	s.started = len(v) > 0
	if s.last == 0 {
		return nil
	}
	var l raft.Log
	if err := s.backend.GetLog(s.last, &l); err != nil {
		return fmt.Errorf("read last entry %d: %w", s.last, err)
	}
	s.terms = append(s.terms, termRun{s.last, l.Term})
	s.loadSizes()
	if !s.started {
		return s.markStarted()
	}
	return nil
}

func (s *Store) markStarted() error {
	if err := s.backend.Set(keyStarted, []byte{1}); err != nil {
		return fmt.Errorf("mark log as started: %w", err)
	}
	s.started = true
	return nil
}

// Kind is how the log is stored.
func (s *Store) Kind() Kind { return s.kind }

// IsMonotonic implements raft.MonotonicLogStore.
func (s *Store) IsMonotonic() bool { return s.kind == WAL }

// FirstIndex implements raft.LogStore.
func (s *Store) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, nil
}

// LastIndex implements raft.LogStore.
func (s *Store) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// Last is the index and term of the last durable entry, zero if there is none.
func (s *Store) Last() (index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		return 0, 0
	}
	return s.last, s.terms[len(s.terms)-1].term
}

// Bounds are the first and last index of the log, zero if it is empty.
func (s *Store) Bounds() (first, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.last
}

// GetLog implements raft.LogStore. The data may be shared with other readers
// and must not be changed.
func (s *Store) GetLog(index uint64, log *raft.Log) error {
	// raft-wal goes on serving removed entries while they are in its last
	// segment; a leader would then replay what it should send as a snapshot.
	s.mu.Lock()
	gone := s.goneLocked(index)
	covered, term := s.covered, s.coveredTerm
	next := s.last == 0 || s.first > covered
	s.mu.Unlock()
	if gone && next && index == covered && index > 1 {
		// A follower whose log begins after its snapshot is asked for the term of that one's last entry: raft does not
		// look there when the log goes on, refuses what follows, and is sent the snapshot again and again. Nobody
		// takes this for the entry itself: it is read as what precedes others, by a leader too, which starts a
		// follower here only if it has the entry before.
		*log = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
		return nil
	}
	if gone {
		return raft.ErrLogNotFound // raft compares by identity
	}
	return s.read(index, log)
}

func (s *Store) goneLocked(index uint64) bool {
	return s.last == 0 || index < s.first || index > s.last
}

func (s *Store) read(index uint64, log *raft.Log) error {
	if s.cache.get(index, log) {
		return nil
	}
	err := s.backend.GetLog(index, log)
	if errors.Is(err, raft.ErrLogNotFound) {
		return raft.ErrLogNotFound
	}
	return err
}

// Entry reads an entry; raft.ErrLogNotFound if the log does not have it (any
// more), the one that GetLog makes up included. The data may be shared and must
// not be changed.
func (s *Store) Entry(index uint64) (*raft.Log, error) {
	s.mu.Lock()
	gone := s.goneLocked(index)
	s.mu.Unlock()
	l, err := new(raft.Log), raft.ErrLogNotFound
	if !gone {
		err = s.read(index, l)
	}
	if err != nil {
		return nil, fmt.Errorf("read log entry %d: %w", index, err)
	}
	return l, nil
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. When it returns nil the entries are
// durable. It keeps the entries: their data must not be changed afterwards.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.admit(logs); err != nil {
		return err
	}
	if err := s.prepareEntries(logs); err != nil {
		return err
	}
	if err := s.backend.StoreLogs(logs); err != nil {
		return s.fail(fmt.Errorf("store log entries %d to %d: %w", logs[0].Index, logs[len(logs)-1].Index, err))
	}
	if !s.started { // written under writeMu only
		if err := s.markStarted(); err != nil {
			return s.fail(err)
		}
	}
	s.cut, s.installed = false, 0
	s.cache.add(logs)
	s.stored(logs)
	return nil
}

// admit checks a batch before the backend sees it, because raft-wal can only be
// reopened after an append that it refused.
func (s *Store) admit(logs []*raft.Log) error {
	s.mu.Lock()
	failed, last, covered := s.failed, s.last, s.covered
	s.mu.Unlock()
	if failed != nil {
		return failed
	}
	for i := 1; i < len(logs); i++ {
		if logs[i].Index != logs[i-1].Index+1 {
			return fmt.Errorf("store log entries: index %d follows %d", logs[i].Index, logs[i-1].Index)
		}
	}
	next := logs[0].Index
	if next == 0 {
		return errors.New("store log entries: index 0")
	}
	if last == 0 || next == last+1 {
		return nil
	}
	if next > last && covered >= next-1 {
		// raft restored a snapshot past the log's end and went on from there,
		// but did not live to remove the old entries.
		if err := s.deleteRange(1, last); err != nil {
			return err
		}
		return nil
	}
	return fmt.Errorf("store log entries: index %d after the last one, %d", next, last)
}

// Failed is why the log takes no more entries, nil while it does.
func (s *Store) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// stored publishes what has become durable.
func (s *Store) stored(logs []*raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		s.first = logs[0].Index
		s.terms = s.terms[:0]
	}
	for _, l := range logs {
		s.sizes.add(storedBytes(l))
		if n := len(s.terms); n == 0 || s.terms[n-1].term != l.Term {
			s.terms = append(s.terms, termRun{l.Index, l.Term})
		}
	}
	s.last = logs[len(logs)-1].Index
	s.wakeLocked()
}

// DeleteRange implements raft.LogStore: the head of the log after a snapshot,
// or its tail when a leader has other entries there.
func (s *Store) DeleteRange(minIndex, maxIndex uint64) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if installed := s.installed; installed > 0 {
		if first, last := s.Bounds(); minIndex <= first && maxIndex >= last {
			s.installed = 0
			maxIndex = min(maxIndex, installed)
		}
	}
	return s.deleteRange(minIndex, maxIndex)
}

// Installed says that raft has restored a snapshot that the leader sent, and removes the log next. What is after
// the snapshot stays: raft goes on as if it had that, and it may have been acknowledged. (raft removes all of
// a log that is monotonic, and forgets that its last entry is gone.)
func (s *Store) Installed(index uint64) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.installed = index
}

func (s *Store) deleteRange(minIndex, maxIndex uint64) error {
	s.mu.Lock()
	first, last, failed := s.first, s.last, s.failed
	s.mu.Unlock()
	if failed != nil {
		return failed
	}
	if last == 0 || minIndex > maxIndex || maxIndex < first || minIndex > last {
		return nil
	}
	if minIndex > first && maxIndex < last {
		return fmt.Errorf("delete log entries %d to %d of %d to %d: only the head or the tail can go", minIndex, maxIndex, first, last)
	}
	tail := minIndex > first
	if err := s.prepare(0, tail || maxIndex >= last); err != nil { // a new segment begins at once
		return err
	}
	// What is to go stops counting before it goes: a Durable beside this must
	// not see it any more.
	s.mu.Lock()
	if minIndex <= first {
		s.first = min(maxIndex, last) + 1
		s.sizes.dropHead(int(s.first - first))
		if s.first > s.last {
			s.first, s.last, s.terms = 0, 0, s.terms[:0]
		}
		for len(s.terms) > 1 && s.terms[1].first <= s.first {
			s.terms = s.terms[1:]
		}
	} else {
		s.last = minIndex - 1
		s.sizes.dropTail(int(last - s.last))
		for len(s.terms) > 0 && s.terms[len(s.terms)-1].first > s.last {
			s.terms = s.terms[:len(s.terms)-1]
		}
	}
	s.mu.Unlock()
	s.cache.remove(minIndex, maxIndex)
	if err := s.backend.DeleteRange(minIndex, maxIndex); err != nil {
		return s.fail(fmt.Errorf("delete log entries %d to %d: %w", minIndex, maxIndex, err))
	}
	s.cut = s.cut || tail
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last > 0 && len(s.terms) == 0 {
		var l raft.Log
		if err := s.backend.GetLog(s.last, &l); err != nil {
			return fmt.Errorf("read last entry %d: %w", s.last, err)
		}
		s.terms = append(s.terms, termRun{s.last, l.Term})
	}
	s.wakeLocked()
	return nil
}

// Covered says that a complete snapshot holds every entry up to index, which has that term.
func (s *Store) Covered(index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index > s.covered {
		s.covered, s.coveredTerm = index, term
		s.wakeLocked()
	}
}

// Durable waits until the entry of that index and term, which the leader has
// decided on, is durable here: in the log, or in a snapshot that replaced it.
// ErrReplaced: it never will be.
func (s *Store) Durable(ctx context.Context, index, term uint64) error {
	s.mu.Lock()
	done, err := s.holdsLocked(index, term)
	if done {
		s.mu.Unlock()
		return err
	}
	w := &waiter{index: index, term: term, done: make(chan error, 1)}
	s.waiters[w] = struct{}{}
	s.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	delete(s.waiters, w)
	s.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	default:
		return fmt.Errorf("wait for log entry %d of term %d: %w", index, term, ctx.Err())
	}
}

func (s *Store) wakeLocked() {
	for w := range s.waiters {
		if done, err := s.holdsLocked(w.index, w.term); done {
			delete(s.waiters, w)
			w.done <- err
		}
	}
}

// holdsLocked tells whether there is an answer for Durable now.
func (s *Store) holdsLocked(index, term uint64) (done bool, err error) {
	switch {
	case s.closed:
		return true, ErrClosed
	case index <= s.covered:
		return true, nil
	case s.last > 0 && index < s.first:
		// Only what is in a snapshot is removed at the head, and entries follow
		// a snapshot only if it is complete.
		return true, nil
	case index > s.last:
		return false, nil
	}
	held, err := s.termLocked(index)
	switch {
	case err != nil:
		return true, err
	case held == term:
		return true, nil
	case held > term:
		return true, fmt.Errorf("log entry %d has term %d, not %d: %w", index, held, term, ErrReplaced)
	}
	return false, nil // an entry of an older term, soon to be replaced
}

// termLocked is the term of a durable entry.
func (s *Store) termLocked(index uint64) (uint64, error) {
	for i := len(s.terms) - 1; i >= 0; i-- {
		if s.terms[i].first <= index {
			return s.terms[i].term, nil
		}
	}
	var l raft.Log
	if err := s.read(index, &l); err != nil {
		return 0, fmt.Errorf("read log entry %d: %w", index, err)
	}
	return l.Term, nil
}

// Get implements raft.StableStore.
func (s *Store) Get(key []byte) ([]byte, error) { return s.backend.Get(key) }

// GetUint64 implements raft.StableStore.
func (s *Store) GetUint64(key []byte) (uint64, error) { return s.backend.GetUint64(key) }

// Close ends the store; raft must be shut down before.
func (s *Store) Close() error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.failed == nil {
		s.failed = ErrClosed
	}
	s.wakeLocked()
	s.mu.Unlock()
	if err := s.backend.Close(); err != nil {
		return fmt.Errorf("close raft log: %w", err)
	}
	return nil
}
