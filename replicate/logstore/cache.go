package logstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// cache keeps the newest entries of the log, as many as fit into limit bytes.
// The entries are consecutive.
type cache struct {
	limit int

	mu    sync.RWMutex
	logs  []*raft.Log // ring of a power of two
	head  int         // where the oldest is
	n     int
	first uint64 // index of the oldest
	size  int
}

// entryOverhead is what an entry costs beside its data.
const entryOverhead = 160

// cost is the memory that an entry keeps, of its data also what is unused.
func cost(l *raft.Log) int { return cap(l.Data) + cap(l.Extensions) + entryOverhead }

func (c *cache) at(i int) **raft.Log { return &c.logs[(c.head+i)&(len(c.logs)-1)] }

func (c *cache) get(index uint64, log *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.n == 0 || index < c.first || index-c.first >= uint64(c.n) {
		return false
	}
	*log = **c.at(int(index - c.first))
	return true
}

func (c *cache) add(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if c.n > 0 && l.Index != c.first+uint64(c.n) {
			c.clear()
		}
		for c.n > 0 && c.size+cost(l) > c.limit {
			c.drop()
		}
		if cost(l) > c.limit {
			continue // the next entry finds an empty cache
		}
		if c.n == len(c.logs) {
			c.grow()
		}
		if c.n == 0 {
			c.first = l.Index
		}
		*c.at(c.n) = l
		c.n++
		c.size += cost(l)
	}
}

func (c *cache) remove(minIndex, maxIndex uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.n > 0 && minIndex <= c.first && c.first <= maxIndex {
		c.drop()
	}
	for c.n > 0 {
		last := c.first + uint64(c.n) - 1
		if last < minIndex || last > maxIndex {
			return
		}
		p := c.at(c.n - 1)
		c.size -= cost(*p)
		*p = nil
		c.n--
	}
}

func (c *cache) drop() {
	p := c.at(0)
	c.size -= cost(*p)
	*p = nil
	c.head = (c.head + 1) & (len(c.logs) - 1)
	c.first++
	c.n--
}

func (c *cache) clear() {
	for c.n > 0 {
		c.drop()
	}
}

func (c *cache) grow() {
	logs := make([]*raft.Log, max(64, 2*len(c.logs)))
	for i := range c.n {
		logs[i] = *c.at(i)
	}
	c.logs, c.head = logs, 0
}
