package replicate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Space is the room on the disk of the data directory. Package datadir implements it.
type Space interface {
	// Free returns how many bytes can still be written.
	Free() (int64, error)
	// Reserved returns how many bytes Release would give back.
	Reserved() int64
	// Reserve makes the reserve, if it is not there.
	Reserve() error
	// Release gives the reserve up. It reports whether there was one.
	Release() bool
}

// ErrDiskFull is returned for writes on a node, or through a leader, that has no room left. Nothing was written;
// retry when there is.
var ErrDiskFull = errors.New("disk full")

const (
	// diskInterval is how often a node looks at its disk. What it does about a full one it does again every
	// diskRetry.
	diskInterval = 100 * time.Millisecond
	diskRetry    = 5 * time.Second
	// criticalBytes is when the reserve is given up: metadata of files need room, too.
	criticalBytes = 2 << 20
	// workBytes is what stays for transactions that have begun, and for what is decided to reach the files, when no
	// more begin. One that is larger meets a full disk, and is refused.
	workBytes = 16 << 20
)

// disk is what a node knows of its disk.
//
// A node whose disk is nearly full takes no new writes of its applications, gives leadership to a member that
// has room, and does not stand for election. What is decided is still applied, and the log taken, for as long as
// they fit. When there is room again, all of that ends by itself.
type disk struct {
	space Space
	// low is the room below which the disk counts as full, enough the room above which it does not any more.
	low, enough, reserve int64
	unknown              bool // the last look failed; used by watchDisk alone

	mu    sync.Mutex
	full  error // nil: there is room
	since time.Time
	free  int64
}

// DiskStatus is the room on the disk of a node.
type DiskStatus struct {
	Full     bool      `json:"full"`
	Since    time.Time `json:"since,omitzero"`
	Free     int64     `json:"free_bytes"`
	Reserved int64     `json:"reserved_bytes"`
}

// diskReport is a member's answer to a leader that looks for a successor.
type diskReport struct {
	Full bool `json:"full"`
}

func newDisk(space Space, segment, reserve int64) *disk {
	low := segment + workBytes
	return &disk{space: space, low: low, enough: low + low/2, reserve: reserve}
}

// Disk describes the disk of this node.
func (s *Service) Disk() DiskStatus {
	d := s.disk
	if d.space == nil {
		return DiskStatus{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return DiskStatus{Full: d.full != nil, Since: d.since, Free: d.free, Reserved: d.space.Reserved()}
}

// diskFull is nil while there is room.
func (s *Service) diskFull() error {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return s.disk.full
}

// mayCampaign tells raft's transport whether this node may ask for votes: a leader that cannot write is of no use.
func (s *Service) mayCampaign() error {
	if err := s.diskFull(); err != nil {
		return fmt.Errorf("no election while this node could not write as a leader: %w", err)
	}
	return nil
}

// watchDisk looks at the room on the disk, and acts before the log cannot be written.
func (s *Service) watchDisk() {
	if s.disk.space == nil {
		return
	}
	var acted time.Time
	for {
		if s.lookAtDisk() && time.Since(acted) > diskRetry {
			acted = time.Now()
			s.goroutine(s.relieveDisk)
		}
		if !s.pauseFor(s.ctx, diskInterval) {
			return
		}
	}
}

// lookAtDisk reports whether the disk is full.
func (s *Service) lookAtDisk() bool {
	d := s.disk
	free, err := d.space.Free()
	if err != nil && !d.unknown {
		s.log.Warn("room on the disk unknown", "err", err)
	}
	if d.unknown = err != nil; d.unknown {
		return false
	}
	full := s.diskFull() != nil
	reserved := d.space.Reserved()
	switch {
	case free < criticalBytes && d.space.Release():
		s.log.Warn("the reserve for a full disk is given up", "bytes", reserved)
	case full && reserved == 0 && free >= d.enough+d.reserve, !full && reserved == 0 && free >= d.low+d.reserve:
		if err := d.space.Reserve(); err != nil {
			s.log.Warn("no reserve for a full disk", "err", err)
		}
	}
	if now, err := d.space.Free(); err == nil {
		free = now
	}
	d.mu.Lock()
	d.free = free
	switch {
	case !full && (free < d.low || s.store.Full()):
		d.full, d.since = fmt.Errorf("%w on node %s: %d bytes are free", ErrDiskFull, s.opts.NodeID, free), time.Now()
	case full && free >= d.enough && d.space.Reserved() == d.reserve && s.store.Room() == nil:
		d.full, d.since = nil, time.Time{}
	}
	is := d.full != nil
	d.mu.Unlock()
	switch {
	case is && !full:
		s.metrics.error("disk_full")
		s.log.Error("the disk is full: this node takes no writes until there is room", "free_bytes", free, "wanted_bytes", d.enough+d.reserve)
	case full && !is:
		s.log.Info("there is room on the disk again", "free_bytes", free)
	}
	return is
}

// relieveDisk gives leadership to a member that has room, and frees what this node can do without. One that takes
// longer than diskRetry is enough.
func (s *Service) relieveDisk() {
	if s.relieving.Swap(true) {
		return
	}
	defer s.relieving.Store(false)
	s.handOver()
	for _, d := range s.activeReplicas() {
		d.shrinkWAL()
	}
	err := s.raft.Snapshot().Error()
	if err != nil && s.disk.space.Release() { // it needs some room itself
		s.log.Warn("the reserve for a full disk is given up, to compact the log", "err", err)
		err = s.raft.Snapshot().Error()
	}
	if err == nil || errors.Is(err, raft.ErrNothingNewToSnapshot) {
		// A segment of entries stays for followers that are a little behind.
		err = s.store.Compact(s.store.Newest(s.opts.SegmentBytes, s.opts.TrailingEntries))
	}
	if err != nil && s.ctx.Err() == nil {
		s.log.Warn("compact the log of a full disk", "err", err)
	}
}

// handOver gives leadership to a voter with room. Where there is none, this node goes on leading: reads need a leader.
func (s *Service) handOver() {
	if s.raft.State() != raft.Leader {
		return
	}
	found, _ := s.successorWithRoom(s.ctx)
	for _, srv := range found {
		if err := s.raft.LeadershipTransferToServer(srv.ID, srv.Address).Error(); err != nil {
			s.log.Warn("hand leadership to a member with room on its disk", "member", string(srv.ID), "err", err)
			continue
		}
		s.log.Info("leadership was handed to a member with room on its disk", "member", string(srv.ID))
		return
	}
	s.log.Warn("no other member has room on its disk: writes wait")
}

// successorWithRoom returns the other voters that say they have room, and how many say they have none.
func (s *Service) successorWithRoom(ctx context.Context) (found []raft.Server, full int) {
	for _, srv := range s.servers() {
		if string(srv.ID) == s.opts.NodeID || srv.Suffrage != raft.Voter {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		r, err := callJSON[struct{}, diskReport](ctx, s, string(srv.ID), methodDisk, struct{}{})
		cancel()
		switch {
		case err == nil && r.Full:
			full++
		case err == nil:
			found = append(found, srv)
		}
	}
	return found, full
}

// handOverToStop gives leadership away because this node stops: not to a member that could not write.
func (s *Service) handOverToStop(ctx context.Context) error {
	found, full := s.successorWithRoom(ctx)
	switch {
	case full == 0:
		return s.raft.LeadershipTransfer().Error()
	case len(found) == 0:
		return ErrDiskFull
	}
	return s.raft.LeadershipTransferToServer(found[0].ID, found[0].Address).Error()
}

func (s *Service) serveDisk(context.Context, struct{}) (diskReport, error) {
	return diskReport{Full: s.diskFull() != nil}, nil
}

// shrinkBytes is the size from which on the WAL of a database is cut when the disk is full.
const shrinkBytes = 1 << 20

// shrinkWAL brings the WAL into the file, which has its blocks, and cuts it.
func (d *replica) shrinkWAL() {
	if !d.ioMu.TryLock() {
		return
	}
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live := d.live
	d.mu.Unlock()
	if live == nil {
		return
	}
	if size, err := live.WALSize(); err != nil || size < shrinkBytes {
		return
	}
	_, _, err := live.Checkpoint(true)
	if err != nil {
		d.log.Debug("cut the WAL", "err", err)
	}
}
