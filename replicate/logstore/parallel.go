package logstore

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/hashicorp/raft"
)

// maxPendingBytes bounds what a leader has handed out before it is on its own disk.
const maxPendingBytes = 16 << 20

// Parallel is the LogStore that raft is given: a leader's entries go to its followers while they are written
// to its own disk.
//
// raft counts the leader as one that has an entry as soon as StoreLogs returns. So what a follower answers
// is withheld from raft until Wait says that the entry is durable here too (peer.Gate): the commit index
// moves only over entries that are on the disks of a quorum with the leader in it, as if StoreLogs had
// waited.
//
// Invariants:
//  1. StoreLogs returns early only where leads says that this node leads and that its own vote is no quorum, and
//     for commands only. Everything else (a follower's appends, a term's first entry, changes of
//     members) is durable on return, and so is all that came before it.
//  2. Entries reach the Store in the order of their indexes, each once.
//  3. DeleteRange finds nothing pending.
//  4. After a write has failed nothing is handed out early until a write has succeeded: StoreLogs gives the error
//     and raft steps down.
type Parallel struct {
	*Store
	leads  func() bool
	failed func(error)

	mu      sync.Mutex
	changed sync.Cond     // work for the writer, or the end of some
	moved   chan struct{} // closed when waiters have to look again; nil: nobody waits
	pending []*raft.Log   // consecutive, after the Store's last
	bytes   int
	writing int // of pending, handed to the Store
	err     error
	closed  bool
	done    chan struct{}
}

var (
	_ raft.LogStore          = (*Parallel)(nil)
	_ raft.MonotonicLogStore = (*Parallel)(nil)
)

// NewParallel returns the LogStore over s. leads is called by StoreLogs, so on raft's own goroutine: it says
// whether this node leads and another vote than its own is needed to commit. failed is told, in a
// goroutine of its own, when a write failed that raft takes for done: the node has to give up leadership. Until it does,
// or Unwritten says that it need not, it hands StoreLogs a command, which is refused; anything else would be a new try.
func NewParallel(s *Store, leads func() bool, failed func(error)) *Parallel {
	p := &Parallel{Store: s, leads: leads, failed: failed, done: make(chan struct{})}
	p.changed.L = &p.mu
	go p.write()
	return p
}

// StoreLog implements raft.LogStore.
func (p *Parallel) StoreLog(log *raft.Log) error { return p.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. See the invariants.
func (p *Parallel) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if !early(logs) || !p.leads() {
		if err := p.drain(); err != nil {
			return err
		}
		return p.Store.StoreLogs(logs)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.bytes > maxPendingBytes && p.err == nil && !p.closed {
		p.changed.Wait()
	}
	switch {
	case p.closed:
		return ErrClosed
	case p.err != nil:
		return p.err
	}
	if last := p.lastLocked(); logs[0].Index != last+1 {
		return fmt.Errorf("store log entries: index %d after the last one, %d", logs[0].Index, last)
	}
	for i, l := range logs {
		if l.Index != logs[0].Index+uint64(i) {
			return fmt.Errorf("store log entries: index %d follows %d", l.Index, logs[i-1].Index)
		}
		p.bytes += cost(l)
	}
	p.pending = append(p.pending, logs...)
	p.changed.Broadcast()
	return nil
}

func early(logs []*raft.Log) bool {
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			return false
		}
	}
	return true
}

func (p *Parallel) lastLocked() uint64 {
	if n := len(p.pending); n > 0 {
		return p.pending[n-1].Index
	}
	_, last := p.Store.Bounds()
	return last
}

// write takes what is pending to the disk, all of it at once.
func (p *Parallel) write() {
	defer close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for (len(p.pending) == 0 || p.err != nil) && !p.closed {
			p.changed.Wait()
		}
		if p.closed {
			return
		}
		p.mu.Unlock()
		// The followers' requests are sent before this goroutine keeps its processor for the time of a sync.
		runtime.Gosched()
		p.mu.Lock()
		if err := p.flushLocked(); err != nil && p.failed != nil {
			go p.failed(err)
		}
	}
}

// flushLocked stores what is pending. The lock is not held meanwhile.
func (p *Parallel) flushLocked() error {
	batch := p.pending[:len(p.pending):len(p.pending)]
	if len(batch) == 0 {
		return nil
	}
	p.writing = len(batch)
	p.mu.Unlock()
	err := p.Store.StoreLogs(batch)
	p.mu.Lock()
	p.writing = 0
	p.err = err
	if err == nil {
		p.pending = p.pending[len(batch):]
		for _, l := range batch {
			p.bytes -= cost(l)
		}
		if len(p.pending) == 0 {
			p.pending = nil
		}
	}
	p.wakeLocked()
	return err
}

func (p *Parallel) wakeLocked() {
	p.changed.Broadcast()
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// drain returns when nothing is pending. What failed before is tried again, once.
func (p *Parallel) drain() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.pending) > 0 && !p.closed {
		if p.err != nil && p.writing == 0 {
			if err := p.flushLocked(); err != nil {
				return err
			}
			continue
		}
		p.changed.Wait()
	}
	if len(p.pending) > 0 {
		return ErrClosed
	}
	return nil
}

// Wait returns when every entry up to index is durable here, or with the reason why it will not be. It ends when
// cancel is closed.
func (p *Parallel) Wait(index uint64, cancel <-chan struct{}) error {
	for {
		p.mu.Lock()
		if len(p.pending) == 0 || index < p.pending[0].Index {
			p.mu.Unlock()
			return nil
		}
		switch {
		case p.err != nil:
			err := p.err
			p.mu.Unlock()
			return fmt.Errorf("entry %d is not durable here: %w", index, err)
		case p.closed:
			p.mu.Unlock()
			return ErrClosed
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-cancel:
			return ErrClosed
		}
	}
}

// Unwritten is why entries that raft takes for written are not, nil when they are.
func (p *Parallel) Unwritten() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// LastIndex implements raft.LogStore.
func (p *Parallel) LastIndex() (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastLocked(), nil
}

// FirstIndex implements raft.LogStore.
func (p *Parallel) FirstIndex() (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, _ := p.Store.Bounds()
	if first == 0 && len(p.pending) > 0 {
		first = p.pending[0].Index
	}
	return first, nil
}

// GetLog implements raft.LogStore.
func (p *Parallel) GetLog(index uint64, log *raft.Log) error {
	p.mu.Lock()
	if n := len(p.pending); n > 0 && index >= p.pending[0].Index && index-p.pending[0].Index < uint64(n) {
		*log = *p.pending[index-p.pending[0].Index]
		p.mu.Unlock()
		return nil
	}
	p.mu.Unlock()
	return p.Store.GetLog(index, log)
}

// DeleteRange implements raft.LogStore.
func (p *Parallel) DeleteRange(minIndex, maxIndex uint64) error {
	if err := p.drain(); err != nil {
		return err
	}
	return p.Store.DeleteRange(minIndex, maxIndex)
}

// Stop ends the writer, after the write that it is in. raft must be shut down before. The Store stays open.
func (p *Parallel) Stop() {
	p.mu.Lock()
	p.closed = true
	p.wakeLocked()
	p.mu.Unlock()
	<-p.done
}
