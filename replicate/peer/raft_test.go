package peer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// cluster runs raft on three ports. wait is the gate of each, nil for none.
func cluster(t *testing.T, wait func(r *raft.Raft, index uint64, cancel <-chan struct{}) error) (rafts map[string]*raft.Raft, fsms map[string]*raft.MockFSM, stores map[string]*raft.InmemStore, ports map[string]*node, transports map[string]*Transport) {
	n := newNetwork()
	var servers []raft.Server
	ports = map[string]*node{}
	for _, id := range []string{"a", "b", "c"} {
		ports[id] = n.start(t, member(id))
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(ports[id].Addr())})
	}
	rafts, fsms, stores = map[string]*raft.Raft{}, map[string]*raft.MockFSM{}, map[string]*raft.InmemStore{}
	transports = map[string]*Transport{}
	for id, p := range ports {
		trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			ServerAddressProvider: p, Stream: p.RaftLayer(), MaxPool: 3, Timeout: 2 * time.Second, Logger: hclog.NewNullLogger(),
			MaxRPCsInFlight: 8,
		})
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(id)
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
		conf.CommitTimeout = 5 * time.Millisecond
		conf.LogOutput = io.Discard
		store := raft.NewInmemStore()
		limited := LimitBatches(trans, 1000, nil)
		var self atomic.Pointer[raft.Raft]
		if wait != nil {
			limited = Gate(limited, func(index uint64, cancel <-chan struct{}) error { return wait(self.Load(), index, cancel) })
		}
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
		self.Store(r)
		rafts[id], fsms[id], stores[id], transports[id] = r, fsm, store, limited
		t.Cleanup(func() { stopped := r.Shutdown(); limited.EndWaits(); stopped.Error() })
	}
	return rafts, fsms, stores, ports, transports
}

func waitLeader(t *testing.T, rafts map[string]*raft.Raft) (leader *raft.Raft) {
	t.Helper()
	eventually(t, "there is a leader", func() bool {
		for _, r := range rafts {
			if r.State() == raft.Leader {
				leader = r
				return true
			}
		}
		return false
	})
	return leader
}

func TestRaftRunsOverThePort(t *testing.T) {
	rafts, fsms, _, ports, _ := cluster(t, nil)
	leader := waitLeader(t, rafts)
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

// TestNothingIsCommittedBeforeTheLeaderHasIt: every follower has an entry, raft believes that the leader has it too, and
// still the commit index stays where it is on all nodes until the gate opens.
func TestNothingIsCommittedBeforeTheLeaderHasIt(t *testing.T) {
	var shut atomic.Bool
	open := make(chan struct{})
	rafts, fsms, stores, _, _ := cluster(t, func(_ *raft.Raft, _ uint64, cancel <-chan struct{}) error {
		if !shut.Load() {
			return nil
		}
		select {
		case <-open:
			return nil
		case <-cancel:
			return ErrClosed
		}
	})
	leader := waitLeader(t, rafts)
	if err := leader.Apply([]byte("before"), 10*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	for id := range rafts {
		eventually(t, id+" has applied it", func() bool { return len(fsms[id].Logs()) == 1 })
	}
	shut.Store(true)
	committed := leader.CommitIndex()
	future := leader.Apply([]byte("behind the gate"), 10*time.Second)
	for id, s := range stores {
		eventually(t, id+" has the entry in its log", func() bool { i, err := s.LastIndex(); return err == nil && i > committed })
	}
	// The leader tells the commit index every 5 to 10 ms; it would have moved long ago.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 100 {
		<-tick.C
		for id, r := range rafts {
			if got := r.CommitIndex(); got > committed {
				t.Fatalf("%s has committed %d, which the leader has not written", id, got)
			}
		}
	}
	close(open)
	if err := future.Error(); err != nil {
		t.Fatal(err)
	}
	for id := range rafts {
		eventually(t, id+" has applied it", func() bool { return len(fsms[id].Logs()) == 2 })
	}
}

// A leader that could not write, and then could, replicates as before: answers that found the gate shut end their
// pipeline, and raft sends again what they were about.
func TestReplicationGoesOnAfterTheGateWasShut(t *testing.T) {
	var shut atomic.Bool
	var failed atomic.Int32
	rafts, _, _, _, _ := cluster(t, func(_ *raft.Raft, _ uint64, cancel <-chan struct{}) error {
		if shut.Load() && cancel != nil { // of a pipeline
			failed.Add(1)
			return errors.New("no space left")
		}
		return nil
	})
	leader := waitLeader(t, rafts)
	shut.Store(true)
	eventually(t, "both pipelines have ended", func() bool {
		leader.Apply([]byte("x"), time.Second)
		return failed.Load() >= 2
	})
	shut.Store(false)
	last := leader.LastIndex()
	for id, r := range rafts {
		eventually(t, id+" has committed it", func() bool { return r.CommitIndex() >= last })
	}
}

// raft waits for room in a pipeline before it hears that it does not lead any more. What waits there when the gate stays shut
// goes on.
func TestARequestThatWaitsForRoomEndsWithItsPipeline(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	transport := func(p *node) *raft.NetworkTransport {
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			ServerAddressProvider: p, Stream: p.RaftLayer(), MaxPool: 1, MaxRPCsInFlight: 8, Timeout: time.Hour, Logger: hclog.NewNullLogger(),
		})
	}
	far := transport(b)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case rpc := <-far.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			case <-over:
				return
			}
		}
	}()
	asked, disk := make(chan struct{}, 1), make(chan error, 1)
	near := Gate(LimitBatches(transport(a), 1000, nil), func(uint64, <-chan struct{}) error {
		asked <- struct{}{}
		return <-disk
	})
	p, err := near.AppendEntriesPipeline("b", raft.ServerAddress(b.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	const requests = 100 // more than one pipeline holds
	sent := make(chan error, 1)
	go func() {
		for i := range uint64(requests) {
			req := raft.AppendEntriesRequest{Term: 1, Entries: []*raft.Log{{Index: i + 1}}}
			if _, err := p.AppendEntries(&req, new(raft.AppendEntriesResponse)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	<-asked
	disk <- errors.New("no space left")
	select {
	case err := <-sent:
		if err == nil {
			t.Fatalf("a pipeline took %d requests after its last answer", requests)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a request waits in a pipeline that nobody reads")
	}
	if err := errors.Join(p.Close(), near.EndWaits(), far.Close()); err != nil {
		t.Fatal(err)
	}
}

// Its peers vote for a node that stands for election although they hear from a leader.
func TestAFollowerStandsForElectionOnDemand(t *testing.T) {
	rafts, _, _, _, transports := cluster(t, nil)
	leader := waitLeader(t, rafts)
	if err := leader.Barrier(10 * time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	for id, r := range rafts {
		if r == leader {
			continue
		}
		eventually(t, id+" follows", func() bool { _, l := r.LeaderWithID(); return l != "" && r.LastIndex() == leader.LastIndex() })
		if err := transports[id].StandForElection(raft.ServerID(id)); err != nil {
			t.Fatal(err)
		}
		eventually(t, id+" leads", func() bool { return r.State() == raft.Leader })
		return
	}
}

func TestAPeerWhoseProcessIsGoneIsToldFromASilentOne(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	n.set("silent", silentPeer(t, member("silent")))
	ended := make(chan string, 1)
	b.OnRaftEnded(func(id string) { ended <- id })
	addr, err := a.ServerAddr("b")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := a.RaftLayer().Dial(addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	far, err := b.RaftLayer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"a": false, "silent": false, "unknown": false} {
		if got := b.Refuses(t.Context(), id); got != want {
			t.Errorf("%s refuses connections: %v, want %v", id, got, want)
		}
	}
	select {
	case id := <-ended:
		t.Fatalf("the connection from %s ended early", id)
	default:
	}
	conn.Close()
	a.Close()
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Fatal("read from a closed connection")
	}
	far.Close()
	if id := <-ended; id != "a" {
		t.Fatalf("the connection from %q ended", id)
	}
	if !b.Refuses(t.Context(), "a") {
		t.Error("nobody listens, and it is not noticed")
	}
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

// A follower answers InstallSnapshot when it has restored the snapshot, which may take hours. raft on the leader
// waits for its requests when it shuts down.
func TestShutdownEndsARequestThatIsNotAnswered(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: a, Stream: a.RaftLayer(), MaxPool: 1, Timeout: time.Hour, Logger: hclog.NewNullLogger(),
	})
	limited := LimitBatches(trans, 1000, nil)
	done := make(chan error, 1)
	go func() {
		var resp raft.InstallSnapshotResponse
		done <- limited.InstallSnapshot("b", raft.ServerAddress(b.Addr()), &raft.InstallSnapshotRequest{Size: 5}, &resp, strings.NewReader("state"))
	}()
	conn, err := b.RaftLayer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bufio.NewReader(conn)
	if _, err := sent.ReadByte(); err != nil {
		t.Fatal(err)
	}
	if err := limited.EndWaits(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("nobody answered, and it succeeded")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the request goes on after the transport was closed")
	}
	if c, err := a.RaftLayer().Dial(raft.ServerAddress("b@"+b.Addr()), time.Second); !errors.Is(err, ErrClosed) {
		t.Errorf("dialled %v, %v", c, err)
	}
}
