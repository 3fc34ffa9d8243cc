package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// Timeouts for a local network. A follower stands for election after one to two heartbeat timeouts without a sign of the
// leader, which sends one every 50 to 100 ms from a goroutine that waits for no disk: a pause of 300 ms of any process, or
// a disk that stalls, is no reason. A leader that reaches no majority for the lease steps down. A leader whose
// process died is replaced sooner: takeover.go. CommitTimeout is how long a follower may wait to hear of a commit
// (RULES A3): raft's own default of 50 ms would be the latency of every write lock that changes nodes.
const (
	heartbeatTimeout = 500 * time.Millisecond
	electionTimeout  = 500 * time.Millisecond
	leaseTimeout     = 500 * time.Millisecond
	commitTimeout    = 5 * time.Millisecond
	// restoreTimeout is what raft allows for a snapshot of the scale's size; ours are small manifests whose
	// restore fetches pages for as long as it takes (RULES A5).
	transportTimeout = 10 * time.Second
	// giveUpInterval is between two attempts to step down.
	giveUpInterval = 50 * time.Millisecond
)

func (s *Service) openRaft() error {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(s.opts.NodeID)
	cfg.HeartbeatTimeout = heartbeatTimeout
	cfg.ElectionTimeout = electionTimeout
	cfg.LeaderLeaseTimeout = leaseTimeout
	cfg.CommitTimeout = commitTimeout
	cfg.MaxAppendEntries = 64
	cfg.SnapshotThreshold = s.opts.SnapshotEntries
	cfg.TrailingLogs = math.MaxUint64 // boundLog compacts, by bytes
	cfg.SnapshotInterval = 10 * time.Second
	if s.opts.SnapshotEntries < 1000 {
		cfg.SnapshotInterval = 500 * time.Millisecond
	}
	cfg.NoSnapshotRestoreOnStart = false
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: logWriter{s.log}, DisableTime: true})
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: s.port, Logger: cfg.Logger, Stream: s.port.RaftLayer(),
		MaxPool: 4, MaxRPCsInFlight: 3, Timeout: transportTimeout,
	})
	// The deadline of InstallSnapshot is Timeout x size / TimeoutScale, at least Timeout.
	transport.TimeoutScale = 1
	s.raftLog = logstore.NewParallel(s.store, s.leadsOthers, s.giveUp)
	s.transport = peer.Gate(peer.LimitBatches(transport, logstore.MaxBatchBytes, s.mayCampaign), s.raftLog.Wait)
	r, err := raft.NewRaft(cfg, stateMachine{s.fsm, s}, s.raftLog, s.store, s.opts.Snapshots, s.transport)
	if err != nil {
		s.raftLog.Stop()
		return fmt.Errorf("start raft: %w", err)
	}
	s.raft = r
	close(s.raftUp)
	return nil
}

// leadsOthers says to the log store that raft hands it a leader's entries, and that they are committed only with
// another voter's answer, which the transport withholds until the entries are durable here. It runs on raft's own
// goroutine, which alone changes the state and the members.
func (s *Service) leadsOthers() bool {
	select {
	case <-s.raftUp:
	default:
		return false // raft starts
	}
	return s.raft.State() == raft.Leader && s.voters() > 1
}

// giveUp makes raft notice that entries it takes for written were not: the log store refuses what raft hands it next,
// and a leader that cannot write steps down. That has to be a command, because the store tries the failed write again for
// everything else. Where something does so meanwhile, and it succeeds, nothing is lost, and the node may stay the
// leader. What raft refuses, as while it hands over leadership, is proposed again.
func (s *Service) giveUp(err error) {
	s.log.Error("write the raft log", "err", err)
	nothing, err := EncodeVersion(nil, &Version{Cluster: 1}) // every cluster is at 1 or later
	if err != nil {
		panic(fmt.Sprintf("encode an entry that changes nothing: %v", err))
	}
	tick := time.NewTicker(giveUpInterval)
	defer tick.Stop()
	for s.raft.State() == raft.Leader && s.raftLog.Unwritten() != nil {
		if err := s.raft.Apply(nothing, enqueueTimeout).Error(); err != nil {
			s.log.Warn("step down: the raft log takes no entries", "err", err)
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
}

// Address returns the node port of a member: what it announced last, else what it joined with.
func (s *Service) Address(id string) (string, bool) {
	if m, ok := s.member(id); ok && !m.Removed && m.RaftAddr != "" {
		return m.RaftAddr, true
	}
	for _, srv := range s.servers() {
		if string(srv.ID) == id {
			return string(srv.Address), true
		}
	}
	return "", false
}

// servers returns the members. raft hears of those in a snapshot that the leader sent only when it is restored, but
// a new node has to fetch pages from them for that.
func (s *Service) servers() []raft.Server {
	if a := s.arriving.Load(); a != nil && len(*a) > 0 {
		return *a
	}
	select {
	case <-s.raftUp:
	default:
		return nil // raft starts
	}
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

func (s *Service) voters() int {
	n := 0
	for _, srv := range s.servers() {
		if srv.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// leader returns the id of the leader as this node knows it, and this node's term.
func (s *Service) leader() (string, uint64) {
	_, id := s.raft.LeaderWithID()
	return string(id), s.raft.CurrentTerm()
}

// leading returns the term in which this node leads and has decided its own first entry: only then does it
// know every earlier decision (RULES B19).
func (s *Service) leading() (uint64, bool) {
	if s.raft.State() != raft.Leader || s.draining.Load() {
		return 0, false
	}
	term := s.raft.CurrentTerm()
	return term, s.fsm.StartedTerm() == term
}

// peersLeaderLast lists the other members, the leader at the end: it has the most to do.
func (s *Service) peersLeaderLast() []string {
	leader, _ := s.leader()
	var peers []string
	for _, srv := range s.servers() {
		if id := string(srv.ID); id != s.opts.NodeID && id != leader {
			peers = append(peers, id)
		}
	}
	if leader != "" && leader != s.opts.NodeID {
		peers = append(peers, leader)
	}
	return peers
}

// leadership proposes the first entry of each term that this node leads, and empties the lock table when
// it does not lead any more.
func (s *Service) leadership() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	led, last := false, ""
	for {
		select {
		case <-s.ctx.Done():
			s.locks.Reset()
			return
		case <-s.raft.LeaderCh():
		case <-tick.C:
		}
		leads := s.raft.State() == raft.Leader
		if led && !leads {
			s.transport.LeadershipLost()
			s.resetLocks()
			s.log.Info("leadership lost", "term", s.raft.CurrentTerm())
		}
		if leads {
			term := s.raft.CurrentTerm()
			if s.fsm.StartedTerm() < term && s.proposing.Swap(term) != term {
				s.resetLocks()
				s.goroutine(func() { s.startTerm(term) })
			}
		}
		led = leads
		if leads {
			s.driveForks()
		}
		if leader, _ := s.leader(); leader != last {
			s.metrics.leaderChanges.Add(1)
			if leader != "" {
				s.goroutine(func() { s.reclaim(leader) })
			}
			last = leader
		}
	}
}

// resetLocks closes the lock table. A term that is just being opened cannot open it again.
func (s *Service) resetLocks() {
	s.leadMu.Lock()
	defer s.leadMu.Unlock()
	s.locks.Reset()
}

func (s *Service) startTerm(term uint64) {
	entry, err := EncodeTermStart(nil, &TermStart{Node: s.opts.NodeID, Cluster: s.opts.Cluster(), CommitTime: s.now().UnixMicro()})
	if err == nil {
		err = s.raft.Apply(entry, enqueueTimeout).Error()
	}
	if err != nil {
		s.proposing.CompareAndSwap(term, 0) // still leading: the next tick tries again
		s.log.Warn("open the term", "term", term, "err", err)
		return
	}
	s.leadMu.Lock()
	defer s.leadMu.Unlock()
	if now, ok := s.leading(); ok && now == term {
		s.locks.Open(reregisterTime)
		s.log.Info("leading", "term", term)
	}
}

// reregisterTime is for how long a new leader grants nothing, so that the holders of the former one can
// register again (RULES B19).
const reregisterTime = 50 * time.Millisecond

// propose appends an entry as the leader and returns its decision.
func (s *Service) propose(ctx context.Context, entry []byte) (*Decision, error) {
	if _, ok := s.leading(); !ok {
		return nil, ErrNotLeader
	}
	f := s.raft.Apply(entry, enqueueTimeout)
	if err := f.Error(); err != nil {
		if definite(err) {
			return nil, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		return nil, err
	}
	dec, ok := f.Response().(*Decision)
	if !ok {
		return nil, fmt.Errorf("the log entry was answered with %T", f.Response())
	}
	return dec, ctx.Err()
}

// logWriter turns raft's log lines into ours.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	switch {
	case strings.HasPrefix(line, "[ERROR]"), strings.HasPrefix(line, "[WARN]"):
		level = slog.LevelWarn
	case strings.HasPrefix(line, "[INFO]"):
		level = slog.LevelInfo
	}
	if i := strings.Index(line, "]"); i >= 0 && strings.HasPrefix(line, "[") {
		line = strings.TrimSpace(line[i+1:])
	}
	w.log.Log(context.Background(), level, "raft", "event", strings.TrimPrefix(line, "raft: "))
	return len(b), nil
}

var _ io.Writer = logWriter{}

func (s *Service) member(id string) (Member, bool) {
	for _, m := range s.fsm.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}

// stateMachine ties the FSM's snapshots to the store's rule that one counts only when its data is here.
type stateMachine struct {
	*FSM
	s *Service
}

// Snapshot implements raft.FSM.
func (m stateMachine) Snapshot() (raft.FSMSnapshot, error) {
	inner, err := m.FSM.Snapshot()
	if err != nil {
		return nil, err
	}
	return ownSnapshot{inner, m.s}, nil
}

type ownSnapshot struct {
	raft.FSMSnapshot
	s *Service
}

// Persist implements raft.FSMSnapshot. The FSM's hook has made the data durable by the time sink is closed.
func (o ownSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := logstore.TakenHere(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	err := o.FSMSnapshot.Persist(sink)
	o.s.stopIfSyncFailed(err)
	o.s.logBound.persisted(err)
	return err
}

// Restore implements raft.FSM.
func (m stateMachine) Restore(rc io.ReadCloser) error {
	given, ok := logstore.SnapshotOf(rc)
	m.s.arriving.Store(&given.Servers)
	defer m.s.arriving.Store(nil)
	if err := m.FSM.Restore(rc); err != nil {
		return err
	}
	if !ok || given.Complete {
		return nil
	}
	if err := m.s.opts.Snapshots.MarkComplete(given.ID); err != nil {
		return fmt.Errorf("after restoring a snapshot: %w", err)
	}
	m.s.store.Installed(given.Index)
	return nil
}
