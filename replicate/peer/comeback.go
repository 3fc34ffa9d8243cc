package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// comebackPatience is for how long a request that has failed waits for its peer to come back.
const comebackPatience = 10 * time.Minute

// comebacks shortens the time until a peer that was away is sent the log again. raft pauses after a failed request, and
// for ten seconds after each of many in a row, but sends heartbeats to all peers all the time. So a request that
// failed is not reported to raft before the peer answers a heartbeat: there are few failures then, and raft goes on
// at once. (To send that request again here would be worse: raft would go on to the end of the log as it was when
// the peer went away, and then send one batch for each CommitTimeout.)
type comebacks struct {
	mu      sync.Mutex
	waiting map[raft.ServerID]chan struct{} // closed when the peer answers a heartbeat
	ended   chan struct{}                   // closed by end
	over    bool
}

func newComebacks() *comebacks {
	return &comebacks{waiting: map[raft.ServerID]chan struct{}{}, ended: make(chan struct{})}
}

// answered hears that a peer has answered a heartbeat.
func (c *comebacks) answered(id raft.ServerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[id]; w != nil {
		close(w)
		delete(c.waiting, id)
	}
}

// wait returns when the peer answers a heartbeat, after release or end, or when it does not for comebackPatience.
func (c *comebacks) wait(id raft.ServerID) {
	c.mu.Lock()
	w := c.waiting[id]
	if w == nil {
		w = make(chan struct{})
		c.waiting[id] = w
	}
	c.mu.Unlock()
	limit := time.NewTimer(comebackPatience)
	defer limit.Stop()
	select {
	case <-w:
	case <-limit.C:
	case <-c.ended:
	}
}

// release ends the waits for all peers: this node does not lead any more.
func (c *comebacks) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.waiting {
		close(w)
		delete(c.waiting, id)
	}
}

// end lets nobody wait any more.
func (c *comebacks) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		close(c.ended)
	}
}

// isHeartbeat tells raft's heartbeats from its other requests, as its transport does.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return args.Term != 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
}

// append sends a request by send. A failure is returned when the peer has come back.
func (c *comebacks) append(id raft.ServerID, args *raft.AppendEntriesRequest, send func() error) error {
	err := send()
	switch {
	case isHeartbeat(args):
		if err == nil {
			c.answered(id)
		}
	case err != nil:
		c.wait(id)
	}
	return err
}
