package replicate

import (
	"testing"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
)

// raft knows the members of a snapshot that the leader sent only when it is restored. A new node asks them for pages
// before that, and none of them may have announced its address when the snapshot was taken.
func TestMembersOfASnapshotAreKnownWhileItIsRestored(t *testing.T) {
	snapshots, err := logstore.OpenSnapshots(t.TempDir(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("a")
	members := raft.Configuration{Servers: []raft.Server{{ID: "b", Address: "10.0.0.2:7000"}}}
	sink, err := snapshots.Create(1, 10, 1, members, 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(newState().manifest().encode(nil)); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	_, rc, err := snapshots.Open(sink.ID())
	if err != nil {
		t.Fatal(err)
	}
	store, err := logstore.Open(t.TempDir(), logstore.WAL, logstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := &Service{raftUp: make(chan struct{}), fsm: NewFSM(nil, nil), store: store, opts: Options{Snapshots: snapshots}}
	var asked bool
	s.fsm.OnRestore = func([]DatabaseState) error {
		asked = true
		if addr, ok := s.Address("b"); addr != "10.0.0.2:7000" {
			t.Errorf("the address of b: %q, %v", addr, ok)
		}
		return nil
	}
	if err := (stateMachine{FSM: s.fsm, s: s}).Restore(rc); err != nil || !asked {
		t.Fatalf("restored %v, %v", asked, err)
	}
	if addr, ok := s.Address("b"); ok {
		t.Errorf("after the restore raft has the members: %q", addr)
	}
}
