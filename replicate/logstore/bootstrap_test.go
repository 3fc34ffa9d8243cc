package logstore

import (
	"reflect"
	"testing"

	"github.com/hashicorp/raft"
)

func TestABootstrapIsFinishedWhereItWasPlanned(t *testing.T) {
	cluster, other := [16]byte{1}, [16]byte{2}
	members := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "10.0.0.1:7"}, {ID: "n2", Address: "10.0.0.2:7"}}}
	later := raft.Configuration{Servers: members.Servers[:1]}
	for name, row := range map[string]struct {
		before func(s *Store) error
		node   [16]byte // the cluster of the node
		last   uint64
	}{
		"nothing was planned":       {func(*Store) error { return nil }, cluster, 0},
		"no cluster was taken":      {func(s *Store) error { return s.PlanBootstrap(cluster, members) }, [16]byte{}, 0},
		"another cluster was taken": {func(s *Store) error { return s.PlanBootstrap(cluster, members) }, other, 0},
		"the cluster was taken":     {func(s *Store) error { return s.PlanBootstrap(cluster, members) }, cluster, 1},
		"planned anew": {func(s *Store) error {
			must(t, s.PlanBootstrap(other, later))
			return s.PlanBootstrap(cluster, members)
		}, cluster, 1},
		"the term was written": {func(s *Store) error {
			must(t, s.PlanBootstrap(cluster, members))
			return s.SetUint64(keyCurrentTerm, 1)
		}, cluster, 1},
		"the log has begun": {func(s *Store) error {
			must(t, s.PlanBootstrap(cluster, later))
			must(t, s.SetUint64(keyCurrentTerm, 1))
			return s.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(members)})
		}, cluster, 1},
	} {
		for from, to := range map[Kind]Kind{WAL: WAL, BoltDB: WAL} { // as it is, or migrated
			t.Run(name+"/"+string(from), func(t *testing.T) {
				dir, opt := t.TempDir(), Options{SegmentBytes: testSegment}
				s, err := Open(dir, from, opt)
				must(t, err)
				must(t, row.before(s))
				must(t, s.Close())
				if from != to {
					must(t, Migrate(dir, from, to, opt, func() error { return nil }))
				}
				for range 2 {
					s, err = Open(dir, to, Options{SegmentBytes: testSegment, MustExist: true})
					must(t, err)
					must(t, Check(s, raft.NewInmemSnapshotStore(), "10.0.0.1:7"))
					must(t, s.FinishBootstrap(row.node))
					wantBounds(t, s, row.last, row.last, row.last)
					if row.last > 0 {
						l, err := s.Entry(1)
						must(t, err)
						if got := raft.DecodeConfiguration(l.Data); l.Type != raft.LogConfiguration || !reflect.DeepEqual(got, members) {
							t.Errorf("entry of type %v: %+v", l.Type, got)
						}
					}
					if term, err := s.GetUint64(keyCurrentTerm); term != row.last || err != nil {
						t.Errorf("term %d, %v", term, err)
					}
					must(t, s.Close())
				}
			})
		}
	}
}
