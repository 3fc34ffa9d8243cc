package replicate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/peer"
	"github.com/uglyer/ha-sqlite/wal"
)

// logNode is what a Service has to do with raft and its log, over a disk with as much room as free says.
type logNode struct {
	*Service
	free    atomic.Value  // func() int64
	machine *raft.MockFSM // in place of Service.fsm
}

// logNodes runs raft on three nodes.
func logNodes(t *testing.T) map[raft.ServerID]*logNode {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	transports, servers := map[raft.ServerID]*raft.NetworkTransport{}, []raft.Server{}
	for _, id := range []raft.ServerID{"a", "b", "c"} {
		trans, err := raft.NewTCPTransportWithConfig("127.0.0.1:0", nil, &raft.NetworkTransportConfig{
			MaxPool: 3, MaxRPCsInFlight: 8, Timeout: 2 * time.Second, Logger: hclog.NewNullLogger(),
		})
		must(err)
		transports[id] = trans
		servers = append(servers, raft.Server{ID: id, Address: trans.LocalAddr()})
	}
	nodes := map[raft.ServerID]*logNode{}
	for id, trans := range transports {
		ctx, cancel := context.WithCancel(context.Background())
		n := &logNode{Service: &Service{log: slog.New(slog.DiscardHandler), raftUp: make(chan struct{}), ctx: ctx}, machine: &raft.MockFSM{}}
		n.free.Store(func() int64 { return math.MaxInt64 })
		var err error
		n.store, err = logstore.Open(t.TempDir(), logstore.BoltDB, logstore.Options{Free: func() (int64, error) { return n.free.Load().(func() int64)(), nil }})
		must(err)
		conf := raft.DefaultConfig()
		conf.LocalID = id
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
		conf.CommitTimeout = 5 * time.Millisecond
		conf.LogOutput = io.Discard
		snapshots := raft.NewInmemSnapshotStore()
		must(raft.BootstrapCluster(conf, n.store, n.store, snapshots, trans, raft.Configuration{Servers: servers}))
		n.raftLog = logstore.NewParallel(n.store, n.leadsOthers, n.giveUp)
		n.transport = peer.Gate(peer.LimitBatches(trans, logstore.MaxBatchBytes, nil), n.raftLog.Wait)
		n.raft, err = raft.NewRaft(conf, n.machine, n.raftLog, n.store, snapshots, n.transport)
		must(err)
		close(n.raftUp)
		nodes[id] = n
		t.Cleanup(func() {
			stopped := n.raft.Shutdown()
			errs := n.transport.EndWaits()
			cancel()
			errs = errors.Join(errs, stopped.Error())
			n.raftLog.Stop()
			must(errors.Join(errs, n.store.Close()))
		})
	}
	return nodes
}

func leaderOf(t *testing.T, nodes map[raft.ServerID]*logNode) (leader *logNode) {
	t.Helper()
	until(t, "there is a leader", func() bool {
		for _, n := range nodes {
			if n.raft.State() == raft.Leader {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// stall lets the next write to the log wait for end; it finds that much room then. began is closed when it waits.
func (n *logNode) stall(room int64) (began <-chan struct{}, end func()) {
	at, over, stalled := make(chan struct{}), make(chan struct{}), false
	n.free.Store(func() int64 { // of one write at a time
		if stalled {
			return math.MaxInt64
		}
		stalled = true
		close(at)
		<-over
		return room
	})
	return at, sync.OnceFunc(func() { close(over) })
}

// A write that fails once leaves entries that raft takes for written, and room for them a moment later. The node steps down,
// with nothing proposed but what it proposes itself, and the cluster goes on.
func TestALeaderWhoseDiskWasFullForAMomentDoesNotStopTheCluster(t *testing.T) {
	for name, handsOver := range map[string]bool{"it leads": false, "it hands over to a node that is gone": true} {
		t.Run(name, func(t *testing.T) {
			nodes := logNodes(t)
			commits := func() bool {
				done := make(chan error, 1)
				f := leaderOf(t, nodes).raft.Apply([]byte("next"), time.Second)
				go func() { done <- f.Error() }()
				select {
				case err := <-done:
					return err == nil
				case <-time.After(3 * time.Second):
					return false
				}
			}
			until(t, "the first is decided", commits)
			lead := leaderOf(t, nodes)
			term := lead.raft.CurrentTerm()
			writes, end := lead.stall(0)
			lead.raft.Apply([]byte("x"), time.Second)
			<-writes
			if handsOver {
				for id, n := range nodes {
					if n != lead {
						if err := n.raft.Shutdown().Error(); err != nil {
							t.Fatal(err)
						}
						if err := n.transport.EndWaits(); err != nil {
							t.Fatal(err)
						}
						address := n.transport.LocalAddr()
						lead.raft.LeadershipTransferToServer(id, address)
						if err := lead.raft.LeadershipTransferToServer(id, address).Error(); !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
							t.Fatalf("a second transfer: %v", err)
						}
						delete(nodes, id)
						break
					}
				}
			}
			end()
			until(t, "it does not lead any more, or again", func() bool { return lead.raft.State() != raft.Leader || lead.raft.CurrentTerm() > term })
			until(t, "the next is decided", commits)
		})
	}
}

// A leader whose disk stalls answers when its caller's patience ends: nobody knows the outcome then. The write lock stays
// with the proposal until raft has decided it.
func TestACommitThatIsNotDecidedInTimeIsUnknownAndKeepsTheLock(t *testing.T) {
	nodes := logNodes(t)
	lead := leaderOf(t, nodes)
	if err := lead.raft.Apply([]byte("first"), time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	term := lead.raft.CurrentTerm()
	log := newScript(t, nil)
	log.term = term - 1
	log.startTerm()
	lead.fsm, lead.now, lead.quotas, lead.locks = log.f, time.Now, newQuotas(nil), NewLockTable(nil, time.Minute)
	lead.locks.Open(0)
	id := log.create("shop.db")
	commit := log.next(id)
	owner, other := Owner{"n1", 1}, Owner{"n2", 1}
	if err := lead.locks.Acquire(t.Context(), id, owner); err != nil {
		t.Fatal(err)
	}
	writes, end := lead.stall(math.MaxInt64)
	t.Cleanup(end)
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan answer, 1)
	go func() {
		answered <- lead.leaderCommit(ctx, owner.Node, &proposal{db: id, id: commit.ID, handle: owner.Handle, term: term, pre: commit.Pre, entry: mustEncodeEntry(t, commit)})
	}()
	<-writes
	cancel()
	select {
	case v := <-answered:
		if v.outcome != OutcomeUnknown {
			t.Fatalf("answered %+v", v)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the leader waits for its disk although nobody waits for the answer")
	}
	if holder, _, held := lead.locks.Holder(id); !held || holder != owner {
		t.Fatalf("the lock of an undecided transaction is with %v, %v", holder, held)
	}
	end()
	actx, acancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer acancel()
	if err := lead.locks.Acquire(actx, id, other); err != nil {
		t.Fatalf("the lock after the decision: %v", err)
	}
}

// A node tells a new leader of the lock of a transaction whose commit is decided at that moment. Nobody holds the lock when
// the transaction has ended.
func TestALockReclaimedWhileItsCommitIsDecidedIsGivenBack(t *testing.T) {
	n := leaderOf(t, logNodes(t))
	s := newFilesNode(t)
	s.raft, s.raftUp, s.locks = n.raft, n.raftUp, NewLockTable(nil, time.Minute)
	s.opts.NodeID, _ = n.leader()
	s.locks.Open(0)
	d := newCopy(s, "shop.db 16 bytes", nil)
	d.listLocked()
	for name, end := range map[string]func(*Handle){
		"the application says so": func(h *Handle) { h.End(false, wal.Fingerprint{}, false) },
		"the application dies":    func(h *Handle) { h.Close() },
	} {
		h := &Handle{svc: s, db: d, num: 7, granted: true, held: true}
		d.handles = map[*Handle]struct{}{h: {}}
		s.reclaim(s.opts.NodeID)
		if _, _, held := s.locks.Holder(d.id); !held {
			t.Errorf("%s: not reclaimed", name)
		}
		h.setHeld(false) // the verdict says that the commit has ended it
		end(h)
		if owner, _, held := s.locks.Holder(d.id); held {
			t.Errorf("%s: %v holds the lock", name, owner)
		}
	}
}
