package logstore

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// raft's keys in the stable store.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyLastVoteTerm = []byte("LastVoteTerm")
	keyLastVoteCand = []byte("LastVoteCand") // an address, as the transport encodes it
)

// Check looks whether log and snapshots fit together, before raft is started on
// them, and tells the log what the newest snapshot covers. It refuses a log that
// lost entries, and removes one that ends before the newest snapshot: a crash
// came between the restore of a snapshot and raft's removal of the entries it
// replaced.
//
// The log has certainly lost entries when it is empty, no snapshot is there,
// and it once held an entry, or this node stood for election, which needs a
// configuration from its log. A vote for another node is no proof: before its
// first entry arrives, a node that is being added may give one. raftAddr is the
// address that raft calls this node by.
func Check(s *Store, snaps raft.SnapshotStore, raftAddr string) error {
	if sn, ok := snaps.(*Snapshots); ok {
		sn.OnComplete(s.Covered)
	}
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("check raft log: %w", err)
	}
	first, last := s.Bounds()
	if len(list) == 0 {
		if last == 0 {
			return s.checkEmpty(raftAddr)
		}
		if first > 1 {
			return fmt.Errorf("check raft log: it starts at %d and there is no snapshot: %w", first, ErrLogGap)
		}
		return nil
	}
	snap := list[0].Index
	s.Covered(snap, list[0].Term)
	switch {
	case last == 0:
	case last < snap:
		if err := s.DeleteRange(first, last); err != nil {
			return fmt.Errorf("check raft log: remove entries %d to %d before snapshot %d: %w", first, last, snap, err)
		}
	case first > snap+1:
		return fmt.Errorf("check raft log: it starts at %d, the newest snapshot is of %d: %w", first, snap, ErrLogGap)
	}
	return nil
}

func (s *Store) checkEmpty(raftAddr string) error {
	if s.started {
		return fmt.Errorf("check raft log: it is empty and was not: %w", ErrLogLost)
	}
	term, err := s.GetUint64(keyCurrentTerm)
	if err != nil {
		return fmt.Errorf("check raft log: read term: %w", err)
	}
	cand, err := s.Get(keyLastVoteCand)
	if err != nil {
		return fmt.Errorf("check raft log: read vote: %w", err)
	}
	if term > 0 && raftAddr != "" && string(cand) == raftAddr {
		return fmt.Errorf("check raft log: it is empty in term %d and this node stood for election: %w", term, ErrLogLost)
	}
	return nil
}
