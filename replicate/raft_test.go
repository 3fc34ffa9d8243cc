package replicate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// logNode is what a Service has to do with raft and its log, over a disk with as much room as free says.
type logNode struct {
	*Service
	free atomic.Value // func() int64
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
		n := &logNode{Service: &Service{log: slog.New(slog.DiscardHandler), raftUp: make(chan struct{}), ctx: ctx}}
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
		n.raft, err = raft.NewRaft(conf, &raft.MockFSM{}, n.raftLog, n.store, snapshots, n.transport)
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

// A write that fails once leaves entries that raft takes for written, and room for them a moment later. The node steps down,
// with nothing proposed but what it proposes itself, and the cluster goes on.
func TestALeaderWhoseDiskWasFullForAMomentDoesNotStopTheCluster(t *testing.T) {
	for name, handsOver := range map[string]bool{"it leads": false, "it hands over to a node that is gone": true} {
		t.Run(name, func(t *testing.T) {
			nodes := logNodes(t)
			leader := func() (lead *logNode) {
				until(t, "there is a leader", func() bool {
					for _, n := range nodes {
						if n.raft.State() == raft.Leader {
							lead = n
							return true
						}
					}
					return false
				})
				return lead
			}
			commits := func() bool {
				done := make(chan error, 1)
				f := leader().raft.Apply([]byte("next"), time.Second)
				go func() { done <- f.Error() }()
				select {
				case err := <-done:
					return err == nil
				case <-time.After(3 * time.Second):
					return false
				}
			}
			until(t, "the first is decided", commits)
			lead := leader()
			term := lead.raft.CurrentTerm()
			writes, end, failed := make(chan struct{}), make(chan struct{}), false
			lead.free.Store(func() int64 { // of one write at a time
				if failed {
					return math.MaxInt64
				}
				failed = true
				close(writes)
				<-end
				return 0
			})
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
			close(end)
			until(t, "it does not lead any more, or again", func() bool { return lead.raft.State() != raft.Leader || lead.raft.CurrentTerm() > term })
			until(t, "the next is decided", commits)
		})
	}
}
