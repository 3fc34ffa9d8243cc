package peer

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// comebackPatience is for how long a request to a peer that cannot be reached waits for it to come back.
const comebackPatience = time.Minute

// comebacks shortens the time until a peer that was away is sent the log again. raft waits ten seconds after each of
// many failures in a row, but sends heartbeats to all peers all the time: the first one that is answered
// tells the request that failed, which then is sent once more instead of counting as a failure.
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

// wait returns true when the peer answers a heartbeat, false when it does not for comebackPatience or after end.
func (c *comebacks) wait(id raft.ServerID) bool {
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
		return true
	case <-limit.C:
		return false
	case <-c.ended:
		return false
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

// append sends a request by send, and once more when it failed and the peer has come back.
func (c *comebacks) append(id raft.ServerID, args *raft.AppendEntriesRequest, send func() error) error {
	err := send()
	switch {
	case isHeartbeat(args):
		if err == nil {
			c.answered(id)
		}
	case err != nil && c.wait(id):
		err = send()
	}
	return err
}
