package logstore

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// completeFile in a snapshot's directory says that this node has what the
// snapshot stands for.
const completeFile = "complete"

const snapshotDir = "snapshots" // raft's name for it

// ErrNoSnapshot is returned for an id that is not there.
var ErrNoSnapshot = errors.New("no such snapshot")

// Snapshots is raft's SnapshotStore. A snapshot here is a manifest: it can be
// whole on disk while the data it speaks of is not. List therefore shows only
// complete ones:
//
//   - taken here: FSMSnapshot.Persist calls TakenHere with its sink, and Close of the
//     sink makes the snapshot complete;
//   - received from a leader (or a user's restore): FSM.Restore calls
//     MarkComplete(id) as its last act, with the id from SnapshotOf.
//
// After a crash in between, raft starts from the former snapshot and its log,
// of which nothing has been removed yet.
type Snapshots struct {
	inner  *raft.FileSnapshotStore
	dir    string
	retain int

	mu         sync.Mutex
	incomplete []string // sealed in this process and not complete yet, oldest first
	open       map[string]int
	index      map[string]uint64 // of those in open
	onComplete func(index, term uint64)
	onBroken   func(error)
}

var _ raft.SnapshotStore = (*Snapshots)(nil)

// OpenSnapshots opens the snapshots below dir, keeping the retain newest
// complete ones. Remains of a crash are removed.
func OpenSnapshots(dir string, retain int, logger hclog.Logger) (*Snapshots, error) {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	if err := mkdirSync(filepath.Join(dir, snapshotDir)); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	// raft's own store must never remove one: it counts those that are not
	// complete, too.
	inner, err := raft.NewFileSnapshotStoreWithLogger(dir, math.MaxInt, logger)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &Snapshots{inner: inner, dir: filepath.Join(dir, snapshotDir), retain: max(1, retain), open: make(map[string]int), index: make(map[string]uint64)}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && !s.complete(e.Name()) {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
			}
		}
	}
	if err := syncDir(s.dir); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Snapshots) mark(id string) string { return "complete " + id + "\n" }

func (s *Snapshots) complete(id string) bool {
	b, err := os.ReadFile(filepath.Join(s.dir, id, completeFile))
	return err == nil && string(b) == s.mark(id)
}

// Create implements raft.SnapshotStore.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	s.prune()
	inner, err := s.inner.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, fmt.Errorf("create snapshot at %d: %w", index, err)
	}
	return &sink{SnapshotSink: inner, s: s}, nil
}

type sink struct {
	raft.SnapshotSink
	s      *Snapshots
	here   bool
	closed bool
}

// TakenHere tells that the sink of FSMSnapshot.Persist receives this node's own
// state, which is durable already: its Close makes the snapshot complete.
func TakenHere(to raft.SnapshotSink) error {
	k, ok := to.(*sink)
	if !ok {
		return fmt.Errorf("take snapshot: sink of another store (%T)", to)
	}
	k.here = true
	return nil
}

// Close implements raft.SnapshotSink.
func (k *sink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	err := k.close()
	// raft does not say which call failed; it has nothing to do here but to sync.
	if errors.Is(err, syscall.EIO) && !errors.Is(err, ErrSync) {
		err = fmt.Errorf("%w: %w", ErrSync, err)
	}
	return k.s.tellBroken(err)
}

func (k *sink) close() error {
	if err := k.SnapshotSink.Close(); err != nil {
		return err
	}
	// raft syncs the files and the directory above, not the one between.
	if err := syncDir(filepath.Join(k.s.dir, k.ID())); err != nil {
		return err
	}
	if k.here {
		return k.s.markComplete(k.ID())
	}
	k.s.mu.Lock()
	k.s.incomplete = append(k.s.incomplete, k.ID())
	k.s.mu.Unlock()
	return nil
}

// Cancel implements raft.SnapshotSink.
func (k *sink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	return k.SnapshotSink.Cancel()
}

// List implements raft.SnapshotStore: complete ones, newest first.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.inner.List()
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var list []*raft.SnapshotMeta
	for _, m := range all {
		if s.complete(m.ID) {
			list = append(list, m)
		}
	}
	return list, nil
}

// Open implements raft.SnapshotStore.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	s.open[id]++
	s.mu.Unlock()
	meta, rc, err := s.inner.Open(id)
	if err != nil {
		s.release(id)
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	s.mu.Lock()
	s.index[id] = meta.Index
	s.mu.Unlock()
	return meta, &reader{ReadCloser: rc, s: s, id: id, index: meta.Index, complete: s.complete(id), servers: meta.Configuration.Servers}, nil
}

func (s *Snapshots) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id]--; s.open[id] <= 0 {
		delete(s.open, id)
		delete(s.index, id)
	}
}

// Reading is the lowest index of the snapshots that are being read: raft reads one for as long as it takes a
// follower to restore it. False: none is.
func (s *Snapshots) Reading() (index uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.index {
		if !ok || i < index {
			index, ok = i, true
		}
	}
	return index, ok
}

type reader struct {
	io.ReadCloser
	s        *Snapshots
	id       string
	index    uint64
	complete bool
	servers  []raft.Server
	once     sync.Once
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.once.Do(func() { r.s.release(r.id) })
	return r.ReadCloser.Close()
}

// Given is the snapshot that FSM.Restore was given.
type Given struct {
	ID       string
	Index    uint64
	Complete bool          // already, which is the case at start
	Servers  []raft.Server // the members at the snapshot's index
}

// SnapshotOf tells which snapshot FSM.Restore was given. False: rc is not of this store.
func SnapshotOf(rc io.ReadCloser) (Given, bool) {
	for {
		switch r := rc.(type) {
		case *reader:
			return Given{r.id, r.index, r.complete, r.servers}, true
		case raft.ReadCloserWrapper:
			rc = r.WrappedReadCloser()
		default:
			return Given{}, false
		}
	}
}

// MarkComplete makes a snapshot count, durably, and removes the surplus.
func (s *Snapshots) MarkComplete(id string) error { return s.tellBroken(s.markComplete(id)) }

func (s *Snapshots) markComplete(id string) error {
	if id == "" || strings.ContainsAny(id, "/\\") || strings.HasPrefix(id, ".") {
		return fmt.Errorf("mark snapshot %q complete: %w", id, ErrNoSnapshot)
	}
	dir := filepath.Join(s.dir, id)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("mark snapshot %q complete: %w", id, ErrNoSnapshot)
	}
	f, err := os.Create(filepath.Join(dir, completeFile))
	if err != nil {
		return fmt.Errorf("mark snapshot complete: %w", err)
	}
	_, err = f.WriteString(s.mark(id))
	if err == nil {
		if err = fsync(f); err != nil {
			err = fmt.Errorf("%w: %w", ErrSync, err)
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("mark snapshot %s complete: %w", id, err)
	}
	s.mu.Lock()
	s.forgetLocked(id)
	tell := s.onComplete
	s.mu.Unlock()
	if tell != nil {
		list, err := s.List()
		if err != nil {
			return err
		}
		for _, m := range list {
			if m.ID == id {
				tell(m.Index, m.Term)
			}
		}
	}
	s.prune()
	return nil
}

// OnBroken sets f, which is called when a sync failed: what is on disk is not known, and the process has to end.
func (s *Snapshots) OnBroken(f func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onBroken = f
}

// tellBroken returns err.
func (s *Snapshots) tellBroken(err error) error {
	s.mu.Lock()
	tell := s.onBroken
	s.mu.Unlock()
	if errors.Is(err, ErrSync) && tell != nil {
		tell(err)
	}
	return err
}

// OnComplete sets f, which is called with the last index of every snapshot
// that becomes complete, and its term. Check sets it to the log's Covered.
func (s *Snapshots) OnComplete(f func(index, term uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onComplete = f
}

func (s *Snapshots) forgetLocked(id string) {
	for i, other := range s.incomplete {
		if other == id {
			s.incomplete = append(s.incomplete[:i], s.incomplete[i+1:]...)
			return
		}
	}
}

// prune removes complete snapshots beyond the newest, and failed restores but
// the latest two, unless somebody reads them. Errors leave files for the next
// time.
func (s *Snapshots) prune() {
	list, err := s.List()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	remove := func(id string) bool {
		if s.open[id] > 0 {
			return false
		}
		return os.RemoveAll(filepath.Join(s.dir, id)) == nil
	}
	for i := s.retain; i < len(list); i++ {
		remove(list[i].ID)
	}
	for i := 0; i < len(s.incomplete)-2; {
		if id := s.incomplete[i]; remove(id) {
			s.forgetLocked(id)
		} else {
			i++
		}
	}
}
