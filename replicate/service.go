package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/pagesums"
	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// Options configure a Service.
type Options struct {
	NodeID    string
	Cluster   func() [16]byte // zero until the node belongs to a cluster
	Dir       string          // data directory
	HTTPAddr  string          // announced to the other members
	Files     Files
	Port      *peer.Port
	Store     *logstore.Store
	Snapshots *logstore.Snapshots

	// WriteLease ends the lock of a silent holder when another writer waits. IdleClose is after how long
	// without a handle the files of a database are closed.
	WriteLease, IdleClose time.Duration
	// SnapshotEntries and TrailingEntries bound the raft log: a snapshot after so many entries, of which
	// so many are kept.
	SnapshotEntries, TrailingEntries uint64
	// LogLimit bounds the raft log in bytes, CatchupRate what is fetched from peers in bytes per second.
	LogLimit, CatchupRate int64
	// Quotas limit databases by their names. The first that matches a name counts.
	Quotas []Quota
	// MaxUnattended is how many databases may be open that no application on this node uses. 0: a default.
	MaxUnattended int
	// MaxTransaction bounds the pages of one transaction, in bytes.
	MaxTransaction int64
	// CatchupStep, if not nil, is called at each step of a catch-up of a database. For tests.
	CatchupStep func(database, step string)
	// ForkPatience is for how long a majority may take to make its copies of a fork. 0: a default.
	ForkPatience time.Duration
	// Drilled, if not nil, is called when another node has restored a state from the archive that all nodes share.
	Drilled func(DrillNote)
	// ScrubInterval is how often every page of each database is read and compared. 0: a default.
	ScrubInterval time.Duration
	// VerifyFull reads the whole file after every transaction. For tests.
	VerifyFull bool
	// BeforePart is called before this node, as the leader, proposes a part of a large transaction, and with
	// one number more before the final entry. For tests.
	BeforePart func(number uint32)
	// Archive says how commits are archived; nil: they are not.
	Archive *ArchiveOptions
	// Space is the disk; nil: nobody asks. SegmentBytes is what the log allocates at a time, ReserveBytes the
	// reserve of Space.
	Space                      Space
	SegmentBytes, ReserveBytes int64
}

// Service replicates databases: it owns raft, the state machine, the write locks while it leads, and the
// appliers. Its methods may be called from any goroutine.
type Service struct {
	opts    Options
	log     *slog.Logger
	files   Files
	port    *peer.Port
	store   *logstore.Store
	raftLog *logstore.Parallel // the store as raft sees it

	transport  *peer.Transport
	fsm        *FSM
	raft       *raft.Raft
	locks      *LockTable
	metrics    counters
	spools     *spools
	forgetting atomic.Bool // forgetParts runs
	ticks      sync.Map    // id of a large transaction of this node -> func() that hears of its progress
	now        func() time.Time

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	spawnMu sync.Mutex
	ended   bool

	handleSeq atomic.Uint64
	draining  atomic.Bool
	retained  atomic.Int64 // bytes of payload that appliers' queues hold
	fatal     chan error

	mu       sync.RWMutex
	replicas map[DatabaseID]*replica
	active   activeSet
	quotas   *quotas
	appliers *pool // bounds who writes into files at a time
	streams  streams
	copiers  *turns // bounds checkpoints, which sync

	sums     *pagesums.Store
	rounds   servedRounds  // what peers read here
	catchups chan struct{} // a token for each database that catches up at a time
	catchup  throttle      // of what is fetched from peers
	rereads  sync.Mutex    // one paced re-read at a time

	replay      chan struct{}                 // closed when the log's tail at start is confirmed or replaced
	raftUp      chan struct{}                 // closed when raft is set
	arriving    atomic.Pointer[[]raft.Server] // the members of the snapshot that is being restored
	archiver    *archiver                     // nil: nothing is archived
	replayOnce  sync.Once
	replayIndex uint64
	replayTerm  uint64
	restored    bool          // the snapshot of the start was loaded: a later restore comes from the leader
	successor   atomic.Uint64 // the term in which this node looks whether to succeed a dead leader
	proposing   atomic.Uint64 // the term whose first entry is on its way or decided
	pressure    pressure
	logBound    logBound
	disk        *disk
	relieving   atomic.Bool // relieveDisk runs
	holders     holderTable
	leadMu      sync.Mutex // orders opening and closing the lock table
	started     time.Time
	membership  Membership
	promoting   sync.Map // member id -> true
	driven      sync.Map // id of a fork that this node, as the leader, sees to -> true

	forkPatience  time.Duration
	scrubInterval time.Duration
	scrubbingIdle atomic.Bool // of one database that nobody uses at a time
}

// Start opens raft on the stores and begins to replicate. The caller bootstraps or joins afterwards.
func Start(opts Options, log *slog.Logger) (*Service, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{
		opts: opts, log: log, port: opts.Port, store: opts.Store, disk: newDisk(opts.Space, opts.SegmentBytes, opts.ReserveBytes),
		ctx: ctx, cancel: cancel, now: time.Now, fatal: make(chan error, 1),
		copiers:  newTurns(copierWidth),
		replicas: map[DatabaseID]*replica{}, replay: make(chan struct{}), raftUp: make(chan struct{}), started: time.Now(),
	}
	s.quotas = newQuotas(opts.Quotas)
	s.forkPatience = cmp.Or(opts.ForkPatience, forkPatience)
	s.scrubInterval = cmp.Or(opts.ScrubInterval, scrubInterval)
	s.appliers = newPool(applierWidth(), s.goroutine)
	s.files = watchedFiles{opts.Files, s}
	s.catchups, s.catchup.rate = make(chan struct{}, catchupsAtOnce), opts.CatchupRate
	if err := s.clearSpool(); err != nil {
		cancel()
		return nil, err
	}
	sums, err := pagesums.Open(filepath.Join(opts.Dir, sumsDir))
	if err != nil {
		cancel()
		return nil, err
	}
	s.sums = sums
	// A leader may remember handles of this node's former life.
	s.handleSeq.Store(rand.Uint64() << 32)
	s.locks = NewLockTable(SystemClock{}, opts.WriteLease)
	if opts.Archive != nil {
		if s.archiver, err = newArchiver(s, *opts.Archive); err != nil {
			cancel()
			return nil, errors.Join(err, sums.Close())
		}
	}
	s.fsm = NewFSM(sink{s}, log)
	s.fsm.OnPersist = s.beforePersist
	s.fsm.OnRestore = s.afterRestore
	s.openSpools()
	s.registerMethods()
	last, term, err := lastEntry(opts.Store)
	if err != nil {
		cancel()
		return nil, err
	}
	s.replayIndex, s.replayTerm = last, term
	if err := s.openRaft(); err != nil {
		cancel()
		return nil, errors.Join(err, sums.Close())
	}
	if err := s.spools.clear(); err != nil {
		cancel()
		stopped := s.raft.Shutdown()
		return nil, errors.Join(err, s.transport.EndWaits(), stopped.Error())
	}
	s.mu.Lock()
	s.restored = true
	s.mu.Unlock()
	s.goroutine(s.confirmTail)
	s.goroutine(s.leadership)
	s.goroutine(s.janitor)
	s.goroutine(s.reportPressure)
	s.goroutine(s.boundLog)
	s.goroutine(s.reportProgress)
	s.goroutine(s.watchDisk)
	if s.archiver != nil {
		s.goroutine(s.archiver.run)
	}
	return s, nil
}

func lastEntry(store *logstore.Store) (index, term uint64, err error) {
	index, err = store.LastIndex()
	if err != nil || index == 0 {
		return 0, 0, err
	}
	var l raft.Log
	if err := store.GetLog(index, &l); err != nil {
		return 0, 0, fmt.Errorf("read the last log entry %d: %w", index, err)
	}
	return index, l.Term, nil
}

// Fatal delivers the error that makes the node stop.
func (s *Service) Fatal() <-chan error { return s.fatal }

func (s *Service) stop(err error) {
	s.log.Error("the node must stop", "err", err)
	select {
	case s.fatal <- err:
	default:
	}
}

// goroutine runs f beside everything else, unless the service has ended.
func (s *Service) goroutine(f func()) {
	s.spawnMu.Lock()
	defer s.spawnMu.Unlock()
	if s.ended {
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// end stops all goroutines and waits for them.
func (s *Service) end() {
	s.cancel()
	s.spawnMu.Lock()
	s.ended = true
	s.spawnMu.Unlock()
	s.wg.Wait()
}

func (s *Service) databasePath(id DatabaseID) string {
	return filepath.Join(s.opts.Dir, "databases", id.String(), "db")
}

func (s *Service) replica(id DatabaseID) (*replica, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d, ok := s.replicas[id]
	return d, ok
}

func (s *Service) forget(d *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.replicas[d.id] == d {
		delete(s.replicas, d.id)
	}
}

func (s *Service) retain(n int) bool {
	if s.retained.Add(int64(n)) > maxQueueBytes {
		s.retained.Add(-int64(n))
		return false
	}
	return true
}

func (s *Service) release(n int) { s.retained.Add(-int64(n)) }

// payload reads the LTX file of a transaction back from the log.
func (s *Service) payload(index uint64) ([]byte, error) {
	t, err := logged[*Transaction](s, index)
	if err != nil {
		return nil, err
	}
	return t.LTX, nil
}

// logged reads an entry of a kind back from the log.
func logged[E any](s *Service, index uint64) (e E, err error) {
	l, err := s.store.Entry(index)
	if err != nil {
		return e, fmt.Errorf("read log entry %d back: %w", index, err)
	}
	found, err := Decode(l.Data)
	if err != nil {
		return e, fmt.Errorf("decode log entry %d: %w", index, err)
	}
	e, ok := found.(E)
	if !ok {
		return e, fmt.Errorf("log entry %d is a %T, not a %T", index, found, e)
	}
	return e, nil
}

// sink receives the state machine's decisions. It never blocks.
type sink struct{ s *Service }

// Created makes no file: until the first transaction the database is what its entry says, which the manifest keeps.
// Who uses it first makes the file, and ten thousand that nobody uses cost nothing.
func (k sink) Created(_ uint64, st DatabaseState) { k.s.made(st) }

// made returns this node's copy of a database that was decided to be.
func (s *Service) made(st DatabaseState) *replica {
	s.mu.Lock()
	d, ok := s.replicas[st.ID]
	if !ok {
		d = newReplica(s, st)
		s.replicas[st.ID] = d
	}
	s.mu.Unlock()
	s.quotas.count(st.Name, 1)
	d.adopt(st)
	return d
}

func (k sink) Accepted(index uint64, t *Transaction) {
	if a := k.s.archiver; a != nil {
		a.add(t.DB, t.Post.TXID, keptCommit{index: index, time: t.CommitTime, size: int64(len(t.LTX))})
	}
	if d, ok := k.s.replica(t.DB); ok {
		d.enqueue(item{index: index, position: t.Post, pre: t.Pre, id: t.ID, ltx: t.LTX})
	}
}

func (k sink) Part(index uint64, before Running, data []byte) {
	k.s.spools.part(index, before, data)
	k.s.tick(before.ID)
}

func (k sink) AcceptedLarge(index uint64, f *Final) {
	sp := k.s.spools.accept(index, f.ID, int64(f.Size))
	if a := k.s.archiver; a != nil {
		a.add(f.DB, f.Post.TXID, keptCommit{index: index, time: f.CommitTime, size: int64(f.Size), spool: sp})
	}
	if d, ok := k.s.replica(f.DB); ok {
		d.enqueue(item{
			index: index, position: f.Post, pre: f.Pre, id: f.ID, spool: sp, size: int64(f.Size), pages: f.Pages, commitTime: f.CommitTime,
		})
		return
	}
	sp.release()
}

func (k sink) Dropped(index uint64, ids []EntryID) { k.s.spools.drop(index, ids) }

func (k sink) Deleted(index uint64, id DatabaseID) {
	if d, ok := k.s.replica(id); ok {
		k.s.quotas.count(d.name, -1)
		if a := k.s.archiver; a != nil {
			a.noteDeleted(id)
		}
		d.enqueue(item{index: index, deleted: true})
	}
}

// TermStarted finishes the replay of a tail that a later leader replaced: it may be shorter than it was.
func (k sink) TermStarted(_, term uint64) {
	if term > k.s.replayTerm {
		k.s.finishReplay()
	}
}

// MemberChanged tells a person when this node is the one that was removed: raft itself does not, the node just
// hears nothing more.
func (k sink) MemberChanged(m Member) {
	if s := k.s; m.Removed && m.ID == s.opts.NodeID && s.replayed() {
		s.log.Error("this node was removed from the cluster: stop it; to come back it needs hasqlite-node rejoin, and a start with --join")
	}
}

func (k sink) Archived(_ uint64, e *Archived) {
	if a := k.s.archiver; a != nil {
		a.decided(e)
	}
}

func (k sink) Stop(err error) { k.s.stop(err) }

// confirmTail waits until the log's tail as this node found it at start is decided. Only then is every
// position that the files can show known (RULES A3). The tail may be an entry of any kind, so the state
// machine's index decides, not what the sink hears.
func (s *Service) confirmTail() {
	if s.fsm.WaitIndex(s.ctx, s.replayIndex) == nil {
		s.finishReplay()
	}
}

func (s *Service) finishReplay() {
	s.replayOnce.Do(func() {
		close(s.replay)
		s.goroutine(func() {
			for _, d := range s.activeReplicas() {
				d.mu.Lock()
				d.kickLocked()
				d.mu.Unlock()
			}
			s.dropProvisional()
			s.sweep()
		})
	})
}

// sweep removes the files of databases that were deleted while this node was down. Applications that still
// have them open get I/O errors from then on.
func (s *Service) sweep() {
	entries, err := os.ReadDir(filepath.Join(s.opts.Dir, "databases"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("look for deleted databases", "err", err)
	}
	for _, e := range entries {
		id, err := ParseDatabaseID(e.Name())
		if err != nil {
			continue
		}
		if _, known := s.replica(id); known {
			continue
		}
		if _, _, gone := s.fsm.Tombstone(id); !gone {
			continue
		}
		path := s.databasePath(id)
		if live, err := s.files.Open(path); err == nil {
			if epoch, err := live.Epoch(); err == nil {
				err = live.SetEpoch(epoch + 1)
				s.log.Debug("end handles of a deleted database", "id", id.String(), "err", err)
			}
			live.Close()
		}
		if err := s.files.Remove(path); err != nil {
			s.log.Warn("files of a deleted database stay behind", "id", id.String(), "err", err)
		}
	}
}

func (s *Service) replayed() bool {
	select {
	case <-s.replay:
		return true
	default:
		return false
	}
}

func (s *Service) waitReplayed(ctx context.Context) error {
	select {
	case <-s.replay:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Prepare begins a shutdown: no write begins any more, and commits in flight get their verdicts. The
// applications' connections may be closed after it.
func (s *Service) Prepare(ctx context.Context) error {
	s.draining.Store(true)
	s.drain(ctx)
	if s.raft.State() == raft.Leader && s.voters() > 1 {
		if err := s.handOverToStop(ctx); err != nil {
			s.log.Warn("hand over leadership", "err", err)
		}
	}
	return nil
}

// Shutdown stops raft and closes the databases with their records. It is bounded by ctx.
func (s *Service) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	for _, d := range s.activeReplicas() {
		d.waitApplied(ctx)
	}
	var errs []error
	s.store.Interrupt()
	stopped := s.raft.Shutdown()
	errs = append(errs, s.transport.EndWaits())
	// A snapshot that waits for an application, or a restore that waits for a peer, gives up: raft waits for
	// them.
	s.cancel()
	s.fsm.Close()
	if err := stopped.Error(); err != nil {
		errs = append(errs, fmt.Errorf("stop raft: %w", err))
	}
	s.raftLog.Stop()
	s.end()
	open := s.activeReplicas()
	_ = inParallel(len(open), shutdownWidth, func(i int) error { open[i].closeForShutdown(); return nil })
	errs = append(errs, s.sums.Close())
	return errors.Join(errs...)
}

// drain waits until no application on this node is between a commit's proposal and its end.
func (s *Service) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, d := range s.activeReplicas() {
		for {
			d.mu.Lock()
			local := d.local
			d.mu.Unlock()
			if local == nil {
				break
			}
			select {
			case <-local.done:
				continue
			case <-ctx.Done():
				return
			}
		}
	}
}

// waitApplied waits until the applier is idle.
func (d *replica) waitApplied(ctx context.Context) {
	d.mu.Lock()
	at, known := d.decided.TXID, d.known
	queued := len(d.queue) > 0
	d.mu.Unlock()
	if !known || !queued {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := d.waitPosition(ctx, at); err != nil {
		d.log.Debug("stop before everything decided is in the files; the log has it", "err", err)
	}
}

func (d *replica) closeForShutdown() {
	d.mu.Lock()
	handles := len(d.handles)
	d.handles = nil
	d.attendLocked()
	d.queue = nil
	d.mu.Unlock()
	if handles == 0 && d.closeIdle(0) {
		return
	}
	d.ioMu.Lock()
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live := d.live
	d.live, d.known = nil, false
	d.attendLocked()
	d.mu.Unlock()
	if live != nil {
		if err := live.Close(); err != nil {
			d.log.Warn("close database", "err", err)
		}
	}
}
