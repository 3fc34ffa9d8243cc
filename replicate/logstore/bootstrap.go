package logstore

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/raft"
)

// keyBootstrap holds, in the stable store, the id of the cluster that this node bootstraps, and its members.
var keyBootstrap = []byte("hasqlite.bootstrap")

// PlanBootstrap notes durably that this node bootstraps a cluster with these members. It comes before the node takes
// the id of the cluster, and that before raft is told of the members: a node that stopped in between would be a member of
// a cluster that never has a leader. See FinishBootstrap.
func (s *Store) PlanBootstrap(cluster [16]byte, members raft.Configuration) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if err := s.Failed(); err != nil {
		return err
	}
	if err := s.backend.Set(keyBootstrap, append(cluster[:], raft.EncodeConfiguration(members)...)); err != nil {
		return s.fail(fmt.Errorf("note the members of a new cluster: %w", err))
	}
	return nil
}

// FinishBootstrap does, before raft is started, what raft's own bootstrap would have done if the node had not stopped
// before its end. A node that has joined the cluster has planned none of that id.
func (s *Store) FinishBootstrap(cluster [16]byte) error {
	plan, err := s.Get(keyBootstrap)
	if err != nil {
		return fmt.Errorf("finish the bootstrap: read the members: %w", err)
	}
	members, mine := bytes.CutPrefix(plan, cluster[:])
	if s.started || !mine {
		return nil
	}
	if err := s.SetUint64(keyCurrentTerm, 1); err != nil {
		return fmt.Errorf("finish the bootstrap: write the term: %w", err)
	}
	if err := s.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: members}); err != nil {
		return fmt.Errorf("finish the bootstrap: %w", err)
	}
	return nil
}
