package replicate

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A disk stays full for longer than what is done about it takes: that is not begun anew before it has ended.
func TestAFullDiskIsRelievedOnceAtATime(t *testing.T) {
	nodes := logNodes(t)
	lead := leaderOf(t, nodes)
	f := lead.raft.Apply([]byte("first"), time.Second)
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	var n *logNode
	for _, n = range nodes {
		if n != lead {
			break
		}
	}
	snapshot := func() string { return n.raft.Stats()["last_snapshot_index"] }
	until(t, "the follower has the entry", func() bool { return n.raft.AppliedIndex() >= f.Index() && n.raft.State() == raft.Follower })
	ended := make(chan struct{}, 2)
	n.machine.Lock() // a snapshot waits
	for range 2 {
		go func() {
			n.relieveDisk()
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("both wait for a snapshot")
	}
	if got := snapshot(); got != "0" {
		t.Errorf("a snapshot of entry %s was taken", got)
	}
	n.machine.Unlock()
	<-ended
	first := snapshot()
	if first == "0" {
		t.Error("no snapshot was taken")
	}
	if err := lead.raft.Apply([]byte("next"), time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	until(t, "the next time it takes one again", func() bool {
		n.relieveDisk()
		return snapshot() != first
	})
}
