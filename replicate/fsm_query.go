package replicate

import (
	"cmp"
	"slices"
	"sort"
)

// Lookup returns the database that has the name.
func (f *FSM) Lookup(name string) (DatabaseState, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if db := f.s.byName[name]; db != nil {
		return db.DatabaseState, true
	}
	return DatabaseState{}, false
}

// Get returns the database that has the id.
func (f *FSM) Get(id DatabaseID) (DatabaseState, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if db := f.s.byID[id]; db != nil {
		return db.DatabaseState, true
	}
	return DatabaseState{}, false
}

// List returns all databases by name.
func (f *FSM) List() []DatabaseState {
	f.mu.RLock()
	out := make([]DatabaseState, 0, len(f.s.byID))
	for _, db := range f.s.byID {
		out = append(out, db.DatabaseState)
	}
	f.mu.RUnlock()
	slices.SortFunc(out, func(a, b DatabaseState) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Page returns at most limit databases whose names begin with prefix and come after another name, in order, and whether
// there are more. It looks at no others.
func (f *FSM) Page(prefix, after string, limit int) (page []DatabaseState, more bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for name := range f.s.names.list(prefix, after) {
		if len(page) == limit {
			return page, true
		}
		page = append(page, f.s.byName[name].DatabaseState)
	}
	return page, false
}

// positionsAt returns the transaction that each database was at when a log index was decided, or a later one where that
// is not known any more. Forks whose copies are being made are left out.
func (f *FSM) positionsAt(index uint64) []durablePosition {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := make([]durablePosition, 0, len(f.s.byID))
	for _, db := range f.s.byID {
		if db.Pending {
			continue
		}
		w := db.accepted.window(f.s.applied)
		after := sort.Search(len(w), func(i int) bool { return w[i].index > index })
		out = append(out, durablePosition{db.ID, db.Position.TXID - TXID(len(w)-after)})
	}
	return out
}

// Count returns how many databases there are.
func (f *FSM) Count() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.s.byID)
}

// NextID returns the id and incarnation that a database of this name would get
// if it were created now.
func (f *FSM) NextID(cluster [16]byte, name string) (DatabaseID, uint64) {
	f.mu.RLock()
	n := f.s.incarnations[name]
	f.mu.RUnlock()
	return NewDatabaseID(cluster, name, n), n
}

// Tombstone returns what is left of a deleted database.
func (f *FSM) Tombstone(id DatabaseID) (name string, index uint64, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	g, ok := f.s.tombstones[id]
	return g.Name, g.Index, ok
}

// ChecksumAt returns the checksum that the database had at a transaction, as
// far back as entry ids are kept.
func (f *FSM) ChecksumAt(id DatabaseID, txid TXID) (Checksum, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	db := f.s.byID[id]
	if db == nil {
		return 0, false
	}
	if txid == db.Position.TXID {
		return db.Position.Checksum, true
	}
	e, ok := db.accepted.at(txid, db.Position.TXID, f.s.applied)
	return e.checksum, ok
}

// Members returns the members by id.
func (f *FSM) Members() []Member {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return sortedMembers(f.s.members)
}

// Cluster returns the cluster id that the log names, or zero.
func (f *FSM) Cluster() [16]byte {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.cluster
}

// ClusterVersion returns the version of the rules in force.
func (f *FSM) ClusterVersion() uint8 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.clusterVersion
}

// Applied returns the raft index of the last entry that was decided and told to
// the sink. Raft's own no-op entries are not counted.
func (f *FSM) Applied() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.applied
}

// StartedTerm returns the highest term whose TermStart is decided.
func (f *FSM) StartedTerm() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.term
}

// TermStartIndex returns the raft index of the TermStart of term, if that is the
// highest one decided.
func (f *FSM) TermStartIndex(term uint64) (index uint64, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if term == 0 || f.s.term != term {
		return 0, false
	}
	return f.s.termIndex, true
}

// Err returns why the FSM stopped, or nil.
func (f *FSM) Err() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.stopped
}

func sortedMembers(members map[string]Member) []Member {
	out := make([]Member, 0, len(members))
	for _, m := range members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Sample returns one of the databases, chosen by n, which returns a number below its argument.
func (s *Service) Sample(n func(int) int) (DatabaseState, bool) {
	list := s.fsm.List()
	if len(list) == 0 {
		return DatabaseState{}, false
	}
	return list[n(len(list))], true
}
