package peer

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func TestRaftRunsOverThePort(t *testing.T) {
	n := newNetwork()
	var servers []raft.Server
	ports := map[string]*node{}
	for _, id := range []string{"a", "b", "c"} {
		ports[id] = n.start(t, member(id))
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(ports[id].Addr())})
	}
	rafts := map[string]*raft.Raft{}
	fsms := map[string]*raft.MockFSM{}
	for id, p := range ports {
		trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			ServerAddressProvider: p, Stream: p.RaftLayer(), MaxPool: 3, Timeout: 2 * time.Second, Logger: hclog.NewNullLogger(),
		})
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(id)
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
		conf.CommitTimeout = 5 * time.Millisecond
		conf.LogOutput = io.Discard
		store := raft.NewInmemStore()
		limited := LimitBatches(trans, 1000)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(raft.BootstrapCluster(conf, store, store, raft.NewInmemSnapshotStore(), limited, raft.Configuration{Servers: servers}))
		fsm := &raft.MockFSM{}
		r, err := raft.NewRaft(conf, fsm, store, store, raft.NewInmemSnapshotStore(), limited)
		must(err)
		rafts[id], fsms[id] = r, fsm
		t.Cleanup(func() { r.Shutdown().Error(); trans.Close() })
	}
	var leader *raft.Raft
	eventually(t, "there is a leader", func() bool {
		for _, r := range rafts {
			if r.State() == raft.Leader {
				leader = r
				return true
			}
		}
		return false
	})
	const entries = 200
	var last raft.ApplyFuture
	for i := range entries {
		last = leader.Apply(bytes.Repeat(fmt.Appendf(nil, "%d", i), 100), 10*time.Second)
	}
	if err := last.Error(); err != nil {
		t.Fatal(err)
	}
	for id, f := range fsms {
		eventually(t, id+" has all entries", func() bool { return len(f.Logs()) == entries })
	}
	eventually(t, "all know the leader", func() bool {
		for _, r := range rafts {
			addr, id := r.LeaderWithID()
			if id == "" || PlainAddr(addr) != ports[string(id)].Addr() {
				return false
			}
		}
		return true
	})
}

func TestBatchesAreCutByBytes(t *testing.T) {
	for _, test := range []struct {
		sizes []int
		max   int
		want  int
	}{
		{nil, 10, 0},
		{[]int{100}, 10, 1},
		{[]int{5, 5, 5}, 10, 2},
		{[]int{100, 1}, 10, 1},
		{[]int{1, 1, 1}, 10, 3},
	} {
		var args raft.AppendEntriesRequest
		for _, n := range test.sizes {
			args.Entries = append(args.Entries, &raft.Log{Data: make([]byte, n)})
		}
		cutBatch(&args, test.max)
		if len(args.Entries) != test.want {
			t.Errorf("%v: %d entries, want %d", test.sizes, len(args.Entries), test.want)
		}
	}
}

func TestRaftIsDialledByNode(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	if _, err := a.RaftLayer().Dial(raft.ServerAddress(b.Addr()), time.Second); err == nil {
		t.Fatal("dialled an address without a node")
	}
	n.set("c", b.Addr())
	addr, err := a.ServerAddr("c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.RaftLayer().Dial(addr, time.Second); err == nil {
		t.Fatal("another node answered")
	}
	if addr, err := a.ServerAddr("a"); err != nil || string(addr) != a.Addr() {
		t.Fatalf("own address %q, %v", addr, err)
	}
	b.RaftLayer().Close()
	b.Handle(mOpen, nil)
	if _, err := a.Call(deadline(t), "b", mEcho); err == nil {
		t.Fatal("no handler answered")
	}
	if !a.Connected("b") {
		t.Fatal("the port ended with its raft layer")
	}
}
